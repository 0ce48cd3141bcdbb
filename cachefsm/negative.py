"""Remembers answers that are no file, such as a 404, for as long as they may be used again.

In memory only: after a restart the origin is asked again. No I/O.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from .errors import OriginStatus
from .fields import value_of
from .freshness import (
    HEURISTICALLY_CACHEABLE,
    VaryKey,
    current_age_s,
    freshness_lifetime_s,
    parse_cache_control,
)
from .terms import Terms

__all__ = ["Negative", "Negatives"]

REMEMBERED: Final = 1024
REMEMBERED_BYTES: Final = 16 << 20
"""How many answers, and how many bytes of bodies, are kept; one is at most 1 MiB."""

#: Known to last; others may have passed when they are asked for again, or are a matter
#: of who asks.
_LASTING: Final = HEURISTICALLY_CACHEABLE - {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}


@dataclass(frozen=True, slots=True)
class Negative:
    """An origin's answer that is no file; times are Unix time, in seconds.

    ``selected_by`` are the request fields that selected it (Vary), None if it is only for
    the client that asked.
    """

    error: OriginStatus
    lifetime_s: float
    requested_s: float
    received_s: float
    selected_by: VaryKey | None

    @classmethod
    def of(
        cls,
        error: OriginStatus,
        terms: Terms,
        *,
        requested_s: float,
        received_s: float,
        guess_s: float,
    ) -> Negative:
        """Return *error* as the answer to a request on *terms*.

        If the answer does not say how long it is fresh, but has a status that may be cached
        all the same, it is fresh for *guess_s*. Source: RFC 9111 §4.2.2.
        """
        told = error.fields
        directives, lifetime_s = parse_cache_control(told), guess_s
        explicit = "max-age" in directives or value_of(told, "Expires") is not None
        if explicit:
            lifetime_s = freshness_lifetime_s(error.status, told, received_s=received_s)
        # must-understand makes up for no-store only where a status is understood: §5.2.2.3.
        private = terms.forbids_storing or "no-store" in directives
        lasts = error.status in _LASTING or "public" in directives
        is_kept = not private and (explicit or lasts)
        selected_by = terms.vary_key(told) if is_kept else None
        return cls(error, lifetime_s, requested_s, received_s, selected_by)

    @property
    def size_bytes(self) -> int:
        """The size of its body."""
        return len(self.error.body or b"")

    def again(self, terms: Terms, now_s: float) -> OriginStatus | None:
        """Return the answer as an error, with its age; None if the origin must be asked."""
        told = self.error.fields
        if self.selected_by is None or self.selected_by != terms.vary_key(told):
            return None
        age_s = current_age_s(
            told, requested_s=self.requested_s, received_s=self.received_s, now_s=now_s
        )
        if not terms.may_give_again(told, lifetime_s=self.lifetime_s, age_s=age_s):
            return None
        error = self.error.again()
        error.age_s = age_s
        return error


class Negatives:
    """The latest answers that entries failed with, as many as there is room for; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: OrderedDict[int, Negative] = OrderedDict()
        self._bytes = 0

    def note(self, entry_id: int, answer: Negative) -> None:
        """Remember *answer*, and forget the oldest if there are too many."""
        with self._lock:
            self._drop(entry_id)
            self._answers[entry_id] = answer
            self._bytes += answer.size_bytes
            while len(self._answers) > REMEMBERED or self._bytes > REMEMBERED_BYTES:
                self._drop(next(iter(self._answers)))

    def of(self, entry_id: int) -> Negative | None:
        """Return the answer that the entry failed with, if it is remembered."""
        with self._lock:
            return self._answers.get(entry_id)

    def forget(self, entry_id: int) -> None:
        """Forget what the entry failed with, if anything: it is tried again."""
        with self._lock:
            self._drop(entry_id)

    def _drop(self, entry_id: int) -> None:
        answer = self._answers.pop(entry_id, None)
        self._bytes -= answer.size_bytes if answer is not None else 0
