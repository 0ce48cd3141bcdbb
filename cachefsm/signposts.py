"""Remembers the absolute paths that playlists name, and leads clients to their origin.

A playlist behind ``/m/`` that names ``/seg/1.ts`` means a path at its origin, but a player
asks the proxy for it. The paths that playlists named are remembered for a while, so that
such a request can be redirected to ``/m/seg/1.ts``. This makes nothing reachable that was
not: the route to which it leads has its own rules. No I/O.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias, TypeVar

from .access import AllowList
from .errors import CacheError
from .fields import Fields
from .playlists import MAX_PLAYLIST_BYTES, PathPattern, paths_named
from .urls import OriginUrl

__all__ = ["MAX_PLAYLISTS", "Ambiguous", "Place", "Recalled", "Signposts"]

MAX_PLAYLISTS: Final = 64
MAX_BYTES: Final = 16 << 20
"""How much memory the paths of all playlists together may take, roughly."""

MAX_BYTES_EACH: Final = 4 << 20
"""The same for one playlist: 25,000 paths, for a live one those of the last half day."""

_OVERHEAD_BYTES: Final = 120  # of a string and its place in a dict
MAX_TEMPLATES_EACH: Final = 200
"""An MPD has two for each Representation; each is compared with every stray path."""

_T = TypeVar("_T")
_Piece = TypeVar("_Piece", bound=bytes | Iterable[bytes])


class Ambiguous(CacheError):
    """Playlists of several origins named that path."""

    status_hint = 404


class Place(NamedTuple):
    """A route of the proxy and the origin's URL behind it.

    ``route`` is ``/m`` or ``/https/host``, ``base`` the origin's URL behind it,
    whose target ends in a slash.
    """

    route: str
    base: OriginUrl

    def target(self, target: str) -> str | None:
        """Return the proxy's target for the origin's *target*; None if it is not below base."""
        if not target.startswith(self.base.target):
            return None
        return f"{self.route}/{target[len(self.base.target) :]}"


Recalled: TypeAlias = tuple[str, Place, Iterable[PathPattern]]
"""A playlist's path at its origin, where it is served, and what it names."""


class _Named:
    """The paths that one playlist has named, the latest last; the first are dropped first."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._paths: dict[str, None] = {}
        self._templates: dict[PathPattern, None] = {}

    def add(self, patterns: Iterable[PathPattern]) -> None:
        for pattern in patterns:
            if pattern.end is not None:
                _move_to_end(self._templates, pattern)
            elif _move_to_end(self._paths, pattern.start):
                self.size_bytes += len(pattern.start) + _OVERHEAD_BYTES
        while len(self._templates) > MAX_TEMPLATES_EACH:
            del self._templates[next(iter(self._templates))]
        while self.size_bytes > MAX_BYTES_EACH:
            first = next(iter(self._paths))
            del self._paths[first]
            self.size_bytes -= len(first) + _OVERHEAD_BYTES

    def names(self, path: str) -> bool:
        return path in self._paths or any(each.matches(path) for each in self._templates)


class Signposts:
    """The paths that all served playlists have named; bounded, thread-safe."""

    def __init__(
        self, allowed: AllowList, recall: Callable[[], Iterable[Recalled]] = lambda: ()
    ) -> None:
        """*recall* yields what playlists from before the start name, the last used one first."""
        self._allowed = allowed
        self._recall = recall
        self._has_recalled = False
        self._recalling = threading.Lock()
        self._lock = threading.Lock()
        # By the playlist's path and place, the last used one last.
        self._playlists: OrderedDict[tuple[str, Place], _Named] = OrderedDict()

    def learn(self, path: str, place: Place, patterns: Iterable[PathPattern]) -> None:
        """Remember that the playlist at the origin's *path*, served at *place*, names these."""
        with self._lock:
            self._playlists.setdefault((path, place), _Named()).add(patterns)
            self._playlists.move_to_end((path, place))
            self._forget()

    def lead(self, target: str, *, referer: str, host: str) -> str | None:
        """Return the target to which to redirect a request for *target*; None if unknown.

        *host* is the request's Host. The route that its *referer* is below goes first.

        Raises:
            Ambiguous: it may be in several places.
        """
        self._recall_once()
        places = self._find(target.partition("?")[0])
        roots = (f"http://{host}", f"https://{host}")
        asking = [
            place
            for place in places
            if referer.startswith(tuple(f"{root}{place.route}/" for root in roots))
        ]
        places = asking or places
        if len({(place.base.origin, place.base.userinfo) for place in places}) > 1:
            routes = ", ".join(sorted(f"{place.route}/" for place in places))
            raise Ambiguous(f"playlists of several origins name this path; ask below {routes}")
        for place in places:
            # A mount may show less than all of its origin; its URL may still be allowed.
            for each in (place, self._by_url(place.base)):
                if each is not None and (found := each.target(target)) is not None:
                    return found
        return None

    def _recall_once(self) -> None:
        """Learn, once, what playlists from before the start name, as older than all others.

        It is done before the first redirect, as a path that playlists of two origins name
        is ambiguous after a restart, too.
        """
        with self._recalling:
            if self._has_recalled:
                return
            for path, place, patterns in self._recall():
                with self._lock:
                    if (path, place) not in self._playlists:
                        self._playlists[path, place] = named = _Named()
                        self._playlists.move_to_end((path, place), last=False)
                        named.add(patterns)
                        self._forget()
            self._has_recalled = True

    def _forget(self) -> None:
        """Forget the least recently used playlists while all together take too much."""
        while len(self._playlists) > MAX_PLAYLISTS or self._size_bytes() > MAX_BYTES:
            self._playlists.popitem(last=False)

    def _by_url(self, base: OriginUrl) -> Place | None:
        root = base._replace(userinfo=None, target="/")
        allowed = base.userinfo is None and self._allowed.names(root)
        return Place(f"/{root.scheme}/{root.authority}", root) if allowed else None

    def _find(self, path: str) -> list[Place]:
        """Return the places whose playlists named *path*, the last used one first."""
        with self._lock:
            using = [key for key, named in self._playlists.items() if named.names(path)]
            for key in using:
                self._playlists.move_to_end(key)
        return list(dict.fromkeys(place for _, place in reversed(using)))

    def reading(
        self,
        path: str,
        place: Place,
        fields: Fields,
        pieces: Iterable[_Piece],
        length: int | None,
    ) -> Iterator[_Piece]:
        """Yield the *pieces* of a playlist, bytes or iterables of them, and learn what it names.

        It is learnt before the client gets the last of the *length* bytes (or the end, if
        the length is unknown), and so before it can ask for anything that is named.
        """
        text = bytearray()
        for piece in pieces:
            if len(text) <= MAX_PLAYLIST_BYTES:
                text += piece if isinstance(piece, bytes) else b"".join(piece)
            if len(text) == length:
                self.learn(path, place, paths_named(path, fields, bytes(text)))
            yield piece
        if length is None:
            self.learn(path, place, paths_named(path, fields, bytes(text)))

    def _size_bytes(self) -> int:
        return sum(named.size_bytes for named in self._playlists.values())


def _move_to_end(known: dict[_T, None], item: _T) -> bool:
    """Add *item*, or make it the latest; say whether it is new."""
    is_new = item not in known
    known.pop(item, None)
    known[item] = None
    return is_new
