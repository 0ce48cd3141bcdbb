"""What embedders do rarely, or by mistake: odd values, late calls, callbacks that close, forks."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache, DownloadState, Entry, KeyRule, Progress, Transition
from cachefsm.errors import (
    CacheBusy,
    CacheClosed,
    EntryNotFound,
    OriginStatus,
    StorageError,
    UsageError,
)
from cachefsm.scheduler import Priority
from tests.support.caches import WAIT_S, OpenCache, live_threads
from tests.support.faults import hold_after, hold_before_headers, status
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

SIZE = 1_000_000


@pytest.fixture
def film(cache: Cache, origin: Origin) -> Entry:
    """An entry that nobody has asked for yet; SIZE bytes at /film."""
    origin.put("/film", Resource(SIZE))
    return cache.entry(origin.url("/film"))


# -- values that make no sense -----------------------------------------------------


@pytest.mark.parametrize("timeout", [inf, 1e300, 10**400, float(threading.TIMEOUT_MAX)])
@pytest.mark.parametrize("wait", ["wait_for", "wait_playable", "wait_complete"])
def test_any_long_time_may_be_waited_for(
    film: Entry, origin: Origin, wait: str, timeout: float
) -> None:
    hold = origin.script(hold_before_headers(), times=None)
    asked = (0, 100) if wait == "wait_for" else ()
    waiting = in_thread(getattr(film, wait), *asked, timeout=timeout)
    assert hold.reached.wait(WAIT_S)
    hold.release()
    assert waiting.result(WAIT_S) is True


@pytest.mark.parametrize("timeout", [nan, "5s", b"5", [], 1j])
@pytest.mark.parametrize("wait", ["wait_for", "wait_playable", "wait_complete"])
def test_what_is_no_number_of_seconds_cannot_be_waited_for(
    film: Entry, origin: Origin, wait: str, timeout: Any
) -> None:
    asked = (0, 100) if wait == "wait_for" else ()
    with pytest.raises(UsageError, match="is no number of seconds"):
        getattr(film, wait)(*asked, timeout=timeout)
    assert origin.requests == []


@pytest.mark.parametrize("ranges", [3, [3], [(0, 1, 2)], "ab", [None]])
def test_parts_that_are_no_pairs_are_refused(film: Entry, ranges: Any) -> None:
    with pytest.raises(UsageError, match="pairs"):
        film.prefetch(ranges=ranges)
    assert film.state is DownloadState.NOT_STARTED


@pytest.mark.parametrize("offset", [-1, 1.5, nan, "0", None])
def test_only_a_byte_that_can_be_is_explained(film: Entry, offset: Any) -> None:
    with pytest.raises(UsageError, match="there is no byte"):
        film.explain(offset)


def test_a_priority_that_is_no_text_is_refused(film: Entry) -> None:
    with pytest.raises(UsageError, match="is no priority"):
        film.start([])  # type: ignore[arg-type]


def test_an_empty_key_is_a_key(cache: Cache, film: Entry, origin: Origin) -> None:
    assert cache.entry(origin.url("/film"), key="").id != film.id


def test_a_key_that_is_no_text_is_refused(cache: Cache, origin: Origin) -> None:
    for key in ("\ud800", b"key", 3):
        with pytest.raises(UsageError, match="is no key"):
            cache.entry(origin.url("/film"), key=key)  # type: ignore[arg-type]
    assert cache.entries() == []


def test_the_names_of_a_key_rule_are_a_list_not_letters() -> None:
    with pytest.raises(UsageError, match="list"):
        KeyRule("cdn.example", "token")


@pytest.mark.parametrize("name", ["nul\0", "x" * 300])
def test_a_directory_that_no_system_can_make_is_an_error_of_storage(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(StorageError, match="cannot use"):
        Cache(tmp_path / name)


def test_a_directory_in_the_home_of_nobody_is_an_error_of_storage() -> None:
    with pytest.raises(StorageError, match="cannot use"):
        Cache("~no-such-person/cache")


def test_the_hosts_to_allow_are_a_list_not_letters(cache: Cache, origin: Origin) -> None:
    with pytest.raises(UsageError, match="list"):
        cache.serve(allow="example.test")
    with pytest.raises(UsageError, match="list"):
        cache.prefetch_playlist(origin.url("/list.m3u8"), allow="example.test")
    assert origin.requests == []


@pytest.mark.parametrize("items", [-1, 1.5, "3", None])
def test_so_many_items_of_a_playlist_cannot_be_prefetched(
    cache: Cache, origin: Origin, items: Any
) -> None:
    origin.put("/list.m3u8", Resource.of(b"#EXTM3U\n#EXTINF:4,\n1.ts\n#EXTINF:4,\n2.ts\n"))
    with pytest.raises(UsageError, match="no number of items"):
        cache.prefetch_playlist(origin.url("/list.m3u8"), items)
    assert origin.requests == []


def test_events_too_are_waited_for_any_long_time(cache: Cache, film: Entry) -> None:
    with cache.listen() as mailbox:
        film.start()
        event = mailbox.get(inf)
        assert event is not None
        assert event.event == "initialize"
        with pytest.raises(UsageError, match="is no number of seconds"):
            mailbox.get(nan)


# -- closed files and caches -------------------------------------------------------


def test_the_raw_file_too_is_closed_for_good(cache: Cache, film: Entry) -> None:
    stream = film.open()
    raw = stream.raw
    assert stream.read(10) == content(0, 10)
    stream.close()
    for use in (raw.read, raw.readall, raw.tell, raw.readable, raw.seekable, lambda: raw.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert stream.closed


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_a_file_is_sought_from_its_start_its_end_or_where_one_is(film: Entry, whence: int) -> None:
    with film.open() as stream:
        with pytest.raises(io.UnsupportedOperation):
            stream.seek(0, whence)
        assert stream.tell() == 0


def test_whatever_a_closed_cache_is_asked_it_says_that_it_is_closed(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    cache.close()
    late: tuple[Callable[[], object], ...] = (
        cache.queued_urls,
        cache.restore_queue,
        cache.serve,
        lambda: cache.outdate(origin.url("/film"), "it is old"),
    )
    for use in late:
        with pytest.raises(CacheClosed):
            use()
    assert live_threads() == []


def test_a_resolver_may_close_the_cache(open_cache: OpenCache, origin: Origin) -> None:
    origin.script(status(403), times=None)
    closed = threading.Event()

    def give_up(_url: str, _error: Exception) -> None:
        cache.close()
        closed.set()

    cache = open_cache(resolver=give_up)
    waiting = in_thread(cache.entry(origin.url("/film")).wait_complete)
    assert isinstance(waiting.exception(WAIT_S), CacheClosed)
    assert closed.wait(WAIT_S)
    assert live_threads() == []
    open_cache().close()  # its directory was let go


def test_a_resolver_that_leaves_its_thread_has_no_link(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.script(status(403), times=None)
    cache = open_cache(resolver=lambda _url, _error: sys.exit("no link"))
    waiting = in_thread(cache.entry(origin.url("/film")).wait_complete)
    assert isinstance(waiting.exception(WAIT_S), OriginStatus)


def test_a_signal_handler_may_close_the_cache_that_is_closing(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    def interrupt(event: Transition | Progress) -> None:
        if isinstance(event, Transition) and event.reason == "shutdown":
            # The main thread is closing the cache, and waits for this one to end.
            signal.pthread_kill(closer, signal.SIGUSR1)
            assert handled.wait(WAIT_S)

    def handle(_number: int, _frame: object) -> None:
        cache.close()
        handled.set()

    closer, handled = threading.get_ident(), threading.Event()
    hold = origin.script(hold_before_headers())
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        cache.subscribe(interrupt)
        film.start()
        assert hold.reached.wait(WAIT_S)
        cache.close()
        assert handled.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- forks -------------------------------------------------------------------------


def _forked(work: Callable[[], object]) -> int:
    """Fork, do *work* in the child; return its process id. The child ends with status 0, or 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as of 3.12: there are threads
        process_id = os.fork()
    if process_id == 0:
        code = 1
        with suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return process_id


