"""Damage as it happens to files: flipped bytes, lost ends, pages full of something else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

__all__ = ["flip", "lose_log", "overwrite_page", "page_count", "replace", "root_page", "truncate"]

_NOISE = 0xA5


def flip(file: Path, offsets: Iterable[int]) -> None:
    """Change the bytes at *offsets*; size and the rest stay."""
    with file.open("r+b") as opened:
        for offset in offsets:
            opened.seek(offset)
            (byte,) = opened.read(1)
            opened.seek(offset)
            opened.write(bytes([byte ^ 0xFF]))


def truncate(file: Path, size_bytes: int) -> None:
    """Cut the file off."""
    with file.open("r+b") as opened:
        opened.truncate(size_bytes)


def replace(file: Path) -> None:
    """Put another file of the same size in its place, as a restored backup does."""
    other = file.with_name("other")
    other.write_bytes(bytes([_NOISE]) * file.stat().st_size)
    other.replace(file)


# -- databases that nobody has open ------------------------------------------------


def lose_log(database: Path) -> None:
    """Delete what SQLite keeps beside the file, as an incomplete backup does."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def root_page(database: Path, kind: str, table: str) -> int:
    """Return the number of the page where a ``table``, or the first ``index`` on it, begins."""
    with closing(sqlite3.connect(database)) as opened:
        found = opened.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = ? AND tbl_name = ? ORDER BY rootpage",
            (kind, table),
        ).fetchone()
    page: int = found[0]
    return page


def page_count(database: Path) -> int:
    """Return how many pages the file has."""
    return database.stat().st_size // _page_bytes(database)


def overwrite_page(database: Path, number: int, *, keep_bytes: int = 0) -> None:
    """Fill page *number*, which counts from 1, with noise after its first *keep_bytes*."""
    size = _page_bytes(database)
    with database.open("r+b") as file:
        file.seek((number - 1) * size + keep_bytes)
        file.write(bytes([_NOISE]) * (size - keep_bytes))


def _page_bytes(database: Path) -> int:
    # Source: https://www.sqlite.org/fileformat.html §1.3.2; 1 stands for 65536.
    with database.open("rb") as file:
        file.seek(16)
        size = int.from_bytes(file.read(2), "big")
    return 65536 if size == 1 else size
