"""The embedding API: what a program that imports Cache can rely on."""

from __future__ import annotations

import io
import os
import threading
import wave
import zipfile
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import pytest

from cachefsm import ByteRange, Cache, CacheError, DownloadState, Entry
from cachefsm.errors import (
    CacheClosed,
    DownloadCancelled,
    EntryNotFound,
    IllegalMove,
    OriginStatus,
    StorageError,
    UsageError,
    WaitCancelled,
    WaitTimeout,
)
from cachefsm.semantics import parse_range
from tests.support.caches import (
    HASTY,
    WAIT_S,
    Clock,
    OpenCache,
    fetch,
    live_threads,
)
from tests.support.faults import hold_after, hold_before_headers, stall_after, status
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

MIB = 1 << 20
SIZE = 1_000_000
BRIEF_S = 0.05  # for waits that must end in vain


@pytest.fixture
def film(cache: Cache, origin: Origin) -> Entry:
    """An entry that nobody has asked for yet; SIZE bytes at /film."""
    origin.put("/film", Resource(SIZE))
    return cache.entry(origin.url("/film"))


def _complete(entry: Entry) -> Entry:
    assert entry.wait_complete(WAIT_S)
    return entry


def _held_download(entry: Entry, origin: Origin, after_bytes: int = 300_000) -> None:
    """Start *entry* and return once the origin holds it, *after_bytes* being here."""
    hold = origin.script(hold_after(after_bytes))
    entry.start()
    assert hold.reached.wait(WAIT_S)
    assert entry.wait_for(0, after_bytes, WAIT_S)


# -- entries -----------------------------------------------------------------------


def test_registering_an_entry_asks_the_origin_nothing(film: Entry, origin: Origin) -> None:
    assert film.state is DownloadState.NOT_STARTED
    assert (film.downloaded_bytes, film.total_bytes, film.ranges) == (0, None, [])
    assert not film.has(0, 1)
    assert not film.is_playable()
    assert origin.requests == []


def test_one_url_is_one_entry(cache: Cache) -> None:
    first = cache.entry("http://example.test/film")
    assert cache.entry("http://example.test/film").id == first.id
    assert [entry.id for entry in cache.entries()] == [first.id]
    assert cache.find(first.id).url == first.url


def test_the_query_is_part_of_the_key(cache: Cache) -> None:
    assert (
        cache.entry("http://example.test/film?a=1").id
        != cache.entry("http://example.test/film?a=2").id
    )


def test_a_key_tells_apart_what_one_url_serves(cache: Cache) -> None:
    url = "http://example.test/film"
    assert cache.entry(url, key="alice").id != cache.entry(url, key="bob").id


@pytest.mark.parametrize("url", ["", "film.mkv", "file:///etc/passwd", "ftp://example.test/film"])
def test_what_is_no_http_url_is_refused(cache: Cache, url: str) -> None:
    with pytest.raises(UsageError):
        cache.entry(url)


def test_an_unknown_id_is_said_to_be_unknown(cache: Cache) -> None:
    with pytest.raises(EntryNotFound):
        cache.find(17)


def test_what_is_shown_of_an_entry_holds_no_secrets(cache: Cache) -> None:
    entry = cache.entry("http://user:hunter2@example.test/film?token=hunter2")
    for shown in (entry.url, repr(entry), str(entry.describe()), repr(cache)):
        assert "hunter2" not in shown


# -- downloading -------------------------------------------------------------------


