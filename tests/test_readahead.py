"""How far ahead of a reader is fetched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.ranges import END, ByteRange
from cachefsm.readahead import FIRST_BYTES, ReadAhead

MIB = 1 << 20
MOST = 8 * MIB


def test_the_window_doubles_what_has_been_read_up_to_the_most() -> None:
    ahead = ReadAhead(MOST)
    windows = [
        ahead.window_stop(position, END) - position for position in range(0, 20 * MIB, MIB // 4)
    ]
    assert windows[0] == FIRST_BYTES
    assert windows == sorted(windows)
    assert windows[-1] == MOST
    # As far again as it has come, and the first.
    assert windows[4] == MIB + FIRST_BYTES
    assert windows[32] == MOST


def test_who_hops_about_is_served_little() -> None:
    ahead = ReadAhead(MOST)
    for position in (0, 30 * MIB, 5 * MIB, 90 * MIB):
        assert ahead.window_stop(position, END) == position + FIRST_BYTES


def test_a_hop_begins_the_window_anew() -> None:
    ahead = ReadAhead(MOST)
    for position in range(0, 10 * MIB, MIB // 4):
        ahead.window_stop(position, END)
    assert ahead.window_stop(50 * MIB, END) == 50 * MIB + FIRST_BYTES


def test_a_small_hop_within_the_window_does_not() -> None:
    ahead = ReadAhead(MOST)
    for position in range(0, 4 * MIB, MIB // 4):
        ahead.window_stop(position, END)
    assert ahead.window_stop(5 * MIB, END) == 10 * MIB + FIRST_BYTES
    assert ahead.window_stop(4 * MIB, END) == 8 * MIB + FIRST_BYTES


@pytest.mark.parametrize("most", [1, 1000, FIRST_BYTES - 1])
def test_a_smaller_most_is_the_first_too(most: int) -> None:
    assert ReadAhead(most).window_stop(7, END) == 7 + most


def _asked(ahead: ReadAhead, start: int, size: int) -> int:
    return ahead.window_stop(start, start + size, ByteRange(start, start + size))


def test_who_reads_piece_by_piece_gets_the_piece_and_then_more() -> None:
    ahead = ReadAhead(MOST)
    assert _asked(ahead, MIB, 1000) == MIB + 1000
    assert _asked(ahead, MIB + 1000, 1000) == MIB + 3000
    # An index is read here and there.
    assert _asked(ahead, 7 * MIB, 10) == 7 * MIB + 10


def test_the_parts_of_one_read_are_not_reading_on() -> None:
    ahead, asked = ReadAhead(MOST), ByteRange(MIB, 2 * MIB)
    for position in range(MIB, 2 * MIB, MIB // 4):
        assert ahead.window_stop(position, position + MIB // 4, asked) == 2 * MIB


def test_a_read_longer_than_the_most_is_fetched_by_and_by() -> None:
    ahead, asked = ReadAhead(MIB), ByteRange(0, 5 * MIB)
    for position in range(0, 4 * MIB, MIB // 4):
        assert ahead.window_stop(position, 5 * MIB, asked) == position + MIB
    assert ahead.window_stop(5 * MIB - 1, 5 * MIB, asked) == 5 * MIB


def test_without_a_most_all_is_asked_for() -> None:
    assert ReadAhead(0).window_stop(7, 900 * MIB) == 900 * MIB


@given(
    st.integers(0, 1 << 24),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 1 << 24)), min_size=1),
)
def test_no_window_is_larger_than_the_most_or_goes_past_the_wish(
    most: int, steps: list[tuple[int, int]]
) -> None:
    ahead = ReadAhead(most)
    for position, further in steps:
        stop = ahead.window_stop(position, position + further)
        assert position <= stop <= position + further
        assert not most or stop - position <= most


@given(
    st.integers(0, 1 << 24),
    st.lists(
        st.tuples(st.integers(0, 1 << 30), st.integers(1, 1 << 24), st.integers(0, 1 << 24)),
        min_size=1,
    ),
)
def test_whoever_asks_is_always_fetched_for(most: int, steps: list[tuple[int, int, int]]) -> None:
    ahead = ReadAhead(most)
    for start, size, done in steps:
        asked = ByteRange(start, start + size)
        position = start + done % size
        assert ahead.window_stop(position, asked.stop, asked) > position
