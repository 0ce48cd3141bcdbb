"""Hostile bytes at the door of the whole proxy: one answer, then a closed connection.

tests/test_wire.py and tests/test_server.py have the parser and the server for themselves.
Here an origin stands behind them, which must never hear of what was refused, and another
client, which must never notice.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from cachefsm import Cache
from cachefsm.access import Rules, parse_mount
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, eventually
from tests.support.clients import ask, connect, exchange, read_all, serve_mounted
from tests.support.faults import hold_before_headers
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

SIZE = 1000

HOST = b"Host: localhost\r\n"
GET = b"GET /m/film HTTP/1.1\r\n" + HOST
POST = b"POST /m/film HTTP/1.1\r\n" + HOST
SMUGGLED = b"GET /m/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    origin.put("/film", Resource(SIZE))
    origin.put("/smuggled", Resource(SIZE, version=9))
    passing = replace(parse_mount(f"/passing={origin.url('/')}"), rules=Rules(passes=True))
    with cache.serve(mounts=[f"/m={origin.url('/')}", passing]) as server:
        yield server


def assert_served(proxy: Server) -> None:
    assert ask(f"{proxy.url}m/film").body == content(0, SIZE)


def answers(received: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


# -- one request, or two ------------------------------------------------------------

TWO_READINGS = {
    "CL and TE": GET + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "TE and CL": GET + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "CL in other case": GET + b"content-LENGTH: 0\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "two CLs": GET + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n",
    "two equal CLs": GET + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "listed CL": GET + b"Content-Length: 0, 0\r\n\r\n",
    "signed CL": GET + b"Content-Length: +0\r\n\r\n",
    "octal CL": GET + b"Content-Length: 0o7\r\n\r\n",
    "CL beyond 64 bits": GET + b"Content-Length: 18446744073709551616\r\n\r\n",
    "unknown TE": GET + b"Transfer-Encoding: cow\r\n\r\n",
    "TE by comma": GET + b"Transfer-Encoding: ,chunked,\r\n\r\n0\r\n\r\n",
    "TE in quotes": GET + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "TE with parameter": GET + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "TE twice": GET + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "TE then identity": GET + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "TE with vertical tab": GET + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "TE with NBSP": GET + b"Transfer-Encoding:\xa0chunked\r\n\r\n0\r\n\r\n",
    "TE behind NUL": GET + b"Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n",
    "TE in HTTP/1.0": GET.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n",
    "space before colon": GET + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before colon": GET + b"Content-Length\t: 40\r\n\r\n",
    "space before name": GET + b" Content-Length: 40\r\n\r\n",
    "folded": GET + b"X: y\r\n Content-Length: 40\r\n\r\n",
    "folded by tab": GET + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n",
    "empty name": GET + b": chunked\r\n\r\n",
    "no colon": GET + b"Content-Length 40\r\n\r\n",
    "name with NUL": GET + b"Content-Length\0: 40\r\n\r\n",
    "name with high byte": GET + b"\xd4ransfer-Encoding: chunked\r\n\r\n",
    "name with quote": GET + b'"Content-Length": 40\r\n\r\n',
    "name with slash": GET + b"Content/Length: 40\r\n\r\n",
    "bare LF in header": GET + b"X: y\nContent-Length: 40\r\n\r\n",
    "bare CR in header": GET + b"X: y\rContent-Length: 40\r\n\r\n",
    "LF ends header": GET.replace(b"\r\n", b"\n") + b"\n",
    "LF CR": GET + b"X: y\n\r\n\r",
    "LF before CRLF": GET[:-2] + b"\n\r\n\r\n",
    "two Hosts": GET + b"Host: evil.test\r\n\r\n",
    "two equal Hosts": GET + HOST + b"\r\n",
    "Host listed": b"GET /m/film HTTP/1.1\r\nHost: localhost, evil.test\r\n\r\n",
    "Host folded": b"GET /m/film HTTP/1.1\r\nHost:\r\n localhost\r\n\r\n",
    "Host with path": b"GET /m/film HTTP/1.1\r\nHost: localhost/@evil.test\r\n\r\n",
    "Host with userinfo": b"GET /m/film HTTP/1.1\r\nHost: localhost@evil.test\r\n\r\n",
    "no Host": b"GET /m/film HTTP/1.1\r\n\r\n",
    "version 0.9": b"GET /m/film\r\n",
    "version 1.2": GET.replace(b"1.1", b"1.2") + b"\r\n",
    "version 01.1": GET.replace(b"1.1", b"01.1") + b"\r\n",
    "version in small": GET.replace(b"HTTP", b"http") + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "two spaces": GET.replace(b"GET ", b"GET  ") + b"\r\n",
    "tab for space": GET.replace(b"GET ", b"GET\t") + b"\r\n",
    "space in target": GET.replace(b"film", b"fi lm") + b"\r\n",
    "NUL in target": GET.replace(b"film", b"film\0") + b"\r\n",
    "raw UTF-8 in target": GET.replace(b"film", b"f\xc3\xbclm") + b"\r\n",
    "control in target": GET.replace(b"film", b"film\x7f") + b"\r\n",
    "fragment": GET.replace(b"film", b"film#x") + b"\r\n",
    "method with NUL": GET.replace(b"GET", b"G\0T") + b"\r\n",
    "absolute-form": GET.replace(b"/m/film", b"http://localhost/m/film") + b"\r\n",
    "absolute-form elsewhere": GET.replace(b"/m/film", b"http://evil.test/") + b"\r\n",
    "authority-form": b"CONNECT evil.test:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "no slash": GET.replace(b"/m/film", b"m/film") + b"\r\n",
}


@pytest.mark.parametrize("attack", TWO_READINGS.values(), ids=TWO_READINGS.keys())
def test_what_can_be_read_in_two_ways_is_refused_once(origin, proxy, attack: bytes) -> None:
    received = exchange(proxy.url, attack + SMUGGLED)
    (code,) = answers(received)
    assert code in (400, 421, 501, 505)
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert body.count(b"\n") == 1
    assert origin.requests == []
    assert_served(proxy)


CHUNK_TRICKS = {
    "bare LF after size": b"0\n\r\n",
    "bare LF after size, then a proper end": b"2\nxx\r\n0\r\n\r\n",
    "sign, then a proper end": b"+2\r\n0\r\n\r\n",
    "bare LF in extension": b"2;\nxx\r\n4f\r\n0\r\n\r\n",
    "bare CR in extension": b"2;a\rb\r\nxx\r\n0\r\n\r\n",
    "NUL in extension": b"2;a\0b\r\nxx\r\n0\r\n\r\n",
    "space before size": b" 0\r\n\r\n",
    "tab after size": b"0\t\r\n\r\n",
    "hexadecimal prefix": b"0x0\r\n\r\n",
    "sign": b"+0\r\n\r\n",
    "underscore": b"0_0\r\n\r\n",
    "comma": b"0,0\r\n\r\n",
    "empty size": b"\r\n\r\n",
    "size beyond 64 bits": b"1" + b"0" * 16 + b"\r\n\r\n",
    "longer than it says": b"2\r\nxxGET /m/smuggled HTTP/1.1\r\n\r\n0\r\n\r\n",
    "no CRLF after data": b"2\r\nxx0\r\n\r\n",
    "LF after data": b"2\r\nxx\n0\r\n\r\n",
    "extension without end": b"2;" + b"a" * 5000 + b"\r\nxx\r\n0\r\n\r\n",
    "trailers without end": b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "LF in trailer": b"0\r\nX: y\nZ: z\r\n\r\n",
}


@pytest.mark.parametrize("trick", CHUNK_TRICKS.values(), ids=CHUNK_TRICKS.keys())
@pytest.mark.parametrize("target", ["/m/film", "/passing/film", "/-/entries"])
def test_behind_a_body_in_doubtful_chunks_nothing_is_served(
    origin, proxy, trick: bytes, target: str
) -> None:
    """On a mount nobody reads the body; where methods are passed the origin does, and control."""
    request = POST.replace(b"/m/film", target.encode()) + CHUNKED + b"\r\n"
    received = exchange(proxy.url, request + trick + SMUGGLED)
    assert len(answers(received)) == 1
    assert answers(received)[0] in (400, 405)
    assert not [request for request in origin.requests if request.path == "/smuggled"]
    assert_served(proxy)


def test_the_same_chunks_without_a_trick_let_the_next_request_pass(origin, proxy) -> None:
    """So that the tests above are refused for their tricks."""
    last = SMUGGLED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = exchange(proxy.url, POST + CHUNKED + b"\r\n2;a=b\r\nxx\r\n0\r\nX: y\r\n\r\n" + last)
    assert answers(received) == [405, 200]
    assert [request.path for request in origin.requests] == ["/smuggled"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "TRACE", "BREW"])
def test_a_body_that_is_a_request_is_a_body(origin, proxy, method: str) -> None:
    request = POST.replace(b"POST", method.encode())
    request += b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
    received = exchange(
        proxy.url, request + SMUGGLED + GET + b"Connection: close\r\nRange: bytes=0-0\r\n\r\n"
    )
    assert len(answers(received)) == 2
    assert answers(received)[1] == 206
    assert {request.path for request in origin.requests} <= {"/film"}


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\n", CHUNKED + b"\r\n5\r\n"])
def test_a_body_that_ends_early_is_the_clients_fault(proxy, framing: bytes, caplog) -> None:
    with closing(connect(proxy.url)) as sock:
        sock.sendall(POST.replace(b"/m/film", b"/-/entries") + framing + b"{")
        sock.shutdown(socket.SHUT_WR)
        assert answers(read_all(sock)) == [400]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("value", [b"\xa0x", b"\x85", b"\xff\xfe"])
def test_a_value_that_no_request_can_begin_with_spoils_no_download(
    origin, proxy, value: bytes
) -> None:
    """What is passed on to the origin comes from one client, and its answer goes to all."""
    request = GET + b"Accept-Language: " + value + b"\r\nConnection: close\r\n\r\n"
    received = exchange(proxy.url, request)
    assert answers(received) == [200]
    assert received.endswith(content(0, SIZE))


# -- what is too much ---------------------------------------------------------------

TOO_MUCH = {
    "a long target": (414, GET.replace(b"film", b"x" * 20_000) + b"\r\n"),
    "a target without end": (414, b"GET /" + b"x" * 100_000),
    "a long query": (414, GET.replace(b"film", b"film?" + b"x" * 20_000) + b"\r\n"),
    "a long header": (431, GET + b"X: " + b"y" * 40_000 + b"\r\n\r\n"),
    "a header without end": (431, GET + b"X: " + b"y" * 100_000),
    "many headers": (431, GET + b"X: y\r\n" * 101 + b"\r\n"),
    "headers without end": (431, GET + b"X: y\r\n" * 20_000),
    "a long name": (431, GET + b"X" * 300 + b": y\r\n\r\n"),
    "a long method": (501, b"G" * 100 + GET[3:] + b"\r\n"),
    "a method without end": (414, b"G" * 100_000),
}


@pytest.mark.parametrize(("code", "request_"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_past_a_limit_there_is_a_plain_answer(origin, proxy, code: int, request_: bytes) -> None:
    received = exchange(proxy.url, request_ + SMUGGLED)
    assert answers(received) == [code]
    assert received.partition(b"\r\n\r\n")[2].count(b"\n") == 1
    assert origin.requests == []
    assert_served(proxy)


@pytest.mark.parametrize("code", [b"%0d%0a", b"%0D%0AX-Evil:%201", b"%0a", b"%00", b"%1b[31m"])
@pytest.mark.parametrize(
    "target", [b"/m/film?%s", b"/m/%s", b"/%s/film", b"/http/%s/", b"/-/entries/%s", b"/-/%s"]
)
def test_an_encoded_control_character_stays_encoded(origin, proxy, target, code, caplog) -> None:
    request = GET.replace(b"/m/film", target % code) + b"Connection: close\r\n\r\n"
    received = exchange(proxy.url, request)
    assert len(answers(received)) == 1
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"X-Evil:" not in head
    assert not re.search(rb"[\0-\x08\x0b\x0c\x0e-\x1f]", head)
    assert b"\x1b" not in body or answers(received) == [200]
    assert not any(re.search(r"[\0-\x1f\x7f-\x9f]", text) for text in caplog.messages)


# -- who takes their time ------------------------------------------------------------


def half_open(proxy: Server, stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(closing(connect(proxy.url)))
    sock.sendall(GET)
    return sock


def test_requests_that_never_end_hold_up_nobody_and_are_answered_408(cache, origin) -> None:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin, header_timeout_s=2.0) as proxy, ExitStack() as stack:
        slow = [half_open(proxy, stack) for _ in range(40)]
        for at, sock in enumerate(slow):
            sock.sendall(b"X-%d: still here\r\n" % at)
        assert_served(proxy)
        for sock in slow:
            assert answers(read_all(sock)) == [408]
            sock.close()
    assert len(origin.requests) == 1


def test_requests_that_never_end_fill_the_house_for_no_longer_than_their_time(
    cache, origin
) -> None:
    origin.put("/film", Resource(SIZE))
    limits = {"header_timeout_s": 2.0, "max_connections": 8}
    with serve_mounted(cache, origin, **limits) as proxy, ExitStack() as stack:
        slow = [half_open(proxy, stack) for _ in range(8)]
        reply = ask(f"{proxy.url}m/film")
        assert (reply.status, reply["Retry-After"]) == (503, "2")
        assert reply.text.count("\n") == 1
        for sock in slow:
            assert answers(read_all(sock)) == [408]
            sock.close()
        eventually(lambda: ask(f"{proxy.url}m/film").status == 200)


def test_who_waits_for_an_origin_holds_up_nobody_else(cache, origin) -> None:
    origin.put("/film", Resource(SIZE))
    origin.put("/held", Resource(SIZE))
    hold = origin.script(hold_before_headers(), path="/held")
    with serve_mounted(cache, origin, max_connections=40) as proxy:
        waiting = [in_thread(ask, f"{proxy.url}m/held") for _ in range(38)]
        assert hold.reached.wait(WAIT_S)
        eventually(lambda: ask(f"{proxy.url}-/entries/1").json()["readers"] == 38)
        assert_served(proxy)
        hold.release()
        for one in waiting:
            assert one.result(WAIT_S).body == content(0, SIZE)
    assert len(origin.requests) == 2


@pytest.mark.parametrize("target", ["/m/film", "/-/entries/1/content"])
def test_who_ends_their_side_while_they_wait_has_given_up(cache, origin, proxy, target) -> None:
    """It may be a client that has left; one that reads on is told something it knows."""
    cache.entry(origin.url("/film"))
    hold = origin.script(hold_before_headers())
    with closing(connect(proxy.url)) as sock:
        sock.sendall(GET.replace(b"/m/film", target.encode()) + b"\r\n")
        assert hold.reached.wait(WAIT_S)
        sock.shutdown(socket.SHUT_WR)
        assert answers(read_all(sock)) == [503]


@pytest.mark.parametrize(
    "value",
    [
        "bytes=" + ",".join(["0-"] * 200),
        "bytes=" + ",".join(f"{at}-{at}" for at in range(0, 400, 2)),
        "bytes=" + ",".join(["-1000"] * 65),
        "bytes=0-" + "9" * 5000,
        "bytes=" + "," * 5000,
    ],
    ids=["overlapping", "many", "suffixes", "digits", "commas"],
)
def test_absurd_ranges_are_answered_with_no_more_than_the_file(proxy, value: str) -> None:
    reply = ask(f"{proxy.url}m/film", {"Range": value})
    assert reply.status in (200, 206)
    assert reply.body == content(0, SIZE)
