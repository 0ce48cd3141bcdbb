"""What the conductor is woken for by readers that come, read on and go, and what not.

A client that asks for range after range is a new reader each time: what each of them
leaves behind, and whom it wakes, is paid a thousand times a second.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cachefsm.acceptance import Answer
from cachefsm.buckets import RateLimits
from cachefsm.claims import Claim
from cachefsm.demands import Demands, Fill
from cachefsm.fields import Fields
from cachefsm.loop import Loop
from cachefsm.origin import OriginClient
from cachefsm.ranges import ByteRange
from cachefsm.reader import Reader, ReaderOptions
from cachefsm.representation import Representation
from cachefsm.scheduler import Limits, Open, Priority, SetStop, plan
from cachefsm.semantics import Validator
from cachefsm.states import DownloadState
from cachefsm.throttle import Throttle
from tests.support.caches import WAIT_S, Clock
from tests.support.entries import FIELDS, SIZE, OneEntry
from tests.support.origin import content

GRACE_S = 10.0
HALF = SIZE // 2


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def one(tmp_path: Path, clock: Clock) -> Iterator[OneEntry]:
    with closing(OneEntry(tmp_path, clock=clock)) as one:
        yield one


def read(one: OneEntry, start: int, stop: int) -> bytes:
    """Return ``[start, stop)``, all of it stored, as a client's request reads it."""
    origin = OriginClient(None, lambda: 0.0, Throttle(RateLimits()))
    with closing(Reader(one.entry, ReaderOptions(), origin)) as reader:
        reader.ready(start, stop)
        return b"".join(reader.pieces(start, stop))


# -- readers --------------------------------------------------------------------


def test_a_reader_of_a_whole_file_wakes_nobody(one: OneEntry) -> None:
    one.fetch(0, SIZE)
    one.entry.flush()
    assert one.entry.state is DownloadState.COMPLETE
    one.told.clear()
    assert read(one, 1000, 70_000) == content(1000, 70_000)
    assert one.told == []


def test_a_reader_of_stored_bytes_of_half_a_file_can_wait_to_be_noticed(one: OneEntry) -> None:
    one.fetch(0, HALF)
    one.entry.flush()
    one.told.clear()
    assert read(one, 1000, 70_000) == content(1000, 70_000)
    assert set(one.told) == {"hint"}


def test_a_reader_that_waits_is_noticed_at_once(one: OneEntry) -> None:
    one.fetch(0, HALF)
    one.told.clear()
    one.entry.want(None, HALF, SIZE, blocked=True)
    assert one.told == ["change"]


def test_a_reader_whose_window_is_about_to_end_is_noticed_at_once(one: OneEntry) -> None:
    one.fetch(0, HALF)
    one.told.clear()
    one.entry.want(None, HALF - 1000, SIZE, blocked=False)
    assert one.told == ["change"]


def test_a_reader_that_leaves_in_the_middle_is_noticed_at_once(one: OneEntry) -> None:
    one.fetch(0, HALF)
    demand = one.entry.want(None, HALF, SIZE, blocked=True)
    one.told.clear()
    one.entry.unwant(demand)
    assert one.told == ["change"]


def test_what_was_brought_to_life_for_a_reader_who_wants_nothing_comes_to_rest(
    one: OneEntry, clock: Clock
) -> None:
    one.entry.cancel()
    clock.now_s += 1e6  # longer than it has to rest
    attached = one.entry.attach()
    assert one.entry.state is DownloadState.INITIALIZING
    one.told.clear()
    one.entry.detach(attached)
    assert one.told == ["change"]
    one.entry.view()  # as the conductor then does
    assert one.entry.state is DownloadState.PAUSED


def test_an_entry_that_nobody_reads_is_at_rest_and_one_that_is_fetched_is_not(
    one: OneEntry,
) -> None:
    assert one.entry.is_at_rest
    demand = one.entry.want(None, 0, SIZE, blocked=True)
    assert not one.entry.is_at_rest
    one.fetch(0, HALF)
    one.entry.unwant(demand)
    assert not one.entry.is_at_rest  # within the grace


def test_who_leaves_a_file_that_is_whole_by_then_leaves_nothing_behind(one: OneEntry) -> None:
    demand = one.entry.want(None, 0, SIZE, blocked=True)
    one.fetch(0, SIZE)
    one.entry.flush()
    one.entry.unwant(demand)
    one.entry.view()  # as the conductor does
    assert one.entry.is_at_rest
    assert not one.entry.is_busy


# -- what they leave behind -----------------------------------------------------


def test_readers_that_had_all_they_asked_for_do_not_add_up() -> None:
    demands = Demands(Fill.REQUESTED, GRACE_S)
    for number in range(100):
        start, stop = number * 10, number * 10 + 10
        demand = demands.add_reader(start, stop, Priority.READ_AHEAD)
        demand.move(stop, stop, blocked=False, now_s=number)
        demands.drop_reader(demand, number)
    (last,) = demands
    assert last.expires_at_s == 99 + GRACE_S


