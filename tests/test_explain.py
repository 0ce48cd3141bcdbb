"""Where a byte is, when it will come, or why nobody fetches it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.errors import CacheError, UsageError
from cachefsm.explain import Reading, Situation, explain
from cachefsm.picture import EntryView, Limit, OriginView, Priority, StreamView, Want
from cachefsm.ranges import END, RangeSet
from cachefsm.scheduler import Limits
from cachefsm.states import DownloadState
from tests.support.caches import HASTY, WAIT_S, OpenCache, eventually, fetch
from tests.support.faults import hold_after, hold_before_headers, status
from tests.support.origin import Origin, Resource
from tests.support.threads import in_thread

MIB = 1 << 20
LENGTH = 1000


def view(*streams: StreamView, present: tuple[tuple[int, int], ...] = ((0, 100),)) -> EntryView:
    return EntryView(
        id=1,
        host="http://origin.test",
        present=RangeSet(present),
        wants=(Want(0, 500, Priority.FILL),),
        streams=streams,
        length=LENGTH,
        origin=OriginView(rate_bytes_s=50.0, latency_s=2.0),
    )


def stream(position: int, stop: int, rate_bytes_s: float = 10.0) -> StreamView:
    return StreamView(7, position, stop, stop, rate_bytes_s)


DOWNLOADING = Situation(view(stream(100, 300)), DownloadState.DOWNLOADING)


def told(situation: Situation, offset: int) -> tuple[str, float | None]:
    found = explain(situation, offset)
    return found["status"], found["in_s"]


# -- one byte ----------------------------------------------------------------------


def test_a_stored_byte_is_here() -> None:
    assert told(DOWNLOADING, 99) == ("here", None)


def test_a_promised_byte_comes_when_its_stream_has_brought_those_before() -> None:
    found = explain(DOWNLOADING, 149)
    assert (found["status"], found["in_s"]) == ("coming", 5.0)
    assert found["stream"] == {
        "id": 7,
        "position": 100,
        "stop": 300,
        "rate_bytes_s": 10,
        "distance_bytes": 49,
    }
    assert found["wanted_by"] == [{"priority": "fill", "start": 0, "stop": 500, "waits": False}]


def test_a_stream_that_stands_still_brings_it_nobody_knows_when() -> None:
    standing = replace(DOWNLOADING, view=view(stream(100, 300, 0.0)))
    assert told(standing, 200) == ("coming", None)


def test_a_stream_that_a_rate_holds_back_is_said_to_be() -> None:
    for rate in (0.0, 10.0):
        limited = replace(DOWNLOADING, view=view(stream(100, 300, rate)), held_back={7: 0.0})
        found = explain(limited, 149)
        assert (found["status"], "limit on the rate" in found["why"]) == ("coming", True)


@pytest.mark.parametrize("measured", [0.0, 0.3, 10.0, 1e6])
def test_what_a_low_rate_holds_back_comes_at_that_rate(measured: float) -> None:
    limited = replace(DOWNLOADING, view=view(stream(100, 300, measured)), held_back={7: 2.0})
    assert told(limited, 149) == ("coming", 25.0)


@pytest.mark.parametrize(("measured", "in_s"), [(0.0, 2.0), (2000.0, 5.0), (1e6, 2.0)])
def test_what_shares_a_rate_comes_as_it_has_come_and_no_faster(
    measured: float, in_s: float
) -> None:
    limited = replace(
        DOWNLOADING,
        view=replace(view(stream(100, 20_000, measured)), length=20_000),
        held_back={7: 5000.0},
    )
    assert told(limited, 10_099) == ("coming", in_s)


def test_before_the_answer_what_is_known_of_the_origin_is_expected() -> None:
    asked = replace(DOWNLOADING, view=view(stream(100, 300, 0.0)), unanswered=frozenset({7}))
    assert told(asked, 149) == ("coming", 3.0)


@pytest.mark.parametrize(
    ("changes", "offset", "status"),
    [
        ({}, 1000, "past_end"),
        ({}, 600, "unwanted"),
        ({}, 400, "queued"),
        ({"held": True}, 400, "held"),
        ({"held": True}, 50, "here"),
        ({"state": DownloadState.FAILED, "reason": "the origin answered 404"}, 400, "failed"),
        ({"resting_s": 3.0, "cause": "the origin answered 503"}, 400, "resting"),
        ({"denied": ((300, 500, Limit.HOST),)}, 400, "waiting"),
        ({"denied": ((300, 350, Limit.HOST),)}, 400, "queued"),
        ({"closed": True}, 400, "closed"),
        ({"renewing": True}, 400, "renewing"),
        ({"renewing": True}, 600, "unwanted"),
        ({"locked": True}, 400, "locked"),
        ({"locked": True}, 600, "unwanted"),
    ],
)
def test_why_nobody_fetches_a_byte(changes: dict[str, Any], offset: int, status: str) -> None:
    situation = replace(DOWNLOADING, **changes)
    found = explain(situation, offset)
    assert found["status"] == status
    assert found["stream"] is None
    assert found["in_s"] is None
    for words in (changes.get("reason"), changes.get("cause")):
        assert words is None or words in found["why"]


@pytest.mark.parametrize("limit", Limit)
def test_every_limit_is_named(limit: Limit) -> None:
    situation = replace(DOWNLOADING, denied=((300, 500, limit),))
    why = {explain(situation, 400)["why"]}
    others = {
        explain(replace(situation, denied=((300, 500, other),)), 400)["why"]
        for other in Limit
        if other is not limit
    }
    assert not why & others


def test_before_the_first_answer_all_but_the_first_question_is_unsettled() -> None:
    new = replace(view(present=()), settled=False, length=END)
    assert told(replace(DOWNLOADING, view=new), 10) == ("unsettled", None)


# -- will a reader stall -----------------------------------------------------------


def outlook(situation: Situation, reading: Reading) -> tuple[bool | None, float | None]:
    (found,) = explain(replace(situation, readings=(reading,)), 0)["readers"]
    return found["stalls"], found["stalls_in_s"]


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (Reading(0, 5.0), (None, None)),  # it reaches 300 in time; the rest is nobody's yet
        (Reading(0, 20.0), (True, 10.0)),  # 10 more bytes a second than come, 100 ahead
        (Reading(50, 20.0), (True, 5.0)),
        (Reading(100, 5.0), (True, 0.0)),  # nothing is there yet
        (Reading(100, 5.0, waits=True), (True, 0.0)),
        (Reading(0, 0.0), (None, None)),  # paused, or just come
        (Reading(600, 5.0), (True, 0.0)),  # what nobody wants does not come
    ],
)
def test_whether_and_when_a_reader_stalls(
    reading: Reading, expected: tuple[bool | None, float | None]
) -> None:
    stalls, in_s = outlook(DOWNLOADING, reading)
    assert stalls is expected[0]
    assert in_s == (None if expected[1] is None else pytest.approx(expected[1], abs=0.5))


def test_a_reader_for_whom_all_comes_in_time_does_not_stall() -> None:
    whole = replace(DOWNLOADING, view=view(stream(100, LENGTH)))
    assert outlook(whole, Reading(0, 5.0)) == (False, None)
    stored = replace(DOWNLOADING, view=view(present=((0, LENGTH),)))
    assert outlook(stored, Reading(0, 500.0)) == (False, None)


def test_a_reader_passes_over_what_several_streams_bring() -> None:
    two = view(
        StreamView(1, 100, 300, 300, 40.0),
        StreamView(2, 320, LENGTH, LENGTH, 5.0),
        present=((0, 100), (300, 320)),
    )
    # In 32 s the reader is at 320, the second one at 480; it is caught up with later.
    stalls, in_s = outlook(replace(DOWNLOADING, view=two), Reading(0, 10.0))
    assert stalls is True
    assert in_s == pytest.approx(64, abs=1)


@given(
    position=st.integers(0, 100),
    pace=st.floats(0.1, 1e3),
    at=st.integers(100, 900),
    rate=st.floats(0.1, 1e3),
)
def test_a_reader_stalls_where_it_catches_up_with_its_stream(
    position: int, pace: float, at: int, rate: float
) -> None:
    there = replace(DOWNLOADING, view=view(stream(at, LENGTH, rate), present=((0, at),)))
    stalls, in_s = outlook(there, Reading(position, pace))
    last = LENGTH - 1
    in_time = (last + 1 - at) / rate <= (last - position) / pace
    assert stalls is not in_time or (at + 1 - at) / rate > (at - position) / pace
    if stalls:
        assert in_s is not None
        met = position + pace * in_s
        assert at + rate * in_s <= met + max(2.0, rate * 0.01, pace * 0.01) + 1


# -- of real entries ---------------------------------------------------------------


def serve(origin: Origin, size: int = 4 * MIB, path: str = "/film") -> str:
    origin.put(path, Resource(size))
    return origin.url(path)


def test_an_entry_tells_what_becomes_of_its_bytes(open_cache: OpenCache, origin: Origin) -> None:
    cache = open_cache(fill="requested", read_ahead=0)
    film = cache.entry(serve(origin))
    assert film.explain(0)["status"] == "unwanted"
    hold = origin.script(hold_after(MIB))
    reading = in_thread(fetch, cache, film, 0, 2 * MIB)
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: film.has(0, MIB))
    assert film.explain(0)["status"] == "here"
    coming = film.explain(MIB + 10)
    assert coming["status"] == "coming"
    assert coming["stream"]["distance_bytes"] == 10
    eventually(lambda: film.explain(MIB)["readers"][0]["waits"])
    (reader,) = film.explain(MIB)["readers"]
    assert (reader["position"], reader["stalls"], reader["stalls_in_s"]) == (MIB, True, 0.0)
    assert film.explain(3 * MIB)["status"] == "unwanted"
    assert film.explain(4 * MIB)["status"] == "past_end"
    hold.release()
    reading.result(WAIT_S)
    with pytest.raises(UsageError):
        film.explain(-1)


def test_a_paused_and_a_failed_entry_say_so(open_cache: OpenCache, origin: Origin) -> None:
    cache = open_cache(retries=HASTY)
    film = cache.entry(serve(origin))
    hold = origin.script(hold_after(1000))
    film.start()
    assert hold.reached.wait(WAIT_S)
    film.pause()
    assert film.explain(MIB)["status"] == "held"
    origin.script(status(404), path="/gone", times=None)
    gone = cache.entry(serve(origin, path="/gone"))
    with pytest.raises(CacheError):
        fetch(cache, gone)
    found = gone.explain(0)
    assert found["status"] == "failed"
    assert "404" in found["why"]
    assert found["retry_at"] is not None


def test_an_entry_that_waits_for_a_connection_names_the_limit(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(total=1))
    hold = origin.script(hold_after(1000), path="/first")
    first, second = (cache.entry(serve(origin, path=path)) for path in ("/first", "/second"))
    first.start()
    assert hold.reached.wait(WAIT_S)
    second.start()
    eventually(lambda: second.explain(0)["status"] == "waiting")
    assert second.explain(0)["why"] == "all connections that there may be for it are in use"
    hold.release()
    assert second.wait_complete(WAIT_S)
    assert second.explain(0)["status"] == "here"


def test_a_download_that_a_rate_holds_back_names_the_limit(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limit_background_rate=1)
    film = cache.entry(serve(origin))
    film.start(priority="prefetch")
    eventually(lambda: "limit on the rate" in film.explain(MIB)["why"])
    cache.set_rate_limits(background_rate=0)
    assert film.wait_complete(WAIT_S)


def test_a_request_that_is_not_answered_yet_is_under_way(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache()
    film = cache.entry(serve(origin))
    hold = origin.script(hold_before_headers())
    film.start()
    assert hold.reached.wait(WAIT_S)
    found = film.explain(10)
    assert (found["status"], found["in_s"]) == ("coming", None)
    assert "not answered" in found["why"]
    hold.release()


def test_a_reader_of_what_is_all_there_wants_nothing(open_cache: OpenCache, origin: Origin) -> None:
    cache = open_cache()
    film = cache.entry(serve(origin))
    film.start()
    assert film.wait_complete(WAIT_S)
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.available(0, 10) == 10
        assert film.explain(0)["readers"] == []
