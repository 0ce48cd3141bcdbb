"""A small client that notes when bytes arrive."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Client", "Timing", "timed_get"]

_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Timing:
    """Seconds from the request to the first body byte and to the last; bytes received."""

    first_byte_s: float
    total_s: float
    size_bytes: int


class Client:
    """One connection, kept alive; a context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._authority = parts.netloc
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._buffer = bytearray(_BUFFER_BYTES)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def get(
        self,
        url: str,
        range_: str | None = None,
        on_bytes: Callable[[int], object] = lambda _total: False,
    ) -> Timing:
        """GET *url*; stop early, with the connection spoilt, once *on_bytes* returns true."""
        request = f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: {self._authority}\r\n"
        if range_ is not None:
            request += f"Range: {range_}\r\n"
        started = time.perf_counter()
        self._socket.sendall(request.encode() + b"\r\n")
        length, body = self._read_head(url)
        total = len(body)
        first = time.perf_counter() if body else None
        while total < length and not on_bytes(total):
            size = self._socket.recv_into(self._buffer)
            if not size:
                raise ConnectionError(f"{url}: {total} bytes of {length}")
            first = first or time.perf_counter()
            total += size
        ended = time.perf_counter()
        return Timing((first or ended) - started, ended - started, total)

    def _read_head(self, url: str) -> tuple[int, bytes]:
        """Return the length of the body, and what of it came with the head."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionError(f"{url} answered nothing")
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        if status.split()[1] not in ("200", "206"):
            raise ConnectionError(f"{url} answered {status}")
        fields = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
        return int(fields["content-length"]), body


def timed_get(
    url: str,
    range_: str | None = None,
    on_bytes: Callable[[int], object] = lambda _total: False,
) -> Timing:
    """GET *url* on a connection of its own; its making is not counted."""
    with Client(url) as client:
        return client.get(url, range_, on_bytes)
