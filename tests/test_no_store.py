"""What may not be stored passes by: to the one who asked, and to nobody's disk. RFC 9111 §3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cachefsm import Cache
from cachefsm.errors import StorageError
from cachefsm.origin import OriginClient
from cachefsm.proxy import Server
from cachefsm.reader import Reader, ReaderOptions
from tests.support.caches import WAIT_S, OpenCache, eventually, fetch, rows
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
from tests.support.faults import extra_headers, hold_after, hold_before_headers
from tests.support.origin import Origin, Resource, content, pattern
from tests.support.threads import in_thread

BRIEF_S = 0.5  # for a wait that would end in vain
SIZE = 3_000_000  # more than what is received rather than jumped over


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    with serve_mounted(cache, origin) as running:
        yield running


@pytest.fixture
def url(proxy: Server) -> str:
    return f"{proxy.url}m/film"


def film(control: str = "no-store", *fields: tuple[str, str], **told: object) -> Resource:
    return Resource(SIZE, headers=(("Cache-Control", control), *fields), **told)  # type: ignore[arg-type]


def nothing_is_kept(cache: Cache) -> bool:
    """Say whether neither tables nor files hold anything of a response."""
    known = rows(
        cache.directory,
        "SELECT complete_length, etag, last_modified, vary, bytes_present, validated_at "
        "FROM cache_entries WHERE response_fields != '[]' OR etag IS NOT NULL OR bytes_present",
    )
    files = [path for path in Path(cache.directory, "content").rglob("*") if path.is_file()]
    return (
        known == []
        and rows(cache.directory, "SELECT * FROM cache_chunks") == []
        and all(path.stat().st_blocks == 0 for path in files)
    )


NOT_STORED = [
    ("no-store", []),
    ("max-age=60, no-store", []),
    ("private, no-store, no-cache", []),
    ("max-age=60", [("Vary", "*")]),
]


@pytest.mark.parametrize(("control", "fields"), NOT_STORED)
def test_everyone_who_asks_for_it_gets_an_answer_of_his_own(
    origin, cache: Cache, url, control: str, fields: list[tuple[str, str]]
) -> None:
    for version in range(3):
        origin.put("/film", film(control, *fields, version=version))
        reply = ask(url)
        assert (reply.status, reply.body) == (200, pattern(version)(0, SIZE))
        assert reply["ETag"] == f'"v{version}"'
        assert reply["Age"] is None
        assert "stored" not in str(reply["Cache-Status"])
    assert len(origin.requests) == 3
    assert nothing_is_kept(cache)


def test_it_reaches_the_client_as_it_comes(origin, cache: Cache, url) -> None:
    origin.put("/film", film())
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url) as response:
        assert hold.reached.wait(WAIT_S)
        assert response.read(SIZE // 2) == content(0, SIZE // 2)
        assert nothing_is_kept(cache)
        hold.release()
        assert response.read() == content(SIZE // 2, SIZE)
    assert nothing_is_kept(cache)


def test_those_who_waited_for_somebody_elses_answer_ask_for_themselves(
    origin, cache: Cache, proxy, url
) -> None:
    origin.put("/film", film())
    hold = origin.script(hold_before_headers())
    waiting = in_thread(at_once, 4, lambda _: ask(url))
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: blocked(proxy) == 4)
    hold.release()
    assert [reply.body for reply in waiting.result(WAIT_S)] == [content(0, SIZE)] * 4
    assert len(origin.requests) == 4
    assert nothing_is_kept(cache)


def test_it_has_ranges_and_conditions_like_any_other(origin, cache: Cache, url) -> None:
    origin.put("/film", film())
    for _ in range(2):
        reply = ask(url, {"Range": "bytes=2000000-2000009"})
        assert (reply.status, reply.body) == (206, content(2_000_000, 2_000_010))
        assert ask(url, {"Range": "bytes=-10"}).body == content(SIZE - 10, SIZE)
        assert ask(url, {"Range": f"bytes={SIZE}-"}).status == 416
        assert ask(url, {"If-None-Match": '"v0"'}).status == 304
        assert ask(url, {"If-Match": '"v1"'}).status == 412
        head = ask(url, method="HEAD")
        assert (head.status, head["Content-Length"]) == (200, str(SIZE))
    assert nothing_is_kept(cache)


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_its_length_may_be_unknown(origin, cache: Cache, url, framing: str) -> None:
    origin.put("/film", film(framing=framing, accepts_ranges=False))
    with opened(url) as response:
        assert response.getheader("Transfer-Encoding") == "chunked"
        assert response.read() == content(0, SIZE)
    assert nothing_is_kept(cache)


def test_a_cookie_in_it_is_for_the_one_who_asked(origin, url) -> None:
    origin.put("/film", film())
    for user in ("a", "b"):
        origin.script(extra_headers(("Set-Cookie", f"user={user}")))
        assert ask(url)["Set-Cookie"] == f"user={user}"
    assert ask(url)["Set-Cookie"] is None


def test_a_client_that_leaves_ends_its_transfer(origin, cache: Cache, proxy, url) -> None:
    origin.put("/film", film())
    hold = origin.script(hold_after(SIZE // 2))
    client = connect(url)
    client.sendall(b"GET /m/film HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert hold.reached.wait(WAIT_S)
    reset(client)
    origin.wait_until(lambda: origin.requests[0].ended)
    eventually(lambda: readers(proxy) == 0)
    assert nothing_is_kept(cache)


def test_a_cache_that_closes_ends_its_transfers(origin, cache: Cache, url) -> None:
    origin.put("/film", film())
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url) as response:
        assert hold.reached.wait(WAIT_S)
        cache.close()
        with pytest.raises(Exception, match="IncompleteRead"):
            response.read()


# -- the request says so -----------------------------------------------------------


def test_what_a_client_asks_not_to_store_is_not(origin, cache: Cache, url) -> None:
    origin.put("/film", film("max-age=60"))
    assert ask(url, {"Cache-Control": "no-store"}).body == content(0, SIZE)
    assert nothing_is_kept(cache)


def test_a_client_that_asks_not_to_store_spoils_nothing_for_others(
    origin, cache: Cache, url
) -> None:
    origin.put("/film", film("max-age=60"))
    ask(url, {"Cache-Control": "no-store"})
    assert ask(url)["Cache-Status"] == "cachefsm; fwd=miss; stored"
    assert ask(url)["Cache-Status"] == "cachefsm; hit"
    assert ask(url, {"Cache-Control": "no-store"})["Cache-Status"] == "cachefsm; hit"
    assert len(origin.requests) == 2


# -- it was stored before ------------------------------------------------------------


def test_a_new_version_that_may_not_be_stored_takes_the_old_one_away(
    origin, cache: Cache, url
) -> None:
    origin.put("/film", film("no-cache"))
    ask(url)
    origin.put("/film", film("no-store", version=1))
    for _ in range(2):
        assert ask(url).body == pattern(1)(0, SIZE)
    assert nothing_is_kept(cache)


def test_a_client_that_asks_not_to_store_leaves_what_is_stored_alone(
    origin, cache: Cache, url
) -> None:
    origin.put("/film", film("no-cache"))
    ask(url)
    assert ask(url, {"Cache-Control": "no-store"}).body == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE
    assert cache.find(1).downloaded_bytes == SIZE


# -- nobody waits for it -----------------------------------------------------------------


def test_what_would_be_fetched_for_nobody_is_not_stored_either(origin, cache: Cache, url) -> None:
    origin.put("/film", film("no-cache"))
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url):
        assert hold.reached.wait(WAIT_S)
    origin.put("/film", film("no-store", version=1))
    assert ask(url).body == pattern(1)(0, SIZE)
    # What the client that left had asked for is wanted for another while.
    eventually(lambda: nothing_is_kept(cache) and cache.find(1).describe()["streams"] == [])
    assert len(origin.requests) == 2


def test_a_part_that_may_not_be_stored_joins_what_is_on_its_way_to_the_client(
    origin, open_cache: OpenCache
) -> None:
    cache = open_cache(fill="requested")
    with serve_mounted(cache, origin) as proxy:
        url = f"{proxy.url}m/film"
        origin.put("/film", film("max-age=60"))
        assert ask(url, {"Range": "bytes=0-999999"}).body == content(0, 1_000_000)
        origin.put("/film", film("no-store"))
        assert ask(url).body == content(0, SIZE)
        assert cache.find(1).ranges == [(0, 1_000_000)]


def test_who_is_about_to_wait_for_what_may_not_be_stored_gets_it_elsewhere(
    origin, open_cache: OpenCache
) -> None:
    cache = open_cache(fill="requested")
    origin.put("/film", film("max-age=60"))
    held = cache.entry(origin.url("/film"))
    assert fetch(cache, held, 0, 1_000_000) == content(0, 1_000_000)
    eventually(lambda: held.describe()["streams"] == [])
    origin.put("/film", film("no-store"))
    hold = origin.script(hold_before_headers())

    @contextmanager
    def just_before_the_wait(_reader: Reader) -> Iterator[None]:
        """Let the answer come after it was asked for, and before anybody waits for it."""
        if not hold.gate.is_set():
            assert hold.reached.wait(WAIT_S)
            hold.release()
            eventually(lambda: held.describe()["streams"] == [])
        yield

    live, client = cache.registry.acquire(held.id), OriginClient()
    options = ReaderOptions(stall_timeout_s=BRIEF_S, first_byte_timeout_s=BRIEF_S)
    reader = Reader(live, options, client, watch=just_before_the_wait, on_close=client.close)
    with closing(reader):
        assert reader.read(1_000_000, 1000) == content(1_000_000, 1_001_000)
    cache.registry.release(live)


def test_a_reader_of_the_old_version_has_nothing_of_the_new_one_fetched(
    origin, cache: Cache, url
) -> None:
    origin.put("/film", film("no-cache"))
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url) as response:
        assert hold.reached.wait(WAIT_S)
        response.read(1000)
        origin.put("/film", film("no-store", version=1))
        for _ in range(3):
            assert ask(url).body == pattern(1)(0, SIZE)
        assert len(origin.requests) == 4
        with pytest.raises(Exception, match="IncompleteRead"):
            response.read()
    assert nothing_is_kept(cache)


def test_what_a_person_orders_is_stored_all_the_same(origin, cache: Cache) -> None:
    origin.put("/film", film())
    entry = cache.entry(origin.url("/film"))
    entry.start()
    assert entry.wait_complete(WAIT_S)
    assert entry.downloaded_bytes == SIZE


def test_who_waits_for_it_in_python_is_told(origin, cache: Cache) -> None:
    origin.put("/film", film())
    entry = cache.entry(origin.url("/film"))
    with pytest.raises(StorageError, match="may not be stored"):
        entry.wait_for(0, SIZE, WAIT_S)
    with entry.open() as stream:
        assert stream.read() == content(0, SIZE)
    assert nothing_is_kept(cache)
