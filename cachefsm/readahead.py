"""How far ahead of a reader to fetch: the further, the longer it reads on. Pure."""

from __future__ import annotations

from typing import Final

from .ranges import ByteRange

__all__ = ["FIRST_BYTES", "ReadAhead"]

FIRST_BYTES: Final = 512 << 10
"""How far ahead a reader is served that has just come: enough for the header that a
scanner looks at, little enough to be lost when it hops on."""


class ReadAhead:
    """The window of one reader: it doubles while the reader reads on, up to *most_bytes*.

    A reader that goes elsewhere begins anew. With *most_bytes* 0 there is no window.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._begun = 0
        self._stop = 0

    def farthest(self, position: int, wish_stop: int) -> int:
        """Return how far the first question is to ask, before it is known what it is about.

        What cannot be joined comes from one answer; of all else no more is received
        than the window holds.
        """
        return min(wish_stop, position + self._most_bytes) if self._most_bytes else wish_stop

    def window_stop(self, position: int, wish_stop: int, asked: ByteRange | None = None) -> int:
        """Return how far to fetch for a reader at *position* that will go to *wish_stop*.

        One that says what it has *asked* for now, piece by piece, is given that at first,
        and more than it wished for when it has read on.
        """
        if not self._most_bytes:
            return wish_stop
        if not self._begun <= position <= self._stop:
            self._begun = position
        if asked is None:
            farthest = min(wish_stop, position + FIRST_BYTES + position - self._begun)
        else:
            farthest = asked.stop + max(0, asked.start - self._begun)
        self._stop = min(position + self._most_bytes, farthest)
        return self._stop
