"""Where further connections of one entry go, and which of them go again, in drawings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cachefsm.ranges import END
from cachefsm.scheduler import EntryView, Limits, Open, OriginView, Priority, SetStop, plan
from tests.support.drawings import LIMITS, drawn, planned

PARTS = replace(LIMITS, part_bytes=2, part_s=1.0)
SLOW = OriginView(rate_bytes_s=3.0)


def spread(present: str, *streams: str, width: int, **wants: str) -> list[str]:
    view = drawn(present, *streams, more={"width": width, "origin": SLOW}, **wants)
    return planned(view, PARTS)


@pytest.mark.parametrize(
    ("width", "after"),
    [
        (1, ["N==============="]),
        (2, ["N=======........", "........N======="]),
        (3, ["N===............", "....N===........", "........N======="]),
        (4, ["N===............", "....N===........", "........N===....", "............N==="]),
    ],
)
@pytest.mark.parametrize("asker", ["person", "prefetch", "fill"])
def test_without_a_reader_the_longest_claim_is_halved(
    width: int, after: list[str], asker: str
) -> None:
    wants = {asker: "w" * 16}
    assert spread("." * 16, width=width, **wants) == after


@pytest.mark.parametrize("reader", ["blocked", "read_ahead"])
def test_with_a_reader_the_parts_follow_it(reader: str) -> None:
    wants = {reader: "......ww........................", "fill": "w" * 32}
    assert spread("." * 32, width=4, **wants) == [
        "N=====..........................",
        "......N==.......................",
        ".........N==....................",
        "............N===================",
    ]


def test_what_lies_ahead_of_the_reader_goes_before_what_lies_behind() -> None:
    after = spread("." * 16, "..........>=====", width=2, blocked="..........w.....", fill="w" * 16)
    # The fill has the connection that it needs; the reader's part is shared first.
    assert after == ["N=========......", "..........>====="]
    after = spread("." * 16, "..........>=====", width=3, blocked="..........w.....", fill="w" * 16)
    assert after == ["N=========......", "..........>==...", ".............N=="]


@pytest.mark.parametrize(
    ("present", "after"),
    [
        (".....DDDDD......", ["N====...........", "..........N====="]),
        ("D..DD..DDDDD....", [".N==............", "............N==="]),
        ("DDDDDD..........", ["......N====.....", "...........N===="]),
    ],
)
def test_parts_that_nobody_has_begun_are_begun(present: str, after: list[str]) -> None:
    (first, second) = spread(present, width=2, person="w" * 16)
    assert second == after[1]
    assert first.index("N") == after[0].index("N")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_small_file_has_one_connection(length: int) -> None:
    assert len(spread("." * length, width=4, person="w" * length)) == 1


def test_a_part_is_worth_more_than_the_time_that_its_answer_takes() -> None:
    def opened(latency_s: float) -> int:
        origin = OriginView(rate_bytes_s=10.0, latency_s=latency_s)
        view = drawn("." * 40, more={"width": 4, "origin": origin}, person="w" * 40)
        return len(planned(view, PARTS))

    assert opened(0.1) == 4
    assert opened(0.5) == 4
    assert opened(0.6) == 2
    assert opened(1.1) == 1


def test_where_the_end_is_not_known_nothing_is_shared() -> None:
    view = drawn("." * 8, more={"width": 4}, person="w" * 8)
    assert len(plan([replace(view, length=END)], PARTS)) == 1


@pytest.mark.parametrize("nature", [{"seekable": False}, {"settled": False}])
def test_answers_that_cannot_be_joined_come_over_one_connection(nature: dict[str, bool]) -> None:
    view = drawn("." * 8, more={"width": 4, **nature}, person="w" * 8)
    assert len(plan([view], PARTS)) == 1


def test_a_reader_s_own_streams_count_as_well() -> None:
    after = spread("." * 16, ".......>========", width=2, blocked=".......w........", fill="w" * 16)
    assert after == ["N======.........", ".......>========"]


def test_what_a_blocked_reader_waits_for_stays_with_the_connection_that_is_near() -> None:
    after = spread("." * 16, ">===============", width=2, blocked="...w............", fill="w" * 16)
    assert after == [">=====..........", "......N========="]
    after = spread("." * 6, ">=====", width=2, blocked="...w..", fill="w" * 6)
    assert after == [">====="]


# -- and back ----------------------------------------------------------------------


def view_of_extras(width: int, *extra: int) -> EntryView:
    view = drawn(
        "." * 16, ">===............", "....>===........", "........>=======", person="w" * 16
    )
    streams = [
        replace(stream, extra=stream.id in extra, reach=END if stream.id == 0 else stream.reach)
        for stream in view.streams
    ]
    return replace(view, streams=tuple(streams), width=width)


def test_what_is_too_much_is_given_up_the_youngest_first() -> None:
    assert plan([view_of_extras(3, 1, 2)], PARTS) == []
    assert plan([view_of_extras(2, 1, 2)], PARTS) == [SetStop(1, 2, 8)]
    assert plan([view_of_extras(1, 1, 2)], PARTS) == [
        *(SetStop(1, 0, 16), SetStop(1, 1, 4), SetStop(1, 2, 8))
    ]


def test_what_readers_have_had_opened_is_not_too_much() -> None:
    assert plan([view_of_extras(1)], PARTS) == []


def test_a_connection_for_speed_makes_room_for_who_is_as_urgent_and_has_none() -> None:
    host = replace(PARTS, per_host=3)
    for priority, actions in [
        (Priority.FILL, []),
        (Priority.PREFETCH, []),
        (Priority.PERSON, [SetStop(1, 2, 8, may_wait=False)]),
        (Priority.READ_AHEAD, [SetStop(1, 2, 8, may_wait=False)]),
        (Priority.BLOCKED, [SetStop(1, 2, 8, may_wait=False)]),
    ]:
        (want,) = drawn("." * 16, person="w" * 16).wants
        other = replace(drawn("." * 16), id=2, wants=(replace(want, priority=priority),))
        assert plan([view_of_extras(3, 1, 2), other], host) == actions


def test_connections_for_speed_take_nobody_s_place() -> None:
    view = drawn("." * 16, person="w" * 16)
    running = replace(drawn("." * 16, ">===............", fill="w" * 4), id=2)
    actions = plan([replace(view, width=4), running], replace(PARTS, total=3))
    assert [type(action) for action in actions] == [Open, Open]
    assert [action.extra for action in actions if isinstance(action, Open)] == [False, True]


def test_connections_for_speed_do_not_take_each_other_s_place() -> None:
    streams = (">===............", "........>=======")
    view = drawn("." * 16, *streams, read_ahead="wwwwwwww........", fill="w" * 16)
    spare = replace(view.streams[1], extra=True)
    view = replace(view, streams=(view.streams[0], spare), width=3)
    assert [action.start for action in plan([view], PARTS) if isinstance(action, Open)] == [2]
    assert plan([view], replace(PARTS, per_entry=2)) == []


# -- from one to the next ----------------------------------------------------------


def nearly_done(rate_bytes_s: float, *, with_successor: bool = False) -> EntryView:
    origin = OriginView(rate_bytes_s=rate_bytes_s, latency_s=0.5)
    streams = [">===............", ".......>===....."][: 1 + with_successor]
    view = drawn("....DDD.........", *streams, more={"origin": origin}, person="w" * 16)
    return replace(
        view,
        streams=tuple(
            replace(stream, extra=stream.id > 0, rate_bytes_s=rate_bytes_s)
            for stream in view.streams
        ),
    )


def test_a_stream_s_successor_is_opened_before_it_ends() -> None:
    assert plan([nearly_done(7.0)], PARTS) == []
    assert plan([nearly_done(8.0)], PARTS) == [Open(1, 7, 16, Priority.PERSON, extra=True)]
    assert plan([nearly_done(8.0)], replace(PARTS, per_entry=1)) == []


@pytest.mark.parametrize("width", [1, 4])
def test_a_stream_is_not_divided_that_is_done_before_another_one_is_answered(width: int) -> None:
    # What a connection brings there has not been measured yet; this one shows it.
    origin = OriginView(latency_s=0.5)
    view = drawn("." * 16, ">" + "=" * 15, more={"origin": origin, "width": width}, person="w" * 16)
    for rate, actions in [(1.0, width > 1), (40.0, False)]:
        streams = tuple(replace(stream, rate_bytes_s=rate) for stream in view.streams)
        assert bool(plan([replace(view, streams=streams)], PARTS)) == actions


def test_a_successor_is_kept_though_its_forerunner_slows_down() -> None:
    assert plan([nearly_done(8.0, with_successor=True)], PARTS) == []
    assert plan([nearly_done(7.0, with_successor=True)], PARTS) == []
    assert plan([nearly_done(1.0, with_successor=True)], PARTS) == [SetStop(1, 1, 7)]


def test_an_origin_s_own_limit_holds_for_all_its_entries() -> None:
    origin = OriginView(most=2)
    views = [
        replace(drawn("." * 8, more={"origin": origin}, person="w" * 8), id=number)
        for number in range(4)
    ]
    assert len(plan(views, Limits())) == 2
