"""Reads stored playlists, so that players can go on after a restart of the proxy.

A player fetches a film's playlist once, and then its segments for hours. If the proxy is
restarted meanwhile, it has to learn again which paths the playlist named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from .errors import StorageError
from .fields import Fields
from .models import EntryRecord, Store
from .playlists import MAX_PLAYLIST_BYTES, is_playlist
from .records import representation_of
from .storage import ContentFile
from .urls import OriginUrl, parse_url

__all__ = ["StoredPlaylist", "stored_playlists"]

_log = logging.getLogger(__name__)

_LIKE_PLAYLISTS: Final = {
    "url": ("%.m3u%", "%.mpd%"),
    "response_fields": ("%mpegurl%", "%dash+xml%"),
}
"""SQL patterns that rows of playlists match, and rows of few other files."""


class StoredPlaylist(NamedTuple):
    """A playlist that is stored whole: its URL, its fields, its text."""

    url: OriginUrl
    fields: Fields
    text: bytes


def stored_playlists(store: Store, content: Path, limit: int) -> Iterator[StoredPlaylist]:
    """Yield the playlists that are stored whole, at most *limit*, the last used one first.

    *content* is the directory of content files.

    Raises:
        StorageError: the database cannot be read.
    """
    records = store.complete_like(_LIKE_PLAYLISTS, MAX_PLAYLIST_BYTES, limit)
    for record in records:
        found = _read(record, content)
        if found is not None:
            yield found


def _read(record: EntryRecord, content: Path) -> StoredPlaylist | None:
    url, representation = parse_url(record.url), representation_of(record)
    if representation is None or not is_playlist(url.path, representation.fields):
        return None
    file = ContentFile(content / record.content_file)
    try:
        text = file.read_at(0, record.bytes_present)
    except StorageError as error:
        _log.warning("a playlist cannot be read again: %s", error)
        return None
    finally:
        file.release()
    return StoredPlaylist(url, representation.fields, text)
