"""A thread that works in rounds: when it is told to, or when the next round is due.

It sleeps on a Condition and never polls; a round does no waiting of its own, so that
tests can drive it without a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

__all__ = ["Loop"]

_log = logging.getLogger(__name__)


class Loop(ABC):
    """A thread that runs :meth:`step` when poked or when the time that it gave has come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition()
        self._poked = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    @abstractmethod
    def step(self) -> float | None:
        """Do one round; return the monotonic time of the next one, or None for when poked."""

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Ask for a round now."""
        with self._condition:
            self._poked = True
            self._condition.notify()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; return whether it ended in time."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                if self._stopping:
                    return
                self._poked = False
            try:
                due_s = self.step()
            except Exception:  # noqa: BLE001
                # One bad round must not end all downloads: say so and go on.
                _log.exception("%s: a round failed", self._name)
                due_s = time.monotonic() + 1.0
            with self._condition:
                while not (self._poked or self._stopping):
                    left_s = None if due_s is None else due_s - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        break
                    self._condition.wait(left_s)
