"""The request parser and the response head, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.errors import CacheError
from cachefsm.wire import (
    BadRequest,
    RequestHead,
    check_response,
    check_text,
    parse_head,
    plain_answer,
)

# What a request is made of, and what attacks on its parser are made of.
FRAGMENTS = st.sampled_from(
    [
        *(b"GET", b"HEAD", b"CONNECT", b" ", b"/", b"*", b"/a?b#c", b"http://x/", b"HTTP/1.1"),
        *(b"HTTP/1.0", b"HTTP/0.9", b"\r\n", b"\n", b"\r", b"\0", b"\t", b":", b"Host: x"),
        *(b"Host", b"Content-Length: 5", b"Content-Length: -1", b"Transfer-Encoding: chunked"),
        *(b"Connection: close", b"X_Y: 1", b" folded", b"\xff", b"Expect: 100-continue"),
    ]
)
HEADS = st.lists(FRAGMENTS | st.binary(max_size=6), max_size=24).map(b"".join)


def parse(*lines: bytes, request: bytes = b"GET /film HTTP/1.1") -> RequestHead:
    return parse_head(b"\r\n".join([request, *lines]))


def test_a_request_is_taken_apart() -> None:
    head = parse(b"Host: a.test:80", b"Range:\t bytes=0-1 \t", request=b"GET /a%0d?b=%41 HTTP/1.1")
    assert head == RequestHead(
        method="GET",
        target="/a%0d?b=%41",
        minor=1,
        fields={"HTTP_HOST": "a.test:80", "HTTP_RANGE": "bytes=0-1"},
        body_bytes=0,
        keep_alive=True,
        expects_continue=False,
    )


@pytest.mark.parametrize(
    ("request_line", "connection", "keeps"),
    [
        (b"GET / HTTP/1.1", b"", True),
        (b"GET / HTTP/1.1", b"close", False),
        (b"GET / HTTP/1.1", b"TE, Close", False),
        (b"GET / HTTP/1.1", b"keep-alive", True),
        (b"GET / HTTP/1.0", b"", False),
        (b"GET / HTTP/1.0", b"Keep-Alive", True),
        (b"GET / HTTP/1.0", b"keep-alive, close", False),
    ],
)
def test_who_keeps_the_connection(request_line: bytes, connection: bytes, keeps: bool) -> None:
    assert parse(b"Host: x", b"Connection: " + connection, request=request_line).keep_alive is keeps


def test_repeated_fields_are_joined() -> None:
    head = parse(b"Host: x", b"Accept: a", b"Cookie: a=1", b"Accept: b", b"Cookie: b=2")
    assert head.fields["HTTP_ACCEPT"] == "a, b"
    assert head.fields["HTTP_COOKIE"] == "a=1; b=2"


def test_names_with_an_underscore_are_dropped() -> None:
    """X_Forwarded_For and X-Forwarded-For would be one environ key."""
    head = parse(b"Host: x", b"X_A: forged", b"X-A: real", b"Content_Length: 9", b"Host_: y")
    assert head.fields == {"HTTP_HOST": "x", "HTTP_X_A": "real"}
    assert head.body_bytes == 0


@pytest.mark.parametrize("text", [b"a\r\nb\tc\xff", b"\r\n\r\n", b""])
def test_text_with_whole_line_ends_passes(text: bytes) -> None:
    check_text(text)


@pytest.mark.parametrize("text", [b"a\rb\n", b"\n", b"\r", b"\r\r\n\n", b"\0", b"\x7f", b"\x0b"])
def test_text_with_a_stray_control_does_not_pass(text: bytes) -> None:
    with pytest.raises(BadRequest, match="control"):
        check_text(text)


@given(HEADS)
def test_random_heads_are_parsed_or_refused(head: bytes) -> None:
    refusal = None
    try:
        request = parse_head(head, max_target_bytes=64, max_header_bytes=128)
    except CacheError as error:
        refusal = error
    if refusal is not None:
        assert isinstance(refusal, BadRequest)
        assert refusal.status_hint in {400, 414, 421, 431, 501, 505}
        assert plain_answer(refusal.status_hint, str(refusal)).count(b"HTTP/1.1 ") == 1
        return
    assert request.target.startswith("/") or request.target == "*"
    assert request.minor == 0 or "HTTP_HOST" in request.fields
    text = request.target + "".join(request.fields.values())
    assert not any(ord(c) < 32 and c != "\t" for c in text)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200", [("A", "b\r\nC: d")]),
        ("200 OK", [("A", "b\nc")]),
        ("200 OK", [("A", "b\rc")]),
        ("200 OK", [("A", "b\0c")]),
        ("200 OK", [("A\r\nB", "c")]),
        ("200 OK", [("A: b\r\nC", "c")]),
        ("200 OK", [("A B", "c")]),
        ("200 OK", [("", "c")]),
        ("200 OK", [("Ä", "c")]),
        ("200 OK", [("A", "€")]),
        ("200 OK\r\nA: b", []),
        ("100 Continue", []),
        ("OK", []),
        ("200 OK", [("Transfer-Encoding", "chunked")]),
        ("200 OK", [("Content-Length", "5"), ("content-length", "5")]),
        ("200 OK", [("Content-Length", "-5")]),
        ("200 OK", [("Content-Length", "5\r\nA: b")]),
        ("200 OK", [("Content-Length", "٥")]),
    ],
)
def test_a_response_head_that_is_not_http_is_refused(
    status: str, headers: list[tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        check_response(status, headers)


@given(st.text("aB-: \t\r\n\0é€", max_size=9), st.text("aB-: \t\r\n\0é€", max_size=9))
def test_a_response_field_stays_one_line(name: str, value: str) -> None:
    try:
        head = check_response("200 OK", [(name, value)]).render(b"")
    except ValueError:
        return
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") <= 5


def test_server_and_date_are_added_only_where_missing() -> None:
    """A cache passes on those of the origin."""
    assert b"Server: cachefsm\r\n" in check_response("200 OK", []).text
    given_ones = check_response("200 OK", [("server", "nginx"), ("Date", "then")]).text
    assert given_ones == b"200 OK\r\nserver: nginx\r\nDate: then\r\n"
