"""Threads that each do one piece of work after another, and are waited for at the end.

To start a thread takes longer than to wake one, and somebody waits for what it is to
bring: a few that have nothing to do are kept for the next piece.
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
        """How many of them have no work, nor any on its way to them."""
        self._pieces: SimpleQueue[_Piece | None] = SimpleQueue()
        self._closing = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._threads) - self._waiting

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Do *work* in a thread of that name; RuntimeError if there is none to be had."""
        piece = (f"cachefsm-{name}", work)
        with self._lock:
            if self._waiting:
                self._waiting -= 1
                self._pieces.put(piece)
                return
            thread = threading.Thread(target=self._run, args=(piece,), daemon=True)
            thread.start()
            self._threads.add(thread)

    def join(self, deadline_s: float) -> None:
        """Wait for those under way, until that monotonic time at the latest; keep none."""
        with self._lock:
            self._closing = True
            for _ in range(self._waiting):
                self._pieces.put(None)
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                _log.warning("%s is still in a call that cannot be interrupted", thread.name)

    def _run(self, first: _Piece) -> None:
        thread, piece = threading.current_thread(), first
        try:
            while True:
                thread.name, work = piece
                work()
                with self._lock:
                    if self._closing or self._waiting >= KEPT:
                        return
                    self._waiting += 1
                thread.name = "cachefsm-idle"
                ...
        finally:
            with self._lock:
                self._threads.discard(thread)
