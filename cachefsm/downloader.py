"""A thread's work: fill one claimed gap of one entry, and always hand the claim back."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from .acceptance import Answer
from .claims import Claim
from .errors import CacheError
from .origin import Fetch, Fetches, Sent
from .ranges import END, ByteRange
from .transport import Canceller
from .urls import OriginUrl

__all__ = ["Downloader"]

_log = logging.getLogger(__name__)


class _Entry(Protocol):
    url: OriginUrl

    def passes(self, claim: Claim, fetch: Fetch) -> bool: ...
    def answered(self, claim: Claim, answer: Answer) -> bool: ...
    def is_urgent(self, claim: Claim) -> bool: ...
    def accept(self, claim: Claim, size: int) -> tuple[int, list[ByteRange]] | None: ...
    def wrote(self, claim: Claim, stop: int, written: list[ByteRange]) -> None: ...
    def ended(self, claim: Claim, error: Exception | None, *, at_end: bool = False) -> None: ...


class Downloader:
    """Fills *claim* of *entry* from *origin*; :meth:`run` is the thread's body."""

    def __init__(self, entry: _Entry, claim: Claim, origin: Fetches) -> None:
        self._entry = entry
        self._claim = claim
        self._origin = origin
        self._canceller = Canceller()
        claim.cancel_io = self._canceller.cancel
        if claim.cancelled:  # between the grant and here
            self._canceller.cancel()

    def run(self) -> None:
        """Fetch until the claim is filled, cancelled or broken, and say which."""
        error: Exception | None = None
        at_end = False
        try:
            at_end = self._fill()
        except CacheError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001
            # Whatever it is, those who wait must hear of it and the process live.
            _log.exception("a downloader failed unexpectedly")
            error = caught
        self._entry.ended(self._claim, error, at_end=at_end)

    def _fill(self) -> bool:
        """Return whether the body ended by itself, so that its end is the file's."""
        claim = self._claim
        asked = None if claim.plain else ByteRange(claim.position, claim.reach)
        sent = Sent(
            claim.forwarded,
            claim.secrets,
            claim.conditions,
            hands_on=claim.hands_on,
            keeps_open=claim.inquiry is not None,  # else there is nobody to hand it to
        )
        with ExitStack() as stack:
            fetch = stack.enter_context(
                self._origin.fetch(
                    self._entry.url,
                    asked,
                    held=claim.held,
                    canceller=self._canceller,
                    sent=sent,
                )
            )
            if self._entry.passes(claim, fetch):
                stack.pop_all()  # whoever got it lets it go
                return False
            if not self._entry.answered(claim, fetch.answer):
                return False
            fetch.pace.is_urgent = partial(self._entry.is_urgent, claim)
            claim.pace = fetch.pace
            if not self._receive(fetch):
                return False
            # A body whose end was announced says nothing about the file's.
            return fetch.answer.stop == END

    def _receive(self, fetch: Fetch) -> bool:
        """Write what comes, as far as it is wanted; return whether the body came to its end."""
        claim, offset, left = self._claim, fetch.answer.start, memoryview(b"")
        while (accepted := self._entry.accept(claim, len(left))) is not None:
            if not left:
                left = memoryview(fetch.read())
                if not left:
                    return True
                continue  # what is wanted may have changed meanwhile
            size, wanted = accepted
            piece, left = left[:size], left[size:]
            for start, stop in wanted:
                claim.content.file.write_at(start, piece[start - offset : stop - offset])
            offset += size
            self._entry.wrote(claim, offset, wanted)
        return False
