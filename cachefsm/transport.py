"""requests, taught to send exactly what it is told and to let go when told to.

Three habits of the stack do not fit a cache, and each is undone here, at the
narrowest public seam there is:

- urllib3 rewrites the target it is given (``%2f`` becomes ``%2F``), which breaks
  signed URLs: :class:`_ExactConnection` puts the caller's target on the wire.
- ``http.client`` takes a 103 (Early Hints) for the answer, and the next user of
  the connection would get the real one: interim answers are skipped.
- A thread blocked in connect or receive can't be stopped by closing anything;
  shutting the socket down stops it at once: :class:`Canceller` knows the socket.

A session has no cookie jar, and reads no proxies and no netrc from the
environment: what one client sent must never travel with another's request.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from contextvars import ContextVar
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["Canceller", "exchange", "make_session"]

_LONGEST_INTERIM_FIELDS: Final = 100


class Canceller:
    """Stops one exchange from another thread, whatever it is blocked in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cancelled = False

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

    def _shut_down(self) -> None:
        if self._socket is not None:
            # Not SSLSocket.shutdown, which drops the TLS state that the blocked
            # thread is using. Not connected any more is as good as shut down.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Exchange:
    def __init__(self, target: str, canceller: Canceller) -> None:
        self.target = target
        self.canceller = canceller


_current: ContextVar[_Exchange | None] = ContextVar("cachefsm_exchange", default=None)


class _FinalResponse(http.client.HTTPResponse):
    """A response that skips interim ones (1xx but 101) before its status line."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        while 101 < status < 200:
            for _ in range(_LONGEST_INTERIM_FIELDS):
                if self.fp.readline(65537) in (b"\r\n", b"\n", b""):
                    break
            else:
                raise http.client.HTTPException("an interim answer without end")
            version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, status, reason


class _Exact:
    """Mixed into urllib3's connections: exact targets, cancellable sockets."""

    response_class: Any = _FinalResponse
    sock: Any

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        current = _current.get()
        if current is not None:
            current.canceller.attach(self.sock)
            url = current.target
        super().putrequest(method, url, *args, **kwargs)  # type: ignore[misc]

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        current = _current.get()
        if current is not None:
            current.canceller.attach(sock)
        return sock

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


def make_session() -> requests.Session:
    """Return a session for one thread at a time, holding at most one idle connection."""
    session = requests.Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    adapter = _ExactAdapter(pool_connections=1, pool_maxsize=1)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def exchange(
    session: requests.Session,
    prepared: requests.PreparedRequest,
    target: str,
    canceller: Canceller,
    timeout: tuple[float, float],
) -> requests.Response:
    """Send *prepared* with *target* on its request line; the body is left unread.

    Redirects are handed back, not followed. Raises what requests, urllib3 and
    the socket raise.
    """
    token = _current.set(_Exchange(target, canceller))
    try:
        return session.send(
            prepared, stream=True, allow_redirects=False, timeout=timeout, proxies={}
        )
    finally:
        _current.reset(token)
