"""One entry on its disk, with the test in the downloader's place.

Nothing is fetched and no thread runs: the test brings bytes, flushes, and starts anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cachefsm.acceptance import Answer
from cachefsm.entry import LiveEntry
from cachefsm.integrity import BLOCK_BYTES
from cachefsm.ranges import END, ByteRange
from cachefsm.representation import Representation
from cachefsm.scheduler import Open, Priority
from cachefsm.semantics import Validator
from cachefsm.storage import ContentFile
from cachefsm.surroundings import Durability, EntryPolicy, Surroundings
from tests.support.databases import add_entry, execute, open_store
from tests.support.origin import content

__all__ = ["SIZE", "OneEntry"]

SIZE = 4 * BLOCK_BYTES + 1000  # the last block is a short one
FIELDS = (("ETag", '"v0"'),)


class OneEntry:
    """A cache directory with one entry, in the hands of one process after another.

    ``told`` is what the conductor was told: "change" what calls for a decision, "hint"
    what can wait for the next one.
    """

    def __init__(
        self,
        directory: Path,
        # No test outlives the machine.
        durability: Durability = Durability.PROCESS,
        make_file: Callable[[Path], ContentFile] = ContentFile,
        clock: Callable[[], float] = time.time,
        policy: EntryPolicy | None = None,
    ) -> None:
        self.directory = directory
        self.database = directory / "cache.sqlite3"
        self._policy = replace(policy or EntryPolicy(), durability=durability)
        self._make_file = make_file
        self._clock = clock
        self.told: list[str] = []
        self.store = open_store(self.database)
        add_entry(self.store)
        self.entry = self._load()

    def _load(self) -> LiveEntry:
        (record,) = self.store.entries()
        around = Surroundings(
            self.store,
            self.directory / "content",
            self._policy,
            clock=self._clock,
            make_file=self._make_file,
            on_change=lambda _entry: self.told.append("change"),
            on_hint=lambda _entry: self.told.append("hint"),
        )
        return LiveEntry(record, around)

    @property
    def file(self) -> Path:
        """The present generation's content file."""
        return self.entry.content.file.path

    def close(self) -> None:
        self.entry.release_file()
        self.store.close()

    def restart(self) -> None:
        """Do what a process's death and the next one's start do."""
        self.close()
        self.store = open_store(self.database)
        self.entry = self._load()
        if self.entry.record.state in ("initializing", "downloading"):
            self.entry.recover()

    def fetch(self, start: int, stop: int, *, length: int | None = SIZE) -> None:
        """Bring the first missing run of ``[start, stop)``; *length* is what the origin tells."""
        claim = self.entry.grant(Open(self.entry.id, start, stop, Priority.PERSON))
        if claim is None:
            return
        known = Representation(length, Validator.from_fields(FIELDS), FIELDS, accepts_ranges=True)
        reach = min(claim.stop, SIZE)
        at_end = length is None and claim.stop > SIZE
        answer = Answer(claim.position, END if at_end else reach, known, close_delimited=False)
        assert self.entry.answered(claim, answer)
        size = max(0, reach - claim.position)
        accepted = self.entry.accept(claim, size) if size else None
        for gap in accepted[1] if accepted else ():
            claim.content.file.write_at(gap.start, content(*gap))
            self.entry.wrote(claim, gap.stop, [gap])
        self.entry.ended(claim, None, at_end=at_end)

    def rows(self) -> dict[ByteRange, bytes | None]:
        """Return the recorded ranges and what they say of checksums."""
        query = "SELECT start, stop, checksum FROM cache_chunks ORDER BY start"
        return {ByteRange(a, b): blob for a, b, blob in execute(self.database, query)}
