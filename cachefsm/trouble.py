"""One log line when the disk or the database begins to refuse, one when it is over."""

from __future__ import annotations

import logging
import threading

__all__ = ["Trouble"]

_log = logging.getLogger(__name__)


class Trouble:
    """Counts refusals as one episode until something succeeds; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals = 0

    @property
    def is_on(self) -> bool:
        """Whether the last thing that was tried was refused."""
        return self._refusals > 0

    def note(self, error: Exception) -> None:
        """Note a refusal; the first one of an episode is logged."""
        with self._lock:
            self._refusals += 1
            first = self._refusals == 1
        if first:
            _log.warning(
                "storage refuses: %s; clients are served straight from origins meanwhile", error
            )

    def over(self) -> None:
        """Note a success; the first one after an episode is logged."""
        with self._lock:
            refusals, self._refusals = self._refusals, 0
        if refusals:
            _log.warning("storage works again, after %d refusals", refusals)
