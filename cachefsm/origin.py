"""Requests to origins: one range asked for, one acceptable answer or an error.

The downloader calls :meth:`OriginClient.fetch` and reads pieces. What ``requests``,
``urllib3`` and the socket raise becomes an OriginError here; see :mod:`cachefsm.mishaps`.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Protocol, cast
from urllib.parse import unquote

import requests
from urllib3.util import SKIP_HEADER

from .acceptance import Answer, read_answer, read_length
from .bodies import PIECE_BYTES, Begun, Relayed, RequestBody, begin_body
from .errors import (
    BadAnswer,
    NotModified,
    OriginError,
    OriginRefused,
    OriginStatus,
    OriginUnreachable,
    UnsatisfiedByOrigin,
    UsageError,
)
from .fields import Fields, end_to_end, value_of, values_of
from .mishaps import translated
from .ranges import END, ByteRange
from .representation import Representation
from .semantics import format_range
from .throttle import Pace, Throttle
from .transport import Canceller, exchange, make_session
from .urls import OriginUrl, resolve

__all__ = ["Fetch", "Fetches", "OriginClient", "OriginOptions", "Sent"]

IDLE_PER_ORIGIN: Final = 4
IDLE_MOST: Final = 32
"""How many idle connections are kept for reuse, to all origins together: each costs a
descriptor, and some programs visit ever more origins."""

_URLLIB3S_OWN: Final = ("Accept-Encoding", "User-Agent")
"""What urllib3 would say where the client says nothing."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class OriginOptions:
    """How origins are spoken to; times in seconds.

    The body of an answer that is no file (a 404, say) is kept if it comes within
    ``short_body_s``. ``may_visit`` decides on the URL of every hop of redirects, the first
    one included, and ``may_connect`` on every address that a name resolves to.
    ``fields_for`` returns request fields, such as credentials, that an origin is to get.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 20.0
    short_body_s: float = 5.0
    redirects: int = 10
    user_agent: str = "cachefsm"
    may_visit: Callable[[OriginUrl], bool] = lambda _url: True
    may_connect: Callable[[str, str], bool] = lambda _host, _address: True
    fields_for: Callable[[OriginUrl], Mapping[str, str]] = lambda _url: {}


@dataclass(frozen=True, slots=True)
class Sent:
    """The request fields and options of one request, but for those that say which bytes.

    ``forwarded`` are a client's fields. ``secrets`` go only to the origin of the URL itself,
    not to origins that it redirects to. ``conditions`` ask whether what is stored is
    current. With ``hands_on`` redirects are not followed; with ``keeps_open`` the error of
    an answer that is no file has its body open, however long that is.
    """

    forwarded: Fields = ()
    secrets: Fields = ()
    conditions: Fields = ()
    hands_on: bool = False
    keeps_open: bool = False


_NOTHING_ELSE: Final = Sent()


class Fetch:
    """One answer whose body is being read; a context manager that always lets go."""

    def __init__(
        self,
        response: requests.Response,
        answer: Answer,
        on_read: Callable[[int], None],
        on_close: Callable[[bool], None],
        cancel: Callable[[], None],
        pace: Pace,
    ):
        self.answer = answer
        self.pace = pace
        """Delays reads so that the rate limits are kept."""
        self.cancel = cancel
        """Breaks the transfer off; called from another thread."""
        self.fields = end_to_end(list(response.raw.headers.items()))
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
        self.close()

    def close(self) -> None:
        """Let the connection go, for another request if the body was read to its end."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self._ended)

    def read(self) -> bytes:
        """Return the next bytes as soon as there are any; b"" at the proper end.

        Raises:
            OriginError: the connection broke, stalled, or ended early.
        """
        with translated():
            if self._position == self.answer.stop:
                if self._response.raw.length_remaining == 0:
                    # Nothing is left to wait for; this lets urllib3 see it, so that
                    # the connection can be used again.
                    self._ended = not self._response.raw.read(1, decode_content=False)
                return b""
            size = self.pace.allow(min(PIECE_BYTES, self.answer.stop - self._position))
            data: bytes = self._response.raw.read1(size, decode_content=False)
        self.pace.came(len(data))
        self._position += len(data)
        self._on_read(len(data))
        if not data:
            if self.answer.stop != END:
                raise OriginUnreachable(
                    f"the body ended at {self._position}, {self.answer.stop} was promised"
                )
            self._ended = True
        return data


class Fetches(Protocol):
    """The interface through which files are fetched; see :meth:`OriginClient.fetch`."""

    def fetch(
        self,
        url: OriginUrl,
        asked: ByteRange | None,
        *,
        held: Representation | None,
        canceller: Canceller,
        sent: Sent,
    ) -> Fetch: ...


