"""Threads that each do one piece of work, and are waited for at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Workers"]

_log = logging.getLogger(__name__)


class Workers:
    """The threads under way; thread-safe, and its lock is a leaf."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def __len__(self) -> int:
        with self._lock:
            return len(self._threads)

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Do *work* in a thread of that name; RuntimeError if there is none to be had."""

        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"cachefsm-{name}", daemon=True)
        with self._lock:
            thread.start()
            self._threads.add(thread)

    def join(self, deadline_s: float) -> None:
        """Wait for those under way, until that monotonic time at the latest."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                _log.warning("%s is still in a call that cannot be interrupted", thread.name)
