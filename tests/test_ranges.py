"""Interval arithmetic: drawn cases, then a machine that compares with a set of bytes.

A drawing has one character per byte: ``D`` is present, ``.`` is missing.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cachefsm.ranges import END, ByteRange, RangeSet

_SIZE = 40
_GIB = 2**30


def drawn(text: str) -> RangeSet:
    return RangeSet((i, i + 1) for i, mark in enumerate(text) if mark == "D")


def drawing(ranges: RangeSet, size: int) -> str:
    here = {offset for start, stop in ranges for offset in range(start, stop)}
    return "".join("D" if offset in here else "." for offset in range(size))


def assert_invariant(ranges: RangeSet) -> None:
    runs = list(ranges)
    assert all(run.start < run.stop for run in runs)
    assert all(run.stop < following.start for run, following in pairwise(runs))
    assert ranges.total == sum(run.size for run in runs)
    assert len(ranges) == len(runs)


# -- ByteRange ----------------------------------------------------------------


def test_a_byte_range_is_a_half_open_pair() -> None:
    wanted = ByteRange(0, 500)
    assert wanted.size == 500
    assert wanted == (0, 500)
    assert str(wanted) == "[0, 500)"


def test_an_unknown_end_is_the_largest_offset_a_database_can_hold() -> None:
    assert (END + 1).bit_length() == 64
    assert END.bit_length() == 63


def test_an_open_range_says_so() -> None:
    assert str(ByteRange(5, END)) == "[5, END)"


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, END + 1)])
def test_no_range_runs_backwards_or_out_of_bounds(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not a byte range"):
        ByteRange(start, stop)


@pytest.mark.parametrize("method", ["add", "remove", "contains", "first_gap"])
@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, END + 1)])
def test_every_method_refuses_what_is_no_range(method: str, start: int, stop: int) -> None:
    ranges = drawn("..DD")
    with pytest.raises(ValueError, match="not a byte range"):
        getattr(ranges, method)(start, stop)
    assert ranges == drawn("..DD")


@pytest.mark.parametrize("method", ["gaps", "intersection"])
def test_every_iterator_refuses_what_is_no_range(method: str) -> None:
    with pytest.raises(ValueError, match="not a byte range"):
        list(getattr(drawn("DD"), method)(5, 4))


# -- changes, drawn -----------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "added", "after", "new"),
    [
        ("..........", "..........", "..........", 0),  # nothing
        ("..........", "...DDD....", "...DDD....", 3),  # the first
        ("...DDD....", "...DDD....", "...DDD....", 0),  # the same again
        ("...DDD....", "....D.....", "...DDD....", 0),  # inside
        ("...DDD....", "......DD..", "...DDDDD..", 2),  # adjacent, after
        ("...DDD....", ".DD.......", ".DDDDD....", 2),  # adjacent, before
        ("...DDD....", ".....DDD..", "...DDDDD..", 2),  # overlapping the end
        ("...DDD....", "..DD......", "..DDDD....", 1),  # overlapping the start
        ("...DDD....", "..DDDDD...", "..DDDDD...", 2),  # around
        ("...DDD....", ".......DD.", "...DDD.DD.", 2),  # apart, after
        ("...DDD....", ".D........", ".D.DDD....", 1),  # apart, before
        (".D...D...D", "...D......", ".D.D.D...D", 1),  # apart, between
        (".D...D...D", "..DDD.....", ".DDDDD...D", 3),  # exactly the gap
        (".D...D...D", "..DD......", ".DDD.D...D", 2),  # part of the gap
        (".D...D...D", "DDDDDDDDDD", "DDDDDDDDDD", 7),  # over everything
        (".D...D...D", "...DDDDDD.", ".D.DDDDDDD", 5),  # up to the last
    ],
)
def test_adding_coalesces_and_counts_new_bytes(
    before: str, added: str, after: str, new: int
) -> None:
    ranges = drawn(before)
    start, stop = (added.find("D"), added.rfind("D") + 1) if "D" in added else (4, 4)
    assert ranges.add(start, stop) == new
    assert drawing(ranges, len(after)) == after
    assert_invariant(ranges)


@pytest.mark.parametrize(
    ("before", "removed", "after", "gone"),
    [
        ("...DDD....", "..........", "...DDD....", 0),  # nothing
        ("...DDD....", "DDD.......", "...DDD....", 0),  # adjacent, before
        ("...DDD....", "......DD..", "...DDD....", 0),  # adjacent, after
        ("...DDD....", "...DDD....", "..........", 3),  # all of it
        ("...DDD....", ".DDDDDDD..", "..........", 3),  # more than it
        ("...DDD....", "..DD......", "....DD....", 1),  # its start
        ("...DDD....", ".....DD...", "...DD.....", 1),  # its end
        ("...DDD....", "....D.....", "...D.D....", 1),  # its middle
        (".DD..DD.DD", "..DDDD....", ".D....D.DD", 2),  # across a gap
        (".DD..DD.DD", ".DDDDDDDD.", ".........D", 5),  # several
    ],
)
def test_removing_splits_and_counts_lost_bytes(
    before: str, removed: str, after: str, gone: int
) -> None:
    ranges = drawn(before)
    start, stop = (removed.find("D"), removed.rfind("D") + 1) if "D" in removed else (4, 4)
    assert ranges.remove(start, stop) == gone
    assert drawing(ranges, len(after)) == after
    assert_invariant(ranges)


def test_clearing_leaves_nothing() -> None:
    ranges = drawn(".DD..D")
    ranges.clear()
    assert not ranges
    assert ranges.total == 0
    assert ranges == RangeSet()


# -- questions, drawn ---------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "start", "stop", "gaps"),
    [
        ("..........", 0, 10, [(0, 10)]),
        ("DDDDDDDDDD", 0, 10, []),
        ("..DDD...D.", 0, 10, [(0, 2), (5, 8), (9, 10)]),
        ("..DDD...D.", 3, 9, [(5, 8)]),
        ("..DDD...D.", 6, 7, [(6, 7)]),
        ("..DDD...D.", 2, 5, []),
        ("..DDD...D.", 5, 8, [(5, 8)]),
        ("..DDD...D.", 7, 7, []),
        ("..DDD...D.", 8, END, [(9, END)]),
    ],
)
def test_gaps_are_what_is_missing(
    present: str, start: int, stop: int, gaps: list[tuple[int, int]]
) -> None:
    ranges = drawn(present)
    assert list(ranges.gaps(start, stop)) == gaps
    assert ranges.first_gap(start, stop) == (gaps[0] if gaps else None)
    assert ranges.contains(start, stop) is (not gaps)
    assert (ByteRange(start, stop) in ranges) is (not gaps)


@pytest.mark.parametrize(
    ("start", "stop", "parts"),
    [
        (0, 10, [(2, 5), (8, 9)]),
        (3, 9, [(3, 5), (8, 9)]),
        (3, 4, [(3, 4)]),
        (5, 8, []),
        (4, 4, []),
        (0, END, [(2, 5), (8, 9)]),
    ],
)
def test_the_intersection_is_what_is_here(
    start: int, stop: int, parts: list[tuple[int, int]]
) -> None:
    assert list(drawn("..DDD...D.").intersection(start, stop)) == parts


def test_gaps_may_be_filled_while_they_are_walked() -> None:
    ranges = drawn(".D.D.D....")
    for gap in ranges.gaps(0, 10):
        ranges.add(*gap)
    assert list(ranges) == [(0, 10)]


@pytest.mark.parametrize(
    ("offset", "stop"), [(0, 0), (1, 1), (2, 5), (4, 5), (5, 5), (8, 9), (9, 9), (99, 99)]
)
def test_a_run_can_be_read_from_any_byte_in_it(offset: int, stop: int) -> None:
    assert drawn("..DDD...D.").run_stop(offset) == stop


@pytest.mark.parametrize(
    ("offset", "start"), [(0, 2), (2, 2), (3, 8), (5, 8), (8, 8), (9, END), (99, END)]
)
def test_the_next_run_begins_at_or_after_the_offset(offset: int, start: int) -> None:
    assert drawn("..DDD...D.").next_start(offset) == start


def test_an_empty_set_has_no_runs() -> None:
    assert RangeSet().run_stop(7) == 7
    assert RangeSet().next_start(0) == END


@pytest.mark.parametrize(
    ("these", "less", "left"),
    [
        ("DDDDDDDDDD", "..DD...D..", "DD..DDD.DD"),
        (".DDD..DDD.", "DD......DD", "..DD..DD.."),
        (".DDD......", ".....DDD..", ".DDD......"),
        (".DDD......", "..........", ".DDD......"),
        ("..........", "DDDDDDDDDD", ".........."),
    ],
)
def test_the_difference_is_in_one_and_not_the_other(these: str, less: str, left: str) -> None:
    assert drawn(these).difference(drawn(less)) == drawn(left)


# -- value semantics ----------------------------------------------------------


def test_offsets_beyond_four_gib_are_exact() -> None:
    ranges = RangeSet([(5 * _GIB, 6 * _GIB), (6 * _GIB + 1, 9 * _GIB)])
    assert ranges.total == 4 * _GIB - 1
    assert ranges.first_gap(5 * _GIB, 9 * _GIB) == (6 * _GIB, 6 * _GIB + 1)


def test_a_copy_is_independent() -> None:
    ranges = drawn(".DD.")
    twin = ranges.copy()
    twin.add(0, 1)
    ranges.remove(1, 2)
    assert (list(ranges), ranges.total) == ([(2, 3)], 1)
    assert (list(twin), twin.total) == ([(0, 3)], 3)


def test_equal_bytes_make_equal_sets() -> None:
    assert RangeSet([(5, 9), (0, 5)]) == RangeSet([(0, 9)])
    assert RangeSet([(0, 9)]) != RangeSet([(0, 8)])
    assert RangeSet([(0, 9)]) != RangeSet([(1, 9)])
    assert RangeSet([(0, 9)]) != [(0, 9)]


def test_a_set_that_changes_has_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(RangeSet())


def test_the_repr_draws_the_runs() -> None:
    assert repr(RangeSet([(9, 12), (0, 5)])) == "RangeSet([0, 5), [9, 12))"
    assert repr(RangeSet()) == "RangeSet()"


def test_a_set_is_true_if_it_holds_a_byte() -> None:
    assert RangeSet([(0, 1)])
    assert not RangeSet([(3, 3)])


# -- against a model ----------------------------------------------------------

_offsets = st.integers(0, _SIZE)
_bounds = st.tuples(_offsets, _offsets).map(lambda pair: (min(pair), max(pair)))


class RangeSetMachine(RuleBasedStateMachine):
    """Does everything twice: to a RangeSet and to a plain set of offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = RangeSet()
        self.model: set[int] = set()

    @rule(bounds=_bounds)
    def add(self, bounds: tuple[int, int]) -> None:
        new = set(range(*bounds)) - self.model
        assert self.ranges.add(*bounds) == len(new)
        self.model |= new

    @precondition(lambda self: self.ranges)
    @rule(data=st.data(), size=st.integers(0, 5))
    def extend_a_run(self, data: st.DataObject, size: int) -> None:
        start = data.draw(st.sampled_from(list(self.ranges))).stop
        self.add((start, min(_SIZE, start + size)))

    @rule(bounds=_bounds)
    def remove(self, bounds: tuple[int, int]) -> None:
        gone = set(range(*bounds)) & self.model
        assert self.ranges.remove(*bounds) == len(gone)
        self.model -= gone

    @rule()
    def clear(self) -> None:
        self.ranges.clear()
        self.model.clear()

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.ranges = self.ranges.copy()

    @rule(bounds=_bounds)
    def ask_about_a_range(self, bounds: tuple[int, int]) -> None:
        wanted = set(range(*bounds))
        gaps, parts = list(self.ranges.gaps(*bounds)), list(self.ranges.intersection(*bounds))
        assert {i for gap in gaps for i in range(*gap)} == wanted - self.model
        assert {i for part in parts for i in range(*part)} == wanted & self.model
        assert_invariant(RangeSet(gaps))
        assert len(RangeSet(gaps)) == len(gaps)
        assert self.ranges.contains(*bounds) == (wanted <= self.model)

    @rule(offset=_offsets)
    def ask_about_an_offset(self, offset: int) -> None:
        stop = self.ranges.run_stop(offset)
        assert self.model.issuperset(range(offset, stop))
        assert stop not in self.model
        # "First stored range that begins at or after": the middle of one does not count.
        starts = (i for i in self.model if i >= offset and i - 1 not in self.model)
        assert self.ranges.next_start(offset) == min(starts, default=END)

    @rule(others=st.lists(_bounds, max_size=4))
    def subtract(self, others: list[tuple[int, int]]) -> None:
        left = self.ranges.difference(RangeSet(others))
        gone = {i for bounds in others for i in range(*bounds)}
        assert {i for run in left for i in range(*run)} == self.model - gone
        assert_invariant(left)

    @invariant()
    def holds_the_same_bytes(self) -> None:
        assert {i for run in self.ranges for i in range(*run)} == self.model
        assert_invariant(self.ranges)


TestRangeSetAgainstAModel = RangeSetMachine.TestCase


@given(st.lists(_bounds))
def test_the_order_of_adding_does_not_matter(bounds: list[tuple[int, int]]) -> None:
    assert RangeSet(bounds) == RangeSet(reversed(bounds))
