"""One accepted socket of the test origin, and the gate that may hold its thread."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import weakref
from contextlib import suppress

from tests.support.messages import Request

HANGUP = getattr(select, "POLLRDHUP", 0)  # POLLHUP and POLLERR are always reported
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER 0: close() sends RST


class ClientGone(ConnectionError):
    """The client or the origin closed the connection under an exchange."""


class Gate(threading.Event):
    """An event, set once, that can be polled together with sockets."""

    def __init__(self) -> None:
        super().__init__()
        self._read_fd, self._write_fd = os.pipe()
        weakref.finalize(self, _close_fds, self._read_fd, self._write_fd)

    def fileno(self) -> int:
        return self._read_fd

    def set(self) -> None:
        if not self.is_set():
            super().set()
            os.write(self._write_fd, b"\0")  # never read: stays readable for every waiter


def _close_fds(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class Connection:
    """One accepted socket; used by its own thread, except for `shutdown`."""

    def __init__(self, sock: socket.socket, number: int, changed: threading.Condition) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.number = number
        self.refused = False
        self._changed = changed
        self._received = bytearray()

    @property
    def closed(self) -> bool:
        return self.sock.fileno() < 0

    def poll(self, events: int, gate: Gate | None = None, timeout_s: float | None = None) -> int:
        """Block until the socket shows *events* (returned), the gate opens, or time is up."""
        if self.closed:
            raise ClientGone("closed by the script")
        poller = select.poll()
        poller.register(self.sock, events)
        if gate is not None:
            poller.register(gate, select.POLLIN)
        ready = poller.poll(None if timeout_s is None else timeout_s * 1000)
        return dict(ready).get(self.sock.fileno(), 0)

    def read_request(self) -> Request | None:
        """Return the next request, or None when the client is done.

        Raises:
            ValueError: it is malformed.
        """
        try:
            head = self._read_until(b"\r\n\r\n").decode("latin-1")
        except ClientGone:
            return None
        request_line, *lines = head.split("\r\n")
        method, target, version = request_line.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = tuple((name, value.strip(" \t")) for name, _, value in pairs)
        request = Request(method, target, version, headers, b"", self.number, self._changed)
        request.body = self._read_body(request)
        return request

    def _read_body(self, request: Request) -> bytes:
        if (request.header("Transfer-Encoding") or "").lower() != "chunked":
            return self._read(int(request.header("Content-Length") or 0))
        body = b""
        while size := int(self._read_until(b"\r\n"), 16):
            body += self._read(size)
            self._read_until(b"\r\n")
        while self._read_until(b"\r\n"):  # trailers
            pass
        return body

    def _read_until(self, mark: bytes) -> bytes:
        while (end := self._received.find(mark)) < 0:
            self._receive()
        return self._read(end + len(mark))[:end]

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self) -> None:
        self.poll(select.POLLIN)
        data = self.sock.recv(65536)
        if not data:
            raise ClientGone("end of requests")
        self._received += data

    def close(self, *, reset: bool = False) -> None:
        with self._changed:
            if reset and not self.closed:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self.sock.close()
            self._changed.notify_all()

    def shutdown(self) -> None:
        """Wake this connection's thread for good. Call with `Origin.changed` held."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
