"""Looking for damage: one entry on order, all of them slowly, the directory at start-up."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .conductor import Loop
from .entry import LiveEntry
from .errors import CacheError, EntryNotFound
from .integrity import BLOCK_BYTES
from .models import Store
from .ranges import ByteRange
from .registry import Registry
from .storage import remove_content

__all__ = ["Scrubber", "Verification", "find_orphans", "verify"]

_log = logging.getLogger(__name__)

STEP_BYTES: Final = 8 * BLOCK_BYTES
"""What is read between two reports of progress."""

_CONTENT = re.compile(r"[0-9a-f]{32}-[0-9a-f]{8}\Z")


@dataclass(frozen=True)
class Verification:
    """What a look at one entry's stored bytes found; sizes in bytes.

    ``damaged`` ranges were dropped, so that nobody is served them. ``unchecked``
    bytes have no checksum: they are in a block of which a part is missing.
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


def verify(
    entry: LiveEntry, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Verification:
    """Compare every stored block of *entry* with its checksum; drop what differs.

    *progress* is called with the bytes looked at so far and in all.

    Raises:
        StorageError: the damage could not be written down.
    """
    before = entry.ranges()
    entry.check_file()
    content = entry.content
    runs = entry.ranges()
    total = sum(run.size for run in runs)
    damaged = list(_lost(before, runs))
    done = checked = 0
    for run in runs:
        for start in range(run.start, run.stop, STEP_BYTES):
            stop = min(start + STEP_BYTES, run.stop)
            found = entry.damaged(content, start, stop)
            damaged += [block for block in found.damaged if block not in damaged]
            checked += found.checked_bytes
            done += stop - start
            progress(done, total)
    if damaged:
        entry.drop(content, damaged, "the stored bytes are damaged")
    return Verification(entry.id, entry.shown_url, checked, max(0, total - checked), tuple(damaged))


def _lost(before: list[ByteRange], after: list[ByteRange]) -> Iterator[ByteRange]:
    stop = after[-1].stop if after else 0
    for run in before:
        if run.stop > stop:
            yield ByteRange(max(run.start, stop), run.stop)


def find_orphans(directory: Path, store: Store) -> list[Path]:
    """Return the content files below *directory* that no row names."""
    # Files first: one that is made later has its row already, or is not in the list.
    files = [path for path in directory.glob("??/*") if _CONTENT.match(path.name)]
    known = store.content_files()
    return [path for path in files if f"{path.parent.name}/{path.name}" not in known]


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
        if self._work is None:
            self.survey()
            self._work = self._blocks()
        if self._rate_bytes_s <= 0:
            return None
        size = next(self._work, None)
        if size is None:
            self._work = self._blocks()
            size = BLOCK_BYTES
        return time.monotonic() + size / self._rate_bytes_s

    def survey(self) -> None:
        """Drop what rows claim of files that cannot hold it; delete files without rows."""
        for record, stop in self._store.furthest_bytes():
            path = self._directory / record.content_file
            if not path.exists() or path.stat().st_size < stop:
                self._check(record.id)
        for path in find_orphans(self._directory, self._store):
            _log.info("removing %s, which belongs to no entry", path.name)
            remove_content(path)

    def _check(self, entry_id: int) -> None:
        try:
            with self._registry.lease(entry_id) as entry:
                entry.check_file()
        except EntryNotFound:
            return  # removed since the list was made

    def _blocks(self) -> Iterator[int]:
        """Check one entry's blocks after the other's; yield the bytes that each step read."""
        for record in self._store.entries():
            try:
                with self._registry.lease(record.id) as entry:
                    yield from self._scrub(entry)
            except EntryNotFound:
                continue
            except CacheError as error:
                _log.warning("entry %s could not be scrubbed: %s", record.id, error)

    def _scrub(self, entry: LiveEntry) -> Iterator[int]:
        content = entry.content
        for run in entry.ranges():
            for start in range(run.start, run.stop, BLOCK_BYTES):
                found = entry.damaged(content, start, min(start + BLOCK_BYTES, run.stop))
                if found.damaged:
                    _log.warning("%s: %d bytes are damaged", entry.shown_url, BLOCK_BYTES)
                    entry.drop(content, found.damaged, "the stored bytes are damaged")
                yield found.checked_bytes or 1
