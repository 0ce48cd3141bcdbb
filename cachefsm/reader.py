"""One reader of one entry: waits for bytes, says what it needs next, hands them over."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, cast

from .content import Content
from .demands import Demand
from .entry import LiveEntry
from .errors import WaitCancelled, WaitTimeout
from .ranges import END
from .representation import Representation

__all__ = ["CacheFile", "Reader", "ReaderOptions"]

PIECE_BYTES: Final = 1 << 20
"""The most that is handed over at once: 1 MiB moves 3.3 GB/s to one client where
64 KiB moves 1.8, and bounds the memory that a slow client holds."""


@dataclass(frozen=True)
class ReaderOptions:
    """How long a reader waits, in seconds, and how far ahead it asks, in bytes."""

    first_byte_timeout_s: float = 30.0
    stall_timeout_s: float = 30.0
    read_ahead_bytes: int = 8 << 20


class Reader:
    """Reads one generation of an entry; used by one thread, cancelled from any.

    Everything it returns comes from the content that it was attached to. If the
    entry moves on to another generation, it serves what that content still holds
    and then raises RepresentationChanged. While it waits it holds what *watch*
    returns: the proxy's way to notice that its client has left.
    """

    def __init__(
        self,
        entry: LiveEntry,
        options: ReaderOptions,
        *,
        watch: Callable[[Reader], AbstractContextManager[object]] = lambda _reader: nullcontext(),
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.entry = entry
        self._options = options
        self._watch = watch
        self._on_close: Callable[[], None] | None = on_close
        self._content = entry.attach()
        self._demand: Demand | None = None
        self._cancelled = False
        self._started = False

    @property
    def content(self) -> Content:
        """What is being read."""
        return self._content

    def close(self) -> None:
        """Let the entry go; safe to call twice."""
        on_close, self._on_close = self._on_close, None
        if on_close is None:
            return
        if self._demand is not None:
            self.entry.unwant(self._demand)
        self.entry.detach(self._content)
        on_close()

    def cancel(self) -> None:
        """Make the waiting read raise WaitCancelled now; called from any thread."""
        self._cancelled = True
        self.entry.wake()

    def representation(self, start: int = 0, stop: int = END) -> Representation:
        """Return what the origin says of the representation, waiting for its answer.

        *start* and *stop* say which bytes will be wanted, so that the first
        request to the origin can ask for them.

        Raises:
            WaitTimeout: it has not answered within the first-byte timeout.
            CacheError: why it will not.
        """
        content = self._content
        if content.representation is None:
            self._want(start, stop, blocked=True)
            self._wait(
                lambda: content.representation is not None,
                self._options.first_byte_timeout_s,
                "the origin has not answered",
            )
        return cast(Representation, content.representation)

    def available(self, position: int, stop: int) -> int:
        """Wait until the byte at *position* is here; return the end of what is.

        Returns *position* itself where the file turns out to end there. The
        result is at most *stop*.

        Raises:
            WaitTimeout: the byte did not arrive in time.
            CacheError: why it will not.
        """
        content = self._content
        here = self.entry.stored_until(content, position, stop)
        if here > position:
            self._advance(here, stop)
            return here
        if position >= min(stop, content.length):
            return position
        self._want(position, stop, blocked=True)
        options = self._options
        timeout_s = options.stall_timeout_s if self._started else options.first_byte_timeout_s
        self._wait(
            lambda: content.present.run_stop(position) > position or position >= content.length,
            timeout_s,
            f"byte {position} has not arrived",
        )
        here = self.entry.stored_until(content, position, stop)
        self._advance(here, stop)
        return here

    def read(self, position: int, size: int) -> bytes:
        """Return some bytes at *position*, at most *size*; b"" at the end of the file."""
        stop = self.available(position, position + size)
        if stop == position:
            return b""
        return self._content.file.read_at(position, min(stop - position, PIECE_BYTES))

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield ``[start, stop)`` as it arrives; END means to the end of the file."""
        position = start
        while data := self.read(position, stop - position):
            yield data
            position += len(data)

    def _advance(self, position: int, stop: int) -> None:
        self._started = True
        if self._demand is not None or not self._content.is_whole:
            self._want(position, stop, blocked=False)

    def _want(self, position: int, stop: int, *, blocked: bool) -> None:
        # What is asked for and what is read ahead: never past what the client wants.
        window = min(stop, position + self._options.read_ahead_bytes)
        self._demand = self.entry.want(self._demand, position, window, blocked=blocked)

    def _wait(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        def done() -> bool:
            return self._cancelled or ready()

        content = self._content
        while True:
            before = content.present.total
            with self._watch(self):
                arrived = self.entry.wait(done, timeout_s=timeout_s, content=content)
            if arrived:
                break
            # Where only one stream from the front can bring it, arriving bytes
            # are progress towards it; elsewhere they are somebody else's.
            representation = content.representation
            single = representation is not None and not representation.joinable
            if not single or content.present.total == before:
                raise WaitTimeout(f"{what} within {timeout_s:g} s")
        if self._cancelled and not ready():
            raise WaitCancelled("the client has left")


class CacheFile(io.RawIOBase):
    """A seekable binary file over an entry; a read blocks until its bytes are here."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

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
        data = self._reader.read(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Let the entry go."""
        if not self.closed:
            self._reader.close()
        super().close()

    def _length(self) -> int:
        length = self._reader.representation().complete_length
        if length is None:
            raise io.UnsupportedOperation("the origin has not said how long the file is")
        return length
