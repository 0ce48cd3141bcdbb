"""The proxy: a WSGI application that answers from the cache while it fills.

A client gets the origin's exact bytes of one version, or an error status, or a
connection that is visibly cut: once the head is out, whatever goes wrong is
*raised* from the body, and the server under it cuts the connection.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from .access import AllowList, Mount, check_path, parse_mount, split_host
from .cache import Cache
from .clientsocket import FileSlice
from .clientwatch import ClientWatch
from .control import Control
from .errors import (
    CacheError,
    EntryNotFound,
    RangeNotSatisfiable,
    RepresentationChanged,
    UsageError,
    WaitCancelled,
)
from .fields import is_sendable
from .multipart import Multipart, Part
from .playlists import is_playlist
from .preconditions import evaluate_preconditions, if_range_holds
from .ranges import END, ByteRange
from .reader import Reader
from .representation import Representation
from .semantics import ContentRange, RangeSpec, coalesce_ranges, parse_range
from .server import ProxyServer
from .signposts import Place, Signposts
from .states import ACTIVE
from .urls import OriginUrl, parse_url, redact
from .web import Request, Response, error_fields, plain

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Proxy", "Server", "create_app"]

_log = logging.getLogger(__name__)

VERSION_TRIES: Final = 3
"""How often a request begins again because the representation changed under it."""

_WITHOUT_CONTENT: Final = frozenset(
    {"cache-control", "content-location", "etag", "expires", "last-modified", "vary"}
)
"""What a 304 or 412 tells of the representation, as RFC 9110 §15.4.5 has it."""

_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")


def create_app(
    cache: Cache,
    *,
    mounts: Iterable[Mount | str] = (),
    allow: AllowList | Iterable[str] = (),
    hosts: Iterable[str] = (),
    token: str | None = None,
    require_token: bool = False,
) -> Proxy:
    """Return the WSGI application, for any WSGI server.

    Args:
        mounts: ``/name=https://origin/base/`` each.
        allow: what ``/http/…`` and ``/https/…`` may reach; see :class:`AllowList`.
        hosts: names the proxy is known by, besides this machine's loopback names.
        token: what control routes accept as ``Authorization: Bearer …``.
        require_token: refuse control routes without it, as off loopback.

    Raises:
        UsageError: a mount or pattern cannot be read.
    """
    parsed = [mount if isinstance(mount, Mount) else parse_mount(mount) for mount in mounts]
    allowed = allow if isinstance(allow, AllowList) else AllowList(allow)
    for mount in parsed:
        allowed.add(mount.base, by_url=False)
    return Proxy(cache, parsed, allowed, hosts, token, require_token=require_token)


class Proxy:
    """The application; see :func:`create_app`."""

    def __init__(
        self,
        cache: Cache,
        mounts: Sequence[Mount],
        allowed: AllowList,
        hosts: Iterable[str],
        token: str | None,
        *,
        require_token: bool,
        boundary: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._cache = cache
        self._mounts = {mount.name: mount for mount in mounts}
        self._allowed = allowed
        self._hosts = frozenset(host.lower() for host in (*_LOOPBACK_NAMES, *hosts))
        self._control = Control(
            cache, self._serve_entry, allowed, token, require_token=require_token
        )
        self._signposts = Signposts(allowed)
        self._watch = ClientWatch()
        self._boundary = boundary

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[Any]:
        request = Request(environ)
        try:
            response = self._answer(request)
        except CacheError as error:
            response = _error_response(error)
        except Exception:  # noqa: BLE001 - one request's bug must not end the others
            _log.exception("%s %s failed", request.method, request.shown_target)
            response = plain(HTTPStatus.INTERNAL_SERVER_ERROR, "an internal error; see the log")
        # A progress bar asks five times a second: that is no news.
        looks = request.path.startswith("/-/") and request.method in ("GET", "HEAD")
        _log.log(
            logging.DEBUG if looks and response.status < 400 else logging.INFO,
            "%s %s %s %s",
            request.method,
            request.shown_target,
            response.status,
            response.note,
        )
        return response.start(request, start_response)

    def close(self) -> None:
        """End the thread that watches clients of servers which bring none of their own."""
        self._watch.close()

    def url_for(self, url: str, base: str) -> str:
        """Return where the proxy at *base* serves *url*; clients may name its origin now.

        A URL with credentials is served by its entry's number: players show and log
        what they are given.
        """
        parsed, base = parse_url(url), base.rstrip("/")
        if parsed.userinfo is not None:
            self._allowed.add(parsed, by_url=False)
            return f"{base}/-/entries/{self._cache.entry(url).id}/content"
        for mount in self._mounts.values():
            if parsed.origin == mount.base.origin and parsed.target.startswith(mount.base.target):
                return f"{base}{mount.name}/{parsed.target[len(mount.base.target) :]}"
        self._allowed.add(parsed, by_url=True)
        return f"{base}/{parsed.scheme}/{parsed.authority}{parsed.target}"

    # -- routing ---------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        host, _ = split_host(request.environ.get("HTTP_HOST", ""))
        if host.lower() not in self._hosts:
            return plain(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this proxy is not known by that Host; name it with --host-name",
            )
        if request.path == "/-" or request.path.startswith("/-/"):
            return self._control.answer(request)
        try:
            url = self._url(request)
        except NotFound:
            there = self._guide(request)
            if there is None:
                raise
            return there
        if request.method not in ("GET", "HEAD"):
            return plain(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{request.method} is not served here; only GET and HEAD are",
                [("Allow", "GET, HEAD")],
            )
        return self._serve_entry(request, lambda: self._cache.entry(str(url)).id)

    def _url(self, request: Request) -> OriginUrl:
        check_path(request.target)
        name, slash, rest = request.target[1:].partition("/")
        if not slash:
            name = name.partition("?")[0]
        mount = self._mounts.get(f"/{name}")
        if mount is not None and slash:
            return parse_url(str(mount.url(rest)))
        if name in ("http", "https") and slash:
            url = parse_url(f"{name}://{rest}")
            if url.userinfo is not None:
                raise UsageError("a URL asked for here cannot hold credentials")
            if self._allowed.names(url):
                return url
            raise NotAllowed(f"{url.origin} is not allowed here; name it with --allow {url.host}")
        known = ", ".join(f"{mount}/" for mount in sorted(self._mounts)) or "none"
        raise NotFound(f"nothing is mounted at /{name}; mounts: {known}")

    # -- what playlists name ---------------------------------------------------

    def _guide(self, request: Request) -> Response | None:
        """Send a client to where a playlist's absolute path leads; None if none named it."""
        if request.method not in ("GET", "HEAD"):
            return None
        referer, host = request.field("Referer") or "", request.field("Host") or ""
        there = self._signposts.lead(request.target, referer=referer, host=host)
        if there is None:
            return None
        line = f"a playlist that was served here means {redact(there)}"
        return plain(HTTPStatus.TEMPORARY_REDIRECT, line, [("Location", there)])

    def _learning(
        self,
        request: Request,
        url: OriginUrl,
        representation: Representation,
        pieces: Iterable[Any],
    ) -> Iterable[Any]:
        """Return *pieces*, all there are of *url*; those of a playlist are read on their way."""
        path, fields = url.target.partition("?")[0], representation.fields
        place = self._place(request)
        if place is None or not is_playlist(path, fields):
            return pieces
        return self._signposts.reading(path, place, fields, pieces, representation.complete_length)

    def _place(self, request: Request) -> Place | None:
        name, _, rest = request.path[1:].partition("/")
        mount = self._mounts.get(f"/{name}")
        if mount is not None:
            return Place(mount.name, mount.base)
        if name in ("http", "https"):
            root = parse_url(f"{name}://{rest}")._replace(target="/")
            return Place(f"/{name}/{root.authority}", root)
        return None

    # -- content ---------------------------------------------------------------

    def _serve_entry(self, request: Request, find: Callable[[], int]) -> Response:
        """Answer GET or HEAD from the entry that *find* gives the id of.

        Begins again if that changes, or is removed, before anything was said.
        """
        for _ in range(VERSION_TRIES - 1):
            try:
                return self._serve_version(request, find())
            except (RepresentationChanged, EntryNotFound) as error:
                _log.info("%s: %s; beginning again", request.shown_target, error)
        return self._serve_version(request, find())

    def _serve_version(self, request: Request, entry_id: int) -> Response:
        reader = self._cache.open_reader(entry_id, watch=self._watching(request))
        try:
            return self._respond(request, reader)
        except BaseException:
            reader.close()
            raise

    def _respond(self, request: Request, reader: Reader) -> Response:
        """Return the response; it takes over the reader, which its close lets go."""
        specs = parse_range(request.field("Range")) if request.method == "GET" else None
        status_of_cache = _CacheStatus(reader)
        representation = reader.representation(*_first_wish(specs))
        validator, length = representation.validator, representation.complete_length
        decided = evaluate_preconditions(
            request.method,
            request.fields,
            etag=validator.etag,
            last_modified=validator.last_modified,
            date=validator.date,
        )
        fields = [*_served_fields(representation), ("Accept-Ranges", "bytes")]
        if decided is not None:
            reader.close()
            told = [field for field in fields if field[0].lower() in _WITHOUT_CONTENT]
            return Response(decided, [*told, status_of_cache.field(())], note=str(decided))
        if_range = request.field("If-Range")
        if if_range is not None and not if_range_holds(
            if_range,
            etag=validator.etag,
            last_modified=validator.last_modified,
            date=validator.date,
        ):
            specs = None
        ranges = _choose(specs, length)
        whole = ByteRange(0, END if length is None else length)
        cache_status = status_of_cache.field(ranges or [whole])
        fields.append(cache_status)
        if ranges is not None and len(ranges) > 1 and length is not None:
            body = Multipart.of(ranges, length, _content_type(fields), self._boundary())
            fields = [field for field in fields if field[0].lower() != "content-type"]
            fields.append(("Content-Type", body.content_type))
            size: int | None = body.size_bytes
        else:
            only = ranges[0] if ranges else whole
            if ranges:
                fields.append(("Content-Range", str(ContentRange(only, length))))
            body = Multipart((Part(b"", only),), b"", "")
            size = None if only.stop == END else only.size
        first = body.parts[0].range
        if request.method == "GET" and first.size:
            # A refusal that can still be said is better than a cut connection.
            reader.ready(*first)
        pieces: Iterable[Any] = _body(
            reader, body, sendfile=bool(request.environ.get("cachefsm.sendfile"))
        )
        if [part.range for part in body.parts] == [whole]:
            pieces = self._learning(request, reader.entry.url, representation, pieces)
        return Response(
            HTTPStatus.OK if ranges is None else HTTPStatus.PARTIAL_CONTENT,
            fields,
            pieces,
            length=size,
            note=cache_status[1],
            on_close=reader.close,
        )

    def _watching(self, request: Request) -> Callable[[Reader], AbstractContextManager[object]]:
        """Return what a reader holds while it waits, so that a client's leaving ends that."""
        environ = request.environ
        sock = environ.get("werkzeug.socket") or environ.get("gunicorn.socket")
        if sock is None:
            return lambda _reader: nullcontext()
        watch: ClientWatch = environ.get("cachefsm.clientwatch") or self._watch
        return lambda reader: watch.register(sock, reader.cancel)


