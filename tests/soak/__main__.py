"""``python -m tests.soak``: exit status 0 if nothing was wrong, 1 if something was."""

from __future__ import annotations

import argparse
import random
import sys

from tests.soak.run import Options, soak
from tests.soak.weather import FAULTS
from tests.soak.world import KINDS


def main() -> int:
    names = sorted({*FAULTS, *(kind.name for kind in KINDS), "change", "outage", "kill", "harm"})
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="default: another one every time")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument(
        "--without", action="append", default=[], choices=names, metavar="NAME", help="leave out"
    )
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    options = Options(given.minutes * 60, seed, clients=given.clients, without=given.without)
    report, totals = soak(options)
    report.print_findings()
    print(totals, flush=True)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
