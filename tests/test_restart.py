"""Stopping, being killed, and finding things damaged on the next start."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cachefsm import ByteRange, Cache, CacheError, DownloadState, Entry
from cachefsm.errors import (
    CacheBusy,
    OriginError,
    OriginStatus,
    SchemaTooNew,
    WaitTimeout,
)
from cachefsm.ranges import RangeSet
from cachefsm.scheduler import Limits
from tests.support.caches import (
    EAGER,
    HASTY,
    WAIT_S,
    Clock,
    OpenCache,
    Recorded,
    eventually,
    fetch,
    recorded,
    rows,
)
from tests.support.child import Child
from tests.support.faults import hold_after, hold_from, stall_after, status
from tests.support.origin import Origin, Request, Resource, Shaping, content

MIB = 1 << 20
SIZE = 8 * MIB
HALF = 4 * MIB


@pytest.fixture
def url(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


def _asked(origin: Origin) -> list[str | None]:
    return [request.range for request in origin.requests]


def _half_downloaded(cache: Cache, origin: Origin, url: str) -> Entry:
    """Return an entry that a person asked for and whose other half the origin holds."""
    origin.script(stall_after(HALF))
    film = cache.entry(url)
    film.start()
    assert film.wait_for(0, HALF, WAIT_S)
    return film


def _assert_true(found: Recorded, size: int) -> None:
    """Check that state, rows and file of what a process left agree with each other."""
    assert found.bytes_present == sum(chunk.size for chunk in found.chunks)
    for chunk, following in pairwise(found.chunks):
        assert chunk.stop < following.start  # coalesced, so that a gap lies between
    for start, data in found.stored():
        assert data == content(start, start + len(data))
    assert all(chunk.stop <= size for chunk in found.chunks)
    assert sum(len(data) for _, data in found.stored()) == found.bytes_present
    assert (found.state == "complete") == (found.bytes_present == size)


# -- an orderly end ----------------------------------------------------------------


@pytest.mark.fault("process", "the cache is closed while somebody waits")
def test_a_download_goes_on_by_itself_where_it_was_when_the_cache_closed(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache()
    _half_downloaded(cache, origin, url)
    cache.close()
    found = recorded(cache.directory)
    assert (found.state, found.reason) == ("paused", "shutdown")
    assert found.chunks == (ByteRange(0, HALF),)
    open_cache()
    origin.wait_until(lambda: origin.body_bytes_sent == SIZE)
    assert _asked(origin) == ["bytes=0-", f"bytes={HALF}-{SIZE - 1}"]


def test_a_complete_file_costs_nothing_after_a_restart(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache()
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    cache = open_cache()
    film = cache.entry(url)
    assert film.state is DownloadState.COMPLETE
    assert fetch(cache, film) == content(0, SIZE)
    assert len(origin.requests) == 1


def test_a_persons_pause_survives_a_restart(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache()
    film = _half_downloaded(cache, origin, url)
    film.pause()
    cache.close()
    cache = open_cache(first_byte_timeout="50ms")
    film = cache.entry(url)
    assert (film.state, film.reason) == (DownloadState.PAUSED, "person")
    assert fetch(cache, film, 0, HALF) == content(0, HALF)
    with pytest.raises(WaitTimeout):
        fetch(cache, film, HALF, SIZE)
    assert len(origin.requests) == 1
    film.resume()
    assert film.wait_complete(WAIT_S)
    assert _asked(origin) == ["bytes=0-", f"bytes={HALF}-{SIZE - 1}"]


def test_a_failure_is_remembered_with_its_cause_over_a_restart(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    clock = Clock()
    cache = open_cache(clock=clock)
    origin.script(status(403))
    with pytest.raises(OriginStatus):
        cache.entry(url).wait_for(0, 1)
    cache.close()
    cache = open_cache(clock=clock)
    film = cache.entry(url)
    assert film.state is DownloadState.FAILED
    with pytest.raises(OriginError, match="403") as caught:
        film.wait_for(0, 1)
    assert caught.value.status_hint == 403
    assert len(origin.requests) == 1
    clock.now_s += HASTY.permanent_s
    assert fetch(cache, film) == content(0, SIZE)


def test_what_was_queued_is_begun_after_a_restart(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache(start=False)
    cache.entry(url).start(priority="prefetch")
    cache.close()
    assert origin.requests == []
    open_cache()
    origin.wait_until(lambda: origin.body_bytes_sent == SIZE)


@pytest.mark.parametrize("restarts", [False, True])
def test_the_queue_goes_on_in_the_order_in_which_it_was_asked_for(
    open_cache: OpenCache, origin: Origin, restarts: bool
) -> None:
    asked = [("c", "prefetch"), ("b", "prefetch"), ("d", "person"), ("a", "prefetch")]
    for name in "abcd":
        origin.put(f"/{name}", Resource(SIZE))
    hold = origin.script(hold_after(HALF), path="/c")
    cache = open_cache(limits=Limits(total=1))
    # In memory they are in another order.
    films = {name: cache.entry(origin.url(f"/{name}")) for name in "abcd"}
    for film in films.values():
        film.wait_for(0, 0, timeout=0)
    for name, priority in asked:
        films[name].start(priority=priority)
        if name == "c":
            assert hold.reached.wait(WAIT_S)
            eventually(lambda: films["c"].has(0, HALF))
    for name in "abc":  # asking again costs nobody its turn
        films[name].start(priority="prefetch")
    if restarts:
        cache.close()
        cache = open_cache(limits=Limits(total=1))
    hold.release()
    eventually(lambda: all(film.state is DownloadState.COMPLETE for film in cache.entries()))
    begun = [request.path.strip("/") for request in origin.requests]
    assert begun == (["c", "d", "c", "b", "a"] if restarts else ["c", "d", "b", "a"])


def test_a_cancelled_download_stays_at_rest_after_a_restart(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache()
    _half_downloaded(cache, origin, url).cancel()
    cache.close()
    assert rows(cache.directory, "SELECT * FROM cache_download_queue") == []
    film = open_cache().entry(url)
    assert (film.state, film.reason) == (DownloadState.FAILED, "cancelled")
    assert film.ranges == [ByteRange(0, HALF)]


def test_a_pin_survives_a_restart(open_cache: OpenCache, url: str) -> None:
    cache = open_cache()
    cache.entry(url).pin()
    cache.close()
    assert open_cache().entry(url).describe()["pinned"] is True


@pytest.mark.fault("origin", "it serves another version than before")
def test_another_version_met_after_a_restart_is_never_mixed_with_the_old_one(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache(fill="requested")
    fetch(cache, cache.entry(url), 0, HALF)
    cache.close()
    origin.put("/film", Resource(SIZE, version=1))  # the same size under a new ETag
    cache = open_cache(fill="requested")
    film = cache.entry(url)
    with closing(cache.open_reader(film.id)) as reader:
        assert ("ETag", '"v0"') in reader.representation().fields
        assert reader.read(0, 1000) == content(0, 1000)  # old bytes, under the old validator
        with pytest.raises(OriginError):
            reader.read(HALF, 1000)
    with closing(cache.open_reader(film.id)) as reader:
        data = b"".join(reader.pieces(0, SIZE))
        assert ("ETag", '"v1"') in reader.representation().fields
    assert data == content(1, SIZE + 1)


# -- kill -9 -----------------------------------------------------------------------


@pytest.mark.fault(
    "process",
    "it is killed (`kill -9`)",
    client="a cut",
    kept="what was recorded: all but the last second or 16 MiB",
    next_reader="what is recorded; downloads go on by themselves",
)
def test_a_killed_processs_download_goes_on_from_what_it_had_recorded(
    open_cache: OpenCache, origin: Origin, url: str, tmp_path: Path
) -> None:
    directory = tmp_path / "cache"
    origin.script(hold_after(HALF))
    with Child(directory, url) as child:
        child.go()
        origin.wait_until(lambda: origin.body_bytes_sent == HALF)
        eventually(lambda: recorded(directory).bytes_present == HALF)
    found = recorded(directory)
    _assert_true(found, SIZE)
    assert found.state == "downloading"
    cache = open_cache()
    # Nobody asks for anything: it goes on by itself.
    origin.wait_until(lambda: origin.body_bytes_sent == SIZE)
    assert _asked(origin) == ["bytes=0-", f"bytes={HALF}-{SIZE - 1}"]
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)


@pytest.mark.fault("process", "it is killed (`kill -9`)")
def test_a_killed_processs_download_has_one_defined_state_at_the_next_start(
    open_cache: OpenCache, origin: Origin, url: str, tmp_path: Path
) -> None:
    origin.script(hold_after(1000))
    with Child(tmp_path / "cache", url) as child:
        child.go()
        origin.wait_until(lambda: origin.body_bytes_sent == 1000)
        eventually(lambda: recorded(tmp_path / "cache").state == "downloading")
    cache = open_cache(start=False)
    film = cache.entry(url)
    assert (film.state, film.reason) == (DownloadState.PAUSED, "recovered")
    cache.close()
    assert open_cache().entry(url).wait_complete(WAIT_S)


@pytest.mark.fault("process", "it left its lock")
def test_a_process_that_is_killed_leaves_the_directory_free(
    open_cache: OpenCache, origin: Origin, url: str, tmp_path: Path
) -> None:
    hold = origin.script(hold_after(1000))
    with Child(tmp_path / "cache", url) as child:
        child.go()
        with pytest.raises(CacheBusy, match=str(child.pid)):
            open_cache()
    hold.release()
    assert open_cache().entry(url).wait_complete(WAIT_S)


def _range_of(request: Request, size: int) -> tuple[int, int]:
    first, last = (request.range or "").removeprefix("bytes=").split("-")
    return int(first), int(last) + 1 if last else size


def test_twenty_kills_in_one_download_cost_little_and_spoil_nothing(tmp_path: Path) -> None:
    size, kills = 64 * MIB, 20
    directory = tmp_path / "cache"
    dice = random.Random(35)
    before = RangeSet()
    with Origin(Shaping(rate_per_connection=12 * MIB)) as origin:
        origin.put("/film", Resource(size))
        following = Child(directory, origin.url("/film"))
        for _ in range(kills):
            child, following = following, Child(directory, origin.url("/film"))
            with child:
                asked_before = len(origin.requests)
                child.go()
                # Soon after opening, in mid-stream, or after a flush or two.
                sent = origin.body_bytes_sent + dice.randrange(12 * MIB)
                # On a busy machine more than that comes before we see it, and all before the end.
                eventually(
                    lambda sent=sent: (
                        origin.body_bytes_sent >= sent or recorded(directory).state == "complete"
                    )
                )
            # It went on from what was recorded, and asked for nothing of that again.
            for request in origin.requests[asked_before:]:
                assert not list(before.intersection(*_range_of(request, size)))
            found = recorded(directory)
            _assert_true(found, size)
            after = RangeSet(found.chunks)
            assert before.difference(after) == RangeSet()
            before = after
        origin.shaping = Shaping()  # enough of slowness
        with following:
            following.go()
            following.expect("complete")
        found = recorded(directory)
        assert found.state == "complete"
        assert found.chunks == (ByteRange(0, size),)
        _assert_true(found, size)
        wasted = origin.body_bytes_sent - size
        print(f"\n{kills} kills cost {wasted / MIB:.1f} MiB, {wasted / kills / MIB:.2f} each")
        assert wasted <= kills * 20 * MIB


# -- damage to the content ---------------------------------------------------------


def _delete(file: Path) -> None:
    file.unlink()


def _delete_all(file: Path) -> None:
    shutil.rmtree(file.parent.parent)


def _truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(HALF)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _symlink(file: Path) -> None:
    """Let it lead to another file of that size."""
    target = file.parent.parent.parent.parent / "precious"
    target.write_bytes(bytes(SIZE))
    file.unlink()
    file.symlink_to(target)


_HARMS = [_delete, _delete_all, _truncate, _empty, _symlink]
_USES = {
    "read": lambda cache, film: None,
    "wait_for": lambda cache, film: film.wait_for(HALF, SIZE, WAIT_S),
    "wait_complete": lambda cache, film: film.wait_complete(WAIT_S),
    "start": lambda cache, film: film.start(),
}


@pytest.mark.fault(
    "file",
    "it is gone or cut off when the cache starts",
    client="the right bytes",
    kept="the part that is still there",
    next_reader="the right bytes: what is lost is fetched again",
)
@pytest.mark.parametrize("harm", _HARMS, ids=lambda harm: harm.__name__.strip("_"))
@pytest.mark.parametrize("use", _USES.values(), ids=_USES.keys())
def test_lost_content_is_noticed_after_a_restart_and_fetched_again(
    open_cache: OpenCache, origin: Origin, url: str, harm: Any, use: Any
) -> None:
    cache = open_cache()
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    harm(recorded(cache.directory).file)
    cache = open_cache()
    film = cache.entry(url)
    use(cache, film)
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    cache.close()
    _assert_true(recorded(cache.directory), SIZE)


@pytest.mark.fault("file", "it is gone, emptied, cut off or replaced while the cache runs")
@pytest.mark.parametrize("harm", _HARMS, ids=lambda harm: harm.__name__.strip("_"))
def test_content_that_is_lost_while_nobody_reads_is_noticed_by_the_next_reader(
    open_cache: OpenCache, origin: Origin, url: str, harm: Any
) -> None:
    cache = open_cache()
    film = cache.entry(url)
    assert film.wait_complete(WAIT_S)
    harm(recorded(cache.directory).file)
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    cache.close()
    _assert_true(recorded(cache.directory), SIZE)


@pytest.mark.fault("file", "it is gone, emptied, cut off or replaced while the cache runs")
@pytest.mark.parametrize("harm", [_truncate, _empty], ids=["truncate", "empty"])
def test_content_that_is_lost_under_a_reader_never_reads_as_anything_else(
    cache: Cache, url: str, harm: Any
) -> None:
    film = cache.entry(url)
    assert film.wait_complete(WAIT_S)
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.read(0, 1000) == content(0, 1000)
        harm(recorded(cache.directory).file)
        data = b""
        try:
            for piece in reader.pieces(0, SIZE):
                data += piece
        except CacheError:
            pass  # cut short, visibly
        else:
            assert len(data) == SIZE
    assert data == content(0, len(data))
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.fault("file", "it is gone, emptied, cut off or replaced while the cache runs")
def test_a_file_that_is_cut_off_while_more_of_it_comes_never_reads_as_noughts(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    hold = origin.script(hold_from(HALF), times=None)
    cache = open_cache(retries=EAGER)
    film = cache.entry(url)
    film.start()
    assert film.wait_for(0, HALF, WAIT_S)
    os.truncate(recorded(cache.directory).file, 1000)
    hold.release()
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    cache.close()
    assert recorded(cache.directory).stored() == [(0, content(0, SIZE))]


@pytest.mark.fault("file", "it is gone or cut off when the cache starts")
def test_a_lost_half_is_fetched_again_and_the_other_is_not(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache()
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    _truncate(recorded(cache.directory).file)
    cache = open_cache()
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    assert _asked(origin) == ["bytes=0-", f"bytes={HALF}-{SIZE - 1}"]


# -- damage to the database --------------------------------------------------------


@pytest.mark.fault("database", "it is no database, or a part of one")
@pytest.mark.parametrize("garbage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_database_that_is_none_is_kept_aside_and_begun_anew(
    open_cache: OpenCache,
    tmp_path: Path,
    url: str,
    garbage: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    open_cache().close()
    database = tmp_path / "cache" / "cache.sqlite3"
    database.write_bytes(garbage)
    cache = open_cache()
    assert [record.message for record in caplog.records if "kept as" in record.message]
    assert (tmp_path / "cache" / "cache.sqlite3.damaged-1").read_bytes() == garbage
    assert cache.entry(url).wait_complete(WAIT_S)


@pytest.mark.fault("database", "a newer cachefsm wrote it")
def test_a_database_from_the_future_is_left_alone(open_cache: OpenCache, tmp_path: Path) -> None:
    open_cache().close()
    _execute(tmp_path / "cache", "UPDATE cache_schema SET version = version + 1")
    with pytest.raises(SchemaTooNew):
        open_cache()


def _execute(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "cache.sqlite3")) as database:
        database.execute("PRAGMA ignore_check_constraints = 1")
        database.execute(statement)
        database.commit()


_GARBAGE = {
    "fields that are no JSON": "UPDATE cache_entries SET response_fields = '{' WHERE id = 1",
    "fields of another shape": "UPDATE cache_entries SET response_fields = '[1]' WHERE id = 1",
    "selecting fields of another shape": "UPDATE cache_entries SET vary = '[[1]]' WHERE id = 1",
    "no such state": "UPDATE cache_entries SET state = 'happy' WHERE id = 1",
    "an impossible URL": "UPDATE cache_entries SET url = 'nonsense' WHERE id = 1",
    "a path that leaves": "UPDATE cache_entries SET content_file = '../../precious' WHERE id = 1",
    "a negative length": "UPDATE cache_entries SET complete_length = -5 WHERE id = 1",
    "a length that is text": "UPDATE cache_entries SET complete_length = 'long' WHERE id = 1",
    "a length before the chunks' end": "UPDATE cache_entries SET complete_length = 5 WHERE id = 1",
    "a chunk that ends before it starts": "UPDATE cache_chunks SET stop = -1 WHERE entry_id = 1",
    "a chunk that is text": "UPDATE cache_chunks SET stop = 'zzz' WHERE entry_id = 1",
    "a chunk past the end": "UPDATE cache_chunks SET stop = 999999999 WHERE entry_id = 1",
    "overlapping chunks": "INSERT INTO cache_chunks (entry_id, start, stop, written_at)"
    " VALUES (1, 5, 20, 0)",
    "a queue row of nonsense": "INSERT INTO cache_download_queue (entry_id, asked_by, priority,"
    " start, stop, attempts, created_at) VALUES (1, 'nobody', 99, -7, 'zzz', 0, 0)",
}


@pytest.mark.fault(
    "database",
    "rows of one entry make no sense",
    client="notices nothing",
    kept="every other entry; of that one, its URL",
    next_reader="the right bytes, fetched again",
)
@pytest.mark.parametrize("active", [False, True], ids=["complete", "active"])
@pytest.mark.parametrize("garbage", _GARBAGE.values(), ids=_GARBAGE.keys())
def test_garbage_in_one_entrys_rows_harms_no_other_entry(
    open_cache: OpenCache, origin: Origin, url: str, garbage: str, active: bool
) -> None:
    cache = open_cache()
    assert cache.entry(url).wait_complete(WAIT_S)
    origin.put("/other", Resource(1000))
    assert cache.entry(origin.url("/other")).wait_complete(WAIT_S)
    cache.close()
    if active:
        _execute(cache.directory, "UPDATE cache_entries SET state = 'downloading' WHERE id = 1")
    _execute(cache.directory, garbage)
    precious = cache.directory.parent / "precious"
    precious.write_bytes(b"somebody else's")
    cache = open_cache()
    other = cache.entry(origin.url("/other"))
    assert fetch(cache, other) == content(0, 1000)
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    cache.entry(url).remove()
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    assert precious.read_bytes() == b"somebody else's"


# -- the origin is away ------------------------------------------------------------


@pytest.mark.fault(
    "network",
    "the origin is away, and all of the file is here",
    client="the right bytes",
    kept="all of it",
    next_reader="the right bytes",
)
def test_a_complete_file_is_served_while_its_origin_is_away(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache()
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    with origin.outage():
        cache = open_cache()
        film = cache.entry(url)
        assert fetch(cache, film) == content(0, SIZE)
        assert film.state is DownloadState.COMPLETE
    assert len(origin.requests) == 1


@pytest.mark.fault(
    "network",
    "the origin is away, and a part of the file is here",
    client="the part that is here; for the rest an error",
    kept="the part",
    next_reader="the same, and the rest when the origin is back",
)
def test_what_is_stored_is_served_and_kept_while_the_origin_is_away(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache(fill="requested")
    fetch(cache, cache.entry(url), 0, HALF)
    cache.close()
    with origin.outage():
        cache = open_cache(fill="requested")
        film = cache.entry(url)
        assert fetch(cache, film, 0, HALF) == content(0, HALF)
        with pytest.raises(OriginError):
            fetch(cache, film, HALF, SIZE)
        assert fetch(cache, film, 0, HALF) == content(0, HALF)
        assert film.ranges == [ByteRange(0, HALF)]
    film.retry()
    assert fetch(cache, film) == content(0, SIZE)
    assert _asked(origin)[-1] == f"bytes={HALF}-{SIZE - 1}"
