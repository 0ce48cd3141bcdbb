"""What the proxy and its control routes need of WSGI, and no more.

Werkzeug's request and response objects decode the target and compute ranges and
preconditions in ways that do not fit a cache, so the environ is read here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from .errors import CacheError, OriginError, RangeNotSatisfiable, UsageError, WaitCancelled
from .semantics import ContentRange
from .urls import redact

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = [
    "Request",
    "Response",
    "error_fields",
    "error_status",
    "json_response",
    "plain",
    "text_response",
]

_LONGEST_BODY_BYTES: Final = 64 << 10


class Request:
    """A WSGI request: method, exact target, fields.

    ``fields`` keeps names as WSGI gives them back, lower-case; ``target`` is the
    request target as it came on the wire, where the server tells.
    """

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.target = _target(environ)
        self.path, _, self.query = self.target.partition("?")
        self.fields: tuple[tuple[str, str], ...] = tuple(
            (name[5:].replace("_", "-").lower(), value)
            for name, value in environ.items()
            if name.startswith("HTTP_")
        )
        if environ.get("CONTENT_TYPE"):
            self.fields += (("content-type", environ["CONTENT_TYPE"]),)

    @property
    def shown_target(self) -> str:
        """The target without its query, for logs."""
        return redact(self.target)

    def field(self, name: str) -> str | None:
        """Return a field's value, or None."""
        value = self.environ.get("HTTP_" + name.upper().replace("-", "_"))
        return value if isinstance(value, str) else None

    def json(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object; an absent one is empty.

        Raises:
            UsageError: it is not, or it is too long.
        """
        body = self._short_body()
        if not body:
            return {}
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UsageError("the request body is not JSON") from error
        if not isinstance(value, dict):
            raise UsageError("the request body is not a JSON object")
        return value

    def _short_body(self) -> bytes:
        """Return the body; one without a length where the server says that it ends."""
        told, body = self.environ.get("CONTENT_LENGTH"), b""
        try:
            length = int(told or 0)
        except ValueError as error:
            raise UsageError("the request's Content-Length is not a number") from error
        wanted = length
        if not told and self.environ.get("wsgi.input_terminated"):
            wanted = _LONGEST_BODY_BYTES + 1
        try:
            if length <= _LONGEST_BODY_BYTES:
                body = self.environ["wsgi.input"].read(wanted)
        except OSError as error:
            raise UsageError("the request body did not come whole") from error
        if max(length, len(body)) > _LONGEST_BODY_BYTES:
            raise UsageError(f"a request body may have {_LONGEST_BODY_BYTES} bytes")
        return body


class Response:
    """A status, fields, and a body that is closed whatever happens.

    *note* goes into the log line. *length* is announced where it is known, also
    for a HEAD, whose *body* is left out.
    """

    def __init__(
        self,
        status: int,
        fields: Iterable[tuple[str, str]] = (),
        body: Iterable[Any] = (),
        *,
        length: int | None = None,
        note: str = "",
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.status = int(status)
        self.note = note
        self.fields = list(fields)
        self._body = body
        self._length = length
        self._on_close: Callable[[], None] | None = on_close

    def start(self, request: Request, start_response: StartResponse) -> Iterable[Any]:
        """Give the head to the server and return the body."""
        if self._length is not None and self.status not in (204, 304):
            self.fields.append(("Content-Length", str(self._length)))
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        start_response(f"{self.status} {phrase}", self.fields)
        if request.method == "HEAD" or self.status in (204, 304):
            self.close()
            return ()
        return self

    def __iter__(self) -> Iterator[Any]:
        yield from self._body

    def close(self) -> None:
        """Let go of what the body holds; called by the server when it is done."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


def plain(status: int, line: str, fields: Iterable[tuple[str, str]] = ()) -> Response:
    """Return one line of text."""
    return text_response(
        f"{line}\n", "text/plain; charset=utf-8", status=status, fields=fields, note=line
    )


def text_response(
    text: str,
    content_type: str,
    *,
    status: int = 200,
    fields: Iterable[tuple[str, str]] = (),
    note: str = "",
) -> Response:
    """Return *text*, which is never cached, nor taken for what it isn't."""
    data = text.encode()
    return Response(
        status,
        [
            ("Content-Type", content_type),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
            *fields,
        ],
        [data],
        length=len(data),
        note=note,
    )


def json_response(
    value: Any, status: int = 200, fields: Iterable[tuple[str, str]] = ()
) -> Response:
    """Return *value* as JSON that is never cached; a list has a line for each item.

    Lines because a list may be long: the indented form takes four times as long.
    """
    if isinstance(value, list) and value:
        text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    else:
        text = json.dumps(value, indent=2)
    return text_response(f"{text}\n", "application/json", status=status, fields=fields)


def error_status(error: CacheError) -> int:
    """Return the status of an answer that tells of *error*.

    A wait is cancelled when the cache closes, or for a client that has left; should
    there be somebody to read the answer after all, it is worth trying again.
    """
    return 503 if isinstance(error, WaitCancelled) else error.status_hint


def error_fields(error: CacheError) -> list[tuple[str, str]]:
    """Return what an answer that tells of *error* says in fields.

    Source: RFC 9110 §10.2.3, §15.5.17.
    """
    fields = []
    if isinstance(error, RangeNotSatisfiable):
        fields.append(("Content-Range", str(ContentRange(None, error.complete_length))))
    if error_status(error) in (429, 502, 503, 504):
        wished = error.retry_after_s if isinstance(error, OriginError) else None
        fields.append(("Retry-After", str(max(1, math.ceil(wished or 2)))))
    return fields


def _target(environ: WSGIEnvironment) -> str:
    for name in ("REQUEST_URI", "RAW_URI"):
        target = environ.get(name)
        if isinstance(target, str) and target.startswith("/"):
            return target
    # PEP 3333 keeps only the decoded path, as Latin-1 text of its bytes; the
    # server gave nothing better, so this is the closest there is.
    path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1")
    query = environ.get("QUERY_STRING", "")
    return quote(path, safe="/~!$&'()*+,;=:@") + (f"?{query}" if query else "")
