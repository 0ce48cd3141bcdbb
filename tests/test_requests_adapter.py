"""``cachefsm.requests_adapter``: a plain session reads through the cache."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from math import inf

import pytest
import requests
from urllib3 import Timeout

from cachefsm import Cache
from cachefsm.requests_adapter import CacheAdapter
from tests.support.caches import WAIT_S, OpenCache
from tests.support.faults import cut_after, hold_after, hold_before_headers, redirect, status
from tests.support.origin import Answer, Exchange, Origin, Resource, content

SIZE = 1_000_000
ETAG = '"v0"'


@pytest.fixture
def session(cache: Cache) -> Iterator[requests.Session]:
    with mounted(cache) as session:
        yield session


@pytest.fixture
def film(origin: Origin) -> str:
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


def mounted(cache: Cache) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # whatever proxies this machine has
    session.mount("http://", CacheAdapter(cache))
    return session


def test_a_second_get_does_not_ask_the_origin_again(
    session: requests.Session, film: str, origin: Origin
) -> None:
    first, second = session.get(film), session.get(film)
    assert first.content == second.content == content(0, SIZE)
    assert (first.status_code, first.reason, first.url) == (200, "OK", film)
    assert first.headers["ETag"] == ETAG
    assert first.headers["Content-Length"] == str(SIZE)
    assert second.headers["Cache-Status"] == "cachefsm; hit"
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=10-19", 10, 20), ("bytes=-5", SIZE - 5, SIZE), ("bytes=999990-", 999_990, SIZE)],
)
def test_a_range_is_answered_206(
    session: requests.Session, film: str, asked: str, start: int, stop: int
) -> None:
    reply = session.get(film, headers={"Range": asked})
    assert (reply.status_code, reply.content) == (206, content(start, stop))
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"


def test_a_range_that_there_is_not_is_answered_416(session: requests.Session, film: str) -> None:
    reply = session.get(film, headers={"Range": f"bytes={SIZE}-"})
    assert (reply.status_code, reply.headers["Content-Range"]) == (416, f"bytes */{SIZE}")


def test_preconditions_are_answered_from_the_cache(
    session: requests.Session, film: str, origin: Origin
) -> None:
    session.get(film)
    unchanged = session.get(film, headers={"If-None-Match": ETAG})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert session.get(film, headers={"If-Match": '"other"'}).status_code == 412
    other = session.get(film, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (other.status_code, len(other.content)) == (200, SIZE)
    assert len(origin.requests) == 1


def test_head_tells_the_same_without_the_body(session: requests.Session, film: str) -> None:
    reply = session.head(film)
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["Content-Length"] == str(SIZE)


def test_a_stream_gives_what_has_arrived_and_then_the_rest(
    session: requests.Session, film: str, origin: Origin
) -> None:
    hold = origin.script(hold_after(SIZE // 2))
    with session.get(film, stream=True) as reply:
        pieces = reply.iter_content(100_000)
        first = next(pieces)  # while the origin holds the other half
        hold.release()
        assert b"".join(chain([first], pieces)) == content(0, SIZE)


def test_raw_is_a_file(session: requests.Session, film: str) -> None:
    with session.get(film, stream=True) as reply:
        assert reply.raw.read(10) == content(0, 10)
        assert reply.raw.read(10) == content(10, 20)
        assert [reply.raw.readable(), reply.raw.closed] == [True, False]
        assert reply.raw.headers["ETag"] == ETAG


def test_closing_a_response_lets_the_entry_go(
    session: requests.Session, cache: Cache, film: str, origin: Origin
) -> None:
    hold = origin.script(hold_after(SIZE // 2))
    reply = session.get(film, stream=True)
    assert cache.stats()["readers"] == 1
    reply.close()
    assert cache.stats()["readers"] == 0
    hold.release()
    reply = session.get(film, stream=True)
    assert sum(map(len, reply.iter_content(None))) == SIZE
    assert cache.stats()["readers"] == 0  # read to the end is as good


def test_threads_share_one_request(cache: Cache, film: str, origin: Origin) -> None:
    hold = origin.script(hold_before_headers())
    with mounted(cache) as session, ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(session.get, film) for _ in range(8)]
        assert hold.reached.wait(WAIT_S)
        hold.release()
        assert {wait.result().content for wait in waits} == {content(0, SIZE)}
    assert len(origin.requests) == 1


def test_a_status_is_a_response(session: requests.Session, origin: Origin) -> None:
    assert session.get(origin.url("/missing")).status_code == 404
    origin.put("/film", Resource(SIZE))
    origin.script(status(503), times=None)
    reply = session.get(origin.url("/film"))
    assert reply.status_code == 503
    with pytest.raises(requests.HTTPError):
        reply.raise_for_status()


def test_an_origin_that_is_not_there_is_a_connection_error(
    session: requests.Session, film: str, origin: Origin
) -> None:
    with origin.outage(), pytest.raises(requests.ConnectionError):
        session.get(f"{film}?token=secret")


def test_a_body_that_breaks_off_for_good_is_an_error(
    session: requests.Session, film: str, origin: Origin
) -> None:
    origin.script(cut_after(SIZE // 2))
    origin.script(status(410), nth=2, times=None)
    with session.get(film, stream=True) as reply:
        assert reply.status_code == 200
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            assert reply.content == b"never so"


def test_the_read_timeout_holds(open_cache: OpenCache, film: str, origin: Origin) -> None:
    cache = open_cache(first_byte_timeout="1h", stall_timeout="1h")
    with mounted(cache) as session:
        before = origin.script(hold_before_headers())
        with pytest.raises(requests.ReadTimeout):
            session.get(film, timeout=(1, 0.05))
        before.release()
        session.get(film, timeout=WAIT_S)
        hold = origin.script(hold_after(10), path="/other")
        origin.put("/other", Resource(SIZE, headers=(("Cache-Control", "max-age=60"),)))
        other = cache.entry(origin.url("/other"))
        other.start()
        assert other.wait_for(0, 10, WAIT_S)
        with session.get(origin.url("/other"), stream=True, timeout=0.05) as reply:
            with pytest.raises(requests.ConnectionError):  # what requests makes of it
                assert reply.content == b"never so"
        hold.release()


@pytest.mark.parametrize(
    "timeout", [inf, 1e300, (3, inf), Timeout(total=1e300), Timeout(connect=3), Timeout(read=None)]
)
def test_any_long_timeout_will_do(
    session: requests.Session, origin: Origin, timeout: object
) -> None:
    origin.put("/film", Resource(SIZE))
    assert session.get(origin.url("/film"), timeout=timeout).content == content(0, SIZE)


def test_a_timeout_for_all_of_it_counts_for_the_answer(
    session: requests.Session, origin: Origin
) -> None:
    origin.script(hold_before_headers())
    with pytest.raises(requests.ReadTimeout):
        session.get(origin.url("/film"), timeout=Timeout(total=0.05))


@pytest.mark.parametrize("timeout", [0, -1, True, "soon", (1, 2, 3), (1,)])
def test_a_timeout_that_makes_no_sense_is_refused_as_the_ordinary_adapter_does(
    session: requests.Session, origin: Origin, timeout: object
) -> None:
    with pytest.raises(ValueError, match="imeout"):
        session.get(origin.url("/film"), timeout=timeout)
    assert origin.requests == []


def test_a_redirect_is_followed_by_the_cache(
    session: requests.Session, film: str, origin: Origin
) -> None:
    origin.script(redirect(film), path="/moved")
    reply = session.get(origin.url("/moved"))
    assert (reply.status_code, reply.content) == (200, content(0, SIZE))
    assert reply.history == []


def test_coded_bytes_are_decoded(session: requests.Session, origin: Origin) -> None:
    fields = (("Content-Encoding", "gzip"),)
    coded = Resource.of(gzip.compress(b"words"), headers=fields, accepts_ranges=False)
    origin.put("/words", coded)
    assert session.get(origin.url("/words")).text == "words"


def echo(exchange: Exchange) -> None:
    request = exchange.request
    told = [request.method, request.header("Authorization"), request.header("Cookie")]
    body = repr([*told, request.body]).encode()
    exchange.answer = Answer.fixed(200, [("Cache-Control", "max-age=60")], body)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("POST", {"data": b"body"}),
        ("DELETE", {}),
        ("OPTIONS", {}),
        ("GET", {"data": b"body"}),
        ("GET", {"cookies": {"session": "1"}}),
        ("GET", {"headers": {"Host": "elsewhere.test"}}),
        ("GET", {"headers": {"X-Bytes": b"bytes"}}),
    ],
)
def test_what_the_cache_could_not_answer_as_asked_goes_past_it(
    session: requests.Session,
    cache: Cache,
    film: str,
    origin: Origin,
    method: str,
    options: dict[str, object],
) -> None:
    origin.script(echo, times=None)
    for count in (1, 2):
        reply = session.request(method, film, **options)
        assert reply.status_code == 200
        assert len(origin.requests) == count
    request = origin.requests[0]
    assert request.method == method
    assert request.body == options.get("data", b"")
    assert cache.entries() == []


def test_another_way_to_verify_the_origin_goes_past_it(cache: Cache) -> None:
    with socket.socket() as taken, mounted(cache) as session:
        taken.bind(("127.0.0.1", 0))  # where nobody listens
        url = f"https://127.0.0.1:{taken.getsockname()[1]}/film"
        session.mount("https://", session.get_adapter("http://"))
        for options in ({"verify": False}, {"verify": "/nonexistent"}):
            with pytest.raises((requests.ConnectionError, OSError)):
                session.get(url, **options)
        assert cache.entries() == []
        with pytest.raises(requests.ConnectionError):
            session.get(url)
        assert len(cache.entries()) == 1


def test_what_credentials_brought_is_for_who_has_the_same(
    session: requests.Session, film: str, origin: Origin
) -> None:
    origin.script(echo, times=None)
    url = film.replace("http://", "http://mary:secret@")
    mine, again = session.get(url), session.get(film, auth=("mary", "secret"))
    assert mine.text == again.text
    assert "Basic" in mine.text
    others = {session.get(film, auth=("john", "secret")).text, session.get(film).text}
    assert len({mine.text, *others}) == len(origin.requests) == 3


def test_fields_that_the_origin_chooses_by_choose_here_too(
    session: requests.Session, origin: Origin
) -> None:
    def speak(exchange: Exchange) -> None:
        language = exchange.request.header("Accept-Language") or "none"
        fields = [("Vary", "Accept-Language"), ("Cache-Control", "max-age=60"), ("ETag", '"1"')]
        exchange.answer = Answer.fixed(200, fields, language.encode())

    origin.script(speak, times=None)
    spoken = [
        session.get(origin.url("/words"), headers={"Accept-Language": language}).text
        for language in ("nl", "fy", "nl", "fy")
    ]
    assert spoken == ["nl", "fy", "nl", "fy"]
    assert len(origin.requests) == 2


def test_only_if_cached_is_answered_504(session: requests.Session, film: str) -> None:
    only = {"Cache-Control": "only-if-cached"}
    assert session.get(film, headers=only).status_code == 504
    session.get(film)
    assert session.get(film, headers=only).content == content(0, SIZE)


def test_a_proxy_is_used_where_one_is_named(
    session: requests.Session, cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(10))
    origin.script(lambda exchange: setattr(exchange, "answer", Answer.fixed(204)))
    reply = session.get("http://elsewhere.test/film", proxies={"http": origin.url()})
    assert reply.status_code == 204
    assert origin.requests[0].target == "http://elsewhere.test/film"
    assert cache.entries() == []


def test_the_entry_is_the_one_that_the_cache_knows(
    session: requests.Session, cache: Cache, film: str, origin: Origin
) -> None:
    cache.entry(film).wait_complete(WAIT_S)
    assert session.get(f"{film}#fragment").content == content(0, SIZE)
    assert len(origin.requests) == len(cache.entries()) == 1


def test_closing_the_session_leaves_the_cache_open(cache: Cache, film: str) -> None:
    with mounted(cache) as session:
        session.get(film)
    assert cache.entry(film).has(0, SIZE)
