"""HTTP clients for tests of the proxy: whole answers, answers in parts, exact bytes.

Nothing here repairs what it gets: a body shorter than its ``Content-Length`` raises.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cachefsm import Cache
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S
from tests.support.origin import Origin

__all__ = [
    "Reply",
    "ask",
    "at_once",
    "blocked",
    "connect",
    "exchange",
    "opened",
    "readers",
    "request_bytes",
    "reset",
    "serve_mounted",
    "split",
    "whole",
]

Fields = Mapping[str, str]
NO_FIELDS: Fields = MappingProxyType({})
T = TypeVar("T")


def serve_mounted(cache: Cache, origin: Origin, base: str = "/", **options: Any) -> Server:
    """Return a running proxy with *origin* mounted at ``/m``; close it."""
    return cache.serve(mounts=[f"/m={origin.url(base)}"], **options)


@dataclass(frozen=True)
class Reply:
    """One whole answer."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        """The field *name*, or None; fails where it came more than once."""
        values = [value for key, value in self.fields if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def opened(
    url: str, fields: Fields = NO_FIELDS, *, method: str = "GET", body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Ask on a connection of its own; the body is the caller's to read, or to leave."""
    with closing(_connection(url)) as connection:
        connection.request(method, _target(url), body, dict(fields))
        with closing(connection.getresponse()) as response:
            yield response


def ask(
    url: str, fields: Fields = NO_FIELDS, *, method: str = "GET", body: bytes | None = None
) -> Reply:
    """Return the whole answer.

    Raises:
        http.client.IncompleteRead: the body was cut short.
    """
    with opened(url, fields, method=method, body=body) as response:
        return whole(response)


def whole(response: http.client.HTTPResponse) -> Reply:
    """Read what is left of *response*."""
    return Reply(response.status, tuple(response.getheaders()), response.read())


def readers(proxy: Server, entry_id: int = 1) -> int:
    """Return how many readers the proxy says that the entry has."""
    count: int = ask(f"{proxy.url}-/entries/{entry_id}").json()["readers"]
    return count


def blocked(proxy: Server) -> int:
    """Return how many clients' requests wait for the origin.

    A reader is counted as one before it has joined the others in what they wait for;
    this counts those that have.
    """
    (count,) = re.findall(r"(\d+) waiting", repr(proxy))
    return int(count)


def request_bytes(
    target: str,
    *lines: str,
    method: str = "GET",
    version: str = "1.1",
    host: str | None = "localhost",
) -> bytes:
    """Return a request for one answer; the connection closes after it."""
    first = [f"{method} {target} HTTP/{version}", "Connection: close"]
    named = [] if host is None else [f"Host: {host}"]
    return "\r\n".join([*first, *named, *lines, "", ""]).encode("latin-1")


def connect(url: str, *, receive_buffer_bytes: int | None = None) -> socket.socket:
    """Return a socket connected to the server of *url*."""
    parts = urlsplit(url)
    sock = socket.socket()
    sock.settimeout(WAIT_S)
    if receive_buffer_bytes is not None:  # before connecting: the window follows from it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    try:
        sock.connect((parts.hostname, parts.port))
    except OSError:
        sock.close()
        raise
    return sock


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def exchange(url: str, request: bytes) -> bytes:
    """Send exactly *request* to the server of *url*; return all until it closes.

    Raises:
        ConnectionResetError: it ended with a reset.
    """
    with connect(url) as sock:
        sock.sendall(request)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the server closes; a reset raises."""
    received = bytearray()
    while data := sock.recv(65536):
        received += data
    return bytes(received)


def split(answer: bytes) -> tuple[int, list[str], bytes]:
    """Return status, header lines and body of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split(" ")[1]), lines, body


def at_once(count: int, function: Callable[[int], T]) -> list[T]:
    """Return ``function(0)``, ``function(1)``, …, all begun at the same moment."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> T:
        barrier.wait(WAIT_S)
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S)


def _target(url: str) -> str:
    return url.partition(urlsplit(url).netloc)[2]
