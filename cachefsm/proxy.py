"""The proxy: a WSGI application that answers from the cache while it fills.

A client gets the origin's exact bytes of one version, or an error status, or a
connection that is visibly cut: once the head is out, whatever goes wrong is
*raised* from the body, and the server under it cuts the connection.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from .access import AllowList, Mount, Rules, is_same_origin, parse_mount, split_host
from .cache import Cache
from .clientwatch import ClientWatch, watching
from .control import Control
from .errors import (
    AnotherVariant,
    CacheError,
    EntryNotFound,
    OriginStatus,
    RepresentationChanged,
)
from .fields import Fields, without
from .forwarding import one_hop_less, relayed_fields, terms_of, visited
from .freshness import invalidates
from .pages import Pages
from .playlists import is_playlist, paths_named
from .reader import Reader
from .relay import outdated_by, relay
from .representation import Representation
from .routes import NotFound, Routes
from .server import ProxyServer
from .serving import error_response, respond
from .settling import News
from .signposts import MAX_PLAYLISTS, Recalled, Signposts
from .terms import Terms
from .tokens import carries
from .urls import OriginUrl, parse_url, redact
from .web import Request, Response, plain

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Proxy", "Server", "create_app"]

_log = logging.getLogger(__name__)

VERSION_TRIES: Final = 3
"""How often a request is tried again because the representation changed meanwhile."""

NEVER_PASSED: Final = ("CONNECT", "TRACE")
"""CONNECT is not about a resource; TRACE would show the fields that mounts set to clients."""

_USUALLY_PASSED: Final = ("OPTIONS", "POST", "PUT", "PATCH", "DELETE")
"""The methods that ``Allow`` names for a mount that passes methods, as it cannot name all."""

_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")


def create_app(
    cache: Cache,
    *,
    mounts: Iterable[Mount | str] = (),
    allow: AllowList | Iterable[str] = (),
    hosts: Iterable[str] = (),
    pages: Iterable[str] = (),
    token: str | None = None,
    require_token: bool = False,
    rules: Rules | None = None,
) -> Proxy:
    """Return the proxy as a WSGI application, for any threaded WSGI server.

    Args:
        mounts: ``/name=https://origin/base/`` each.
        allow: what ``/http/…`` and ``/https/…`` may reach; see :class:`AllowList`.
        hosts: names the proxy is known by, besides this machine's loopback names.
        pages: origins of other sites' web pages that may show and read content.
        token: what control routes accept as ``Authorization: Bearer …``.
        require_token: refuse control routes without it, as off loopback.
        rules: the rules for ``/http/…`` and ``/https/…``; mounts have their own.

    Raises:
        UsageError: a mount or pattern cannot be read.
    """
    parsed = [mount if isinstance(mount, Mount) else parse_mount(mount) for mount in mounts]
    allowed = allow if isinstance(allow, AllowList) else AllowList(allow)
    for mount in parsed:
        allowed.add(mount.base, by_url=False)
    return Proxy(
        cache,
        parsed,
        allowed,
        hosts,
        token,
        require_token=require_token,
        pages=Pages(pages),
        rules=rules or Rules(),
    )


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
        pages: Pages,
        rules: Rules,
        boundary: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._cache = cache
        self._routes = Routes(mounts, allowed)
        self._allowed = allowed
        self._rules = rules
        self._hosts = frozenset(host.lower() for host in (*_LOOPBACK_NAMES, *hosts))
        self._pages = pages
        self._control = Control(
            cache, self._serve_by_id, allowed, token, require_token=require_token
        )
        self._token = token
        self._signposts = Signposts(allowed, self._recalled)
        self._watch = ClientWatch()
        self._boundary = boundary

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[Any]:
        request = Request(environ)
        try:
            response = self._answer(request)
        except CacheError as error:
            response = error_response(error, via=self._cache.via)
        except Exception:  # noqa: BLE001 - one request's bug must not end the others
            _log.exception("%s %s failed", request.method, request.shown_target)
            response = plain(HTTPStatus.INTERNAL_SERVER_ERROR, "an internal error; see the log")
        # A progress bar asks five times a second: that is no news.
        looks = request.path.startswith("/-/") and request.method in ("GET", "HEAD")
        level = logging.DEBUG if looks and response.status < 400 else logging.INFO
        if _log.isEnabledFor(level):
            _log.log(
                level,
                "%s %s %s %s",
                request.method,
                request.shown_target,
                response.status,
                response.note,
            )
        return response.start(request, start_response)

    def close(self) -> None:
        """End the thread that watches clients, needed under servers without one of their own."""
        self._watch.close()

    def url_for(self, url: str, base: str) -> str:
        """Return the address of *url* in the proxy at *base*; clients may ask for its origin now.

        A URL with credentials is served under its entry's id instead, because players show
        and log the addresses that they are given.
        """
        parsed, base = parse_url(url), base.rstrip("/")
        if parsed.userinfo is not None:
            self._allowed.add(parsed, by_url=False)
            return f"{base}/-/entries/{self._cache.entry(url).id}/content"
        return base + self._routes.path_for(parsed)

    def answer_for(self, request: Request, url: OriginUrl) -> Response:
        """Answer a GET or HEAD for *url* that this process itself makes.

        So neither Host nor the allow list is checked, and redirects that are left to the
        client are not rewritten.

        Raises:
            CacheError: there is no answer of the origin's.
        """
        terms = self._terms(request, None)
        return self._serve_entry(
            request, lambda: self._cache.find_variant(str(url), terms), terms, None
        )

    # -- routing ---------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        host, _ = split_host(request.environ.get("HTTP_HOST", ""))
        if host.lower() not in self._hosts:
            return plain(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this proxy is not known by that Host; name it with --host-name",
            )
        asked = dict(request.fields)
        is_control = request.path == "/-" or request.path.startswith("/-/")
        if self._pages.refuses(asked, plays=not is_control):
            line = "another site's page may not have this; name that site with --page"
            return plain(HTTPStatus.FORBIDDEN, line)
        if is_control and not request.path.endswith("/content"):
            return self._control.answer(request)
        if request.method == "OPTIONS" and (told := self._pages.preflight(asked)):
            return Response(HTTPStatus.NO_CONTENT, told)
        try:
            response = self._control.answer(request) if is_control else self._content(request)
        except CacheError as error:
            response = error_response(error, via=self._cache.via)
        response.fields = self._pages.guard(asked, response.status, response.fields)
        return response

    def _content(self, request: Request) -> Response:
        try:
            mount, url = self._routes.find(request.target)
        except NotFound:
            there = self._guide(request)
            if there is None:
                raise
            return there
        if visited(request.fields, self._cache.name):
            return plain(HTTPStatus.LOOP_DETECTED, "this request has come by here before")
        if request.method not in ("GET", "HEAD"):
            if mount is None or not mount.rules.passes:
                return _not_allowed(f"{request.method} is not served here; only GET and HEAD are")
            if request.method in NEVER_PASSED:
                return _not_allowed(f"{request.method} is never passed on", _USUALLY_PASSED)
            return self._relay(request, mount, url)
        terms = self._terms(request, mount)
        return self._serve_entry(
            request, lambda: self._cache.find_variant(str(url), terms), terms, url
        )

    def _terms(self, request: Request, mount: Mount | None) -> Terms:
        rules, fields = self._rules if mount is None else mount.rules, self._own_business(request)
        if mount is not None and mount.base.userinfo is not None:
            # The mount's own credentials are for all its clients.
            fields = without(fields, {"authorization"})
        host = request.field("Host") or ""
        return terms_of(fields, rules, host=host, since_s=time.monotonic())

    def _own_business(self, request: Request) -> Fields:
        """Return the request's fields without the proxy's own token, which origins must not get."""
        return (
            request.fields
            if self._token is None
            else tuple(
                (name, value)
                for name, value in request.fields
                if name != "authorization" or not carries(value, self._token)
            )
        )

    # -- what playlists name ---------------------------------------------------

    def _guide(self, request: Request) -> Response | None:
        """Redirect a client that asks for an absolute path of a playlist; None if none named it."""
        if request.method not in ("GET", "HEAD"):
            return None
        referer, host = request.field("Referer") or "", request.field("Host") or ""
        there = self._signposts.lead(request.target, referer=referer, host=host)
        if there is None:
            return None
        line = f"a playlist that was served here means {redact(there)}"
        return plain(HTTPStatus.TEMPORARY_REDIRECT, line, [("Location", there)])

    def _recalled(self) -> Iterator[Recalled]:
        """Yield what the stored playlists name, which were served before the last start."""
        for url, fields, text in self._cache.stored_playlists(MAX_PLAYLISTS):
            named = paths_named(url.path, fields, text)
            yield from ((url.path, place, named) for place in self._routes.places_of(url))

    def _learning(
        self,
        request: Request,
        url: OriginUrl,
        representation: Representation,
        pieces: Iterable[Any],
    ) -> Iterable[Any]:
        """Return *pieces*, the whole body of *url*; a playlist's are also read as they pass by."""
        path, fields = url.path, representation.fields
        place = self._routes.place(request.path)
        if place is None or not is_playlist(path, fields):
            return pieces
        return self._signposts.reading(path, place, fields, pieces, representation.complete_length)

    # -- content ---------------------------------------------------------------

    def _serve_by_id(self, request: Request, find: Callable[[], int]) -> Response:
        return self._serve_entry(request, find, self._terms(request, None), None)

    def _serve_entry(
        self, request: Request, find: Callable[[], int], terms: Terms, url: OriginUrl | None
    ) -> Response:
        """Answer GET or HEAD from the entry whose id *find* returns.

        Tries again if the entry changes, is removed, or turns out to be another variant
        before the head was sent.
        """
        news = News()
        tries = VERSION_TRIES
        with ExitStack() as held:  # what an entry has just heard is in memory only
            while True:
                tries -= 1
                try:
                    entry_id = find()
                    held.enter_context(self._cache.registry.lease(entry_id))
                    return self._serve_version(request, entry_id, terms, news, url)
                except (RepresentationChanged, EntryNotFound, AnotherVariant) as error:
                    if not tries:
                        raise
                    _log.info("%s: %s; beginning again", request.shown_target, error)
                except OriginStatus as error:
                    return self._refusal(request, url, error, news)

    def _refusal(
        self,
        request: Request,
        url: OriginUrl | None,
        error: OriginStatus,
        news: News,
        reader: Reader | None = None,
    ) -> Response:
        """Return the response to *error*; *reader* has the body of the origin's answer, if open."""
        if url is not None:
            error.fields = self._routes.leading_here(request.path, url, error.fields)
        via = self._cache.via
        if reader is None:
            return error_response(error, via=via, news=news)
        return error_response(error, via=via, news=news, opened=reader.body, on_close=reader.close)

    def _serve_version(
        self, request: Request, entry_id: int, terms: Terms, news: News, url: OriginUrl | None
    ) -> Response:
        watch = watching(request.environ, self._watch)
        if url is None:
            terms = self._cache.own_terms(entry_id, terms)
        reader = self._cache.open_reader(
            entry_id,
            terms=terms,
            news=news,
            watch=lambda reader: watch(reader.cancel),
            patience_s=request.environ.get("cachefsm.patience_s"),
        )
        try:
            return respond(
                request,
                reader,
                via=self._cache.via,
                boundary=self._boundary,
                clock=self._cache.clock,
                reading=lambda representation, pieces: self._learning(
                    request, reader.entry.url, representation, pieces
                ),
            )
        except OriginStatus as error:
            return self._refusal(request, url, error, news, reader)
        except BaseException:
            reader.close()
            raise

    def _relay(self, request: Request, mount: Mount, url: OriginUrl) -> Response:
        """Pass a request through to the origin, and outdate what a success has changed."""
        host = request.field("Host") or ""
        if not is_same_origin(dict(request.fields), host):
            return plain(HTTPStatus.FORBIDDEN, "another site's page may not do this")
        fields = relayed_fields(self._own_business(request), mount.rules, host=host)
        if request.method == "OPTIONS":
            fields, hops = one_hop_less(fields)
            if not hops:
                told = [_allow(_USUALLY_PASSED)]
                return Response(HTTPStatus.NO_CONTENT, told, note="asked of the last hop")
        response, answer = relay(
            request,
            url,
            fields,
            origin=self._cache.origin,
            watch=watching(request.environ, self._watch),
            rewrite=lambda fields: self._routes.leading_here(request.path, url, fields),
            via=self._cache.via,
        )
        if invalidates(request.method, answer.status):
            for outdated in outdated_by(answer, url):
                self._cache.outdate(str(outdated), f"{request.method} may have changed it")
        return response


def _allow(passed: Sequence[str] = ()) -> tuple[str, str]:
    return ("Allow", ", ".join(("GET", "HEAD", *passed)))


def _not_allowed(line: str, passed: Sequence[str] = ()) -> Response:
    return plain(HTTPStatus.METHOD_NOT_ALLOWED, line, [_allow(passed)])


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
        pages: Iterable[str] = (),
        token: str | None = None,
        require_token: bool = False,
        rules: Rules | None = None,
        stays: bool = True,
        **server: Any,
    ) -> None:
        self._cache = cache
        self.app = create_app(
            cache,
            mounts=mounts,
            allow=allow,
            hosts=(host, *hosts),
            pages=pages,
            token=token,
            require_token=require_token,
            rules=rules,
        )
        self._server = ProxyServer(self.app, host, port, **server)
        self._server.start()
        cache.announce(self._server.url, token, stays=stays)

    def __repr__(self) -> str:
        return repr(self._server)

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
