"""Reading while downloading, waiting, and who gets a connection: seen from outside."""

from __future__ import annotations

import logging
import random
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest

from cachefsm import ByteRange, Cache, DownloadState, Entry
from cachefsm.acceptance import Answer
from cachefsm.claims import SpeedLimits
from cachefsm.errors import (
    CacheError,
    EntryNotFound,
    OriginError,
    RepresentationChanged,
    WaitTimeout,
)
from cachefsm.events import Event
from cachefsm.origin import OriginOptions
from cachefsm.representation import Representation
from cachefsm.scheduler import Limits, Open, Priority
from cachefsm.semantics import Validator
from tests.support.caches import HASTY, WAIT_S, Clock, OpenCache, eventually, fetch, rows
from tests.support.disks import episodes
from tests.support.entries import FIELDS
from tests.support.faults import (
    cut_after,
    hold_after,
    hold_before_headers,
    stall_after,
)
from tests.support.origin import Exchange, Gate, Origin, Resource, Shaping, content
from tests.support.threads import in_thread

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
SIZE = 10 * MIB


def _asked(origin: Origin, path: str = "/film") -> list[str | None]:
    return [request.range for request in origin.requests if request.path == path]


def _serve(origin: Origin, size: int = SIZE, path: str = "/film") -> str:
    origin.put(path, Resource(size))
    return origin.url(path)


class Moves:
    """What happened to a cache's entries, and a way to wait for it."""

    def __init__(self, cache: Cache) -> None:
        self._changed = threading.Condition()
        self._moves: list[Event] = []
        cache.subscribe(self._note)

    def _note(self, move: Event) -> None:
        with self._changed:
            self._moves.append(move)
            self._changed.notify_all()

    def wait_for(self, entry: Entry, event: str, times: int = 1) -> None:
        """Block until *entry* has made that move *times* times."""

        def seen() -> bool:
            made = [m for m in self._moves if (m.entry_id, m.event) == (entry.id, event)]
            return len(made) >= times

        with self._changed:
            assert self._changed.wait_for(seen, WAIT_S), f"no {event} in {self._moves}"


# -- what is fetched ---------------------------------------------------------------


