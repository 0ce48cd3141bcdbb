"""The scripted origin does what it says; other tests lean on that.

Raw sockets, so that no client library repairs what is under test.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.support import faults
from tests.support.messages import PIECE_BYTES
from tests.support.origin import (
    ClientGone,
    Exchange,
    Gate,
    Origin,
    Resource,
    Shaping,
    content,
    pattern,
)
from tests.support.shaping import CATCH_UP_S, Bucket

SIZE = 1000
TIMEOUT_S = 5.0


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        origin.put("/film", Resource(SIZE))
        yield origin


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # HTTP_PROXY is not meant for loopback
        yield session


@dataclass
class Reply:
    head: str
    body: bytes
    ending: str  # "FIN" or "RST"

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    def field(self, name: str) -> str | None:
        lines = (line.partition(": ") for line in self.head.split("\r\n")[1:])
        return next((value for key, _, value in lines if key.lower() == name.lower()), None)


def connect(origin: Origin) -> socket.socket:
    return socket.create_connection((origin.host, origin.port), TIMEOUT_S)


def request_text(target: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: test", *fields, "", ""]).encode()


def read_to_end(sock: socket.socket) -> Reply:
    received, ending = b"", "FIN"
    try:
        while data := sock.recv(1 << 20):
            received += data
    except ConnectionResetError:
        ending = "RST"
    head, _, body = received.partition(b"\r\n\r\n")
    return Reply(head.decode("latin-1"), body, ending)


def get(origin: Origin, *fields: str, target: str = "/film", method: str = "GET") -> Reply:
    """Ask on a connection of its own; return everything until the origin closes it."""
    with connect(origin) as sock:
        sock.sendall(request_text(target, "Connection: close", *fields, method=method))
        return read_to_end(sock)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"connection ended after {len(data)} of {size} bytes"
        data += piece
    return data


def read_head(sock: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    return head.decode("latin-1")


# Content


@pytest.mark.parametrize("version", [0, 1, 250])
@pytest.mark.parametrize("start", [0, 1, 250, 251, (1 << 32) + 7])
@pytest.mark.parametrize("length", [0, 1, 251, 1000, PIECE_BYTES, PIECE_BYTES + 1])
def test_pattern_shows_the_offset_of_every_byte(version: int, start: int, length: int) -> None:
    expected = bytes((start + version + i) % 251 for i in range(min(length, 600)))
    data = bytes(pattern(version)(start, start + length))
    assert len(data) == length
    assert data[:600] == expected
    if length > 0:
        assert data[-1] == (start + version + length - 1) % 251


def test_real_bytes_and_files_are_served(origin: Origin, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"from a file")
    origin.put("/file", Resource.of(file))
    origin.put("/bytes", Resource.of(b"from memory", content_type="text/plain"))
    assert get(origin, "Range: bytes=5-", target="/file").body == b"a file"
    reply = get(origin, target="/bytes")
    assert (reply.body, reply.field("Content-Type")) == (b"from memory", "text/plain")


# Correct by default


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-", 0, 1000),
        ("bytes=0-0", 0, 1),
        ("bytes=500-599", 500, 600),
        ("BYTES=990-2000", 990, 1000),
        ("bytes=-10", 990, 1000),
        ("bytes=-2000", 0, 1000),
    ],
)
def test_range_is_served(origin: Origin, wanted: str, start: int, stop: int) -> None:
    reply = get(origin, f"Range: {wanted}")
    assert reply.status == 206
    assert reply.field("Content-Range") == f"bytes {start}-{stop - 1}/{SIZE}"
    assert reply.field("Content-Length") == str(stop - start)
    assert reply.body == content(start, stop)


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=-0", "bytes=5000-6000"])
def test_unsatisfiable_range_is_416_with_the_length(origin: Origin, wanted: str) -> None:
    reply = get(origin, f"Range: {wanted}")
    assert (reply.status, reply.field("Content-Range")) == (416, "bytes */1000")


@pytest.mark.parametrize(
    "wanted", ["bytes=9-3", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5"]
)
def test_range_that_is_not_one_is_ignored(origin: Origin, wanted: str) -> None:
    reply = get(origin, f"Range: {wanted}")
    assert (reply.status, reply.body) == (200, content(0, SIZE))


@pytest.mark.parametrize(
    ("etag", "condition", "status"),
    [
        ('"a"', '"a"', 206),
        ('"a"', '"b"', 200),
        ('W/"a"', 'W/"a"', 200),
        ('"a"', 'W/"a"', 200),
        (None, '"a"', 200),
        ('"a"', "Mon, 01 Jan 2024 00:00:00 GMT", 206),
        ('"a"', "Tue, 02 Jan 2024 00:00:00 GMT", 200),
    ],
)
def test_if_range_compares_strongly(
    origin: Origin, etag: str | None, condition: str, status: int
) -> None:
    modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    origin.put("/film", Resource(SIZE, etag=etag, last_modified=modified))
    assert get(origin, "Range: bytes=0-1", f"If-Range: {condition}").status == status


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ('If-None-Match: "x", W/"v0"', 304),
        ("If-None-Match: *", 304),
        ('If-None-Match: "x"', 206),
        ("If-Modified-Since: Tue, 02 Jan 2024 00:00:00 GMT", 304),
        ("If-Modified-Since: Sun, 31 Dec 2023 00:00:00 GMT", 206),
        ("If-Modified-Since: yesterday", 206),
        ('If-Match: "v0"', 206),
        ('If-Match: W/"v0", "x"', 412),
    ],
)
def test_preconditions_come_before_the_range(origin: Origin, condition: str, status: int) -> None:
    origin.put("/film", Resource(SIZE, last_modified="Mon, 01 Jan 2024 00:00:00 GMT"))
    reply = get(origin, condition, "Range: bytes=0-1")
    assert (reply.status, reply.field("ETag")) == (status, '"v0"')
    assert len(reply.body) == (2 if status == 206 else 0)


def test_head_is_as_get_without_range_and_body(origin: Origin) -> None:
    reply = get(origin, "Range: bytes=0-1", method="HEAD")
    assert (reply.status, reply.field("Content-Length"), reply.body) == (200, "1000", b"")


def test_connection_is_kept_alive_and_the_target_recorded_as_sent(origin: Origin) -> None:
    with connect(origin) as sock:
        for target in ("/film?a=%41&b", "/film?"):
            sock.sendall(request_text(target, "Range: bytes=3-5", "X-Twice: 1", "x-twice: 2"))
            assert read_head(sock).startswith("HTTP/1.1 206 ")
            assert read_exactly(sock, 3) == content(3, 6)
    first, second = origin.requests
    assert (first.target, second.target) == ("/film?a=%41&b", "/film?")
    assert first.range == "bytes=3-5"
    assert first.headers[-2:] == (("X-Twice", "1"), ("x-twice", "2"))
    assert first.connection == second.connection


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        (["Content-Length: 5"], b"hello"),
        (["Transfer-Encoding: chunked"], b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ],
)
def test_other_methods_and_their_bodies_are_recorded(
    origin: Origin, fields: list[str], sent: bytes
) -> None:
    origin.script(faults.status(201, ("Location", "/new"), body=b"made"))
    with connect(origin) as sock:
        sock.sendall(request_text("/film", *fields, "Connection: close", method="POST") + sent)
        reply = read_to_end(sock)
    assert (reply.status, reply.field("Location"), reply.body) == (201, "/new", b"made")
    assert (origin.requests[0].method, origin.requests[0].body) == ("POST", b"hello")
    assert get(origin, method="DELETE").status == 405


def test_unknown_length_is_chunked_or_ends_with_the_connection(
    origin: Origin, session: requests.Session
) -> None:
    origin.put("/chunked", Resource(SIZE, framing="chunked"))
    origin.put("/close", Resource(SIZE, framing="close"))
    for path in ("/chunked", "/close"):
        answer = session.get(origin.url(path), timeout=TIMEOUT_S)
        assert answer.content == content(0, SIZE)
        assert "Content-Length" not in answer.headers
        part = session.get(origin.url(path), headers={"Range": "bytes=7-9"}, timeout=TIMEOUT_S)
        assert part.headers["Content-Range"] == "bytes 7-9/*"
        assert part.content == content(7, 10)
    assert all(request.finished for request in origin.requests)


def test_resource_may_change_hide_its_ranges_or_go(origin: Origin) -> None:
    assert get(origin).body == content(0, SIZE)
    origin.put("/film", Resource(SIZE, version=1, accepts_ranges=False))
    reply = get(origin, "Range: bytes=0-1")
    assert (reply.status, reply.body) == (200, bytes(pattern(1)(0, SIZE)))
    assert (reply.field("ETag"), reply.field("Accept-Ranges")) == ('"v1"', "none")
    origin.put("/film", Resource(SIZE, accepts_ranges="lie", etag=None))
    reply = get(origin, "Range: bytes=0-1")
    assert (reply.status, reply.field("Accept-Ranges"), reply.field("ETag")) == (200, "bytes", None)
    origin.remove("/film")
    assert get(origin).status == 404


# Counters


def test_counters_are_exact_once_the_bytes_are_read(origin: Origin) -> None:
    get(origin, "Range: bytes=0-99")
    get(origin, method="HEAD")
    get(origin)
    assert [request.body_bytes_sent for request in origin.requests] == [100, 0, SIZE]
    assert all(request.finished for request in origin.requests)
    assert origin.body_bytes_sent == 1100


def test_peak_counts_connections_open_at_once(origin: Origin) -> None:
    for _ in range(20):
        connect(origin).close()
    get(origin)
    assert origin.peak_connections == 1
    with connect(origin) as first, connect(origin) as second:
        for sock in (first, second):
            sock.sendall(request_text("/film"))
        origin.wait_for_requests(3)
        assert (origin.open_connections, origin.peak_connections) == (2, 2)
    origin.wait_until(lambda: origin.open_connections == 0)


def test_waiting_for_what_does_not_come_says_what_did(origin: Origin) -> None:
    get(origin)
    with pytest.raises(TimeoutError, match="1 requests, 0 open, 1000 body bytes"):
        origin.wait_for_requests(2, timeout_s=0.001)


def test_endless_answer_ends_with_its_client() -> None:
    with Origin(send_buffer_bytes=4096) as origin, connect(origin) as sock:
        origin.put("/film", Resource(None))
        sock.sendall(request_text("/film"))
        assert "Transfer-Encoding: chunked" in read_head(sock)
        sock.close()
        (request,) = origin.wait_for_requests(1)
        origin.wait_until(lambda: request.ended)
        assert not request.finished


# Scripts


def test_hold_parks_the_answer_after_exactly_so_many_bytes(origin: Origin) -> None:
    hold = origin.script(faults.hold_after(300), path="/film")
    with connect(origin) as sock:
        sock.sendall(request_text("/film"))
        read_head(sock)
        assert read_exactly(sock, 300) == content(0, 300)
        assert hold.reached.wait(TIMEOUT_S)
        assert origin.body_bytes_sent == 300
        assert not origin.requests[0].finished
        hold.release()
        assert read_exactly(sock, 700) == content(300, SIZE)
    assert origin.requests[0].finished


def test_hold_before_headers_sends_nothing(origin: Origin) -> None:
    gate = Gate()
    hold = origin.script(faults.hold_before_headers(gate), times=None)
    with connect(origin) as first, connect(origin) as second:
        for sock in (first, second):
            sock.sendall(request_text("/film"))
        assert hold.reached.wait(TIMEOUT_S)
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.recv(1)
        first.settimeout(TIMEOUT_S)
        gate.set()
        assert read_head(first).startswith("HTTP/1.1 200 OK\r\n")
        assert read_head(second).startswith("HTTP/1.1 200 OK\r\n")


def test_stall_ends_when_the_client_leaves(origin: Origin) -> None:
    stall = origin.script(faults.stall_after(10))
    with connect(origin) as sock:
        sock.sendall(request_text("/film"))
        assert stall.reached.wait(TIMEOUT_S)
    (request,) = origin.requests
    origin.wait_until(lambda: request.ended)
    assert (request.body_bytes_sent, request.finished) == (10, False)


def test_cut_is_a_fin_and_reset_is_a_rst(origin: Origin) -> None:
    origin.script(faults.cut_after(300))
    reply = get(origin)
    assert (reply.ending, reply.body) == ("FIN", content(0, 300))
    assert reply.field("Content-Length") == "1000"
    origin.script(faults.reset_after(300))
    assert get(origin).ending == "RST"
    assert [request.body_bytes_sent for request in origin.requests] == [300, 300]
    assert not any(request.finished for request in origin.requests)


def test_short_body_misses_its_end_and_long_body_exceeds_it(origin: Origin) -> None:
    origin.script(faults.short_body(1))
    origin.script(faults.long_body(b"HTTP/1.1 200 OK\r\n"), nth=2)
    short = get(origin, "Range: bytes=500-")
    assert (short.field("Content-Length"), short.body) == ("500", content(500, 999))
    long = get(origin, "Range: bytes=500-")
    assert long.field("Content-Length") == "500"
    assert long.body == content(500, SIZE) + b"HTTP/1.1 200 OK\r\n"


def test_chunked_answer_is_cut_before_its_last_chunk(origin: Origin) -> None:
    origin.script(faults.chunked_cut_after(16))
    reply = get(origin)
    assert (reply.field("Transfer-Encoding"), reply.field("Content-Length")) == ("chunked", None)
    assert reply.body == b"10\r\n" + content(0, 16) + b"\r\n"


def test_heads_can_be_wrong(origin: Origin) -> None:
    origin.script(faults.wrong_content_range("bytes {start}-{last}/*"))
    assert get(origin, "Range: bytes=5-9").field("Content-Range") == "bytes 5-9/*"
    origin.script(faults.ignore_range)
    reply = get(origin, "Range: bytes=5-9")
    assert (reply.status, reply.body) == (200, content(0, SIZE))
    origin.script(faults.redirect("/elsewhere"))
    reply = get(origin)
    assert (reply.status, reply.field("Location")) == (302, "/elsewhere")
    origin.script(faults.extra_headers(("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")))
    origin.script(faults.drop_headers("etag", "content-length"))
    reply = get(origin)
    assert reply.head.count("Set-Cookie: ") == 2
    assert (reply.field("ETag"), reply.field("Content-Length")) == (None, None)
    assert reply.body == content(0, SIZE)


def test_early_hints_come_before_the_answer(origin: Origin) -> None:
    origin.script(faults.early_hints(("Link", "</a>")))
    with connect(origin) as sock:
        sock.sendall(request_text("/film"))
        assert read_head(sock) == "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        assert read_head(sock).startswith("HTTP/1.1 200 OK\r\n")
        assert read_exactly(sock, SIZE) == content(0, SIZE)


def test_trickle_changes_no_byte(origin: Origin) -> None:
    origin.script(faults.trickle(7))
    assert get(origin).body == content(0, SIZE)


def test_raw_is_all_that_is_sent(origin: Origin) -> None:
    origin.script(faults.raw(b"SSH-2.0-surprise\r\n\r\n"))
    reply = get(origin)
    assert (reply.head, reply.body, reply.ending) == ("SSH-2.0-surprise", b"", "FIN")


def test_script_applies_to_its_path_its_predicate_and_its_turn(origin: Origin) -> None:
    origin.put("/other", Resource(SIZE))
    origin.script(
        faults.status(503),
        path="/film",
        when=lambda request: request.range is not None,
        nth=2,
        times=2,
    )
    assert get(origin, "Range: bytes=0-", target="/other").status == 206
    assert get(origin).status == 200
    statuses = [get(origin, "Range: bytes=0-", target="/film?q").status for _ in range(4)]
    assert statuses == [206, 503, 503, 206]


def test_script_may_send_by_itself_and_wait(origin: Origin) -> None:
    gate, reached = Gate(), threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.send_head(200, [("Content-Length", "6")])
        exchange.send(b"abc")
        reached.set()
        exchange.wait(gate)
        exchange.send(b"def")

    origin.script(script)
    with connect(origin) as sock:
        sock.sendall(request_text("/film"))
        assert read_head(sock) == "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
        assert read_exactly(sock, 3) == b"abc"
        assert reached.wait(TIMEOUT_S)
        gate.set()
        assert read_exactly(sock, 3) == b"def"
        sock.sendall(request_text("/film"))  # and the connection goes on
        assert read_head(sock).startswith("HTTP/1.1 200 OK\r\n")
    assert origin.requests[0].body_bytes_sent == 6
    assert origin.requests[0].finished


def test_script_that_goes_on_after_closing_is_ended(origin: Origin) -> None:
    ended_by: list[type[BaseException]] = []

    def script(exchange: Exchange) -> None:
        exchange.reset()
        with pytest.raises(ClientGone) as caught:
            exchange.send(b"too late")
        ended_by.append(caught.type)

    origin.script(script)
    assert get(origin).ending == "RST"
    (request,) = origin.requests
    origin.wait_until(lambda: request.ended)
    assert ended_by == [ClientGone]


def test_failing_script_fails_the_test() -> None:
    def script(exchange: Exchange) -> None:
        raise AssertionError("seen by the script")

    def run() -> None:
        with Origin() as origin:
            origin.script(script)
            assert get(origin).head == ""

    with pytest.raises(AssertionError, match="seen by the script"):
        run()


# Life


def test_close_ends_held_idle_and_blocked_connections_and_all_threads() -> None:
    with Origin() as origin:
        origin.put("/film", Resource(SIZE))
        origin.put("/endless", Resource(None))
        hold = origin.script(faults.hold_after(10), path="/film")
        held, idle, blocked = connect(origin), connect(origin), connect(origin)
        held.sendall(request_text("/film"))
        assert hold.reached.wait(TIMEOUT_S)
        blocked.sendall(request_text("/endless"))
        read_head(blocked)
        origin.wait_until(lambda: origin.peak_connections == 3)
    assert not [t for t in threading.enumerate() if t.name.startswith(f"origin:{origin.port}")]
    with held, idle, blocked:
        assert read_to_end(held).body == content(0, 10)
        assert idle.recv(1) == b""


def test_outage_cuts_and_resets_until_it_is_over(origin: Origin, session: requests.Session) -> None:
    hold = origin.script(faults.hold_after(10))
    with connect(origin) as held:
        held.sendall(request_text("/film"))
        assert hold.reached.wait(TIMEOUT_S)
        with origin.outage():
            assert read_to_end(held).body == content(0, 10)
            with pytest.raises(requests.ConnectionError):
                session.get(origin.url("/film"), timeout=TIMEOUT_S)
    assert get(origin).body == content(0, SIZE)
    assert len(origin.requests) == 2


def test_who_connects_after_it_has_left_is_refused_and_nobody_gets_its_port(
    origin: Origin,
) -> None:
    origin.leave()
    with pytest.raises(ConnectionRefusedError):
        connect(origin)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((origin.host, origin.port))


# Shaping


def test_connection_past_the_limit_is_refused() -> None:
    with Origin(Shaping(max_connections=1, refusal_status=429)) as origin:
        origin.put("/film", Resource(SIZE))
        with connect(origin) as first:
            first.sendall(request_text("/film"))
            read_head(first)
            reply = get(origin)
            assert (reply.status, reply.field("Retry-After")) == (429, "1")
        assert get(origin).status == 200


def test_bucket_books_bytes_behind_each_other() -> None:
    now = 0.0
    bucket = Bucket(100.0, clock=lambda: now)
    assert [bucket.reserve(50), bucket.reserve(50)] == [0.5, 1.0]
    now = 1.0
    assert bucket.reserve(100) == 1.0
    now = 10.0  # idle since 2.0: only a late wake-up's worth is made good
    assert bucket.reserve(100) == pytest.approx(1.0 - CATCH_UP_S)


def test_shaped_answer_is_whole() -> None:
    shaping = Shaping(first_byte_latency_s=0.001, rate_per_connection=5e7, rate_total=5e7)
    with Origin(shaping) as origin:
        origin.put("/film", Resource(1_000_000))
        assert get(origin).body == content(0, 1_000_000)


# As a process


def test_process_serves_counts_and_ends_on_sigterm(
    tmp_path: Path, session: requests.Session
) -> None:
    (tmp_path / "a b").write_bytes(b"real bytes")
    command = [sys.executable, "-m", "tests.support.origin", "--root", str(tmp_path)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        ranged = {"Range": "bytes=5-"}
        assert session.get(f"{url}a%20b", headers=ranged, timeout=TIMEOUT_S).content == b"bytes"
        assert session.get(f"{url}%2e%2e/etc/passwd", timeout=TIMEOUT_S).status_code == 404
        stats = session.get(f"{url}-/stats", timeout=TIMEOUT_S).content
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    assert json.loads(stats) == {"requests": 2, "body_bytes_sent": 5, "peak_connections": 1}
