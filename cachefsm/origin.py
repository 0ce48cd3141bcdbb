"""Requests to origins: one range asked for, one acceptable answer or an error.

The downloader calls :meth:`OriginClient.fetch` and reads pieces. What ``requests``,
``urllib3`` and the socket raise becomes an OriginError here and nowhere else.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final
from urllib.parse import unquote, urljoin

import requests
from urllib3.exceptions import HTTPError, InvalidHeader, ReadTimeoutError

from .acceptance import Answer, read_answer
from .errors import (
    BadAnswer,
    OriginError,
    OriginRefused,
    OriginTimeout,
    OriginUnreachable,
    UsageError,
)
from .fields import value_of
from .ranges import END, ByteRange
from .representation import Representation
from .semantics import format_range
from .transport import Canceller, MayConnect, exchange, make_session
from .urls import OriginUrl, parse_url

__all__ = ["Fetch", "OriginClient", "OriginOptions"]

PIECE_BYTES: Final = 1 << 20
"""The most one read returns. It returns what has arrived, so a slow origin's
first bytes come at once; for a fast one 1 MiB moves 1.9 times what 64 KiB does."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class OriginOptions:
    """How origins are spoken to; times in seconds.

    ``may_visit`` decides on every hop, the first one included, and ``may_connect``
    on every address that a name leads to; ``fields_for`` gives an origin's own
    request fields, credentials among them.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 20.0
    redirects: int = 10
    user_agent: str = "cachefsm"
    may_visit: Callable[[OriginUrl], bool] = lambda _url: True
    may_connect: MayConnect = lambda _host, _address: True
    fields_for: Callable[[OriginUrl], Mapping[str, str]] = lambda _url: {}


class Fetch:
    """One answer whose body is being read; a context manager that always lets go."""

    def __init__(
        self,
        response: requests.Response,
        answer: Answer,
        on_read: Callable[[int], None],
        on_close: Callable[[bool], None],
    ):
        self.answer = answer
        self._response = response
        self._on_read = on_read
        self._on_close: Callable[[bool], None] | None = on_close
        self._position = answer.start
        self._ended = False

    def __enter__(self) -> Fetch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self._ended)

    def read(self) -> bytes:
        """Return the next bytes as soon as there are any; b"" at the proper end.

        Raises:
            OriginError: the connection broke, stalled, or ended early.
        """
        with _translated():
            if self._position == self.answer.stop:
                if self._response.raw.length_remaining == 0:
                    # Nothing is left to wait for; this lets urllib3 see it, so that
                    # the connection can be used again.
                    self._ended = not self._response.raw.read(1, decode_content=False)
                return b""
            size = min(PIECE_BYTES, self.answer.stop - self._position)
            data: bytes = self._response.raw.read1(size, decode_content=False)
        self._position += len(data)
        self._on_read(len(data))
        if not data:
            if self.answer.stop != END:
                raise OriginUnreachable(
                    f"the body ended at {self._position}, {self.answer.stop} was promised"
                )
            self._ended = True
        return data


class OriginClient:
    """Asks origins for ranges; thread-safe. Idle connections are kept for reuse."""

    def __init__(
        self, options: OriginOptions | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._options = options or OriginOptions()
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: defaultdict[str, list[requests.Session]] = defaultdict(list)
        self._received_bytes = 0
        self._closed = False

    @property
    def received_bytes(self) -> int:
        """How many bytes of content came from all origins, whatever became of them."""
        with self._lock:
            return self._received_bytes

    def close(self) -> None:
        """Close the idle connections and keep none from now on."""
        with self._lock:
            self._closed = True
            sessions = [session for idle in self._idle.values() for session in idle]
            self._idle.clear()
        for session in sessions:
            session.close()

    def fetch(
        self,
        url: OriginUrl,
        asked: ByteRange | None,
        *,
        held: Representation | None,
        canceller: Canceller,
    ) -> Fetch:
        """Ask for *asked* (END means to the end) and return the accepted answer.

        None asks for the whole without a Range field.

        *held* is what is known of the representation whose bytes are stored: its
        strong validator goes out as ``If-Range``, so that an origin with another
        version answers 200 with that instead.

        Raises:
            OriginError: see :mod:`cachefsm.acceptance` for what is not accepted.
        """
        validator = held.validator.strong if held is not None else None
        fields = {
            "Host": "",  # first on the wire; filled in per hop
            "User-Agent": self._options.user_agent,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        if asked is not None:
            fields["Range"] = format_range(asked)
        if validator is not None:
            fields["If-Range"] = validator
        for hop in range(self._options.redirects + 1):
            if not self._options.may_visit(url):
                raise OriginRefused(f"{url.origin} is not an origin that this cache may visit")
            session, response = self._send(url, fields, canceller, follows=hop > 0)
            keep = False
            try:
                if response.status_code in _REDIRECTS:
                    url = self._next_hop(url, response)
                    continue
                answer = read_answer(
                    response.status_code,
                    list(response.raw.headers.items()),
                    asked=asked or ByteRange(0, END),
                    held=held,
                    sent_if_range=validator is not None,
                    now_s=self._clock(),
                    http_version=response.raw.version,
                )
                keep = True
            finally:
                if not keep:
                    _discard(session, response)
            finish = partial(self._finish, url.origin, session, response)
            return Fetch(response, answer, self._received, finish)
        raise OriginError(f"more than {self._options.redirects} redirects")

    def _send(
        self, url: OriginUrl, fields: dict[str, str], canceller: Canceller, *, follows: bool
    ) -> tuple[requests.Session, requests.Response]:
        fields = {**fields, "Host": url.authority, **self._options.fields_for(url)}
        if url.userinfo is not None and not follows:
            fields.setdefault("Authorization", _basic(url.userinfo))
        prepared = requests.Request("GET", f"{url.origin}/", headers=fields).prepare()
        session = self._checkout(url.origin)
        try:
            with _translated():
                timeout = (self._options.connect_timeout_s, self._options.read_timeout_s)
                return session, exchange(
                    session,
                    prepared,
                    url.target,
                    canceller,
                    timeout,
                    self._options.may_connect,
                )
        except BaseException:
            session.close()
            raise

    def _next_hop(self, url: OriginUrl, response: requests.Response) -> OriginUrl:
        location = value_of(list(response.raw.headers.items()), "Location")
        if location is None:
            raise OriginError(f"the origin answered {response.status_code} without a Location")
        try:
            return parse_url(urljoin(str(url), location))
        except (UsageError, ValueError) as error:
            raise OriginRefused("the origin redirects to what is no http(s) URL") from error

    def _checkout(self, origin: str) -> requests.Session:
        with self._lock:
            idle = self._idle[origin]
            return idle.pop() if idle else make_session()

    def _received(self, size_bytes: int) -> None:
        with self._lock:
            self._received_bytes += size_bytes

    def _finish(
        self, origin: str, session: requests.Session, response: requests.Response, reuse: bool
    ) -> None:
        # Only a connection whose answer was read cleanly to its end is in step.
        if reuse:
            with self._lock:
                if not self._closed and len(self._idle[origin]) < 4:
                    self._idle[origin].append(session)
                    return
        _discard(session, response)


def _discard(session: requests.Session, response: requests.Response) -> None:
    response.close()
    session.close()


def _basic(userinfo: str) -> str:
    name, _, password = userinfo.partition(":")
    token = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode())
    return f"Basic {token.decode('ascii')}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (InvalidHeader, requests.exceptions.InvalidHeader) as error:
        raise BadAnswer("the origin sent a field that makes no sense") from error
    except (TimeoutError, requests.Timeout, ReadTimeoutError) as error:
        raise OriginTimeout(f"the origin was silent for too long ({_kind(error)})") from error
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        raise OriginUnreachable(f"the connection to the origin broke ({_kind(error)})") from error


def _kind(error: BaseException) -> str:
    """Name an error without its text, which may quote the URL and its query."""
    inner: BaseException = error
    while True:
        reason = getattr(inner, "reason", None) or next(
            (arg for arg in inner.args if isinstance(arg, BaseException)), None
        )
        if not isinstance(reason, BaseException):
            break
        inner = reason
    # "Connection refused" and "Name or service not known" are only the cause of
    # what urllib3 makes of them.
    for found in (inner, inner.__cause__):
        text = getattr(found, "strerror", None)
        if isinstance(text, str):
            return text
    return type(inner).__name__
