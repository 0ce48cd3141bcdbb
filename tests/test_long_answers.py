"""Answers that are no file and too long to be remembered: each is for the one who asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cachefsm import Cache
from cachefsm.bodies import SHORT_BODY_BYTES
from cachefsm.errors import OriginStatus
from cachefsm.origin import OriginOptions
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, OpenCache, eventually
from tests.support.clients import (
    ask,
    at_once,
    blocked,
    connect,
    opened,
    readers,
    reset,
    serve_mounted,
)
from tests.support.faults import (
    cut_after,
    hold_after,
    hold_before_headers,
    page,
    status,
    trickle,
)
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

MIB = 1 << 20
LONG = SHORT_BODY_BYTES + 1
SIZE = 1000
REQUEST = b"GET /m/film HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    with serve_mounted(cache, origin) as running:
        yield running


@pytest.fixture
def url(proxy: Server, origin: Origin) -> str:
    origin.put("/film", Resource(SIZE))
    return f"{proxy.url}m/film"


# -- passed on ---------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("code", [201, 203, 226, 300, 401, 404, 410, 500, 503, 599])
def test_a_long_answer_comes_through_as_it_is(origin, url, code: int, chunked: bool) -> None:
    told = [("Content-Type", "text/x-why"), ("ETag", '"page"'), ("WWW-Authenticate", "Bearer")]
    origin.script(page(code, *told, size=LONG, chunked=chunked))
    reply = ask(url)
    assert (reply.status, reply.body == content(0, LONG)) == (code, True)
    assert reply["Content-Length"] == (None if chunked else str(LONG))
    assert [(name, reply[name]) for name, _ in told] == told
    assert reply["Cache-Status"] == f"cachefsm; fwd=miss; fwd-status={code}"
    assert len(origin.requests) == 1


def test_its_head_is_the_same(origin, url) -> None:
    origin.script(page(404, ("X-Why", "so"), size=LONG))
    reply = ask(url, method="HEAD")
    assert (reply.status, reply["X-Why"], reply["Content-Length"]) == (404, "so", str(LONG))
    origin.wait_until(lambda: origin.requests[0].ended)


def test_what_leads_elsewhere_leads_through_here(origin, cache: Cache) -> None:
    origin.script(page(201, ("Location", "/other"), size=LONG))
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film")["Location"] == "/m/other"


@pytest.mark.parametrize("chunked", [False, True])
def test_it_reaches_the_client_as_it_comes(origin, url, chunked: bool) -> None:
    origin.script(page(404, size=4 * MIB, chunked=chunked))
    hold = origin.script(hold_after(2 * MIB))
    with opened(url) as response:
        assert hold.reached.wait(WAIT_S)
        assert response.read(2 * MIB) == content(0, 2 * MIB)
        hold.release()
        assert response.read() == content(2 * MIB, 4 * MIB)


def test_what_is_known_to_be_long_is_not_waited_for(origin, url) -> None:
    origin.script(page(404, size=LONG))
    hold = origin.script(hold_after(10))
    with opened(url) as response:
        assert (response.status, response.getheader("Content-Length")) == (404, str(LONG))
        assert response.read(10) == content(0, 10)
        hold.release()
        assert response.read() == content(10, LONG)


def test_what_does_not_come_soon_counts_as_long(origin, open_cache: OpenCache) -> None:
    cache = open_cache(origin=OriginOptions(short_body_s=0.0))
    origin.script(page(404, size=20, chunked=True))
    origin.script(trickle(1))
    hold = origin.script(hold_after(10))
    with serve_mounted(cache, origin) as proxy, opened(f"{proxy.url}m/film") as response:
        assert hold.reached.wait(WAIT_S)
        assert response.read(10) == content(0, 10)
        hold.release()
        assert response.read() == content(10, 20)


@pytest.mark.parametrize("chunked", [False, True])
def test_one_that_breaks_off_is_a_visible_cut(origin, url, chunked: bool) -> None:
    origin.script(page(404, size=4 * MIB, chunked=chunked))
    origin.script(cut_after(2 * MIB))
    with opened(url) as response:
        assert response.status == 404
        with pytest.raises(Exception, match="IncompleteRead"):
            response.read()


# -- nobody else has anything to do with it ----------------------------------------


def test_it_is_not_given_again(origin, url) -> None:
    origin.script(page(404, ("Cache-Control", "max-age=60"), size=LONG), times=2)
    assert [ask(url).status for _ in range(3)] == [404, 404, 200]
    assert len(origin.requests) == 3


def test_it_takes_the_place_of_one_that_is_remembered(origin, url) -> None:
    origin.script(status(404, ("Cache-Control", "max-age=60"), body=b"short"))
    assert [ask(url).body for _ in range(2)] == [b"short"] * 2
    origin.script(page(410, size=LONG))
    assert ask(url, {"Cache-Control": "no-cache"}).status == 410
    assert ask(url).status == 200


def test_who_wants_only_what_is_stored_gets_none_of_it(origin, url) -> None:
    origin.script(page(404, ("Cache-Control", "max-age=60"), size=LONG))
    ask(url)
    assert ask(url, {"Cache-Control": "only-if-cached"}).status == 504
    assert len(origin.requests) == 1


def test_those_who_waited_for_it_ask_for_themselves(origin, proxy, url) -> None:
    origin.script(page(404, ("X-Why", "so"), size=LONG), times=None)
    hold = origin.script(hold_before_headers())
    waiting = in_thread(at_once, 4, lambda _: ask(url))
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: blocked(proxy) == 4)
    hold.release()
    for reply in waiting.result(WAIT_S):
        assert (reply.status, reply["X-Why"], len(reply.body)) == (404, "so", LONG)
        assert reply.body == content(0, LONG)
        assert reply["Cache-Status"] == "cachefsm; fwd=miss; fwd-status=404"
    assert len(origin.requests) == 4


def test_those_who_waited_get_the_file_if_it_is_there_for_them(origin, proxy, url) -> None:
    origin.script(page(500, size=LONG))
    hold = origin.script(hold_before_headers())
    waiting = in_thread(at_once, 4, lambda _: ask(url))
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: blocked(proxy) == 4)
    hold.release()
    assert sorted(reply.status for reply in waiting.result(WAIT_S)) == [200, 200, 200, 500]


def test_who_reads_a_page_without_end_keeps_nobody_else(origin, cache: Cache, proxy, url) -> None:
    origin.script(page(500, size=None, chunked=True))
    client = connect(url, receive_buffer_bytes=4096)
    client.sendall(REQUEST)
    origin.wait_until(lambda: origin.body_bytes_sent > SHORT_BODY_BYTES)
    assert ask(url).body == content(0, SIZE)
    eventually(lambda: cache.find(1).describe()["streams"] == [])
    reset(client)
    origin.wait_until(lambda: origin.requests[0].ended)
    eventually(lambda: readers(proxy) == 0)
    # What sockets and one piece hold: the rest was never taken.
    assert origin.requests[0].body_bytes_sent < 32 * MIB


@pytest.mark.parametrize("sent", [10, 2 * MIB])
def test_a_client_that_leaves_ends_its_transfer(origin, proxy, url, sent: int) -> None:
    origin.script(page(404, size=4 * MIB))
    hold = origin.script(hold_after(sent))
    client = connect(url)
    client.sendall(REQUEST)
    assert hold.reached.wait(WAIT_S)
    assert client.recv(12) == b"HTTP/1.1 404"
    reset(client)
    origin.wait_until(lambda: origin.requests[0].ended)
    eventually(lambda: readers(proxy) == 0)


def test_a_cache_that_closes_ends_its_transfers(origin, cache: Cache, url) -> None:
    origin.script(page(404, size=4 * MIB))
    hold = origin.script(hold_after(2 * MIB))
    with opened(url) as response:
        assert hold.reached.wait(WAIT_S)
        cache.close()
        with pytest.raises(Exception, match="IncompleteRead"):
            response.read()


# -- where something is stored -----------------------------------------------------


def test_it_answers_a_question_about_what_is_stored(origin, url) -> None:
    origin.put("/film", Resource(SIZE, headers=(("Cache-Control", "no-cache, must-revalidate"),)))
    ask(url)
    origin.script(page(500, size=LONG))
    reply = ask(url)
    assert (reply.status, reply.body == content(0, LONG)) == (500, True)
    assert reply["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=500"
    assert ask(url).body == content(0, SIZE)


def test_what_is_stored_stands_in_for_it(origin, url) -> None:
    origin.put("/film", Resource(SIZE, headers=(("Cache-Control", "max-age=0"),)))
    ask(url)
    origin.script(page(500, size=None, chunked=True))
    assert ask(url).body == content(0, SIZE)
    origin.wait_until(lambda: origin.requests[1].ended)


def test_a_part_that_is_missing_may_be_answered_by_it(origin, open_cache: OpenCache) -> None:
    cache = open_cache(fill="requested")
    with serve_mounted(cache, origin) as proxy:
        url = f"{proxy.url}m/film"
        origin.put("/film", Resource(2 * MIB, headers=(("Cache-Control", "max-age=60"),)))
        assert ask(url, {"Range": "bytes=0-9"}).body == content(0, 10)
        origin.script(page(410, size=LONG), times=2)
        reply = ask(url, {"Range": f"bytes={2 * MIB - 10}-"})
        assert (reply.status, reply.body == content(0, LONG)) == (410, True)


# -- nobody asked for it -----------------------------------------------------------


def test_what_answers_a_persons_order_is_not_kept_open(origin, cache: Cache, url) -> None:
    origin.script(page(404, size=None, chunked=True))
    entry = cache.entry(origin.url("/film"))
    entry.start()
    with pytest.raises(OriginStatus, match="404"):
        entry.wait_complete(WAIT_S)
    origin.wait_until(lambda: origin.requests[0].ended)
    assert ask(url).body == content(0, SIZE)


def test_who_reads_in_python_is_told_and_leaves_nothing_open(origin, cache: Cache) -> None:
    origin.script(page(404, size=4 * MIB))
    origin.script(hold_after(2 * MIB))
    with (
        cache.entry(origin.url("/film")).open() as stream,
        pytest.raises(OriginStatus, match="404"),
    ):
        stream.read()
    origin.wait_until(lambda: origin.requests[0].ended)


def test_an_origin_that_wants_patience_is_not_asked_again_for_its_page(origin, url) -> None:
    origin.script(page(503, ("Retry-After", "120"), size=LONG))
    for _ in range(2):
        reply = ask(url)
        assert (reply.status, reply["Retry-After"]) == (503, "120")
        assert reply.text == "the origin answered 503; its body did not come\n"
    assert len(origin.requests) == 1
