"""What is forgotten of entries that never brought a byte, and what is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache
from cachefsm.registry import TOUCHED_S
from cachefsm.storage import content_name
from cachefsm.upkeep import BLANK_KEPT_S, BLANK_MOST, FORGET_EVERY_S, FORGOTTEN_AT_ONCE, SPARED_S
from tests.support.caches import HASTY, WAIT_S, Clock, OpenCache, eventually, fetch, rows
from tests.support.clients import ask, serve_mounted
from tests.support.faults import status
from tests.support.origin import Origin, Resource, content

NOW_S = Clock().now_s
LONG_AGO_S = NOW_S - BLANK_KEPT_S - 1

Blank = Callable[..., int]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reopened(open_cache: OpenCache, clock: Clock) -> Callable[[], Cache]:
    """Opens the cache anew, which looks for what there is to do."""
    return lambda: open_cache(clock=clock, fill="requested", grace=0, retries=HASTY)


@pytest.fixture
def blank(open_cache: OpenCache, tmp_path: Path) -> Blank:
    """Leaves entries without a byte behind, as an earlier process did; returns the last's id."""
    open_cache().close()
    path = tmp_path / "cache" / "cache.sqlite3"

    def leave(*names: str, used_s: float = LONG_AGO_S, **columns: Any) -> int:
        told = {"state": "failed", "pinned": 0, "bytes_present": 0, "state_reason": None, **columns}
        with closing(sqlite3.connect(path)) as database, database:
            database.executemany(
                "INSERT INTO cache_entries (key, url, content_file, state, state_since, "
                "response_fields, accepts_ranges, vary, priority, pinned, bytes_present, "
                "state_reason, created_at, last_accessed_at, access_count, generation) "
                "VALUES (?1, ?1, ?2, ?4, 1, '[]', 0, '[]', 0, ?5, ?6, ?7, 1, ?3, 0, 0)",
                [
                    (url := f"http://origin.test/{name}", content_name(url), used_s, *told.values())
                    for name in names
                ],
            )
            ((last,),) = database.execute("SELECT MAX(id) FROM cache_entries")
        return int(last)

    return leave


def names(cache: Cache) -> set[str]:
    """Return what there are rows of."""
    return {
        url.rpartition("/")[2] for (url,) in rows(cache.directory, "SELECT url FROM cache_entries")
    }


def test_what_never_brought_a_byte_is_forgotten_after_a_week(
    reopened: Callable[[], Cache], blank: Blank
) -> None:
    blank("failed")
    blank("idle", state="paused", state_reason="idle")
    blank("evicted", state="not_started", state_reason="evicted")
    blank("recent", used_s=LONG_AGO_S + 2)
    cache = reopened()
    eventually(lambda: names(cache) == {"recent"})


def test_what_anybody_may_still_count_on_is_not_forgotten(
    reopened: Callable[[], Cache], blank: Blank, tmp_path: Path
) -> None:
    blank("gone")
    blank("pinned", pinned=1)
    blank("held", state="paused", state_reason="person")
    queued = blank("queued")
    with closing(sqlite3.connect(tmp_path / "cache" / "cache.sqlite3")) as database, database:
        database.execute(
            "INSERT INTO cache_download_queue (entry_id, asked_by, priority, start, attempts, "
            f"created_at) VALUES ({queued}, 'prefetch', 3, 0, 0, 1)"
        )
    cache = reopened()
    eventually(lambda: names(cache) == {"pinned", "held", "queued"})


def test_what_holds_a_byte_is_not_forgotten(
    reopened: Callable[[], Cache], clock: Clock, origin: Origin
) -> None:
    origin.put("/film", Resource(1000))
    cache = reopened()
    assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
    cache.close()
    clock.now_s += 2 * BLANK_KEPT_S
    cache = reopened()
    with origin.outage():
        cache.collect()
        assert names(cache) == {"film"}


def test_of_very_many_the_longest_unused_go_within_a_week(
    reopened: Callable[[], Cache], blank: Blank
) -> None:
    many = FORGOTTEN_AT_ONCE + 10  # more than go at once
    blank(*(f"old-{number}" for number in range(many)), used_s=NOW_S - SPARED_S - 2)
    blank(*(f"new-{number}" for number in range(BLANK_MOST)), used_s=NOW_S - SPARED_S - 1)
    cache = reopened()
    eventually(lambda: cache.stats()["entries"] == BLANK_MOST)
    assert not any(name.startswith("old") for name in names(cache))


def test_nobody_is_forgotten_within_an_hour_however_many_there_are(
    reopened: Callable[[], Cache], blank: Blank
) -> None:
    blank("gone")
    blank(*(f"new-{number}" for number in range(BLANK_MOST + 10)), used_s=NOW_S - SPARED_S + 1)
    cache = reopened()
    eventually(lambda: "gone" not in names(cache))
    assert cache.stats()["entries"] == BLANK_MOST + 10


def test_a_url_that_is_asked_for_is_not_forgotten_before_it_is_read(
    reopened: Callable[[], Cache], blank: Blank, clock: Clock, origin: Origin
) -> None:
    origin.put("/film", Resource(1000))
    cache = reopened()
    film = cache.entry(origin.url("/film"))
    clock.now_s += BLANK_KEPT_S + 1
    assert cache.entry(origin.url("/film")).id == film.id  # which says that it is wanted
    with cache.registry.lease(film.id):
        pass
    cache.close()
    blank("gone", used_s=NOW_S - 1)
    cache = reopened()
    eventually(lambda: names(cache) == {"film"})
    assert fetch(cache, cache.find(film.id)) == content(0, 1000)


def test_what_was_found_and_then_evicted_is_not_forgotten_at_once(
    reopened: Callable[[], Cache], blank: Blank, clock: Clock, origin: Origin
) -> None:
    origin.put("/film", Resource(1000))
    cache = reopened()
    assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
    cache.close()
    clock.now_s += BLANK_KEPT_S + 1
    cache = reopened()
    film = cache.entry(origin.url("/film"))
    assert cache.collect(0)["evicted_bytes"] == 1000
    cache.close()  # as if many others were in memory by now
    blank("gone")
    cache = reopened()
    eventually(lambda: "gone" not in names(cache))
    assert fetch(cache, cache.find(film.id)) == content(0, 1000)


def test_a_client_that_walks_through_a_site_leaves_nothing_behind(
    reopened: Callable[[], Cache], clock: Clock, origin: Origin
) -> None:
    origin.script(status(404), times=None)
    cache = reopened()
    with serve_mounted(cache, origin) as proxy:
        for number in range(80):  # more than are kept in memory
            assert ask(f"{proxy.url}m/{number}").status == 404
        eventually(lambda: not any(entry.is_busy for entry in cache.registry.live()))
        clock.now_s += BLANK_KEPT_S + FORGET_EVERY_S
        assert ask(f"{proxy.url}m/last").status == 404
        eventually(lambda: cache.stats()["entries"] < 70)
    cache.close()
    clock.now_s += BLANK_KEPT_S + TOUCHED_S
    cache = reopened()
    eventually(lambda: cache.stats()["entries"] == 0)


def test_a_file_that_was_begun_and_never_recorded_goes_along(
    reopened: Callable[[], Cache], blank: Blank, tmp_path: Path
) -> None:
    blank("gone")
    ((name,),) = rows(tmp_path / "cache", "SELECT content_file FROM cache_entries")
    file = tmp_path / "cache" / "content" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"some")
    cache = reopened()
    eventually(lambda: not file.exists())
    assert names(cache) == set()
