"""Reading past the cache: bytes of the origin's answers that are not stored.

For what cannot or may not be stored. An answer is read in order and no further than is
wanted. A jump takes another request; that is made only if both answers are provably of
one version, or if the reader has been told nothing of the first one yet.
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
"""Up to so many unwanted bytes are received and thrown away rather than a request made."""


class _Ask(Protocol):
    def __call__(self, *, asked: ByteRange | None, held: Representation | None) -> Fetch: ...


class Straight:
    """Reads one file past the cache, for one reader and thread; has to be closed.

    *held* is what the reader was told of the representation so far, if anything, and
    *given* says whether it has passed on bytes of it. Everything read here is of that
    version, or RepresentationChanged is raised.
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
        """Close the present answer."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.close()

    def cancel(self) -> None:
        """Break the present answer off; called from any thread."""
        fetch = self._fetch
        if fetch is not None:
            fetch.cancel()

    @property
    def fields(self) -> Fields:
        """The fields of the present answer that its client may get."""
        return self._fetch.fields if self._fetch is not None else ()

    @property
    def representation(self) -> Representation:
        """What the origin told of the representation, at the latest in its first answer here."""
        return cast(Representation, self._told)

    @property
    def length(self) -> int:
        """The representation's length in bytes, END while it is unknown."""
        told = self._told.complete_length if self._told is not None else None
        return END if told is None else told

    def ask(self, start: int, stop: int) -> None:
        """Ask the origin for ``[start, stop)``, unless the present answer brings it.

        Raises:
            RepresentationChanged: the answer is of another version than the reader was told.
            StorageError: nobody can say whether it is of the same version.
            OriginError: there is no acceptable answer.
        """
        self._answer(start, stop)

    def take(self, fetch: Fetch) -> None:
        """Read from the answer *fetch*, which is closed together with this object."""
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

        Bytes up to *stop* are asked for at once, as the next reads will want them.

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

        A connection that breaks is replaced, provided that it brought something.
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
        """Return the present answer if it will soon be at *start*, or else a new one."""
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
        """Say whether *fetch* will soon be at *start*.

        If answers cannot be joined, there is no other way to *start*, however far it is; but
        unless bytes have been passed on already, *fetch* has to go on to *stop*.
        """
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
    """Say whether a head made from *told* may be followed by a body that is all of *new*."""
    return told.complete_length == new.complete_length and not told.validator.contradicts(
        new.validator
    )
