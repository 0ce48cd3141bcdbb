"""The planner: drawn cases for each of its rules, then a simulation that runs until quiet.

How to read the drawings is said in :mod:`tests.support.drawings`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from cachefsm.ranges import END, RangeSet
from cachefsm.scheduler import (
    Abandoned,
    Action,
    Ask,
    EntryView,
    Leaving,
    Limits,
    Open,
    OriginView,
    Priority,
    SetStop,
    StreamView,
    Want,
    plan,
)
from tests.support.drawings import LIMITS, NEAR, drawn, drawn_stream, planned

# -- rule 1: only what is wanted and missing ----------------------------------


@pytest.mark.parametrize(
    ("present", "wanted", "after"),
    [
        ("..........", "..www.....", ["..N==....."]),
        ("..........", "wwwwwwwwww", ["N========="]),
        ("DDDDDDDDDD", "wwwwwwwwww", []),
        ("..DDD.....", "..www.....", []),
        ("..DDD.....", ".wwwwww...", [".N........"]),  # then the rest
        (".DD.......", ".wwwwww...", ["...N===..."]),
        ("D.........", "w.........", []),
    ],
)
@pytest.mark.parametrize("priority", [priority.name for priority in Priority])
def test_only_what_is_wanted_and_missing_is_asked_for(
    present: str, wanted: str, after: list[str], priority: str
) -> None:
    assert planned(drawn(present, **{priority: wanted})) == after


def test_nothing_is_asked_for_when_nobody_wants_anything() -> None:
    assert plan([drawn("..........")], LIMITS) == []
    assert plan([], LIMITS) == []


def test_a_want_past_the_end_asks_for_nothing() -> None:
    view = replace(drawn("DDDD......"), length=4, wants=(Want(4, 9, Priority.BLOCKED),))
    assert plan([view], LIMITS) == []


def test_an_open_end_is_clipped_to_the_length_where_it_is_known() -> None:
    view = replace(drawn("DD........"), wants=(Want(0, END, Priority.FILL),))
    assert plan([view], LIMITS) == [Open(1, 2, 10, Priority.FILL)]
    assert plan([replace(view, length=END)], LIMITS) == [Open(1, 2, END, Priority.FILL)]


# -- rule 2: running streams --------------------------------------------------


@pytest.mark.parametrize(
    ("present", "wanted", "stream", "after"),
    [
        ("..........", "......wwww", ".>===.....", ["......N==="]),  # not wanted: it stops
        ("..........", ".www......", ".>======..", [".>==......"]),  # past it: shortened
        ("..........", ".wwwwwwww.", ".>==-----.", [".>=======."]),  # and back again
        (".....DD...", ".wwwwwwww.", ".>=======.", [".>===....."]),  # up to stored bytes
        ("..........", ".wwwwwwwww", ".>==......", [".>==......"]),  # asked no more
        (".DDD......", ".wwwwwwwww", "....>=====", ["....>====="]),  # as it should be
    ],
)
def test_a_stream_goes_as_far_as_it_can_and_is_wanted(
    present: str, wanted: str, stream: str, after: list[str]
) -> None:
    assert planned(drawn(present, stream, person=wanted)) == after


def test_a_stream_whose_bytes_nobody_wants_any_more_ends_at_once() -> None:
    assert plan([drawn("..........", ".>====....")], LIMITS) == [SetStop(1, 0, 1)]


def test_the_second_of_two_streams_never_goes_over_the_first_one_s_bytes() -> None:
    view = drawn("..........", ".>==----..", "....>====.", fill="wwwwwwwwww")
    assert planned(view) == ["N.........", ".>==......", "....>====."]


SKIPPING = {"skip_bytes": 9, "origin": OriginView(rate_bytes_s=10.0, latency_s=0.3)}


@pytest.mark.parametrize(
    ("present", "streams", "after"),
    [
        ("...DDD....", [">==-------"], [">========="]),  # over it
        ("...DDD....", [], ["N========="]),  # a new one, too
        ("...DDD....", ["....>====="], ["N==.......", "....>====="]),  # in its midst
        ("...DDDD...", [">==-------"], [">==......."]),  # it is longer than an answer takes
        (".D.D.DDDDD", [">=-......."], [">==......."]),  # as far as it asked
    ],
)
def test_a_few_stored_bytes_are_received_again_to_spare_a_request(
    present: str, streams: list[str], after: list[str]
) -> None:
    assert planned(drawn(present, *streams, more=SKIPPING, person="wwwwwwwwww")) == after


@pytest.mark.parametrize("wants", [{}, {"person": "wwwwwwwwww"}])
def test_a_question_is_asked_wherever_stored_bytes_may_be_received_again(
    wants: dict[str, str],
) -> None:
    view = drawn("DDDDDDDDDD", more={**SKIPPING, "ask": Ask.WANTED}, **wants)
    (asked,) = plan([view], LIMITS)
    assert isinstance(asked, Open)
    assert asked.asks


def test_no_more_is_received_again_than_may_be() -> None:
    for most, stop in [(0, 3), (2, 3), (3, 10)]:
        view = drawn("...DDD....", more={**SKIPPING, "skip_bytes": most}, person="wwwwwwwwww")
        assert plan([view], LIMITS)[0] == Open(1, 0, stop, Priority.PERSON, skip_bytes=most)
    view = drawn("...DDD....", more=SKIPPING, person="wwwwwwwwww")
    assert plan([view], replace(LIMITS, skip_bytes=2)) == [
        Open(1, 0, 3, Priority.PERSON, skip_bytes=2)
    ]


@pytest.mark.parametrize("wants", [("wwwww.....", "wwwww....."), ("www.......", "......wwww")])
def test_stored_bytes_are_not_received_again_for_what_nobody_wants(wants: tuple[str, str]) -> None:
    view = drawn("...DD.....", ">==-------", more=SKIPPING, person=wants[0], prefetch=wants[1])
    assert planned(view)[0] == ">==......."


def test_a_stream_does_not_go_on_for_stored_bytes_before_the_next_one() -> None:
    streams = (">==-------", ".....>====")
    view = drawn("...DD.....", *streams, more=SKIPPING, person="wwwwwwwwww")
    assert planned(view) == [">==.......", ".....>===="]


@pytest.mark.parametrize(
    ("policy", "present", "stream", "after"),
    [
        ("stop", "DDDDDDDDD.....", ".........>----", []),
        ("nearly", "DDDDDDDDD.....", ".........>----", []),
        ("nearly", "D.............", ">-------------", []),
        ("finish", "D.............", ".>------------", [".>============"]),
        ("finish", "D....DD.......", ".>------------", [".>==="]),  # what is stored is stored
    ],
)
def test_a_request_whose_bytes_nobody_wants_ends_or_goes_on(
    policy: str, present: str, stream: str, after: list[str]
) -> None:
    limits = replace(LIMITS, abandoned=Abandoned(policy))
    view = drawn(present, stream)
    assert planned(view, limits) == [drawing.ljust(14, ".") for drawing in after]


@pytest.mark.parametrize(("position", "goes_on"), [(88, False), (89, False), (90, True)])
def test_a_request_is_nearly_done_when_a_tenth_of_it_is_left(position: int, goes_on: bool) -> None:
    stream = StreamView(1, position, position + 1, 100, begun=0)
    view = EntryView(1, "a", RangeSet([(0, position)]), (), (stream,), length=200)
    (action,) = plan([view], replace(LIMITS, abandoned=Abandoned.NEARLY))
    assert action == SetStop(1, 1, 100 if goes_on else position)


# -- rule 3: blocked readers --------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "filled", "stream", "after"),
    [
        # It is the very next byte; or near enough to wait for.
        (".w........", ".wwwwwwwww", ".>========", [".>========"]),
        ("....w.....", ".wwwwwwwww", ".>========", [".>========"]),
        # Too far: the new stream takes the rest.
        (".....w....", ".wwwwwwwww", ".>========", [".>===.....", ".....N===="]),
        # Just behind the stream; or beyond its claim.
        (".....w....", "......wwww", "......>===", [".....N....", "......>==="]),
        (".....w....", ".www.wwwww", ".>==......", [".>==......", ".....N===="]),
    ],
)
def test_a_blocked_reader_waits_for_what_is_near_and_gets_a_stream_for_what_is_far(
    wanted: str, filled: str, stream: str, after: list[str]
) -> None:
    view = drawn("..........", stream, blocked=wanted)
    fills = [Want(i, i + 1, Priority.FILL) for i, mark in enumerate(filled) if mark == "w"]
    assert planned(replace(view, wants=(*view.wants, *fills))) == after


def test_a_fast_stream_is_near_from_farther_away() -> None:
    view = drawn("..........", blocked="........w.", fill="wwwwwwwwww")
    slow, fast = (drawn_stream(0, ">=========", rate_bytes_s=rate) for rate in (31.0, 32.0))
    assert len(planned(replace(view, streams=(slow,)))) == 2
    assert planned(replace(view, streams=(fast,))) == [">========="]


def test_an_impatient_reader_believes_only_the_rate() -> None:
    patient = drawn("..........", ">=========", blocked="..w.......", fill="wwwwwwwwww")
    (blocked, fill) = patient.wants
    impatient = replace(patient, wants=(replace(blocked, impatient=True), fill))
    assert planned(patient) == [">========="]
    assert planned(impatient) == [">=........", "..N======="]


def test_a_reader_in_the_middle_of_its_window_is_served_from_its_first_missing_byte() -> None:
    assert planned(drawn("..DD......", blocked="..wwwwww..")) == ["....N===.."]


def test_two_blocked_readers_near_each_other_share_a_stream() -> None:
    view = drawn("..........", blocked=".www......", fill="wwwwwwwwww")
    view = replace(view, wants=(*view.wants, Want(3, 5, Priority.BLOCKED)))
    assert planned(view) == ["N.........", ".N========"]


def test_two_blocked_readers_far_from_each_other_get_a_stream_each() -> None:
    view = drawn("..........", blocked=".ww.......", fill=".wwwwwwwww")
    view = replace(view, wants=(*view.wants, Want(7, 9, Priority.BLOCKED)))
    assert planned(view) == [".N=====...", ".......N=="]


# -- rule 4: everybody else ---------------------------------------------------


def test_every_want_has_a_stream_at_its_first_missing_byte() -> None:
    view = drawn("..D..D....", person="...ww.....", prefetch=".......ww.", fill="wwwwwwwwww")
    assert planned(view) == ["N=........", "...N=.....", ".......N=="]


@pytest.mark.parametrize(
    ("present", "streams", "after"),
    [
        ("DDDDD.....", [], []),  # half of the window is there
        ("DDDD......", [], ["....N====="]),
        ("DDDDD.....", [".....>===="], [".....>===="]),  # that may go on, though
    ],
)
def test_what_is_read_ahead_is_asked_for_by_half_windows(
    present: str, streams: list[str], after: list[str]
) -> None:
    assert planned(drawn(present, *streams, read_ahead="wwwwwwwwww")) == after


def test_what_is_wanted_apart_does_not_wait_for_the_stream_that_will_come_to_it() -> None:
    view = drawn("..........", ">=========", read_ahead="........ww", fill="wwwwwwwwww")
    assert planned(view) == [">========="]
    tail, fill = view.wants
    apart = replace(view, wants=(replace(tail, apart=True), fill))
    assert planned(apart) == [">=======..", "........N="]
    assert planned(apart, replace(LIMITS, per_entry=1)) == [">========="]
    near = replace(view, wants=(replace(tail, start=3, apart=True), fill))
    assert planned(near) == [">========="]


def test_wants_that_begin_with_the_same_byte_share_a_stream() -> None:
    view = drawn("..D..D....", person="wwww......", prefetch=".www......", fill="wwwwwwwwww")
    assert planned(view) == ["N=........"]


def test_what_a_stream_will_bring_anyway_is_not_asked_for_again() -> None:
    view = drawn("..........", "..>=======", read_ahead="..www.....", fill="..wwwwwwww")
    assert planned(view) == ["..>======="]


def test_a_want_that_has_its_stream_gets_no_second_one_for_its_next_gap() -> None:
    assert planned(drawn("...DD.....", ".>=.......", fill=".wwwwwwwww")) == [".>=......."]


# -- rule 5: limits -----------------------------------------------------------


def crowd(*, hosts: str, priority: Priority, running: bool) -> list[EntryView]:
    """Entries of ten missing bytes, one for each letter of *hosts*, each wanted from byte 0."""
    return [
        EntryView(
            id=number,
            host=host,
            present=RangeSet(),
            wants=(Want(0, 10, priority),),
            streams=(StreamView(number, 0, 10, 10),) if running else (),
            length=10,
        )
        for number, host in enumerate(hosts)
    ]


@pytest.mark.parametrize(
    ("limits", "opened"),
    [
        (replace(LIMITS, total=3), [0, 1, 2]),
        (replace(LIMITS, per_host=1), [0, 2]),
        (replace(LIMITS, per_host=2, total=3), [0, 1, 2]),
        (replace(LIMITS, total=1), [0]),
    ],
)
def test_no_more_connections_than_allowed_are_opened(limits: Limits, opened: list[int]) -> None:
    entries = crowd(hosts="aabb", priority=Priority.PREFETCH, running=False)
    assert sorted(a.entry_id for a in plan(entries, limits)) == opened


@pytest.mark.parametrize(
    ("priority", "opened"), [(p, 6 if p > Priority.READ_AHEAD else 8) for p in Priority]
)
@pytest.mark.parametrize("limits", [replace(LIMITS, per_host=8), replace(LIMITS, total=8)])
def test_of_many_connections_some_are_left_to_readers(
    limits: Limits, priority: Priority, opened: int
) -> None:
    limits = replace(limits, for_readers=0.25)
    entries = crowd(hosts="a" * 9, priority=priority, running=False)
    limits = replace(limits, per_host=max(8, limits.per_host))
    assert len(plan(entries, limits)) == opened
    running = crowd(hosts="a" * 8, priority=priority, running=True)
    assert plan(running, limits) == []  # they have not begun to be too many


@pytest.mark.parametrize("limits", [replace(LIMITS, total=1), replace(LIMITS, per_host=1)])
def test_the_most_urgent_gets_the_connection(limits: Limits) -> None:
    entries = crowd(hosts="aaaaa", priority=Priority.FILL, running=False)
    entries = [
        replace(entry, wants=(Want(0, 10, priority),))
        for entry, priority in zip(entries, reversed(Priority), strict=True)
    ]
    assert plan(entries, limits) == [Open(4, 0, 10, Priority.BLOCKED)]


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("nature", [{}, {"settled": False}])
def test_of_those_who_are_as_urgent_who_has_waited_longest_gets_the_connection(
    priority: Priority, nature: dict[str, Any]
) -> None:
    first, second = crowd(hosts="aa", priority=priority, running=False)
    late = replace(first, wants=(Want(0, 10, priority, since_s=2.0),), **nature)
    # That it is farther into its file is of no account.
    early = replace(second, wants=(Want(5, 10, priority, since_s=1.0),), **nature)
    (opened,) = plan([late, early], replace(LIMITS, total=1))
    assert opened == Open(1, 5, 10, priority)


@pytest.mark.parametrize("limits", [replace(LIMITS, total=2), replace(LIMITS, per_host=2)])
def test_a_blocked_reader_takes_the_place_of_a_stream_that_nobody_waits_for(
    limits: Limits,
) -> None:
    running = crowd(hosts="aa", priority=Priority.PREFETCH, running=True)
    blocked = replace(crowd(hosts="a", priority=Priority.BLOCKED, running=False)[0], id=7)
    assert plan([*running, blocked], limits) == [SetStop(1, 1, 0, may_wait=False)]
    # Its connection stands until its thread has let go of it.
    kept, ended = running[0], replace(running[1], streams=())
    leaving = [Leaving(1, "a")]
    assert plan([kept, ended, blocked], limits, leaving) == []
    assert plan([kept, ended, blocked], limits) == [Open(7, 0, 10, Priority.BLOCKED)]


@pytest.mark.parametrize(
    ("limits", "opened"),
    [
        (replace(LIMITS, total=2), 0),
        (replace(LIMITS, per_host=2), 1),
        (replace(LIMITS, per_host=2, total=3), 1),
        (replace(LIMITS, total=4), 2),
    ],
)
def test_a_connection_that_still_stands_counts_though_its_entry_is_gone(
    limits: Limits, opened: int
) -> None:
    entries = crowd(hosts="ab", priority=Priority.PREFETCH, running=False)
    leaving = [Leaving(98, "a"), Leaving(99, "a")]
    assert len(plan(entries, limits, leaving)) == opened


def test_an_entry_s_own_connections_count_until_they_are_gone() -> None:
    view = drawn("..........", blocked="w.........", fill="......wwww")
    assert len(planned(view, replace(LIMITS, per_entry=2))) == 2
    (opened,) = plan([view], replace(LIMITS, per_entry=2), [Leaving(1, view.host)])
    assert opened == Open(1, 0, 1, Priority.BLOCKED)


def test_a_stream_that_waits_at_its_stop_is_ended_for_whoever_has_no_connection() -> None:
    waiting = replace(drawn("DDDDD.....", fill="wwwww"), streams=(StreamView(0, 5, 5, 10),))
    other = replace(drawn(".....", fill="wwwww"), id=2)
    assert plan([waiting, other], LIMITS) == [Open(2, 0, 5, Priority.FILL)]
    for lacking in (replace(LIMITS, total=1), replace(LIMITS, per_host=1)):
        assert plan([waiting, other], lacking) == [SetStop(1, 0, 5, may_wait=False)]
    elsewhere = replace(other, host="http://other.test")
    assert plan([waiting, elsewhere], replace(LIMITS, per_host=1)) == [Open(2, 0, 5, Priority.FILL)]


def test_a_claim_that_is_filled_counts_until_its_thread_says_so() -> None:
    view = drawn("DDDDD.....", fill="wwwwwwwwww")
    filled = replace(view, streams=(StreamView(0, 5, 5, 5),))
    assert plan([view], replace(LIMITS, total=1)) == [Open(1, 5, 10, Priority.FILL)]
    assert plan([filled], replace(LIMITS, total=1)) == []


@pytest.mark.parametrize("waiting", [priority for priority in Priority if priority > 0])
def test_nobody_but_a_blocked_reader_ends_a_running_stream(waiting: Priority) -> None:
    running = crowd(hosts="a", priority=Priority.FILL, running=True)
    other = replace(crowd(hosts="a", priority=waiting, running=False)[0], id=7)
    assert plan([*running, other], replace(LIMITS, total=1)) == []


def test_blocked_readers_do_not_take_streams_from_each_other() -> None:
    running = replace(
        crowd(hosts="a", priority=Priority.BLOCKED, running=False)[0],
        wants=(Want(5, 10, Priority.BLOCKED),),
        streams=(StreamView(0, 5, 10, 10),),
    )
    other = replace(crowd(hosts="a", priority=Priority.BLOCKED, running=False)[0], id=7)
    assert plan([running, other], replace(LIMITS, total=1)) == []


def reading(*, blocked: bool, served_s: float, active: bool = True, here: int = 0) -> EntryView:
    """An entry with a stream at byte 4, and a reader that has *here* bytes before it."""
    (view,) = crowd(hosts="a", priority=Priority.FILL, running=False)
    priority = Priority.BLOCKED if blocked else Priority.READ_AHEAD
    return replace(
        view,
        present=RangeSet([(0, 4)]),
        wants=(Want(4 - here, 10 - here, priority, active=active),),
        streams=(StreamView(1, 4, 10, 10, served_s=served_s),),
    )


@pytest.mark.parametrize(
    ("view", "patient", "impatient"),
    [
        # A reader that reads, or waits, keeps its stream for its turn.
        (reading(blocked=False, served_s=1.9), False, False),
        (reading(blocked=True, served_s=1.9), False, False),
        # After that it gives way; but if it waits itself, only to one that has waited long.
        (reading(blocked=False, served_s=2.0), True, True),
        (reading(blocked=True, served_s=2.0), False, True),
        # It has no turn if it is paused, or has half of its window.
        (reading(blocked=False, served_s=0.0, active=False), True, True),
        (reading(blocked=False, served_s=0.0, here=3), True, True),
        (reading(blocked=False, served_s=0.0, here=2), False, False),
    ],
)
@pytest.mark.parametrize("nature", [{}, {"seekable": False}, {"settled": False}])
def test_readers_take_turns_where_there_are_too_few_connections(
    view: EntryView, patient: bool, impatient: bool, nature: dict[str, Any]
) -> None:
    (waiting,) = crowd(hosts="a", priority=Priority.BLOCKED, running=False)
    for is_impatient, gives_way in [(False, patient), (True, impatient)]:
        want = replace(waiting.wants[0], impatient=is_impatient)
        other = replace(waiting, id=7, wants=(want,), **nature)
        actions = plan([view, other], replace(LIMITS, total=1))
        assert (SetStop(view.id, 1, 4, may_wait=False) in actions) == gives_way


def question(number: int, *, impatient: bool = False, since_s: float = 0.0) -> EntryView:
    """An entry of which nothing is known, and that somebody wants to know."""
    (view,) = crowd(hosts="a", priority=Priority.FILL, running=False)
    asked: dict[str, Any] = {"ask_impatient": impatient, "ask_since_s": since_s}
    return replace(view, id=number, wants=(), settled=False, ask=Ask.WANTED, **asked)


def test_a_question_that_has_waited_for_long_ends_a_reader_s_turn() -> None:
    one = replace(LIMITS, total=1)
    for served_s, impatient, gives_way in [(1.9, True, 0), (2.0, False, 0), (2.0, True, 1)]:
        view = reading(blocked=True, served_s=served_s)
        actions = plan([view, question(7, impatient=impatient)], one)
        assert actions == [SetStop(view.id, 1, 4, may_wait=False)][:gives_way]


def test_of_questions_and_readers_that_wait_the_oldest_is_first() -> None:
    (waiting,) = crowd(hosts="a", priority=Priority.BLOCKED, running=False)
    waiting = replace(waiting, id=5, wants=(replace(waiting.wants[0], since_s=2.0),))
    views = [question(7, since_s=3.0), question(8, since_s=1.0), waiting]
    for most, opened in [(1, {8}), (2, {5, 8}), (3, {5, 7, 8})]:
        actions = plan(views, replace(LIMITS, total=most))
        assert {action.entry_id for action in actions} == opened


@pytest.mark.parametrize("nature", [{}, {"seekable": False}, {"settled": False}])
def test_what_rests_takes_no_place_and_begins_nothing(nature: dict[str, Any]) -> None:
    resting, other = crowd(hosts="aa", priority=Priority.PERSON, running=False)
    views = [replace(resting, rests=True, **nature), question(7), replace(other, id=8)]
    views[1] = replace(views[1], rests=True)
    assert plan(views, replace(LIMITS, total=1)) == [Open(8, 0, 10, Priority.PERSON)]


def test_a_stream_of_what_rests_goes_on_and_gives_up_nothing_for_one_that_is_not_begun() -> None:
    view = drawn("..........", ">=========", blocked="......w...", fill="wwwwwwwwww")
    assert planned(view) == [">=====....", "......N==="]
    assert planned(replace(view, rests=True)) == [">========="]


@pytest.mark.parametrize("nature", [{"seekable": False}, {"settled": False}])
def test_a_stream_that_could_not_be_taken_up_again_is_not_ended(nature: dict[str, Any]) -> None:
    (running,) = crowd(hosts="a", priority=Priority.FILL, running=True)
    blocked = replace(crowd(hosts="a", priority=Priority.BLOCKED, running=False)[0], id=7)
    assert plan([replace(running, **nature), blocked], replace(LIMITS, total=1)) == []


def test_a_stream_ahead_in_a_blocked_reader_s_window_does_not_keep_its_byte_waiting() -> None:
    # It brings what the reader will want later; the reader waits for byte 0 now.
    view = drawn("..........", ".....>====", blocked="wwwwwwwwww")
    assert planned(view, replace(LIMITS, per_entry=1)) == ["N========="]


def test_a_claim_is_not_cut_for_a_stream_that_may_not_be_opened() -> None:
    view = drawn("..........", ".>========", blocked=".w........", fill=".wwwwwwwww")
    view = replace(view, wants=(*view.wants, Want(8, 10, Priority.BLOCKED)))
    assert planned(view, replace(LIMITS, per_entry=1)) == [".>========"]


def test_endings_come_before_openings_and_the_urgent_first() -> None:
    entries = crowd(hosts="abcde", priority=Priority.FILL, running=False)
    entries = [
        replace(entry, wants=(Want(0, 10, priority),))
        for entry, priority in zip(entries, reversed(Priority), strict=True)
    ]
    unwanted = replace(crowd(hosts="f", priority=Priority.FILL, running=True)[0], id=9, wants=())
    first, *opened = plan([*entries, unwanted], LIMITS)
    assert first == SetStop(9, 0, 0)
    assert [action.priority for action in opened if isinstance(action, Open)] == list(Priority)


# -- one stream does it all ---------------------------------------------------


def unsettled(present: str, *streams: str, **wants: str) -> EntryView:
    return replace(drawn(present, *streams, **wants), settled=False)


def whole(present: str, *streams: str, **wants: str) -> EntryView:
    return replace(drawn(present, *streams, **wants), seekable=False)


@pytest.mark.parametrize(
    ("view", "after"),
    [
        # Until the first answer has come, there is one question: the most urgent.
        (unsettled("..........", fill="wwwwwwwwww", blocked="....ww...."), ["....N====="]),
        (unsettled("..........", fill="wwwwwwwwww"), ["N========="]),
        (unsettled("..........", "....>=====", blocked="w........."), ["....>====="]),
        (unsettled("..........", "....>====="), []),
        # Answers that can't be joined are one answer, from the front.
        (whole("..........", blocked="......w..."), ["N========="]),
        (whole("DDD.......", blocked="......w..."), ["N========="]),
        (whole("DDD.......", "...>======", blocked="......w..."), ["...>======"]),
        (
            whole("DDD.......", "...>======", blocked="w.........", fill="...wwwwwww"),
            ["...>======"],
        ),
        (whole("DDD.......", "...>======", fill="ww........"), []),
        (whole("DDD.......", "...>======", read_ahead="ww........"), ["...>======"]),
        (whole("DDDDDDDDDD", fill="wwwwwwwwww"), []),
    ],
)
def test_where_answers_cannot_be_joined_there_is_one_stream(
    view: EntryView, after: list[str]
) -> None:
    assert planned(view) == after


# -- a simulation -------------------------------------------------------------

SIZE = 24
FEW = Limits(
    per_entry=3,
    per_host=4,
    total=5,
    for_readers=0.25,
    near_bytes=NEAR,
    near_s=0.25,
    part_bytes=2,
    part_s=0.1,
)
HOSTS = ("a", "a", "b")
ROUNDS = 4


@dataclass
class Stream:
    position: int
    stop: int
    reach: int
    rate_bytes_s: float
    extra: bool


@dataclass
class Entry:
    """An entry of SIZE bytes and its origin, which tells its nature with the first answer."""

    id: int
    host: str
    seekable: bool
    tells_length: bool
    present: RangeSet = field(default_factory=RangeSet)
    wants: list[Want] = field(default_factory=list)
    streams: dict[int, Stream] = field(default_factory=dict)
    leaving: int = 0
    question: Ask = Ask.NO
    settled: bool = False
    length: int = END
    width: int = 1
    skip: int = 0

    def view(self, bears: int) -> EntryView:
        return EntryView(
            id=self.id,
            host=self.host,
            present=self.present.copy(),
            wants=tuple(self.wants),
            streams=tuple(
                StreamView(number, s.position, s.stop, s.reach, s.rate_bytes_s, s.extra)
                for number, s in self.streams.items()
            ),
            length=self.length,
            seekable=self.seekable or not self.settled,
            settled=self.settled,
            ask=self.question,
            width=self.width,
            skip_bytes=self.skip,
            origin=OriginView(rate_bytes_s=40.0, latency_s=0.05, most=bears),
        )

    @property
    def unseen(self) -> int:
        """How many connections it has that no view shows."""
        return self.leaving + (self.settled and self.question is Ask.UNDER_WAY)

    @property
    def is_awaiting(self) -> bool:
        """Whether nothing but an answer can tell what to do."""
        return self.question is not Ask.NO and not self.settled

    @property
    def single(self) -> bool:
        return not (self.settled and self.seekable)

    @property
    def missing(self) -> set[int]:
        wanted = {
            offset for want in self.wants for offset in range(want.start, min(want.stop, SIZE))
        }
        return {offset for offset in wanted if not self.present.contains(offset, offset + 1)}

    def awaited(self, want: Want) -> int | None:
        """The first missing byte of *want*, which a blocked reader waits for."""
        return min(
            (o for o in self.missing if want.start <= o < want.stop),
            default=None,
        )

    def lacks(self, want: Want) -> bool:
        """Whether *want* is still to be served: of what is read ahead, half will do."""
        offset = self.awaited(want)
        if offset is None:
            return False
        half = want.priority is Priority.READ_AHEAD and not self.single
        return not half or offset - want.start < want.stop - offset

    def serves_soon(self, stream: Stream, want: Want) -> bool:
        offset = self.awaited(want)
        if offset is None or not stream.position <= offset < stream.stop:
            return False
        reach = FEW.near_s * stream.rate_bytes_s
        near = reach if want.impatient else max(NEAR, reach)
        return offset - stream.position <= near

    def is_waited_for(self, stream: Stream) -> bool:
        """Whether a blocked reader depends on it; a lone stream is never given up either."""
        blocked = [want for want in self.wants if want.priority is Priority.BLOCKED]
        return self.single or any(self.serves_soon(stream, want) for want in blocked)

    def answer(self, stream: Stream) -> None:
        """Take note of what the first answer tells."""
        self.settled, self.question = True, Ask.NO
        if self.tells_length:
            self.length = SIZE
        if not self.seekable:
            stream.position, stream.stop = 0, END
            stream.reach = END
        stream.reach = min(stream.reach, self.length)
        stream.stop = min(stream.stop, self.length)

    def bring(self, number: int, size: int) -> None:
        """Let the origin send *size* more bytes on a stream."""
        stream = self.streams[number]
        if not self.settled:
            self.answer(stream)
        stop = min(stream.position + size, stream.stop, SIZE)
        if stop > stream.position:
            self.present.add(stream.position, stop)
            stream.position = stop
        if stream.position >= SIZE:
            self.length = SIZE  # the body has ended: that is how long it was
        if stream.position >= min(stream.stop, self.length):
            del self.streams[number]


def want(start: int, size: int | None, priority: Priority, impatient: bool) -> Want:
    stop = END if size is None else start + size
    return Want(start, stop, priority, impatient and priority is Priority.BLOCKED)


wants = st.builds(
    want,
    st.integers(0, SIZE - 1),
    st.none() | st.integers(1, 12),
    st.sampled_from(Priority),
    st.booleans(),
)


class Conducting(RuleBasedStateMachine):
    """Wants come and go, streams bring bytes; after every step the plan is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.numbers = count(1)
        self.bears = dict.fromkeys(HOSTS, END)

    @precondition(lambda self: len(self.entries) < len(HOSTS))
    @rule(seekable=st.booleans(), tells_length=st.booleans(), want=wants)
    def begin(self, seekable: bool, tells_length: bool, want: Want) -> None:
        number = len(self.entries)
        self.entries.append(Entry(number, HOSTS[number], seekable, tells_length, wants=[want]))
        self.carry_out()

    @precondition(lambda self: len(self.entries) < len(HOSTS))
    @rule(
        runs=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 6)), max_size=3),
        new=st.lists(wants, min_size=1, max_size=3),
    )
    def resume(self, runs: list[tuple[int, int]], new: list[Want]) -> None:
        """An entry of which an earlier process has stored parts."""
        present = RangeSet((start, min(start + size, SIZE)) for start, size in runs)
        number = len(self.entries)
        self.entries.append(
            Entry(
                number,
                HOSTS[number],
                seekable=True,
                tells_length=True,
                present=present,
                wants=new,
                settled=True,
                length=SIZE,
            )
        )
        self.carry_out()

    @precondition(lambda self: self.entries)
    @rule(which=st.integers(0, 2), want=wants)
    def ask(self, which: int, want: Want) -> None:
        entry = self.entries[which % len(self.entries)]
        entry.wants.append(want)
        self.carry_out()

    @precondition(lambda self: any(entry.wants for entry in self.entries))
    @rule(which=st.integers(0, 8))
    def leave(self, which: int) -> None:
        asked = [(entry, want) for entry in self.entries for want in entry.wants]
        entry, want = asked[which % len(asked)]
        entry.wants.remove(want)
        self.carry_out()

    @precondition(lambda self: self.entries)
    @rule(which=st.integers(0, 2))
    def question(self, which: int) -> None:
        """Somebody must know whether what is stored is current, or what there is at all."""
        entry = self.entries[which % len(self.entries)]
        if entry.question is Ask.NO:
            is_asked = entry.streams and not entry.settled
            entry.question = Ask.UNDER_WAY if is_asked else Ask.WANTED
        self.carry_out()

    @precondition(lambda self: any(entry.question is not Ask.NO for entry in self.entries))
    @rule(which=st.integers(0, 2))
    def reply(self, which: int) -> None:
        """What is stored is current."""
        asking = [entry for entry in self.entries if entry.question is not Ask.NO]
        entry = asking[which % len(asking)]
        if entry.settled:
            entry.question = Ask.NO
        self.carry_out()

    @precondition(lambda self: any(entry.streams for entry in self.entries))
    @rule(which=st.integers(0, 8), size=st.integers(0, 9), rate=st.sampled_from([0.0, 40.0]))
    def bring(self, which: int, size: int, rate: float) -> None:
        running = [(entry, number) for entry in self.entries for number in entry.streams]
        entry, number = running[which % len(running)]
        entry.streams[number].rate_bytes_s = rate
        entry.bring(number, size)
        self.carry_out()

    @precondition(lambda self: self.entries)
    @rule(which=st.integers(0, 2), width=st.integers(1, 4))
    def widen(self, which: int, width: int) -> None:
        """Connections have been found worth while, or not."""
        self.entries[which % len(self.entries)].width = width
        self.carry_out()

    @precondition(lambda self: self.entries)
    @rule(which=st.integers(0, 2), size=st.integers(0, 3))
    def spare_requests(self, which: int, size: int) -> None:
        """So much may be received once more from now on."""
        self.entries[which % len(self.entries)].skip = size
        self.carry_out()

    @precondition(lambda self: self.entries)
    @rule(host=st.sampled_from(HOSTS), most=st.sampled_from([1, 2, 3, END]))
    def bear(self, host: str, most: int) -> None:
        """An origin has refused one more connection than there were, or bears it again."""
        entries = [entry for entry in self.entries if entry.host == host]
        standing = sum(len(entry.streams) + entry.unseen - entry.leaving for entry in entries)
        self.bears[host] = max(most, standing)
        self.carry_out()

    @precondition(lambda self: any(entry.leaving for entry in self.entries))
    @rule(which=st.integers(0, 2))
    def let_go(self, which: int) -> None:
        """The thread of a stream that was given up comes to its end."""
        leaving = [entry for entry in self.entries if entry.leaving]
        leaving[which % len(leaving)].leaving -= 1
        self.carry_out()

    def plan(self) -> list[Action]:
        leaving = [
            Leaving(entry.id, entry.host) for entry in self.entries for _ in range(entry.unseen)
        ]
        views = [entry.view(self.bears[entry.host]) for entry in self.entries]
        return plan(views, FEW, leaving)

    def carry_out(self) -> None:
        """Do what is planned until nothing is, which takes no more than a few rounds."""
        for _ in range(ROUNDS):
            actions = self.plan()
            if not actions:
                break
            for action in actions:
                self.do(action)
            self.check_limits()
            for entry in self.entries:
                self.check_claims(entry)
        else:
            raise AssertionError("the plan is never content with its own work")
        for entry in self.entries:
            self.check_question(entry)
            self.check_blocked_readers(entry)

    def do(self, action: Action) -> None:
        entry = self.entries[action.entry_id]
        if isinstance(action, Open):
            self.open(entry, action)
            return
        stream = entry.streams[action.stream_id]
        assert action.stop <= stream.reach
        stream.stop = action.stop
        if stream.stop <= stream.position:
            del entry.streams[action.stream_id]
            entry.leaving += 1
            if entry.is_awaiting:
                entry.question = Ask.WANTED

    def open(self, entry: Entry, action: Open) -> None:
        if action.asks:
            assert entry.question is Ask.WANTED
            entry.question = Ask.UNDER_WAY
            if entry.settled:
                return
            action = replace(action, start=0, stop=END)
        if entry.settled and not entry.seekable:
            # It begins again from the front, and what was stored is dropped.
            assert not entry.streams
            assert (action.start, action.stop) == (0, entry.length)
            entry.present.clear()
        number = next(self.numbers)
        entry.streams[number] = Stream(action.start, action.stop, action.stop, 0.0, action.extra)

    def check_limits(self) -> None:
        hosts: Counter[str] = Counter()
        for entry in self.entries:
            assert len(entry.streams) + entry.unseen <= FEW.per_entry
            hosts[entry.host] += len(entry.streams) + entry.unseen
        assert hosts.total() <= FEW.total
        assert all(number <= FEW.per_host for number in hosts.values())
        running = Counter(entry.host for entry in self.entries for _ in entry.streams)
        assert all(number <= self.bears[host] for host, number in running.items())

    def check_claims(self, entry: Entry) -> None:
        """No byte is claimed twice, none that nobody wants, none that is stored.

        But for as few stored bytes in between as may be received again.
        """
        if entry.single:
            assert len(entry.streams) <= 1
            is_read = any(want.priority <= Priority.READ_AHEAD for want in entry.wants)
            assert bool(entry.streams) <= bool(entry.missing or is_read or entry.is_awaiting)
            return
        claimed: Counter[int] = Counter()
        missing = entry.missing
        for stream in entry.streams.values():
            stop = min(stream.stop, SIZE)
            claimed.update(range(stream.position, stop))
            assert stop - 1 in missing
            for run in entry.present.intersection(stream.position, stop):
                assert run.size <= entry.skip
        assert max(claimed.values(), default=1) == 1
        stored = {offset for run in entry.present for offset in range(*run)}
        assert set(claimed) <= missing | stored

    def check_question(self, entry: Entry) -> None:
        """It is asked at once, if there may be one more connection."""
        if entry.question is Ask.WANTED:
            assert self.is_full(entry), f"nobody asks about {entry}"

    def check_blocked_readers(self, entry: Entry) -> None:
        """Each is served soon, or every connection there may be is needed by another one."""
        if entry.is_awaiting:
            return
        for want in entry.wants:
            if want.priority is not Priority.BLOCKED or entry.awaited(want) is None:
                continue
            if entry.single and entry.streams:
                continue
            if any(entry.serves_soon(stream, want) for stream in entry.streams.values()):
                continue
            needed = Counter(
                other.id
                for other in self.entries
                for stream in other.streams.values()
                if other.is_waited_for(stream)
            )
            needed += Counter({other.id: other.unseen - other.leaving for other in self.entries})
            host = sum(needed[e.id] for e in self.entries if e.host == entry.host)
            assert (
                needed[entry.id] == FEW.per_entry
                or host == min(FEW.per_host, self.bears[entry.host])
                or needed.total() == FEW.total
                or self.has_to_wait(entry)
            ), f"nobody serves {want}"

    def has_to_wait(self, entry: Entry) -> bool:
        """Whether a connection that is about to be gone stands in the way of another one."""
        return any(other.leaving for scope in self.full_scopes(entry) for other in scope)

    def is_full(self, entry: Entry) -> bool:
        """Whether there are as many connections as there may be."""
        return any(self.full_scopes(entry))

    def full_scopes(self, entry: Entry) -> list[list[Entry]]:
        """Return whose connections together are as many as some limit lets them be."""
        scopes = [
            ([entry], FEW.per_entry),
            (
                [other for other in self.entries if other.host == entry.host],
                min(FEW.per_host, self.bears[entry.host]),
            ),
            (self.entries, FEW.total),
        ]
        return [
            scope
            for scope, limit in scopes
            if sum(len(other.streams) + other.unseen for other in scope) >= limit
        ]

    def teardown(self) -> None:
        """Let the streams bring their bytes: it ends, with all that is wanted fetched."""
        for turn in range(1000):
            for entry in self.entries:
                entry.leaving = 0
                if entry.settled:
                    entry.question = Ask.NO
            self.carry_out()
            running = [(entry, number) for entry in self.entries for number in entry.streams]
            if not running:
                break
            entry, number = running[turn * 7 % len(running)]
            entry.bring(number, 1 + turn % 3)
            self.carry_out()
        else:
            raise AssertionError("it never comes to rest")
        assert [want for entry in self.entries for want in entry.wants if entry.lacks(want)] == []


TestConducting = Conducting.TestCase
TestConducting.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)
