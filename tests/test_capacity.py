"""A cache that may hold only so much: who goes, who stays, and that nobody is refused."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path

import pytest

from cachefsm import Cache, Entry
from cachefsm.claims import SpeedLimits
from cachefsm.reader import Reader
from cachefsm.scheduler import Limits
from cachefsm.storage import content_name, disk_usage
from tests.support.caches import UNHURRIED, WAIT_S, OpenCache, eventually, fetch, rows
from tests.support.clients import ask, at_once, blocked, opened, serve_mounted
from tests.support.faults import hold_after, hold_before_headers
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

MIB = 1 << 20
SIZE = 2 * MIB
LIMIT = 5 * MIB
ENOUGH = 300 * MIB  # of what has no end
PATIENT = Limits(hold_s=3600.0)


def _put(origin: Origin, *names: str, size: int = SIZE) -> None:
    for name in names:
        origin.put(f"/{name}", Resource(size))


def _complete(cache: Cache, origin: Origin, *names: str) -> list[Entry]:
    """Download one after the other."""
    entries = [cache.entry(origin.url(f"/{name}")) for name in names]
    for entry in entries:
        assert entry.wait_complete(WAIT_S)
    return entries


def _stored(cache: Cache) -> int:
    stored: int = cache.stats()["bytes_stored"]
    return stored


def _held(cache: Cache) -> list[str]:
    """Return the names of what is held, oldest entry first; takes no lease."""
    found = rows(cache.directory, "SELECT url FROM cache_entries WHERE bytes_present > 0")
    return [url.rpartition("/")[2] for (url,) in found]


@pytest.mark.fault(
    "capacity",
    "more arrives than --max-size allows",
    client="the right bytes",
    kept="what was used last; the idle entry that nobody has used for longest goes first",
    next_reader="what is stored; what has gone is fetched again",
)
def test_the_one_that_nobody_has_used_for_longest_goes(
    open_cache: OpenCache, origin: Origin
) -> None:
    _put(origin, "old", "used", "new")
    cache = open_cache(max_size=LIMIT, grace=0)
    _complete(cache, origin, "old", "used")
    assert fetch(cache, cache.entry(origin.url("/old"))) == content(0, SIZE)
    _complete(cache, origin, "new")
    eventually(lambda: _held(cache) == ["old", "new"])
    assert fetch(cache, cache.entry(origin.url("/used"))) == content(0, SIZE)


@pytest.mark.fault("capacity", "more arrives than --max-size allows")
def test_what_is_pinned_or_read_stays(open_cache: OpenCache, origin: Origin) -> None:
    _put(origin, "pinned", "read", "idle", "new")
    cache = open_cache(max_size=LIMIT, grace=0)
    pinned, read = _complete(cache, origin, "pinned", "read")
    pinned.pin()
    with closing(cache.open_reader(read.id)) as reader:
        _complete(cache, origin, "idle", "new")
        eventually(lambda: "idle" not in _held(cache))
        assert {"pinned", "read"} <= set(_held(cache))
        assert b"".join(reader.pieces(0, SIZE)) == content(0, SIZE)


@pytest.mark.fault("capacity", "more arrives than --max-size allows")
def test_room_is_made_while_a_download_goes_on(open_cache: OpenCache, origin: Origin) -> None:
    _put(origin, "first", "second")
    _put(origin, "film", size=40 * MIB)
    hold = origin.script(hold_after(30 * MIB), path="/film")
    cache = open_cache(max_size=LIMIT, grace=0)
    _complete(cache, origin, "first", "second")
    film = cache.entry(origin.url("/film"))
    film.start()
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: _held(cache) == ["film"])
    hold.release()
    assert film.wait_complete(WAIT_S)


@pytest.mark.fault(
    "capacity",
    "one file is larger than --max-size",
    client="the right bytes",
    kept="what is read of it, or all of it on a person's order, for as long as that lasts",
    next_reader="what is stored, or what is fetched again",
)
def test_a_file_larger_than_the_limit_is_served_to_many_without_spinning(
    open_cache: OpenCache, origin: Origin
) -> None:
    _put(origin, "film", size=20 * MIB)
    hold = origin.script(hold_before_headers())
    cache = open_cache(max_size=LIMIT, grace=0)
    cache.entry(origin.url("/film"))
    with serve_mounted(cache, origin) as proxy:
        clients = [in_thread(ask, f"{proxy.url}m/film") for _ in range(3)]
        eventually(lambda: blocked(proxy) == 3)
        hold.release()
        assert all(client.result(WAIT_S).body == content(0, 20 * MIB) for client in clients)
    # Together, not each for himself.
    assert origin.body_bytes_sent <= 22 * MIB


def _played(cache: Cache, origin: Origin) -> Reader:
    """Return a reader of a file that is too large, which has begun to read it."""
    _put(origin, "film", size=20 * MIB)
    reader = cache.open_reader(cache.entry(origin.url("/film")).id)
    reader.representation()
    assert reader.read(0, 1000) == content(0, 1000)
    return reader


def _waits(film: Entry) -> bool:
    """Say whether its stream stands, though it has brought all that is wanted."""
    streams = film.describe()["streams"]
    return len(streams) == 1 and streams[0]["position"] == streams[0]["stop"]


def _asked(origin: Origin, path: str) -> int:
    return sum(request.path == path for request in origin.requests)


def _plays_on(reader: Reader) -> bool:
    """Read to the end, piece by piece as players do; say whether that was all of it."""
    position = 0
    while data := reader.read(position, 100_000):
        assert data == content(position, position + len(data))
        position += len(data)
    return position == 20 * MIB


@pytest.mark.fault("capacity", "one file is larger than --max-size")
def test_a_file_larger_than_the_limit_is_played_from_one_answer(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(max_size=LIMIT, grace=0, speed=UNHURRIED, limits=PATIENT)
    film = cache.entry(origin.url("/film"))
    with closing(_played(cache, origin)) as reader:
        eventually(lambda: _waits(film))
        assert film.downloaded_bytes <= 4 * MIB
        assert _plays_on(reader)
    assert [request.range for request in origin.requests] == ["bytes=0-"]


@pytest.mark.fault("capacity", "one file is larger than --max-size")
def test_a_stream_that_waits_for_its_reader_is_not_taken_for_a_slow_one(
    open_cache: OpenCache, origin: Origin
) -> None:
    speed = SpeedLimits(silence_s=0.05, floor_bytes_s=100 * MIB, window_s=0.05)
    cache = open_cache(max_size=LIMIT, grace=0, speed=speed, limits=PATIENT)
    film = cache.entry(origin.url("/film"))
    with closing(_played(cache, origin)):
        # Until then a slow machine may well be taken for a slow connection, and replaced.
        eventually(lambda: _waits(film))
        (stream,) = film.describe()["streams"]
        asked = _asked(origin, "/film")
        _put(origin, *map(str, range(20)))
        for number in range(20):  # meanwhile the conductor has looked at it, again and again
            assert cache.entry(origin.url(f"/{number}")).wait_complete(WAIT_S)
        assert film.describe()["streams"] == [stream]
        assert _asked(origin, "/film") == asked


@pytest.mark.fault("capacity", "one file is larger than --max-size")
def test_a_stream_that_waits_for_its_reader_ends_when_that_one_leaves(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(max_size=LIMIT, grace=0, limits=PATIENT)
    film = cache.entry(origin.url("/film"))
    with closing(_played(cache, origin)):
        eventually(lambda: _waits(film))
    eventually(lambda: film.describe()["streams"] == [])
    # Nobody uses it any more, and it may have grown too large to stay.
    eventually(lambda: film.reason in ("idle", "evicted"))


@pytest.mark.fault("capacity", "one file is larger than --max-size")
@pytest.mark.parametrize("limit", ["total", "per_host"])
def test_a_stream_that_waits_for_its_reader_gives_way_to_whoever_has_none(
    open_cache: OpenCache, origin: Origin, limit: str
) -> None:
    _put(origin, "other")
    cache = open_cache(max_size=LIMIT, grace=0, limits=replace(PATIENT, **{limit: 1}))
    film = cache.entry(origin.url("/film"))
    with closing(_played(cache, origin)) as reader:
        eventually(lambda: film.downloaded_bytes >= MIB)
        assert fetch(cache, cache.entry(origin.url("/other"))) == content(0, SIZE)
        assert _plays_on(reader)


@pytest.mark.fault("capacity", "one file is larger than --max-size")
def test_a_file_larger_than_the_limit_goes_when_it_is_not_used_and_comes_again(
    open_cache: OpenCache, origin: Origin
) -> None:
    _put(origin, "film", size=20 * MIB)
    _put(origin, "song")
    cache = open_cache(max_size=LIMIT, grace=0)
    _complete(cache, origin, "film", "song")
    eventually(lambda: _held(cache) == ["song"])
    assert _stored(cache) <= LIMIT
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, 20 * MIB)


@pytest.mark.fault("capacity", "one file is larger than --max-size")
@pytest.mark.parametrize("fill", ["rest", "finish"])
def test_of_a_file_larger_than_the_limit_no_more_is_fetched_than_is_read(
    open_cache: OpenCache, origin: Origin, fill: str
) -> None:
    _put(origin, "film", size=20 * MIB)
    hold = origin.script(hold_after(6 * MIB))
    limits = Limits(hold_s=0.1)
    cache = open_cache(max_size=LIMIT, grace="1h", read_ahead="512K", fill=fill, limits=limits)
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.read(0, 1000) == content(0, 1000)
        # While the reader is here, and the origin has most of the file to bring.
        eventually(lambda: film.describe()["streams"] == [])
        hold.release()
        assert b"".join(reader.pieces(1000, 20 * MIB)) == content(1000, 20 * MIB)


@pytest.mark.fault("capacity", "one file is larger than --max-size")
def test_a_file_larger_than_the_limit_is_not_prefetched_but_for_its_parts(
    open_cache: OpenCache, origin: Origin
) -> None:
    _put(origin, "film", size=20 * MIB)
    hold = origin.script(hold_after(MIB), path="/film")
    cache = open_cache(max_size=LIMIT, grace=0)
    film = cache.entry(origin.url("/film"))
    film.prefetch()
    eventually(lambda: film.reason == "too large")
    hold.release()
    assert rows(cache.directory, "SELECT id FROM cache_download_queue") == []
    film.prefetch(head="2M")
    # Nobody uses it any more, and it may have grown too large to stay.
    eventually(lambda: film.reason in ("idle", "evicted"))
    assert film.has(0, 2 * MIB)
    assert film.downloaded_bytes <= LIMIT


@pytest.mark.fault(
    "capacity",
    "a file without a known end is longer than --max-size",
    client="the right bytes, straight from the origin; a cut where answers cannot be joined",
    kept="nothing, once nobody reads it",
    next_reader="the same",
)
@pytest.mark.parametrize("etag", ['"v0"', None])
def test_what_never_ends_takes_little_more_room_than_there_is(
    open_cache: OpenCache, origin: Origin, etag: str | None
) -> None:
    origin.put("/radio", Resource(None, etag=etag))
    cache = open_cache(max_size=LIMIT, grace=0)
    with serve_mounted(cache, origin) as proxy:
        with opened(f"{proxy.url}m/radio") as response:
            got = 0
            with suppress(IncompleteRead):
                got = _read(response, ENOUGH)
        assert etag or not got
        assert _disk_bytes(cache) < ENOUGH // 2
    eventually(lambda: origin.open_connections == 0)
    eventually(lambda: _stored(cache) == 0)


def _read(response: HTTPResponse, size: int) -> int:
    """Read *size* right bytes."""
    position = 0
    while position < size:
        data = response.read(MIB)
        assert data == content(position, position + len(data))
        position += len(data)
    return position


def _disk_bytes(cache: Cache) -> int:
    return sum(disk_usage(file) for file in (cache.directory / "content").glob("*/*"))


@pytest.mark.fault("capacity", "a file without a known end is longer than --max-size")
def test_what_has_an_end_that_nobody_tells_is_read_to_it(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(100 * MIB, framing="chunked"))
    cache = open_cache(max_size=LIMIT, grace=0)
    with serve_mounted(cache, origin) as proxy:
        body = ask(f"{proxy.url}m/film").body
    assert body == content(0, 100 * MIB)
    eventually(lambda: _stored(cache) <= LIMIT)


def test_a_smaller_limit_holds_from_the_start(open_cache: OpenCache, origin: Origin) -> None:
    _put(origin, "one", "two", "three")
    cache = open_cache(grace=0)
    _complete(cache, origin, "one", "two", "three")
    cache.close()
    cache = open_cache(max_size=LIMIT, grace=0)
    eventually(lambda: _held(cache) == ["two", "three"])


def test_looking_at_a_cache_evicts_nothing(open_cache: OpenCache, origin: Origin) -> None:
    _put(origin, "one", "two", "three")
    cache = open_cache(grace=0)
    _complete(cache, origin, "one", "two", "three")
    cache.close()
    cache = open_cache(max_size=LIMIT, start=False)
    assert _held(cache) == ["one", "two", "three"]


def test_a_limit_that_everybody_exceeds_together_harms_no_reader(
    open_cache: OpenCache, origin: Origin
) -> None:
    names = [f"film{number}" for number in range(8)]
    _put(origin, *names)
    cache = open_cache(max_size=MIB, grace=0)
    with serve_mounted(cache, origin) as proxy:
        for _ in range(3):
            bodies = at_once(8, lambda number: ask(f"{proxy.url}m/{names[number]}").body)
            assert all(body == content(0, SIZE) for body in bodies)
    eventually(lambda: _stored(cache) <= SIZE)


def _many(directory: Path, count: int) -> None:
    """Make *count* entries of one byte each, used one after the other."""
    with closing(sqlite3.connect(directory / "cache.sqlite3")) as database, database:
        rows = [
            (number, url := f"http://origin.test/{number}", content_name(url))
            for number in range(1, count + 1)
        ]
        database.executemany(
            "INSERT INTO cache_entries (id, key, url, content_file, state, state_since, "
            "response_fields, accepts_ranges, requested_at, validated_at, vary, priority, pinned, "
            "bytes_present, created_at, last_accessed_at, access_count, generation) "
            "VALUES (?1, ?2, ?2, ?3, 'paused', 1, '[]', 1, 1, 1, '[]', 0, 0, 1, 1, ?1, 0, 0)",
            rows,
        )
        database.execute(
            "INSERT INTO cache_chunks (entry_id, start, stop, written_at) "
            "SELECT id, 0, 1, 1 FROM cache_entries"
        )
    for _, _, name in rows:
        path = directory / "content" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0")


def test_thousands_are_evicted_while_others_come(
    open_cache: OpenCache, tmp_path: Path, origin: Origin
) -> None:
    _put(origin, "film")
    open_cache().close()
    _many(tmp_path / "cache", 1000)
    cache = open_cache(max_size=100, grace=0)
    _complete(cache, origin, "film")
    eventually(lambda: _stored(cache) <= 100)


@pytest.mark.fault(
    "capacity",
    "there are very many entries",
    client="notices nothing",
    kept="all of them; in memory only those in use, and a few",
    next_reader="what is stored",
)
def test_many_entries_are_rows_and_not_objects(open_cache: OpenCache, tmp_path: Path) -> None:
    open_cache().close()
    _many(tmp_path / "cache", 3000)
    cache = open_cache()
    assert cache.stats()["entries"] == 3000
    with ExitStack() as stack:
        for number in range(1, 201):
            stack.enter_context(closing(cache.open_reader(number)))
        assert len(cache.registry.live()) == 200
    eventually(lambda: len(cache.registry.live()) <= 64)
    assert cache.collect(2900)["evicted_bytes"] == 100
    assert len(cache.registry.live()) <= 64
