"""A seekable binary file over an entry, as Python has files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from .errors import (
    RepresentationChanged,
)
from .ranges import END
from .reader import Reader
from .representation import Representation
from .settling import QUESTIONS

__all__ = ["CacheFile"]


class CacheFile(io.RawIOBase):
    """A seekable binary file over an entry; a read blocks until its bytes are here.

    *open_reader* is called at once, and again if the origin turns out to have another
    version before the first byte was read.
    """

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        super().__init__()
        self._open_reader = open_reader
        self._reader = open_reader()
        self._settled = False
        self._position = 0

    def representation(
        self, start: int = 0, stop: int = END, *, reads_on: bool = False
    ) -> Representation:
        """Return what the origin says of the version that is read.

        If it has to be asked first, it is as :meth:`Reader.representation` does.

        Raises:
            CacheError: it cannot be asked, or does not answer.
        """
        for _ in range(QUESTIONS):
            try:
                found = self._reader.representation(start, stop, reads_on=reads_on)
            except RepresentationChanged:
                if self._settled:
                    raise
                self._reader.close()
                self._reader = self._open_reader()
            else:
                self._settled = True
                return found
        raise RepresentationChanged("the file changes at the origin all the time")

    def readable(self) -> bool:
        """Return True."""
        return True

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield ``[start, stop)`` as it arrives, whatever the position."""
        self.representation(start, stop)
        return self._reader.pieces(start, stop)

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; from the end, this waits for the length to be known."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        if base is None:
            base = self._length()
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill *buffer* with what is here, at least one byte but at the end."""
        view = memoryview(buffer).cast("B")
        if len(view) and not self._settled:
            self.representation(self._position, self._position + len(view), reads_on=True)
        data = self._reader.read(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Let the entry go."""
        # Python closes at its end also what was refused a reader, and from 3.13 on it says
        # so where that fails.
        if not self.closed and hasattr(self, "_reader"):
            self._reader.close()
        super().close()

    def _length(self) -> int:
        length = self.representation().complete_length
        if length is None:
            raise io.UnsupportedOperation("the origin has not said how long the file is")
        return length
