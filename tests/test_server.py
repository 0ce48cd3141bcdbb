"""The server on the wire: raw sockets and tiny applications."""

from __future__ import annotations

import errno
import http.client
import io
import logging
import os
import re
import select
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefsm.errors import UsageError, WaitCancelled
from cachefsm.server import FileSlice, ProxyServer
from tests.test_wire import FRAGMENTS

WAIT_S = 10.0  # only bounds a failure
# More than the socket buffers of both sides hold together.
FLOOD = bytes(1 << 20)
RESET = struct.pack("ii", 1, 0)

Environ = dict[str, Any]
Start = Callable[..., Any]


def pattern(start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file whose byte n is n % 251."""
    return bytes(offset % 251 for offset in range(start, stop))


def hello(environ: Environ, start: Start) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def echo_target(environ: Environ, start: Start) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [environ["REQUEST_URI"].encode()]


class Held:
    """An iterable that yields *pieces* and then waits; says how it ended."""

    def __init__(self, *pieces: Any, forever: Any = None, error: Exception | None = None) -> None:
        self.pieces = pieces
        self.forever = forever
        self.error = error
        self.iterated = False
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        self.iterated = True
        yield from self.pieces
        while self.forever is not None:
            yield self.forever
        if self.error:
            raise self.error

    def close(self) -> None:
        self.closed.set()

    def app(self, environ: Environ, start: Start) -> Held:
        start("200 OK", environ.get("test.headers", []))
        return self


@pytest.fixture
def serve() -> Iterator[Callable[..., ProxyServer]]:
    """Start servers; at the end close them and see that no thread is left."""
    servers: list[ProxyServer] = []

    def start(app: Any, **options: Any) -> ProxyServer:
        server = ProxyServer(app, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close(WAIT_S)
    assert threads_of_ours() == []


def threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("cachefsm")]


def connect(server: ProxyServer, *, receive_buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(WAIT_S)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        sock.connect((server.host, server.port))
    except OSError:
        sock.close()
        raise
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server ends the connection; a reset raises."""
    received = bytearray()
    while data := sock.recv(65536):
        received += data
    return bytes(received)


def talk(server: ProxyServer, request: bytes) -> bytes:
    """Send *request* and return all that comes until the server closes."""
    with connect(server) as sock:
        sock.sendall(request)
        return read_all(sock)


def get(target: bytes = b"/", *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"GET " + target + b" HTTP/" + version, b"Host: x", *fields]
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


CLOSE = b"Connection: close"


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


# -- connections --------------------------------------------------------------


def test_a_connection_is_used_again(serve) -> None:
    ports = []

    def app(environ: Environ, start: Start) -> list[bytes]:
        ports.append(environ["REMOTE_PORT"])
        return hello(environ, start)

    server = serve(app)
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=WAIT_S)) as client:
        for _ in range(3):
            client.request("GET", "/")
            assert client.getresponse().read() == b"hello"
    assert len(set(ports)) == 1


def test_pipelined_requests_are_answered_in_order(serve) -> None:
    answer = talk(serve(echo_target), get(b"/first") + get(b"/second") + get(b"/third", CLOSE))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(b"/first") < answer.index(b"/second") < answer.index(b"/third")
    assert answer.count(b"Connection: close") == 1


def test_it_is_a_wsgi_server(serve) -> None:
    answer = talk(serve(validator(hello)), get(b"/a?b=c", CLOSE))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nServer: cachefsm\r\n" in answer
    assert b"\r\nDate: " in answer
    assert b"Werkzeug" not in answer


@pytest.mark.parametrize(
    ("fields", "kept"), [([], False), ([b"Connection: keep-alive"], True), ([CLOSE], False)]
)
def test_http_1_0_keeps_a_connection_only_when_asked(serve, fields, kept: bool) -> None:
    request = get(b"/", *fields, version=b"1.0")
    answer = talk(serve(hello), request + get(b"/", CLOSE, version=b"1.0"))
    assert answer.count(b"hello") == 1 + kept
    assert (b"Connection: keep-alive" in answer) is kept


def test_a_client_that_asks_nothing_is_let_go(serve) -> None:
    assert talk(serve(hello, header_timeout_s=0.02), b"") == b""


def test_an_idle_connection_is_let_go(serve) -> None:
    assert body_of(talk(serve(hello, idle_timeout_s=0.02), get())) == b"hello"


def test_a_head_that_does_not_end_is_answered_408(serve) -> None:
    server = ProxyServer(hello, header_timeout_s=0.02)
    with connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with server:  # starts it, so that all has been sent by then
            assert read_all(sock).startswith(b"HTTP/1.1 408 ")


