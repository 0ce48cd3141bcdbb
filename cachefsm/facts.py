"""Describes an entry as JSON values; no locks, no I/O.

It works for entries in memory and for those that are only rows, so that a long list need
not load every entry.
"""

from __future__ import annotations

from typing import Any, Final

from .content import Content
from .fields import value_of
from .models import EntryRecord
from .ranges import END
from .surroundings import EntryPolicy
from .urls import redact

__all__ = ["describe", "is_playable", "opening_ranges", "playable_ranges"]


SMALL_BYTES: Final = 32 << 20
"""Up to this size the tail of a media file comes with the rest of it."""

_MEDIA: Final = ("video/", "audio/", "application/ogg", "application/mp4", "application/x-matroska")


def describe(record: EntryRecord, content: Content, policy: EntryPolicy) -> dict[str, Any]:
    """Return the description of an entry in which nobody reads and nothing is fetched.

    The caller fills in readers and streams, if the entry is in memory.
    """
    fields = content.representation.fields if content.representation else ()
    return {
        "id": record.id,
        "url": redact(record.url),
        "state": record.state,
        "reason": record.state_reason,
        "since": record.state_since,
        "total_size": content.complete_length,
        "downloaded_bytes": content.present.total,
        "ranges": [[start, stop] for start, stop in content.present],
        "playable": is_playable(content, policy),
        "rate_bytes_s": 0,
        "streams": [],
        "readers": 0,
        "asked_by": [],
        "pinned": record.pinned,
        "generation": record.generation,
        "created_at": record.created_at,
        "last_accessed_at": record.last_accessed_at,
        "access_count": record.access_count,
        "content_type": value_of(fields, "Content-Type"),
    }


def is_playable(content: Content, policy: EntryPolicy) -> bool:
    """Say whether enough is here to start playing: a head, and a tail.

    MP4 and MKV keep their index at either end. If the length is unknown, or the origin
    serves no ranges, the head is enough.
    """
    return content.representation is not None and all(
        content.has(start, stop) for start, stop in playable_ranges(content, policy)
    )


def playable_ranges(content: Content, policy: EntryPolicy) -> list[tuple[int, int]]:
    """Return the byte ranges that :func:`is_playable` requires, as far as they are known."""
    head, length = policy.playable_head_bytes, content.length
    if content.representation is None:
        return [(0, max(1, head))]  # one byte at least, for the answer that comes with it
    if length == END or not content.joinable:
        return [(0, head)]
    return [(0, head), (max(0, length - policy.playable_tail_bytes), length)]


def opening_ranges(content: Content, policy: EntryPolicy) -> list[tuple[int, int]]:
    """Return the ranges that a player reads before all others: head and tail of a media file.

    None for a small file, all of which comes soon, or if answers cannot be joined.
    """
    if content.representation is None or not content.joinable:
        return []
    media_type = (value_of(content.representation.fields, "Content-Type") or "").lower()
    if not media_type.startswith(_MEDIA) or not SMALL_BYTES < content.length < END:
        return []
    return playable_ranges(content, policy)
