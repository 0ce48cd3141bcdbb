"""What syncing costs: the same downloads at each level of durability, turn by turn.

    python -m benchmarks.durability [--rounds N] [--directory DIR]

The ratio is what to quote, and it is the disk's: name a directory on the one in
question, as a file system in memory syncs for nothing. A download counts from the
order to the last byte recorded, from an origin as fast as this machine allows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cachefsm import Cache
from cachefsm.surroundings import Durability

from .origin import run_origin

PATIENCE_S: Final = 600.0
WORK: Final = {
    "one file of 512 MiB": ("512M", 1),
    "100 files of 256 KiB": ("256K", 100),
}
_names: Final = count()


def download_s(origin: str, directory: Path, durability: Durability, files: int) -> float:
    """Return the seconds that *files* files take, one after the other, until all are complete."""
    with Cache(directory, durability=durability) as cache:
        entries = [cache.entry(f"{origin}{next(_names)}") for _ in range(files)]
        started_s = time.perf_counter()
        for entry in entries:
            if not entry.wait_complete(PATIENCE_S):
                raise TimeoutError(f"{entry} is not complete after {PATIENCE_S:g} s")
        return time.perf_counter() - started_s


def compare(title: str, rounds: int, directory: Path) -> None:
    """Print both levels' medians for one kind of work, and their ratio."""
    size, files = WORK[title]
    figures: dict[Durability, list[float]] = {level: [] for level in Durability}
    with run_origin("--size", size) as origin:
        for _ in range(rounds):
            for level, values in figures.items():
                with TemporaryDirectory(dir=directory) as place:
                    values.append(download_s(origin.url, Path(place), level, files))
    process_s = statistics.median(figures[Durability.PROCESS])
    for level, values in figures.items():
        median_s = statistics.median(values)
        print(
            f"{title:<22} {level.value:<8} {median_s:7.2f} s "
            f"({min(values):.2f} to {max(values):.2f})  x{median_s / process_s:.2f}"
        )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.durability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="on the disk to measure")
    options = parser.parse_args()
    for title in WORK:
        compare(title, options.rounds, options.directory)


if __name__ == "__main__":
    main()
