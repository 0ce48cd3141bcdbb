"""Sets a damaged database aside, and takes over from it what can be proven.

A row proves nothing by itself; but if a block of the content file has the checksum that
the row names, both are right. So an entry is taken over with exactly the blocks that
match, through its lifecycle like any other, and the rest is fetched again. That reads
all content once; it happens only after damage.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from .errors import DatabaseDamaged, IllegalMove, RowRefused, StorageError
from .integrity import Digests, block_at, digest
from .lifecycle import Lifecycle, Move
from .models import Store
from .ranges import END, ByteRange, RangeSet
from .sanity import reset_nonsense
from .storage import ContentFile, is_content_name_of, remove_content

__all__ = ["open_store"]

_log = logging.getLogger(__name__)

_KEPT: Final = (
    "complete_length",
    "etag",
    "last_modified",
    "response_fields",
    "accepts_ranges",
    "requested_at",
    "validated_at",
    "vary",
    "pinned",
    "created_at",
    "last_accessed_at",
    "access_count",
)

_SUFFIXES: Final = ("", "-wal", "-shm")
"""Suffixes of the files that make up a SQLite database."""

_LONGEST_GAP: Final = 1_000_000
"""How many ids after the first unreadable page are tried, one by one."""


def open_store(path: Path, content: Path, *, now_s: float) -> Store:
    """Open the database at *path*; replace a damaged one by what can be proven of it.

    If single rows make no sense, only those are reset.

    Raises:
        StorageError: it cannot be opened for another reason, or not set aside.
    """
    try:
        return _open_sound(path, now_s)
    except DatabaseDamaged as error:
        rebuilt, taken = _rebuild(path, content, now_s)
        aside = _put_aside(path)
        try:
            rebuilt.replace(path)
        except OSError as refusal:
            raise StorageError(f"cannot put {path.name} in place: {refusal.strerror}") from refusal
        _log.warning(
            "the database was damaged (%s): kept as %s; %d entries taken over",
            error,
            aside.name,
            taken,
        )
        return Store.open(path)


def _rebuild(path: Path, content: Path, now_s: float) -> tuple[Path, int]:
    """Make a new database from what can be proven; return its path and number of entries.

    It is made beside the damaged one at *path*, so that nothing is lost if this is
    interrupted: it takes as long as reading all content.
    """
    rebuilt = path.with_name(f"{path.name}.rebuilt")
    for suffix in _SUFFIXES:
        remove_content(rebuilt.with_name(rebuilt.name + suffix))
    with closing(Store.open(rebuilt)) as store:
        taken = _take_over(path, store, content, now_s)
        reset_nonsense(store, now_s)
        store.sync()
    return rebuilt, taken


def _open_sound(path: Path, now_s: float) -> Store:
    store = Store.open(path)
    try:
        try:
            reset_nonsense(store, now_s)
        except StorageError:
            store.check()  # a damaged schema refuses what a sound one takes
            raise
        # Every time: a page can rot while nobody has it open.
        store.check()
    except BaseException:
        # Before the file is renamed: SQLite goes by its name when it cleans up.
        store.close()
        raise
    return store


def _put_aside(path: Path) -> Path:
    """Give the damaged database another name, and leave it under its own to be replaced."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        # The log first: SQLite would take it for that of whatever has the name.
        for suffix in _SUFFIXES[1:]:
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        shutil.copyfile(path, aside)
    except OSError as error:
        raise StorageError(f"cannot put the damaged {path.name} aside: {error.strerror}") from error
    return aside


def _take_over(damaged: Path, store: Store, content: Path, now_s: float) -> int:
    """Take over what *damaged* proves; return how many entries that made."""
    taken = 0
    try:
        with closing(sqlite3.connect(f"{damaged.as_uri()}?mode=ro", uri=True)) as old:
            old.row_factory = sqlite3.Row
            # So that it makes do with what it understands of a damaged schema.
            old.execute("PRAGMA writable_schema = ON")
            chunks = _chunks(old)
            for row in _entries(old):
                taken += _take_entry(row, chunks[row["id"]], store, content, now_s)
    except (sqlite3.Error, UnicodeError) as error:
        _log.info("the damaged database cannot be read any further: %s", error)
    return taken


