"""Which origins may be visited, and from where the proxy may be driven. Pure.

Closed by default: an origin is reachable if a mount names it, if ``--allow``
does, or if whoever holds the cache asked for it by name; and a request counts
only if its ``Host`` is one that this proxy is known by, because a hostile page
can make any name resolve to 127.0.0.1.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from .addresses import host_matches, is_inside
from .errors import UsageError
from .urls import OriginUrl, parse_url, redact

__all__ = [
    "AllowList",
    "Mount",
    "Rules",
    "check_path",
    "check_pattern",
    "is_same_origin",
    "mount_name",
    "parse_mount",
    "split_host",
]

_MOUNT_NAME = re.compile(r"/[A-Za-z0-9._~-]+\Z")
_RESERVED: Final = frozenset({"/-", "/http", "/https", "/.", "/.."})
_ESCAPE = re.compile(r"%(?:[uU]00)?([0-9A-Fa-f]{2})")  # %u002e is IIS's
_OVERLONG = re.compile(  # "." "/" "\\" in more bytes than UTF-8 allows; some decoders take them
    r"(?:\xc0|\xe0\x80|\xf0\x80\x80)(?:\xae|\xaf)|(?:\xc1|\xe0\x81|\xf0\x80\x81)\x9c"
)
_MEANT: Final = {"\xae": ".", "\xaf": "/", "\x9c": "\\"}
_MOST_ESCAPES: Final = 8
"""How deep a path may be escaped; two layers is what a badly written link has."""


@dataclass(frozen=True)
class Rules:
    """What holds for requests to an origin, in place of what would hold otherwise.

    ``fresh_s`` takes the place of what the origin says of freshness, ``offline`` asks
    the origin nothing; ``passes`` lets every method through, ``hands_on`` leaves
    redirects to the client; ``fields`` go with each request, unseen by clients.
    """

    fresh_s: float | None = None
    offline: bool = False
    passes: bool = False
    hands_on: bool = False
    fields: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Mount:
    """``/name`` in front of an origin's path; *base* ends in a slash."""

    name: str
    base: OriginUrl
    rules: Rules = Rules()

    def url(self, rest: str) -> OriginUrl:
        """Return the origin's URL for what follows ``/name/`` in a target, query included."""
        return self.base._replace(target=self.base.target + rest)

    def path_of(self, url: OriginUrl) -> str | None:
        """Return the target under which this mount serves *url*, or None if it doesn't."""
        if url.origin != self.base.origin or not url.target.startswith(self.base.target):
            return None
        return f"{self.name}/{url.target[len(self.base.target) :]}"


def mount_name(text: str) -> str:
    """Return *text*, the name of a mount.

    Raises:
        UsageError: no mount can be called that.
    """
    if not _MOUNT_NAME.match(text) or text in _RESERVED:
        raise UsageError(f"{text!r} is no mount's name, such as /films")
    return text


def parse_mount(text: str) -> Mount:
    """Return the mount that ``/name=http://origin/base/`` describes.

    Raises:
        UsageError: it does not; the message says what to write.
    """
    name, equals, url = text.partition("=")
    if not equals or not _MOUNT_NAME.match(name) or name in _RESERVED:
        raise UsageError(
            f"{name!r} is no mount; write /name=https://origin/base/ with a name of letters, "
            "digits, and . _ ~ -, other than http and https"
        )
    base = parse_url(url)
    if "?" in base.target:
        raise UsageError(f"mount {name}: the origin's base URL cannot have a query")
    if not base.target.endswith("/"):
        base = base._replace(target=base.target + "/")
    return Mount(name, base)


