"""Checksums through an entry's life: random writes, flushes, damage and restarts.

The tests play the downloader. What a row claims must be in the file, every whole
block of it must have its checksum, and a restart must find what a flush recorded.
"""

from __future__ import annotations

import shutil
import tempfile
import zlib
from contextlib import closing
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cachefsm.acceptance import Answer
from cachefsm.entry import LiveEntry
from cachefsm.integrity import BLOCK_BYTES, block_at, whole_blocks
from cachefsm.ranges import END, ByteRange, RangeSet
from cachefsm.representation import Representation
from cachefsm.scheduler import Open, Priority
from cachefsm.semantics import Validator
from cachefsm.stored import Durability, EntryPolicy, Surroundings
from tests.support.databases import add_entry, execute, open_store
from tests.support.origin import content

SIZE = 4 * BLOCK_BYTES + 1000  # the last block is a short one
FIELDS = (("ETag", '"v0"'),)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
HASTY = EntryPolicy(durability=Durability.PROCESS)  # no test outlives the machine


class Disk:
    """A cache directory with one entry, in the hands of one process after another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "cache.sqlite3"
        self.store = open_store(self.database)
        add_entry(self.store)
        self.entry = self._load()

    def _load(self) -> LiveEntry:
        (record,) = self.store.entries()
        return LiveEntry(record, Surroundings(self.store, self.directory / "content", HASTY))

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
        for gap in self.entry.accept(claim, claim.position, size) or ():
            claim.content.file.write_at(gap.start, content(*gap))
            self.entry.wrote(claim, gap.stop, [gap])
        self.entry.ended(claim, None, at_end=at_end)

    def rows(self) -> dict[ByteRange, bytes | None]:
        """Return the recorded ranges and what they say of checksums."""
        query = "SELECT start, stop, checksum FROM cache_chunks ORDER BY start"
        return {ByteRange(a, b): blob for a, b, blob in execute(self.database, query)}


def _expected(blocks: range, length: int) -> bytes:
    """Return the text that says what those blocks should be."""
    return b"".join(
        zlib.crc32(content(*block_at(index, length))).to_bytes(4, "big") for index in blocks
    )


class Checksums(RuleBasedStateMachine):
    """One entry, held against a model of what was stored and what was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk(Path(tempfile.mkdtemp(dir=MEMORY)))
        self.stored, self.recorded = RangeSet(), RangeSet()
        self.length: int | None = None
        self.texts_length = END  # what was known of it when rows were last written

    def teardown(self) -> None:
        self.disk.close()
        shutil.rmtree(self.disk.directory)

    @rule(
        block=st.integers(0, 4),
        near=st.sampled_from([-1, 0, 1, 5000]),
        size=st.sampled_from([1, 999, BLOCK_BYTES, 2 * BLOCK_BYTES, SIZE]),
        told=st.booleans(),
    )
    def receive(self, block: int, near: int, size: int, told: bool) -> None:
        start = max(0, block * BLOCK_BYTES + near)
        gap = self.stored.first_gap(start, max(start, min(start + size, SIZE)))
        if gap is not None:
            if told:
                self.length = SIZE
            self.disk.fetch(*gap, length=self.length)
            self.stored.add(*gap)

    @rule()
    @precondition(lambda self: self.length is None)
    def receive_to_the_end(self) -> None:
        """The body ends by itself, which tells the length after the bytes were stored."""
        start = self.stored.run_stop(0)
        if self.stored.next_start(start) == END:
            self.disk.fetch(start, END, length=None)
            self.stored.add(start, SIZE)
            self.length = SIZE

    @rule()
    def flush(self) -> None:
        self.disk.entry.flush()
        self.recorded = self.stored.copy()
        self.texts_length = self._length()

    @rule()
    def die_and_start_again(self) -> None:
        self.disk.restart()
        self.stored = self.recorded.copy()
        self.length = self.disk.entry.content.complete_length

    @rule(index=st.integers(0, 4))
    @precondition(lambda self: self.length is not None)
    def lose(self, index: int) -> None:
        block = block_at(index, SIZE)
        self.disk.entry.drop(self.disk.entry.content, [block], "rot")
        if self.stored.first_gap(*block) != block:
            self.texts_length = self._length()
        for model in (self.stored, self.recorded):
            model.remove(*block)
        if not self.disk.entry.content.present:
            self.stored.clear()
            self.recorded.clear()
            self.length = self.disk.entry.content.complete_length

    @rule()
    @precondition(lambda self: self.stored)
    def invalidate(self) -> None:
        self.disk.entry.invalidate("changed")
        self.stored.clear()
        self.recorded.clear()
        self.length = None

    def _length(self) -> int:
        return END if self.length is None else self.length

    def check_invariants(self, *args: object, **kwargs: object) -> None:
        """Called by hypothesis after every step."""
        super().check_invariants(*args, **kwargs)  # type: ignore[arg-type]
        length = self._length()
        assert RangeSet(self.disk.entry.ranges()) == self.stored
        rows = self.disk.rows()
        assert RangeSet(rows) == self.recorded
        for run, blob in rows.items():
            blocks = whole_blocks(*run, self.texts_length)
            assert (blob or b"") == _expected(blocks, self.texts_length)
        content_ = self.disk.entry.content
        known = content_.digests.within(0, END, END)
        for index in known:
            block = block_at(index, length)
            assert content_.digests[index] == zlib.crc32(content(*block))
        for run in self.recorded:
            blocks = whole_blocks(*run, self.texts_length)
            assert all(index in content_.digests for index in blocks)


def test_checksums_are_those_of_what_was_stored_whatever_happens() -> None:
    run_state_machine_as_test(
        Checksums, settings=settings(max_examples=40, stateful_step_count=20, deadline=None)
    )


def test_a_length_that_is_told_last_costs_no_checksum(tmp_path: Path) -> None:
    with closing(Disk(tmp_path)) as disk:
        disk.fetch(0, SIZE, length=None)
        disk.entry.flush()  # whether a last block is whole is not known yet
        disk.fetch(SIZE, END, length=None)
        disk.restart()
        assert _sound_bytes(disk) == SIZE - SIZE % BLOCK_BYTES
        disk.entry.flush()
        assert _sound_bytes(disk) == SIZE
        disk.restart()
        assert _sound_bytes(disk) == SIZE


def _sound_bytes(disk: Disk) -> int:
    """Return how many bytes have a checksum that says that they are right."""
    found = disk.entry.damaged(disk.entry.content, 0, SIZE)
    assert found.damaged == ()
    return found.checked_bytes
