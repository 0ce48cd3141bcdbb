"""What a playlist plays, in order: M3U, and HLS's media and master playlists. Pure, no I/O.

Only as much of RFC 8216 as it takes to fetch what a player will ask for next: which
URLs, and which bytes of them. Keys are left to the player, because their servers
mostly want its credentials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from .access import AllowList
from .errors import UsageError
from .parts import Parts
from .ranges import ByteRange
from .urls import OriginUrl, resolve

__all__ = ["Item", "Playlist", "Upcoming", "parse_m3u", "read_text", "upcoming"]

MAX_PLAYLIST_BYTES: Final = 1 << 20

_HEADER: Final = "#EXTM3U"
_MAP: Final = "#EXT-X-MAP:"
_BYTERANGE: Final = "#EXT-X-BYTERANGE:"
_VARIANT: Final = "#EXT-X-STREAM-INF"
_END: Final = "#EXT-X-ENDLIST"
_LIVE_SIGN: Final = "#EXT-X-TARGETDURATION"

_URI: Final = re.compile(r'[:,]URI="([^"]*)"')
_PART_OF: Final = re.compile(r'[:,]BYTERANGE="([0-9@]+)"')
_LENGTH: Final = re.compile(r"([0-9]{1,18})(?:@([0-9]{1,18}))?\Z")


@dataclass(frozen=True)
class Item:
    """Something to be played: a URL, which bytes of it, None for all, and what it *needs* first."""

    url: OriginUrl
    part: ByteRange | None = None
    needs: Item | None = None


@dataclass(frozen=True)
class Playlist:
    """The items in order.

    Of a master playlist, ``variants`` are the playlists to choose from, and there are
    no items. A ``live`` one may yet grow at its end.
    """

    items: tuple[Item, ...] = ()
    variants: tuple[OriginUrl, ...] = ()
    live: bool = False


def parse_m3u(text: str, base: OriginUrl) -> Playlist:
    """Return the playlist *text*, which was served at *base*.

    What is no http(s) URL is left out. Without its header it is believed to be a
    playlist only under a playlist's name.

    Raises:
        UsageError: it is no playlist.
    Source: RFC 8216 §4.
    """
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    named = base.path.lower().endswith((".m3u", ".m3u8"))
    if not lines or not (lines[0].startswith(_HEADER) or named):
        raise UsageError("that is no M3U playlist")
    reading = _Reading(base)
    for line in filter(None, lines):
        reading.take(line)
    return reading.playlist()


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def read_text(stream: _Stream) -> str:
    """Return a playlist's text, read to its end.

    Raises:
        UsageError: it is longer than any playlist.
    """
    data = bytearray()
    while piece := stream.read(MAX_PLAYLIST_BYTES + 1 - len(data)):
        data += piece
        if len(data) > MAX_PLAYLIST_BYTES:
            raise UsageError("that is too long for a playlist")
    return data.decode("utf-8", "replace")


class _Reading:
    """What the lines so far say of the next one."""

    def __init__(self, base: OriginUrl) -> None:
        self._base = base
        self._items: list[Item] = []
        self._variants: list[OriginUrl] = []
        self._is_variant = False
        self._part: str | None = None
        self._map: Item | None = None
        self._ends: dict[OriginUrl, int] = {}  # where a part without an offset begins
        self._hls = self._ended = False

    def take(self, line: str) -> None:
        """Read one line that is not empty."""
        if not line.startswith("#"):
            self._refer(line)
        elif line.startswith(_MAP):
            self._initialise(line)
        elif line.startswith(_BYTERANGE):
            self._part = line[len(_BYTERANGE) :]
        elif line.startswith(_VARIANT):
            self._is_variant = True
        self._hls |= line.startswith(_LIVE_SIGN)
        self._ended |= line.startswith(_END)

    def playlist(self) -> Playlist:
        """Return what has been read."""
        live = self._hls and not self._ended
        return Playlist(tuple(self._items), tuple(self._variants), live)

    def _refer(self, reference: str) -> None:
        url = self._resolve(reference)
        if url is not None and self._is_variant:
            self._variants.append(url)
        elif url is not None:
            self._items.append(Item(url, self._bytes(url, self._part), self._map))
        self._is_variant, self._part = False, None

    def _initialise(self, line: str) -> None:
        """Read where the initialisation section is. Source: RFC 8216 §4.3.2.5."""
        reference, part = _URI.search(line), _PART_OF.search(line)
        url = self._resolve(reference[1]) if reference else None
        self._map = Item(url, self._bytes(url, part[1] if part else None)) if url else None

    def _bytes(self, url: OriginUrl, part: str | None) -> ByteRange | None:
        """Return what ``LENGTH@OFFSET`` means. Source: RFC 8216 §4.3.2.2."""
        length = _LENGTH.match(part.strip()) if part else None
        if length is None or not int(length[1]):
            return None
        # Without an offset it begins where the last part of the same resource ended.
        start = int(length[2]) if length[2] else self._ends.get(url, 0)
        stop = self._ends[url] = start + int(length[1])
        return ByteRange(start, stop)

    def _resolve(self, reference: str) -> OriginUrl | None:
        try:
            return resolve(self._base, reference)
        except UsageError:
            return None  # another scheme, or nothing that could be asked for


@dataclass(frozen=True)
class Upcoming:
    """What is to be fetched, by URL and in order: which parts, None for all of it.

    ``refused`` are the origins that items were left out of.
    """

    parts: dict[str, Parts | None]
    refused: tuple[str, ...] = ()


def upcoming(
    url: OriginUrl,
    count: int,
    read: Callable[[OriginUrl], str],
    *,
    after: OriginUrl | None = None,
    allowed: AllowList | None = None,
) -> Upcoming:
    """Return the next *count* items of the playlist at *url*, with what they need.

    *read* returns a playlist's text. Of a master playlist, the first variant's items are
    meant: that is the one that players begin with. *after* is the item that is being
    played; without, it is the first ones, or the last ones of a live playlist.

    Playlists are the origin's, and could name anything in reach of this machine: items
    are taken from their playlist's own origin and those *allowed*, and from no others.

    Raises:
        UsageError: what is there is no playlist, or *after* is not in it.
        CacheError: as *read* does.
    """
    playlist = parse_m3u(read(url), url)
    own = AllowList() if allowed is None else allowed

    def may_have(other: OriginUrl) -> bool:
        return other.origin == url.origin or own.names(other)

    if playlist.variants:
        first = playlist.variants[0]
        if not may_have(first):
            return Upcoming({}, (first.origin,))
        playlist = parse_m3u(read(first), first)
    items = _next(playlist, count, after)
    refused = dict.fromkeys(item.url.origin for item in items if not may_have(item.url))
    return Upcoming(_by_url(item for item in items if may_have(item.url)), tuple(refused))


def _by_url(items: Iterable[Item]) -> dict[str, Parts | None]:
    parts: dict[str, Parts | None] = {}
    for item in items:
        known = parts.setdefault(str(item.url), [])
        if item.part is None or known is None:
            parts[str(item.url)] = None
        else:
            known.append((item.part.start, item.part.stop))
    return parts


def _next(playlist: Playlist, count: int, after: OriginUrl | None) -> tuple[Item, ...]:
    """Return what is to be fetched for the next *count* items, in order and once each."""
    items = playlist.items
    if after is not None:
        places = [place for place, item in enumerate(items) if item.url == after]
        if not places:
            raise UsageError("the item to go on after is not in the playlist")
        chosen = items[places[-1] + 1 :][:count]
    else:
        chosen = items[-count:] if playlist.live else items[:count]
    both = ((item.needs, replace(item, needs=None)) for item in chosen)
    return tuple(dict.fromkeys(item for pair in both for item in pair if item is not None))
