"""A database that refuses one write: what was decided with it has not happened, and nobody hangs.

The refusals are SQLite's own, by a trigger that another program has made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState, Entry
from cachefsm.errors import StorageError, UsageError
from cachefsm.keys import KeyRule
from cachefsm.scheduler import Open, Priority
from tests.support.caches import EAGER, HASTY, WAIT_S, OpenCache, eventually, fetch, rows
from tests.support.clients import ask, serve_mounted
from tests.support.databases import aborting
from tests.support.entries import OneEntry
from tests.support.faults import hold_after, status
from tests.support.origin import Origin, Resource, content, pattern

SIZE = 2 << 20
HALF = SIZE // 2
PAUSING = "BEFORE UPDATE OF state ON cache_entries WHEN NEW.state = 'paused'"


def database(cache: Cache) -> Path:
    return cache.directory / "cache.sqlite3"


def paused(cache: Cache, origin: Origin) -> Entry:
    """Return the entry of a download that a person has paused halfway."""
    origin.put("/film", Resource(SIZE))
    hold = origin.script(hold_after(HALF))
    film = cache.entry(origin.url("/film"))
    film.start()
    assert hold.reached.wait(WAIT_S)
    film.pause()
    hold.release()
    return film


# -- orders --------------------------------------------------------------------


@pytest.mark.parametrize("order", ["start", "resume"])
def test_an_order_that_cannot_be_queued_moves_nothing(
    cache: Cache, origin: Origin, order: str
) -> None:
    film = paused(cache, origin)
    with aborting(database(cache), "BEFORE INSERT ON cache_download_queue"):
        with pytest.raises(StorageError):
            getattr(film, order)()
        assert film.state is DownloadState.PAUSED
    getattr(film, order)()
    assert film.wait_complete(WAIT_S)


def test_a_cancellation_that_cannot_clear_the_queue_has_not_happened(
    cache: Cache, origin: Origin
) -> None:
    film = paused(cache, origin)
    with aborting(database(cache), "BEFORE DELETE ON cache_download_queue"):
        with pytest.raises(StorageError):
            film.cancel()
        assert film.state is DownloadState.PAUSED
    film.cancel()
    assert rows(cache.directory, "SELECT id FROM cache_download_queue") == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[OneEntry]:
    disk = OneEntry(tmp_path)
    yield disk
    disk.close()


def test_a_download_that_cannot_be_queued_has_not_begun(disk: OneEntry) -> None:
    entry, wish = disk.entry, Open(disk.entry.id, 0, 10, Priority.BLOCKED)
    entry.want(None, 0, 10, blocked=True)
    with aborting(disk.database, "BEFORE INSERT ON cache_download_queue"):
        with pytest.raises(StorageError):
            entry.grant(wish)
        assert entry.state is DownloadState.NOT_STARTED
        assert entry.describe()["streams"] == []
    assert entry.grant(wish) is not None


def test_an_order_that_lapsed_before_its_turn_leaves_no_download_half_begun(
    disk: OneEntry,
) -> None:
    disk.entry.start("prefetch", Priority.PREFETCH, within_s=0.0)
    with aborting(disk.database, PAUSING):
        with pytest.raises(StorageError):
            disk.entry.view()
        assert disk.entry.state is DownloadState.NOT_STARTED


# -- answers -------------------------------------------------------------------


def test_an_answer_that_what_is_stored_is_current_serves_it_though_it_cannot_be_noted(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, headers=(("Cache-Control", "max-age=0"),)))
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
        assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
        with aborting(database(cache), "BEFORE UPDATE ON cache_entries"):
            for _ in range(2):
                assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE


def test_a_new_version_is_served_though_the_old_one_cannot_be_let_go(
    open_cache: OpenCache, origin: Origin
) -> None:
    control = (("Cache-Control", "max-age=0"),)
    origin.put("/film", Resource(SIZE, headers=control))
    cache = open_cache(retries=EAGER)
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
        assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
        origin.put("/film", Resource(SIZE, headers=control, version=1))
        new = bytes(pattern(1)(0, SIZE))
        with aborting(database(cache), "BEFORE UPDATE ON cache_entries"):
            assert ask(f"{proxy.url}m/film").body == new
        assert ask(f"{proxy.url}m/film").body == new


def test_a_download_comes_to_rest_when_the_database_lets_it(
    open_cache: OpenCache, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested", grace=0, retries=replace(HASTY, exhausted_s=0.05))
    film = cache.entry(origin.url("/film"))
    with aborting(database(cache), PAUSING):
        assert fetch(cache, film, 0, 1000) == content(0, 1000)
        eventually(lambda: "storage refuses" in caplog.text)
        assert film.state is DownloadState.DOWNLOADING
    eventually(lambda: film.state is DownloadState.PAUSED)


# -- links ---------------------------------------------------------------------


RULES = [KeyRule("127.0.0.1", ["token"])]


def test_a_newer_url_that_cannot_be_written_is_used_all_the_same(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested", grace=0, key_rules=RULES)
    assert fetch(cache, cache.entry(origin.url("/film?token=1")), 0, HALF) == content(0, HALF)
    with aborting(database(cache), "BEFORE UPDATE OF url ON cache_entries"):
        film = cache.entry(origin.url("/film?token=2"))
        assert fetch(cache, film) == content(0, SIZE)
    assert origin.requests[-1].target == "/film?token=2"


def test_what_the_older_url_was_answered_is_not_given_again_for_a_newer_one(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(status(410), when=lambda request: "token=1" in request.target, times=None)
    with serve_mounted(open_cache(key_rules=RULES), origin) as proxy:
        assert ask(f"{proxy.url}m/film?token=1").status == 410
        assert ask(f"{proxy.url}m/film?token=2").body == content(0, SIZE)


def test_a_fresh_link_whose_proof_cannot_be_written_proves_itself_again(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.put("/elsewhere", Resource(SIZE, etag='"other-server"'))
    cache = open_cache(
        fill="requested",
        grace=0,
        retries=EAGER,
        resolver=lambda _url, _error: origin.url("/elsewhere"),
    )
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film, 0, HALF) == content(0, HALF)
    eventually(lambda: film.state is DownloadState.PAUSED)
    origin.script(status(403), path="/film", times=None)
    with (
        aborting(database(cache), "BEFORE UPDATE OF etag ON cache_entries"),
        pytest.raises(StorageError),
    ):
        film.wait_for(HALF, SIZE, WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    assert film.describe()["generation"] == 0


# -- files and directories -----------------------------------------------------


def test_a_file_that_cannot_be_deleted_keeps_no_download_from_going_on(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    film = cache.entry(origin.url("/film"))
    assert film.wait_complete(WAIT_S)
    (file,) = (cache.directory / "content").glob("*/*")
    file.unlink()
    file.mkdir()  # which is no file, and will not go as one
    film.start()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)


def test_a_file_of_an_earlier_process_that_is_cut_off_is_not_written_on(disk: OneEntry) -> None:
    """What lay before would read as noughts."""
    disk.fetch(0, 1000)
    disk.entry.flush()
    disk.restart()
    claim = disk.entry.grant(Open(disk.entry.id, 1000, 2000, Priority.PERSON))
    assert claim is not None
    os.truncate(disk.file, 0)
    with pytest.raises(StorageError, match="cut off"):
        claim.content.file.write_at(1000, content(1000, 2000))
    disk.entry.ended(claim, None)
    disk.entry.check_file()
    assert disk.entry.ranges() == []
    disk.fetch(0, 1000)


def test_what_comes_after_a_removal_is_recorded_nowhere(disk: OneEntry) -> None:
    disk.fetch(0, 1000)
    disk.entry.remove()
    disk.entry.flush()
    assert disk.rows() == {}


def test_an_argument_that_makes_no_sense_leaves_the_directory_free(open_cache: OpenCache) -> None:
    for options in ({"limit_rate": "fast"}, {"scrub_rate": "slow"}, {"fill": "some"}):
        with pytest.raises(UsageError) as caught:
            open_cache(**options)
        assert open_cache(start=False).close() is None
        del caught
