"""An entry as a seekable binary file object."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Final

from .errors import (
    RepresentationChanged,
)
from .ranges import END, ByteRange
from .reader import Reader
from .representation import Representation
from .settling import QUESTIONS

__all__ = ["BUFFER_BYTES", "BufferedCacheFile", "CacheFile"]

BUFFER_BYTES: Final = 256 << 10
"""The buffer for small reads. Also what is asked for when only the size or type of a file is
wanted, because it will probably be read next."""


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
        self._asked = ByteRange(0, 0)

    def representation(
        self, start: int = 0, stop: int = END, *, reads_on: bool = False
    ) -> Representation:
        """Return what the origin says of the version that is read; asks it if need be.

        *start* and *stop* are as in :meth:`Reader.representation`.

        Raises:
            CacheError: the origin cannot be asked, or does not answer.
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
        self._check_open()
        return True

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield ``[start, stop)`` as it arrives, whatever the position."""
        self.representation(start, stop)
        return self._reader.pieces(start, stop)

    def seekable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; from the end, this waits for the length to be known."""
        self._check_open()
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise io.UnsupportedOperation("no holes are sought in a file that arrives in pieces")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        if base is None:
            base = self._length()
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill *buffer* with what is here, at least one byte but at the end."""
        self._check_open()
        view, position = memoryview(buffer).cast("B"), self._position
        if not len(view):
            return 0
        asked = self._asked
        if not asked.start <= position < asked.stop:
            asked = ByteRange(position, position + len(view))
        if not self._settled:
            self.representation(position, asked.stop, reads_on=True)
        data = self._reader.read(position, min(len(view), asked.stop - position), asked)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Return all bytes from the position on."""
        self._check_open()
        self.representation(self._position)
        data = b"".join(self._reader.pieces(self._position, END))
        self._position += len(data)
        return data

    def expect(self, asked: ByteRange) -> None:
        """Announce that the next reads are parts of a single one, of the range *asked*."""
        self._asked = asked

    def close(self) -> None:
        """Let the entry go."""
        # Python closes at its end also what was refused a reader, and from 3.13 on it says
        # so where that fails.
        if not self.closed and hasattr(self, "_reader"):
            self._reader.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")

    def _length(self) -> int:
        length = self.representation().complete_length
        if length is None:
            raise io.UnsupportedOperation("the origin has not said how long the file is")
        return length


class BufferedCacheFile(io.BufferedReader):
    """The same with a buffer, for many small reads.

    Python splits a large read into several of the buffer's size. To the cache that would
    look like reading on, and it would fetch more ahead than the reader of a single column
    or index wants; so the whole range is announced first.
    """

    def __init__(self, file: CacheFile, buffer_bytes: int = BUFFER_BYTES) -> None:
        super().__init__(file, buffer_bytes)
        self._file = file
        self._buffer_bytes = buffer_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Return *size* bytes, fewer only at the end; all that are left by default."""
        if size is not None and size > self._buffer_bytes:
            start = self.tell()
            self._file.expect(ByteRange(start, start + size))
        return super().read(size)
