"""One client's connection: bytes in and out, with time limits and clear errors.

Every wait is a ``poll`` on two descriptors, the client's and the server's
``StopSignal``, so that closing the server wakes each thread at once without
touching its socket: ``shutdown()`` from outside would send a FIN, which ends a
body delimited by close as if it were whole. The sockets are non-blocking, so a
send that fits costs one system call.

Errors of the client's socket become ``ClientGone`` here and nowhere else; an
application's own ``ConnectionResetError`` (from an origin, say) stays an error.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from .errors import StorageError
from .wire import BadRequest, RequestHead, check_text, parse_head, parse_request_line

__all__ = [
    "ClientGone",
    "ClientSocket",
    "ClientTimeout",
    "FileSlice",
    "Limits",
    "RequestBody",
    "StopSignal",
]

_RECEIVE_BYTES = 16384
# Below 256 KiB a copied piece costs noticeably more per byte.
_PIECE_BYTES = 262144
# One sendfile to a client that keeps pace can last for the whole file; this is
# how much may still go out after the server was told to stop.
_SENDFILE_BYTES = 1 << 20
# After the last answer the client may still be sending; closing on unread bytes
# would reset the connection and could destroy the answer. RFC 9112 §9.6.
_LINGER_BYTES = 1 << 20
_LINGER_S = 2.0
# poll() takes a C int of milliseconds.
_LONGEST_POLL_S = 2_000_000.0
# "0" to 15 hex digits, then extensions, which mean nothing to us (RFC 9112 §7.1.1).
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;.*)?")
_CHUNK_LINE_BYTES = 1024
_NET_DOWN = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN})
_MSG_MORE = getattr(socket, "MSG_MORE", 0)


@dataclass(frozen=True)
class Limits:
    """What one client may take. Seconds and bytes.

    - ``idle_timeout_s``: between two requests, and of silence inside a request
      body. 75 as nginx; browsers and players reuse connections within that.
    - ``header_timeout_s``: for a whole request head, counted from its first byte
      (for a first request, from the connection). 15: a head is one packet.
    - ``send_timeout_s``: of no progress at all while sending. 1800: a paused
      player reads nothing for as long as its person is away, and some do not
      reconnect; the kernel's own probes drop a peer that has vanished after
      about 15 minutes, so only living clients use this up, each costing a
      thread (17 KiB) and its socket buffers.
    - ``max_connections``: half of the usual limit of 1024 descriptors; the
      other half is for origins and files. Where there are fewer, half of those.
    - ``max_header_bytes``, ``max_target_bytes``: signed URLs reach 4 KiB.
    """

    idle_timeout_s: float = 75.0
    header_timeout_s: float = 15.0
    send_timeout_s: float = 1800.0
    max_connections: int = 512
    max_header_bytes: int = 32768
    max_target_bytes: int = 16384


class ClientGone(ConnectionError):
    """The client left, or the server is closing; there is nobody to answer."""


class ClientTimeout(ClientGone):
    """The client neither sent nor read for longer than it may."""


class StopSignal:
    """Once set, readable for ever, so every ``poll`` that includes it wakes."""

    def __init__(self) -> None:
        self.is_set = False
        self._reader, self._writer = socket.socketpair()

    def set(self) -> None:
        """Wake everybody. Takes no lock: safe in a signal handler, and twice."""
        self.is_set = True
        with suppress(OSError):
            self._writer.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        """Free the descriptors; only when no thread polls any more."""
        self._reader.close()
        self._writer.close()


@dataclass(frozen=True)
class FileSlice:
    """*count* bytes of an open file from *offset*, for a WSGI iterable.

    The server sends it with ``os.sendfile`` and never sees the bytes; yield it
    only when ``environ["cachefsm.sendfile"]`` is true. To everybody else it is
    an iterable of ``bytes``. Neither moves the file's own position, and the
    descriptor stays the giver's to close, after the iterable's ``close()``. What
    cannot be read is taken from *otherwise*, which is called with where that begins
    and where the slice stops.

    ``wsgi.file_wrapper`` is not offered: it must guess offset and count, and a
    ``GzipFile`` has a ``fileno()`` whose bytes are not the ones it reads.
    """

    fd: int
    offset: int
    count: int
    otherwise: Callable[[int, int], Iterable[bytes]] | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of 256 KiB; StorageError when they cannot be read."""
        position, stop = self.offset, self.offset + self.count
        while position < stop:
            try:
                piece = self._read(position, stop)
            except StorageError:
                if self.otherwise is None:
                    raise
                yield from self.otherwise(position, stop)
                return
            position += len(piece)
            yield piece

    def _read(self, position: int, stop: int) -> bytes:
        try:
            piece = os.pread(self.fd, min(_PIECE_BYTES, stop - position), position)
        except OSError as error:
            raise StorageError(f"reading the stored file: {error.strerror}") from error
        if not piece:
            missing = stop - position
            raise StorageError(f"the stored file ends at {position}, {missing} bytes too early")
        return piece