class AllowList:
    """The origins that may be visited; thread-safe, and may grow.

    A pattern is ``host``, ``host:port``, ``host:*``, ``*.suffix`` (with the same
    ports) or ``*``. Without a port it means the scheme's own. No ``*`` stands for
    localhost, or for an address that is not public: those are written out.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        if isinstance(patterns, str):  # going through it would allow hosts of one letter
            raise UsageError("the hosts to allow are a list; this is one")
        self._patterns = [check_pattern(pattern) for pattern in patterns]
        self._lock = threading.Lock()
        self._named: set[str] = set()
        self._visited: set[str] = set()

    def add(self, url: OriginUrl, *, by_url: bool) -> None:
        """Allow the origin of *url* from now on.

        *by_url* also lets clients name it (``/https/host/…``); without, it is
        reached only by what already leads there, a mount say.
        """
        with self._lock:
            (self._named if by_url else self._visited).add(url.origin)

    def names(self, url: OriginUrl) -> bool:
        """Say whether a client may ask for it by URL."""
        with self._lock:
            if url.origin in self._named:
                return True
        default = 80 if url.scheme == "http" else 443
        inside = is_inside(url.host)
        return any(
            (host == url.host if inside else host_matches(host, url.host))
            and port in ("*", str(url.port), *_own(url, default))
            for host, port in self._patterns
        )

    def __contains__(self, url: OriginUrl) -> bool:
        """Say whether it may be visited at all, by mount or redirect as well."""
        with self._lock:
            if url.origin in self._visited:
                return True
        return self.names(url)


def _own(url: OriginUrl, default: int) -> tuple[str, ...]:
    return ("",) if url.port == default else ()


def check_pattern(text: str) -> tuple[str, str]:
    """Return host and port of a pattern for hosts; see :class:`AllowList`.

    Raises:
        UsageError: it is none.
    """
    if "/" in text:
        raise UsageError(f"{redact(text)!r} is no host to allow: leave out the scheme and the path")
    host, port = split_host(text.lower())
    body = host.removeprefix("*.")
    if not body or (body != "*" and re.search(r"[^a-z0-9.:_-]", body)):
        raise UsageError(f"{text!r} is no host to allow; write host, host:port or *.suffix")
    if port and port != "*" and not (port.isascii() and port.isdigit()):
        raise UsageError(f"{text!r}: {port!r} is no port")
    return host, port


def split_host(text: str) -> tuple[str, str]:
    """Return host (no brackets) and port text (maybe empty) of ``host[:port]``.

    What is malformed comes back whole, brackets and all: no host is called that.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        return (host, rest[1:]) if closed and rest[:1] in ("", ":") else (text, "")
    host, colon, port = text.rpartition(":")
    return (host, port) if colon and ":" not in host else (text, "")


@lru_cache(maxsize=128)  # as `cachefsm.urls.parse_url`
def check_path(target: str) -> None:
    """Refuse a target whose path climbs, however it is spelled.

    Origins differ in what they decode, so ``%2e``, ``%2f``, ``%5c``, further layers
    of escapes and overlong UTF-8 count as what they stand for. Some drop a segment's
    parameters before they resolve it (``..;x``), and some end a name at NUL. The
    target itself goes out as it came.

    Raises:
        UsageError: a segment is ``.`` or ``..``, or it holds a backslash or NUL.
    """
    path = target.partition("?")[0]
    if "\\" in path:
        raise UsageError("a path cannot hold a backslash")
    path = _decoded(path)
    if "\0" in path:
        raise UsageError("a path cannot hold NUL")
    if any(segment.partition(";")[0] in (".", "..") for segment in re.split(r"[/\\]", path)):
        raise UsageError("a path cannot hold . or .. segments")


def _decoded(path: str) -> str:
    """Return *path* with every layer of escapes taken off, one character for each byte."""
    for _ in range(_MOST_ESCAPES):
        before = path
        path = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), path)
        if path == before:
            return _OVERLONG.sub(lambda match: _MEANT[match[0][-1]], path)
    raise UsageError("a path cannot be escaped so many times over")


def is_same_origin(fields: Mapping[str, str], host: str) -> bool:
    """Say whether a request that changes something may: no other site's page sent it.

    *fields* have lower-case names. Browsers put ``Sec-Fetch-Site`` and, on
    anything but GET and HEAD, ``Origin`` on what pages send; curl sends neither.
    """
    site = fields.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = fields.get("origin")
    return origin is None or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