def test_what_a_later_reader_left_unread_too_is_wanted_once() -> None:
    demands = Demands(Fill.REQUESTED, GRACE_S)
    for start, now_s in ((10, 1.0), (0, 2.0)):
        demands.drop_reader(demands.add_reader(start, 100, Priority.READ_AHEAD), now_s)
    assert [(want.start, want.stop) for want in demands.wants(2.0, 1.0)] == [(0, 100)]


def test_what_readers_left_unread_elsewhere_stays_wanted() -> None:
    demands = Demands(Fill.REQUESTED, GRACE_S)
    for start, stop in ((0, 10), (5, 15), (30, 40)):
        demands.drop_reader(demands.add_reader(start, stop, Priority.READ_AHEAD), 1.0)
    wanted = [(want.start, want.stop) for want in demands.wants(1.0, 1.0)]
    assert wanted == [(0, 10), (5, 15), (30, 40)]


def test_who_is_still_here_is_not_forgotten_for_one_that_left() -> None:
    demands = Demands(Fill.REQUESTED, GRACE_S)
    here = demands.add_reader(0, 10, Priority.READ_AHEAD)
    demands.drop_reader(demands.add_reader(0, 100, Priority.READ_AHEAD), 1.0)
    assert demands.readers == [here]


def test_one_that_leaves_nothing_wanted_takes_nothing_away_from_what_another_left() -> None:
    demands = Demands(Fill.REQUESTED, GRACE_S)
    demands.drop_reader(demands.add_reader(0, 10, Priority.READ_AHEAD), 1.0)
    demands.drop_reader(demands.add_reader(0, 100, Priority.READ_AHEAD), 1.0, linger=False)
    assert [want.stop for want in demands.wants(1.0, 1.0)] == [10, 100]


# -- rounds -----------------------------------------------------------------------


class Rounds(Loop):
    """Tells of each round."""

    def __init__(self) -> None:
        super().__init__("cachefsm-rounds")
        self.made: queue.SimpleQueue[None] = queue.SimpleQueue()

    def step(self) -> float | None:
        self.made.put(None)
        return None


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    rounds = Rounds()
    rounds.start()
    rounds.made.get(timeout=WAIT_S)  # the one that it begins with
    yield rounds
    assert rounds.stop(WAIT_S)


def test_what_can_wait_is_seen_in_the_next_round(rounds: Rounds) -> None:
    for _ in range(100):
        rounds.poke(3600.0)
    rounds.poke()
    rounds.made.get(timeout=WAIT_S)
    assert rounds.stop(WAIT_S)
    assert rounds.made.empty()


def test_what_can_wait_does_not_wait_for_ever(rounds: Rounds) -> None:
    rounds.poke(3600.0)
    rounds.poke(0.01)
    rounds.poke(3600.0)
    rounds.made.get(timeout=WAIT_S)


def test_who_waits_where_a_stream_ends_wakes_the_conductor_at_once(one: OneEntry) -> None:
    claim = begun(one, HALF)
    demand = one.entry.want(None, 0, 1000, blocked=False)
    one.told.clear()
    one.entry.want(demand, HALF, SIZE, blocked=True)
    assert one.told == ["change"]  # it may go on, and nobody else would say so
    one.entry.set_stop(SetStop(one.entry.id, claim.id, SIZE))
    one.told.clear()
    one.entry.want(demand, HALF, SIZE, blocked=True)
    assert one.told == []  # it is there
    one.entry.ended(claim, None)


def test_the_one_answer_that_there_is_goes_on_once_its_reader_comes_on(one: OneEntry) -> None:
    """Nothing else could bring the rest of what cannot be joined."""
    claim = begun(one, HALF, fields=())
    demand = one.entry.want(None, 0, 1000, blocked=False)
    one.entry.want(demand, HALF, SIZE, blocked=True)
    conduct(one)
    assert not claim.cancelled
    assert one.entry.accept(claim, 1000) == (1000, [ByteRange(HALF, HALF + 1000)])
    one.entry.ended(claim, None)


def conduct(one: OneEntry) -> None:
    """Do to its streams what the conductor does."""
    view = one.entry.view()
    assert view is not None
    for action in plan([view], Limits()):
        assert isinstance(action, SetStop)
        one.entry.set_stop(action)


def begun(one: OneEntry, stop: int, fields: Fields = FIELDS) -> Claim:
    """Return a claim on all of it that is to bring no more than up to *stop*, and has."""
    claim = one.entry.grant(Open(one.entry.id, 0, SIZE, Priority.PERSON))
    assert claim is not None
    known = Representation(SIZE, Validator.from_fields(fields), fields, accepts_ranges=True)
    assert one.entry.answered(claim, Answer(0, SIZE, known, close_delimited=False))
    one.entry.set_stop(SetStop(one.entry.id, claim.id, stop))
    claim.content.file.write_at(0, content(0, stop))
    one.entry.wrote(claim, stop, [ByteRange(0, stop)])
    return claim
