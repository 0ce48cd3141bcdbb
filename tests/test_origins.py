"""Origins that misbehave, and those that are merely unhelpful."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace

import pytest

from cachefsm import ByteRange, Cache, DownloadState, Entry
from cachefsm.claims import SpeedLimits
from cachefsm.errors import (
    BadAnswer,
    OriginError,
    OriginRefused,
    OriginStatus,
    OriginTimeout,
    OriginUnreachable,
    RepresentationChanged,
)
from cachefsm.origin import OriginClient, OriginOptions
from cachefsm.ranges import END
from cachefsm.transport import Canceller
from cachefsm.urls import OriginUrl, parse_url
from tests.support.caches import HASTY, WAIT_S, Clock, OpenCache, fetch, rows
from tests.support.faults import (
    chunked_cut_after,
    cut_after,
    drop_headers,
    early_hints,
    extra_headers,
    hold_after,
    hold_before_headers,
    ignore_range,
    redirect,
    reset_after,
    short_body,
    stall_after,
    status,
    trickle,
    wrong_content_range,
)
from tests.support.origin import (
    Exchange,
    Origin,
    Request,
    Resource,
    Script,
    Shaping,
    content,
)
from tests.support.threads import in_thread

MIB = 1 << 20
SIZE = 1_000_000
BRIEF_S = 0.2  # for waits that must end in vain


@pytest.fixture
def film(cache: Cache, origin: Origin) -> Entry:
    """An entry that nobody has asked for yet; SIZE bytes at /film."""
    origin.put("/film", Resource(SIZE))
    return cache.entry(origin.url("/film"))


def _newer(start: int, stop: int) -> bytes:
    """Return what version 1 of a resource serves."""
    return content(start + 1, stop + 1)


def _is_partial(request: Request) -> bool:
    return request.range not in (None, "bytes=0-")


# -- sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("ranges", [True, False, "lie"])
@pytest.mark.parametrize("size", [0, 1, SIZE])
def test_every_size_framing_and_range_support_ends_complete(
    cache: Cache, origin: Origin, size: int, ranges: object, framing: object
) -> None:
    origin.put("/film", Resource(size, accepts_ranges=ranges, framing=framing))  # type: ignore[arg-type]
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film) == content(0, size)
    assert film.wait_complete(WAIT_S)
    assert film.total_bytes == film.downloaded_bytes == size
    with film.open() as stream:
        assert stream.read() == content(0, size)
    assert origin.body_bytes_sent == size


@pytest.mark.fault(
    "origin",
    "it answers 416 to any part of an empty file",
    client="200 and no byte",
    kept="that there is none, and the fields; complete",
    next_reader="the same, without the origin",
)
def test_an_empty_file_is_asked_for_plainly_as_a_416_does_not_tell_its_fields(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/empty", Resource(0, content_type="text/plain"))
    empty = cache.entry(origin.url("/empty"))
    with closing(cache.open_reader(empty.id)) as reader:
        assert ("Content-Type", "text/plain") in reader.representation().fields
        assert reader.read(0, 1) == b""
    assert empty.wait_complete(WAIT_S)
    assert (empty.total_bytes, empty.ranges) == (0, [])
    assert fetch(cache, empty) == b""
    assert [request.range for request in origin.requests] == ["bytes=0-", None]


@pytest.mark.fault(
    "origin",
    "only a 416 tells where the file ends",
    client="the right bytes",
    kept="all of it; complete",
    next_reader="what is stored",
)
def test_an_end_that_only_a_416_tells_makes_the_download_complete(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    # Ranges of a file whose length the origin will not say; no last answer tells the end.
    origin.put("/film", Resource(1000, framing="chunked"))

    def first_half(exchange: Exchange) -> None:
        exchange.answer.stop = 500
        exchange.answer.drop("Content-Range")
        exchange.answer.headers.append(("Content-Range", "bytes 0-499/*"))

    origin.script(first_half, when=lambda request: request.range == "bytes=0-")
    assert fetch(cache, film) == content(0, 1000)
    assert film.wait_complete(WAIT_S)
    assert film.total_bytes == 1000


def test_an_end_that_a_416_tells_early_does_not_fail_the_download(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, framing="chunked"))  # 206 with "/*"
    hold = origin.script(hold_after(1000))
    film.start()
    assert hold.reached.wait(WAIT_S)
    # Whether or not the cache asks what follows while the first answer is still coming:
    past_the_end = [f"bytes={SIZE}-"]
    with suppress(TimeoutError):
        origin.wait_until(lambda: [r.range for r in origin.requests[1:]] == past_the_end, BRIEF_S)
    hold.release()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.fault(
    "origin",
    "a 206 does not tell the total (`/*`)",
    client="the right bytes",
    kept="what came; the length stays unknown until an end is met",
    next_reader="what is stored, and the rest",
)
def test_a_total_that_is_not_told_is_not_invented(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE, framing="chunked"))  # 206 with "/*"
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film, 500, 1000) == content(500, 1000)
    assert (film.total_bytes, film.ranges) == (None, [ByteRange(500, 1000)])
    assert film.state is not DownloadState.COMPLETE


# -- 200 to a range ----------------------------------------------------------------


@pytest.mark.fault(
    "origin",
    "a range is answered with everything (200)",
    client="the right bytes, as soon as one stream from the front has brought them",
    kept="everything that arrives",
    next_reader="what is stored; others wait for the same stream",
)
@pytest.mark.parametrize("accepts_ranges", [False, "lie"], ids=["says none", "says bytes"])
def test_a_range_answered_with_everything_is_served_by_one_stream_from_the_front(
    cache: Cache, origin: Origin, accepts_ranges: object
) -> None:
    origin.put("/film", Resource(SIZE, accepts_ranges=accepts_ranges))  # type: ignore[arg-type]
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film, 700_000, 800_000) == content(700_000, 800_000)
    assert fetch(cache, film) == content(0, SIZE)
    assert len(origin.requests) == 1


@pytest.mark.fault("origin", "a range is answered with everything (200)")
def test_readers_of_an_unseekable_file_wait_for_one_stream_together(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, accepts_ranges=False))
    film = cache.entry(origin.url("/film"))
    hold = origin.script(hold_after(300_000))
    readers = [in_thread(fetch, cache, film, start) for start in (0, 100_000, 900_000)]
    assert hold.reached.wait(WAIT_S)
    hold.release()
    for reading, start in zip(readers, (0, 100_000, 900_000), strict=True):
        assert reading.result(WAIT_S) == content(start, SIZE)
    assert origin.body_bytes_sent == SIZE


@pytest.mark.fault(
    "origin",
    "it stops serving ranges while a file is read",
    client="the right bytes, or a cut",
    kept="bytes of one version only",
    next_reader="the right bytes",
)
def test_an_origin_that_stops_serving_ranges_corrupts_nothing(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film, 500_000, 600_000) == content(500_000, 600_000)
    origin.script(ignore_range, times=None)
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)


# -- answers that cannot be true ---------------------------------------------------


def _misplaced(by: int) -> Script:
    """Say that the bytes asked for lie elsewhere; all else agrees."""

    def script(exchange: Exchange) -> None:
        first, last = exchange.answer.start + by, exchange.answer.stop - 1 + by
        wrong_content_range(f"bytes {first}-{last}/{SIZE}")(exchange)

    return script


def _overlong(exchange: Exchange) -> None:
    """Send more than was asked for, and say so."""
    exchange.answer.stop += 10
    wrong_content_range("bytes {start}-{last}/{size}")(exchange)
    _length(str(exchange.answer.length))(exchange)


def _length(text: str) -> Script:
    def script(exchange: Exchange) -> None:
        exchange.answer.drop("Content-Length")
        exchange.answer.headers.append(("Content-Length", text))

    return script


def _several_parts(exchange: Exchange) -> None:
    exchange.answer.drop("Content-Type")
    exchange.answer.headers.append(("Content-Type", "multipart/byteranges; boundary=x"))


_LIES = {
    "starts behind": _misplaced(1),
    "starts before": _misplaced(-400),
    "more than was asked for": _overlong,
    "ends past what was asked": wrong_content_range("bytes {start}-{stop}/{size}"),
    "ends before it starts": wrong_content_range("bytes {stop}-{start}/{size}"),
    "ends past its own total": wrong_content_range("bytes {start}-{last}/{start}"),
    "another unit": wrong_content_range("lines {start}-{last}/{size}"),
    "no unit": wrong_content_range("{start}-{last}/{size}"),
    "not a range": wrong_content_range("bytes everything"),
    "unsatisfied in a 206": wrong_content_range("bytes */{size}"),
    "no Content-Range": drop_headers("Content-Range"),
    "another length than the interval": _length("7"),
    "two lengths": extra_headers(("Content-Length", "7")),
    "a length that is no number": _length("-5"),
    "an unknown transfer coding": extra_headers(("Transfer-Encoding", "gzip, chunked")),
    "several parts": _several_parts,
    "a coded part": extra_headers(("Content-Encoding", "gzip")),
}


@pytest.mark.fault(
    "origin",
    "a 206 has the wrong start, end, total, unit or length",
    client="the right bytes if the next answer is better; 502 after the last attempt",
    kept="nothing of that answer",
    next_reader="asks the origin again once the failure has rested",
)
@pytest.mark.parametrize("lie", _LIES.values(), ids=_LIES.keys())
def test_a_206_that_cannot_be_trusted_is_rejected_and_nothing_is_recorded(
    open_cache: OpenCache, origin: Origin, lie: Script
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    origin.script(lie, times=None)
    with pytest.raises(BadAnswer):
        fetch(cache, film, 500, 1000)
    assert film.state is DownloadState.FAILED
    assert (film.ranges, film.total_bytes) == ([], None)
    assert rows(cache.directory, "SELECT * FROM cache_chunks") == []


@pytest.mark.fault("origin", "a 206 has the wrong start, end, total, unit or length")
@pytest.mark.parametrize("lie", _LIES.values(), ids=_LIES.keys())
def test_one_206_that_cannot_be_trusted_is_made_good_by_the_next(
    open_cache: OpenCache, origin: Origin, lie: Script
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    origin.script(lie, nth=2)
    assert fetch(cache, film, 500, 1000) == content(500, 1000)
    assert fetch(cache, film, 2000, 3000) == content(2000, 3000)
    assert len(origin.requests) == 3


@pytest.mark.fault("origin", "it serves another version than before")
def test_a_206_whose_total_contradicts_the_known_one_is_another_version(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        # Until it is given something, a reader may as well be given the other version.
        assert reader.read(500, 500) == content(500, 1000)
        origin.script(wrong_content_range("bytes {start}-{last}/2000000"))
        with pytest.raises(RepresentationChanged):
            reader.read(1000, 2000)
    assert film.ranges == []


# -- other versions ----------------------------------------------------------------


@pytest.mark.fault("origin", "it serves another version than before")
def test_bytes_of_two_versions_are_never_mixed(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.read(0, 1000) == content(0, 1000)
        origin.put("/film", Resource(SIZE, version=1))
        with pytest.raises(RepresentationChanged):
            reader.read(500_000, 1000)
        # What it was given is of one version, and stays so.
        assert reader.read(0, 1000) == content(0, 1000)
    assert film.ranges == []
    assert fetch(cache, film) == _newer(0, SIZE)
    assert film.describe()["generation"] == 1


def test_the_validator_that_is_known_goes_out_with_every_further_question(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    fetch(cache, film, 0, 1000)
    fetch(cache, film, 5000, 6000)
    assert [request.header("If-Range") for request in origin.requests] == [None, '"v0"']


@pytest.mark.fault(
    "origin",
    "one answer leaves the validator out",
    client="the right bytes",
    kept="all of it, under the validator that is known",
    next_reader="what is stored",
)
def test_a_validator_that_one_answer_leaves_out_is_kept(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    fetch(cache, film, 0, 1000)
    origin.script(drop_headers("ETag", "Last-Modified"))
    assert fetch(cache, film, 5000, 6000) == content(5000, 6000)
    assert fetch(cache, film, 9000, 9500) == content(9000, 9500)
    assert film.ranges == [ByteRange(0, 1000), ByteRange(5000, 6000), ByteRange(9000, 9500)]
    assert origin.requests[-1].header("If-Range") == '"v0"'


@pytest.mark.fault(
    "origin",
    "it gives no strong validator",
    client="the right bytes of one answer, or a cut",
    kept="one answer's bytes; a broken one's are dropped before the next",
    next_reader="what is stored, if it is whole; else a new answer from the front",
)
@pytest.mark.parametrize("etag", [None, 'W/"v{version}"'], ids=["no ETag", "weak ETag"])
def test_without_a_strong_validator_answers_are_not_joined(
    cache: Cache, origin: Origin, etag: str | None
) -> None:
    origin.put("/film", Resource(SIZE, etag=etag))
    film = cache.entry(origin.url("/film"))
    hold = origin.script(hold_after(300_000))
    origin.script(cut_after(300_000))
    reading = in_thread(fetch, cache, film)
    assert hold.reached.wait(WAIT_S)
    origin.put("/film", Resource(SIZE, etag=etag, version=1))
    hold.release()
    with pytest.raises(RepresentationChanged):
        reading.result(WAIT_S)
    assert fetch(cache, film) == _newer(0, SIZE)
    assert all(request.header("If-Range") is None for request in origin.requests)


@pytest.mark.fault(
    "origin",
    "an origin without ranges always breaks off at the same place",
    client="a cut, after a few attempts",
    kept="nothing that cannot be joined",
    next_reader="tries again once the failure has rested",
)
def test_an_unseekable_origin_that_always_breaks_off_is_given_up(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, accepts_ranges=False))
    film = cache.entry(origin.url("/film"))
    origin.script(cut_after(300_000), times=None)
    with pytest.raises(OriginError):
        film.wait_complete(WAIT_S)
    assert film.state is DownloadState.FAILED
    assert len(origin.requests) <= HASTY.attempts


def test_an_unseekable_origin_that_broke_off_once_is_read_from_the_front_again(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, accepts_ranges=False))
    film = cache.entry(origin.url("/film"))
    origin.script(cut_after(300_000))
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    assert len(origin.requests) == 2


# -- bodies that end early or late -------------------------------------------------


@pytest.mark.fault(
    "origin",
    "the body is shorter than promised",
    client="the right bytes: the rest is asked for",
    kept="what came",
    next_reader="what is stored, and the rest",
)
def test_of_a_short_body_only_what_came_is_recorded(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    origin.script(short_body(1000))
    hold = origin.script(hold_before_headers(), nth=2)
    reading = in_thread(fetch, cache, film)
    assert hold.reached.wait(WAIT_S)
    assert film.ranges == [ByteRange(0, SIZE - 1000)]
    assert film.state is DownloadState.DOWNLOADING
    hold.release()
    assert reading.result(WAIT_S) == content(0, SIZE)
    assert origin.requests[1].range == f"bytes={SIZE - 1000}-{SIZE - 1}"


@pytest.mark.fault(
    "origin",
    "a body of unknown length breaks off",
    client="the right bytes: the rest is asked for",
    kept="what came; the length stays unknown",
    next_reader="what is stored, and the rest",
)
def test_an_unknown_length_is_not_settled_by_a_body_that_is_cut(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, framing="chunked"))
    cache = open_cache()
    film = cache.entry(origin.url("/film"))
    origin.script(chunked_cut_after(300_000))
    hold = origin.script(hold_before_headers(), nth=2)
    film.start()
    assert hold.reached.wait(WAIT_S)
    shown = film.describe()
    assert (shown["total_size"], shown["state"]) == (None, "downloading")
    hold.release()
    assert film.wait_complete(WAIT_S)
    assert film.total_bytes == SIZE
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.fault("origin", "a body of unknown length breaks off")
def test_a_reset_is_not_the_end_of_a_body_that_ends_with_its_connection(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, framing="close", accepts_ranges=False))
    origin.script(reset_after(300_000))
    film = cache.entry(origin.url("/film"))
    assert film.wait_complete(WAIT_S)
    assert film.total_bytes == SIZE
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.fault(
    "origin",
    "Content-Length stands beside chunked",
    client="the right bytes",
    kept="all of it",
    next_reader="what is stored",
)
def test_a_content_length_beside_chunked_is_ignored(cache: Cache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE, framing="chunked", accepts_ranges=False))
    origin.script(extra_headers(("Content-Length", "7")))
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert film.total_bytes == SIZE


def test_a_body_that_dribbles_is_handed_on_as_it_comes(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    origin.put("/film", Resource(2000))
    origin.script(trickle(piece_bytes=1))
    hold = origin.script(hold_after(1500))
    assert film.wait_for(0, 1500, WAIT_S)
    hold.release()
    assert fetch(cache, film) == content(0, 2000)


@pytest.mark.fault(
    "origin",
    "bytes follow the body",
    client="the right bytes",
    kept="the body, nothing behind it",
    next_reader="an answer of its own, on another connection",
)
def test_bytes_behind_a_body_never_reach_the_next_reader(cache: Cache, origin: Origin) -> None:
    for path in ("/a", "/b"):
        origin.put(path, Resource(1000))

    def smuggle(exchange: Exchange) -> None:
        exchange.send_answer()
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", counted=False)

    origin.script(smuggle, path="/a")
    assert fetch(cache, cache.entry(origin.url("/a"))) == content(0, 1000)
    assert fetch(cache, cache.entry(origin.url("/b"))) == content(0, 1000)


@pytest.mark.fault(
    "origin",
    "a 103 comes before the answer",
    client="the right bytes",
    kept="all of it",
    next_reader="what is stored",
)
def test_early_hints_are_not_the_answer(cache: Cache, film: Entry, origin: Origin) -> None:
    origin.script(early_hints(("Link", "</style.css>; rel=preload")), times=None)
    assert fetch(cache, film) == content(0, SIZE)


# -- statuses ----------------------------------------------------------------------


@pytest.mark.fault(
    "origin",
    "it refuses HEAD",
    client="notices nothing: a ranged GET is the first question, also for a client's HEAD",
    kept="all of it",
    next_reader="what is stored",
)
def test_head_is_never_needed(cache: Cache, film: Entry, origin: Origin) -> None:
    origin.script(status(405), when=lambda request: request.method == "HEAD", times=None)
    assert fetch(cache, film, 500_000, 500_010) == content(500_000, 500_010)
    assert film.wait_complete(WAIT_S)
    assert {request.method for request in origin.requests} == {"GET"}
    assert all(request.range is not None for request in origin.requests)


@pytest.mark.fault("origin", "it refuses for good (403, 404, 410)")
@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451, 501])
def test_a_permanent_status_fails_at_the_first_time(
    cache: Cache, film: Entry, origin: Origin, code: int
) -> None:
    origin.script(status(code), times=None)
    with pytest.raises(OriginStatus) as caught:
        film.wait_for(0, 1)
    assert caught.value.status == code
    assert caught.value.status_hint == (code if code < 500 else 502)
    assert len(origin.requests) == 1


@pytest.mark.fault("origin", "it refuses for now (429, 500, 503)")
@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_status_is_tried_again(
    cache: Cache, film: Entry, origin: Origin, code: int
) -> None:
    origin.script(status(code), times=2)
    assert fetch(cache, film) == content(0, SIZE)
    assert len(origin.requests) == 3


@pytest.mark.fault("origin", "it refuses for now (429, 500, 503)")
@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured(open_cache: OpenCache, origin: Origin, code: int) -> None:
    clock = Clock()
    cache = open_cache(clock=clock)
    origin.put("/film", Resource(SIZE))
    origin.script(status(code, ("Retry-After", "120")), times=None)
    film = cache.entry(origin.url("/film"))
    with pytest.raises(OriginStatus, match=str(code)):  # it cannot come in time
        film.wait_for(0, 1, WAIT_S)
    assert len(origin.requests) == 1
    queued = rows(cache.directory, "SELECT attempts, not_before FROM cache_download_queue")
    assert queued == [(1, clock.now_s + 120)]  # as soon as the origin allows, and not before


def test_an_error_that_passes_within_retry_after_harms_no_reader(
    cache: Cache, film: Entry, origin: Origin
) -> None:
    origin.script(status(503, ("Retry-After", "0")), times=2)
    assert fetch(cache, film) == content(0, SIZE)


def test_redirects_are_followed(cache: Cache, film: Entry, origin: Origin) -> None:
    for code, path in ((301, "/a"), (302, "/b"), (303, "/c"), (307, "/d"), (308, "/e")):
        origin.script(redirect(origin.url("/film"), code), path=path, times=None)
        assert fetch(cache, cache.entry(origin.url(path)), 0, 1000) == content(0, 1000)


@pytest.mark.fault(
    "origin",
    "redirects go round in circles, or nowhere",
    client="502, or 403 where they lead to what is not allowed",
    kept="nothing",
    next_reader="the same once the failure has rested",
)
def test_redirects_end_at_a_limit(open_cache: OpenCache, origin: Origin) -> None:
    origin.script(redirect(origin.url("/round")), path="/round", times=None)
    cache = open_cache(origin=OriginOptions(redirects=3))
    with pytest.raises(OriginError, match="3 redirects"):
        cache.entry(origin.url("/round")).wait_for(0, 1)
    assert len(origin.requests) % 4 == 0


@pytest.mark.fault("origin", "redirects go round in circles, or nowhere")
@pytest.mark.parametrize("target", ["ftp://example.test/film", "file:///etc/passwd", "//[", ""])
def test_a_redirect_to_nowhere_fails_at_once(
    cache: Cache, film: Entry, origin: Origin, target: str
) -> None:
    origin.script(redirect(target), times=None)
    with pytest.raises(OriginError):
        film.wait_for(0, 1)


@pytest.mark.fault("origin", "redirects go round in circles, or nowhere")
def test_every_hop_must_be_allowed(open_cache: OpenCache, origin: Origin) -> None:
    asked: list[str] = []

    def may_visit(url: OriginUrl) -> bool:
        asked.append(url.target)
        return url.target != "/secret"

    origin.put("/secret", Resource(SIZE))
    origin.script(redirect(origin.url("/b")), path="/a", times=None)
    origin.script(redirect(origin.url("/secret")), path="/b", times=None)
    cache = open_cache(origin=OriginOptions(may_visit=may_visit))
    with pytest.raises(OriginRefused):
        cache.entry(origin.url("/a")).wait_for(0, 1)
    assert asked == ["/a", "/b", "/secret"]
    assert [request.path for request in origin.requests] == ["/a", "/b"]


def test_credentials_are_left_behind_at_the_first_hop(cache: Cache, origin: Origin) -> None:
    with Origin() as other:
        other.put("/film", Resource(1000))
        origin.script(redirect(other.url("/film")), times=None)
        url = origin.url("/film").replace("http://", "http://user:hunter2@")
        assert fetch(cache, cache.entry(url)) == content(0, 1000)
        assert origin.requests[0].header("Authorization") is not None
        assert other.requests[0].header("Authorization") is None


def test_credentials_that_a_redirect_brings_along_are_not_used(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(1000))
    target = origin.url("/film").replace("http://", "http://user:hunter2@")
    origin.script(redirect(target), path="/a")
    assert fetch(cache, cache.entry(origin.url("/a"))) == content(0, 1000)
    assert all(request.header("Authorization") is None for request in origin.requests)


# -- codings -----------------------------------------------------------------------


@pytest.mark.fault(
    "origin",
    "it codes the content although nobody asked",
    client="the coded bytes, named as such",
    kept="the coded bytes with their field",
    next_reader="the same",
)
def test_a_coding_nobody_asked_for_is_stored_with_its_field(cache: Cache, origin: Origin) -> None:
    origin.put(
        "/film",
        Resource(SIZE, headers=(("Content-Encoding", "gzip"),), accepts_ranges=False),
    )
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        assert ("Content-Encoding", "gzip") in reader.representation().fields
        assert b"".join(reader.pieces(0, SIZE)) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert all(request.header("Accept-Encoding") == "identity" for request in origin.requests)


# -- silence -----------------------------------------------------------------------


@pytest.mark.fault(
    "network",
    "a connection falls silent, or dribbles",
    client="the right bytes over another connection; a cut when its patience ends first",
    kept="what came",
    next_reader="what is stored, and the rest",
)
def test_a_stalled_connection_is_replaced(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(stall_after(300_000))
    cache = open_cache(origin=OriginOptions(read_timeout_s=BRIEF_S))
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film) == content(0, SIZE)
    assert [request.range for request in origin.requests] == [
        "bytes=0-",
        f"bytes=300000-{SIZE - 1}",
    ]


@pytest.mark.fault("network", "a connection falls silent, or dribbles")
def test_a_connection_that_falls_silent_is_replaced_before_its_timeout(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(stall_after(300_000))
    cache = open_cache(speed=SpeedLimits(silence_s=BRIEF_S))
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, SIZE)
    asked = [request.range for request in origin.requests]
    assert asked == ["bytes=0-", f"bytes=300000-{SIZE - 1}"]


@pytest.mark.fault("network", "a connection falls silent, or dribbles")
def test_a_connection_that_only_dribbles_is_replaced(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(trickle(piece_bytes=100, pause_s=0.01))
    cache = open_cache(speed=SpeedLimits(floor_bytes_s=MIB, window_s=BRIEF_S))
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, SIZE)
    first, second = origin.requests
    assert not first.finished
    assert second.finished


def test_a_slow_connection_above_the_floor_is_kept(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(5000))
    origin.script(trickle(piece_bytes=100, pause_s=0.01))
    cache = open_cache(speed=SpeedLimits(floor_bytes_s=100, window_s=BRIEF_S))
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, 5000)
    assert len(origin.requests) == 1


@pytest.mark.fault("network", "the origin accepts the request and says nothing")
def test_an_origin_that_never_answers_is_said_to_be_silent(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(hold_before_headers(), times=None)
    cache = open_cache(origin=OriginOptions(read_timeout_s=BRIEF_S / 4))
    with pytest.raises(OriginTimeout):
        cache.entry(origin.url("/film")).wait_for(0, 1)


@pytest.mark.fault("network", "the origin cannot be reached")
def test_an_origin_that_is_not_there_is_said_to_be_unreachable(cache: Cache) -> None:
    with Origin() as gone:
        url = gone.url("/film")
    with pytest.raises(OriginUnreachable):
        cache.entry(url).wait_for(0, 1)


def test_an_origin_with_few_connections_is_still_read_to_the_end(open_cache: OpenCache) -> None:
    with Origin(Shaping(max_connections=1, retry_after_s=0)) as origin:
        origin.put("/film", Resource(4 * MIB))
        cache = open_cache(retries=replace(HASTY, attempts=1000, first_attempts=1000))
        film = cache.entry(origin.url("/film"))
        readers = [in_thread(fetch, cache, film, start) for start in (0, 2 * MIB)]
        for reading, start in zip(readers, (0, 2 * MIB), strict=True):
            assert reading.result(WAIT_S) == content(start, 4 * MIB)


# -- connections that are used again -------------------------------------------------


def _ask(client: OriginClient, origin: Origin, canceller: Canceller) -> bytes:
    """Read the film to its end, as one of those who share the client's connections."""
    url = parse_url(origin.url("/film"))
    everything = ByteRange(0, END)
    with client.fetch(url, everything, held=None, canceller=canceller) as answer:
        return b"".join(iter(answer.read, b""))


def test_who_leaves_late_does_not_end_what_his_connection_is_used_for_next(origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    hold = origin.script(hold_before_headers(), nth=2)
    first = Canceller()
    with closing(OriginClient()) as client:
        assert _ask(client, origin, first) == content(0, SIZE)
        second = in_thread(_ask, client, origin, Canceller())
        assert hold.reached.wait(WAIT_S)
        first.cancel()
        hold.release()
        assert second.result(WAIT_S) == content(0, SIZE)
    assert len({request.connection for request in origin.requests}) == 1
