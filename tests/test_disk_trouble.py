"""Disks that are full, read-only or failing: clients get every byte, and nothing wrong is kept.

The kernel does the refusing, on file systems of a few MiB. Where mounting is not
allowed most of this is skipped.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState, Entry
from cachefsm.errors import EntryNotFound, StorageError
from cachefsm.models import Store
from cachefsm.verify import Scrubber
from tests.support.caches import HASTY, WAIT_S, OpenCache, eventually, fetch, recorded
from tests.support.clients import ask, at_once, opened, serve_mounted
from tests.support.databases import aborting, locked
from tests.support.disks import (
    abort,
    failing_disk,
    file_size_limit,
    fill,
    read_only,
    small_disk,
    unreadable,
)
from tests.support.faults import hold_after, hold_from
from tests.support.origin import Origin, Resource, content

MIB = 1 << 20
SIZE = 20 * MIB
DISK = 8 * MIB
CLIENTS = 4
EAGER = replace(HASTY, exhausted_s=0.0)
"""Tries again to store as soon as somebody wants bytes, not after three seconds."""


@pytest.fixture
def film(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The cache's directory, on a disk that holds less than the film."""
    with small_disk(tmp_path / "cache", DISK) as mounted:
        yield mounted


def _episodes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines about storage, shortened to what they say."""
    lines = [record for record in caplog.records if record.name == "cachefsm.trouble"]
    assert {line.levelno for line in lines} <= {logging.WARNING}
    return ["refuses" if "refuses" in line.getMessage() else "works" for line in lines]


def _assert_true(directory: Path) -> int:
    """Check that whatever is recorded is in the file; return how much that is."""
    found = recorded(directory)
    for start, data in found.stored():
        assert data == content(start, start + len(data))
    size = sum(len(data) for _, data in found.stored())
    assert found.bytes_present == sum(chunk.size for chunk in found.chunks) == size
    return size


# -- full --------------------------------------------------------------------------


@pytest.mark.fault(
    "disk",
    "it fills up while a file arrives",
    client="the right bytes: what cannot be stored comes straight from the origin",
    kept="what was stored and recorded before",
    next_reader="what is stored; the rest straight from the origin, for itself alone",
)
def test_every_client_gets_every_byte_of_a_file_that_does_not_fit(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = open_cache()
    with serve_mounted(cache, origin) as proxy:
        url = f"{proxy.url}m/film"
        bodies = at_once(CLIENTS, lambda number: ask(url).body)
        assert all(body == content(0, SIZE) for body in bodies)
        # The first one fills the disk; then each gets what is missing by itself.
        assert len(origin.requests) <= 2 + CLIENTS
        late = ask(url, {"Range": f"bytes={SIZE - 10}-"})
        assert (late.status, late.body) == (206, content(SIZE - 10, SIZE))
        assert len(origin.requests) <= 3 + CLIENTS
    cache.close()
    assert _episodes(caplog) == ["refuses"]
    _assert_true(disk)


@pytest.mark.fault("disk", "it is full before anything has arrived")
def test_what_has_been_stored_is_still_served_from_a_full_disk(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    cache = open_cache(fill="requested", read_ahead=MIB)
    entry = cache.entry(film)
    assert fetch(cache, entry, 0, 2 * MIB) == content(0, 2 * MIB)
    fill(disk)
    with origin.outage():
        assert fetch(cache, entry, 0, 2 * MIB) == content(0, 2 * MIB)


@pytest.mark.fault(
    "disk",
    "it has space again",
    client="the right bytes",
    kept="everything from then on",
    next_reader="what is stored",
)
def test_bytes_are_stored_again_when_there_is_space_again(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin.put("/film", Resource(2 * MIB))
    cache = open_cache(retries=EAGER)
    entry = cache.entry(film)
    filler = fill(disk, leave_bytes=MIB)
    assert fetch(cache, entry) == content(0, 2 * MIB)
    assert _episodes(caplog) == ["refuses"]
    filler.unlink()
    assert fetch(cache, entry) == content(0, 2 * MIB)
    assert entry.wait_complete(WAIT_S)
    eventually(lambda: _episodes(caplog) == ["refuses", "works"])
    asked = len(origin.requests)
    assert fetch(cache, entry) == content(0, 2 * MIB)
    assert len(origin.requests) == asked


@pytest.mark.fault("disk", "it fills up while a file arrives")
def test_an_episode_is_one_line_however_long_it_lasts(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = open_cache(retries=EAGER)
    for _ in range(5):
        assert fetch(cache, cache.entry(film)) == content(0, SIZE)
    cache.close()
    assert _episodes(caplog) == ["refuses"]
    _assert_true(disk)


@pytest.mark.fault("disk", "it fills up while a file arrives")
def test_a_full_disk_is_tried_again_now_and_then_and_no_more(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    """With somebody who waits all the time and an hour's rest between two tries."""
    cache = open_cache()
    entry = cache.entry(film)
    entry.start()
    for _ in range(5):
        with pytest.raises(StorageError):
            entry.wait_complete(WAIT_S)
    assert len(origin.requests) <= 2


