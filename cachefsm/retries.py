"""What an attempt's error means, when to ask again, when to give up. Pure but for randomness."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from math import inf

from .content import Content
from .errors import (
    OriginError,
    OriginStatus,
    RepresentationChanged,
    StorageError,
    UnsatisfiedByOrigin,
)

__all__ = ["Attempts", "RetryPolicy", "Verdict", "judge"]


class Verdict(Enum):
    """What to do after an attempt that failed."""

    TRY_AGAIN = auto()
    """It may pass: ask again for the first missing byte, until patience ends."""
    INVALIDATE = auto()
    """The origin has another version: what is stored is worth nothing."""
    LENGTH_TOLD = auto()
    """There is no byte where the attempt began: the file ends there or before."""
    ASK_PLAINLY = auto()
    """The file is empty, but the 416 that says so has no fields of the file: ask without a
    Range."""
    ASK_FROM_FRONT = auto()
    """The first request asked for bytes past the end: ask from 0, to learn the length."""
    CANNOT_STORE = auto()
    """The disk or the database refused; asking the origin again does not help."""
    FAIL = auto()
    """Asking again will not help."""


def judge(error: Exception, content: Content, position: int) -> Verdict:
    """Return what to do after *error* ended an attempt to fetch *content* at *position*."""
    if isinstance(error, UnsatisfiedByOrigin):
        return _judge_416(error, content, position)
    if isinstance(error, RepresentationChanged):
        return Verdict.INVALIDATE
    if isinstance(error, StorageError):
        return Verdict.CANNOT_STORE
    if isinstance(error, OriginError) and not error.permanent:
        return Verdict.TRY_AGAIN
    return Verdict.FAIL


def _judge_416(error: UnsatisfiedByOrigin, content: Content, position: int) -> Verdict:
    known, told = content.complete_length, error.complete_length
    if content.representation is None and position == 0:
        if not content.ask_plainly:
            return Verdict.ASK_PLAINLY
        if told is None:
            return Verdict.FAIL  # no range was asked for: that tells nothing of the file
    stored = max((run.stop for run in content.present), default=0)
    if known is None and told is None and content.has(0, position):
        return Verdict.LENGTH_TOLD
    if known is None and told is not None and stored <= told <= position:
        begun = content.representation is not None or position == 0
        return Verdict.LENGTH_TOLD if begun else Verdict.ASK_FROM_FRONT
    if known is not None and told not in (None, known):
        return Verdict.INVALIDATE
    return Verdict.FAIL


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter, counted from the last byte received.

    An attempt that brought at least one byte starts the count anew. An entry of
    which nothing is known yet fails after ``first_attempts``, so that a wrong
    address is said soon; one that has begun is given ``attempts``, to live
    through an outage of about half a minute. After a failure, a new reader may
    try again once ``exhausted_s``, ``permanent_s`` or ``cancelled_s`` have passed.

    Full jitter, because equal clients that fail together would otherwise come
    back together.
    """

    base_s: float = 0.25
    cap_s: float = 8.0
    first_attempts: int = 5
    attempts: int = 10
    exhausted_s: float = 3.0
    permanent_s: float = 10.0
    cancelled_s: float = 30.0
    longest_retry_after_s: float = 300.0
    dice: Callable[[], float] = random.random

    def delay_s(self, attempt: int, error: Exception) -> float:
        """Return the wait before attempt number *attempt* + 1; *attempt* counts from 1.

        The origin's ``Retry-After`` is honoured up to ``longest_retry_after_s``.
        Source: RFC 9110 §10.2.3.
        """
        asked = self._asked_s(error)
        if asked is not None:
            return asked
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 32))
        return self.dice() * ceiling

    def rest_s(self, error: Exception) -> float:
        """Return how long a failed entry is left alone by new readers."""
        asked = self._asked_s(error)
        if asked is not None:
            return asked
        if isinstance(error, OriginStatus) and error.is_for_one:
            return 0.0  # nothing is there to be told meanwhile
        permanent = isinstance(error, OriginError) and error.permanent
        return self.permanent_s if permanent else self.exhausted_s

    def _asked_s(self, error: Exception) -> float | None:
        asked = error.retry_after_s if isinstance(error, OriginError) else None
        return None if asked is None else min(max(asked, 0.0), self.longest_retry_after_s)


class Attempts:
    """One entry's attempts since its last received byte; times are monotonic.

    Connections that were all asked for before the first of them failed are one attempt:
    an outage breaks as many as there are.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.count = 0
        self.not_before_s = 0.0
        self.cause: Exception | None = None
        self._counted_s = -inf

    def reset(self) -> None:
        """Start counting anew: the download is over, or somebody asked for another try."""
        self.count, self.not_before_s, self.cause = 0, 0.0, None
        self._counted_s = -inf

    def excuse(self) -> bool:
        """Forgive one failure in a row that may not be the entry's own."""
        if self.count:
            return False
        self.count = 1
        return True

    def hold_off(self, error: Exception, now_s: float) -> None:
        """Delay the next attempt, longer each time, without ever giving up."""
        self.count += 1
        self.not_before_s = now_s + self._policy.delay_s(self.count, error)

    def rest(self, now_s: float, cause: Exception) -> None:
        """Hold the next attempt back for a while, for a reason that is not the origin's."""
        self.not_before_s, self.cause = now_s + self._policy.exhausted_s, cause

    def failed(
        self,
        error: Exception,
        now_s: float,
        *,
        begun: bool,
        progressed: bool,
        asked_s: float = inf,
    ) -> float | None:
        """Count a failure; return the delay before the next attempt, None to give up.

        *begun* says that the origin has answered before, *progressed* that this
        attempt brought at least one byte. It was made at *asked_s*.
        """
        if progressed:
            self.count = 1
        elif asked_s >= self._counted_s:
            self.count, self._counted_s = self.count + 1, now_s
        limit = self._policy.attempts if begun else self._policy.first_attempts
        if self.count >= limit:
            return None
        delay_s = self._policy.delay_s(self.count, error)
        self.not_before_s, self.cause = now_s + delay_s, error
        return delay_s
