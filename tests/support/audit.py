"""What a cache directory holds, held against what is true; for directories that nobody has open.

Looks at a copy of the database, because the last connection to close one folds its
log into it: whoever opens the directory next must find it as it was left.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol

from tests.support.messages import pattern

__all__ = [
    "Chunk",
    "Patterned",
    "StoredEntry",
    "Truth",
    "complaints",
    "entries_in",
    "read_entries",
    "read_file",
    "unclaimed",
]

STATES: Final = ("not_started", "initializing", "downloading", "paused", "complete", "failed")
BLOCK_BYTES: Final = 1 << 20  # what one checksum is of


_COLUMNS: Final = (
    "id",
    "url",
    "state",
    "bytes_present",
    "complete_length",
    "etag",
    "last_modified",
    "generation",
)

ReadFile = Callable[[Path, int, int], bytes]
"""Returns what a file has between two offsets, as far as it goes."""


class Truth(Protocol):
    """One version that the origin has or had."""

    @property
    def size(self) -> int: ...
    def read(self, start: int, stop: int, /) -> bytes: ...


@dataclass(frozen=True)
class Patterned:
    """What a `Resource` of that size and version serves."""

    size: int
    version: int = 0

    def read(self, start: int, stop: int, /) -> bytes:
        return bytes(pattern(self.version)(start, min(stop, self.size)))


@dataclass(frozen=True)
class Chunk:
    """A row of ``cache_chunks``."""

    start: int
    stop: int
    checksum: bytes | None


@dataclass(frozen=True)
class StoredEntry:
    """A row of ``cache_entries`` with its chunks, in order, and its file."""

    id: int
    url: str
    state: str
    bytes_present: int
    complete_length: int | None
    etag: str | None
    last_modified: str | None
    generation: int
    file: Path
    chunks: tuple[Chunk, ...]

    def __str__(self) -> str:
        held = " ".join(f"{chunk.start}-{chunk.stop}" for chunk in self.chunks)
        return (
            f"entry {self.id} {self.url} {self.state} generation {self.generation} "
            f"{self.etag or self.last_modified} [{held}] of {self.complete_length} in "
            f"{self.file.name}"
        )


@contextmanager
def copied(directory: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection to a copy of the directory's database, as a killed process left it."""
    with tempfile.TemporaryDirectory() as name:
        for suffix in ("", "-wal"):  # the -shm is made anew from the -wal
            source = directory / f"cache.sqlite3{suffix}"
            if source.exists():
                shutil.copy(source, name)
        with closing(sqlite3.connect(Path(name) / "cache.sqlite3")) as database:
            yield database


def read_entries(directory: Path) -> list[StoredEntry]:
    """Return what is recorded in *directory*; fails where the database itself is damaged."""
    if not (directory / "cache.sqlite3").exists():
        return []
    with copied(directory) as database:
        return entries_in(database, directory)


def entries_in(database: sqlite3.Connection, directory: Path) -> list[StoredEntry]:
    """Return what *database* says is in *directory*; fails where it is damaged."""
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    if ("cache_entries",) not in database.execute("SELECT name FROM sqlite_master").fetchall():
        return []  # ended before its tables were made
    chunks: dict[int, list[Chunk]] = {}
    for entry_id, *values in database.execute(
        "SELECT entry_id, start, stop, checksum FROM cache_chunks ORDER BY entry_id, start"
    ):
        chunks.setdefault(entry_id, []).append(Chunk(*values))
    return [
        StoredEntry(
            file=directory / "content" / name,
            chunks=tuple(chunks.get(values[0], ())),
            **dict(zip(_COLUMNS, values, strict=True)),
        )
        for *values, name in database.execute(
            f"SELECT {', '.join(_COLUMNS)}, content_file FROM cache_entries ORDER BY id"
        )
    ]


def read_file(file: Path, start: int, stop: int) -> bytes:
    """Return what *file* has there, nothing where it has ended or is not there."""
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            return opened.read(stop - start)
    except FileNotFoundError:
        return b""


def complaints(
    entry: StoredEntry, truths: Sequence[Truth], read: ReadFile = read_file
) -> list[str]:
    """Return what is wrong with *entry*, which should be of one of *truths*."""
    return [*_contradictions(entry), *_untruths(entry, truths, read)]


def _contradictions(entry: StoredEntry) -> Iterator[str]:
    chunks, length = entry.chunks, entry.complete_length
    total = sum(chunk.stop - chunk.start for chunk in chunks)
    if entry.state not in STATES:
        yield f"there is no such state as {entry.state!r}"
    if entry.bytes_present != total:
        yield f"bytes_present is {entry.bytes_present}, the chunks are {total}"
    for chunk, following in pairwise(chunks):
        if chunk.stop >= following.start:
            yield f"{chunk.start}-{chunk.stop} and {following.start}- should be one chunk"
    if length is not None and any(chunk.stop > length for chunk in chunks):
        yield f"a chunk reaches past the end, {length}"
    if entry.state == "complete" and total != length:
        yield f"complete with {total} of {length} bytes"


def _untruths(entry: StoredEntry, truths: Sequence[Truth], read: ReadFile) -> Iterator[str]:
    if entry.complete_length is not None or entry.state == "complete":
        truths = [truth for truth in truths if truth.size == entry.complete_length]
        if not truths:
            yield f"there is no such version of {entry.complete_length} bytes"
    for chunk in entry.chunks:
        for start, stop in blocks(chunk.start, chunk.stop):
            data = read(entry.file, start, stop)
            right = [truth for truth in truths if truth.read(start, stop) == data]
            if truths and not right:
                what = "zeros" if not data.strip(b"\0") else "other bytes"
                yield f"the file has {what} in {start}-{stop}, or ends at {start + len(data)}"
            truths = right
        yield from _wrong_checksums(entry, chunk, read)


def _wrong_checksums(entry: StoredEntry, chunk: Chunk, read: ReadFile) -> Iterator[str]:
    if chunk.checksum is None:
        return
    ends_file = chunk.stop == entry.complete_length
    whole = [
        (start, stop)
        for start, stop in blocks(chunk.start, chunk.stop)
        if start % BLOCK_BYTES == 0 and (stop % BLOCK_BYTES == 0 or ends_file)
    ]
    text = chunk.checksum
    known = [int.from_bytes(text[i : i + 4], "big") for i in range(0, len(text), 4)]
    if len(known) != len(whole):
        yield f"{len(known)} checksums for {len(whole)} blocks in {chunk.start}-{chunk.stop}"
        return
    for (start, stop), expected in zip(whole, known, strict=True):
        if zlib.crc32(read(entry.file, start, stop)) != expected:
            yield f"the checksum of {start}-{stop} is another one"


def blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield ``[start, stop)`` in parts that end where blocks do."""
    while start < stop:
        end = min(stop, (start // BLOCK_BYTES + 1) * BLOCK_BYTES)
        yield start, end
        start = end


def unclaimed(entry: StoredEntry) -> int:
    """Return how many bytes are in the file that no chunk claims, in whole pages."""
    try:
        with entry.file.open("rb") as opened:
            held = sum(stop - start for start, stop in _extents(opened.fileno()))
    except FileNotFoundError:
        return 0
    return max(0, held - sum(chunk.stop - chunk.start for chunk in entry.chunks))


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield where a sparse file has data, holes left out."""
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            return
        stop = os.lseek(fd, position, os.SEEK_HOLE)
        yield position, stop
        position = stop
