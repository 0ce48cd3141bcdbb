"""Passes a request on to the origin and its answer back, without storing anything.

For methods other than GET and HEAD, on mounts that pass them. The answer keeps its status,
its body, and its fields but for those about the connection. A success may outdate what is
stored (RFC 9111 §4.4); the caller takes care of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from .bodies import Relayed
from .errors import OriginError, UsageError, WaitCancelled
from .fields import Fields, value_of, without
from .origin import OriginClient
from .transport import Canceller
from .urls import OriginUrl, resolve
from .web import Request, Response

__all__ = ["outdated_by", "relay"]

_UPLOAD_PIECE_BYTES: Final = 64 << 10
_LEFT: Final = "the client has left"


def relay(
    request: Request,
    url: OriginUrl,
    fields: Fields,
    *,
    origin: OriginClient,
    watch: Callable[[Callable[[], None]], AbstractContextManager[object]],
    rewrite: Callable[[Fields], Fields],
    via: str,
) -> tuple[Response, Relayed]:
    """Return the response for the client, and the origin's answer that it was made from.

    *watch* is given a function that ends the exchange, to be called when the client leaves.
    *rewrite* returns the answer's fields as the client gets them.

    Raises:
        OriginError: there was no answer, or its framing cannot be trusted.
        WaitCancelled: the client has left.
    """
    canceller = Canceller()
    with ExitStack() as stack:
        stack.enter_context(watch(canceller.cancel))
        body = _Body(request) if _has_body(request) else None
        try:
            answer = stack.enter_context(
                origin.relay(request.method, url, fields, body, canceller=canceller)
            )
        except OriginError as error:
            if canceller.is_cancelled:  # which is why that broke
                raise WaitCancelled(_LEFT) from error
            raise
        passed = rewrite(without(answer.fields, {"content-length"}))
        status = f"cachefsm; fwd=method; fwd-status={answer.status}"
        response = Response(
            answer.status,
            [*passed, ("Via", via), ("Cache-Status", status)],
            answer.pieces(),
            length=answer.length,
            note=status,
            on_close=stack.pop_all().close,
        )
    return response, answer


def outdated_by(answer: Relayed, url: OriginUrl) -> list[OriginUrl]:
    """Return the URLs whose stored responses a successful unsafe request makes outdated.

    These are its own URL, and those of the same origin in the answer's Location and
    Content-Location. Source: RFC 9111 §4.4.
    """
    named = [value_of(answer.fields, name) for name in ("Location", "Content-Location")]
    found = [url]
    for text in filter(None, named):
        try:
            other = resolve(url, text, "latin-1")
        except UsageError:
            continue  # it names nothing that could be stored here
        if other.origin == url.origin:
            found.append(other)
    return found


def _has_body(request: Request) -> bool:
    """Say whether a body follows the request's head. Source: RFC 9112 §6.3."""
    environ = request.environ
    return bool(environ.get("CONTENT_LENGTH")) or "HTTP_TRANSFER_ENCODING" in environ


class _Body:
    """The request's body in pieces; with its length, where the client told it."""

    def __init__(self, request: Request) -> None:
        source = request.environ["wsgi.input"]
        # What has arrived is passed on, where the server can tell.
        self._read: Callable[[int], bytes] = getattr(source, "read1", source.read)
        text = request.environ.get("CONTENT_LENGTH") or ""
        self.length = int(text) if text.isdigit() else None

    def __iter__(self) -> Iterator[bytes]:
        left = self.length
        while left is None or left > 0:
            size = _UPLOAD_PIECE_BYTES if left is None else min(left, _UPLOAD_PIECE_BYTES)
            try:
                data = self._read(size)
            except OSError as error:  # no fault of the origin's
                raise WaitCancelled(_LEFT) from error
            if not data:
                return
            if left is not None:
                left -= len(data)
            yield data