def test_a_fork_that_closes_its_copy_takes_nothing_from_its_parent(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    hold = origin.script(hold_after(1000))
    cache = open_cache()
    film = cache.entry(origin.url("/film"))
    film.start()
    assert hold.reached.wait(WAIT_S)
    assert film.wait_for(0, 1000, WAIT_S)
    _, code = os.waitpid(_forked(cache.close), 0)
    assert code == 0
    with pytest.raises(CacheBusy, match=f"process {os.getpid()}"):
        Cache(cache.directory)
    hold.release()
    assert film.wait_complete(WAIT_S)


def test_a_fork_that_lives_on_does_not_keep_the_directory(open_cache: OpenCache) -> None:
    receiving, sending = os.pipe()
    cache = open_cache()

    def outlive() -> None:
        os.close(sending)
        os.read(receiving, 1)

    process_id = _forked(outlive)
    try:
        cache.close()
        open_cache().close()
    finally:
        os.close(sending)
        os.close(receiving)
        os.waitpid(process_id, 0)


# -- what goes away ----------------------------------------------------------------


def test_a_directory_that_somebody_deleted_is_an_error_of_storage(cache: Cache) -> None:
    shutil.rmtree(cache.directory)
    with pytest.raises(StorageError, match="No such file"):
        cache.stats()


# -- removed meanwhile -------------------------------------------------------------


def test_an_order_that_comes_just_after_the_removal_says_so(cache: Cache, film: Entry) -> None:
    with cache.registry.lease(film.id) as entry:
        film.remove()
        with pytest.raises(EntryNotFound):
            entry.start("person", Priority.PERSON)


def test_what_is_removed_is_no_trouble_with_storage(
    cache: Cache, film: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    assert film.wait_complete(WAIT_S)
    with cache.registry.lease(film.id) as entry:
        film.remove()
        entry.check_file()  # as the conductor does, and who begins to read
    assert caplog.text == ""


def test_a_reader_that_is_answered_after_the_removal_leaves_nothing_in_the_queue(
    cache: Cache, film: Entry, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    hold = origin.script(hold_before_headers())
    with film.open() as stream:
        reading = in_thread(stream.read, 1)
        assert hold.reached.wait(WAIT_S)
        film.remove()
        assert isinstance(reading.exception(WAIT_S), EntryNotFound)
    assert caplog.text == ""