def test_each_byte_does_not_renew_the_time_for_a_head(serve) -> None:
    server = ProxyServer(hello, header_timeout_s=0.2)
    with connect(server) as sock, server:
        sock.sendall(b"GET /")
        answer = b""
        sock.settimeout(0.02)
        # More bytes than the time allows at this pace, so only a total ends it.
        for _ in range(1000):
            try:
                answer = sock.recv(4096)
                break
            except TimeoutError:
                sock.sendall(b"x")
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_reads_nothing_is_let_go(serve) -> None:
    held = Held(forever=FLOOD)
    server = serve(held.app, send_timeout_s=0.02)
    with connect(server, receive_buffer=4096) as sock:
        sock.sendall(get())
        assert held.closed.wait(WAIT_S)
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_past_the_limit_of_connections_clients_are_told_to_wait(serve) -> None:
    server = serve(hello, max_connections=1)
    with connect(server) as first:
        first.sendall(get())
        assert body_of(first.recv(65536)) == b"hello"
        refused = talk(server, get())
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in refused
        first.sendall(get(b"/", CLOSE))
        assert body_of(read_all(first)) == b"hello"


def test_a_connection_that_ended_makes_room(serve) -> None:
    server = serve(hello, max_connections=1)
    with connect(server) as first:
        first.sendall(get(b"/", CLOSE))
        read_all(first)
    while (answer := talk(server, get(b"/", CLOSE))).startswith(b"HTTP/1.1 503 "):
        pass  # the first one's thread is still on its way out
    assert body_of(answer) == b"hello"


# -- answers ------------------------------------------------------------------


def app_giving(body: Iterable[Any], *headers: tuple[str, str], status: str = "200 OK") -> Any:
    def app(environ: Environ, start: Start) -> Iterable[Any]:
        start(status, list(headers))
        return body

    return app


def test_without_a_length_the_body_is_chunked(serve) -> None:
    server = serve(app_giving(iter([b"hello", b"", b" world"])))
    assert body_of(talk(server, get(b"/", CLOSE))) == b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


def test_http_1_0_gets_no_chunks_but_a_closed_connection(serve) -> None:
    server = serve(app_giving(iter([b"hello", b" world"])))
    answer = talk(server, get(b"/", b"Connection: keep-alive", version=b"1.0"))
    assert b"Transfer-Encoding" not in answer
    assert b"\r\nConnection: close\r\n" in answer
    assert body_of(answer) == b"hello world"


def test_a_body_of_one_piece_has_a_length(serve) -> None:
    answer = talk(serve(app_giving([b"hello"])), get(b"/", CLOSE))
    assert b"\r\nContent-Length: 5\r\n" in answer


def test_an_empty_body_has_a_length(serve) -> None:
    answer = talk(serve(app_giving(iter([]))), get(b"/", CLOSE))
    assert b"\r\nContent-Length: 0\r\n" in answer


def test_any_buffer_may_be_yielded(serve) -> None:
    view = memoryview(b"hello")
    server = serve(app_giving([bytearray(b"oh "), view[:2], view[2:]], ("Content-Length", "8")))
    assert body_of(talk(server, get(b"/", CLOSE))) == b"oh hello"


def test_the_write_callable_works(serve) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        write = start("200 OK", [("Content-Length", "10")])
        write(b"hello")
        return [b"world"]

    assert body_of(talk(serve(app), get(b"/", CLOSE))) == b"helloworld"


@pytest.mark.parametrize(
    ("method", "status", "headers", "length"),
    [
        (b"HEAD", "200 OK", [("Content-Length", "5")], b"5"),
        (b"HEAD", "200 OK", [], None),
        (b"GET", "304 Not Modified", [("Content-Length", "5")], b"5"),
        (b"GET", "304 Not Modified", [], None),
        (b"GET", "204 No Content", [("Content-Length", "0")], None),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_answers_without_a_body(serve, method, status, headers, length, late: bool) -> None:
    held = Held(b"hello")

    def generator(environ: Environ, start: Start) -> Iterator[bytes]:
        start(status, headers)
        held.close()
        yield b"hello"

    def eager(environ: Environ, start: Start) -> Held:
        start(status, headers)
        return held

    server = serve(generator if late else eager)
    request = get().replace(b"GET", method, 1)
    answer = talk(server, request + get(b"/", CLOSE).replace(b"GET", method, 1))
    heads = answer.split(b"\r\n\r\n")
    assert len(heads) == 3
    assert heads[2] == b""
    assert b"Transfer-Encoding" not in answer
    if length is None:
        assert b"Content-Length" not in answer
    else:
        assert heads[0].count(b"Content-Length: " + length) == 1
    assert not held.iterated
    assert held.closed.wait(WAIT_S)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"hell"], id="too few"),
        pytest.param([b"hel", b"lo!"], id="too many"),
        pytest.param([b"hello!"], id="too many at once"),
        pytest.param([b"hel", OSError("disk")], id="raises"),
        pytest.param([b"hel", "lo"], id="text"),
    ],
)
def test_a_body_that_is_not_as_promised_is_visibly_cut(serve, pieces) -> None:
    def body() -> Iterator[Any]:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    server = serve(app_giving(body(), ("Content-Length", "5")))
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=WAIT_S)) as client:
        client.request("GET", "/")
        response = client.getresponse()
        if response.status == 500:
            assert pieces == [b"hello!"]  # found out before anything was sent
            return
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def test_a_body_longer_than_promised_ends_the_connection(serve) -> None:
    """Too late to cut, for the client has all; but nothing may follow it."""
    server = serve(app_giving(iter([b"hello", b"HTTP/1.1 200 OK"]), ("Content-Length", "5")))
    assert body_of(talk(server, get() + get())) == b"hello"


