"""``python -m tests.fuzz``: exit status 0 if nothing was wrong, 1 if something was."""

from __future__ import annotations

import argparse
import random
import sys

from tests.fuzz.run import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, help="default: another one every time")
    parser.add_argument("--only", type=int, metavar="N", help="send that case alone")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    report = fuzz(given.count, seed, only=given.only)
    for finding in report.findings:
        print(f"WRONG {finding}", file=sys.stderr)
    print(report, flush=True)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
