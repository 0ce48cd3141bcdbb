"""The fuzzer's judge knows wrong from right, and a thousand of its cases find nothing."""

from __future__ import annotations

import random
import re

import pytest

from tests.fuzz.films import FILMS
from tests.fuzz.grammar import Wish, make_case
from tests.fuzz.judge import Wrong, judge
from tests.fuzz.run import fuzz
from tests.soak.judge import Span

FILM = FILMS[2]
HEAD = f"HTTP/1.1 200 OK\r\nETag: {FILM.etag}\r\nContent-Length: {FILM.size}\r\n\r\n".encode()
BODY = FILM.read(0, FILM.size)
PART = (
    f"HTTP/1.1 206 Partial Content\r\nETag: {FILM.etag}\r\n"
    f"Content-Range: bytes 10-19/{FILM.size}\r\nContent-Length: 10\r\n\r\n"
).encode()
CHUNKED = (
    f"HTTP/1.1 200 OK\r\nETag: {FILM.etag}\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n"
).encode()
_PARTS = (
    f"\r\n--xyz\r\nContent-Range: bytes 3-4/{FILM.size}\r\n\r\n\5\6"
    f"\r\n--xyz\r\nContent-Range: bytes 6-8/{FILM.size}\r\n\r\n\x08\x09\x0a\r\n--xyz--\r\n"
)
PARTS = (
    f"HTTP/1.1 206 Partial Content\r\nETag: {FILM.etag}\r\n"
    "Content-Type: multipart/byteranges; boundary=xyz\r\n"
    f"Content-Length: {len(_PARTS)}\r\n\r\n{_PARTS}"
).encode()
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\nConnection: close\r\n\r\nno!\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"

GET = Wish(FILM)
SPAN = Wish(FILM, span=Span(10, 19))


@pytest.mark.parametrize(
    ("received", "wishes"),
    [
        (b"", None),
        (HEAD + BODY, None),
        (HEAD + BODY, [GET]),
        (HEAD + BODY[:300], [GET]),  # cut
        (HEAD + BODY[:300], [GET, GET]),
        (HEAD, [Wish(FILM, "HEAD")]),
        (HEAD + HEAD + BODY, None),  # a HEAD, by the looks of it
        (PART + BODY[10:20], [SPAN]),
        (CHUNKED + BODY + b"\r\n0\r\n\r\n", [GET]),
        (CHUNKED + BODY[:5], [GET]),
        (PARTS, None),
        (INTERIM + HEAD + BODY + REFUSED, None),
        (REFUSED, None),
    ],
)
def test_what_is_right_is_let_pass(received: bytes, wishes) -> None:
    judge(received, wishes)


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("received", "wishes", "why"),
    [
        (HEAD + _flipped(BODY), None, "wrong bytes"),
        (HEAD + _flipped(BODY[:300]), None, "wrong bytes"),
        (HEAD + BODY[1:] + b"x", [GET], "wrong bytes"),
        (PART + BODY[11:21], None, "wrong bytes"),
        (PART.replace(b"/1000", b"/1001") + BODY[10:20], None, "range"),
        (PART.replace(b"ETag", b"X-Tag") + BODY[10:20], None, "nothing that"),
        (CHUNKED + _flipped(BODY) + b"\r\n0\r\n\r\n", None, "wrong bytes"),
        (CHUNKED + BODY + b"x\r\n0\r\n\r\n", None, "longer than it says"),
        (CHUNKED.replace(b"3e8", b"3E8;x") + BODY, None, "size of a chunk"),
        (PARTS.replace(b"\5\6", b"\5\7"), None, "wrong bytes"),
        (PARTS.replace(b"6-8/", b"5-7/"), None, "wrong bytes"),
        (PARTS.replace(b"--xyz--", b"--abc--"), None, "boundary"),
        (REFUSED + HEAD + BODY, None, "follow the last answer"),
        (REFUSED + b"\n", None, "follow the last answer"),
        (HEAD + BODY + b"\n", None, "does not end"),
        (HEAD.replace(b"ETag", b"E Tag") + BODY, None, "header field"),
        (HEAD.replace(b"ETag: ", b"ETag: \0") + BODY, None, "header field"),
        (HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 1000\r\n\r\n") + BODY, None, "twice"),
        (b"HTTP/1.1 two hundred\r\n\r\n", None, "status line"),
        (b"Traceback (most recent call last)", None, "traceback"),
        (HEAD + BODY, [SPAN], "all of it"),
        (PART + BODY[10:20], [GET], "a part"),
        (PART + BODY[10:20], [Wish(FILM, span=Span(11, 20))], "10 bytes"),
        (HEAD + BODY, [GET, GET], "1 answers"),
        (HEAD + BODY + HEAD + BODY, [GET], "more answers"),
        (HEAD + BODY, [Wish(FILMS[3])], "200"),
        (REFUSED, [GET], "400"),
        (b"HTTP/1.1 416 X\r\nContent-Length: 0\r\n\r\n", [SPAN], "satisfied"),
    ],
)
def test_what_is_wrong_is_found(received: bytes, wishes, why: str) -> None:
    with pytest.raises(Wrong, match=re.escape(why)):
        judge(received, wishes)


def test_a_seed_and_a_number_make_the_same_case_again() -> None:
    cases = [make_case(random.Random(f"1/{number}"), "localhost") for number in range(50)]
    again = [make_case(random.Random(f"1/{number}"), "localhost") for number in range(50)]
    assert cases == again
    assert len({case.data for case in cases}) > 45


def test_a_thousand_mutated_requests_find_nothing() -> None:
    report = fuzz(1000, seed=20_240_229)
    assert report.findings == []
    assert report.counts["cases"] == 1000
    # Of both kinds, or it would have tested nothing.
    assert report.counts["status 200"] > 100
    assert report.counts["status 400"] > 100
