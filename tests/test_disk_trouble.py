"""Disks and databases that fail: clients get every byte, and nothing wrong is kept.

The kernel does the refusing. Where mounting is not allowed a part of this is skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import IncompleteRead
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState, Entry
from cachefsm.models import Store
from cachefsm.verify import Scrubber
from tests.support.caches import EAGER, WAIT_S, OpenCache, eventually, fetch, recorded
from tests.support.clients import ask, opened, serve_mounted
from tests.support.databases import aborting, locked
from tests.support.disks import (
    abort,
    assert_true,
    episodes,
    failing_disk,
    unreadable,
)
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource, content

MIB = 1 << 20
SIZE = 20 * MIB


@pytest.fixture
def film(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


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
    assert episodes(caplog) == ["refuses"]


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
def cache(open_cache: OpenCache) -> Cache:
    """A cache that does not look, at reads chosen by chance, whether its disk is sound."""
    return open_cache(verify_reads="never")


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
    assert episodes(caplog) == ["refuses"]


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
        eventually(lambda: episodes(caplog) == ["refuses"])
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
    assert episodes(caplog)[0] == "refuses"


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
        assert "refuses" in episodes(caplog)
        _forget_what_is_read(lossy)
        assert_true(directory)
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