class NotFound(CacheError):
    """There is nothing at that path."""

    status_hint = 404


class NotAllowed(CacheError):
    """That origin may not be asked for here."""

    status_hint = 403


class _CacheStatus:
    """How a request was answered, in the words of RFC 9211; taken before any waiting."""

    def __init__(self, reader: Reader) -> None:
        content = reader.content
        self._entry = reader.entry
        self._known = content.representation is not None
        self._collapsed = reader.entry.state in ACTIVE

    def field(self, ranges: Iterable[ByteRange]) -> tuple[str, str]:
        if self._known and all(self._entry.has(*wanted) for wanted in ranges):
            return ("Cache-Status", "cachefsm; hit")
        forward = "partial" if self._known else "miss"
        joined = "; collapsed" if self._collapsed else ""
        return ("Cache-Status", f"cachefsm; fwd={forward}; stored{joined}")


def _first_wish(specs: tuple[RangeSpec, ...] | None) -> tuple[int, int]:
    """Return which bytes to ask the origin for first, before the length is known."""
    if specs is None:
        return 0, END
    first = specs[0].first
    if first is None:
        return 0, END  # a suffix: the length comes with any answer
    last = specs[0].last
    return first, END if last is None else last + 1


def _choose(
    specs: tuple[RangeSpec, ...] | None, length: int | None
) -> tuple[ByteRange, ...] | None:
    """Return the ranges to answer with, or None for all of it.

    Overlapping and adjacent ones are answered as one. Ranges of a representation
    whose length is unknown are ignored, as RFC 9110 §14.2 lets a server do:
    whether they can be satisfied isn't known either.
    """
    if specs is None or length is None:
        return None
    satisfiable = [found for spec in specs if (found := spec.resolve(length)) is not None]
    if not satisfiable:
        raise RangeNotSatisfiable(length)
    return coalesce_ranges(satisfiable)


