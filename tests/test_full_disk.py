"""Disks that are full, or take no larger file: clients get every byte all the same.

The kernel does the refusing, on a file system of a few MiB. Where mounting is not
allowed most of this is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState
from cachefsm.errors import EntryNotFound, StorageError
from tests.support.caches import EAGER, WAIT_S, OpenCache, eventually, fetch
from tests.support.clients import ask, at_once, serve_mounted
from tests.support.disks import (
    assert_true,
    episodes,
    file_size_limit,
    fill,
    read_only,
    small_disk,
)
from tests.support.faults import hold_after, hold_from
from tests.support.origin import Origin, Resource, content

MIB = 1 << 20
SIZE = 20 * MIB
DISK = 8 * MIB
CLIENTS = 4


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
    assert episodes(caplog) == ["refuses"]
    assert_true(disk)


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
    assert episodes(caplog) == ["refuses"]
    filler.unlink()
    assert fetch(cache, entry) == content(0, 2 * MIB)
    assert entry.wait_complete(WAIT_S)
    eventually(lambda: episodes(caplog) == ["refuses", "works"])
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
    assert episodes(caplog) == ["refuses"]
    assert_true(disk)


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
    cache = open_cache(retries=replace(EAGER, exhausted_s=0.05))
    filler = fill(disk, leave_bytes=MIB)
    entry = cache.entry(film)
    entry.start()
    with pytest.raises(StorageError):
        entry.wait_complete(WAIT_S)
    filler.unlink()
    eventually(lambda: entry.state is DownloadState.COMPLETE)
    assert assert_true(disk) == 2 * MIB


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
    assert episodes(caplog) == ["refuses"]
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
    assert episodes(caplog) == ["refuses", "works"]


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


def _remove_all(cache: Cache) -> None:
    for entry in cache.entries():
        entry.remove()


def _collect(cache: Cache) -> None:
    eventually(lambda: cache.collect(0)["bytes_stored"] == 0)  # those in use for a moment stay


@pytest.mark.fault(
    "disk",
    "it is full, and a person makes room",
    client="notices nothing; readers of what is removed are cut off",
    kept="what was not chosen",
    next_reader="what is chosen is fetched again",
)
@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("make_room", [_remove_all, _collect])
def test_what_is_stored_can_be_given_up_on_a_full_disk(
    open_cache: OpenCache,
    origin: Origin,
    disk: Path,
    make_room: Callable[[Cache], None],
    reopened: bool,
) -> None:
    cache = open_cache()
    for name in ("/one", "/two"):
        origin.put(name, Resource(2 * MIB))
        assert cache.entry(origin.url(name)).wait_complete(WAIT_S)
    if reopened:
        cache.close()
    filler = fill(disk)
    cache = open_cache() if reopened else cache
    for name in ("/one", "/two"):
        assert fetch(cache, cache.entry(origin.url(name))) == content(0, 2 * MIB)
    make_room(cache)
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 3 * MIB
    assert cache.stats()["bytes_stored"] == 0
    cache.close()
    filler.unlink()
    cache = open_cache()
    assert fetch(cache, cache.entry(origin.url("/one"))) == content(0, 2 * MIB)


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
    assert episodes(caplog) == ["refuses", "works"]
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
    assert episodes(caplog) == ["refuses"]
    assert 0 < assert_true(cache.directory) <= 4 * MIB


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