def test_a_chunked_body_that_raises_has_no_last_chunk(serve) -> None:
    held = Held(b"hello", error=OSError("origin"))
    answer = talk(serve(held.app), get())
    assert body_of(answer) == b"5\r\nhello\r\n"
    assert held.closed.wait(WAIT_S)


def test_a_body_delimited_by_close_is_reset_when_it_raises(serve) -> None:
    """A plain close would look like its end."""
    held = Held(b"hello", error=OSError("origin"))
    with connect(serve(held.app)) as sock:
        sock.sendall(get(version=b"1.0"))
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_an_application_that_raises_is_answered_500_without_its_traceback(serve, caplog) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        raise KeyError("secret detail")

    answer = talk(serve(app), get(b"/?token=hidden"))
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert body_of(answer) == b"500 Internal Server Error\n"
    [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.name == "cachefsm.server"
    assert record.exc_info is not None
    assert "secret detail" in record.getMessage()
    assert "hidden" not in record.getMessage()


def test_a_connection_error_of_the_application_is_its_error(serve, caplog) -> None:
    """It is an origin's; only the client's own socket can say that the client left."""
    held = Held(error=ConnectionResetError("origin"))
    assert talk(serve(held.app), get()).startswith(b"HTTP/1.1 500 ")
    assert [r.levelname for r in caplog.records if r.levelno > logging.INFO] == ["ERROR"]


def test_a_head_to_a_failing_application_is_answered_without_a_body(serve) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        raise OSError

    answer = talk(serve(app), get().replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert body_of(answer) == b""


@pytest.mark.parametrize(
    "headers",
    [[("A", "b\r\nSet-Cookie: c")], [("A\n", "b")], [("Transfer-Encoding", "chunked")]],
)
def test_a_header_that_would_be_two_is_a_500(serve, headers) -> None:
    answer = talk(serve(app_giving([b"x"], *headers)), get())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"Set-Cookie" not in answer


def test_an_application_may_ask_for_a_closed_connection(serve) -> None:
    answer = talk(serve(app_giving([b"x"], ("Connection", "close"))), get() + get())
    assert answer.count(b"Connection: close") == answer.count(b"HTTP/1.1 200") == 1


def test_an_application_that_never_starts_is_a_500(serve) -> None:
    assert talk(serve(lambda environ, start: []), get()).startswith(b"HTTP/1.1 500 ")
    assert talk(serve(lambda environ, start: [b"x"]), get()).startswith(b"HTTP/1.1 500 ")


def test_exc_info_replaces_a_head_that_was_not_sent(serve) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        start("200 OK", [("Content-Length", "99")])
        try:
            raise OSError("late")
        except OSError as error:
            start("502 Bad Gateway", [], (OSError, error, error.__traceback__))
        return [b"sorry"]

    answer = talk(serve(app), get(b"/", CLOSE))
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert body_of(answer) == b"sorry"


def test_exc_info_after_the_head_was_sent_cuts_the_answer(serve) -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", [("Content-Length", "10")])
        yield b"hello"
        error = OSError("late")
        start("502 Bad Gateway", [("Content-Length", "10")], (OSError, error, None))
        yield b"sorry"

    assert body_of(talk(serve(app), get())) == b"hello"


def test_starting_twice_is_a_500(serve) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        start("200 OK", [])
        return hello(environ, start)

    assert talk(serve(app), get()).startswith(b"HTTP/1.1 500 ")


def test_a_whole_body_delimited_by_close_outlives_its_connection(serve) -> None:
    """The reset is only for one that is not whole."""
    held = Held(FLOOD[:50_000])
    server = serve(held.app)
    with connect(server, receive_buffer=4096) as sock:
        sock.sendall(get(version=b"1.0"))
        sock.shutdown(socket.SHUT_WR)
        assert held.closed.wait(WAIT_S)
        for thread in server._server.threads():
            thread.join(WAIT_S)
        assert body_of(read_all(sock)) == FLOOD[:50_000]


def test_the_iterator_is_closed_when_the_client_resets(serve, caplog) -> None:
    held = Held(forever=FLOOD)
    with caplog.at_level(logging.DEBUG), connect(serve(held.app)) as sock:
        sock.sendall(get())
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        assert held.closed.wait(WAIT_S)
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_a_wait_cancelled_for_its_client_is_no_error(serve, caplog) -> None:
    held = Held(b"some", error=WaitCancelled("gone"))
    assert body_of(talk(serve(held.app), get())) == b"4\r\nsome\r\n"
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_an_application_learns_through_the_watch_that_its_client_left(serve) -> None:
    left = threading.Event()
    waiting = threading.Event()

    def app(environ: Environ, start: Start) -> list[bytes]:
        watch = environ["cachefsm.clientwatch"]
        gone = threading.Event()
        with watch.register(environ["werkzeug.socket"], gone.set):
            waiting.set()
            if gone.wait(WAIT_S):
                left.set()
        raise WaitCancelled("gone")

    with connect(serve(app)) as sock:
        sock.sendall(get())
        assert waiting.wait(WAIT_S)
    assert left.wait(WAIT_S)


# -- files --------------------------------------------------------------------


@pytest.fixture
def stored() -> Iterator[io.BufferedRandom]:
    with tempfile.TemporaryFile() as file:
        file.write(pattern(0, 1 << 20))
        file.flush()
        yield file  # type: ignore[misc]


def mixed(file: Any) -> list[Any]:
    return [
        b"start",
        FileSlice(file.fileno(), 1000, 700_000),
        b"middle",
        FileSlice(file.fileno(), 5, 0),
        FileSlice(file.fileno(), 3, 4),
    ]


MIXED = b"start" + pattern(1000, 701_000) + b"middle" + pattern(3, 7)


@pytest.mark.parametrize("headers", [[("Content-Length", str(len(MIXED)))], []])
def test_slices_of_files_and_bytes_may_be_mixed(serve, stored, headers) -> None:
    server = serve(app_giving(mixed(stored), *headers))
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=WAIT_S)) as client:
        for _ in range(2):
            client.request("GET", "/")
            assert client.getresponse().read() == MIXED


