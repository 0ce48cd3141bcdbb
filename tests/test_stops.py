"""Where a stream stops: as far as is wanted, and what becomes of one that has gone further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cachefsm.acceptance import Answer
from cachefsm.claims import Claim
from cachefsm.demands import Fill
from cachefsm.ranges import END, ByteRange
from cachefsm.representation import Representation
from cachefsm.scheduler import Abandoned, Limits, Open, Priority, SetStop
from cachefsm.semantics import Validator
from cachefsm.surroundings import EntryPolicy
from tests.support.entries import FIELDS, SIZE, OneEntry
from tests.support.origin import content

MIB = 1 << 20
NEAR = Limits().near_bytes
THRIFTY = EntryPolicy(fill=Fill.REQUESTED)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[OneEntry]:
    with closing(OneEntry(tmp_path, policy=THRIFTY)) as one:
        yield one


def answered(one: OneEntry) -> Claim:
    """Return a claim that the origin has answered, with all of the file."""
    claim = one.entry.grant(Open(one.entry.id, 0, END, Priority.READ_AHEAD))
    assert claim is not None
    known = Representation(SIZE, Validator.from_fields(FIELDS), FIELDS, accepts_ranges=True)
    assert one.entry.answered(claim, Answer(0, SIZE, known, close_delimited=False))
    return claim


def bring(one: OneEntry, claim: Claim, size: int) -> None:
    """Let the stream bring *size* bytes from the front."""
    claim.content.file.write_at(0, content(0, size))
    one.entry.wrote(claim, size, [ByteRange(0, size)])


def test_the_first_answer_brings_no_more_than_is_wanted(one: OneEntry) -> None:
    one.entry.want(None, 0, MIB, blocked=True)
    assert one.entry.accept(answered(one), SIZE) == (MIB, [ByteRange(0, MIB)])


@pytest.mark.parametrize(
    "policy",
    [
        EntryPolicy(fill=Fill.REST),
        EntryPolicy(fill=Fill.REQUESTED, limits=Limits(abandoned=Abandoned.FINISH)),
    ],
)
def test_the_first_answer_brings_all_where_that_is_the_rule(
    tmp_path: Path, policy: EntryPolicy
) -> None:
    with closing(OneEntry(tmp_path, policy=policy)) as one:
        one.entry.want(None, 0, MIB, blocked=True)
        assert one.entry.accept(answered(one), SIZE) == (SIZE, [ByteRange(0, SIZE)])


def test_of_what_is_too_large_to_keep_the_first_answer_brings_what_is_read(tmp_path: Path) -> None:
    with closing(OneEntry(tmp_path, policy=EntryPolicy(max_bytes=SIZE - 1))) as one:
        one.entry.want(None, 0, MIB, blocked=True)
        assert one.entry.accept(answered(one), SIZE) == (MIB, [ByteRange(0, MIB)])


@pytest.mark.parametrize(
    ("reader_stop", "may_wait", "stays"),
    [
        (MIB, True, True),
        (2 * MIB - NEAR, True, True),
        (2 * MIB - NEAR - 1, True, False),  # the reader is too far behind
        (MIB, False, False),  # somebody else needs the connection
    ],
)
def test_a_stream_that_has_outrun_its_stop_waits_for_a_reader_close_behind(
    one: OneEntry, reader_stop: int, may_wait: bool, stays: bool
) -> None:
    reader = one.entry.want(None, 0, SIZE, blocked=True)
    claim = answered(one)
    bring(one, claim, 2 * MIB)
    one.entry.want(reader, 0, reader_stop, blocked=False)
    one.entry.set_stop(SetStop(one.entry.id, claim.id, MIB, may_wait))
    assert claim.cancelled is not stays
    if stays:
        one.entry.set_stop(SetStop(one.entry.id, claim.id, SIZE))
        # It goes on where it was.
        assert one.entry.accept(claim, MIB) == (MIB, [ByteRange(2 * MIB, 3 * MIB)])


def test_a_stream_does_not_wait_where_another_one_goes_on(one: OneEntry) -> None:
    reader = one.entry.want(None, 0, SIZE, blocked=True)
    claim = answered(one)
    one.entry.set_stop(SetStop(one.entry.id, claim.id, MIB))
    assert one.entry.grant(Open(one.entry.id, MIB, SIZE, Priority.BLOCKED)) is not None
    one.entry.want(reader, 0, MIB, blocked=False)
    bring(one, claim, MIB)
    assert one.entry.accept(claim, MIB) is None