def test_an_interior_read_fetches_its_window_and_read_ahead_and_nothing_else(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(fill="requested", read_ahead=64 * KIB, grace=0)
    film = cache.entry(_serve(origin))
    with closing(cache.open_reader(film.id)) as reader:
        pieces = reader.pieces(5_000_000, SIZE)
        data = b""
        while len(data) < 100_000:
            data += next(pieces)
        assert data == content(5_000_000, 5_000_000 + len(data))
        most = len(data) + 64 * KIB
    assert film.ranges[0].start == 5_000_000
    assert film.ranges[-1].stop <= 5_000_000 + most
    assert origin.body_bytes_sent <= most


def test_bytes_that_are_here_are_not_asked_for_again(open_cache: OpenCache, origin: Origin) -> None:
    cache = open_cache(fill="requested")
    film = cache.entry(_serve(origin))
    for start in (100_000, 200_000):
        assert fetch(cache, film, start, start + 100_000) == content(start, start + 100_000)
    assert film.ranges == [ByteRange(100_000, 300_000)]
    asked = _asked(origin)
    assert fetch(cache, film, 150_000, 250_000) == content(150_000, 250_000)
    assert _asked(origin) == asked == ["bytes=100000-199999", "bytes=200000-299999"]


def test_only_the_hole_between_stored_bytes_is_asked_for(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(fill="requested")
    film = cache.entry(_serve(origin))
    fetch(cache, film, 0, 100_000)
    fetch(cache, film, 200_000, 300_000)
    assert fetch(cache, film, 0, 300_000) == content(0, 300_000)
    assert _asked(origin)[2:] == ["bytes=100000-199999"]
    assert origin.body_bytes_sent == 300_000


def test_a_stream_that_meets_stored_bytes_goes_around_them(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(1_000_000, etag='"same"'))
    cache = open_cache(fill="requested", read_ahead=0)
    film = cache.entry(origin.url("/film"))
    fetch(cache, film, 400_000, 500_000)
    # Other bytes under the same ETag: no honest origin does so, but it shows who wrote what.
    origin.put("/film", Resource(1_000_000, etag='"same"', version=1))
    later = Resource(1_000_000, version=1).content or _content_of_version_1
    data = fetch(cache, film)
    assert data[400_000:500_000] == content(400_000, 500_000)
    assert data[:400_000] == later(0, 400_000)
    assert data[500_000:] == later(500_000, 1_000_000)
    assert _asked(origin)[1:] == ["bytes=0-399999", "bytes=500000-999999"]


def test_the_one_answer_of_what_cannot_be_joined_waits_for_its_reader_to_go_on(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    cache = open_cache(fill="requested", read_ahead=MIB, grace=0)
    film = cache.entry(origin.url("/film"))
    hold = origin.script(hold_after(100_000), nth=2)  # the first answer ends too soon
    with closing(cache.open_reader(film.id)) as reader:
        reader.representation(reads_on=True)
        assert b"".join(reader.pieces(0, 1000)) == content(0, 1000)
        assert hold.reached.wait(WAIT_S)
        eventually(lambda: [s["stop"] for s in film.describe()["streams"]] == [100_000])
        hold.release()
        assert b"".join(reader.pieces(1000, SIZE)) == content(1000, SIZE)
    assert _asked(origin) == [f"bytes=0-{MIB - 1}", "bytes=0-"]


def _content_of_version_1(start: int, stop: int) -> bytes:
    return content(start + 1, stop + 1)


def test_connections_that_break_together_are_one_attempt(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(fill="requested", retries=replace(HASTY, attempts=4))
    film = cache.entry(_serve(origin, 40 * MIB))
    assert fetch(cache, film, 0, 1000) == content(0, 1000)
    gate = Gate()

    def cut(exchange: Exchange) -> None:
        exchange.wait(gate)
        exchange.close()

    origin.script(cut, times=4)
    parts = [(start, start + 1000) for start in range(MIB, 40 * MIB, 10 * MIB)]
    reading = [in_thread(fetch, cache, film, *part) for part in parts]
    origin.wait_for_requests(5)
    gate.set()
    assert [reader.result(WAIT_S) for reader in reading] == [content(*part) for part in parts]


def test_a_download_fails_once_though_several_connections_bring_nothing(
    open_cache: OpenCache, origin: Origin
) -> None:
    hurried = SpeedLimits(silence_s=0.0)
    cache = open_cache(start=False, speed=hurried, retries=replace(HASTY, attempts=1))
    with cache.registry.lease(cache.entry(_serve(origin)).id) as entry:
        known = Representation(SIZE, Validator.from_fields(FIELDS), FIELDS, accepts_ranges=True)
        for start in (0, MIB):
            claim = entry.grant(Open(entry.id, start, start + MIB, Priority.PERSON))
            assert claim is not None
            assert entry.answered(claim, Answer(start, start + MIB, known, close_delimited=False))
        entry.view()  # in which the conductor breaks them off
        assert entry.state is DownloadState.FAILED


def test_a_second_reader_does_not_ask_the_origin_again(cache: Cache, origin: Origin) -> None:
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(1000))
    readers = [in_thread(fetch, cache, film) for _ in range(4)]
    assert hold.reached.wait(WAIT_S)
    hold.release()
    for reading in readers:
        assert reading.result(WAIT_S) == content(0, SIZE)
    assert _asked(origin) == ["bytes=0-"]


def test_readers_at_random_get_the_right_bytes_and_few_of_them_twice(cache: Cache) -> None:
    def read(seed: int) -> None:
        dice = random.Random(seed)
        with film.open() as stream:
            for _ in range(40):
                start = dice.randrange(SIZE)
                size = dice.randrange(1, 300 * KIB)
                stream.seek(start)
                assert stream.read(size) == content(start, min(SIZE, start + size))

    # A stream that is called off wastes at most what the sockets hold.
    with Origin(Shaping(rate_per_connection=20 * MIB)) as origin:
        film = cache.entry(_serve(origin))
        readers = [in_thread(read, seed) for seed in range(8)]
        for reading in readers:
            reading.result(6 * WAIT_S)
        assert film.wait_complete(WAIT_S)
        assert origin.body_bytes_sent <= SIZE + len(origin.requests) * 256 * KIB
        assert origin.peak_connections <= Limits().per_entry


def test_backward_reads_are_right_and_stay_within_the_connections_allowed(
    cache: Cache, origin: Origin
) -> None:
    film = cache.entry(_serve(origin))
    with film.open() as stream:
        for start in range(SIZE - MIB, -1, -MIB):
            stream.seek(start)
            assert stream.read(MIB) == content(start, start + MIB)
    assert origin.peak_connections <= Limits().per_entry


def test_offsets_beyond_four_gibibytes_are_right_everywhere(
    open_cache: OpenCache, origin: Origin
) -> None:
    size = 5 * GIB
    cache = open_cache(fill="requested", grace=0)
    film = cache.entry(_serve(origin, size))
    places = [0, 2 * GIB - 10, 4 * GIB - 10, 4 * GIB + MIB, size - 20]
    for start in places:
        assert fetch(cache, film, start, start + 20) == content(start, start + 20)
    cache.close()
    film = open_cache(fill="requested", grace=0).entry(origin.url("/film"))
    assert film.ranges == [ByteRange(start, start + 20) for start in places]
    assert (film.total_bytes, film.downloaded_bytes) == (size, 100)
    with film.open() as stream:
        stream.seek(-20, 2)
        assert stream.read() == content(size - 20, size)
    assert len(origin.requests) == len(places)


@pytest.mark.parametrize("read_ahead", [1, 1000, 8 * MIB])
def test_every_byte_that_is_waited_for_is_also_fetched(
    open_cache: OpenCache, origin: Origin, read_ahead: int
) -> None:
    size = 3 * MIB + 1
    cache = open_cache(fill="requested", read_ahead=read_ahead)
    film = cache.entry(_serve(origin, size))
    edges = [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, size - 2, size - 1]
    for offset in random.Random(18).sample(edges, len(edges)):
        assert fetch(cache, film, offset, offset + 1) == content(offset, offset + 1)
    assert film.downloaded_bytes == origin.body_bytes_sent == len(edges)
    assert fetch(cache, film, size - 50, size + 5) == content(size - 50, size)
    assert origin.body_bytes_sent == film.downloaded_bytes


# -- readers and their streams -----------------------------------------------------


def test_the_first_byte_arrives_long_before_the_fill_ends(cache: Cache, origin: Origin) -> None:
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(1))
    assert fetch(cache, film, 0, 1) == content(0, 1)
    hold.release()


def test_a_far_seek_does_not_wait_for_what_lies_before_it(cache: Cache, origin: Origin) -> None:
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(MIB))
    with film.open() as stream:
        assert stream.read(MIB) == content(0, MIB)
        stream.seek(8 * MIB)
        assert stream.read(MIB) == content(8 * MIB, 9 * MIB)
    hold.release()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    assert _asked(origin) == ["bytes=0-", f"bytes={8 * MIB}-{SIZE - 1}"]


def test_a_seeks_answer_that_tells_nothing_new_is_recorded_with_its_bytes(
    open_cache: OpenCache, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    cache = open_cache(clock=clock)
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(MIB))
    with film.open() as stream:
        assert stream.read(MIB) == content(0, MIB)
        clock.now_s += 60.0
        with caplog.at_level(logging.DEBUG, "peewee"):
            stream.seek(8 * MIB)
            assert stream.read(MIB) == content(8 * MIB, 9 * MIB)
        assert [record.getMessage() for record in caplog.records if _is_by_a_download(record)] == []
    hold.release()
    assert film.wait_complete(WAIT_S)
    assert rows(cache.directory, "SELECT validated_at FROM cache_entries") == [(clock.now_s,)]


def _is_by_a_download(statement: logging.LogRecord) -> bool:
    thread = statement.threadName or ""
    return statement.name == "peewee" and thread.startswith("cachefsm-download")


def test_a_slow_readers_stream_is_neither_dropped_nor_restarted(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(fill="requested", read_ahead=256 * KIB)
    film = cache.entry(_serve(origin, 2 * MIB))
    data = b""
    with closing(cache.open_reader(film.id)) as reader:
        for piece in reader.pieces(0, 2 * MIB):
            data += piece
            # All that was asked for is here, and the reader takes its time.
            origin.wait_until(lambda: all(request.finished for request in origin.requests))
    assert data == content(0, 2 * MIB)
    assert origin.body_bytes_sent == 2 * MIB
    # The next answer may begin before the last one's connection is free again.
    assert len({request.connection for request in origin.requests}) <= 2


@pytest.mark.fault("network", "a client does not read")
def test_a_reader_that_does_not_read_slows_nobody(open_cache: OpenCache, origin: Origin) -> None:
    cache = open_cache(fill="requested", read_ahead=64 * KIB)
    film, other = cache.entry(_serve(origin)), cache.entry(_serve(origin, path="/other"))
    with film.open() as idle:
        assert idle.read(1) == content(0, 1)
        assert fetch(cache, film) == content(0, SIZE)
        assert fetch(cache, other) == content(0, SIZE)
        assert idle.read(1) == content(1, 2)


def test_a_stalled_origin_slows_no_other_entry(cache: Cache, origin: Origin) -> None:
    stuck = cache.entry(_serve(origin, path="/stuck"))
    origin.script(stall_after(1000), path="/stuck", times=None)
    stuck.start()
    assert stuck.wait_for(0, 1000, WAIT_S)
    film = cache.entry(_serve(origin))
    assert film.wait_complete(WAIT_S)
    assert stuck.state is DownloadState.DOWNLOADING


def test_a_reader_that_comes_back_within_the_grace_finds_its_stream(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(grace=3600)
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(1000))
    assert fetch(cache, film, 0, 1000) == content(0, 1000)
    reading = in_thread(fetch, cache, film)
    hold.release()
    assert reading.result(WAIT_S) == content(0, SIZE)
    assert _asked(origin) == ["bytes=0-"]


def test_what_a_reader_asked_for_still_comes_within_the_grace_after_it_left(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(fill="requested", grace=3600)
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(1000))
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.read(0, MIB) == content(0, 1000)
    hold.release()
    eventually(lambda: film.ranges == [ByteRange(0, MIB)])
    assert _asked(origin) == [f"bytes=0-{MIB - 1}"]


def test_a_stream_that_nobody_reads_ends_after_the_grace(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(grace="50ms")
    film = cache.entry(_serve(origin))
    origin.script(stall_after(1000))
    moves = Moves(cache)
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.read(0, 1000) == content(0, 1000)
        assert film.state is DownloadState.DOWNLOADING
    moves.wait_for(film, "pause")
    assert (film.state, film.reason) == (DownloadState.PAUSED, "idle")
    origin.wait_until(lambda: origin.open_connections == 0)
    assert film.describe()["streams"] == []
    assert film.describe()["asked_by"] == []


def test_reopening_while_the_grace_ends_always_succeeds(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(fill="requested", grace="1ms")
    film = cache.entry(_serve(origin))
    moves = Moves(cache)
    for number in range(50):
        start = number * 1000
        assert fetch(cache, film, start, start + 1000) == content(start, start + 1000)
        if number % 2:
            # At the very moment that it comes to rest; else shortly before.
            moves.wait_for(film, "pause", times=number // 2 + 1)
    assert film.ranges == [ByteRange(0, 50_000)]
    assert origin.body_bytes_sent == 50_000


def test_readers_come_and_go_and_leave_nothing_behind(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(fill="requested", grace=0)
    film = cache.entry(_serve(origin))
    moves = Moves(cache)
    origin.script(stall_after(1000))
    # The patient one sees to it that there is a stream, before the other has had enough.
    with closing(cache.open_reader(film.id)) as patient:
        assert next(patient.pieces(0, SIZE)) == content(0, 1000)
        with closing(cache.open_reader(film.id, patience_s=0.05)) as reader:
            with pytest.raises(WaitTimeout):
                reader.read(1000, 1000)
    moves.wait_for(film, "pause")
    shown = film.describe()
    assert (shown["readers"], shown["streams"], shown["asked_by"]) == (0, [], [])
    origin.wait_until(lambda: origin.open_connections == 0)
    assert repr(cache).endswith(" 0 downloads>")


# -- failing -----------------------------------------------------------------------


@pytest.mark.fault("network", "the origin cannot be reached")
def test_an_origin_that_never_answers_properly_is_asked_a_few_times_only(
    cache: Cache, origin: Origin
) -> None:
    film = cache.entry(_serve(origin))
    origin.script(Exchange.reset, times=None)
    with pytest.raises(OriginError):
        film.wait_for(0, 1)
    assert film.state is DownloadState.FAILED
    assert len(origin.requests) == 3  # HASTY's first_attempts


@pytest.mark.fault("network", "the origin stays away in mid-body")
def test_errors_without_progress_fail_the_waiters_after_a_number_of_attempts(
    cache: Cache, origin: Origin
) -> None:
    film = cache.entry(_serve(origin))
    origin.script(cut_after(1000))
    origin.script(cut_after(0), nth=2, times=None)
    waits: list[Future[Any]] = [in_thread(film.wait_complete), in_thread(fetch, cache, film)]
    for waiting in waits:
        with pytest.raises(OriginError):
            waiting.result(WAIT_S)
    assert film.ranges == [ByteRange(0, 1000)]
    # The attempt that brought bytes counts as the first of HASTY's four.
    assert len(origin.requests) == 4


def test_one_received_byte_starts_the_count_of_errors_anew(cache: Cache, origin: Origin) -> None:
    film = cache.entry(_serve(origin, 30))
    origin.script(cut_after(1), times=None)
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, 30)
    assert len(origin.requests) == 30


@pytest.mark.fault(
    "network",
    "the connection breaks in mid-body",
    client="the right bytes, after a pause",
    kept="what came",
    next_reader="what is stored; the rest is fetched from the break",
)
def test_a_break_is_mended_from_where_it_happened(cache: Cache, origin: Origin) -> None:
    film = cache.entry(_serve(origin))
    origin.script(cut_after(3_000_000))
    assert fetch(cache, film) == content(0, SIZE)
    assert _asked(origin) == ["bytes=0-", f"bytes=3000000-{SIZE - 1}"]


@pytest.mark.fault("network", "the connection breaks in mid-body")
def test_an_outage_within_the_attempts_is_survived_by_the_reader(
    cache: Cache, origin: Origin
) -> None:
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(MIB))
    refused = origin.script(hold_before_headers(), nth=2)
    reading = in_thread(fetch, cache, film)
    assert hold.reached.wait(WAIT_S)
    assert film.wait_for(0, MIB, WAIT_S)
    with origin.outage():
        pass  # the connection is cut, and the next one may be refused
    assert refused.reached.wait(WAIT_S)
    refused.release()
    assert reading.result(WAIT_S) == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE


@pytest.mark.fault(
    "origin",
    "the file shrinks while somebody waits past its new end",
    client="is told at once: a cut",
    kept="nothing of the old version",
    next_reader="the new version",
)
@pytest.mark.parametrize("etag", ['"v{version}"', '"same"'], ids=["new ETag", "same ETag"])
def test_an_origin_that_shrinks_releases_whoever_waits_past_the_new_end(
    cache: Cache, origin: Origin, etag: str
) -> None:
    origin.put("/film", Resource(SIZE, etag=etag))
    film = cache.entry(origin.url("/film"))
    hold = origin.script(hold_after(1000))
    reading = in_thread(fetch, cache, film)
    assert hold.reached.wait(WAIT_S)
    assert film.wait_for(0, 1000, WAIT_S)
    origin.put("/film", Resource(500, etag=etag, version=1))
    far = in_thread(fetch, cache, film, 9 * MIB)
    for waiting in (far, reading):
        with pytest.raises(RepresentationChanged):
            waiting.result(WAIT_S)
    assert fetch(cache, film) == _content_of_version_1(0, 500)
    assert film.total_bytes == 500


@pytest.mark.fault(
    "process",
    "a downloader meets a bug",
    client="an error, at once",
    kept="what came",
    next_reader="tries again once the failure has rested; other entries are not touched",
)
def test_a_downloader_that_breaks_tells_its_waiters_and_harms_nobody_else(
    open_cache: OpenCache, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    def fields_for(url: object) -> dict[str, str]:
        if "broken" in str(url):
            raise RuntimeError("a bug in somebody's fields_for")
        return {}

    cache = open_cache(origin=OriginOptions(fields_for=fields_for))
    broken = cache.entry(_serve(origin, path="/broken"))
    waits: list[Future[Any]] = [
        in_thread(broken.wait_complete),
        in_thread(fetch, cache, broken),
    ]
    for waiting in waits:
        with pytest.raises(CacheError, match="RuntimeError"):
            waiting.result(WAIT_S)
    assert broken.state is DownloadState.FAILED
    assert "a bug in somebody's fields_for" in caplog.text
    assert fetch(cache, cache.entry(_serve(origin))) == content(0, SIZE)


@pytest.mark.parametrize(("abandoned", "stored"), [("stop", 9 * MIB), ("finish", SIZE)])
def test_a_request_that_nobody_needs_any_more_is_broken_off_or_finished(
    open_cache: OpenCache, origin: Origin, abandoned: str, stored: int
) -> None:
    cache = open_cache(abandoned=abandoned, grace=0)
    moves = Moves(cache)
    hold = origin.script(hold_after(9 * MIB))
    film = cache.entry(_serve(origin))
    with film.open() as stream:
        assert stream.read(1000) == content(0, 1000)
        assert hold.reached.wait(WAIT_S)
        assert film.wait_for(0, 9 * MIB, WAIT_S)
    if abandoned == "stop":
        moves.wait_for(film, "pause")
    hold.release()
    if abandoned == "finish":
        moves.wait_for(film, "finish")
    assert film.downloaded_bytes == stored
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("media_type", "fill", "size", "tail_comes"),
    [
        ("video/mp4", "rest", 40 * MIB, True),
        ("audio/flac", "finish", 40 * MIB, True),
        ("video/mp4", "requested", 40 * MIB, False),
        ("application/zip", "rest", 40 * MIB, False),
        ("video/mp4", "rest", 20 * MIB, False),
    ],
)
def test_the_tail_of_a_film_comes_as_soon_as_it_is_opened(
    open_cache: OpenCache, origin: Origin, media_type: str, fill: str, size: int, tail_comes: bool
) -> None:
    origin.put("/film", Resource(size, content_type=media_type))
    hold = origin.script(hold_after(2 * MIB))
    cache = open_cache(fill=fill)
    film = cache.entry(origin.url("/film"))
    tail = size - 256 * KIB
    with closing(cache.open_reader(film.id)) as reader:
        pieces = reader.pieces(0, size)
        got = 0
        while got < 2 * MIB:
            got += len(next(pieces))
        if tail_comes:
            eventually(lambda: film.has(tail, size))
            assert film.is_playable()
            assert _asked(origin)[1:] == [f"bytes={tail}-{size - 1}"]
        else:
            assert not film.has(tail, size)
            assert all(request.range != f"bytes={tail}-{size - 1}" for request in origin.requests)
        hold.release()


# -- who gets a connection ---------------------------------------------------------


def test_a_prefetch_yields_to_a_reader_and_then_goes_on(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(total=1), fill="requested", grace=0, read_ahead=0)
    later = cache.entry(_serve(origin, path="/later"))
    hold = origin.script(hold_after(MIB), path="/later")
    later.start(priority="prefetch")
    assert hold.reached.wait(WAIT_S)
    assert later.wait_for(0, MIB, WAIT_S)
    film = cache.entry(_serve(origin, 4 * MIB))
    assert fetch(cache, film) == content(0, 4 * MIB)
    assert later.wait_complete(WAIT_S)
    assert _asked(origin, "/later") == ["bytes=0-", f"bytes={MIB}-{SIZE - 1}"]


def test_a_paused_players_stream_makes_room_for_a_reader_elsewhere_in_the_file(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(per_entry=1))
    film = cache.entry(_serve(origin))
    origin.script(stall_after(MIB))
    with film.open() as paused_player:
        assert paused_player.read(MIB) == content(0, MIB)
        assert fetch(cache, film, 8 * MIB) == content(8 * MIB, SIZE)
        assert paused_player.read(MIB) == content(MIB, 2 * MIB)


def test_a_reader_that_waits_keeps_its_stream_from_other_readers(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(per_entry=1))
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(MIB))
    first = in_thread(fetch, cache, film, 0, 2 * MIB)
    assert hold.reached.wait(WAIT_S)
    assert film.wait_for(0, MIB, WAIT_S)
    second = in_thread(fetch, cache, film, 8 * MIB)
    hold.release()
    assert first.result(WAIT_S) == content(0, 2 * MIB)
    assert second.result(WAIT_S) == content(8 * MIB, SIZE)


def test_a_reader_of_another_file_has_its_turn_though_nothing_is_known_of_it(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(total=1, turn_s=0.1, patience_s=0.1))
    hold = origin.script(hold_after(MIB), path="/film")
    first = in_thread(fetch, cache, cache.entry(_serve(origin)))
    assert hold.reached.wait(WAIT_S)
    other = cache.entry(_serve(origin, path="/other"))
    assert fetch(cache, other) == content(0, SIZE)  # the film's connection stood still
    assert first.result(WAIT_S) == content(0, SIZE)


class Concurrency:
    """Counts the answers in progress: a script for answers that nobody breaks off."""

    def __init__(self, first_of: int) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self._first_of = first_of
        self._full = Gate()
        self.peak = 0

    def __call__(self, exchange: Exchange) -> None:
        exchange.answer.before_head.append(self._begin)
        exchange.answer.at(exchange.answer.length, self._end)

    def _begin(self, exchange: Exchange) -> None:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)
            if self._now == self._first_of:
                self._full.set()
        # Nobody is answered before as many have come as are allowed.
        exchange.wait(self._full)

    def _end(self, exchange: Exchange) -> None:
        with self._lock:
            self._now -= 1


def test_connections_per_host_are_limited_under_every_mix(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(per_entry=2, per_host=3, total=16), fill="finish")
    at_once = origin.script(Concurrency(first_of=3), times=None)
    entries = [cache.entry(_serve(origin, 300_000, f"/{n}")) for n in range(12)]
    for number, entry in enumerate(entries):
        entry.start(priority=("person", "prefetch")[number % 2])
    readers = [in_thread(fetch, cache, entry, 100_000, 200_000) for entry in entries[::3]]
    for reading in readers:
        assert reading.result(WAIT_S) == content(100_000, 200_000)
    for entry in entries:
        assert entry.wait_complete(WAIT_S)
    assert at_once.peak == 3
    assert origin.peak_connections == 3


def test_connections_in_all_are_limited_over_several_hosts(open_cache: OpenCache) -> None:
    cache = open_cache(limits=Limits(per_entry=2, per_host=3, total=4))
    with Origin(host="0.0.0.0") as origin:
        at_once = origin.script(Concurrency(first_of=4), times=None)
        entries = []
        for number in range(12):
            host = f"127.0.0.{1 + number % 3}"  # all of them this machine
            url = _serve(origin, 300_000, f"/{number}")
            entries.append(cache.entry(url.replace("0.0.0.0", host)))
        for entry in entries:
            entry.start(priority="prefetch")
        for entry in entries:
            assert entry.wait_complete(WAIT_S)
    assert at_once.peak == 4


@pytest.mark.parametrize("order", ["displace", "remove"])
def test_a_connection_counts_until_its_thread_has_let_go_of_it(
    open_cache: OpenCache, origin: Origin, order: str
) -> None:
    at_work: set[str] = set()
    most: list[int] = []
    gate = threading.Event()

    def fields_for(url: object) -> dict[str, str]:
        # On the way to the origin, in the downloader's thread.
        at_work.add(str(url))
        most.append(len(at_work))
        if str(url).endswith("/slow") and len(most) > 1:
            assert gate.wait(WAIT_S)
        at_work.remove(str(url))
        return {}

    cache = open_cache(
        limits=Limits(total=1), fill="requested", origin=OriginOptions(fields_for=fields_for)
    )
    slow = cache.entry(_serve(origin, path="/slow"))
    assert fetch(cache, slow, 0, 1) == content(0, 1)  # so that it can be taken up again
    slow.start(priority="prefetch")
    eventually(lambda: bool(at_work))
    if order == "remove":
        slow.remove()
    reading = in_thread(fetch, cache, cache.entry(_serve(origin)))
    if order == "displace":
        eventually(lambda: slow.describe()["streams"] == [])
    else:
        eventually(lambda: cache.stats()["readers"] == 1)
    gate.set()
    assert reading.result(WAIT_S) == content(0, SIZE)
    assert set(most) == {1}


# -- removing ----------------------------------------------------------------------


@pytest.mark.fault("process", "an entry is removed while it is read")
def test_removing_an_entry_ends_its_transfer_and_its_readers(cache: Cache, origin: Origin) -> None:
    film = cache.entry(_serve(origin))
    hold = origin.script(hold_after(1000))
    reading = in_thread(fetch, cache, film)
    waiting = in_thread(film.wait_complete)
    assert hold.reached.wait(WAIT_S)
    film.remove()
    for held in (reading, waiting):
        with pytest.raises(EntryNotFound):
            held.result(WAIT_S)
    origin.wait_until(lambda: origin.open_connections == 0)
    assert [path for path in (cache.directory / "content").rglob("*") if path.is_file()] == []


def test_removing_an_entry_that_is_asked_for_is_no_trouble_with_storage(
    open_cache: OpenCache, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    asking, gate = threading.Event(), threading.Event()

    def may_visit(_url: object) -> bool:
        asking.set()
        return gate.wait(WAIT_S)

    cache = open_cache(origin=OriginOptions(may_visit=may_visit))
    film = cache.entry(_serve(origin))
    with film.open() as file:
        reading = in_thread(file.read, 1)
        assert asking.wait(WAIT_S)
        film.remove()
        with pytest.raises(EntryNotFound):
            reading.result(WAIT_S)
    gate.set()  # only now can the one that asks notice
    assert episodes(caplog) == []


def test_the_file_of_a_removed_entry_is_not_missed(cache: Cache, origin: Origin) -> None:
    film = cache.entry(_serve(origin))
    assert film.wait_complete(WAIT_S)
    with cache.registry.lease(film.id) as live:
        film.remove()
        live.check_file()  # as the conductor does, which may have seen it just before
        assert live.state is DownloadState.COMPLETE


def test_an_entry_added_again_while_it_is_removed_starts_afresh(
    cache: Cache, origin: Origin
) -> None:
    url = _serve(origin)
    gate = Gate()
    origin.script(hold_after(1000, gate), times=None)
    for _ in range(20):
        film = cache.entry(url)
        film.start()
        removing = in_thread(film.remove)
        again = cache.entry(url)
        with suppress(EntryNotFound):  # it may still have been the one that goes
            again.start()
        removing.result(WAIT_S)
    gate.set()
    film = cache.entry(url)
    assert fetch(cache, film) == content(0, SIZE)
    assert [entry.id for entry in cache.entries()] == [film.id]
    files = [path for path in (cache.directory / "content").rglob("*") if path.is_file()]
    assert len(files) == 1
