"""A damaged database: kept aside, and what can be proven taken over from it.

A row proves nothing by itself; a block of a content file that has the checksum
which the row names proves both. So an entry is taken over with exactly the blocks
that match, through its lifecycle like any other, and the rest is fetched again.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from .errors import CacheError, DatabaseDamaged, StorageError
from .integrity import Digests, block_at, digest, whole_blocks
from .lifecycle import Lifecycle, Move
from .models import Store
from .ranges import END, ByteRange, RangeSet
from .sanity import reset_nonsense
from .storage import ContentFile

__all__ = ["open_store"]

_log = logging.getLogger(__name__)

_KEPT = (
    "complete_length",
    "etag",
    "last_modified",
    "response_fields",
    "accepts_ranges",
    "validated_at",
)


def open_store(path: Path, content: Path, *, check: bool, now_s: float) -> Store:
    """Open the database at *path*; put a damaged one aside and begin with what it proves.

    *check* looks through all of it first, as after a process that did not end well.

    Raises:
        StorageError: it cannot be opened for another reason, or not put aside.
    """
    try:
        store = Store.open(path, check=check)
        reset_nonsense(store, now_s)
        return store
    except DatabaseDamaged as error:
        aside = _put_aside(path)
        store = Store.open(path)
        taken = _take_over(aside, store, content, now_s)
        _log.warning(
            "the database was damaged (%s): kept as %s; %d entries taken over",
            error,
            aside.name,
            taken,
        )
        return store


def _put_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise StorageError(f"cannot put the damaged {path.name} aside: {error.strerror}") from error
    return aside


def _take_over(aside: Path, store: Store, content: Path, now_s: float) -> int:
    taken = 0
    try:
        with closing(sqlite3.connect(f"file:{aside}?mode=ro", uri=True)) as old:
            old.row_factory = sqlite3.Row
            for row in _readable(old, "SELECT * FROM cache_entries"):
                chunks = _readable(
                    old,
                    "SELECT start, stop, checksum FROM cache_chunks "
                    "WHERE entry_id = ? AND checksum IS NOT NULL",
                    row["id"],
                )
                taken += _take_entry(row, chunks, store, content, now_s)
    except sqlite3.Error as error:
        _log.info("the damaged database cannot be read any further: %s", error)
    return taken


def _readable(old: sqlite3.Connection, query: str, *values: Any) -> Iterator[sqlite3.Row]:
    """Yield the rows up to the first one that cannot be read."""
    try:
        yield from old.execute(query, values)
    except sqlite3.DatabaseError as error:
        _log.info("the damaged database ends early: %s", error)


def _take_entry(
    row: sqlite3.Row, chunks: Iterator[sqlite3.Row], store: Store, content: Path, now_s: float
) -> int:
    """Take one entry over with the blocks that match; return how many that made, 0 or 1."""
    try:
        length = END if row["complete_length"] is None else row["complete_length"]
        proven, digests = _prove(content / row["content_file"], chunks, length)
        if not proven:
            return 0
        record = store.create(
            key=row["key"], url=row["url"], content_file=row["content_file"], now_s=now_s
        )
        lifecycle = Lifecycle(store, record)
        runs = tuple(proven)
        packed = {run.start: digests.pack(run, length) for run in runs}
        lifecycle.send("initialize", Move(now_s=now_s))
        lifecycle.send("begin", Move(now_s=now_s, columns={name: row[name] for name in _KEPT}))
        whole = proven.total == length
        move = Move(
            now_s=now_s,
            reason=None if whole else "recovered",
            durable_bytes=proven.total,
            complete_length=row["complete_length"],
            columns={"bytes_present": proven.total},
            chunks=runs,
            checksums={start: blob for start, blob in packed.items() if blob},
        )
        lifecycle.send("finish" if whole else "pause", move)
    except (CacheError, IndexError, TypeError, ValueError) as error:
        _log.info("an entry of the damaged database is left out: %s", error)
        return 0
    return 1


def _prove(path: Path, chunks: Iterator[sqlite3.Row], length: int) -> tuple[RangeSet, Digests]:
    proven, claimed, matching = RangeSet(), Digests(), Digests()
    file = ContentFile(path)
    try:
        for start, stop, checksum in chunks:
            claimed.unpack(ByteRange(start, stop), checksum, length)
            for index in whole_blocks(start, stop, length):
                block = block_at(index, length)
                expected = claimed.get(index)
                if expected is not None and _matches(file, block, expected):
                    proven.add(*block)
                    matching.update({index: expected})
    finally:
        file.release()
    return proven, matching


def _matches(file: ContentFile, block: ByteRange, expected: int) -> bool:
    try:
        return digest(file.read_at(block.start, block.size)) == expected
    except StorageError:
        return False
