"""requests, taught to send exactly what it is told and to let go when told to.

Some habits of the stack do not fit a cache, and each is undone here, at the
narrowest public seam there is:

- urllib3 rewrites the target it is given (``%2f`` becomes ``%2F``), which breaks
  signed URLs: :class:`_ExactConnection` puts the caller's target on the wire.
- ``http.client`` takes a 103 (Early Hints) for the answer, and the next user of
  the connection would get the real one: interim answers are skipped.
- It takes a head that breaks off for a whole one, whatever was in the lines that did
  not come, and reads chunk sizes with ``int()``, which likes ``-5``, ``1_0`` and the
  first digit of a line that was cut: :class:`_StrictResponse` believes neither.
- A Session that is told not to follow redirects reads their bodies all the same, and
  fails on a Location that it cannot read: :class:`_Session` sees none.
- A thread blocked in connect or receive can't be stopped by closing anything;
  shutting the socket down stops it at once: :class:`Canceller` knows the socket.

A session has no cookie jar, and reads no proxies and no netrc from the
environment: what one client sent must never travel with another's request. Of the
environment it hears only whom to trust, ``REQUESTS_CA_BUNDLE``.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import threading
from collections.abc import Callable
from contextvars import ContextVar
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    InvalidHeader,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util.response import assert_header_parsing

from .errors import OriginRefused, OriginUntrusted

__all__ = ["Canceller", "exchange", "make_session"]

_LONGEST_INTERIM_FIELDS: Final = 100
_MOST_INTERIM_ANSWERS: Final = 20
_LONGEST_CHUNK_LINE: Final = 8192


class Canceller:
    """Stops one exchange from another thread, whatever it is blocked in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cancelled = False
        self.then: Callable[[], None] = lambda: None
        """Called after each :meth:`cancel`: what else may be waited for in the exchange."""

    @property
    def is_cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled

    def attach(self, sock: socket.socket | None) -> None:
        """Name the socket that the exchange uses from now on, or None."""
        with self._lock:
            self._socket = sock
            if self._cancelled:
                self._shut_down()

    def cancel(self) -> None:
        """Make the blocked call return or raise now; later ones fail at once."""
        with self._lock:
            self._cancelled = True
            self._shut_down()
        self.then()

    def _shut_down(self) -> None:
        if self._socket is not None:
            # Not SSLSocket.shutdown, which drops the TLS state that the blocked
            # thread is using. Not connected any more is as good as shut down.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Exchange:
    def __init__(
        self, target: str, canceller: Canceller, may_connect: Callable[[str], bool]
    ) -> None:
        self.target = target
        self.canceller = canceller
        self.may_connect = may_connect


def _connect(host: str, port: int, timeout: Any, current: _Exchange) -> socket.socket:
    """Connect to the first of *host*'s addresses that may be used and answers.

    The canceller knows each socket before it connects, so that a connect that
    hangs can be stopped; and the address that is checked is the one that is used.
    """
    failure: OSError | None = None
    refused = 0
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        if not current.may_connect(str(address[0])):
            refused += 1
            continue
        sock = socket.socket(family, kind, protocol)
        try:
            current.canceller.attach(sock)
            if current.canceller.is_cancelled:  # a socket not connected can't be shut down
                raise ConnectionAbortedError("cancelled")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if isinstance(timeout, (int, float)):
                sock.settimeout(timeout)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    if refused == len(found):
        raise OriginRefused(f"{host} leads to an address that it may not lead to")
    raise failure or OSError(f"{host} has no address")


_current: ContextVar[_Exchange | None] = ContextVar("cachefsm_exchange", default=None)


