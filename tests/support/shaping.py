"""A modelled network for the test origin: latency, rates, a cap on connections.

For benchmarks and demonstrations. Tests of behaviour use `faults`, which need no clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

CATCH_UP_S = 0.05  # a late wake-up is made good for this long; later, the time is lost
SLICE_S = 0.005  # at least 200 sends a second: smooth, and cheap up to 100 MB/s
MIN_SLICE_BYTES = 1460  # one Ethernet segment


@dataclass(frozen=True)
class Shaping:
    """Rates are bytes per second of body; None is unlimited.

    Past `max_connections`, a connection is told *refusal_status* with ``Retry-After``.
    """

    first_byte_latency_s: float = 0.0
    rate_per_connection: float | None = None
    rate_total: float | None = None
    max_connections: int | None = None
    refusal_status: int = 503
    retry_after_s: int = 1

    def slice_bytes(self, piece_bytes: int) -> int:
        """Return how much to send at once, at most *piece_bytes*."""
        rates = [rate for rate in (self.rate_per_connection, self.rate_total) if rate]
        paced = [max(MIN_SLICE_BYTES, int(rate * SLICE_S)) for rate in rates]
        return min([piece_bytes, *paced])


class Bucket:
    """Says how long to wait so that bytes leave at *rate*; threads may share one."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def reserve(self, size_bytes: int) -> float:
        """Book *size_bytes* behind what is booked; return seconds until they have passed."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - CATCH_UP_S) + size_bytes / self._rate
            return max(0.0, self._free_at - now)
