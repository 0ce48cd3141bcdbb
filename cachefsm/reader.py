"""One reader of one entry: waits for bytes, says what it needs next, hands them over."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, cast

from .content import Content
from .demands import Demand
from .entry import LiveEntry
from .errors import StorageError, WaitCancelled, WaitTimeout
from .origin import Fetch
from .ranges import END, ByteRange
from .representation import Representation
from .straight import Straight
from .transport import Canceller
from .urls import OriginUrl

__all__ = ["CacheFile", "Reader", "ReaderOptions", "VerifyReads"]

_log = logging.getLogger(__name__)

PIECE_BYTES: Final = 1 << 20
"""The most that is handed over at once: 1 MiB moves 3.3 GB/s to one client where
64 KiB moves 1.8, and bounds the memory that a slow client holds."""

SPAN_BYTES: Final = 4 << 20
"""The longest stored span named at once, so that a reader's position keeps moving."""


class VerifyReads(str, Enum):
    """Which stored blocks are compared with their checksum before they are served."""

    NEVER = "never"
    SAMPLE = "sample"
    """One in sixteen, at random: rot is noticed before long, at a cost of a few percent."""
    ALWAYS = "always"


_SAMPLE: Final = 1 / 16


@dataclass(frozen=True)
class ReaderOptions:
    """How long a reader waits, in seconds, how far ahead it asks, in bytes, what it checks.

    A read-ahead of 0 asks at once for all that the reader was opened for.
    """

    first_byte_timeout_s: float = 30.0
    stall_timeout_s: float = 30.0
    read_ahead_bytes: int = 8 << 20
    verify_reads: VerifyReads = VerifyReads.SAMPLE
    dice: Callable[[], float] = random.random


class _Origin(Protocol):
    def fetch(
        self,
        url: OriginUrl,
        asked: ByteRange | None,
        *,
        held: Representation | None,
        canceller: Canceller,
    ) -> Fetch: ...


