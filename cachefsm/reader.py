"""One reader of one entry: says which bytes it needs next, waits for them, returns them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Final, cast

from .content import Content
from .demands import Demand
from .entry import LiveEntry
from .errors import (
    NotStored,
    OpenBody,
    OriginStatus,
    StorageError,
    WaitCancelled,
    WaitTimeout,
)
from .fields import Fields
from .origin import Fetch, Fetches, Sent
from .ranges import END, ByteRange
from .readahead import ReadAhead
from .representation import Representation
from .settling import News, PastTheCache, Settling
from .straight import Straight
from .terms import ANY_TERMS, Terms
from .transport import Canceller

__all__ = ["Reader", "ReaderOptions", "VerifyReads"]

_log = logging.getLogger(__name__)

PIECE_BYTES: Final = 1 << 20
"""The most bytes that are returned at once, which bounds the memory that a slow client holds.
1 MiB moves 3.3 GB/s to one client, where 64 KiB moves 1.8."""

SPAN_BYTES: Final = 4 << 20
"""The longest stored span that is returned at once, so that the reader's position, which
decides what is fetched next, keeps moving."""


class VerifyReads(str, Enum):
    """Which stored blocks are compared with their checksum before they are served."""

    NEVER = "never"
    SAMPLE = "sample"
    """One in sixteen, at random: rot is noticed before long, at a cost of a few percent."""
    ALWAYS = "always"


_SAMPLE: Final = 1 / 16


@dataclass(frozen=True)
class ReaderOptions:
    """How long a reader waits, how much is fetched ahead of it, which blocks it checks.

    ``read_ahead_bytes`` is the largest window, which a reader gets that reads on for a
    while; 0 fetches at once all that the reader was opened for.
    """

    first_byte_timeout_s: float = 30.0
    stall_timeout_s: float = 30.0
    read_ahead_bytes: int = 8 << 20
    verify_reads: VerifyReads = VerifyReads.SAMPLE
    dice: Callable[[], float] = random.random


class Reader:
    """Reads one generation of an entry; used by one thread, cancelled from any.

    What it returns comes from the content that it was attached to. If the entry moves on
    to another generation, it serves what that content still holds and then raises
    RepresentationChanged. Bytes that cannot be stored come straight from the origin, if
    they are provably of the same version. It waits inside the context manager that *watch*
    returns, in which the proxy notices that its client has left.
    """

    def __init__(
        self,
        entry: LiveEntry,
        options: ReaderOptions,
        origin: Fetches,
        *,
        terms: Terms = ANY_TERMS,
        news: News | None = None,
        watch: Callable[[Reader], AbstractContextManager[object]] = lambda _reader: nullcontext(),
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.entry = entry
        self._options = options
        self._origin = origin
        self._terms = terms
        self._watch = watch
        self.news = news or News()
        """How the response came about, for Cache-Status."""
        self.own_fields: Fields | None = None
        """The fields of the origin's answer, if that may not be stored and is for this reader
        alone."""
        self._content = entry.attach(terms)
        self._demand: Demand | None = None
        self._ahead = ReadAhead(options.read_ahead_bytes)
        self._cancelled = False
        self._canceller = Canceller()
        self._started = False
        self._stop = END  # how far bytes are wanted
        self._settled = False
        self._straight: Straight | None = None
        self.body: OpenBody | None = None
        """The body of the OriginStatus that was raised last, if it is for this reader alone."""
        self._sound: int | None = None
        self._resources = ExitStack()
        self._resources.callback(on_close)
        self._resources.callback(entry.cancel_on_close(self._cancel_io))
        self._resources.callback(entry.detach, self._content)
        self._resources.callback(self._let_body_go)

    @property
    def content(self) -> Content:
        """What is being read."""
        return self._content

    @property
    def is_straight(self) -> bool:
        """Whether its bytes come straight from the origin, past the cache."""
        return self._straight is not None

    def left_s(self, now_s: float) -> float | None:
        """Return for how long what is stored is still fresh, negative once it is stale."""
        stored = self._content.stored
        return None if stored is None else self._terms.left_s(stored, now_s)

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
        self._cancel_io()
        self.entry.wake()

    def _cancel_io(self) -> None:
        """Break off a transfer that comes straight from the origin; called from any thread."""
        self._canceller.cancel()
        straight = self._straight
        if straight is not None:
            straight.cancel()
        body = self.body
        if body is not None:
            body.cancel()

    def representation(
        self, start: int = 0, stop: int = END, *, reads_on: bool = False
    ) -> Representation:
        """Return what the origin says of the representation, waiting for its answer.

        *start* and *stop* say which bytes will be wanted, so that the first request to the
        origin can ask for them. With *reads_on* bytes past *stop* may be wanted later; then
        an answer that is read past the cache is asked for to the end of the file, as a
        second answer might not be of the same version.

        Raises:
            WaitTimeout: the origin has not answered within the first-byte timeout.
            CacheError: the reason why it will not answer.
        """
        if not (self._settled or self.is_straight):
            self._settle(start, stop, END if reads_on else stop)
            self._settled = True
        if self._straight is not None:
            return self._straight.representation
        return cast(Representation, self._content.representation)

    def _settle(self, start: int, stop: int, end: int) -> None:
        """Make sure that what is stored may be served; else prepare to read past the cache.

        What is read past the cache goes on to *end*.
        """
        settling = Settling(
            self.entry,
            self._content,
            self._terms,
            self.news,
            timeout_s=self._options.first_byte_timeout_s,
            hold=self._hold,
            watch=lambda: self._watch(self),
            is_cancelled=lambda: self._cancelled,
        )
        farthest = self._ahead.farthest(start, stop)
        try:
            past = settling.settle(start, stop, farthest=farthest, end=end)
        except OriginStatus as error:
            if not error.is_for_one or self.body is not None:
                raise
            self.news.collapsed = False
            past = PastTheCache(end, is_private=True)
        if past is not None:
            straight = self._go_straight(start, past.stop, None, past.fetch)
            self.own_fields = straight.fields if past.is_private else None

    def available(
        self,
        position: int,
        stop: int,
        most_bytes: int = SPAN_BYTES,
        *,
        asked: ByteRange | None = None,
    ) -> int:
        """Wait until the byte at *position* is stored; return where the stored run ends.

        Returns *position* itself if the file turns out to end there. The result is at most
        *stop*, up to which bytes are wanted, and at most *most_bytes* further on, so that
        the reader's position keeps moving. *asked* is the whole piece that a program's
        ``read`` asked for; with it, bytes behind *stop* may be fetched ahead.

        Raises:
            WaitTimeout: the byte did not arrive in time.
            StorageError: it cannot be stored, or cannot be read from the file.
            CacheError: the reason why it will not come.
        """
        content = self._content
        window = self._ahead.window_stop(position, stop, asked)
        while True:
            here = self.entry.stored_until(content, position, min(stop, position + most_bytes))
            if here > position and self._is_sound(position, here):
                if asked is None:
                    window = self._ahead.window_stop(here, stop)
                self._advance(here, window)
                return here
            if position >= min(stop, content.length):
                return position
            self._want(position, window, blocked=True)
            options = self._options
            self._wait(
                lambda: (
                    content.present.run_stop(position) > position
                    or position >= content.length
                    or self._is_calmed()
                ),
                options.stall_timeout_s if self._started else options.first_byte_timeout_s,
                f"byte {position} has not arrived",
            )

    def check_stored(self, ranges: Iterable[ByteRange]) -> None:
        """Raise NotStored if *ranges* are not all here and the client wants nothing fetched.

        From an offline mount, a part is better than nothing: that is served as far as it goes.
        """
        missing = (each.start for each in ranges if not self.entry.has(*each))
        if self._terms.only_stored and (position := next(missing, None)) is not None:
            raise self._not_stored(position)

    def ready(self, start: int, stop: int) -> None:
        """Return once the first byte of ``[start, stop)`` can be read.

        Raises:
            CacheError: the reason why it cannot; a client can still be told by a status.
        """
        if self._straight is not None:
            self._straight.ask(start, stop)
            return
        try:
            if self.available(start, stop) > start:
                # From now on its bytes stay readable, whatever becomes of the entry.
                self.entry.open_file(self._content)
        except (StorageError, OriginStatus) as error:
            if isinstance(error, OriginStatus) and not error.is_for_one:
                raise
            self._go_straight(start, stop, self._content.representation)

    def spans(self, start: int, stop: int) -> Iterator[ByteRange | bytes]:
        """Yield ``[start, stop)`` as it arrives: stored spans, or bytes straight from the origin.

        A stop of END means to the end of the file.

        Raises:
            CacheError: the reason why the rest will not come.
        """
        position, self._stop = start, stop
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
        """Yield ``[start, stop)`` as bytes, at most 1 MiB at a time; raises as :meth:`spans`."""
        for span in self.spans(start, stop):
            if isinstance(span, bytes):
                yield span
                continue
            for position in range(span.start, span.stop, PIECE_BYTES):
                try:
                    data = self._content.file.read_at(
                        position, min(PIECE_BYTES, span.stop - position)
                    )
                except StorageError:
                    yield from self.instead(position, span.stop)
                    break
                yield data

    def instead(self, position: int, stop: int) -> Iterator[bytes]:
        """Yield ``[position, stop)`` from the origin, as the stored bytes cannot be read.

        Raises:
            CacheError: the origin cannot provide them either.
        """
        _log.warning("%s: byte %d cannot be read; asking for it", self.entry.shown_url, position)
        straight = self._go_straight(position, self._stop, self._content.representation)
        yield from straight.pieces(position, stop)

    def read(self, position: int, size: int, asked: ByteRange | None = None) -> bytes:
        """Return some bytes at *position*, at most *size*; b"" at the end of the file.

        *asked* is the whole piece that is being read, if this is only a part of it.
        """
        straight = self._straight
        if straight is None:
            try:
                stop = position + size
                asked = asked or ByteRange(position, stop)
                stop = self.available(position, stop, min(size, PIECE_BYTES), asked=asked)
                if stop == position:
                    return b""
                return self._content.file.read_at(position, stop - position)
            except StorageError:
                straight = self._go_straight(position, END, self._content.representation)
        return straight.read(position, size)

    def _advance(self, position: int, window_stop: int) -> None:
        self._started = True
        if self._demand is not None or not self._content.is_whole:
            self._want(position, window_stop, blocked=False)

    def _want(self, position: int, window_stop: int, *, blocked: bool) -> None:
        if not self._terms.may_ask():
            if blocked:
                raise self._not_stored(position)
            return
        stop = max(position, window_stop)
        self._demand = self.entry.want(self._demand, position, stop, blocked=blocked)

    def _let_go(self, *, linger: bool) -> None:
        demand, self._demand = self._demand, None
        if demand is not None:
            self.entry.unwant(demand, linger=linger)

    def _is_calmed(self) -> bool:
        """Say whether the wait was called off, if only before it began: what is missing is to be
        asked for anew, unless this version of it will never come."""
        is_calm = self._demand is not None and self._demand.blocked_since_s is None
        return is_calm and self._content.superseded is None

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

    def _go_straight(
        self, start: int, stop: int, told: Representation | None, fetch: Fetch | None = None
    ) -> Straight:
        """Read ``[start, stop)`` past the cache from now on, of the version that was *told*.

        The bytes come from the answer *fetch*, or if there is none from a new one.
        """
        if not self._terms.may_ask():
            raise self._not_stored(start)
        self._let_go(linger=False)
        straight = self._straight = Straight(self._ask_origin, told, given=self._started)
        # Until the end: while it reads from the origin, nothing else would notice
        # that the client has left.
        self._resources.enter_context(self._watch(self))
        self._resources.enter_context(closing(straight))
        if fetch is not None:
            straight.take(fetch)
        else:
            straight.ask(start, stop)
        return straight

    def _not_stored(self, position: int) -> NotStored:
        return NotStored(f"byte {position} is not stored, and may not be asked for")

    def _ask_origin(self, *, asked: ByteRange | None, held: Representation | None) -> Fetch:
        terms = self._terms
        sent = Sent(
            terms.forwarded,
            terms.secrets,
            terms.directives,
            hands_on=terms.hands_on,
            keeps_open=True,
        )
        try:
            return self._origin.fetch(
                self.entry.url, asked, held=held, canceller=self._canceller, sent=sent
            )
        except OriginStatus as error:
            self._hold(error.take())
            if terms.cookies:
                self.news.cookies = error.cookies
            raise

    def _hold(self, body: OpenBody | None) -> None:
        """Keep a body that is for this reader alone, until it is read or the reader closes."""
        self._let_body_go()
        if body is not None:
            self.body = body
            self._resources.enter_context(self._watch(self))  # as where it goes straight

    def _let_body_go(self) -> None:
        body, self.body = self.body, None
        if body is not None:
            body.close()