@pytest.mark.parametrize("kind", ["slice", "bytes"])
@pytest.mark.parametrize("headers", [[("Content-Length", str(8 << 20))], []])
def test_sends_that_do_not_fit_at_once_arrive_whole(serve, stored, kind, headers) -> None:
    piece = pattern(0, 1 << 20)
    body = [piece if kind == "bytes" else FileSlice(stored.fileno(), 0, 1 << 20)] * 8
    server = serve(app_giving(body, *headers))
    with connect(server, receive_buffer=4096) as sock:
        sock.sendall(get(b"/", CLOSE))
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.read() == piece * 8
        response.close()


def test_a_filesystem_without_sendfile_is_read_instead(serve, stored, monkeypatch) -> None:
    def refuse(*args: int) -> int:
        raise OSError(errno.EINVAL, "no sendfile here")

    monkeypatch.setattr(os, "sendfile", refuse)
    server = serve(app_giving(mixed(stored), ("Content-Length", str(len(MIXED)))))
    assert body_of(talk(server, get(b"/", CLOSE))) == MIXED


def test_a_file_shorter_than_its_slice_cuts_the_answer(serve, stored, caplog) -> None:
    slice_ = FileSlice(stored.fileno(), (1 << 20) - 10, 20)
    server = serve(app_giving([slice_], ("Content-Length", "20")))
    answer = talk(server, get())
    assert body_of(answer) == pattern((1 << 20) - 10, 1 << 20)
    [record] = [r for r in caplog.records if r.levelno > logging.INFO]
    assert "10 bytes too early" in record.getMessage()
    assert record.exc_info is None


def test_other_servers_iterate_a_slice(stored) -> None:
    slice_ = FileSlice(stored.fileno(), 7, 300_000)
    pieces = list(slice_)
    assert [len(piece) for piece in pieces] == [262_144, 300_000 - 262_144]
    assert b"".join(pieces) == pattern(7, 300_007)


# -- request bodies -----------------------------------------------------------


def reading(environ: Environ, start: Start) -> list[bytes]:
    data = environ["wsgi.input"].read()
    start("200 OK", [("Content-Length", str(len(data)))])
    return [data]


POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: Chunked\r\n\r\n2\r\nhe\r\n03;x=y\r\nllo\r\n0\r\nTrailer: z\r\n\r\n",
    ],
)
@pytest.mark.parametrize("app", [reading, hello], ids=["read", "unread"])
def test_after_a_body_comes_the_next_request(serve, app, body: bytes) -> None:
    answer = talk(serve(app), POST + body + get(b"/", CLOSE))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b"hello") == (1 if app is reading else 2)


def test_a_body_arriving_in_single_bytes_is_read(serve) -> None:
    data = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    with connect(serve(reading)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(data)):
            sock.sendall(data[position : position + 1])
        assert body_of(read_all(sock)) == b"hello"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 100000\r\n\r\n" + bytes(100_000),
        b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"8000\r\n" + bytes(0x8000) + b"\r\n") * 4
        + b"0\r\n\r\n",
        b"Content-Length: 100000\r\n\r\n",  # and not even waited for
    ],
)
def test_too_much_unread_body_ends_the_connection_after_the_answer(serve, body: bytes) -> None:
    answer = talk(serve(hello), POST + body + get())
    assert answer.count(b"HTTP/1.1") == 1
    assert body_of(answer) == b"hello"


def test_100_continue_is_sent_when_the_application_reads(serve) -> None:
    with connect(serve(reading)) as sock:
        sock.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello" + get(b"/", CLOSE))
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n\r\nhello" in answer


