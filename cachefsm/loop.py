"""A thread that works in rounds: when it is told to, or when the next round is due.

It sleeps on a Condition and never polls; a round does no waiting of its own, so that
tests can drive it without a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from math import inf

__all__ = ["Loop"]

_log = logging.getLogger(__name__)


class Loop(ABC):
    """A thread that runs :meth:`step` when poked or when the time that it gave has come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition()
        self._poked_s = inf  # the monotonic time by which somebody wants a round
        self._stopping = False
        self._thread: threading.Thread | None = None

    @abstractmethod
    def step(self) -> float | None:
        """Do one round; return the monotonic time of the next one, or None for when poked."""

    def start(self) -> None:
        """Start the thread; RuntimeError if there is none to be had."""
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def poke(self, within_s: float = 0.0) -> None:
        """Ask for a round, now or *within_s* from now.

        What can wait for a moment is asked for so: of all that comes in that moment,
        only the first wakes the thread, which costs whoever asks a switch of threads.
        """
        poked_s = time.monotonic() + within_s
        with self._condition:
            if poked_s < self._poked_s:
                self._poked_s = poked_s
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
                self._poked_s = inf
            try:
                step_s = self.step()
            except Exception:  # noqa: BLE001
                # One bad round must not end all downloads: say so and go on.
                _log.exception("%s: a round failed", self._name)
                step_s = time.monotonic() + 1.0
            with self._condition:
                while not self._stopping:
                    due_s = self._poked_s if step_s is None else min(self._poked_s, step_s)
                    left_s = due_s - time.monotonic()
                    if left_s <= 0:
                        break
                    # A moment beyond what a lock can wait for comes after many such waits.
                    self._condition.wait(min(left_s, threading.TIMEOUT_MAX))
