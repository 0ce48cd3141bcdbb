"""How many connections an entry is given: tried on modelled lines, with a clock of the test's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.parallel import FIRST_REST_S, WINDOW_S, Seen, Trial, next_look_s, step

MIB = 1 << 20
Line = Callable[[int], float]
"""The throughput of so many connections together, in bytes per second."""


def each(rate: float) -> Line:
    """An origin that gives every connection its share."""
    return lambda connections: rate * connections


def in_all(rate: float) -> Line:
    """An origin, or a line, whose connections share what there is."""
    return lambda connections: rate if connections else 0.0


def up_to(rate: float, total: float) -> Line:
    return lambda connections: min(rate * connections, total)


class Transfer:
    """An entry whose connections are all at work as soon as they may be."""

    def __init__(self, line: Line, most: int = 8, work_for: int = 100) -> None:
        self.line = line
        self.most = most
        self.work_for = work_for
        self.trial = Trial()
        self.now_s = 0.0
        self.received = 0.0
        self.widths: list[int] = []

    @property
    def tries(self) -> int:
        """How often the number was raised."""
        return sum(later > earlier for earlier, later in pairwise(self.widths))

    def run(self, seconds: float, look_s: float = WINDOW_S) -> Trial:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            at_work = min(self.trial.width, self.work_for)
            seen = Seen(self.now_s, at_work, int(self.received), self.now_s)
            self.trial = step(self.trial, seen, self.most)
            self.widths.append(self.trial.width)
            at_work = min(self.trial.width, self.work_for)
            self.now_s += look_s
            self.received += self.line(at_work) * look_s
        return self.trial


def test_connections_are_added_while_each_brings_its_share() -> None:
    transfer = Transfer(each(20 * MIB))
    assert transfer.run(5).width == 8
    assert [w for i, w in enumerate(transfer.widths) if w not in transfer.widths[:i]] == [
        *(1, 4, 8)
    ]
    # Against 20 MiB/s for a connection, eight are found within a second.
    assert transfer.widths[int(1 / WINDOW_S)] == 8


def test_a_connection_that_brings_nothing_is_taken_back() -> None:
    transfer = Transfer(in_all(20 * MIB))
    assert transfer.run(5).width == 1
    assert max(transfer.widths) == 4


def test_what_did_not_help_is_tried_again_after_a_rest_that_grows() -> None:
    transfer = Transfer(in_all(20 * MIB))
    transfer.run(FIRST_REST_S - 1)
    assert transfer.tries == 1
    transfer.run(4)
    assert transfer.tries == 2
    transfer.run(2 * FIRST_REST_S - 4)
    assert transfer.tries == 2
    transfer.run(4)
    assert transfer.tries == 3


def test_connections_are_added_until_the_line_is_full() -> None:
    transfer = Transfer(up_to(10 * MIB, 40 * MIB))
    assert transfer.run(5).width == 4
    assert max(transfer.widths) == 8


@pytest.mark.parametrize(("line", "kept"), [(19, 1), (22, 2), (24, 2), (26, 4)])
def test_of_what_does_not_bring_its_share_as_many_are_kept_as_are_worth_it(
    line: int, kept: int
) -> None:
    transfer = Transfer(up_to(10 * MIB, line * MIB), most=4)
    trial = transfer.run(5)
    assert max(transfer.widths) == 4
    assert (trial.width, trial.proven) == (kept, kept)


@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_a_line_that_brings_next_to_nothing_gets_no_more_than_it_has_proved(rate: float) -> None:
    # Nothing is no measure; and of little, no window ends early.
    transfer = Transfer(lambda connections: rate)
    assert transfer.run(20, look_s=1.0).width == 1


def test_a_line_that_falls_silent_is_not_tried_with_more() -> None:
    begun = step(Trial(), Seen(0.0, 1, 0, 0.0), 8)
    silent = step(begun, Seen(WINDOW_S, 1, 10 * MIB, 0.01), 8)
    assert silent == begun
    assert step(silent, Seen(3.0, 1, 10 * MIB, 0.01), 8).width == 1
    flowing = step(begun, Seen(WINDOW_S, 1, 10 * MIB, WINDOW_S), 8)
    assert flowing.width == 4


@pytest.mark.parametrize(("waited", "width"), [(0.0, 4), (0.4, 4), (0.5, 1), (1.0, 1)])
def test_where_what_comes_has_been_waiting_no_more_are_tried(waited: float, width: int) -> None:
    begun = step(Trial(), Seen(0.0, 1, 0, 0.0), 8)
    came = 10 * MIB
    seen = Seen(WINDOW_S, 1, came, WINDOW_S, int(waited * came))
    assert step(begun, seen, 8).width == width


def test_a_slow_line_is_measured_for_longer() -> None:
    transfer = Transfer(each(50_000.0))
    transfer.run(2.9)
    assert transfer.widths[-1] == 1
    assert transfer.run(30).width == 8


def test_as_many_are_proved_as_find_work() -> None:
    # The file has no more parts that are worth a request.
    transfer = Transfer(each(20 * MIB), work_for=3)
    trial = transfer.run(5)
    assert (trial.width, trial.proven) == (4, 3)


@pytest.mark.parametrize(("rate", "width"), [(60 * MIB, 6), (32 * MIB, 1)])
def test_more_are_compared_with_what_readers_have_had_opened(rate: float, width: int) -> None:
    begun = step(Trial(), Seen(0.0, 3, 0, 0.0), 6)
    trying = step(begun, Seen(WINDOW_S, 3, int(30 * MIB * WINDOW_S), WINDOW_S), 6)
    assert (trying.width, trying.proven) == (6, 1)
    begun = step(trying, Seen(1.0, 6, 0, 1.0), 6)
    after = step(begun, Seen(2.0, 6, int(rate), 2.0), 6)
    assert (after.width, after.proven) == (width, width)


def test_a_lower_limit_holds_at_once_and_a_higher_one_is_tried() -> None:
    transfer = Transfer(each(20 * MIB))
    transfer.run(5)
    transfer.most = 3
    assert transfer.run(0.1).width == 3
    transfer.most = 6
    assert transfer.run(5).width == 6


def test_what_is_known_of_an_origin_is_where_it_starts() -> None:
    transfer = Transfer(each(20 * MIB), most=4)
    transfer.trial = Trial(width=4, proven=4)
    transfer.run(2)
    assert set(transfer.widths) == {4}


@given(
    each=st.floats(1e3, 1e9), total=st.floats(1e3, 1e10), most=st.integers(1, 16), seed=st.data()
)
def test_the_number_is_never_above_the_limit_and_loses_nothing(
    each: float, total: float, most: int, seed: st.DataObject
) -> None:
    transfer = Transfer(up_to(each, total), most)
    trial = transfer.run(60, look_s=seed.draw(st.floats(0.05, 3.0)))
    assert 1 <= trial.proven <= trial.width <= most
    assert max(transfer.widths) <= most
    # No slower than one connection, whatever was tried.
    assert transfer.line(trial.proven) >= transfer.line(1)
    # Never more than twice as many as the line can feed.
    full = max(1.0, total / each)
    assert trial.proven <= 2 * full + 1


@pytest.mark.parametrize("most", [1, 4])
def test_nothing_has_to_be_looked_at_where_nothing_can_change(most: int) -> None:
    still = Trial(width=most, proven=most, since=Seen(0.0, most, 0, 0.0))
    assert next_look_s(still, 0.0, most) is None
    assert next_look_s(Trial(since=None), 0.0, 4) is None
    resting = Trial(since=Seen(0.0, 1, 0, 0.0), rest_until_s=50.0)
    assert next_look_s(resting, 10.0, 4) == 50.0
