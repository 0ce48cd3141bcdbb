"""How fast bytes come, or go. No locks, no clock: amounts and times go in."""

from __future__ import annotations

__all__ = ["RateMeter"]


class RateMeter:
    """Bytes per second lately: what is *half_life_s* old counts half as much as what is new."""

    def __init__(self, now_s: float, half_life_s: float = 2.0) -> None:
        self._half_life_s = half_life_s
        self._since_s = now_s
        self._bytes = 0.0
        self._seconds = 0.0

    def add(self, size_bytes: int, now_s: float) -> None:
        """Count *size_bytes* that came or went up to *now_s*."""
        elapsed = max(0.0, now_s - self._since_s)
        self._since_s = now_s
        fade = 0.5 ** (elapsed / self._half_life_s)
        self._bytes = self._bytes * fade + size_bytes
        self._seconds = self._seconds * fade + elapsed

    def rate_bytes_s(self, now_s: float) -> float:
        """Return the rate as of *now_s*; silence lets it sink."""
        silence = max(0.0, now_s - self._since_s)
        fade = 0.5 ** (silence / self._half_life_s)
        seconds = self._seconds * fade + silence
        # The first piece of a burst says little: count at least a tenth of a second.
        return float(self._bytes * fade / max(seconds, 0.1))
