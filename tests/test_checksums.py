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

from cachefsm.integrity import BLOCK_BYTES, block_at, whole_blocks
from cachefsm.ranges import END, RangeSet
from tests.support.entries import SIZE, OneEntry
from tests.support.origin import content

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def _expected(blocks: range, length: int) -> bytes:
    """Return the text that says what those blocks should be."""
    return b"".join(
        zlib.crc32(content(*block_at(index, length))).to_bytes(4, "big") for index in blocks
    )


class Checksums(RuleBasedStateMachine):
    """One entry, held against a model of what was stored and what was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = OneEntry(Path(tempfile.mkdtemp(dir=MEMORY)))
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
    with closing(OneEntry(tmp_path)) as disk:
        disk.fetch(0, SIZE, length=None)
        disk.entry.flush()  # whether a last block is whole is not known yet
        disk.fetch(SIZE, END, length=None)
        disk.restart()
        assert _sound_bytes(disk) == SIZE - SIZE % BLOCK_BYTES
        disk.entry.flush()
        assert _sound_bytes(disk) == SIZE
        disk.restart()
        assert _sound_bytes(disk) == SIZE


def _sound_bytes(disk: OneEntry) -> int:
    """Return how many bytes have a checksum that says that they are right."""
    found = disk.entry.damaged(disk.entry.content, 0, SIZE)
    assert found.damaged == ()
    return found.checked_bytes
