"""The control routes: what ``/-/`` answers, for people's tools and for the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule

from . import dashboard
from .access import AllowList, is_same_origin
from .buckets import RateLimits
from .cache import Cache
from .display import show_list
from .errors import CacheError, IllegalMove, UsageError
from .eventstream import event_response
from .handle import Entry, parse_priority
from .metrics import CONTENT_TYPE, render
from .parts import Parts, wanted_parts
from .ranges import END
from .tokens import CHALLENGES, carries
from .units import parse_duration
from .urls import parse_url
from .web import (
    Request,
    Response,
    error_fields,
    error_status,
    json_response,
    plain,
    text_response,
)

__all__ = ["Control"]

_ORDERS: Final[dict[str, Callable[[Entry], None]]] = {
    "pause": Entry.pause,
    "resume": Entry.resume,
    "cancel": Entry.cancel,
    "retry": Entry.retry,
    "pin": Entry.pin,
    "unpin": Entry.unpin,
}


class Control:
    """Answers requests below ``/-/``; *serve* answers a GET from an entry's content.

    Who holds the token is the person that runs the cache and may name any
    origin. Without it, on loopback, entries may be looked at and ordered about,
    but only origins that clients may name anyway can be added.
    """

    def __init__(
        self,
        cache: Cache,
        serve: Callable[[Request, Callable[[], int]], Response],
        allowed: AllowList,
        token: str | None,
        *,
        require_token: bool,
    ) -> None:
        self._cache = cache
        self._serve = serve
        self._allowed = allowed
        self._token = token
        self._require_token = require_token

    def answer(self, request: Request) -> Response:
        """Return the response to a request whose ``Host`` has been checked."""
        if request.path == "/-/health":
            return json_response({"status": "ok"})
        if self._require_token and not self._has_token(request):
            return plain(
                HTTPStatus.UNAUTHORIZED,
                "control needs the token that was printed at the start",
                CHALLENGES,
            )
        if request.method not in ("GET", "HEAD") and not is_same_origin(
            dict(request.fields), request.field("Host") or ""
        ):
            return plain(HTTPStatus.FORBIDDEN, "another site's page may not do this")
        try:
            return self._route(request)
        except IllegalMove as error:
            told = {"error": str(error), "event": error.event, "state": error.state}
            return json_response({**told, "possible": list(error.possible)}, HTTPStatus.CONFLICT)
        except CacheError as error:
            return json_response({"error": str(error)}, error_status(error), error_fields(error))

    def _route(self, request: Request) -> Response:
        routes = _ROUTES.bind("")
        try:
            handler, values = routes.match(f"/{request.path.strip('/')}", request.method)
        except MethodNotAllowed as error:
            allowed = ", ".join(sorted(error.valid_methods or ()))
            return json_response(
                {"error": f"{request.path} does not take {request.method}, but {allowed}"},
                HTTPStatus.METHOD_NOT_ALLOWED,
                [("Allow", allowed)],
            )
        except NotFound:
            return json_response({"error": f"there is no {request.path}"}, HTTPStatus.NOT_FOUND)
        response: Response = handler(self, request, **values)
        return response

    def _list(self, request: Request) -> Response:
        """Return every entry, a page of them, or those of some URLs.

        The URLs are in full, as no description can be found by what it shows.
        """
        query = parse_qs(request.query)
        if "url" in query:
            return json_response([self._cache.find(url).describe() for url in query["url"]])
        after, limit = _number(query, "after"), _number(query, "limit")
        return json_response(self._cache.describe_all(after=after or 0, limit=limit))

    def _overview(self, request: Request) -> Response:
        """Return the entries as a page for browsers, and as a table for others."""
        if "text/html" not in (request.field("Accept") or ""):
            entries = self._cache.describe_all()
            return plain(HTTPStatus.OK, "\n".join(show_list(entries, None)))
        # A browser asks again every second.
        latest = self._cache.describe_latest(dashboard.MOST_ROWS)
        text = dashboard.page(latest, self._cache.stats())
        return text_response(text, "text/html; charset=utf-8", fields=dashboard.FIELDS)

    def _add(self, request: Request) -> Response:
        body = request.json()
        url = _text(body, "url")
        priority = _priority(body)  # before anything is added
        parts, within_s = _parts(body), _seconds(body, "within")
        if priority != "prefetch" and (parts or within_s is not None):
            raise UsageError("only a prefetch has 'ranges' and 'within'")
        parsed = parse_url(url)
        if not self._allowed.names(parsed):
            if not self._has_token(request):
                return json_response(
                    {"error": f"{parsed.origin} is not allowed here; name it with --allow"},
                    HTTPStatus.FORBIDDEN,
                )
            # The person who runs the cache asked for it: that names the origin.
            self._allowed.add(parsed, by_url=False)
        entry = self._cache.entry(url)
        if priority == "prefetch":
            entry.prefetch(ranges=parts, deadline=within_s)
        else:
            entry.start(priority)
        return json_response(entry.describe(), HTTPStatus.CREATED)

    def _describe(self, _request: Request, number: str) -> Response:
        return json_response(self._entry(number).describe())

    def _remove(self, _request: Request, number: str) -> Response:
        self._entry(number).remove()
        return Response(HTTPStatus.NO_CONTENT)

    def _read(self, request: Request, number: str) -> Response:
        return self._serve(request, lambda: self._entry(number).id)

    def _start(self, request: Request, number: str) -> Response:
        entry, body = self._entry(number), request.json()
        first, stop = _offsets(body)
        priority = _priority(body)
        self._allow(entry)
        entry.start(priority, first, stop)
        return json_response(entry.describe())

    def _verify(self, request: Request, number: str) -> Response:
        first, stop = _offsets(request.json())
        return json_response(self._entry(number).verify(start=first, stop=stop).describe())

    def _order(self, _request: Request, number: str, order: str) -> Response:
        entry = self._entry(number)
        if order in ("resume", "retry"):
            self._allow(entry)
        _ORDERS[order](entry)
        return json_response(entry.describe())

    def _explain(self, request: Request, number: str) -> Response:
        offset = _number(parse_qs(request.query), "offset")
        if offset is None:
            raise UsageError("which byte? Ask with ?offset=<n>")
        return json_response(self._entry(number).explain(offset))

    def _limits(self, _request: Request) -> Response:
        return json_response(asdict(self._cache.rate_limits()))

    def _set_limits(self, request: Request) -> Response:
        changes = _rates(request.json())
        return json_response(asdict(self._cache.set_rate_limits(**changes)))

    def _stats(self, _request: Request) -> Response:
        return json_response(self._cache.stats())

    def _events(self, request: Request) -> Response:
        return event_response(request, self._cache.listen())

    def _metrics(self, request: Request) -> Response:
        traffic = request.environ.get("cachefsm.traffic")
        return text_response(render(self._cache.stats(), traffic), CONTENT_TYPE)

    def _collect(self, request: Request) -> Response:
        return json_response(self._cache.collect(_size(request.json(), "max_size")))

    def _allow(self, entry: Entry) -> None:
        """Let the entry's origin be visited: it may have come here from a cache that did."""
        with self._cache.registry.lease(entry.id) as live:
            self._allowed.add(live.url, by_url=False)

    def _entry(self, number: str) -> Entry:
        if not _is_number(number):
            raise UsageError(f"{number!r} is not an entry's id")
        return self._cache.find(int(number))

    def _has_token(self, request: Request) -> bool:
        return carries(request.field("Authorization") or "", self._token)