def test_a_started_download_ends_complete_with_the_origins_bytes(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    film.start()
    assert _complete(film).state is DownloadState.COMPLETE
    assert film.downloaded_bytes == film.total_bytes == SIZE
    assert film.ranges == [ByteRange(0, SIZE)]
    assert film.has(0, SIZE)
    assert film.is_playable()
    assert fetch(cache, film) == content(0, SIZE)
    assert len(origin.requests) == 1


def test_waiting_for_the_end_fetches_without_being_told_to(film: Entry) -> None:
    assert film.wait_complete(WAIT_S)


def test_starting_a_complete_download_asks_the_origin_nothing(film: Entry, origin: Origin) -> None:
    _complete(film).start()
    assert film.state is DownloadState.COMPLETE
    assert film.wait_complete(WAIT_S)
    assert len(origin.requests) == 1


def test_part_of_a_file_can_be_started(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    film = open_cache(fill="requested").entry(origin.url("/film"))
    film.start("prefetch", 200_000, 300_000)
    assert film.wait_for(200_000, 300_000, WAIT_S)
    assert film.ranges == [ByteRange(200_000, 300_000)]
    assert [request.range for request in origin.requests] == ["bytes=200000-299999"]


@pytest.mark.parametrize("ask", ["has", "wait_for", "start", "verify", "prefetch"])
@pytest.mark.parametrize(
    "part", [(-1, 2), (-2, -1), (5, 2), (0.5, 2), (0, "2"), (None, 2), (2**70, 2**71), (nan, nan)]
)
def test_what_is_no_part_of_a_file_is_refused(film: Entry, ask: str, part: tuple) -> None:
    start, stop = part
    asks = {
        "has": lambda: film.has(start, stop),
        "wait_for": lambda: film.wait_for(start, stop, WAIT_S),
        "start": lambda: film.start(start=start, stop=stop),
        "verify": lambda: film.verify(start=start, stop=stop),
        "prefetch": lambda: film.prefetch(ranges=[part]),
    }
    with pytest.raises(UsageError, match="there is no byte from") as caught:
        asks[ask]()
    assert isinstance(caught.value, ValueError)  # as it was once
    assert film.state == "not_started"


def test_a_part_may_be_empty_or_go_on_behind_the_end(film: Entry) -> None:
    assert film.wait_for(5, 2**70, WAIT_S)
    assert film.has(5, 2**70)
    assert film.has(5, 5)
    assert not film.verify(start=5, stop=2**70).damaged


def test_an_unknown_priority_is_refused(film: Entry) -> None:
    with pytest.raises(UsageError, match="'soon'"):
        film.start(priority="soon")


def test_a_cache_that_was_not_started_fetches_nothing(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    film = open_cache(start=False).entry(origin.url("/film"))
    film.start()
    assert not film.wait_for(0, 1, BRIEF_S)
    assert origin.requests == []


# -- what is fetched beyond what is asked for --------------------------------------


def test_fill_rest_fetches_everything_while_somebody_reads(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="rest", grace=3600)
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film, 500_000, 500_001) == content(500_000, 500_001)
    # Not wait_complete, which would want it all by itself.
    origin.wait_until(lambda: origin.body_bytes_sent >= SIZE)


def test_fill_rest_pauses_when_nobody_reads_any_more(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(stall_after(300_000))
    cache = open_cache(fill="rest", grace=0)
    film = cache.entry(origin.url("/film"))
    paused = threading.Event()
    cache.subscribe(lambda move: paused.set() if move.event == "pause" else None)
    assert fetch(cache, film, 0, 1000) == content(0, 1000)
    assert paused.wait(WAIT_S)
    assert (film.state, film.reason) == (DownloadState.PAUSED, "idle")
    origin.wait_until(lambda: origin.open_connections == 0)


def test_fill_finish_goes_on_to_the_end_after_its_reader_has_left(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    hold = origin.script(hold_after(300_000))
    cache = open_cache(fill="finish", grace=0)
    film = cache.entry(origin.url("/film"))
    finished = threading.Event()
    cache.subscribe(lambda move: finished.set() if move.event == "finish" else None)
    assert fetch(cache, film, 0, 1000) == content(0, 1000)
    hold.release()
    assert finished.wait(WAIT_S)
    assert film.state is DownloadState.COMPLETE


def test_fill_requested_fetches_nothing_beyond_read_ahead(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested", read_ahead=50_000, grace=0)
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        data = reader.read(100_000, 200_000)
        assert data == content(100_000, 100_000 + len(data))
        assert film.wait_for(100_000, 150_000, WAIT_S)
        read_ahead_stop = 100_000 + len(data) + 50_000
    asked = [parse_range(request.range) or () for request in origin.requests]
    lasts = [spec.last for (spec,) in asked]
    assert all(last is not None and last < read_ahead_stop for last in lasts)


def test_an_unknown_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'everything'"):
        Cache(tmp_path, fill="everything")


# -- as a file ---------------------------------------------------------------------


def test_an_open_entry_is_a_seekable_binary_file(film: Entry) -> None:
    with film.open() as stream:
        assert stream.readable()
        assert stream.seekable()
        assert not stream.writable()
        assert stream.read(10) == content(0, 10)
        assert stream.tell() == 10
        assert stream.seek(500_000) == 500_000
        assert stream.read(10) == content(500_000, 500_010)
        assert stream.seek(-5, os.SEEK_CUR) == 500_005
        assert stream.read(10) == content(500_005, 500_015)
        assert stream.seek(-10, os.SEEK_END) == SIZE - 10
        assert stream.read() == content(SIZE - 10, SIZE)


def test_at_the_end_and_past_it_a_file_is_empty(film: Entry) -> None:
    with film.open() as stream:
        stream.seek(0, os.SEEK_END)
        assert stream.read(1) == b""
        stream.seek(SIZE + 1000)
        assert stream.read(1) == b""


def test_a_file_has_nothing_before_its_beginning(film: Entry) -> None:
    with film.open() as stream, pytest.raises(ValueError, match="-1"):
        stream.seek(-1)


def test_the_end_of_a_file_of_unknown_length_cannot_be_sought(cache: Cache, origin: Origin) -> None:
    origin.put("/live", Resource(SIZE, framing="chunked"))
    hold = origin.script(hold_after(1000))
    with cache.entry(origin.url("/live")).open() as stream:
        with pytest.raises(io.UnsupportedOperation, match="how long"):
            stream.seek(0, os.SEEK_END)
        hold.release()


def test_a_closed_file_reads_no_more_and_holds_nothing(film: Entry) -> None:
    stream = film.open()
    assert film.describe()["readers"] == 1
    stream.close()
    stream.close()
    assert film.describe()["readers"] == 0
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_zipfile_reads_an_archive_that_is_still_arriving(cache: Cache, origin: Origin) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("big", content(0, 5 * MIB))
        archive.writestr("small", b"hello")
    origin.put("/zip", Resource.of(packed.getvalue()))
    hold = origin.script(hold_after(1000))  # the directory is at the other end
    with cache.entry(origin.url("/zip")).open() as stream, zipfile.ZipFile(stream) as archive:
        assert archive.namelist() == ["big", "small"]
        assert archive.read("small") == b"hello"
        hold.release()
        assert archive.read("big") == content(0, 5 * MIB)


def test_wave_plays_a_sound_that_is_still_arriving(cache: Cache, origin: Origin) -> None:
    frames = content(0, 2 * MIB)
    packed = io.BytesIO()
    with wave.open(packed, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
        sound.writeframes(frames)
    origin.put("/wav", Resource.of(packed.getvalue()))
    hold = origin.script(hold_after(MIB))
    with cache.entry(origin.url("/wav")).open() as stream, wave.open(stream, "rb") as sound:
        assert sound.getnframes() == len(frames) // 4
        assert sound.readframes(100_000) == frames[:400_000]
        hold.release()
        assert sound.readframes(sound.getnframes()) == frames[400_000:]


# -- waiting -----------------------------------------------------------------------


@pytest.mark.fault(
    "network",
    "somebody's patience ends before the bytes come",
    client="504 or a cut; in Python, False or WaitTimeout",
    kept="all that comes: the download goes on",
    next_reader="what is stored, and the rest",
)
def test_a_waiter_that_times_out_ends_alone(cache: Cache, film: Entry, origin: Origin) -> None:
    hold = origin.script(hold_after(300_000))
    assert not film.wait_for(0, 300_001, BRIEF_S)
    assert film.wait_for(0, 300_000, WAIT_S)
    assert film.state is DownloadState.DOWNLOADING
    hold.release()
    assert film.wait_complete(WAIT_S)
    assert len(origin.requests) == 1
    assert (film.describe()["readers"], film.describe()["streams"]) == (0, [])


def test_waiting_without_patience_is_a_look(film: Entry, origin: Origin) -> None:
    hold = origin.script(hold_before_headers())
    assert not film.wait_for(0, 1, timeout=0)
    assert not film.wait_playable(timeout=0)
    assert not film.wait_complete(timeout=0)
    hold.release()
    assert film.wait_for(0, 1, WAIT_S)
    assert film.wait_for(0, 1, timeout=0)


def test_waiting_for_bytes_past_the_end_means_those_before_it(film: Entry) -> None:
    assert film.wait_for(SIZE - 10, SIZE + 10, WAIT_S)
    assert film.has(SIZE - 10, SIZE + 10)
    assert film.wait_for(SIZE + 10, SIZE + 20, WAIT_S)


def test_the_first_wait_of_all_may_lie_past_the_end(film: Entry) -> None:
    assert film.wait_for(SIZE + 10, SIZE + 20, WAIT_S)
    assert film.total_bytes == SIZE


def test_a_permanent_failure_wakes_every_waiter_at_once_with_its_cause(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    hold = origin.script(hold_before_headers())
    origin.script(status(404))
    waits: list[Future[Any]] = [
        in_thread(film.wait_for, 0, 1),
        in_thread(film.wait_for, 700_000, SIZE),
        in_thread(film.wait_playable),
        in_thread(film.wait_complete),
        in_thread(fetch, cache, film, 5, 10),
    ]
    assert hold.reached.wait(WAIT_S)
    hold.release()
    for waiting in waits:
        with pytest.raises(OriginStatus, match="404") as caught:
            waiting.result(WAIT_S)
        assert caught.value.status == 404
    assert film.state is DownloadState.FAILED
    assert "404" in (film.reason or "")
    assert (film.describe()["readers"], film.describe()["streams"]) == (0, [])
    assert len(origin.requests) == 1


def test_a_failed_entry_fails_new_waiters_at_once_until_its_rest_is_over(
    open_cache: OpenCache, origin: Origin
) -> None:
    clock = Clock()
    cache = open_cache(clock=clock)
    origin.put("/film", Resource(SIZE))
    origin.script(status(404))
    film = cache.entry(origin.url("/film"))
    for use in (partial(film.wait_for, 0, 1), film.wait_playable, film.wait_complete, film.open):
        with pytest.raises(OriginStatus, match="404"):
            use()
    assert len(origin.requests) == 1
    clock.now_s += HASTY.permanent_s
    assert fetch(cache, film, 0, 10) == content(0, 10)


def test_a_clock_that_is_put_back_lets_no_failure_rest_longer(
    open_cache: OpenCache, origin: Origin
) -> None:
    clock = Clock()
    cache = open_cache(clock=clock)
    film = cache.entry(origin.url("/film"))
    with pytest.raises(CacheError, match="404"):
        fetch(cache, film)
    origin.put("/film", Resource(SIZE))
    clock.now_s -= 1_000_000
    assert fetch(cache, film) == content(0, SIZE)


def test_playable_is_a_head_and_a_tail(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(10 * MIB))
    film = open_cache(fill="requested", playable_head=100_000, playable_tail=10_000, grace=0).entry(
        origin.url("/film")
    )
    assert film.wait_playable(WAIT_S)
    assert film.is_playable()
    assert film.has(0, 100_000)
    assert film.has(10 * MIB - 10_000, 10 * MIB)
    assert film.downloaded_bytes < MIB


def test_a_head_alone_is_not_playable_where_a_tail_can_be_had(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(10 * MIB))
    film = open_cache(fill="requested", playable_head=1000, playable_tail=1000, grace=0).entry(
        origin.url("/film")
    )
    assert film.wait_for(0, 1000, WAIT_S)
    assert not film.is_playable()


@pytest.mark.parametrize(
    "resource",
    [
        Resource(SIZE, framing="chunked", accepts_ranges=False),
        Resource(SIZE, framing="close", accepts_ranges=False),
        Resource(SIZE, accepts_ranges=False),
        Resource(SIZE, etag=None),
    ],
    ids=["chunked", "close-delimited", "no ranges", "no validator"],
)
def test_a_head_must_do_where_no_tail_can_be_asked_for(
    open_cache: OpenCache, origin: Origin, resource: Resource
) -> None:
    origin.put("/film", resource)
    hold = origin.script(hold_after(1000), times=None)
    film = open_cache(playable_head=1000).entry(origin.url("/film"))
    assert film.wait_playable(WAIT_S)
    assert not film.has(1000, 1001)
    hold.release()


@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_small_file_is_playable_once_it_is_here(cache: Cache, origin: Origin, size: int) -> None:
    origin.put("/film", Resource(size))
    film = cache.entry(origin.url("/film"))
    assert film.wait_playable(WAIT_S)
    assert film.has(0, size)


# -- orders ------------------------------------------------------------------------


def test_a_pause_ends_the_transfer_and_keeps_what_is_here(film: Entry, origin: Origin) -> None:
    _held_download(film, origin)
    film.pause()
    assert (film.state, film.reason) == (DownloadState.PAUSED, "person")
    origin.wait_until(lambda: origin.open_connections == 0)
    assert film.ranges == [ByteRange(0, 300_000)]
    assert film.describe()["streams"] == []


def test_a_pause_holds_readers_until_their_timeout(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(first_byte_timeout=BRIEF_S)
    film = cache.entry(origin.url("/film"))
    _held_download(film, origin)
    film.pause()
    assert fetch(cache, film, 0, 300_000) == content(0, 300_000)  # what is here is served
    with pytest.raises(WaitTimeout):
        fetch(cache, film, 300_000, 300_001)
    assert not film.wait_for(0, SIZE, BRIEF_S)
    assert not film.wait_complete(BRIEF_S)
    assert film.state is DownloadState.PAUSED
    assert len(origin.requests) == 1


def test_a_reader_that_a_pause_holds_goes_on_when_a_person_resumes(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    _held_download(film, origin)
    film.pause()
    reading = in_thread(fetch, cache, film)
    film.resume()
    assert reading.result(WAIT_S) == content(0, SIZE)
    assert origin.requests[-1].range == "bytes=300000-999999"
    assert origin.body_bytes_sent == SIZE


def test_resuming_goes_on_to_the_end_although_readers_wanted_less(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(stall_after(500))
    cache = open_cache(fill="requested", grace=3600)
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.read(0, 2000) == content(0, 500)
    film.pause()
    film.resume()
    origin.wait_until(lambda: origin.body_bytes_sent == SIZE)


def test_start_ends_a_pause(film: Entry, origin: Origin) -> None:
    _held_download(film, origin)
    film.pause()
    film.start()
    assert film.wait_complete(WAIT_S)


def test_a_cancelled_download_fails_its_readers_and_keeps_what_is_here(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    _held_download(film, origin)
    reading = in_thread(fetch, cache, film)
    waiting = in_thread(film.wait_complete)
    film.cancel()
    for held in (reading, waiting):
        with pytest.raises(DownloadCancelled):
            held.result(WAIT_S)
    assert (film.state, film.reason) == (DownloadState.FAILED, "cancelled")
    assert film.ranges == [ByteRange(0, 300_000)]
    origin.wait_until(lambda: origin.open_connections == 0)


def test_what_was_never_begun_can_be_cancelled(film: Entry, origin: Origin) -> None:
    film.cancel()
    with pytest.raises(DownloadCancelled):
        film.wait_for(0, 1)
    assert origin.requests == []


@pytest.mark.parametrize("order", [Entry.retry, Entry.start], ids=["retry", "start"])
def test_a_person_takes_a_failed_download_up_again_where_it_ended(
    cache: Cache, film: Entry, origin: Origin, order: object
) -> None:
    _held_download(film, origin)
    film.cancel()
    order(film)  # type: ignore[operator]
    assert _complete(film).reason is None
    assert fetch(cache, film) == content(0, SIZE)
    assert [request.range for request in origin.requests] == ["bytes=0-", "bytes=300000-999999"]


def _not_started(entry: Entry, origin: Origin) -> None:
    pass


def _downloading(entry: Entry, origin: Origin) -> None:
    _held_download(entry, origin)


def _initializing(entry: Entry, origin: Origin) -> None:
    hold = origin.script(hold_before_headers())
    entry.start()
    assert hold.reached.wait(WAIT_S)


def _paused(entry: Entry, origin: Origin) -> None:
    _held_download(entry, origin)
    entry.pause()


def _completed(entry: Entry, origin: Origin) -> None:
    _complete(entry)


def _failed(entry: Entry, origin: Origin) -> None:
    entry.cancel()


@pytest.mark.parametrize(
    ("situation", "illegal"),
    [
        (_not_started, {"pause", "resume", "retry"}),
        (_initializing, {"resume", "retry"}),
        (_downloading, {"resume", "retry"}),
        (_paused, {"pause", "retry"}),
        (_completed, {"pause", "resume", "cancel", "retry"}),
        (_failed, {"pause", "resume", "cancel"}),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_an_order_that_the_state_does_not_allow_is_refused_and_changes_nothing(
    film: Entry, origin: Origin, situation: object, illegal: set[str]
) -> None:
    situation(film, origin)  # type: ignore[operator]
    before = (film.state, film.reason, film.ranges)
    for order in sorted(illegal):
        with pytest.raises(IllegalMove, match=order) as caught:
            getattr(film, order)()
        assert caught.value.state == film.state
        assert (film.state, film.reason, film.ranges) == before


def test_a_pin_is_kept_and_taken_off(film: Entry) -> None:
    film.pin()
    assert film.describe()["pinned"] is True
    film.unpin()
    assert film.describe()["pinned"] is False


def test_a_removed_entry_leaves_nothing_behind(cache: Cache, film: Entry) -> None:
    _complete(film)
    film.remove()
    assert cache.entries() == []
    assert [path for path in (cache.directory / "content").rglob("*") if path.is_file()] == []
    for use in (film.describe, film.open, film.start, film.pause, film.remove):
        with pytest.raises(EntryNotFound):
            use()


def test_a_removed_entry_registered_again_starts_afresh(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    _complete(film).remove()
    again = cache.entry(origin.url("/film"))
    assert again.id != film.id
    assert again.state is DownloadState.NOT_STARTED
    assert fetch(cache, again) == content(0, SIZE)
    assert len(origin.requests) == 2


# -- readers -----------------------------------------------------------------------


def test_a_cancelled_reader_stops_waiting_at_once(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    hold = origin.script(hold_before_headers())
    with closing(cache.open_reader(film.id)) as reader:
        reading = in_thread(reader.read, 0, 1)
        assert hold.reached.wait(WAIT_S)
        reader.cancel()
        with pytest.raises(WaitCancelled):
            reading.result(WAIT_S)
    assert film.describe()["readers"] == 0


def test_a_reader_waits_no_longer_than_it_was_told_to(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    hold = origin.script(hold_after(1000))
    cache = open_cache(stall_timeout=BRIEF_S)
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.available(0, 1000) > 0
        assert film.wait_for(0, 1000, WAIT_S)
        with pytest.raises(WaitTimeout, match="1000"):
            reader.read(1000, 1)
    assert film.state is DownloadState.DOWNLOADING
    hold.release()
    assert film.wait_complete(WAIT_S)


def test_a_reader_learns_of_the_representation_before_the_first_byte(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    hold = origin.script(hold_after(0))
    with closing(cache.open_reader(film.id)) as reader:
        representation = reader.representation()
        assert representation.complete_length == SIZE
        assert ("ETag", '"v0"') in representation.fields
        assert not film.has(0, 1)
        hold.release()


# -- the end -----------------------------------------------------------------------


def test_closing_wakes_whoever_waits_and_leaves_no_thread_behind(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(9 * MIB))
    film = cache.entry(origin.url("/film"))
    in_body = origin.script(hold_after(1000))
    before_head = origin.script(hold_before_headers(), nth=2)
    waits: list[Future[Any]] = [
        in_thread(film.wait_for, 0, 2000),
        in_thread(film.wait_complete),
    ]
    assert in_body.reached.wait(WAIT_S)
    waits += [in_thread(fetch, cache, film, 500, 2000), in_thread(fetch, cache, film, 8 * MIB)]
    assert before_head.reached.wait(WAIT_S)
    assert in_thread(cache.close).result(WAIT_S) is None
    for waiting in waits:
        with pytest.raises(CacheClosed):
            waiting.result(WAIT_S)
    assert live_threads() == []
    origin.wait_until(lambda: origin.open_connections == 0)


def test_a_closed_cache_says_that_it_is_closed(cache: Cache, film: Entry) -> None:
    cache.close()
    cache.close()
    for use in (cache.entries, film.describe, film.open, film.start, film.wait_complete):
        with pytest.raises(CacheClosed):
            use()
    with pytest.raises(CacheClosed):
        cache.entry("http://example.test/other")
    with pytest.raises(CacheClosed):
        cache.find(film.id)
    with pytest.raises(CacheClosed):
        film.remove()


def test_a_reader_that_outlives_the_cache_can_still_be_closed(cache: Cache, film: Entry) -> None:
    stream = film.open()
    assert stream.read(10) == content(0, 10)
    cache.close()
    stream.close()


def test_a_cache_is_a_context_manager(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        cache.entry("http://example.test/film")
    assert live_threads() == []
    with Cache(tmp_path) as cache:
        assert len(cache.entries()) == 1


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match=str(blocked)):
        Cache(blocked / "cache")


def test_every_error_of_the_api_is_a_cache_error(cache: Cache, film: Entry) -> None:
    for error in (CacheClosed, EntryNotFound, IllegalMove, OriginStatus, StorageError, UsageError):
        assert issubclass(error, CacheError)
