"""When to ask an origin again, and when to stop asking. Pure but for the dice."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .errors import OriginError

__all__ = ["RetryPolicy"]


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
        asked = error.retry_after_s if isinstance(error, OriginError) else None
        if asked is not None:
            return min(max(asked, 0.0), self.longest_retry_after_s)
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 32))
        return self.dice() * ceiling

    def gives_up(self, attempt: int, error: Exception, *, begun: bool) -> bool:
        """Say whether *error* on attempt number *attempt* is the last one."""
        if not isinstance(error, OriginError) or error.permanent:
            return True
        return attempt >= (self.attempts if begun else self.first_attempts)

    def rest_s(self, error: Exception) -> float:
        """Return how long a failed entry is left alone by new readers."""
        if isinstance(error, OriginError):
            if error.retry_after_s is not None:
                return min(max(error.retry_after_s, 0.0), self.longest_retry_after_s)
            if error.permanent:
                return self.permanent_s
        return self.exhausted_s
