"""How a response came about, told in the words of RFC 9211; and what else hops tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cachefsm import Cache
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually
from tests.support.clients import ask, blocked, serve_mounted
from tests.support.faults import dated, extra_headers, hold_after, hold_before_headers, status
from tests.support.origin import Exchange, Origin, Resource
from tests.support.threads import in_thread

SIZE = 100_000
FRESH = ("Cache-Control", "max-age=60")
FAR = {"Range": "bytes=90000-90009"}


@pytest.fixture
def clock(origin: Origin) -> Clock:
    """The clock of the cache and of the origin."""
    clock = Clock()
    origin.script(dated(clock), times=None)
    return clock


@pytest.fixture
def cache(open_cache: OpenCache, clock: Clock) -> Cache:
    return open_cache(clock=clock, fill="requested")


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    with serve_mounted(cache, origin) as running:
        yield running


@pytest.fixture
def url(proxy: Server, origin: Origin) -> str:
    origin.put("/film", Resource(SIZE, headers=(FRESH,)))
    return f"{proxy.url}m/film"


def told(url: str, **fields: str) -> str | None:
    """Return what the response to a request with *fields* says, in short."""
    reply = ask(url, {name.replace("_", "-"): value for name, value in fields.items()})
    return (reply["Cache-Status"] or "").removeprefix("cachefsm; ")


def test_a_miss_is_stored_and_then_a_hit(url) -> None:
    assert [told(url) for _ in range(2)] == ["fwd=miss; stored", "hit"]
    assert told(url, Range="bytes=5-9") == "hit"
    assert told(url, If_None_Match='"v0"') == "hit"


def test_a_part_that_is_missing_is_a_partial_hit(url) -> None:
    assert told(url, Range="bytes=0-9") == "fwd=miss; stored"
    assert told(url, **FAR) == "fwd=partial; stored"
    assert told(url, **FAR) == "hit"


def test_what_is_stale_is_asked_about(origin, clock, url) -> None:
    told(url)
    clock.now_s += 61
    assert told(url) == "fwd=stale; fwd-status=304"
    clock.now_s += 61
    origin.put("/film", Resource(SIZE, headers=(FRESH,), version=1))
    assert told(url) == "fwd=stale; stored"
    clock.now_s += 61
    origin.script(status(503))
    assert told(url) == "fwd=stale; fwd-status=503; detail=stale"
    origin.script(Exchange.reset)
    assert told(url) == "fwd=stale; detail=stale"


def test_what_the_client_wants_no_older_is_asked_about(clock, url) -> None:
    told(url)
    clock.now_s += 5
    assert told(url, Cache_Control="no-cache") == "fwd=request; fwd-status=304"
    clock.now_s += 5
    assert told(url, Cache_Control="max-age=1") == "fwd=request; fwd-status=304"
    clock.now_s += 61
    assert told(url, Cache_Control="no-cache") == "fwd=stale; fwd-status=304"


def test_what_may_be_served_stale_says_by_how_much(clock, url) -> None:
    told(url)
    clock.now_s += 70
    assert told(url, Cache_Control="max-stale") == "hit; ttl=-10"


def test_what_is_not_stored_does_not_say_so(origin, url) -> None:
    origin.put("/film", Resource(SIZE, headers=(("Cache-Control", "no-store"),)))
    assert [told(url) for _ in range(2)] == ["fwd=miss", "fwd=bypass"]


def test_what_is_no_file_says_what_the_origin_said(origin, url) -> None:
    origin.script(status(404))
    assert told(url) == "fwd=miss; fwd-status=404"
    assert told(url) == "hit"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "stale"])
def test_who_waits_for_somebody_elses_answer_says_so(origin, clock, proxy, url, warm: bool) -> None:
    if warm:
        told(url)
        clock.now_s += 61
    hold = origin.script(hold_before_headers())
    first = in_thread(told, url)
    assert hold.reached.wait(WAIT_S)
    second = in_thread(told, url)
    eventually(lambda: blocked(proxy) == 2)
    hold.release()
    said = "fwd=stale; fwd-status=304" if warm else "fwd=miss; stored"
    assert first.result(WAIT_S) == said
    assert second.result(WAIT_S) == f"{said}; collapsed"


def test_who_joins_a_transfer_says_so(origin, proxy, url) -> None:
    hold = origin.script(hold_after(SIZE // 2))
    first = in_thread(told, url)
    assert hold.reached.wait(WAIT_S)
    second = in_thread(told, url, Range=f"bytes={SIZE // 2}-{SIZE // 2 + 9}")
    eventually(lambda: blocked(proxy) == 2)
    hold.release()
    assert first.result(WAIT_S) == "fwd=miss; stored"
    assert second.result(WAIT_S) == "fwd=partial; stored; collapsed"


def test_what_other_caches_said_stays(origin, clock, url) -> None:
    origin.script(extra_headers(("Cache-Status", "edge; hit")))
    for last in ("cachefsm; fwd=miss; stored", "cachefsm; hit"):
        said = [value for name, value in ask(url).fields if name == "Cache-Status"]
        assert said == ["edge; hit", last]


# -- hops ----------------------------------------------------------------------------


def test_each_side_is_told_of_every_hop(origin, cache: Cache, url) -> None:
    origin.script(extra_headers(("Via", "1.0 fred, 1.1 ethel")))
    for _ in range(2):
        reply = ask(url, {"Via": "1.0 lucy"})
        via = [value for name, value in reply.fields if name == "Via"]
        assert via == ["1.0 fred, 1.1 ethel", cache.via]
    assert origin.requests[0].header("Via") == f"1.0 lucy, {cache.via}"


def test_every_kind_of_answer_tells_of_this_hop(origin, cache: Cache, url) -> None:
    asked = [{}, {"Range": "bytes=0-9"}, {"If-None-Match": '"v0"'}, {"If-Match": '"x"'}]
    origin.script(status(404))
    for fields in [{}, {"Cache-Control": "no-cache"}, *asked]:
        assert ask(url, fields)["Via"] == cache.via


def test_fields_that_come_more_than_once_stay_apart(origin, url) -> None:
    links = [("Link", "</a>; rel=next"), ("Link", "</b>; rel=prev"), ("X-A", "1, 2"), ("X-A", "3")]
    origin.script(extra_headers(*links))
    for _ in range(2):
        assert [field for field in ask(url).fields if field in links] == links