class OriginClient:
    """Asks origins for ranges; thread-safe. Idle connections are kept for reuse."""

    def __init__(
        self,
        options: OriginOptions | None = None,
        clock: Callable[[], float] = time.time,
        throttle: Throttle | None = None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options or OriginOptions()
        self._ticks = ticks
        self._throttle = throttle or Throttle()
        self.name = f"cachefsm-{secrets.token_hex(4)}"
        """The name in our Via field, by which a request that comes back to us is recognised."""
        self.via = f"1.1 {self.name}"
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[tuple[str, requests.Session]] = []  # by origin, the last used comes last
        self._received_bytes = 0
        self._closed = False

    @property
    def received_bytes(self) -> int:
        """How many bytes of content were received from all origins, stored or not."""
        with self._lock:
            return self._received_bytes

    def close(self) -> None:
        """Close the idle connections and keep none from now on."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, session in idle:
            session.close()

    def fetch(
        self,
        url: OriginUrl,
        asked: ByteRange | None,
        *,
        held: Representation | None,
        canceller: Canceller,
        sent: Sent = _NOTHING_ELSE,
    ) -> Fetch:
        """Ask for the range *asked* and return the accepted answer.

        A stop of END means to the end; with None the whole file is asked for, without a
        Range field. *held* is the representation whose bytes are stored: its strong
        validator is sent as ``If-Range``, so that an origin with another version answers
        with a 200 and that version.

        Raises:
            OriginError: see :mod:`cachefsm.acceptance` for what is not accepted.
        """
        validator = held.validator.strong if held is not None else None
        fields = self._fields(sent)
        if asked is not None:
            fields["Range"] = format_range(asked)
        if validator is not None:
            fields["If-Range"] = validator
        first = url
        for _ in range(self._options.redirects + 1):
            if not self._options.may_visit(url):
                raise OriginRefused(f"{url.origin} is not an origin that this cache may visit")
            own = _secrets(first, sent) if url.origin == first.origin else {}
            session, response = self._send(url, {**fields, **own}, canceller)
            keep = False
            try:
                if response.status_code in _REDIRECTS and not sent.hands_on:
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
            except OriginStatus as refusal:
                keep = self._keep_body(refusal, url, session, response, canceller, sent)
                raise
            finally:
                if not keep:
                    _discard(session, response)
            finish = partial(self._finish, url.origin, session, response, canceller)
            pace = self._pace(url, canceller)
            return Fetch(response, answer, self._received, finish, canceller.cancel, pace)
        raise OriginError(f"more than {self._options.redirects} redirects")

    @contextmanager
    def relay(
        self,
        method: str,
        url: OriginUrl,
        fields: Fields,
        body: RequestBody | None,
        *,
        canceller: Canceller,
    ) -> Iterator[Relayed]:
        """Pass a request on unchanged and return its answer; redirects are not followed.

        Raises:
            OriginError: there was no answer, or its framing cannot be trusted.
        """
        if not self._options.may_visit(url):
            raise OriginRefused(f"{url.origin} is not an origin that this cache may visit")
        named = {"Host": url.authority, **dict(fields), **self._options.fields_for(url)}
        named["Via"] = self._via_of(fields)
        present = {name.lower() for name in named}
        named.update({name: SKIP_HEADER for name in _URLLIB3S_OWN if name.lower() not in present})
        prepared = requests.Request(method, f"{url.origin}/", headers=named).prepare()
        prepared.method = method  # in capitals as it came
        prepared.headers.pop("Content-Length", None)
        if body is not None:
            prepared.body = cast(Any, iter(body))  # which requests sends piece by piece
            if body.length is not None:
                prepared.headers["Content-Length"] = str(body.length)
        session, response = self._exchange(prepared, url, canceller)
        try:
            if response.status_code < HTTPStatus.OK:
                raise BadAnswer(f"the origin answered {response.status_code}")
            told = list(response.raw.headers.items())
            length = read_length(method, response.status_code, told, response.raw.version)
            yield self._relayed(url, session, response, canceller, Begun(length))
        finally:
            _discard(session, response)

    def _keep_body(
        self,
        refusal: OriginStatus,
        url: OriginUrl,
        session: requests.Session,
        response: requests.Response,
        canceller: Canceller,
        sent: Sent,
    ) -> bool:
        """Read or open the body of *refusal*; return True if the connection was dealt with."""
        begun = begin_body(response, self._ticks, self._options.short_body_s)
        if begun is None:
            return False
        if begun.is_whole:
            refusal.body = begun.data
            # One that was refused as one too many would still be so, if the next try reused it.
            reuse = not refusal.says_too_many
            self._finish(url.origin, session, response, canceller, reuse)
            return True
        # A 304 or 416 is about the condition or the part: others get another answer.
        refusal.is_long = not isinstance(refusal, (NotModified, UnsatisfiedByOrigin))
        if not (refusal.is_long and sent.keeps_open):
            return False
        refusal.open = self._relayed(url, session, response, canceller, begun)
        return True

    def _relayed(
        self,
        url: OriginUrl,
        session: requests.Session,
        response: requests.Response,
        canceller: Canceller,
        begun: Begun,
    ) -> Relayed:
        return Relayed(
            response.status_code,
            end_to_end(list(response.raw.headers.items())),
            response,
            self._pace(url, canceller),
            begun=begun,
            cancel=canceller.cancel,
            on_close=partial(_discard, session, response),
        )

    def _pace(self, url: OriginUrl, canceller: Canceller) -> Pace:
        canceller.then = self._throttle.wake
        return Pace(self._throttle, url.origin, lambda: canceller.is_cancelled)

    def _fields(self, sent: Sent) -> dict[str, str]:
        """Return what every hop of a request carries; Host is first on the wire, as is usual."""
        fields = {"Host": "", "User-Agent": self._options.user_agent, "Accept": "*/*", "Via": ""}
        for name, value in (*sent.forwarded, *sent.conditions):
            known = next((key for key in fields if key.lower() == name.lower()), name)
            fields[known] = value
        fields["Accept-Encoding"] = "identity"
        fields["Via"] = self._via_of(sent.forwarded)
        return fields

    def _via_of(self, passed: Fields) -> str:
        """Return the Via of a request: the proxies that it came by, and this. RFC 9110 §7.6.3."""
        return ", ".join([*values_of(passed, "Via"), self.via])

    def _send(
        self, url: OriginUrl, fields: dict[str, str], canceller: Canceller
    ) -> tuple[requests.Session, requests.Response]:
        fields = {**fields, "Host": url.authority, **self._options.fields_for(url)}
        prepared = requests.Request("GET", f"{url.origin}/", headers=fields).prepare()
        return self._exchange(prepared, url, canceller)

    def _exchange(
        self, prepared: requests.PreparedRequest, url: OriginUrl, canceller: Canceller
    ) -> tuple[requests.Session, requests.Response]:
        session = self._checkout(url.origin)
        try:
            with translated():
                timeout = (self._options.connect_timeout_s, self._options.read_timeout_s)
                return session, exchange(
                    session,
                    prepared,
                    url.target,
                    canceller,
                    timeout,
                    # The host as the URL names it, by which it was allowed: urllib3 has its own way
                    # to write it.
                    partial(self._options.may_connect, url.host),
                )
        except BaseException:
            session.close()
            raise

    def _next_hop(self, url: OriginUrl, response: requests.Response) -> OriginUrl:
        location = value_of(list(response.raw.headers.items()), "Location")
        if location is None:
            raise OriginError(f"the origin answered {response.status_code} without a Location")
        try:
            return resolve(url, location, "latin-1")
        except UsageError as error:
            raise OriginRefused("the origin redirects to what is no http(s) URL") from error

    def _checkout(self, origin: str) -> requests.Session:
        with self._lock:
            for place in range(len(self._idle) - 1, -1, -1):
                if self._idle[place][0] == origin:
                    return self._idle.pop(place)[1]
        return make_session()

    def _received(self, size_bytes: int) -> None:
        with self._lock:
            self._received_bytes += size_bytes

    def _finish(
        self,
        origin: str,
        session: requests.Session,
        response: requests.Response,
        canceller: Canceller,
        reuse: bool,
    ) -> None:
        # Whoever cancels from now on must not end what the connection is used for next.
        canceller.attach(None)
        # Only one whose answer was read cleanly to its end is in step.
        if not (reuse and self._keep(origin, session)):
            _discard(session, response)

    def _keep(self, origin: str, session: requests.Session) -> bool:
        """Keep an idle connection; if there are too many, close the one that was idle longest.

        Returns False if it may not be kept.
        """
        with self._lock:
            same = sum(other == origin for other, _ in self._idle)
            if self._closed or same >= IDLE_PER_ORIGIN:
                return False
            self._idle.append((origin, session))
            _, longest = self._idle.pop(0) if len(self._idle) > IDLE_MOST else (None, None)
        if longest is not None:
            longest.close()
        return True


def _discard(session: requests.Session, response: requests.Response) -> None:
    response.close()
    session.close()


def _secrets(url: OriginUrl, sent: Sent) -> dict[str, str]:
    """Return the credentials of a request for *url*; those in the URL itself come last."""
    own = dict(sent.secrets)
    if url.userinfo is not None and not any(name.lower() == "authorization" for name in own):
        own["Authorization"] = _basic(url.userinfo)
    return own


def _basic(userinfo: str) -> str:
    name, _, password = userinfo.partition(":")
    token = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode())
    return f"Basic {token.decode('ascii')}"
