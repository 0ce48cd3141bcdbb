"""What cannot be stored: the same exact bytes of one version, straight from the origin.

The database takes no row for a new URL, so that every byte passes by the cache.
"""

from __future__ import annotations

import http.client
import io
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from cachefsm import Cache
from cachefsm.errors import CacheError, OriginUnreachable, RepresentationChanged, StorageError
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, OpenCache
from tests.support.clients import ask, opened, serve_mounted
from tests.support.databases import aborting
from tests.support.faults import (
    cut_after,
    drop_headers,
    hold_after,
    redirect,
    short_body,
    status,
    wrong_content_range,
)
from tests.support.messages import pattern
from tests.support.origin import Exchange, Origin, Resource, Script, content

MIB = 1 << 20
SIZE = 3 * MIB


@pytest.fixture
def film(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


@pytest.fixture
def full(cache: Cache) -> Iterator[None]:
    """The database takes no new row."""
    with aborting(cache.directory / "cache.sqlite3", "BEFORE INSERT ON cache_entries"):
        yield


@pytest.fixture
def proxy(cache: Cache, origin: Origin, film: str, full: None) -> Iterator[Server]:
    """A proxy that can store nothing."""
    with serve_mounted(cache, origin) as server:
        yield server


@pytest.fixture
def stream(cache: Cache, film: str, full: None) -> Iterator[io.BufferedReader]:
    """The film as a file that can be stored nowhere."""
    with cache.entry(film).open() as file:
        yield file


def _ranges(origin: Origin) -> list[str | None]:
    return [request.range for request in origin.requests]


# -- the same gate ------------------------------------------------------------------


_REFUSALS = {
    "a wrong interval": (wrong_content_range("bytes 0-9/{size}"), 502),
    "an impossible total": (wrong_content_range("bytes {start}-{last}/{start}"), 502),
    "an error": (status(500), 500),
    "nothing there": (status(410), 410),
    "a redirect to where nobody may go": (redirect("ftp://elsewhere.test/"), 403),
}


@pytest.mark.parametrize(("script", "told"), _REFUSALS.values(), ids=_REFUSALS.keys())
def test_an_answer_that_would_not_be_stored_is_not_handed_on_either(
    origin: Origin, proxy: Server, script: Script, told: int
) -> None:
    origin.script(script)
    assert ask(f"{proxy.url}m/film", {"Range": "bytes=10-19"}).status == told
    assert ask(f"{proxy.url}m/film", {"Range": "bytes=10-19"}).body == content(10, 20)


def test_an_origin_that_is_not_allowed_is_not_asked(
    origin: Origin, film: str, proxy: Server
) -> None:
    assert ask(f"{proxy.url}http/{film.removeprefix('http://')}").status == 403
    assert origin.requests == []


def test_a_short_body_is_a_visible_cut(origin: Origin, proxy: Server) -> None:
    origin.script(short_body(1), times=None)
    with pytest.raises(http.client.IncompleteRead):
        ask(f"{proxy.url}m/film")


def test_a_range_past_the_end_is_told_the_length(proxy: Server) -> None:
    reply = ask(f"{proxy.url}m/film", {"Range": f"bytes={SIZE}-"})
    assert (reply.status, reply["Content-Range"]) == (416, f"bytes */{SIZE}")


def test_an_empty_file_is_empty(origin: Origin, proxy: Server) -> None:
    origin.put("/empty", Resource(0))
    reply = ask(f"{proxy.url}m/empty")
    assert (reply.status, reply.body, reply["Content-Length"]) == (200, b"", "0")


def test_a_precondition_is_answered_without_a_body(proxy: Server) -> None:
    reply = ask(f"{proxy.url}m/film", {"If-None-Match": '"v0"'})
    assert (reply.status, reply.body) == (304, b"")


def test_a_client_that_leaves_ends_the_transfer(origin: Origin, proxy: Server) -> None:
    hold = origin.script(hold_after(MIB))
    with opened(f"{proxy.url}m/film") as response:
        assert response.read(1000) == content(0, 1000)
        assert hold.reached.wait(WAIT_S)
    origin.wait_until(lambda: origin.open_connections == 0)


# -- several parts ------------------------------------------------------------------


def _parts(body: bytes) -> list[bytes]:
    """Return the bytes of a multipart answer's parts."""
    boundary = body.split(b"\r\n", 2)[1 if body.startswith(b"\r\n") else 0]
    heads = [match.end() for match in re.finditer(rb"\r\n\r\n", body)]
    ends = [match.start() for match in re.finditer(rb"\r\n" + re.escape(boundary), body)]
    ends = [end for end in ends if end > heads[0]]
    return [body[start:stop] for start, stop in zip(heads, ends, strict=True)]


@pytest.mark.parametrize("accepts_ranges", [True, False, "lie"])
@pytest.mark.parametrize("etag", ['"v0"', 'W/"v0"', None])
def test_several_ranges_are_exact_or_refused_or_cut(
    origin: Origin, proxy: Server, accepts_ranges: bool, etag: str | None
) -> None:
    origin.put("/film", Resource(SIZE, accepts_ranges=accepts_ranges, etag=etag))
    wanted = [(10, 20), (1000, 1010), (2 * MIB, 2 * MIB + 10)]
    spec = ",".join(f"{start}-{stop - 1}" for start, stop in wanted)
    try:
        reply = ask(f"{proxy.url}m/film", {"Range": f"bytes={spec}"})
    except http.client.IncompleteRead:
        assert accepts_ranges is True  # ranges of unknown versions are not joined
        assert etag != '"v0"'
    else:
        assert reply.status == 206
        assert _parts(reply.body) == [content(*part) for part in wanted]


def test_parts_that_lie_apart_are_asked_for_one_by_one(origin: Origin, proxy: Server) -> None:
    last = f"{SIZE - 10}-{SIZE - 1}"
    reply = ask(f"{proxy.url}m/film", {"Range": f"bytes=0-9,{last}"})
    assert _parts(reply.body) == [content(0, 10), content(SIZE - 10, SIZE)]
    assert _ranges(origin) == ["bytes=0-9", f"bytes={last}"]


def test_a_part_of_another_version_is_never_joined(origin: Origin, proxy: Server) -> None:
    def change(exchange: Exchange) -> None:
        origin.put("/film", Resource(SIZE, version=1))

    origin.script(change)
    with pytest.raises(http.client.IncompleteRead):
        ask(f"{proxy.url}m/film", {"Range": f"bytes=0-9,{SIZE - 10}-{SIZE - 1}"})


# -- one version --------------------------------------------------------------------


@pytest.mark.parametrize("etag", ['"v{version}"', 'W/"v{version}"'])
def test_the_head_and_the_body_are_of_one_version(origin: Origin, proxy: Server, etag: str) -> None:
    """The first question is for a part, the one that is answered for the whole."""
    origin.put("/film", Resource(SIZE, etag=etag))

    def change(exchange: Exchange) -> None:
        origin.put("/film", Resource(SIZE + 1, version=1, etag=etag))

    origin.script(change)
    fields = {"Range": "bytes=5-9", "If-Range": '"another"'}
    reply = ask(f"{proxy.url}m/film", fields)
    assert reply.status == 200
    assert reply["ETag"] == etag.replace("{version}", "1")
    assert reply.body == bytes(pattern(1)(0, SIZE + 1))


def test_a_file_that_changes_while_it_is_read_ends_in_an_error(
    origin: Origin, stream: io.BufferedReader
) -> None:
    assert stream.read(10) == content(0, 10)
    origin.put("/film", Resource(SIZE, version=1))
    stream.seek(2 * MIB)
    with pytest.raises(RepresentationChanged):
        stream.read(10)


def test_without_a_strong_validator_a_file_is_read_forwards_only(
    origin: Origin, stream: io.BufferedReader
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    assert stream.read(10) == content(0, 10)
    stream.seek(2 * MIB)  # through what lies between
    assert stream.read(10) == content(2 * MIB, 2 * MIB + 10)
    stream.seek(0)
    with pytest.raises(StorageError, match="joined"):
        stream.read(10)
    assert len(origin.requests) == 1


# -- reading ------------------------------------------------------------------------


def test_a_file_is_read_in_any_order(origin: Origin, stream: io.BufferedReader) -> None:
    for start in (SIZE - 10, 0, MIB, MIB - 5, 2 * MIB):
        stream.seek(start)
        assert stream.read(10) == content(start, start + 10)
    assert stream.seek(0, io.SEEK_END) == SIZE
    assert stream.read() == b""
    stream.seek(0)
    assert stream.read() == content(0, SIZE)
    # Each jump lets the transfer before it go.
    origin.wait_until(lambda: origin.open_connections <= 1)


def test_little_is_skipped_rather_than_asked_for_again(
    origin: Origin, stream: io.BufferedReader
) -> None:
    for start in (0, 300_000, 900_000):
        stream.seek(start)
        assert stream.read(10) == content(start, start + 10)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_a_file_of_unknown_length_is_read_to_its_end(
    origin: Origin, proxy: Server, cache: Cache, film: str, framing: str
) -> None:
    origin.put("/film", Resource(SIZE, framing=framing))
    assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
    with cache.entry(film).open() as stream:
        assert stream.read() == content(0, SIZE)


def test_an_answer_that_gives_less_than_was_asked_for_is_followed_by_another(
    origin: Origin, stream: io.BufferedReader
) -> None:
    """Parts of at most 1 MiB, and nobody says how long it all is."""

    def sparing(exchange: Exchange) -> None:
        answer = exchange.answer
        if answer.status == 206:
            answer.stop = min(answer.stop, answer.start + MIB)
            answer.drop("Content-Range", "Content-Length")
            span = f"bytes {answer.start}-{answer.stop - 1}/*"
            answer.headers += [("Content-Range", span), ("Content-Length", str(answer.length))]

    origin.script(sparing, times=None)
    assert stream.read() == content(0, SIZE)
    starts = [int(str(text).removeprefix("bytes=").partition("-")[0]) for text in _ranges(origin)]
    assert starts == [0, MIB, 2 * MIB, SIZE]
    assert all(after > before for before, after in pairwise(starts))


def test_a_connection_that_breaks_is_replaced_as_long_as_each_brings_something(
    origin: Origin, proxy: Server
) -> None:
    origin.script(cut_after(MIB), times=None)
    assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
    assert _ranges(origin) == [
        "bytes=0-",
        f"bytes={MIB}-{SIZE - 1}",
        f"bytes={2 * MIB}-{SIZE - 1}",
    ]


def test_an_origin_that_brings_nothing_any_more_is_a_cut(origin: Origin, proxy: Server) -> None:
    origin.script(cut_after(MIB))
    origin.script(cut_after(0), nth=2, times=None)
    with pytest.raises(http.client.IncompleteRead):
        ask(f"{proxy.url}m/film")
    assert len(origin.requests) == 2


def test_an_origin_that_is_gone_is_a_cut(origin: Origin, proxy: Server) -> None:
    hold = origin.script(hold_after(MIB))
    with opened(f"{proxy.url}m/film") as response:
        assert response.read(MIB) == content(0, MIB)
        assert hold.reached.wait(WAIT_S)
        with origin.outage(), pytest.raises(http.client.IncompleteRead):
            response.read()


def test_a_body_that_ends_early_is_an_error_and_no_end_of_file(
    origin: Origin, stream: io.BufferedReader
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    origin.script(cut_after(MIB))
    with pytest.raises(OriginUnreachable):
        stream.read()


def test_what_may_not_be_stored_is_asked_for_as_far_as_it_is_wanted(
    origin: Origin, open_cache: OpenCache
) -> None:
    """Of parts that could not be joined, the first one alone would not do."""
    private = (("Cache-Control", "no-store"),)
    origin.put("/film", Resource(SIZE, etag=None, headers=private))
    cache = open_cache("another", fill="requested", read_ahead=MIB)
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
        part = ask(f"{proxy.url}m/film", {"Range": f"bytes=1000-{SIZE - 1001}"})
    assert part.body == content(1000, SIZE - 1000)


def test_a_cut_body_of_known_length_is_an_error_even_if_no_length_came_with_it(
    origin: Origin, proxy: Server
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    origin.script(drop_headers("Content-Length"))
    origin.script(cut_after(MIB))
    with pytest.raises((http.client.IncompleteRead, CacheError)):
        ask(f"{proxy.url}m/film", {"Range": f"bytes=0-{SIZE - 1}"})
