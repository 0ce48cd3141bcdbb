"""Threads that do one piece of work after another, and that can be waited for at the end.

Starting a thread takes longer than waking one, and somebody waits for the bytes that it
will bring; so a few idle threads are kept for the next pieces of work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

__all__ = ["Workers"]

_log = logging.getLogger(__name__)

KEPT: Final = 4
"""How many threads without work are kept."""

_Piece = tuple[str, Callable[[], None]]


class Workers:
    """The work under way and its threads; thread-safe, and its lock is a leaf."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._waiting = 0
        """How many threads are idle and have not been given work yet."""
        self._pieces: SimpleQueue[_Piece | None] = SimpleQueue()
        self._closing = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._threads) - self._waiting

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Do *work* in a thread of that name; RuntimeError if there is none to be had."""
        name = f"cachefsm-{name}"
        with self._lock:
            if self._waiting:
                self._waiting -= 1
            else:
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._threads.add(thread)
            self._pieces.put((name, work))

    def join(self, deadline_s: float) -> None:
        """Wait for those under way, until that monotonic time at the latest; keep no thread."""
        with self._lock:
            self._closing = True
            for _ in range(self._waiting):
                self._pieces.put(None)
            self._waiting = 0
            # Not this very thread: a resolver may close the cache.
            threads = list(self._threads - {threading.current_thread()})
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                _log.warning("%s is still in a call that cannot be interrupted", thread.name)

    def _run(self) -> None:
        try:
            while self._do_next():
                pass
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _do_next(self) -> bool:
        """Wait for a piece of work and do it; False if this thread should end instead."""
        # A function of its own, so that nothing of the work is held while none is there.
        piece, thread = self._pieces.get(), threading.current_thread()
        if piece is None:
            return False
        thread.name, work = piece
        work()
        thread.name = "cachefsm-idle"
        with self._lock:
            if self._closing or self._waiting >= KEPT:
                return False
            self._waiting += 1
        return True