def test_100_continue_is_not_sent_when_nobody_reads(serve) -> None:
    answer = talk(serve(hello), POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n" + get())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nConnection: close\r\n" in answer


def test_100_continue_never_comes_after_the_answer_began(serve) -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"early"
        yield environ["wsgi.input"].read()

    answer = talk(serve(app), POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
    assert b"100 Continue" not in answer
    assert body_of(answer) == b"5\r\nearly\r\n5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\n",
        b"5\r\nhello!!\r\n",
        b"\r\n",
        b"10000000000000000\r\n",
        b"5;" + b"x" * 2000 + b"\r\nhello\r\n",
        b"0\r\n" + b"T: x\r\n" * 10_000 + b"\r\n",
    ],
)
def test_broken_chunks_are_refused(serve, chunks: bytes) -> None:
    answer = talk(serve(reading), POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_stops_coming_is_answered_408(serve) -> None:
    server = serve(reading, idle_timeout_s=0.02)
    assert talk(server, POST + b"Content-Length: 5\r\n\r\nhel").startswith(b"HTTP/1.1 408 ")


# -- requests that are refused ------------------------------------------------

HOST = b"Host: x\r\n"
REFUSED = [
    (400, b"GET / HTTP/1.1\nHost: x\n\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n"),
    (400, b"GET /\rx HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /\xc3\xbc HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /\t HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x08c\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nA\t: b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded: c\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: x, y\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: u@x\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    (400, b"GET / HTTP/1.0\r\nHost: x/y\r\n\r\n"),
    (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    (400, POST + b"Content-Length: 5, 5\r\n\r\nhello"),
    (400, POST + b"Content-Length: -5\r\n\r\nhello"),
    (400, POST + b"Content-Length: +5\r\n\r\nhello"),
    (400, POST + b"Content-Length: 5x\r\n\r\nhello"),
    (400, POST + b"Content-Length: 0x5\r\n\r\nhello"),
    (400, POST + b"Content-Length: 5_0\r\n\r\nhello"),
    (400, POST + b"Content-Length:\r\n\r\nhello"),
    (400, POST + b"Content-Length: \xb2\r\n\r\nhello"),
    (400, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    (400, b"GET /\r\n"),
    (400, b"GET\r\n"),
    (400, b"\r\n\r\n"),
    (400, b" GET / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n"),
    (400, b"GET / x HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET / http/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET / HTTP/1.10\r\n" + HOST + b"\r\n"),
    (400, b"G(T / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (505, b"GET / HTTP/1.2\r\n" + HOST + b"\r\n"),
    (505, b"GET / HTTP/0.9\r\n\r\n"),
    (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    (501, b"CONNECT a.test:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
    (501, b"A" * 33 + b" / HTTP/1.1\r\n" + HOST + b"\r\n"),
    (421, b"GET http://x/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    (421, b"GET https://evil.test/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET evil.test/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET ?x HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n"),
    (400, b"GET * HTTP/1.1\r\n" + HOST + b"\r\n"),
    (414, b"GET /" + b"x" * 1000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    (431, b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 5000 + b"\r\n\r\n"),
    (431, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A:b\r\n" * 100 + b"\r\n"),
    (431, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A" * 300 + b": b\r\n\r\n"),
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),  # a TLS client
]


WHOLE = [(status, [text]) for status, text in REFUSED]
# One byte at a time, so that each check is also made before the head is whole.
DRIBBLED = [
    (status, [text[at : at + 1] for at in range(len(text))])
    for status, text in REFUSED
    if len(text) < 400
]


@pytest.mark.parametrize(
    ("status", "pieces"),
    WHOLE + DRIBBLED,
    ids=lambda value: b" ".join(value)[:80].decode("latin-1") if isinstance(value, list) else None,
)
def test_a_doubtful_request_is_refused_once(serve, status: int, pieces: list[bytes]) -> None:
    """And what comes behind it on the connection is never served."""
    asked = []

    def app(environ: Environ, start: Start) -> list[bytes]:
        asked.append(environ["REQUEST_URI"])
        return hello(environ, start)

    server = serve(app, max_target_bytes=500, max_header_bytes=4000)
    with connect(server) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            sock.sendall(piece)
        if len(pieces) == 1:
            sock.sendall(get(b"/smuggled", CLOSE))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert len(re.findall(rb"HTTP/1\.1 \d", answer)) == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert body_of(answer).count(b"\n") == 1
    assert asked == []


@pytest.mark.parametrize(
    ("status", "start"),
    [(414, b"GET /"), (431, b"GET / HTTP/1.1\r\nA: "), (431, b"GET / HTTP/1.1\r\n")],
)
def test_a_head_without_end_is_refused_once_it_is_too_long(serve, status: int, start) -> None:
    server = serve(hello, max_target_bytes=500, max_header_bytes=4000)
    filler = b"A: b\r\n" if start.endswith(b"\r\n") else b"xxxxxx"
    assert talk(server, start + filler * 1000).startswith(b"HTTP/1.1 %d " % status)


def test_a_line_end_before_a_request_is_skipped(serve) -> None:
    answer = talk(serve(hello), get() + b"\r\n" + get(b"/", CLOSE))
    assert answer.count(b"HTTP/1.1 200") == 2


def test_options_asterisk_is_passed_on(serve) -> None:
    answer = talk(serve(echo_target), get(b"*", CLOSE).replace(b"GET", b"OPTIONS"))
    assert body_of(answer) == b"*"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.lists(FRAGMENTS | st.binary(max_size=9), max_size=30).map(b"".join))
def test_random_bytes_get_answers_or_a_close(random_server, data: bytes) -> None:
    with connect(random_server) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert b"Traceback" not in answer
    refusals = sum(answer.count(b"HTTP/1.1 %d " % status) for status in range(400, 506))
    assert refusals <= 1


@pytest.fixture
def random_server(serve, caplog) -> Iterator[ProxyServer]:
    yield serve(reading)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


# -- the environ --------------------------------------------------------------


def test_the_environ_holds_the_request_as_it_came(serve) -> None:
    seen: Environ = {}

    def app(environ: Environ, start: Start) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start)

    target = b"//x/%2e%2e/%0d%0aA:%20b/%ff\\?q=%41&r=/?s"
    server = serve(app)
    talk(server, get(target, b"X-A: 1", b"X_A: 2", b"Content-Type: a/b", b"X-A: 3", CLOSE))
    assert seen["REQUEST_URI"] == seen["RAW_URI"] == target.decode()
    assert seen["PATH_INFO"] == "//x/../\r\nA: b/\xff\\"
    assert seen["QUERY_STRING"] == "q=%41&r=/?s"
    assert seen["HTTP_X_A"] == "1, 3"
    assert seen["CONTENT_TYPE"] == "a/b"
    assert seen["HTTP_HOST"] == "x"
    assert seen["REMOTE_ADDR"] == seen["SERVER_NAME"] == "127.0.0.1"
    assert seen["SERVER_PORT"] == str(server.port)
    assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert isinstance(seen["werkzeug.socket"], socket.socket)
    assert seen["cachefsm.sendfile"] is hasattr(os, "sendfile")


def test_one_request_leaves_nothing_to_the_next(serve) -> None:
    seen = []

    def app(environ: Environ, start: Start) -> list[bytes]:
        seen.append(environ.get("HTTP_COOKIE"))
        environ["HTTP_COOKIE"] = "changed"
        return hello(environ, start)

    talk(serve(app), get(b"/", b"Cookie: a=1") + get(b"/", CLOSE))
    assert seen == ["a=1", None]


# -- the log ------------------------------------------------------------------


def test_the_log_tells_no_query(serve, caplog) -> None:
    caplog.set_level(logging.INFO, "cachefsm.server")
    server = serve(hello)
    talk(server, get(b"/film.mkv?token=secret", CLOSE))
    server.close()
    assert '127.0.0.1 "GET /film.mkv?… HTTP/1.1" 200 5' in caplog.messages
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("target", "logged"),
    [
        (b"/http/user:secret@a.test/film", "/http/a.test/film"),
        (b"/http/a.test?token=x@secret", "/http/a.test?…"),
        (b"/https/user:secret@a.test?at=@secret", "/https/a.test?…"),
        (b"/music/a@b", "/music/a@b"),
    ],
)
def test_the_log_tells_no_credentials(serve, caplog, target: bytes, logged: str) -> None:
    caplog.set_level(logging.INFO, "cachefsm.server")
    server = serve(hello)
    talk(server, get(target, CLOSE))
    server.close()
    assert f'127.0.0.1 "GET {logged} HTTP/1.1" 200 5' in caplog.messages
    assert "secret" not in caplog.text


def test_the_log_holds_no_control_characters(serve, caplog) -> None:
    caplog.set_level(logging.INFO, "cachefsm.server")
    held = Held(b"x", error=ZeroDivisionError("one\ntwo\x1b[31m\x9b"))
    server = serve(held.app)
    talk(server, get(b"/%0a%1b", CLOSE))
    talk(server, b"GET /\x1b[31m HTTP/1.1\r\n\r\n")
    server.close()
    messages = [r.getMessage() for r in caplog.records]
    assert any("one\\x0atwo\\x1b[31m\\x9b" in message for message in messages)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for message in messages for c in message)


def test_the_log_says_which_answers_were_cut(serve, caplog) -> None:
    caplog.set_level(logging.INFO, "cachefsm.server")
    server = serve(Held(b"hello", error=OSError("disk")).app)
    talk(server, get(b"/a?b"))
    server.close()
    assert '127.0.0.1 "GET /a?… HTTP/1.1" 200 5 cut' in caplog.messages
    assert "GET /a?…: cut after 5 bytes: disk" in caplog.messages


# -- starting and ending ------------------------------------------------------


def test_a_port_in_use_is_said_in_one_line(capsys) -> None:
    with closing(ProxyServer(hello)) as first, pytest.raises(UsageError) as caught:
        ProxyServer(hello, port=first.port)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{first.port}: another program uses this port; "
        "port 0 takes a free one"
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("192.0.2.1", 0, "no such address"),
        ("", 0, "empty host"),
        ("no such host", 0, "no such host name"),
        ("a" * 70 + ".test", 0, "no such host name"),
        ("127.0.0.1", 65536, "from 0 to 65535"),
        ("127.0.0.1", -1, "from 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_used_is_said_in_one_line(host, port, reason) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        ProxyServer(hello, host, port)
    assert "\n" not in str(caught.value)


def test_a_refused_permission_is_said_in_one_line(monkeypatch) -> None:
    def refuse(*args: Any, **options: Any) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:80: not permitted"):
        ProxyServer(hello, port=80)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:{}/"),
        ("localhost", "http://127.0.0.1:{}/"),
        ("0.0.0.0", "http://127.0.0.1:{}/"),
        ("::1", "http://[::1]:{}/"),
        ("::", "http://[::1]:{}/"),
    ],
)
def test_the_url_is_one_that_a_client_can_use(serve, host: str, url: str) -> None:
    try:
        server = serve(hello, host=host)
    except UsageError:
        assert ":" in host
        pytest.skip("no IPv6 on this machine")
    assert server.port > 0
    assert server.url == url.format(server.port)
    with socket.create_connection((server.url[7:].rpartition(":")[0].strip("[]"), server.port)):
        pass


def test_a_client_that_came_before_start_is_answered() -> None:
    server = ProxyServer(hello)
    with connect(server) as sock:
        sock.sendall(get(b"/", CLOSE))
        with server:
            assert body_of(read_all(sock)) == b"hello"


def test_serve_forever_returns_when_told_to_stop() -> None:
    with closing(ProxyServer(hello)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert body_of(talk(server, get(b"/", CLOSE))) == b"hello"
        server.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert threads_of_ours() == []


def test_a_server_starts_once() -> None:
    with ProxyServer(hello) as server, pytest.raises(RuntimeError):
        server.start()
    with pytest.raises(RuntimeError):
        server.serve_forever()


def test_close_may_come_first_and_twice() -> None:
    server = ProxyServer(hello)
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_close_ends_idle_connections(serve) -> None:
    server = serve(hello)
    with connect(server) as idle, connect(server) as half:
        idle.sendall(get())
        assert body_of(idle.recv(65536)) == b"hello"
        half.sendall(b"GET / HT")
        server.close(WAIT_S)
        assert read_all(idle) == b""
        swallow(half)  # reset, if its bytes were still unread
    assert threads_of_ours() == []
    with pytest.raises(ConnectionRefusedError):
        connect(server)


@pytest.mark.parametrize("kind", ["bytes", "slice"])
def test_close_ends_an_answer_to_a_client_that_does_not_read(serve, stored, kind) -> None:
    piece = FLOOD if kind == "bytes" else FileSlice(stored.fileno(), 0, 1 << 20)
    held = Held(forever=piece)
    server = serve(held.app)
    with connect(server, receive_buffer=4096) as sock:
        sock.sendall(get())
        sock.recv(1)
        server.close(WAIT_S)
        assert held.closed.is_set()
        assert threads_of_ours() == []


def test_close_ends_an_answer_to_a_client_that_keeps_pace(serve, stored, monkeypatch) -> None:
    """Then no send ever has to wait, and a wait is not what notices."""
    sending = threading.Event()

    def send_one_byte(out: int, fd: int, offset: int, count: int) -> int:
        sending.set()
        return 1

    monkeypatch.setattr(os, "sendfile", send_one_byte)
    held = Held(FileSlice(stored.fileno(), 0, 1 << 60))
    server = serve(held.app)
    with connect(server) as sock:
        sock.sendall(get())
        assert sending.wait(WAIT_S)
        server.close(WAIT_S)
        assert held.closed.is_set()


def swallow(sock: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    try:
        while sock.recv_into(buffer):
            pass
    except ConnectionResetError:
        pass


def test_close_ends_an_application_that_watches_its_client(serve) -> None:
    waiting = threading.Event()

    def app(environ: Environ, start: Start) -> list[bytes]:
        gone = threading.Event()
        with environ["cachefsm.clientwatch"].register(environ["werkzeug.socket"], gone.set):
            waiting.set()
            gone.wait(WAIT_S)
        raise WaitCancelled("gone")

    server = serve(app)
    with connect(server) as sock:
        sock.sendall(get())
        assert waiting.wait(WAIT_S)
        server.close(WAIT_S)
        assert threads_of_ours() == []
        assert read_all(sock) == b""


def test_close_is_seen_by_an_application_that_polls_its_client(serve) -> None:
    waiting = threading.Event()
    events: list[Any] = []

    def app(environ: Environ, start: Start) -> list[bytes]:
        poller = select.poll()
        poller.register(environ["werkzeug.socket"], getattr(select, "POLLRDHUP", select.POLLIN))
        waiting.set()
        events.extend(poller.poll(WAIT_S * 1000))
        return hello(environ, start)

    server = serve(app)
    with connect(server) as sock:
        sock.sendall(get())
        assert waiting.wait(WAIT_S)
        server.close(WAIT_S)
        assert events


def test_stop_alone_ends_connections(serve) -> None:
    server = serve(hello)
    with connect(server) as sock:
        sock.sendall(get())
        assert body_of(sock.recv(65536)) == b"hello"
        server.stop()
        assert read_all(sock) == b""


def test_close_resets_a_body_that_is_delimited_by_close(serve) -> None:
    sent = threading.Event()
    release = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"hello"
        sent.set()
        release.wait(WAIT_S)
        yield b" world"

    server = serve(app_giving(body()))
    with connect(server) as sock:
        sock.sendall(get(version=b"1.0"))
        assert sent.wait(WAIT_S)
        server.stop()
        release.set()
        server.close(WAIT_S)
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_close_does_not_wait_longer_than_it_may_and_says_so(serve, caplog) -> None:
    waiting = threading.Event()
    release = threading.Event()

    def app(environ: Environ, start: Start) -> list[bytes]:
        waiting.set()
        release.wait(WAIT_S)
        return hello(environ, start)

    server = serve(app)
    with connect(server) as sock:
        sock.sendall(get())
        assert waiting.wait(WAIT_S)
        server.close(0)
        assert "still inside the application" in caplog.text
        release.set()


def test_an_application_may_close_its_own_server(serve) -> None:
    closed = threading.Event()

    def app(environ: Environ, start: Start) -> list[bytes]:
        server.close(WAIT_S)
        closed.set()
        return hello(environ, start)

    server = serve(app)
    with connect(server) as sock:
        sock.sendall(get())
        assert closed.wait(WAIT_S)
        assert read_all(sock) == b""


def test_running_out_of_descriptors_is_survived(serve, caplog, monkeypatch) -> None:
    server = serve(hello)
    listener = server._server.socket
    refusals = ["Too many open files"] * 3

    class Exhausted:
        """The listener, whose first accepts fail as with too many open files."""

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

        def accept(self) -> Any:
            if refusals:
                raise OSError(errno.EMFILE, refusals.pop())
            return listener.accept()

    server._server.socket = Exhausted()
    assert body_of(talk(server, get(b"/", CLOSE))) == b"hello"
    assert caplog.text.count("Too many open files") == 1  # of an episode
