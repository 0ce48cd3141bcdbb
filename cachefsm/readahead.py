"""How far ahead of a reader to fetch: the longer it reads on, the further. Pure."""

from __future__ import annotations

from typing import Final

from .ranges import ByteRange

__all__ = ["FIRST_BYTES", "ReadAhead"]

FIRST_BYTES: Final = 512 << 10
"""The window of a reader that has just come, or has jumped. Enough for the header that a
media scanner reads; and not much is wasted if it jumps on."""


class ReadAhead:
    """The window of one reader: it doubles while the reader reads on, up to *most_bytes*.

    After a jump out of the window it starts small again. If *most_bytes* is 0, everything
    that a reader wishes for is fetched at once.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._begun = 0
        self._stop = 0

    def farthest(self, position: int, wish_stop: int) -> int:
        """Return up to which byte to ask in the first request, when nothing is known of the file.

        It may turn out that answers cannot be joined: then this one has to bring all that
        will be read. If they can, no more of it is received than the window holds.
        """
        return min(wish_stop, position + self._most_bytes) if self._most_bytes else wish_stop

    def window_stop(self, position: int, wish_stop: int, asked: ByteRange | None = None) -> int:
        """Return up to which byte to fetch for a reader at *position* that wants ``…wish_stop``.

        A reader of single pieces (a Python program's ``read(size)``) passes the piece that
        it *asked* for: at first just that is fetched, and once it has read on, more.
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
