"""A transport adapter, so that a plain ``requests`` session reads through the cache.

    session.mount("https://", CacheAdapter(cache))

GET and HEAD are answered as the proxy answers its clients, without a socket in
between: statuses, ranges, preconditions, freshness and ``Vary`` included, and what was
fetched with one set of credentials is served only to requests with the same. Requests
that the cache could not answer exactly go past it, to the ordinary adapter: other
methods, and requests with a body, cookies, a ``Host`` field, a client certificate,
another way to verify the origin's, or a proxy.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3 import HTTPHeaderDict, HTTPResponse, Timeout

from .cache import Cache
from .errors import (
    CacheError,
    NotStored,
    OriginRefused,
    OriginStatus,
    OriginTimeout,
    UsageError,
    WaitTimeout,
)
from .proxy import create_app
from .serving import error_response
from .units import patience_s
from .urls import OriginUrl, parse_url
from .web import Request

__all__ = ["CacheAdapter"]

BUFFER_BYTES: Final = 256 << 10

_PAST: Final = frozenset({"cookie", "host"})
"""Request fields that the cache does not pass on, although the answer may depend on them."""


class CacheAdapter(HTTPAdapter):
    """Answers a session's GET and HEAD from *cache*, which stays the caller's to close.

    The cache follows redirects, so the response has no history. The read timeout counts;
    for connecting, the cache's own does. As with the ordinary adapter, whatever the origin
    answers is a response; no answer raises ``ConnectionError`` or ``ReadTimeout``, and a
    body that breaks off ``ChunkedEncodingError``. Cookies that an origin sets are left out.

    Other arguments are the ordinary adapter's, for requests that go past the cache.
    """

    def __init__(self, cache: Cache, **options: Any) -> None:
        super().__init__(**options)
        self._cache = cache
        self._app = create_app(cache)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Return the response to *request*; see :class:`CacheAdapter`."""
        url = _cacheable_url(request, verify, cert, proxies)
        if url is None:
            return super().send(request, stream, timeout, verify, cert, proxies)
        response = self.build_response(request, self._answer(request, url, timeout))
        if not stream:
            response.content  # noqa: B018 - reads all of it, and lets the entry go
        return response

    def close(self) -> None:
        """Close what was opened for requests that went past the cache."""
        super().close()
        self._app.close()

    def _answer(
        self, request: requests.PreparedRequest, url: OriginUrl, timeout: Any
    ) -> HTTPResponse:
        asked = Request(_environ(request, _read_timeout_s(timeout)))
        try:
            answer = self._app.answer_for(asked, url)
        except CacheError as error:
            _raise_unless_said(error, request)
            answer = error_response(error, via=self._cache.via)
        heads: list[tuple[str, list[tuple[str, str]]]] = []
        pieces = answer.start(asked, lambda *head: heads.append(head))  # type: ignore[arg-type]
        status, fields = heads[0]
        code, _, reason = status.partition(" ")
        return HTTPResponse(
            body=_Body(pieces),
            headers=HTTPHeaderDict(fields),
            status=int(code),
            version=11,
            reason=reason,
            preload_content=False,
            request_method=request.method,
            request_url=request.url,
        )


class _Body(io.BufferedReader):
    """A response's body as a file; closing it, or coming to its end, lets the entry go."""

    def __init__(self, pieces: Any) -> None:
        self._pieces = _Pieces(pieces)
        super().__init__(self._pieces, BUFFER_BYTES)

    def isclosed(self) -> bool:
        """Return whether all has been read: urllib3 asks, as of http.client's responses."""
        return self.closed or self._pieces.ended


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Any) -> None:
        super().__init__()
        self.ended = False
        self._pieces: Iterator[bytes] = iter(pieces)
        self._release: Callable[[], None] = getattr(pieces, "close", lambda: None)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_io():
            while not self._left:
                piece = next(self._pieces, None)
                if piece is None:
                    self.ended = True
                    self._release()
                    return 0
                self._left = memoryview(piece)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._release()
        super().close()


def _cacheable_url(
    request: requests.PreparedRequest, verify: bool | str, cert: Any, proxies: Any
) -> OriginUrl | None:
    """Return what to ask the cache for, or None if it is not asked."""
    if request.method not in ("GET", "HEAD") or request.body or request.url is None:
        return None
    fields: Mapping[str, object] = request.headers
    if any(name.lower() in _PAST or type(value) is not str for name, value in fields.items()):
        return None
    try:
        url = parse_url(request.url)
    except UsageError:
        return None
    secure = url.scheme == "https"
    if (secure and (verify is not True or cert)) or select_proxy(request.url, proxies):
        return None
    # What userinfo there is, requests has put into a field already.
    return url._replace(userinfo=None)


def _environ(request: requests.PreparedRequest, patience_s: float | None) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": request.method,
        "REQUEST_URI": "/",
        "cachefsm.patience_s": patience_s,
        **{
            f"HTTP_{name.upper().replace('-', '_')}": value
            for name, value in request.headers.items()
        },
    }


def _read_timeout_s(timeout: Any) -> float | None:
    """Return for how long to wait for bytes; None for as long as the cache does.

    Raises:
        ValueError: that makes no sense, to the ordinary adapter neither.
    """
    if isinstance(timeout, Timeout):
        asked = timeout.clone()
    else:
        both = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        if len(both) != 2:
            raise ValueError(f"invalid timeout {timeout}: give (connect, read), or one number")
        asked = Timeout(connect=both[0], read=both[1])
    asked.start_connect()  # which takes no time here: all of a total is left
    return patience_s(asked.read_timeout)


def _raise_unless_said(error: CacheError, request: requests.PreparedRequest) -> None:
    """Raise the exception that users of requests expect, unless *error* stands for an answer."""
    if isinstance(error, WaitTimeout | OriginTimeout):
        raise requests.ReadTimeout(str(error), request=request) from error
    answered = isinstance(error, OriginStatus | NotStored) or error.status_hint < 500
    if not answered or isinstance(error, OriginRefused):
        raise requests.ConnectionError(str(error), request=request) from error


@contextmanager
def _as_io() -> Iterator[None]:
    """Turn errors in the block into those that urllib3, which reads this, understands."""
    try:
        yield
    except (WaitTimeout, OriginTimeout) as error:
        raise TimeoutError(str(error)) from error
    except CacheError as error:
        raise ConnectionError(str(error)) from error
