"""Answers that are not framed as HTTP says: nothing of them is stored, or only what surely came.

Each is written on the wire byte by byte, and to two clients: one of a file that nothing
is known of, and one of a file whose beginning is stored.
"""

from __future__ import annotations

import http.client

import pytest

from cachefsm import DownloadState
from cachefsm.errors import CacheError, OriginError
from tests.support.caches import WAIT_S, OpenCache, fetch, recorded
from tests.support.clients import ask, serve_mounted
from tests.support.faults import raw
from tests.support.origin import Exchange, Origin, Resource, content

SIZE = 300_000
HERE = 100_000  # of a file whose beginning is stored

_WHOLE = content(0, SIZE)
_REST = content(HERE, SIZE)


def _head(status: str, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", 'ETag: "v0"', *lines, "", ""]).encode("latin-1")


def _answer(*lines: str, body: bytes | None = None) -> dict[str, bytes]:
    """Return the same faulty answer to a question for everything, and to one for the rest."""
    rest = f"Content-Range: bytes {HERE}-{SIZE - 1}/{SIZE}"
    return {
        "whole": _head("200 OK", *lines) + (_WHOLE if body is None else body),
        "rest": _head("206 Partial Content", rest, *lines) + (_REST if body is None else body),
    }


def _chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


_REFUSED = {
    "two lengths": _answer("Content-Length: 300000", "Content-Length: 200000"),
    "two lengths in one": _answer("Content-Length: 300000, 200000"),
    "a negative length": _answer("Content-Length: -300000"),
    "a length with a sign": _answer("Content-Length: +300000"),
    "a length in hexadecimal": _answer("Content-Length: 0x493e0"),
    "a length and more": _answer("Content-Length: 300000abc"),
    "an empty length": _answer("Content-Length: "),
    "a length beyond all files": _answer("Content-Length: 99999999999999999999"),
    "a coding before chunked": _answer("Transfer-Encoding: gzip, chunked", body=_chunked(_WHOLE)),
    "a coding after chunked": _answer("Transfer-Encoding: chunked, gzip", body=_chunked(_WHOLE)),
    "chunked twice": _answer("Transfer-Encoding: chunked, chunked", body=_chunked(_WHOLE)),
    "chunked in two fields": _answer(
        "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=_chunked(_WHOLE)
    ),
    "an unknown coding": _answer("Transfer-Encoding: sideways"),
    "identity": _answer("Transfer-Encoding: identity", f"Content-Length: {SIZE}"),
    "a quoted coding": _answer('Transfer-Encoding: "chunked"', body=_chunked(_WHOLE)),
    "a vertical tab before chunked": _answer(
        "Transfer-Encoding: \x0bchunked", body=_chunked(_WHOLE)
    ),
    "no status line": {"whole": _WHOLE, "rest": _REST},
    "nothing": {"whole": b"", "rest": b""},
    "a status that is no number": {
        kind: answer.replace(b"200 OK", b"abc OK").replace(b"206 P", b"abc P")
        for kind, answer in _answer(f"Content-Length: {SIZE}").items()
    },
    "a head without end": {"whole": _head("200 OK")[:-2], "rest": _head("206 P")[:-2]},
    "endless interim answers": {kind: _head("103 Early Hints") * 200 for kind in ("whole", "rest")},
    "a line that is no field": _answer("this is no field", f"Content-Length: {SIZE}"),
    "a space before the colon": _answer(f"Content-Length : {SIZE}"),
    "a field in two lines, the first one": {
        kind: answer.replace(b"ETag", b" folded\r\nETag")
        for kind, answer in _answer(f"Content-Length: {SIZE}").items()
    },
    "a head that ends within a field": {
        kind: answer[: answer.index(b"000\r\n\r\n")]
        for kind, answer in _answer("Content-Length: 300000").items()
    },
}
"""Answers of which no byte can be trusted to be where it seems."""


@pytest.mark.fault(
    "origin",
    "its framing is faulty, or is none",
    client="the right bytes if the next answer is better; 502 after the last attempt",
    kept="nothing of that answer",
    next_reader="asks the origin again once the failure has rested",
)
@pytest.mark.parametrize("answers", _REFUSED.values(), ids=_REFUSED.keys())
@pytest.mark.parametrize("kind", ["whole", "rest"])
def test_nothing_of_a_doubtful_answer_is_stored(
    open_cache: OpenCache, origin: Origin, kind: str, answers: dict[str, bytes]
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested", read_ahead=0)
    film = cache.entry(origin.url("/film"))
    held = HERE if kind == "rest" else 0
    assert fetch(cache, film, 0, held) == content(0, held)
    origin.script(raw(answers[kind]), times=None)
    with serve_mounted(cache, origin) as proxy:
        if kind == "whole":
            assert ask(f"{proxy.url}m/film").status == 502
        else:
            assert ask(f"{proxy.url}m/film", {"Range": f"bytes={held}-"}).status == 502
        assert film.state is DownloadState.FAILED
        assert sum(run.size for run in film.ranges) == held
    cache.close()
    assert recorded(cache.directory).bytes_present == held


@pytest.mark.fault("origin", "its framing is faulty, or is none")
@pytest.mark.parametrize("answers", _REFUSED.values(), ids=_REFUSED.keys())
def test_a_doubtful_answer_is_made_good_by_the_next(
    open_cache: OpenCache, origin: Origin, answers: dict[str, bytes]
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache()
    origin.script(raw(answers["whole"]))
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)


# -- bodies that are not what the head said -------------------------------------------

_UNTRUE = {
    "chunks longer than the interval": _answer(
        "Transfer-Encoding: chunked", body=_chunked(_REST + b"more")
    )["rest"],
    "chunks shorter than the interval": _answer(
        "Transfer-Encoding: chunked", body=_chunked(_REST[:50_000])
    )["rest"],
    "a chunk size that is none": _answer(
        "Transfer-Encoding: chunked", body=b"c350\r\n" + _REST[:50_000] + b"\r\nxyz\r\n"
    )["rest"],
    "a negative chunk size": _answer(
        "Transfer-Encoding: chunked", body=b"c350\r\n" + _REST[:50_000] + b"\r\n-5\r\nabcde\r\n"
    )["rest"],
    "a chunk longer than it says": _answer(
        "Transfer-Encoding: chunked", body=b"a\r\n" + _REST[:50_000] + b"\r\n0\r\n\r\n"
    )["rest"],
    "chunks without an end": _answer(
        "Transfer-Encoding: chunked", body=_chunked(_REST[:50_000], end=b"")
    )["rest"],
    "closed before the interval's end": _answer(body=_REST[:50_000])["rest"],
    "open beyond the interval's end": _answer(body=_REST + b"more")["rest"],
    "a body shorter than its length": _answer(f"Content-Length: {len(_REST)}", body=_REST[:50_000])[
        "rest"
    ],
}


@pytest.mark.fault(
    "origin",
    "a body is not as long as its head says",
    client="the right bytes: what is missing is asked for, what is too much is not looked at",
    kept="what surely came",
    next_reader="what is stored, and the rest",
)
@pytest.mark.parametrize("answer", _UNTRUE.values(), ids=_UNTRUE.keys())
def test_of_a_body_that_is_not_as_its_head_says_only_what_surely_came_is_stored(
    open_cache: OpenCache, origin: Origin, answer: bytes
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested", read_ahead=0)
    film = cache.entry(origin.url("/film"))
    fetch(cache, film, 0, HERE)
    origin.script(raw(answer))
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    cache.close()
    assert recorded(cache.directory).stored() == [(0, content(0, SIZE))]


@pytest.mark.parametrize("answer", _UNTRUE.values(), ids=_UNTRUE.keys())
def test_an_origin_that_always_does_so_never_has_a_wrong_byte_stored(
    open_cache: OpenCache, origin: Origin, answer: bytes
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache(fill="requested", read_ahead=0)
    film = cache.entry(origin.url("/film"))
    fetch(cache, film, 0, HERE)

    def at_any_place(exchange: Exchange) -> None:
        """Answer for the place that is asked about, wrong in the same way."""
        asked = int(str(exchange.request.range).removeprefix("bytes=").partition("-")[0])
        if asked == HERE:
            raw(answer)(exchange)

    origin.script(at_any_place, times=None)
    with serve_mounted(cache, origin) as proxy:
        try:
            body = ask(f"{proxy.url}m/film").body
        except http.client.IncompleteRead as cut:
            body = cut.partial
    assert body == content(0, len(body))
    cache.close()
    for start, data in recorded(cache.directory).stored():
        assert data == content(start, start + len(data))


@pytest.mark.parametrize("end", [b"", b"0", b"000", b"0\r", b"-0\r\n\r\n", b"0_0\r\n\r\n"])
def test_an_unknown_length_ends_with_the_last_chunk_and_nowhere_else(
    open_cache: OpenCache, origin: Origin, end: bytes
) -> None:
    """A cut may leave the first digits of a size, and those be noughts."""
    origin.put("/film", Resource(SIZE))
    chunked = _chunked(_WHOLE[:10], end=end)
    head = _head("200 OK", "Transfer-Encoding: chunked", "Accept-Ranges: bytes")
    origin.script(raw(head + chunked))
    cache = open_cache()
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, SIZE)


def test_trailers_are_no_part_of_the_body(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    end = b'0\r\nETag: "another"\r\nContent-Length: 5\r\n\r\n'
    origin.script(
        raw(_head("200 OK", "Transfer-Encoding: chunked") + _chunked(_WHOLE, end=end)), times=None
    )
    cache = open_cache()
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert film.total_bytes == SIZE


def test_chunks_may_have_extensions_and_noughts(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    body = b"00000a ;name=value\r\n" + _WHOLE[:10] + b"\r\n" + _chunked(_WHOLE[10:])
    origin.script(raw(_head("200 OK", "Transfer-Encoding: chunked") + body), times=None)
    cache = open_cache()
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, SIZE)


def test_an_answer_in_another_protocol_is_refused(open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(raw(_head("101 Switching Protocols") + _WHOLE))
    cache = open_cache()
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").status == 502


def test_a_faulty_answer_raises_nothing_but_an_error_of_the_origin(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(raw(b"\x00\xff" * 40_000), times=None)
    cache = open_cache()
    with pytest.raises(OriginError) as caught:
        fetch(cache, cache.entry(origin.url("/film")))
    assert isinstance(caught.value, CacheError)
    assert "\n" not in str(caught.value)