# -- reading what can be read ------------------------------------------------------


def _chunks(old: sqlite3.Connection) -> dict[int, list[sqlite3.Row]]:
    # All at once and by no index: one more page that must be sound.
    query = "SELECT entry_id, start, stop, checksum FROM cache_chunks NOT INDEXED"
    found = defaultdict(list)
    for row in _readable(old, query):
        found[row["entry_id"]].append(row)
    return found


def _entries(old: sqlite3.Connection) -> Iterator[sqlite3.Row]:
    """Yield every row that can be reached, whatever lies in between."""
    last = 0
    for row in _readable(old, "SELECT * FROM cache_entries NOT INDEXED ORDER BY id"):
        last = row["id"]
        yield row
    highest = last
    for row in _readable(old, "SELECT seq FROM sqlite_sequence WHERE name = 'cache_entries'"):
        if isinstance(row["seq"], int):
            highest = min(row["seq"], last + _LONGEST_GAP)
    for entry_id in range(last + 1, highest + 1):
        yield from _readable(old, "SELECT * FROM cache_entries WHERE id = ?", entry_id)


def _readable(old: sqlite3.Connection, query: str, *values: Any) -> Iterator[sqlite3.Row]:
    """Yield the rows up to the first one that cannot be read."""
    try:
        yield from old.execute(query, values)
    except (sqlite3.DatabaseError, UnicodeError) as error:
        _log.debug("the damaged database: %s", error)


# -- proving it --------------------------------------------------------------------


def _take_entry(
    row: sqlite3.Row, chunks: list[sqlite3.Row], store: Store, content: Path, now_s: float
) -> int:
    """Take one entry over with the blocks that match; return how many that made, 0 or 1.

    Raises:
        StorageError: the new database refuses; it is no fault of the entry's.
    """
    try:
        length = END if row["complete_length"] is None else row["complete_length"]
        if not is_content_name_of(row["content_file"], row["key"]):
            return 0
        proven, digests = _prove(content / row["content_file"], chunks, length)
        if not proven:
            return 0
        with store.transaction():
            _write(row, proven, digests, store, now_s)
    except (IllegalMove, RowRefused, IndexError, TypeError, ValueError) as error:
        _log.info("an entry of the damaged database is left out: %s", error)
        return 0
    return 1


def _write(
    row: sqlite3.Row, proven: RangeSet, digests: Digests, store: Store, now_s: float
) -> None:
    record = store.create(
        key=row["key"], url=row["url"], content_file=row["content_file"], now_s=now_s
    )
    lifecycle = Lifecycle(store, record)
    lifecycle.send("initialize", Move(now_s=now_s))
    lifecycle.send("begin", Move(now_s=now_s, columns={name: row[name] for name in _KEPT}))
    length = row["complete_length"]
    whole = proven.total == length
    packed = {run.start: digests.pack(run, END if length is None else length) for run in proven}
    move = Move(
        now_s=now_s,
        reason=None if whole else "recovered",
        durable_bytes=proven.total,
        complete_length=length,
        columns={"bytes_present": proven.total},
        chunks=tuple(proven),
        checksums={start: blob for start, blob in packed.items() if blob},
    )
    lifecycle.send("finish" if whole else "pause", move)


def _prove(path: Path, chunks: list[sqlite3.Row], length: int) -> tuple[RangeSet, Digests]:
    """Return the blocks that are in the file as the rows say."""
    claimed, matching, proven = Digests(), Digests(), RangeSet()
    for _, start, stop, checksum in chunks:
        with suppress(TypeError, ValueError):  # nonsense proves nothing, and harms nothing
            claimed.unpack(ByteRange(start, stop), checksum, length)
    file = ContentFile(path)
    try:
        for index in claimed.within(0, length, length):
            block = block_at(index, length)
            if _matches(file, block, claimed[index]):
                proven.add(*block)
                matching.update({index: claimed[index]})
    finally:
        file.release()
    return proven, matching


def _matches(file: ContentFile, block: ByteRange, expected: int) -> bool:
    try:
        return digest(file.read_at(block.start, block.size)) == expected
    except StorageError:
        return False
