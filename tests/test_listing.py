"""Long lists of entries: told as each entry tells of itself, in a few queries for all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from cachefsm import Cache, CacheError
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually, fetch
from tests.support.clients import ask
from tests.support.faults import status
from tests.support.origin import Origin, Resource

SIZE = 300_000


def _fill(cache: Cache, origin: Origin) -> None:
    """Register one entry of every kind that a row can tell of."""
    origin.put("/whole", Resource(SIZE, content_type="video/mp4"))
    origin.put("/parts", Resource(4 * SIZE))
    origin.put("/unknown-length", Resource(SIZE, framing="chunked"))
    origin.put("/weak", Resource(4 * SIZE, etag='W/"1"'))
    origin.put("/empty", Resource(0))
    origin.script(status(404), path="/gone", times=None)
    for path in ("/whole", "/unknown-length", "/empty"):
        cache.entry(origin.url(path)).wait_complete(WAIT_S)
    for start in (0, SIZE, 3 * SIZE):
        fetch(cache, cache.entry(origin.url("/parts")), start, start + 1000)
    with closing(cache.open_reader(cache.entry(origin.url("/weak")).id)) as reader:
        next(reader.pieces(0, 10))
    with pytest.raises(CacheError):
        cache.entry(origin.url("/gone")).wait_for(0, 1)
    cache.entry(origin.url("/whole")).pin()
    cache.entry("http://me:secret@example.test/never?sig=secret")
    eventually(lambda: not any(entry["streams"] for entry in cache.describe_all()))


@pytest.fixture
def resting(open_cache: OpenCache, origin: Origin) -> Cache:
    """A cache of which no entry is in memory."""
    cache = open_cache(fill="requested", grace=0, read_ahead=1000)
    _fill(cache, origin)
    cache.close()
    return open_cache(start=False)


def test_an_entry_is_described_alike_in_memory_and_as_a_row(resting: Cache) -> None:
    as_rows = resting.describe_all()
    assert [facts["state"] for facts in as_rows].count("complete") == 3
    assert {facts["state"] for facts in as_rows} >= {"paused", "failed", "not_started"}
    assert {len(facts["ranges"]) for facts in as_rows} >= {0, 1, 3}
    assert {facts["playable"] for facts in as_rows} == {True, False}
    assert as_rows == [entry.describe() for entry in resting.entries()]
    assert as_rows == resting.describe_all()  # now they are in memory


def test_a_row_is_told_in_full(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE, content_type="video/mp4"))
    clock = Clock()
    created_at = clock.now_s
    cache = open_cache(clock=clock)
    film = cache.entry(f"{origin.url('/film')}?sig=secret")
    clock.now_s += 1
    assert film.wait_complete(WAIT_S)
    clock.now_s += 1
    fetch(cache, film)
    film.pin()
    cache.close()
    assert open_cache(start=False).describe_all() == [
        {
            "id": film.id,
            "url": f"{origin.url('/film')}?…",
            "state": "complete",
            "reason": None,
            "since": created_at + 1,
            "total_size": SIZE,
            "downloaded_bytes": SIZE,
            "ranges": [[0, SIZE]],
            "playable": True,
            "rate_bytes_s": 0,
            "streams": [],
            "readers": 0,
            "asked_by": [],
            "pinned": True,
            "generation": 0,
            "created_at": created_at,
            "last_accessed_at": created_at + 2,
            "access_count": 1,
            "content_type": "video/mp4",
        }
    ]


def test_an_entry_in_use_is_described_as_it_is(cache: Cache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        next(reader.pieces(0, SIZE))
        (facts,) = cache.describe_all()
    assert facts["readers"] == 1
    assert facts["downloaded_bytes"] > 0
    assert "reader" in facts["asked_by"]


def test_a_hundred_entries_take_as_many_queries_as_one(
    resting: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        resting.entry(f"http://example.test/{number}")
    with caplog.at_level(logging.DEBUG, "peewee"):
        assert len(resting.describe_all()) > 100
    queries = [record.getMessage() for record in caplog.records if record.name == "peewee"]
    assert [query for query in queries if "SELECT" in query] == queries
    assert len(queries) == 2


def _ids(found: list[dict[str, Any]]) -> list[int]:
    return [facts["id"] for facts in found]


def test_a_list_is_read_page_by_page(
    open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefsm.overview.PAGE_ENTRIES", 2)
    cache = open_cache(start=False)
    for number in range(5):
        cache.entry(f"http://example.test/{number}")
    cache.find(2).remove()
    assert _ids(cache.describe_all()) == [1, 3, 4, 5]
    assert _ids(cache.describe_all(limit=3)) == [1, 3, 4]
    assert _ids(cache.describe_all(after=3)) == [4, 5]
    assert _ids(cache.describe_all(after=1, limit=1)) == [3]
    assert _ids(cache.describe_all(limit=0)) == []
    assert _ids(cache.describe_all(after=5)) == []


@pytest.fixture
def proxy(open_cache: OpenCache) -> Iterator[Server]:
    """A proxy over five entries that nobody has asked for."""
    cache = open_cache()
    for number in range(5):
        cache.entry(f"http://example.test/{number}")
    with cache.serve() as server:
        yield server


def test_a_client_may_ask_for_a_page(proxy: Server) -> None:
    url = f"{proxy.url}-/entries"
    assert _ids(ask(url).json()) == [1, 2, 3, 4, 5]
    assert _ids(ask(f"{url}?limit=2").json()) == [1, 2]
    assert _ids(ask(f"{url}?after=2&limit=2").json()) == [3, 4]
    assert ask(f"{url}?after=5").json() == []


def test_a_list_has_a_line_for_each_entry(proxy: Server) -> None:
    lines = ask(f"{proxy.url}-/entries").text.splitlines()
    assert [f"/{number}" in line for number, line in enumerate(lines[1:-1])] == [True] * 5
    assert (lines[0], lines[-1]) == ("[", "]")


@pytest.mark.parametrize("name", ["limit", "after"])
@pytest.mark.parametrize("value", ["x", "-1", "1.5", str(10**30)])
def test_a_page_that_makes_no_sense_is_refused(proxy: Server, name: str, value: str) -> None:
    reply = ask(f"{proxy.url}-/entries?{name}={value}")
    assert reply.status == 400
    assert name in reply.json()["error"]
