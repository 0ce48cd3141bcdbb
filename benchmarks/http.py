"""A small client that notes when bytes arrive."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Timing", "timed_get"]


@dataclass(frozen=True)
class Timing:
    """Seconds from the request to the first body byte and to the last; bytes received."""

    first_byte_s: float
    total_s: float
    size_bytes: int


def timed_get(
    url: str, range_: str | None, on_bytes: Callable[[int], object] = lambda _total: False
) -> Timing:
    """GET *url* on a connection of its own; stop early once *on_bytes* returns true."""
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
    if range_ is not None:
        request += f"Range: {range_}\r\n"
    assert parts.hostname is not None
    assert parts.port is not None
    buffer = bytearray(1 << 20)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        started = time.perf_counter()
        connection.sendall(request.encode() + b"\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                raise ConnectionError(f"{url} answered nothing")
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        status = head.split()[1]
        if status not in (b"200", b"206"):
            raise ConnectionError(f"{url} answered {status.decode()}")
        total = len(body)
        first = time.perf_counter() if body else None
        while not on_bytes(total):
            size = connection.recv_into(buffer)
            if not size:
                break
            first = first or time.perf_counter()
            total += size
        ended = time.perf_counter()
    return Timing((first or ended) - started, ended - started, total)