class _HeadLines:
    """What a response's head is read from: no line ends in a bare CR, or with the connection."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.close = source.close

    def readline(self, limit: int) -> bytes:
        line: bytes = self.source.readline(limit)
        if len(line) < limit and not line.endswith(b"\n"):
            raise http.client.RemoteDisconnected("the head broke off")
        if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            # email.parser, which reads the fields, would begin another one there.
            raise InvalidHeader("a bare CR")
        return line


class _StrictResponse(http.client.HTTPResponse):
    """A response with a whole head and sound chunks, behind interim ones (1xx but 101)."""

    fp: Any
    chunk_left: int | None

    def begin(self) -> None:
        lines = self.fp = _HeadLines(self.fp)
        try:
            super().begin()
        finally:
            if self.fp is lines:  # it is None where it was closed
                self.fp = lines.source
        assert_header_parsing(self.headers)  # else what follows a faulty line is lost unsaid
        lengths = ",".join(self.headers.get_all("Content-Length", [])).split(",")
        if len({length.strip() for length in lengths}) > 1:
            # urllib3 would find that out too late to close what is open.
            raise InvalidHeader("two lengths")

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        for _ in range(_MOST_INTERIM_ANSWERS):
            if not 101 < status < 200:
                return version, status, reason
            for _ in range(_LONGEST_INTERIM_FIELDS):
                if self.fp.readline(65537) in (b"\r\n", b"\n"):
                    break
            else:
                break
            version, status, reason = super()._read_status()  # type: ignore[misc]
        raise http.client.HTTPException("interim answers without end")

    def _get_chunk_left(self) -> int | None:
        if self.chunk_left == 0:
            if self._safe_read(2) != b"\r\n":  # type: ignore[attr-defined]
                raise http.client.IncompleteRead(b"")
            self.chunk_left = None
        left: int | None = super()._get_chunk_left()  # type: ignore[misc]
        return left

    def _read_next_chunk_size(self) -> int:
        match = _CHUNK_LINE.fullmatch(self.fp.readline(_LONGEST_CHUNK_LINE))
        if match is None:
            raise ValueError("a chunk's size is none")
        return int(match[1], 16)


_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
"""Source: RFC 9112 §7.1."""


class _Exact:
    """Mixed into urllib3's connections: exact targets, cancellable sockets."""

    response_class: Any = _StrictResponse
    sock: Any
    host: str
    port: int
    timeout: Any
    _dns_host: str

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        current = _current.get()
        if current is not None:
            current.canceller.attach(self.sock)
            url = current.target
        super().putrequest(method, url, *args, **kwargs)  # type: ignore[misc]

    def _new_conn(self) -> socket.socket:
        current = _current.get()
        if current is None:
            sock: socket.socket = super()._new_conn()  # type: ignore[misc]
            return sock
        try:
            return _connect(self._dns_host, self.port, self.timeout, current)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "the connection was not made in time") from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error  # type: ignore[arg-type]

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        current = _current.get()
        if current is not None:
            current.canceller.attach(self.sock)


class _ExactConnection(_Exact, HTTPConnection):
    pass


class _ExactTlsConnection(_Exact, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _ExactConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _ExactTlsConnection


class _ExactAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: a redirect is an answer like any other."""


def make_session() -> requests.Session:
    """Return a session for one thread at a time, holding at most one idle connection."""
    session = _Session()
    session.trust_env = False
    session.verify = _authorities() or True
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    adapter = _ExactAdapter(pool_connections=1, pool_maxsize=1)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _authorities() -> str | None:
    """Return the file or directory of authorities that the environment names.

    Raises:
        OriginUntrusted: it is not there.
    """
    path = os.environ.get("REQUESTS_CA_BUNDLE")
    if path and not Path(path).exists():
        raise OriginUntrusted(f"REQUESTS_CA_BUNDLE names {path}, and that is not there")
    return path


def exchange(
    session: requests.Session,
    prepared: requests.PreparedRequest,
    target: str,
    canceller: Canceller,
    timeout: tuple[float, float],
    may_connect: Callable[[str], bool] = lambda _address: True,
) -> requests.Response:
    """Send *prepared* with *target* on its request line; the body is left unread.

    Redirects are handed back, not followed. Raises what requests, urllib3 and
    the socket raise, and OriginRefused where *may_connect* allows no address.
    """
    token = _current.set(_Exchange(target, canceller, may_connect))
    try:
        return session.send(
            prepared, stream=True, allow_redirects=False, timeout=timeout, proxies={}
        )
    finally:
        _current.reset(token)