class Reader:
    """Reads one generation of an entry; used by one thread, cancelled from any.

    What it returns comes from the content that it was attached to. If the entry
    moves on to another generation, it serves what that content still holds and
    then raises RepresentationChanged. What cannot be stored comes straight from
    the origin, if it is provably of the same version. While it waits it holds
    what *watch* returns: the proxy's way to notice that its client has left.
    """

    def __init__(
        self,
        entry: LiveEntry,
        options: ReaderOptions,
        origin: _Origin,
        *,
        watch: Callable[[Reader], AbstractContextManager[object]] = lambda _reader: nullcontext(),
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.entry = entry
        self._options = options
        self._origin = origin
        self._watch = watch
        self._content = entry.attach()
        self._demand: Demand | None = None
        self._cancelled = False
        self._canceller = Canceller()
        self._started = False
        self._straight: Straight | None = None
        self._sound: int | None = None
        self._resources = ExitStack()
        self._resources.callback(on_close)
        entry.on_close.add(self._canceller.cancel)
        self._resources.callback(entry.on_close.discard, self._canceller.cancel)
        self._resources.callback(entry.detach, self._content)

    @property
    def content(self) -> Content:
        """What is being read."""
        return self._content

    @property
    def length(self) -> int:
        """The representation's length in bytes, END while it is unknown."""
        return self._content.length if self._straight is None else self._straight.length

    def close(self) -> None:
        """Let the entry go; safe to call twice."""
        self._let_go(linger=True)
        self._resources.close()

    def cancel(self) -> None:
        """Make the waiting read raise WaitCancelled now; called from any thread."""
        self._cancelled = True
        self._canceller.cancel()
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
        if self._straight is not None:
            return self._straight.representation
        if self.entry.refusal() is not None and not (content.joinable or content.is_here):
            # The rest of it would have to come from another answer, which can be of
            # another version: all of it from that one, then.
            return self._go_straight(start, stop, None).representation
        if content.representation is None:
            self._want(start, stop, blocked=True)
            try:
                self._wait(
                    lambda: content.representation is not None,
                    self._options.first_byte_timeout_s,
                    "the origin has not answered",
                )
            except StorageError:
                return self._go_straight(start, stop, None).representation
        return cast(Representation, content.representation)

    def available(self, position: int, stop: int) -> int:
        """Wait until the byte at *position* is here; return the end of what is.

        Returns *position* itself where the file turns out to end there. The
        result is at most *stop*, which is how far bytes are wanted, and at most
        4 MiB on, so that the reader's position keeps moving.

        Raises:
            WaitTimeout: the byte did not arrive in time.
            StorageError: it cannot be stored, or what is stored cannot be read.
            CacheError: why it will not come.
        """
        content = self._content
        while True:
            here = self.entry.stored_until(content, position, min(stop, position + SPAN_BYTES))
            if here > position and self._is_sound(position, here):
                self._advance(here, stop)
                return here
            if position >= min(stop, content.length):
                return position
            self._want(position, stop, blocked=True)
            options = self._options
            self._wait(
                lambda: content.present.run_stop(position) > position or position >= content.length,
                options.stall_timeout_s if self._started else options.first_byte_timeout_s,
                f"byte {position} has not arrived",
            )

    def ready(self, start: int, stop: int) -> None:
        """Return once the first byte of ``[start, stop)`` can be handed over.

        Raises:
            CacheError: why it cannot; it can still be said to a client as a status.
        """
        if self._straight is not None:
            self._straight.ask(start, stop)
            return
        try:
            if self.available(start, stop) > start:
                # From now on its bytes stay readable, whatever becomes of the entry.
                self.entry.open_file(self._content)
        except StorageError:
            self._go_straight(start, stop, self._content.representation)

    def spans(self, start: int, stop: int) -> Iterator[ByteRange | bytes]:
        """Yield ``[start, stop)`` as it arrives: stored spans, or bytes straight from the origin.

        A stop of END means to the end of the file.

        Raises:
            CacheError: why the rest will not come.
        """
        position = start
        while position < stop and self._straight is None:
            try:
                here = self.available(position, stop)
            except StorageError:
                self._go_straight(position, stop, self._content.representation)
                break
            if here == position:
                return
            yield ByteRange(position, here)
            position = here
        if position < stop and self._straight is not None:
            yield from self._straight.pieces(position, stop)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the same as bytes, at most 1 MiB at a time."""
        for span in self.spans(start, stop):
            if isinstance(span, bytes):
                yield span
                continue
            for position in range(span.start, span.stop, PIECE_BYTES):
                size = min(PIECE_BYTES, span.stop - position)
                yield self._content.file.read_at(position, size)

    def read(self, position: int, size: int) -> bytes:
        """Return some bytes at *position*, at most *size*; b"" at the end of the file."""
        straight = self._straight
        if straight is None:
            try:
                stop = self.available(position, position + size)
            except StorageError:
                straight = self._go_straight(position, END, self._content.representation)
            else:
                if stop == position:
                    return b""
                return self._content.file.read_at(position, min(stop - position, PIECE_BYTES))
        return straight.read(position, size)

    def _advance(self, position: int, stop: int) -> None:
        self._started = True
        if self._demand is not None or not self._content.is_whole:
            self._want(position, stop, blocked=False)

    def _want(self, position: int, stop: int, *, blocked: bool) -> None:
        # What is asked for and what is read ahead: never past what the client wants.
        ahead = self._options.read_ahead_bytes
        window = min(stop, position + ahead) if ahead else stop
        self._demand = self.entry.want(self._demand, position, window, blocked=blocked)

    def _let_go(self, *, linger: bool) -> None:
        demand, self._demand = self._demand, None
        if demand is not None:
            self.entry.unwant(demand, linger=linger)

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
            if content.joinable or content.present.total == before:
                raise WaitTimeout(f"{what} within {timeout_s:g} s")
        if self._cancelled and not ready():
            raise WaitCancelled("the client has left")

    # -- what is damaged -------------------------------------------------------

    def _is_sound(self, start: int, stop: int) -> bool:
        """Say whether the blocks there may be served; damaged ones are dropped."""
        if self._options.verify_reads is VerifyReads.NEVER:
            return True
        found = self.entry.damaged(self._content, start, stop, self._chooses)
        if found.damaged:
            _log.warning("%s: stored bytes are damaged; fetching again", self.entry.shown_url)
            self.entry.drop(self._content, found.damaged, "the stored bytes are damaged")
        return not found.damaged

    def _chooses(self, block: int) -> bool:
        if block == self._sound:  # small reads come back to the same block again and again
            return False
        self._sound = block
        options = self._options
        return options.verify_reads is VerifyReads.ALWAYS or options.dice() < _SAMPLE

    # -- what cannot be stored -------------------------------------------------

    def _go_straight(self, start: int, stop: int, told: Representation | None) -> Straight:
        """Ask the origin for ``[start, stop)``, past the cache, of the version that was *told*."""
        self._let_go(linger=False)
        straight = self._straight = Straight(self._ask_origin, told, given=self._started)
        # Until the end: while it reads from the origin, nothing else would notice
        # that the client has left.
        self._resources.enter_context(self._watch(self))
        self._resources.enter_context(closing(straight))
        straight.ask(start, stop)
        return straight

    def _ask_origin(self, *, asked: ByteRange | None, held: Representation | None) -> Fetch:
        return self._origin.fetch(self.entry.url, asked, held=held, canceller=self._canceller)


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