def _on(method: str, path: str, handler: Callable[..., Response]) -> Rule:
    return Rule(path, methods=[method], endpoint=handler)


_ROUTES: Final = Map(
    [
        _on("GET", "/-", Control._overview),
        _on("GET", "/-/entries", Control._list),
        _on("POST", "/-/entries", Control._add),
        _on("GET", "/-/entries/<number>", Control._describe),
        _on("DELETE", "/-/entries/<number>", Control._remove),
        _on("GET", "/-/entries/<number>/content", Control._read),
        _on("GET", "/-/entries/<number>/explain", Control._explain),
        _on("POST", "/-/entries/<number>/start", Control._start),
        _on("POST", "/-/entries/<number>/verify", Control._verify),
        _on("POST", f"/-/entries/<number>/<any({', '.join(_ORDERS)}):order>", Control._order),
        _on("GET", "/-/limits", Control._limits),
        _on("POST", "/-/limits", Control._set_limits),
        _on("GET", "/-/stats", Control._stats),
        _on("GET", "/-/events", Control._events),
        _on("GET", "/-/metrics", Control._metrics),
        _on("POST", "/-/gc", Control._collect),
    ],
    merge_slashes=False,
)
"""Which of its methods answers what; a GET is answered for a HEAD, too."""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _number(query: dict[str, list[str]], name: str) -> int | None:
    """Return a number from the query, or None if it is not there."""
    texts = query.get(name)
    if texts is None:
        return None
    if not _is_number(texts[-1]):
        raise UsageError(f"{name}={texts[-1]!r} is not a number")
    return int(texts[-1])


def _size(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or (type(value) is int and 0 <= value <= END):
        return value
    raise UsageError(f"the request body's {name!r} is not a number of bytes")


def _parts(body: dict[str, Any]) -> Parts | None:
    """Return the ``ranges`` of a request body, which :meth:`Entry.prefetch` checks further."""
    value = body.get("ranges")
    if value is None:
        return None
    if not isinstance(value, list) or not all(map(_is_part, value)):
        raise UsageError("the request body's 'ranges' are not pairs of offsets")
    wanted_parts(ranges=value)
    return [(start, stop) for start, stop in value]


def _is_part(value: object) -> bool:
    return (
        isinstance(value, list)
        and [type(offset) for offset in value] in ([int, int], [int, type(None)])
        and all(offset is None or 0 <= offset <= END for offset in value)
    )


def _seconds(body: dict[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise UsageError(f"the request body's {name!r} is not a number of seconds")
    return parse_duration(value)


def _offsets(body: dict[str, Any]) -> tuple[int, int | None]:
    """Return the ``start`` and ``stop`` of a request body; all of the file by default."""
    start, stop = _size(body, "start") or 0, _size(body, "stop")
    if stop is not None and stop <= start:
        raise UsageError(f"there is no byte from {start} to {stop}")
    return start, stop


def _rates(body: dict[str, Any]) -> dict[str, str | int]:
    """Return the rates of a request body, as numbers or as texts such as ``"5M"``."""
    unknown = body.keys() - {field.name for field in fields(RateLimits)}
    if unknown:
        raise UsageError(f"there is no limit {min(unknown)!r}")
    for name, value in body.items():
        if not isinstance(value, (str, int)):
            raise UsageError(f"the request body's {name!r} is not a number of bytes")
    return body


def _priority(body: dict[str, Any]) -> str:
    name = _text(body, "priority") if "priority" in body else "person"
    parse_priority(name)
    return name


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"the request body has no {name!r}")
    return value
