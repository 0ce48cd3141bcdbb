"""What tests of caches share: patience, exact reads, and a look at what is recorded."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cachefsm import ByteRange, Cache, Entry
from cachefsm.claims import SpeedLimits
from cachefsm.ranges import END
from cachefsm.retries import RetryPolicy

__all__ = [
    "EAGER",
    "HASTY",
    "UNHURRIED",
    "WAIT_S",
    "Clock",
    "OpenCache",
    "Recorded",
    "eventually",
    "fetch",
    "live_threads",
    "recorded",
    "rows",
]

WAIT_S = 30.0  # bounds a failing test; nothing that passes comes near it

HASTY = RetryPolicy(
    base_s=0.0,
    first_attempts=3,
    attempts=4,
    # A failure lasts until a person, or a test's own clock, ends it.
    exhausted_s=3600.0,
    permanent_s=3600.0,
    cancelled_s=3600.0,
)
"""Asks again at once and gives up soon, so that no test waits for a back-off."""

EAGER = replace(HASTY, exhausted_s=0.0)
"""Tries again to store as soon as somebody wants bytes, not after three seconds."""

UNHURRIED = SpeedLimits(silence_s=3600.0, window_s=3600.0)
"""Keeps a connection that the origin holds, however long a slow machine takes."""


class OpenCache(Protocol):
    """Opens the test's cache directory, or the one called *name*; options as Cache's."""

    def __call__(self, name: str = "cache", **options: Any) -> Cache: ...


class Clock:
    """Unix time that moves only when a test says so."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def fetch(cache: Cache, entry: Entry, start: int = 0, stop: int = END) -> bytes:
    """Return ``[start, stop)`` as the proxy would read it: nothing around it is asked for."""
    with closing(cache.open_reader(entry.id)) as reader:
        return b"".join(reader.pieces(start, stop))


def live_threads(within_s: float = 1.0) -> list[str]:
    """Return the names of the cache's threads that do not end within that time."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("cachefsm")]
    for thread in ours:
        # One that has finished its work may need a moment to be gone.
        thread.join(within_s)
    return [thread.name for thread in ours if thread.is_alive()]


def eventually(predicate: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Block until *predicate* holds: for what notifies nobody, as another process's work.

    Raises:
        TimeoutError: it did not come true.
    """
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if predicate():
            return
        pause.wait(0.01)
    raise TimeoutError(f"waited {timeout_s} s")


def rows(directory: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Return what *query* finds in the cache's database, beside whoever has it open."""
    with closing(sqlite3.connect(f"file:{directory}/cache.sqlite3?mode=ro", uri=True)) as database:
        return database.execute(query, values).fetchall()


@dataclass(frozen=True)
class Recorded:
    """What a cache directory holds of its only entry."""

    state: str
    reason: str | None
    bytes_present: int
    chunks: tuple[ByteRange, ...]
    file: Path

    def stored(self) -> list[tuple[int, bytes]]:
        """Return every chunk's offset and bytes as they are in the content file."""
        found = []
        for start, stop in self.chunks:
            with self.file.open("rb") as file:
                file.seek(start)
                found.append((start, file.read(stop - start)))
        return found


def recorded(directory: Path) -> Recorded:
    """Return what is recorded in *directory*, which has one entry."""
    ((entry_id, state, reason, size, name),) = rows(
        directory, "SELECT id, state, state_reason, bytes_present, content_file FROM cache_entries"
    )
    chunks = rows(
        directory, "SELECT start, stop FROM cache_chunks WHERE entry_id = ? ORDER BY 1", entry_id
    )
    return Recorded(
        state=state,
        reason=reason,
        bytes_present=size,
        chunks=tuple(ByteRange(*chunk) for chunk in chunks),
        file=directory / "content" / name,
    )
