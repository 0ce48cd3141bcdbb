"""Looks for damage: in one entry on request, in all of them slowly, in the files at start-up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .content import Content
from .entry import LiveEntry
from .errors import CacheClosed, CacheError, EntryNotFound, StorageError
from .integrity import BLOCK_BYTES
from .loop import Loop
from .models import Store
from .ranges import END, ByteRange, RangeSet
from .registry import Registry
from .storage import is_content_name, remove_content

__all__ = ["Scrubber", "Verification", "find_orphans", "verify"]

_log = logging.getLogger(__name__)

STEP_BYTES: Final = 8 * BLOCK_BYTES
"""How much is read between two reports of progress."""

PAUSE_S: Final = 60.0
"""The pause between two rounds, so that a small cache is not read all day."""

DAMAGED: Final = "the stored bytes are damaged"

EVERYWHERE: Final = ByteRange(0, END)


@dataclass(frozen=True)
class Verification:
    """The result of comparing one entry's stored blocks with their checksums; in bytes.

    ``damaged`` ranges were dropped, so that nobody is served them. ``unchecked`` bytes have
    no checksum, because a part of their block is missing.
    """

    entry_id: int
    url: str
    checked_bytes: int
    unchecked_bytes: int
    damaged: tuple[ByteRange, ...]

    @property
    def damaged_bytes(self) -> int:
        """How many bytes were dropped."""
        return sum(block.size for block in self.damaged)

    def describe(self) -> dict[str, Any]:
        """Return it as JSON values, with the names that an entry's description has."""
        return {
            "id": self.entry_id,
            "url": self.url,
            "checked_bytes": self.checked_bytes,
            "unchecked_bytes": self.unchecked_bytes,
            "damaged_bytes": self.damaged_bytes,
            "damaged": [[start, stop] for start, stop in self.damaged],
        }


def verify(
    entry: LiveEntry,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    within: ByteRange = EVERYWHERE,
) -> Verification:
    """Compare the stored blocks of *entry* with their checksums; drop what differs at once.

    *progress* is called with the bytes looked at so far and in all; what it raises
    ends the look. *within* limits the look to the blocks that it touches; that the
    file ends too early is noticed in any case.

    Raises:
        StorageError: the damage could not be written down.
    """
    before = entry.ranges()
    entry.check_file()
    with _held(entry) as content:
        stored = RangeSet(entry.ranges())
        runs = list(stored.intersection(*within))
        total = sum(run.size for run in runs)
        damaged = list(_lost(before, list(stored)))
        done = checked = 0
        for step in (step for run in runs for step in _steps(run, STEP_BYTES)):
            found = entry.damaged(content, *step)
            if found.damaged:
                entry.drop(content, found.damaged, DAMAGED)
                damaged += found.damaged
            checked += found.checked_bytes
            done += step.size
            progress(done, total)
    return Verification(entry.id, entry.shown_url, checked, total - checked, tuple(damaged))


@contextmanager
def _held(entry: LiveEntry) -> Iterator[Content]:
    """Keep the file of the present content open, whatever becomes of the entry meanwhile."""
    while True:
        content = entry.content
        content.file.retain()
        try:
            with suppress(StorageError):  # there is none: then whatever is claimed is damaged
                content.file.fileno()
            if content.superseded is None:
                yield content
                return
        finally:
            content.file.release()


def _lost(before: list[ByteRange], after: list[ByteRange]) -> Iterator[ByteRange]:
    """Yield what has gone from the end of *before*."""
    stop = after[-1].stop if after else 0
    for run in before:
        if run.stop > stop:
            yield ByteRange(max(run.start, stop), run.stop)


def _steps(run: ByteRange, size_bytes: int) -> Iterator[ByteRange]:
    """Yield *run* in parts that end where blocks do, so that no block is read twice."""
    start = run.start
    while start < run.stop:
        stop = min(run.stop, (start // size_bytes + 1) * size_bytes)
        yield ByteRange(start, stop)
        start = stop


def find_orphans(directory: Path, store: Store) -> list[Path]:
    """Return the content files below *directory* that no row names."""
    # Files first: one that is made later has its row already, or is not in the list.
    names = [str(path.relative_to(directory)) for path in directory.glob("??/*")]
    known = store.content_files()
    return [directory / name for name in names if is_content_name(name) and name not in known]


class Scrubber(Loop):
    """Checks the directory once, then all stored bytes over and over, at a low rate.

    A rate of 0 bytes/s leaves it at the first look.
    """

    def __init__(
        self, registry: Registry, store: Store, directory: Path, rate_bytes_s: float
    ) -> None:
        super().__init__("cachefsm-scrubber")
        self._registry = registry
        self._store = store
        self._directory = directory
        self._rate_bytes_s = rate_bytes_s
        self._work: Iterator[int] | None = None

    def step(self) -> float | None:
        """Do the next piece of work; return when the one after it is due."""
        try:
            if self._work is None:
                self.survey()
                self._work = self._blocks()
            size = next(self._work, None) if self._rate_bytes_s > 0 else 0
        except CacheClosed:
            return None  # and the thread is about to end
        if self._rate_bytes_s <= 0:
            return None
        if size is None:
            self._work = self._blocks()
            return time.monotonic() + PAUSE_S
        return time.monotonic() + size / self._rate_bytes_s

    def survey(self) -> None:
        """Drop what rows claim of files that cannot hold it; delete files without rows."""
        for entry_id, name, stop in self._store.furthest_bytes():
            if _size(self._directory / name) < stop:
                with self._tolerant(entry_id), self._registry.lease(entry_id) as entry:
                    entry.check_file()
        for path in find_orphans(self._directory, self._store):
            _log.info("removing %s, which belongs to no entry", path.name)
            try:
                remove_content(path)
            except StorageError as error:
                _log.warning("%s", error)

    def _blocks(self) -> Iterator[int]:
        """Check the blocks of all entries, one by one; yield the bytes that each step read."""
        for entry_id, _, _ in self._store.furthest_bytes():
            position: int | None = 0
            while position is not None:
                size, position = self._look(entry_id, position)
                if size:
                    yield size

    def _look(self, entry_id: int, position: int) -> tuple[int, int | None]:
        """Check the first stored block at *position*; return its size and the next position."""
        # A lease for each block: one for hours would keep the entry from eviction.
        with self._tolerant(entry_id), self._registry.lease(entry_id) as entry:
            for run in entry.ranges():
                if run.stop > position:
                    block = next(_steps(ByteRange(max(run.start, position), run.stop), BLOCK_BYTES))
                    return self._check(entry, block), block.stop
        return 0, None

    def _check(self, entry: LiveEntry, block: ByteRange) -> int:
        with _held(entry) as content:
            found = entry.damaged(content, *block)
            if found.damaged:
                _log.warning("%s: %s", entry.shown_url, DAMAGED)
                entry.drop(content, found.damaged, DAMAGED)
            return found.checked_bytes

    @contextmanager
    def _tolerant(self, entry_id: int) -> Iterator[None]:
        """Log an error in the block about one entry, so that the others are still checked."""
        try:
            with suppress(EntryNotFound):  # removed since the list was made
                yield
        except CacheClosed:
            raise
        except CacheError as error:
            _log.warning("entry %s cannot be checked: %s", entry_id, error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