def _content_type(fields: Sequence[tuple[str, str]]) -> str:
    return next(value for name, value in fields if name.lower() == "content-type")


def _served_fields(representation: Representation) -> list[tuple[str, str]]:
    fields = [
        (name, value)
        for name, value in representation.fields
        if is_sendable(name, value) and name.lower() not in ("accept-ranges", "date")
    ]
    if not any(name.lower() == "content-type" for name, _ in fields):
        fields.append(("Content-Type", "application/octet-stream"))
    return fields


def _body(reader: Reader, body: Multipart, *, sendfile: bool) -> Iterator[Any]:
    """Yield heads and bytes as they arrive; raise if they stop arriving."""
    for part in body.parts:
        if part.head:
            yield part.head
        if not sendfile:
            yield from reader.pieces(*part.range)
            continue
        for span in reader.spans(*part.range):
            if isinstance(span, bytes):
                yield span
            else:
                yield FileSlice(reader.content.file.fileno(), span.start, span.size)
    if body.end:
        yield body.end


def _error_response(error: CacheError) -> Response:
    status = 503 if isinstance(error, WaitCancelled) else error.status_hint
    return plain(status, str(error), error_fields(error))


class Server:
    """The proxy on Werkzeug's server; starts when made, ends with :meth:`close`.

    Args:
        host, port: where to listen; port 0 takes a free one.
        app: the options of :func:`create_app`.
        stays: see :class:`cachefsm.dirlock.Holder`.
        server: the options of :class:`cachefsm.server.ProxyServer`.
    """

    def __init__(
        self,
        cache: Cache,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        mounts: Iterable[Mount | str] = (),
        allow: AllowList | Iterable[str] = (),
        hosts: Iterable[str] = (),
        token: str | None = None,
        require_token: bool = False,
        stays: bool = True,
        **server: Any,
    ) -> None:
        self._cache = cache
        self.app = create_app(
            cache,
            mounts=mounts,
            allow=allow,
            hosts=(host, *hosts),
            token=token,
            require_token=require_token,
        )
        self._server = ProxyServer(self.app, host, port, **server)
        self._server.start()
        cache.announce(self._server.url, token, stays=stays)

    @property
    def url(self) -> str:
        """The proxy's own address, ending in a slash."""
        return self._server.url

    def url_for(self, url: str) -> str:
        """Return the address at which a client of this proxy gets *url*."""
        return self.app.url_for(url, self.url)

    def close(self) -> None:
        """Stop answering and cut what is being answered; within two seconds."""
        self._cache.announce(None, None)
        self._server.close()
        self.app.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
