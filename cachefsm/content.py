"""The stored bytes of one generation of an entry, and who is filling them.

Plain records without locks: everything here is read and written under the lock
of the entry that owns it, except the file's positional reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from .errors import CacheError
from .ranges import END, RangeSet
from .scheduler import Priority, StreamView
from .acceptance import Representation
from .storage import ContentFile

__all__ = ["Claim", "Content", "Demand", "RateMeter"]

_ids: Final = count(1)


class RateMeter:
    """Bytes per second over the last few seconds, from amounts and times."""

    _HALF_LIFE_S: Final = 2.0

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._bytes = 0.0
        self._seconds = 0.0

    def add(self, size_bytes: int, now_s: float) -> None:
        """Count *size_bytes* that arrived up to *now_s*."""
        elapsed = max(0.0, now_s - self._since_s)
        self._since_s = now_s
        fade = 0.5 ** (elapsed / self._HALF_LIFE_S)
        self._bytes = self._bytes * fade + size_bytes
        self._seconds = self._seconds * fade + elapsed

    def rate_bytes_s(self, now_s: float) -> float:
        """Return the rate as of *now_s*; silence lets it sink."""
        silence = max(0.0, now_s - self._since_s)
        fade = 0.5 ** (silence / self._HALF_LIFE_S)
        seconds = self._seconds * fade + silence
        return self._bytes * fade / seconds if seconds > 0 else 0.0


@dataclass(eq=False)
class Content:
    """One generation's file, and which of its bytes are there.

    ``present`` bytes are in the file and may be served; ``durable`` ones are
    synced and recorded in the database too. ``superseded`` is set once the entry
    has moved on to another generation: what is present may still be read by
    whoever holds this, what is missing will never come.
    """

    file: ContentFile
    present: RangeSet = field(default_factory=RangeSet)
    durable: RangeSet = field(default_factory=RangeSet)
    representation: Representation | None = None
    superseded: CacheError | None = None
    asked_past_end: bool = False  # the first question was; the next comes from the front

    @property
    def complete_length(self) -> int | None:
        """The representation's length in bytes, or None while it is unknown."""
        return self.representation.complete_length if self.representation else None

    @property
    def length(self) -> int:
        """The same, with END for unknown: fit for arithmetic on ranges."""
        complete_length = self.complete_length
        return END if complete_length is None else complete_length

    @property
    def is_whole(self) -> bool:
        """Whether the length is known and every byte is durable."""
        return self.durable.total == self.complete_length

    def has(self, start: int, stop: int) -> bool:
        """Say whether ``[start, stop)``, as far as there are such bytes, is present."""
        stop = min(stop, self.length)
        return stop <= start or self.present.contains(start, stop)


@dataclass(eq=False)
class Claim:
    """A downloader's promise to fetch ``[position, stop)`` of a content.

    ``reach`` is the stop that the origin was asked for. A claim that is
    *cancelled* may write and report nothing more; ``cancel_io`` wakes its thread
    out of a blocking read, and is set by that thread.
    """

    content: Content
    position: int
    stop: int
    reach: int
    priority: Priority
    meter: RateMeter
    held: Representation | None
    id: int = field(default_factory=lambda: next(_ids))
    cancelled: bool = False
    received_bytes: int = 0
    cancel_io: Callable[[], None] | None = None

    def view(self, now_s: float) -> StreamView:
        """Return what the scheduler sees of it."""
        return StreamView(
            self.id, self.position, self.stop, self.reach, self.meter.rate_bytes_s(now_s)
        )


@dataclass(eq=False)
class Demand:
    """Somebody's wish for bytes, alive until dropped or, where set, ``expires_at_s``."""

    asked_by: str
    priority: Priority
    start: int = 0
    stop: int = END
    expires_at_s: float | None = None
