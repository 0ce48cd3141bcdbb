"""What web pages may do with this proxy, in browsers that ask on their behalf. Pure.

A browser lets any page on the web send requests to 127.0.0.1. It doesn't let the page
read the answers, but it would run what they hold as scripts, and tell it how long they
took. So what another site's page asks for is refused, unless that page was named
(``--page``); only films and music play in any page, as in a player's on the web or in a
file, and can be read by none. Pages of other servers on the same host may show all that
is served.

And whatever an origin serves appears here under one address with the control routes and
with every other origin. So a document of theirs is nobody's (an opaque origin): its
scripts can give no orders and read nothing, and what an origin says to browsers about
its own address isn't passed on.

Source: Fetch Metadata (W3C); the Fetch standard on CORS and Cross-Origin-Resource-Policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from .errors import UsageError
from .fields import Fields, value_of, without

__all__ = ["Pages", "parse_page"]

_PAGE = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[a-z0-9._~%:\[\]-]+")

#: What an origin may tell a browser of itself. Here it would speak for all the others.
_OF_THE_ADDRESS: Final = frozenset(
    {
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-allow-origin",
        "access-control-allow-private-network",
        "access-control-expose-headers",
        "access-control-max-age",
        "alt-svc",
        "clear-site-data",
        "cross-origin-embedder-policy",
        "cross-origin-opener-policy",
        "cross-origin-resource-policy",
        "nel",
        "origin-agent-cluster",
        "public-key-pins",
        "refresh",
        "report-to",
        "reporting-endpoints",
        "service-worker-allowed",
        "strict-transport-security",
        "timing-allow-origin",
    }
)

#: What an origin may ask a program, and not a browser: that keeps cookies for a host,
#: whatever the port, and answers who calls his realm as another one does (RFC 7617 §2.2).
_FOR_PROGRAMS: Final = frozenset({"set-cookie", "www-authenticate", "authentication-info"})

# What a browser shows or plays, and never runs; DASH manifests are XML, which it may.
_PASSIVE = re.compile(
    r"(?:audio|font|image|video)/(?!svg)[a-z0-9.+-]+|text/(?:plain|vtt)"
    r"|application/(?:octet-stream|(?:x-|vnd\.apple\.)?mpegurl)"
)
_OFF: Final = (
    ("Content-Security-Policy", "sandbox allow-scripts"),
    ("X-Content-Type-Options", "nosniff"),
)
_OURS_ALONE: Final = ("Cross-Origin-Resource-Policy", "same-origin")


def parse_page(text: str) -> str:
    """Return a page's origin, as ``--page`` names it, as browsers write it.

    Raises:
        UsageError: it is none.
    """
    page = text.lower().removesuffix("/")
    if not _PAGE.fullmatch(page):
        raise UsageError(f"{text!r} is no page's origin; write http://host:port, null or *")
    return page


class Pages:
    """Judges requests by the page they come from; *named* pages may show and read content.

    Each is an origin as browsers write it, ``null`` for pages from files, or ``*``.
    """

    def __init__(self, named: Iterable[str] = ()) -> None:
        self._named = frozenset(map(parse_page, named))

    def refuses(self, asked: Mapping[str, str], *, plays: bool = False) -> bool:
        """Say whether another site's page asks with the fields *asked* (lower-case names).

        Programs don't say where they come from; a person who follows a link may, and so
        may what *plays* in a page that cannot read it.
        """
        follows = asked.get("sec-fetch-mode") == "navigate" and (
            asked.get("sec-fetch-dest") == "document"
        )
        only_plays = asked.get("sec-fetch-mode") == "no-cors" and (
            asked.get("sec-fetch-dest") in ("audio", "video")
        )
        if follows or (plays and only_plays) or self._is_named(_page_of(asked)):
            return False
        return asked.get("sec-fetch-site") == "cross-site"

    def preflight(self, asked: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return the fields that let a named page ask for content; none for another page."""
        page = asked.get("origin")
        if "access-control-request-method" not in asked or not self._is_named(page):
            return []
        told = [
            *self._readable(page),
            ("Access-Control-Allow-Methods", "GET, HEAD"),
            ("Access-Control-Allow-Headers", "*"),
            ("Access-Control-Max-Age", "600"),
        ]
        if "access-control-request-private-network" in asked:
            told.append(("Access-Control-Allow-Private-Network", "true"))
        return told

    def guard(self, asked: Mapping[str, str], status: int, fields: Fields) -> list[tuple[str, str]]:
        """Return the *fields* of an answer with content as a browser may have them."""
        dropped = _OF_THE_ADDRESS | _FOR_PROGRAMS if "sec-fetch-site" in asked else _OF_THE_ADDRESS
        guarded = list(without(fields, dropped))
        # A 304 has no type, and what it says is added to what the browser holds.
        if status not in (204, 304) and not _is_passive(fields):
            guarded = [*without(guarded, {"x-content-type-options"}), *_OFF]
        page = _page_of(asked)
        if self._is_named(page):
            return guarded + (self._readable(page) if "origin" in asked else [])
        # Newer browsers tell where they come from: see refuses(). For the others:
        is_neighbour = _host_of(page or "") == _host_of(f"http://{asked.get('host', '')}")
        if "sec-fetch-site" not in asked and not is_neighbour:
            guarded.append(_OURS_ALONE)
        return guarded

    def _readable(self, page: str | None) -> list[tuple[str, str]]:
        allowed = "*" if "*" in self._named else page or ""
        return [
            ("Access-Control-Allow-Origin", allowed),
            ("Access-Control-Expose-Headers", "*"),
            ("Vary", "Origin"),
        ]

    def _is_named(self, page: str | None) -> bool:
        return "*" in self._named or (page or "").lower() in self._named


def _is_passive(fields: Fields) -> bool:
    media_type = (value_of(fields, "Content-Type") or "").partition(";")[0].strip().lower()
    return _PASSIVE.fullmatch(media_type) is not None


def _page_of(asked: Mapping[str, str]) -> str | None:
    """Return the origin of the page that asks, as far as the browser tells."""
    if "origin" in asked:
        return asked["origin"]
    try:
        parts = urlsplit(asked.get("referer", ""))
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else None


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None
