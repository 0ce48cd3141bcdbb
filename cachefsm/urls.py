"""URLs of origins: one spelling per resource, and a form that may be shown.

The path and query are kept byte for byte, because a signed URL is worth nothing
after a rewrite and ``%2e%2e`` decoded would leave a mount. Only what RFC 3986
§6.2 calls safe everywhere is normalised: the case of scheme and host, the
default port, an empty path, and the fragment, which no origin ever sees.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from .errors import UsageError

__all__ = ["OriginUrl", "encoded", "parse_url", "redact", "resolve"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_RAW = re.compile(r"[^\x00-\x1f!-\x7f]+")
_AUTHORITY = re.compile(r"(?:[^@]*@)?(?:\[[^\[\]]*\]|[^\[\]:@]*)(?::\d*)?\Z")
_SHOWN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#@]*@)?"
    r"(?P<host>(?:\[[^\[\]/?#]*\]|[^\[\]:@/?#]+)(?::\d*)?)(?P<path>(?:/[^?#]*)?)(?=[?#]|\Z)"
)
# Not in percent-encoding, which no name needs: what is looked up is the name decoded, and
# %31%32%37.0.0.1 would be no address to those who decide where a client may go.
_HOST = re.compile(
    r"(?:[A-Za-z0-9_~!$&'()+,;=-]{1,63}\.)*[A-Za-z0-9_~!$&'()+,;=-]{1,63}\.?\Z"
    r"|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%(?:25)?[A-Za-z0-9._~-]+)?\Z"  # RFC 6874
)


class OriginUrl(NamedTuple):
    """An ``http`` or ``https`` URL, taken apart.

    ``target`` is path and query exactly as they go on the wire; ``userinfo`` is
    ``name:password`` or None; ``host`` is lower-case, IPv6 without brackets.
    """

    scheme: str
    userinfo: str | None
    host: str
    port: int
    target: str

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def authority(self) -> str:
        """``host`` or ``host:port`` as in a ``Host`` field: no default port, no userinfo."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """``scheme://authority``, by which connections and limits are counted."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        """The URL in full, credentials included: not for logs."""
        at = f"{self.userinfo}@" if self.userinfo is not None else ""
        return f"{self.scheme}://{at}{self.authority}{self.target}"


@lru_cache(maxsize=128)  # players ask for the same few again and again
def parse_url(text: str) -> OriginUrl:
    """Return *text* taken apart.

    Raises:
        UsageError: it is no http(s) URL, or holds spaces, control characters or
            backslashes, which some parsers take for something else.
    """
    shown = redact(text)
    if _FORBIDDEN.search(text) or not text.isascii():
        raise UsageError(f"{shown!r} holds characters that a URL may not; percent-encode them")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        # Not in its own words, which quote what may be a password.
        what = "its port is no number up to 65535" if "Port" in str(error) else "its host is none"
        raise UsageError(f"{shown!r} is not a URL that can be read: {what}") from error
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise UsageError(f"{shown!r} is not an http:// or https:// URL")
    if not _HOST.match(parts.hostname) or not _AUTHORITY.match(parts.netloc) or port == 0:
        raise UsageError(f"{shown!r} names no host that can be looked up")
    userinfo = parts.netloc.rpartition("@")[0] if "@" in parts.netloc else None
    # Not parts.path: urlsplit drops an empty query's "?", which the origin must see.
    rest = text[len(parts.scheme) + 3 + len(parts.netloc) :].partition("#")[0]
    target = rest if rest.startswith("/") else f"/{rest}"
    return OriginUrl(
        scheme, userinfo, parts.hostname.lower(), port or _DEFAULT_PORTS[scheme], target
    )


def resolve(base: OriginUrl, reference: str, charset: str = "utf-8") -> OriginUrl:
    """Return what *reference* leads to, as something that came from *base* has it.

    *charset* is what its text was read in: Latin-1, if it is a field's.

    Raises:
        UsageError: that is no http(s) URL.
    Source: RFC 3986 §5, RFC 9110 §10.2.2.
    """
    try:
        url = urljoin(str(base), encoded(reference, charset))
    except ValueError as error:
        raise UsageError("that is no URL") from error
    return parse_url(url)


def encoded(reference: str, charset: str = "utf-8") -> str:
    """Return *reference* with spaces, and what is not ASCII, in the form that clients ask for.

    Origins write names as they are, and every client makes a URL of them.
    """
    return _RAW.sub(lambda match: quote(match[0], safe="", encoding=charset), reference)


def redact(text: str) -> str:
    """Return *text* fit for logs and pages: no userinfo, query or fragment.

    A query is shown as ``?…``: there is no telling which of its values sign it.
    """
    shown = _SHOWN.match(text)
    if shown is None:
        # No URL: whatever stands before the last @ may be a password.
        text = text.rpartition("@")[2]
        head = re.split(r"[?#]", text, maxsplit=1)[0]
    else:
        head = f"{shown['scheme']}://{shown['host']}{shown['path']}"
    return head + ("?…" if "?" in text else "")
