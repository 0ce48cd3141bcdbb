"""Keeps the rate limits: each thread that receives asks before every read how much it may.

TCP does the rest: if a thread does not read, the origin stops sending. Limits may be
changed at any time; threads that wait look again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from .buckets import Bucket, RateLimits, delay_s, portion

__all__ = ["Pace", "Throttle"]

HOSTS: Final = 1000
"""How many hosts have a bucket of their own; then all are forgotten, which costs a fraction of
a second's worth of bytes."""


class Throttle:
    """The limits on what is received from all origins; thread-safe, its lock a leaf."""

    def __init__(
        self, limits: RateLimits | None = None, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self.ticks: Final = ticks
        self._changed = threading.Condition()
        self._wakes = 0
        self.set(limits or RateLimits())

    @property
    def limits(self) -> RateLimits:
        """What is kept to now."""
        return self._limits

    def set(self, limits: RateLimits) -> None:
        """Keep to *limits* from now on."""
        with self._changed:
            now_s = self.ticks()
            self._limits = limits
            self._total = _bucket(limits.rate, now_s)
            self._background = _bucket(limits.background_rate, now_s)
            self._hosts: dict[str, Bucket] = {}
            self._wakes += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Let waiting threads look again: readers may now want what they bring."""
        if not self._limits.are_set:
            return  # nobody waits
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def try_take(self, host: str, most_bytes: int, *, background: bool) -> tuple[int, float]:
        """Return how many bytes may be received from *host* now, and count these as received.

        If none, also return how many seconds it takes until some may.
        """
        with self._changed:
            now_s = self.ticks()
            buckets = self._buckets(host, now_s, background=background)
            wait_s = delay_s(buckets, now_s, background=background)
            if wait_s > 0:
                return 0, wait_s
            size = portion(buckets, most_bytes)
            for bucket in buckets:
                bucket.take(size, now_s, background=background)
            return size, 0.0

    def give_back(self, host: str, size_bytes: int, *, background: bool) -> None:
        """Uncount bytes that were taken but did not come."""
        with self._changed:
            now_s = self.ticks()
            for bucket in self._buckets(host, now_s, background=background):
                bucket.take(-size_bytes, now_s, background=background)

    @property
    def wakes(self) -> int:
        """How often waiting threads were told to look again."""
        with self._changed:
            return self._wakes

    def wait(self, wakes: int, timeout_s: float) -> None:
        """Wait for so long, unless there is a wake-up, or was one since *wakes* was read."""
        with self._changed:
            if self._wakes == wakes:
                self._changed.wait(timeout_s)

    def _buckets(self, host: str, now_s: float, *, background: bool) -> list[Bucket]:
        buckets = [self._total, self._background if background else None]
        if self._limits.rate_per_host:
            if host not in self._hosts:
                if len(self._hosts) >= HOSTS:
                    self._hosts.clear()
                self._hosts[host] = Bucket(self._limits.rate_per_host, now_s)
            buckets.append(self._hosts[host])
        return [bucket for bucket in buckets if bucket is not None]


def _bucket(rate_bytes_s: int, now_s: float) -> Bucket | None:
    return Bucket(rate_bytes_s, now_s) if rate_bytes_s else None


class Pace:
    """One connection's way through the throttle; used by the thread that receives.

    ``is_urgent`` says whether a reader wants what it brings, and is asked anew whenever
    that may have changed.
    """

    def __init__(self, throttle: Throttle, host: str, is_cancelled: Callable[[], bool]) -> None:
        self.is_urgent: Callable[[], bool] = lambda: True
        self._throttle = throttle
        self._host = host
        self._is_cancelled = is_cancelled
        self._taken = 0
        self._background = False
        self._held_back = False
        self._went_on_s: float | None = None

    @property
    def held_back_s(self) -> float | None:
        """The time until which it was last kept waiting (now, if it is); None if it never was."""
        return self._throttle.ticks() if self._held_back else self._went_on_s

    @property
    def limit_bytes_s(self) -> int:
        """The limit on bytes per second, which others may share; 0 if there is none."""
        limits = self._throttle.limits
        background_rate = limits.background_rate if self._background else 0
        rates = (limits.rate, limits.rate_per_host, background_rate)
        return min((rate for rate in rates if rate), default=0)

    def allow(self, most_bytes: int) -> int:
        """Return how much may be received now, waiting until that is something."""
        self._taken = 0
        if not self._throttle.limits.are_set:
            return most_bytes
        try:
            while not self._is_cancelled():
                wakes = self._throttle.wakes
                self._background = not self.is_urgent()
                size, wait_s = self._throttle.try_take(
                    self._host, most_bytes, background=self._background
                )
                if size:
                    self._taken = size
                    return size
                self._held_back = True
                self._throttle.wait(wakes, wait_s)
            return most_bytes  # which will not come
        finally:
            if self._held_back:
                self._went_on_s, self._held_back = self._throttle.ticks(), False

    def came(self, size_bytes: int) -> None:
        """Tell how many of the allowed bytes were received."""
        if self._taken > size_bytes:
            unused, self._taken = self._taken - size_bytes, 0
            self._throttle.give_back(self._host, unused, background=self._background)