class _ArrivingHead:
    """Finds the end of a request's head as it arrives, and refuses a faulty one early.

    That cannot wait for the end: a client that sends bare LF or HTTP/0.9 never sends one.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._checked_bytes = 0  # so many are known to hold no stray control character
        self._line_end = -1  # of the request line, -1 until it has come
        self._is_begun = False

    def take(self, buffer: bytearray) -> bytes | None:
        """Take the head out of *buffer*, without its closing empty line; None if not all came.

        Raises:
            BadRequest: what has come can no longer become a head.
        """
        if not self._is_begun and len(buffer) >= 2:
            # Some clients end a body with a CRLF that is not part of it, RFC 9112 §2.2.
            self._is_begun = True
            if buffer.startswith(b"\r\n"):
                del buffer[:2]
        end = buffer.find(b"\r\n\r\n", max(0, self._checked_bytes - 3))
        if end < 0:
            self._check(buffer)
            return None
        head = bytes(buffer[:end])
        del buffer[: end + 4]
        return head

    def _check(self, buffer: bytearray) -> None:
        limits = self._limits
        whole_bytes = len(buffer) - buffer.endswith(b"\r")
        check_text(buffer[self._checked_bytes : whole_bytes])
        self._checked_bytes = whole_bytes
        if self._line_end < 0:
            self._line_end = buffer.find(b"\r\n")
            if self._line_end >= 0:
                parse_request_line(bytes(buffer[: self._line_end]), limits.max_target_bytes)
            elif len(buffer) > limits.max_target_bytes + 64:
                raise BadRequest(414, "the request line is too long")
        if self._line_end >= 0 and len(buffer) - self._line_end > limits.max_header_bytes + 4:
            raise BadRequest(431, f"the header is longer than {limits.max_header_bytes} bytes")


class ClientSocket:
    """A connected, non-blocking socket, used by one thread.

    Every method raises ``ClientGone`` when the other side is, or when *stop* is
    set, and ``ClientTimeout`` when it took too long.
    """

    def __init__(self, sock: socket.socket, stop: StopSignal, limits: Limits) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._stop = stop
        self._limits = limits
        self._buffer = bytearray()  # received and not yet asked for
        self._readable = select.poll()
        self._writable = select.poll()
        for poller, event in ((self._readable, select.POLLIN), (self._writable, select.POLLOUT)):
            poller.register(sock, event)
            poller.register(stop, select.POLLIN)

    def _wait(self, poller: select.poll, timeout_s: float) -> None:
        milliseconds = math.ceil(max(0.0, min(timeout_s, _LONGEST_POLL_S)) * 1000)
        events = poller.poll(milliseconds)
        if self._stop.is_set:
            raise ClientGone("the server is closing")
        if not events:
            raise ClientTimeout("the client took too long")

    # -- receiving -----------------------------------------------------------

    def _receive(self, timeout_s: float, wanted: int = _RECEIVE_BYTES) -> bytes:
        """Wait for bytes and return at most *wanted*; b"" when the client sends no more."""
        while True:
            # Waiting first keeps the buffer for recv from existing while idle.
            self._wait(self._readable, timeout_s)
            try:
                return self.sock.recv(wanted)
            except BlockingIOError:  # readiness is a hint, poll(2)
                continue
            except OSError as error:
                raise ClientGone(f"receiving: {error.strerror}") from error

    def read_head(self, *, first: bool) -> RequestHead | None:
        """Return the next request, or None when the client sends no more of them.

        Raises:
            BadRequest: as soon as what has come can no longer become a request.
        """
        limits, buffer = self._limits, self._buffer
        if not buffer:
            try:
                data = self._receive(limits.header_timeout_s if first else limits.idle_timeout_s)
            except ClientTimeout:
                return None  # nothing was asked: an unasked 408 would answer the next request
            if not data:
                return None
            buffer += data
        arriving = _ArrivingHead(limits)
        deadline: float | None = None
        while (head := arriving.take(buffer)) is None:
            now = time.monotonic()
            if deadline is None:
                deadline = now + limits.header_timeout_s
            try:
                data = self._receive(deadline - now)
            except ClientTimeout:
                raise BadRequest(408, "the request's head did not come in time") from None
            if not data:
                return None
            buffer += data
        return parse_head(
            head,
            max_target_bytes=limits.max_target_bytes,
            max_header_bytes=limits.max_header_bytes,
        )

    def read_some(self, wanted: int, timeout_s: float) -> bytes:
        """Return 1 to *wanted* bytes; ClientGone when the client sends no more."""
        buffer = self._buffer
        if buffer:
            data = bytes(buffer[:wanted])
            del buffer[:wanted]
            return data
        data = self._receive(timeout_s, min(wanted, _PIECE_BYTES))
        if not data:
            raise ClientGone("the client stopped in the middle of a request body")
        return data

    def read_line(self, max_bytes: int, timeout_s: float) -> bytes:
        """Return what comes before the next CRLF. BadRequest when longer or malformed."""
        buffer = self._buffer
        while (end := buffer.find(b"\r\n")) < 0:
            if len(buffer) > max_bytes + 1:  # one may be the CR
                raise BadRequest(400, "a line of a chunked body is too long")
            check_text(buffer[: len(buffer) - buffer.endswith(b"\r")])
            data = self._receive(timeout_s)
            if not data:
                raise ClientGone("the client stopped in the middle of a request body")
            buffer += data
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        if end > max_bytes:
            raise BadRequest(400, "a line of a chunked body is too long")
        check_text(line)
        return line

    # -- sending -------------------------------------------------------------

    def send(self, *parts: bytes | memoryview, more: bool = False) -> None:
        """Send all *parts* as one, copying none; *more* keeps the last packet open."""
        flags = _MSG_MORE if more else 0
        left = sum(map(len, parts))
        pending: list[bytes | memoryview] = list(parts)
        while left:
            if self._stop.is_set:
                raise ClientGone("the server is closing")
            try:
                sent = self.sock.sendmsg(pending, (), flags)
            except BlockingIOError:
                self._await_room()
                continue
            except OSError as error:
                raise ClientGone(f"sending: {error.strerror}") from error
            left -= sent
            while left and sent >= len(pending[0]):
                sent -= len(pending.pop(0))
            if left and sent:
                pending[0] = memoryview(pending[0])[sent:]

    def send_file(self, piece: FileSlice) -> None:
        """Send *piece* from the page cache; StorageError when it cannot be read."""
        position, stop = piece.offset, piece.offset + piece.count
        out = self.sock.fileno()
        while position < stop:
            if self._stop.is_set:
                raise ClientGone("the server is closing")
            try:
                sent = os.sendfile(out, piece.fd, position, min(stop - position, _SENDFILE_BYTES))
            except BlockingIOError:
                self._await_room()
                continue
            except OSError as error:
                if isinstance(error, ConnectionError) or error.errno in _NET_DOWN:
                    raise ClientGone(f"sending: {error.strerror}") from error
                sent = 0
            if not sent:
                # The system cannot, the file has ended, or the disk fails: reading tells.
                for data in replace(piece, offset=position, count=stop - position):
                    self.send(data)
                return
            position += sent

    def _await_room(self) -> None:
        try:
            self._wait(self._writable, self._limits.send_timeout_s)
        except ClientTimeout:
            # A plain close would leave megabytes with the kernel, which would go
            # on offering them to a client that does not read.
            self.reset_on_close(True)
            raise

    # -- ending --------------------------------------------------------------

    def reset_on_close(self, wanted: bool) -> None:
        """Say whether closing, by anybody or by a crash, is a reset rather than an end.

        True while a body is under way whose end is the close itself (HTTP/1.0
        without a length): a FIN there looks like success.
        """
        with suppress(OSError):
            option = struct.pack("ii", wanted, 0)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)

    def linger(self) -> None:
        """End our side, then throw away what the client still sends, within bounds."""
        with suppress(OSError):  # ClientGone is one: then there is nothing to wait for
            self.sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _LINGER_S
            left = _LINGER_BYTES
            while left > 0 and (data := self._receive(deadline - time.monotonic())):
                left -= len(data)


class RequestBody(io.RawIOBase):
    """The body of one request, and nothing after it. Wrap it in a ``BufferedReader``.

    ``100 Continue`` goes out with the first read, unless ``interim`` was
    cleared because the answer has begun.

    Raises, from every read:
        BadRequest: 400 for broken chunks, 408 when the client stops sending.
        ClientGone: the client left in the middle.
    Source: RFC 9112 §7.1, RFC 9110 §10.1.1.
    """

    def __init__(self, client: ClientSocket, head: RequestHead, limits: Limits) -> None:
        super().__init__()
        self.interim = head.expects_continue
        self._client = client
        self._limits = limits
        self._chunked = head.body_bytes is None
        self._left = head.body_bytes or 0  # of the body, or of the chunk
        self._ended = head.body_bytes == 0
        self._deadline = math.inf
        self._fault: BadRequest | None = None

    @property
    def is_faulty(self) -> bool:
        """Whether nobody can say where it ends, and so where the next request begins."""
        return self._fault is not None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        if self._ended or not len(view):
            return 0
        if self.interim:
            self.interim = False
            self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._fault is not None:
            raise self._fault  # what follows could be read in two ways
        try:
            data = self._receive(len(view))
        except ClientTimeout:
            self._fault = BadRequest(408, "the request's body stopped coming")
            raise self._fault from None
        except BadRequest as fault:
            self._fault = fault
            raise
        view[: len(data)] = data
        return len(data)

    def _receive(self, size: int) -> bytes:
        if not self._left:
            self._left = self._next_chunk_bytes()
            if not self._left:
                self._ended = True
                return b""
        data = self._client.read_some(min(size, self._left), self._timeout_s())
        self._left -= len(data)
        if not self._left:
            if not self._chunked:
                self._ended = True
            elif self._client.read_line(0, self._timeout_s()):
                raise BadRequest(400, "a chunk is longer than it says")
        return data

    def _next_chunk_bytes(self) -> int:
        """Read a chunk's first line; after the last chunk read all and return 0."""
        match = _CHUNK_SIZE.fullmatch(self._client.read_line(_CHUNK_LINE_BYTES, self._timeout_s()))
        if match is None:
            raise BadRequest(400, "malformed chunk size")
        count = int(match[1], 16)
        if not count:
            # Trailers are dropped, as RFC 9110 §6.5.1 allows; they count as a header.
            room = self._limits.max_header_bytes
            while line := self._client.read_line(room, self._timeout_s()):
                room -= len(line)
        return count

    def _timeout_s(self) -> float:
        return min(self._limits.idle_timeout_s, self._deadline - time.monotonic())

    def drain(self, max_bytes: int) -> bool:
        """Read what the application did not; True when the next request can follow.

        False without reading when it is plain that more than *max_bytes* are left.
        """
        if self._ended:
            return True
        if self._left > max_bytes:
            return False
        self._deadline = time.monotonic() + self._limits.header_timeout_s
        scratch = bytearray(min(max_bytes, _PIECE_BYTES))
        with suppress(BadRequest):
            while max_bytes > 0:
                count = self.readinto(scratch)
                if not count:
                    return True
                max_bytes -= count
        return False
