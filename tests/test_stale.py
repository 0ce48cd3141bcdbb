"""What is stored but stale: served meanwhile, served in need, or not at all. RFC 9111 §4.2.4."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urljoin

import pytest

from cachefsm import Cache
from cachefsm.access import Mount, Rules, parse_mount
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually
from tests.support.clients import ask, at_once, blocked, connect, opened, readers, serve_mounted
from tests.support.faults import (
    dated,
    hold_after,
    hold_before_headers,
    reset_after,
    status,
)
from tests.support.origin import Exchange, Origin, Resource, content, pattern
from tests.support.threads import in_thread

SIZE = 100_000


@pytest.fixture
def clock(origin: Origin) -> Clock:
    """The clock of the cache and of the origin."""
    clock = Clock()
    origin.script(dated(clock), times=None)
    return clock


@pytest.fixture
def cache(open_cache: OpenCache, clock: Clock) -> Cache:
    return open_cache(clock=clock)


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    with serve_mounted(cache, origin) as running:
        yield running


@pytest.fixture
def url(proxy: Server) -> str:
    return f"{proxy.url}m/film"


def film(control: str, *, version: int = 0, size: int = SIZE, etag: str | None = '"v{version}"'):
    return Resource(size, headers=(("Cache-Control", control),), version=version, etag=etag)


def keep(origin: Origin, clock: Clock, url: str, control: str = "max-age=60") -> None:
    """Have the whole film stored, and let it grow a second too old."""
    origin.put("/film", film(control))
    assert ask(url).body == content(0, SIZE)
    # A client has the last byte before that is on the disk.
    listed = urljoin(url, "/-/entries")
    eventually(lambda: all(entry["state"] == "complete" for entry in ask(listed).json()))
    clock.now_s += 61


# -- the origin cannot answer ------------------------------------------------------

NEED = "cachefsm; fwd=stale; detail=stale"


@pytest.mark.parametrize("trouble", [Exchange.close, Exchange.reset], ids=["closes", "resets"])
def test_what_is_stored_stands_in_for_an_origin_that_breaks_off(
    origin, clock, url, trouble
) -> None:
    keep(origin, clock, url)
    origin.script(trouble, times=None)
    reply = ask(url)
    assert (reply.status, reply.body) == (200, content(0, SIZE))
    assert (reply["Cache-Status"], reply["Age"]) == (NEED, "61")


def test_what_is_stored_stands_in_for_an_origin_that_is_gone(
    origin, clock, cache: Cache, url
) -> None:
    keep(origin, clock, url)
    origin.leave()
    for _ in range(2):
        assert (ask(url).body, ask(url)["Cache-Status"]) == (content(0, SIZE), NEED)
    assert cache.find(1).state == "complete"


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_what_is_stored_stands_in_for_an_origin_in_trouble(origin, clock, url, code: int) -> None:
    keep(origin, clock, url)
    origin.script(status(code, ("Retry-After", "60")))
    reply = ask(url)
    assert (reply.status, reply.body) == (200, content(0, SIZE))
    assert reply["Cache-Status"] == f"cachefsm; fwd=stale; fwd-status={code}; detail=stale"
    assert ask(url)["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=304"


def test_what_is_stored_stands_in_for_an_origin_that_is_silent(
    origin, clock, open_cache: OpenCache
) -> None:
    with open_cache(clock=clock) as patient, serve_mounted(patient, origin) as proxy:
        keep(origin, clock, f"{proxy.url}m/film")
    with serve_mounted(open_cache(clock=clock, first_byte_timeout=0.1), origin) as proxy:
        url = f"{proxy.url}m/film"
        origin.script(hold_before_headers())
        reply = ask(url)
        assert (reply.body, reply["Cache-Status"]) == (content(0, SIZE), NEED)
        eventually(lambda: readers(proxy) == 0)


def test_a_range_of_what_is_stored_stands_in_too(origin, clock, url) -> None:
    keep(origin, clock, url)
    origin.leave()
    reply = ask(url, {"Range": "bytes=50-59"})
    assert (reply.status, reply.body) == (206, content(50, 60))


@pytest.mark.parametrize("control", ["must-revalidate", "no-cache"])
def test_what_must_be_confirmed_is_not_served_when_it_cannot_be(
    origin, clock, url, control: str
) -> None:
    keep(origin, clock, url, f"max-age=60, {control}")
    origin.script(Exchange.reset, times=None)
    reply = ask(url)
    assert reply.status == 504
    assert ask(url, {"Cache-Control": "max-stale"}).status == 504


def test_what_must_be_confirmed_is_served_while_it_is_fresh(origin, clock, url) -> None:
    keep(origin, clock, url, "max-age=62, must-revalidate")
    origin.leave()
    assert ask(url)["Cache-Status"] == "cachefsm; hit"


@pytest.mark.parametrize(("late_s", "code"), [(0, 200), (30, 503)])
def test_stale_if_error_says_for_how_long_it_stands_in(
    origin, clock, url, late_s: int, code: int
) -> None:
    keep(origin, clock, url, "max-age=60, stale-if-error=30")
    clock.now_s += late_s
    origin.script(status(503))
    assert ask(url).status == code


def test_a_client_may_say_for_how_long_it_stands_in(origin, clock, url) -> None:
    keep(origin, clock, url)
    clock.now_s += 30
    origin.script(status(503), times=None)
    assert ask(url, {"Cache-Control": "stale-if-error=30"}).status == 503
    assert ask(url, {"Cache-Control": "stale-if-error=31"}).status == 200


def test_a_refusal_is_no_trouble(origin, clock, url) -> None:
    keep(origin, clock, url)
    origin.script(status(404))
    assert ask(url).status == 404


# -- stale-while-revalidate ----------------------------------------------------------

MEANWHILE = "max-age=60, stale-while-revalidate=30"


def test_a_stale_response_is_served_while_the_origin_is_asked(origin, clock, url) -> None:
    keep(origin, clock, url, MEANWHILE)
    hold = origin.script(hold_before_headers())
    reply = ask(url)
    assert (reply.body, reply["Age"]) == (content(0, SIZE), "61")
    assert reply["Cache-Status"] == "cachefsm; hit; ttl=-1"
    assert hold.reached.wait(WAIT_S)
    assert ask(url).body == content(0, SIZE)  # and nobody asks once more
    hold.release()
    eventually(lambda: ask(url)["Cache-Status"] == "cachefsm; hit")
    assert len(origin.requests) == 2


def test_the_answer_meanwhile_replaces_what_is_stored(origin, clock, url) -> None:
    keep(origin, clock, url, MEANWHILE)
    origin.put("/film", film(MEANWHILE, version=1))
    ask(url)
    eventually(lambda: ask(url).body == pattern(1)(0, SIZE))
    assert len(origin.requests) == 2


def test_no_answer_meanwhile_changes_nothing(origin, clock, cache: Cache, url) -> None:
    keep(origin, clock, url, MEANWHILE)
    origin.script(Exchange.reset, times=None)
    eventually(lambda: ask(url).body == content(0, SIZE) and len(origin.requests) > 3)
    assert cache.find(1).state == "complete"


def test_an_answer_meanwhile_that_may_not_be_stored_is_let_go(origin, clock, cache, url) -> None:
    keep(origin, clock, url, MEANWHILE)
    origin.put("/film", film("no-store", version=1, size=8 << 20))
    assert ask(url).body == content(0, SIZE)
    origin.wait_until(lambda: len(origin.requests) == 2 and origin.open_connections == 0)
    assert cache.find(1).downloaded_bytes == 0


def test_past_its_time_a_stale_response_waits_for_the_answer(origin, clock, url) -> None:
    keep(origin, clock, url, MEANWHILE)
    clock.now_s += 30
    origin.put("/film", film(MEANWHILE, version=1))
    assert ask(url).body == pattern(1)(0, SIZE)


# -- many ask ------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1], ids=["current", "changed"])
def test_clients_of_one_stale_film_share_one_question(
    origin, clock, proxy: Server, url, version: int
) -> None:
    keep(origin, clock, url)
    origin.put("/film", film("max-age=60", version=version))
    hold = origin.script(hold_before_headers())
    clients = [in_thread(ask, url) for _ in range(8)]
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: blocked(proxy) == 8)
    hold.release()
    replies = [client.result(WAIT_S) for client in clients]
    assert {reply.body for reply in replies} == {bytes(pattern(version)(0, SIZE))}
    assert len(origin.requests) == 2
    told = sorted(reply["Cache-Status"] or "" for reply in replies)
    assert sum("collapsed" in words for words in told) == 7


def test_a_client_that_leaves_takes_the_answer_from_nobody(origin, clock, proxy, url) -> None:
    keep(origin, clock, url)
    hold = origin.script(hold_before_headers())
    first = connect(url)
    first.sendall(b"GET /m/film HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert hold.reached.wait(WAIT_S)
    second = in_thread(ask, url)
    eventually(lambda: blocked(proxy) == 2)
    first.close()
    eventually(lambda: readers(proxy) == 1)
    hold.release()
    assert second.result(WAIT_S).body == content(0, SIZE)
    assert len(origin.requests) == 2


def test_a_question_that_nobody_waits_for_is_given_up(origin, clock, proxy, url) -> None:
    keep(origin, clock, url)
    hold = origin.script(hold_before_headers())
    with connect(url) as client:
        client.sendall(b"GET /m/film HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert hold.reached.wait(WAIT_S)
    origin.wait_until(lambda: origin.requests[1].ended)
    eventually(lambda: readers(proxy) == 0)
    assert ask(url)["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=304"


def test_a_question_ends_with_the_cache(origin, clock, cache: Cache, url) -> None:
    keep(origin, clock, url)
    hold = origin.script(hold_before_headers())
    waiting = in_thread(ask, url)
    assert hold.reached.wait(WAIT_S)
    cache.close()
    reply = waiting.result(WAIT_S)
    assert (reply.status, reply.text) == (503, "the cache is shutting down\n")


# -- while it is downloading -----------------------------------------------------------


@pytest.mark.parametrize("etag", ['"v{version}"', 'W/"v{version}"'], ids=["strong", "weak"])
def test_a_film_may_be_confirmed_while_it_is_downloading(origin, clock, url, etag: str) -> None:
    origin.put("/film", film("max-age=60", etag=etag))
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url) as first:
        assert hold.reached.wait(WAIT_S)
        clock.now_s += 61
        second = in_thread(ask, url)
        origin.wait_for_requests(2)
        hold.release()
        assert first.read() == content(0, SIZE)
    assert second.result(WAIT_S).body == content(0, SIZE)
    assert len(origin.requests) == 2
    assert origin.body_bytes_sent == SIZE


def test_a_film_that_changes_while_it_is_downloading_is_never_mixed(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60"))
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url) as first:
        assert hold.reached.wait(WAIT_S)
        clock.now_s += 61
        origin.put("/film", film("max-age=60", version=1))
        assert ask(url).body == pattern(1)(0, SIZE)
        with pytest.raises(Exception, match="IncompleteRead"):
            first.read()


@pytest.mark.parametrize("control", ["no-cache", "max-age=0"])
def test_what_cannot_be_confirmed_is_fetched_by_everyone_who_asks(
    origin, clock, url, control: str
) -> None:
    origin.put("/film", film(control, etag=None))
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url) as first:
        assert hold.reached.wait(WAIT_S)
        clock.now_s += 1
        assert ask(url).body == content(0, SIZE)
        hold.release()
        assert first.read() == content(0, SIZE)  # nobody took it away
    assert len(origin.requests) == 2


def test_an_incomplete_film_is_confirmed_before_the_rest_is_fetched(
    origin, clock, open_cache: OpenCache
) -> None:
    with serve_mounted(open_cache(clock=clock, fill="requested"), origin) as proxy:
        url = f"{proxy.url}m/film"
        origin.put("/film", film("max-age=60"))
        assert ask(url, {"Range": "bytes=0-99"}).body == content(0, 100)
        clock.now_s += 61
        assert ask(url, {"Range": "bytes=50000-50099"}).body == content(50000, 50100)
        clock.now_s += 61
        origin.put("/film", film("max-age=60", version=1))
        assert ask(url, {"Range": "bytes=50-149"}).body == pattern(1)(50, 150)


def test_the_rest_of_a_film_is_fetched_when_its_origin_is_back(origin, clock, proxy, url) -> None:
    origin.put("/film", film("max-age=60"))
    origin.script(reset_after(SIZE // 2))
    origin.script(Exchange.reset, nth=2, times=3)
    with pytest.raises(Exception, match="IncompleteRead"):
        ask(url)
    clock.now_s += 7200
    assert ask(url).body == content(0, SIZE)


# -- who may not ask ---------------------------------------------------------------------


def test_who_wants_only_what_is_stored_gets_that_or_504(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60"))
    only = {"Cache-Control": "only-if-cached"}
    assert ask(url, only).status == 504
    assert origin.requests == []
    ask(url)
    assert ask(url, only)["Cache-Status"] == "cachefsm; hit"
    clock.now_s += 61
    assert ask(url, only).status == 504
    assert ask(url, {"Cache-Control": "only-if-cached, max-stale"}).body == content(0, SIZE)
    assert len(origin.requests) == 1


def test_who_wants_only_what_is_stored_gets_no_byte_fetched(
    origin, clock, open_cache: OpenCache
) -> None:
    with serve_mounted(open_cache(clock=clock, fill="requested"), origin) as proxy:
        url = f"{proxy.url}m/film"
        origin.put("/film", film("max-age=60"))
        ask(url, {"Range": "bytes=100-199"})
        only = {"Cache-Control": "only-if-cached"}
        assert ask(url, {"Range": "bytes=100-199", **only}).body == content(100, 200)
        assert ask(url, {"Range": "bytes=300-399", **only}).status == 504
        # Nor a part of it, and then a cut.
        for wanted in ("bytes=150-249", "bytes=100-149,300-399", "bytes=100-"):
            assert ask(url, {"Range": wanted, **only}).status == 504
        assert ask(url, only).status == 504
        assert ask(url, only, method="HEAD").status == 200
        assert len(origin.requests) == 1


@pytest.fixture
def mounted(open_cache: OpenCache, origin: Origin, clock: Clock) -> Iterator[object]:
    """Serves the origin below ``/m`` by the rules given; one cache for all of a test."""
    with ExitStack() as stack:
        cache = stack.enter_context(open_cache(clock=clock, fill="requested"))

        def serve(**rules: object) -> str:
            mount = Mount("/m", parse_mount(f"/m={origin.url()}").base, Rules(**rules))
            return f"{stack.enter_context(cache.serve(mounts=[mount])).url}m/film"

        yield serve


def test_an_offline_mount_asks_nothing(origin, clock, mounted) -> None:
    online, offline = mounted(), mounted(offline=True)
    assert ask(offline).status == 504
    assert origin.requests == []
    origin.put("/film", film("max-age=60, must-revalidate"))
    ask(online)
    clock.now_s += 7200
    reply = ask(offline, {"Cache-Control": "no-cache"})
    assert (reply.status, reply.body) == (200, content(0, SIZE))
    assert len(origin.requests) == 1


def test_an_offline_mount_serves_what_it_has_of_a_film(origin, clock, mounted) -> None:
    online, offline = mounted(), mounted(offline=True)
    origin.put("/film", film("max-age=60"))
    ask(online, {"Range": "bytes=0-999"})
    clock.now_s += 7200
    assert ask(offline, {"Range": "bytes=100-199"}).body == content(100, 200)
    assert ask(offline, {"Range": "bytes=5000-5999"}).status == 504
    with opened(offline) as response, pytest.raises(Exception, match="IncompleteRead") as caught:
        response.read()
    assert caught.value.partial == content(0, 1000)  # type: ignore[attr-defined]
    assert len(origin.requests) == 1


def test_an_offline_mount_repeats_what_it_was_told(origin, clock, mounted) -> None:
    online, offline = mounted(), mounted(offline=True)
    assert ask(online).status == 404
    clock.now_s += 7200
    assert ask(offline).status == 404
    assert len(origin.requests) == 1


@pytest.mark.parametrize("control", ["no-cache", "no-store", "max-age=0", "must-revalidate"])
def test_a_mounts_own_lifetime_is_all_that_counts(origin, clock, mounted, control: str) -> None:
    url = mounted(fresh_s=30.0)
    origin.put("/film", film(control))
    ask(url)
    clock.now_s += 29
    assert ask(url)["Cache-Status"] == "cachefsm; hit"
    clock.now_s += 1
    assert ask(url)["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=304"
    clock.now_s += 30
    origin.script(status(503))
    assert ask(url).body == content(0, SIZE)
    assert len(origin.requests) == 3


def test_cold_clients_of_a_film_that_is_always_asked_about_share_one_transfer(
    origin, clock, proxy, url
) -> None:
    origin.put("/film", film("no-cache"))
    hold = origin.script(hold_before_headers())
    waiting = in_thread(at_once, 4, lambda _: ask(url))
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: blocked(proxy) == 4)
    hold.release()
    assert {reply.body for reply in waiting.result(WAIT_S)} == {content(0, SIZE)}
    assert len(origin.requests) == 1
