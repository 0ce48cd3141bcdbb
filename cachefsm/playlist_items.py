"""Reads a playlist through the cache, to learn what a player will ask for next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import BinaryIO

from .access import AllowList
from .errors import UsageError
from .m3u import read_text, upcoming
from .parts import Parts
from .urls import OriginUrl, parse_url, redact

__all__ = ["wanted_items"]

_log = logging.getLogger(__name__)


def wanted_items(
    url: str,
    items: object,
    open_playlist: Callable[[OriginUrl], BinaryIO],
    *,
    after: str | None,
    allow: Iterable[str],
) -> dict[str, Parts | None]:
    """Return the next *items* of the playlist at *url*, and which parts of each, None for all.

    Raises:
        UsageError: it is no playlist, *after* is not in it, or *items* is no number.
        CacheError: the reason why the playlist cannot be read.
    """
    if not isinstance(items, int) or items < 0:
        raise UsageError(f"{items!r} is no number of items")
    allowed = AllowList(allow)

    def read(playlist: OriginUrl) -> str:
        with open_playlist(playlist) as stream:
            return read_text(stream)

    current = None if after is None else parse_url(after)
    found = upcoming(parse_url(url), items, read, after=current, allowed=allowed)
    for origin in found.refused:
        _log.warning("%s: items at %s are left out; allow it", redact(url), origin)
    return found.parts
