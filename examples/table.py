"""Add up a column of a CSV file on the web; a second run transfers nothing that is fresh.

    pip install '.[fsspec]'
    python examples/table.py CACHE_DIR URL COLUMN

With pandas the same file is
``pandas.read_csv("cachefsm://" + url, storage_options={"directory": directory})``.
"""

from __future__ import annotations

import csv
import sys

from cachefsm.fsspec_filesystem import CacheFileSystem


def main(directory: str, url: str, column: str) -> None:
    """Print the sum of *column*."""
    files = CacheFileSystem(directory=directory)
    with files.open(url, "r", newline="") as table:
        print(sum(float(row[column]) for row in csv.DictReader(table)))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
