"""Token buckets: how much may be received now under a rate limit. Pure.

Two kinds of bytes share a rate: those that readers wait for, and all others, called the
background. A bucket has a level for each: one counts readers' bytes and holds back
readers, the other counts all bytes and holds back the background. So readers have the
whole rate, whatever the background took before; and the background waits until readers'
bytes have been made up for as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["Bucket", "RateLimits", "delay_s", "portion"]

SLICE_S: Final = 0.05
"""A bucket holds what its rate brings in this time. With less there would be a wake-up for
every few packets; with more, bytes would come in bursts."""

LEAST_BYTES: Final = 1460
"""The least that is worth waiting for: one Ethernet segment."""


@dataclass(frozen=True)
class RateLimits:
    """The most bytes per second, 0 for no limit: in all, from each host, and for all bytes
    that no reader waits for."""

    rate: int = 0
    rate_per_host: int = 0
    background_rate: int = 0

    @property
    def are_set(self) -> bool:
        """Whether anything is limited."""
        return bool(self.rate or self.rate_per_host or self.background_rate)


class Bucket:
    """What may be received at a rate; no more is saved up than SLICE_S brings."""

    def __init__(self, rate_bytes_s: int, now_s: float) -> None:
        self._rate = rate_bytes_s
        self._slice = max(LEAST_BYTES, int(rate_bytes_s * SLICE_S))
        self._filled_s = now_s
        self._all = self._readers = float(self._slice)

    def delay_s(self, now_s: float, *, background: bool) -> float:
        """Return how long nothing may be received yet; 0 if something may."""
        self._fill(now_s)
        level = self._all if background else self._readers
        return 0.0 if level > 0 else (1 - level) / self._rate

    @property
    def portion(self) -> int:
        """How much may be received at once."""
        return self._slice

    def take(self, size_bytes: int, now_s: float, *, background: bool) -> None:
        """Count bytes that are about to be received; a negative number gives some back."""
        self._fill(now_s)
        self._all -= size_bytes
        if not background:
            self._readers -= size_bytes

    def _fill(self, now_s: float) -> None:
        came = max(0.0, now_s - self._filled_s) * self._rate
        self._filled_s = max(self._filled_s, now_s)
        self._all = min(self._slice, self._all + came)
        self._readers = min(self._slice, self._readers + came)


def delay_s(buckets: Iterable[Bucket], now_s: float, *, background: bool) -> float:
    """Return how long nothing may be taken from all of *buckets*."""
    return max((bucket.delay_s(now_s, background=background) for bucket in buckets), default=0.0)


def portion(buckets: Iterable[Bucket], most_bytes: int) -> int:
    """Return how much may be taken from all of *buckets* at once."""
    return min([most_bytes, *(bucket.portion for bucket in buckets)])