@pytest.mark.fault("disk", "it has space again")
def test_a_download_goes_on_by_itself_when_there_is_space_again(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    origin.put("/film", Resource(2 * MIB))
    cache = open_cache(retries=replace(HASTY, exhausted_s=0.05))
    filler = fill(disk, leave_bytes=MIB)
    entry = cache.entry(film)
    entry.start()
    with pytest.raises(StorageError):
        entry.wait_complete(WAIT_S)
    filler.unlink()
    eventually(lambda: entry.state is DownloadState.COMPLETE)
    assert _assert_true(disk) == 2 * MIB


@pytest.mark.fault("disk", "it fills up while a file arrives")
def test_a_full_disk_under_one_download_ends_no_other(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    origin.put("/song", Resource(MIB))
    hold = origin.script(hold_after(MIB // 2), path="/song")
    cache = open_cache()
    song = cache.entry(origin.url("/song"))
    song.start()
    assert hold.reached.wait(WAIT_S)
    assert fetch(cache, cache.entry(film)) == content(0, SIZE)
    hold.release()
    assert fetch(cache, song) == content(0, MIB)


@pytest.mark.fault("disk", "it fills up while a file arrives")
def test_a_reader_of_python_gets_every_byte_too(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    cache = open_cache()
    with cache.entry(film).open() as stream:
        assert stream.read() == content(0, SIZE)


@pytest.mark.fault(
    "disk",
    "it fills up, and answers cannot be joined",
    client="a cut for who was there; then everything straight from the front",
    kept="nothing",
    next_reader="the right bytes, straight from the origin",
)
def test_a_file_without_a_strong_validator_is_served_straight_from_its_beginning(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    cache = open_cache()
    with serve_mounted(cache, origin) as proxy:
        # The one that is there when the disk fills up cannot be joined to a second
        # answer, so it is cut; whoever comes then is told everything from the front.
        with pytest.raises(Exception, match="IncompleteRead"):
            ask(f"{proxy.url}m/film")
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)


# What the client wants may differ from what the origin was asked for first.
_WISHES = {
    "everything": ({}, 0, SIZE),
    "a part": ({"Range": "bytes=5000-5999"}, 5000, 6000),
    "the end": ({"Range": "bytes=-1000"}, SIZE - 1000, SIZE),
    "a part of another version": (
        {"Range": "bytes=5000-5999", "If-Range": '"another"'},
        0,
        SIZE,
    ),
}


@pytest.mark.fault(
    "disk",
    "it is full before anything has arrived",
    client="the right bytes, straight from the origin",
    kept="nothing",
    next_reader="the same",
)
@pytest.mark.parametrize("wish", _WISHES.values(), ids=_WISHES.keys())
def test_whatever_part_is_wanted_is_served_straight_when_nothing_can_be_stored(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    disk: Path,
    wish: tuple[dict[str, str], int, int],
) -> None:
    fields, start, stop = wish
    cache = open_cache()
    cache.entry(film)
    fill(disk)
    with serve_mounted(cache, origin) as proxy:
        reply = ask(f"{proxy.url}m/film", fields)
    assert reply.status == (200 if (start, stop) == (0, SIZE) else 206)
    assert reply.body == content(start, stop)
    assert reply["Content-Length"] == str(stop - start)


@pytest.mark.fault(
    "disk",
    "it is full, and nobody has asked for the URL before",
    client="the right bytes, straight from the origin",
    kept="nothing, not even a row",
    next_reader="the same, until there is space",
)
@pytest.mark.parametrize("wish", _WISHES.values(), ids=_WISHES.keys())
def test_what_nobody_has_asked_for_before_is_served_from_a_full_disk_too(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
    wish: tuple[dict[str, str], int, int],
) -> None:
    fields, start, stop = wish
    cache = open_cache()
    fill(disk)
    with serve_mounted(cache, origin) as proxy:
        for _ in range(2):
            reply = ask(f"{proxy.url}m/film", fields)
            assert reply.status == (200 if (start, stop) == (0, SIZE) else 206)
            assert reply.body == content(start, stop)
        head = ask(f"{proxy.url}m/film", method="HEAD")
        assert (head.status, head["Content-Length"]) == (200, str(SIZE))
    assert _episodes(caplog) == ["refuses"]
    assert cache.entries() == []


@pytest.mark.fault("disk", "it is full, and nobody has asked for the URL before")
def test_a_new_url_is_stored_as_soon_as_there_is_space_for_it(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin.put("/film", Resource(2 * MIB))
    cache = open_cache()
    filler = fill(disk)
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, 2 * MIB)
        filler.unlink()
        assert ask(f"{proxy.url}m/film").body == content(0, 2 * MIB)
        assert cache.entry(film).wait_complete(WAIT_S)
        asked = len(origin.requests)
        assert ask(f"{proxy.url}m/film").body == content(0, 2 * MIB)
    assert (asked, len(origin.requests)) == (2, 2)
    assert _episodes(caplog) == ["refuses", "works"]


@pytest.mark.fault("disk", "it is full, and nobody has asked for the URL before")
def test_from_python_a_new_url_can_be_read_on_a_full_disk_and_nothing_else(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    cache = open_cache()
    fill(disk)
    entry = cache.entry(film)
    with entry.open() as stream:
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == content(SIZE - 10, SIZE)
        stream.seek(5 * MIB)
        assert stream.read(MIB) == content(5 * MIB, 6 * MIB)
    for order in (entry.start, entry.pin, entry.cancel, lambda: entry.wait_complete(WAIT_S)):
        with pytest.raises(StorageError, match="full"):
            order()
    assert (entry.state, entry.ranges) == (DownloadState.NOT_STARTED, [])
    entry.remove()
    with pytest.raises(EntryNotFound):
        entry.describe()


@pytest.mark.fault("disk", "it is full, and nobody has asked for the URL before")
def test_a_new_url_on_a_full_disk_harms_nobody_else(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    origin.put("/song", Resource(MIB))
    cache = open_cache()
    assert cache.entry(origin.url("/song")).wait_complete(WAIT_S)
    fill(disk)
    with serve_mounted(cache, origin) as proxy:
        bodies = at_once(CLIENTS, lambda number: ask(f"{proxy.url}m/film?{number % 2}").body)
        assert all(body == content(0, SIZE) for body in bodies)
        assert ask(f"{proxy.url}m/song").body == content(0, MIB)


def test_a_cache_is_closed_in_order_on_a_full_disk(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    hold = origin.script(hold_after(MIB))
    cache = open_cache()
    entry = cache.entry(film)
    entry.start()
    assert hold.reached.wait(WAIT_S)
    assert entry.wait_for(0, MIB, WAIT_S)
    filler = fill(disk)
    cache.close()  # the fixture looks for threads that are left
    filler.unlink()
    cache = open_cache()
    assert fetch(cache, cache.entry(film), 0, MIB) == content(0, MIB)


@pytest.mark.fault(
    "disk",
    "it is full when a cache that holds something is opened",
    client="the right bytes: what is stored, and the rest straight from the origin",
    kept="everything",
    next_reader="the same; what comes once there is space is stored",
)
def test_a_cache_can_be_opened_on_a_full_disk_and_serves_what_it_has(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("/film", "/half", "/new"):
        origin.put(name, Resource(2 * MIB))
    hold = origin.script(hold_from(MIB), path="/half", times=None)
    cache = open_cache()
    assert cache.entry(film).wait_complete(WAIT_S)
    half = cache.entry(origin.url("/half"))
    half.start()
    assert half.wait_for(0, MIB, WAIT_S)
    cache.close()
    hold.release()
    filler = fill(disk)
    cache = open_cache(retries=EAGER)
    asked = len(origin.requests)
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, 2 * MIB)
        assert {request.path for request in origin.requests[asked:]} <= {"/half"}
        for name in ("half", "new"):
            assert ask(f"{proxy.url}m/{name}").body == content(0, 2 * MIB)
        filler.unlink()
        for name in ("half", "new"):
            assert cache.entry(origin.url(f"/{name}")).wait_complete(WAIT_S)
    assert _episodes(caplog) == ["refuses", "works"]
    cache.close()
    states = {entry.state for entry in open_cache().entries()}
    assert states == {DownloadState.COMPLETE}


@pytest.mark.fault("disk", "it is full when an empty cache is opened, or read-only")
def test_a_directory_on_a_full_disk_is_refused_in_one_line(
    open_cache: OpenCache, disk: Path
) -> None:
    fill(disk)
    with pytest.raises(StorageError) as caught:
        open_cache()
    assert "\n" not in str(caught.value)


# -- limited -----------------------------------------------------------------------


@pytest.mark.fault(
    "disk",
    "a quota or limit refuses a larger file",
    client="the right bytes: what cannot be stored comes straight from the origin",
    kept="what fitted",
    next_reader="what is stored; the rest straight from the origin",
)
def test_a_limit_on_the_size_of_files_costs_no_client_a_byte(
    open_cache: OpenCache, origin: Origin, film: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache()
    with file_size_limit(4 * MIB), serve_mounted(cache, origin) as proxy:
        for _ in range(2):
            assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
        assert len(origin.requests) == 3
    cache.close()
    assert _episodes(caplog) == ["refuses"]
    assert 0 < _assert_true(cache.directory) <= 4 * MIB


@pytest.mark.fault("disk", "a quota or limit refuses a larger file")
def test_another_version_under_a_limit_is_never_mixed_with_the_stored_one(
    open_cache: OpenCache, origin: Origin, film: str
) -> None:
    cache = open_cache(retries=EAGER)
    with file_size_limit(4 * MIB), serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
        origin.put("/film", Resource(SIZE, version=1))
        reply = ask(f"{proxy.url}m/film", {"Range": f"bytes={SIZE // 2}-"})
    assert reply.status == 206
    assert reply.body == content(SIZE // 2 + 1, SIZE + 1)
    assert reply["ETag"] == '"v1"'


# -- read-only ---------------------------------------------------------------------


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Path]:
    """The cache's directory, on a disk that the kernel may make read-only."""
    with failing_disk(tmp_path / "cache", 48 * MIB, 48 * MIB) as mounted:
        yield mounted


@pytest.mark.fault(
    "disk",
    "it becomes read-only",
    client="the right bytes",
    kept="what is recorded",
    next_reader="what is stored, without the origin; the rest straight from it",
)
def test_a_disk_that_becomes_read_only_costs_no_client_a_byte(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    fragile: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = open_cache()
    hold = origin.script(hold_after(2 * MIB))
    entry = cache.entry(film)
    entry.start()
    assert entry.wait_for(0, 2 * MIB, WAIT_S)
    abort(fragile)
    hold.release()
    with serve_mounted(cache, origin) as proxy:
        for _ in range(2):
            assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
    cache.close()
    assert _episodes(caplog) == ["refuses"]


@pytest.mark.fault("disk", "it becomes read-only")
def test_what_is_complete_is_served_from_a_read_only_disk_without_its_origin(
    open_cache: OpenCache, origin: Origin, film: str, fragile: Path
) -> None:
    cache = open_cache()
    assert cache.entry(film).wait_complete(WAIT_S)
    cache.close()
    cache = open_cache()  # which has not opened the file yet
    abort(fragile)
    with origin.outage(), serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)


@pytest.mark.fault(
    "disk",
    "it is full when an empty cache is opened, or read-only",
    client="nothing: opening is refused in one line",
    kept="everything",
    next_reader="finds it as it was",
)
def test_a_read_only_directory_is_refused_in_one_line_that_names_it(
    open_cache: OpenCache, origin: Origin, film: str, disk: Path
) -> None:
    origin.put("/film", Resource(MIB))
    cache = open_cache()
    assert cache.entry(film).wait_complete(WAIT_S)
    cache.close()
    with read_only(disk):
        with pytest.raises(StorageError, match=str(disk)) as caught:
            open_cache()
        assert "\n" not in str(caught.value)
    cache = open_cache()
    assert cache.entry(film).state is DownloadState.COMPLETE


@pytest.mark.fault("disk", "it becomes read-only")
def test_what_cannot_be_removed_from_a_read_only_disk_is_said_once(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    fragile: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = open_cache()
    assert cache.entry(film).wait_complete(WAIT_S)
    orphan = recorded(fragile).file.with_name("0" * 32 + "-00000000")
    orphan.touch()
    abort(fragile)
    with closing(Store.open(fragile / "cache.sqlite3")) as store:
        scrubber = Scrubber(cache.registry, store, fragile / "content", 1.0)
        for _ in range(3):
            assert scrubber.step() is not None
    (line,) = [line for line in caplog.messages if orphan.name in line]
    assert "Read-only" in line


# -- unreadable --------------------------------------------------------------------


@pytest.fixture
def stored(cache: Cache, origin: Origin) -> Iterator[Entry]:
    """A complete entry, larger than what sockets and pieces hold, that is being read."""
    origin.put("/film", Resource(SIZE))
    film = cache.entry(origin.url("/film"))
    assert film.wait_complete(WAIT_S)
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.read(0, 10) == content(0, 10)
        yield film


@pytest.mark.fault(
    "disk",
    "it fails to read what it has (EIO)",
    client="the right bytes: what cannot be read comes straight from the origin",
    kept="everything, until a look finds what is damaged",
    next_reader="the right bytes",
)
def test_what_cannot_be_read_comes_from_the_origin(
    cache: Cache, origin: Origin, stored: Entry
) -> None:
    with serve_mounted(cache, origin) as proxy:
        with opened(f"{proxy.url}m/film") as response:
            body = response.read(10)  # the rest is more than the sockets hold
            with unreadable(recorded(cache.directory).file):
                body += response.read()
    assert body == content(0, SIZE)
    (_, request) = origin.requests
    assert str(request.range).endswith(f"-{SIZE - 1}")


@pytest.mark.fault("disk", "it fails to read what it has (EIO)")
def test_what_cannot_be_read_in_python_comes_from_the_origin(
    cache: Cache, origin: Origin, stored: Entry
) -> None:
    with stored.open() as stream:
        assert stream.read(10) == content(0, 10)
        with unreadable(recorded(cache.directory).file):
            assert stream.read() == content(10, SIZE)
    with closing(cache.open_reader(stored.id)) as reader:
        pieces = reader.pieces(0, SIZE)
        body = next(pieces)
        with unreadable(recorded(cache.directory).file):
            body += b"".join(pieces)
    assert body == content(0, SIZE)


@pytest.mark.fault("disk", "it fails to read what it has (EIO)")
def test_what_can_be_read_nowhere_is_a_cut(cache: Cache, origin: Origin, stored: Entry) -> None:
    with origin.outage(), serve_mounted(cache, origin) as proxy:
        with opened(f"{proxy.url}m/film") as response:
            response.read(10)
            with unreadable(recorded(cache.directory).file), pytest.raises(IncompleteRead):
                response.read()


# -- not what it was ---------------------------------------------------------------


def _directory(file: Path) -> None:
    """Put a directory in its place."""
    file.unlink()
    file.mkdir()


def _file_above(file: Path) -> None:
    """Put a file where it was in a directory."""
    shutil.rmtree(file.parent)
    file.parent.write_bytes(b"")


def _loop(file: Path) -> None:
    """Let its directory lead to itself."""
    shutil.rmtree(file.parent)
    file.parent.symlink_to(file.parent)


@pytest.mark.fault(
    "disk",
    "something else is where content belongs, and no file can be made there",
    client="the right bytes, straight from the origin",
    kept="nothing",
    next_reader="the same",
)
@pytest.mark.parametrize(
    "harm", [_directory, _file_above, _loop], ids=lambda harm: harm.__name__.strip("_")
)
def test_a_directory_that_is_not_what_it_was_costs_no_client_a_byte(
    open_cache: OpenCache, origin: Origin, film: str, harm: Callable[[Path], None]
) -> None:
    cache = open_cache()
    assert cache.entry(film).wait_complete(WAIT_S)
    with serve_mounted(cache, origin) as proxy:
        harm(recorded(cache.directory).file)
        for _ in range(3):
            assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
        assert ask(f"{proxy.url}m/film", {"Range": "bytes=5-9"}).body == content(5, 10)


# -- the database alone ------------------------------------------------------------


@pytest.mark.fault(
    "database",
    "it refuses a transition",
    client="the right bytes, straight from the origin",
    kept="state and rows as before: the move did not happen",
    next_reader="what is stored; the rest straight from the origin, until the database takes it",
)
def test_a_database_that_refuses_costs_no_client_a_byte(
    open_cache: OpenCache, origin: Origin, film: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache()
    entry = cache.entry(film)
    with serve_mounted(cache, origin) as proxy:
        with aborting(cache.directory / "cache.sqlite3", "BEFORE UPDATE ON cache_entries"):
            for _ in range(2):
                assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
            assert (entry.state, entry.ranges) == (DownloadState.NOT_STARTED, [])
    assert _episodes(caplog) == ["refuses"]


@pytest.mark.fault("database", "it refuses a transition")
def test_what_the_database_will_not_let_go_is_evicted_when_it_does(
    open_cache: OpenCache, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("/song", "/aria"):
        origin.put(name, Resource(2 * MIB))
    cache = open_cache(max_size=3 * MIB, grace=0)
    song, aria = (cache.entry(origin.url(name)) for name in ("/song", "/aria"))
    aria.pin()
    assert song.wait_complete(WAIT_S)
    reader = cache.open_reader(song.id)
    assert aria.wait_complete(WAIT_S)
    with aborting(cache.directory / "cache.sqlite3", "BEFORE UPDATE ON cache_entries"):
        reader.close()
        eventually(lambda: _episodes(caplog) == ["refuses"])
    eventually(lambda: cache.stats()["bytes_stored"] <= 3 * MIB)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.fault(
    "database",
    "another program keeps it locked",
    client="the right bytes: what is stored at once, the rest straight from the origin",
    kept="what is recorded",
    next_reader="what is stored; from the end of the lock on, everything is stored again",
)
def test_a_database_that_another_program_keeps_locked_costs_no_client_a_byte(
    open_cache: OpenCache, origin: Origin, film: str, caplog: pytest.LogCaptureFixture
) -> None:
    origin.put("/song", Resource(MIB))
    cache = open_cache(retries=EAGER)
    assert cache.entry(film).wait_complete(WAIT_S)
    with serve_mounted(cache, origin) as proxy:
        with locked(cache.directory / "cache.sqlite3"):
            for _ in range(5):
                assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
                assert ask(f"{proxy.url}m/song").body == content(0, MIB)
            (entry,) = ask(f"{proxy.url}-/entries").json()
            assert entry["state"] == "complete"
            assert len(origin.requests) == 6
        assert ask(f"{proxy.url}m/song").body == content(0, MIB)
        assert cache.entry(origin.url("/song")).wait_complete(WAIT_S)
    assert _episodes(caplog)[0] == "refuses"


# -- failing -----------------------------------------------------------------------


@pytest.mark.fault(
    "disk",
    "it takes bytes and fails to sync them",
    client="the right bytes",
    kept="what was synced before; what was not is dropped and fetched again",
    next_reader="the right bytes",
)
def test_what_a_disk_lost_after_it_had_taken_it_is_never_recorded_nor_served(
    open_cache: OpenCache,
    origin: Origin,
    film: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The write succeeds, the sync fails, the next sync says that all is well."""
    directory = tmp_path / "cache"
    directory.mkdir()
    with failing_disk(directory / "content", 64 * MIB, 6 * MIB) as lossy:
        cache = open_cache()
        for _ in range(2):
            assert fetch(cache, cache.entry(film)) == content(0, SIZE)
        cache.close()
        assert "refuses" in _episodes(caplog)
        _forget_what_is_read(lossy)
        _assert_true(directory)
        cache = open_cache(start=False)
        assert cache.entry(film).verify().damaged == ()


def _forget_what_is_read(disk: Path) -> None:
    """Have the next read come from the disk itself."""
    for path in disk.glob("??/*"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_a_cache_without_a_disk_to_write_on_keeps_no_caches_thread(
    open_cache: OpenCache, origin: Origin, film: str, fragile: Path
) -> None:
    cache = open_cache()
    hold = origin.script(hold_after(MIB))
    cache.entry(film).start()
    assert hold.reached.wait(WAIT_S)
    abort(fragile)
    cache.close()
    assert isinstance(cache, Cache)
