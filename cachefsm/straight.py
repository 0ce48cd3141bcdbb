"""Bytes that pass by the cache: read from one answer of the origin after another.

For what cannot be stored. An answer is read in order and no further than is
wanted; a jump asks again, but only where it is provable that both answers are of
one version, or where nothing of the first one was told to anybody yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol, cast

from .errors import (
    OriginTimeout,
    OriginUnreachable,
    RepresentationChanged,
    StorageError,
    UnsatisfiedByOrigin,
)
from .fields import Fields
from .origin import Fetch
from .ranges import END, ByteRange
from .representation import Representation

__all__ = ["Straight"]

SKIP_BYTES: Final = 1 << 20
"""How many unwanted bytes are rather received than jumped over by a new request."""


class _Ask(Protocol):
    def __call__(self, *, asked: ByteRange | None, held: Representation | None) -> Fetch: ...


class Straight:
    """One reader's way past the cache; used by one thread, and closed.

    *held* is what the reader was told of the representation, if anything, and
    *given* whether it has handed over bytes of it: everything that comes from here
    is of that version, or RepresentationChanged is raised.
    """

    def __init__(self, ask: _Ask, held: Representation | None, *, given: bool) -> None:
        self._ask_origin = ask
        self._told = held
        self._given = given
        self._fetch: Fetch | None = None
        self._left = b""  # received and not handed over yet
        self._at = 0  # the offset of that
        self._has_brought = False  # the present answer, any byte

    def close(self) -> None:
        """Let the present answer go."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.close()

    def cancel(self) -> None:
        """End the present answer; called from any thread."""
        fetch = self._fetch
        if fetch is not None:
            fetch.cancel()

    @property
    def fields(self) -> Fields:
        """The fields of the present answer, all that concern its client."""
        return self._fetch.fields if self._fetch is not None else ()

    @property
    def representation(self) -> Representation:
        """What was told of the representation, at the latest by the first answer."""
        return cast(Representation, self._told)

    @property
    def length(self) -> int:
        """The representation's length in bytes, END while it is unknown."""
        told = self._told.complete_length if self._told is not None else None
        return END if told is None else told

    def ask(self, start: int, stop: int) -> None:
        """Ask for ``[start, stop)``, unless it is on its way already.

        Raises:
            RepresentationChanged: the answer is of another version than what was told.
            StorageError: whether it is cannot be known.
            OriginError: there is no acceptable answer.
        """
        self._answer(start, stop)

    def take(self, fetch: Fetch) -> None:
        """Read from *fetch*, an answer to somebody's question; it is closed with this."""
        self.close()
        self._fetch, self._left, self._at = fetch, b"", fetch.answer.start
        self._has_brought = False
        self._told = fetch.answer.representation

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield ``[start, stop)`` as it arrives; a stop of END means to the end of the file.

        Raises:
            CacheError: the rest will not come.
        """
        position = start
        while data := self.read(position, stop - position, stop):
            yield data
            position += len(data)

    def read(self, position: int, size: int, stop: int = END) -> bytes:
        """Return some bytes at *position*, at most *size*; b"" at the end of the file.

        *stop* is how far bytes are wanted, for as long as nobody jumps.

        Raises:
            CacheError: they will not come.
        """
        stop = min(stop, self.length)
        if position >= stop:
            return b""
        data = self._receive(position, min(stop, position + size), stop)
        if not data and stop != END:
            raise OriginUnreachable(f"the origin's body ended at {position}, not {stop}")
        self._given = True
        return data

    def _receive(self, position: int, end: int, stop: int) -> bytes:
        """Return some of ``[position, end)``, or b"" where the file ends.

        A connection that breaks is replaced, as long as each brings something.
        """
        while True:
            try:
                return self._receive_from_one(position, end, stop)
            except (OriginUnreachable, OriginTimeout):
                if not (self._has_brought and self.representation.joinable):
                    raise
                self._has_brought = False
                self.close()

    def _receive_from_one(self, position: int, end: int, stop: int) -> bytes:
        try:
            fetch = self._answer(position, stop)
        except UnsatisfiedByOrigin as error:
            if error.complete_length != position:
                raise
            return b""  # which nobody had said before
        while self._at + len(self._left) <= position:
            self._at += len(self._left)
            self._left = fetch.read()
            if not self._left:
                return b""
            self._has_brought = True
        skipped = position - self._at
        wanted = self._left[skipped : end - self._at]
        self._left = self._left[skipped + len(wanted) :]
        self._at = position + len(wanted)
        return wanted

    def _answer(self, start: int, stop: int) -> Fetch:
        """Return the present answer if it comes to *start* soon enough, or a new one."""
        fetch, told = self._fetch, self._told
        joinable = told is not None and told.joinable
        if fetch is not None and self._brings(fetch, start, stop, joinable):
            return fetch
        if self._given and not joinable:
            raise StorageError("what cannot be stored cannot be joined from several answers")
        self.close()
        fetch = self._ask_for(start, stop, told if joinable else None)
        self.take(fetch)
        if told is not None and not joinable and not _fits(told, self.representation):
            raise RepresentationChanged("the origin's second answer tells of another version")
        return fetch

    def _brings(self, fetch: Fetch, start: int, stop: int, joinable: bool) -> bool:
        """Say whether *fetch* comes to *start*, and soon; or to *stop*, if it is the only one."""
        if not self._at <= start < fetch.answer.stop:
            return False
        if joinable:
            return start - self._at - len(self._left) <= SKIP_BYTES
        return self._given or min(stop, self.length) <= fetch.answer.stop

    def _ask_for(self, start: int, stop: int, held: Representation | None) -> Fetch:
        try:
            return self._ask_origin(asked=ByteRange(start, stop), held=held)
        except UnsatisfiedByOrigin:
            if self._told is not None:
                raise
            # There is no such byte, or none at all: an answer to all of it tells.
            return self._ask_origin(asked=None, held=None)


def _fits(told: Representation, new: Representation) -> bool:
    """Say whether a body that is all of *new* may follow a head that was made of *told*."""
    return told.complete_length == new.complete_length and not told.validator.contradicts(
        new.validator
    )
