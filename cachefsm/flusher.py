"""The thread that makes durable what was received, and has the cache kept in order.

It syncs content files and records progress, so that no stream waits for a disk and a
stalled one's bytes are recorded all the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from .errors import CacheError, StorageError
from .loop import Loop

__all__ = ["Flusher"]

_log = logging.getLogger(__name__)

FLUSH_INTERVAL_S: Final = 1.0
"""Received bytes are recorded within this time: it bounds what a kill can cost."""


class _Entry(Protocol):
    shown_url: str

    def flush(self) -> None: ...


class Flusher(Loop):
    """Flushes entries that have unsynced bytes: the urgent ones now, the others soon.

    *after* is called when bytes may have been added: the place to make room. If there is
    still something to do, it returns in how many seconds to call it again, else None.
    """

    def __init__(
        self,
        after: Callable[[], float | None] = lambda: None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("cachefsm-flusher")
        self._after = after
        self._ticks = ticks
        self._dirty: dict[_Entry, float] = {}
        self._again_s: float | None = None

    def note(self, entry: _Entry, urgent: bool) -> None:
        """Remember that *entry* has something to flush."""
        with self._condition:
            due_s = self._ticks() + (0.0 if urgent else FLUSH_INTERVAL_S)
            known_s = self._dirty.get(entry)
            if known_s is not None and known_s <= due_s:
                return
            self._dirty[entry] = due_s
        self.poke()

    def look(self) -> None:
        """See to it that there is room, before anything was flushed."""
        self._again_s = self._ticks()
        self.poke()

    def step(self) -> float | None:
        """Flush what is due; return when the next flush is."""
        with self._condition:
            now_s = self._ticks()
            due = [entry for entry, due_s in self._dirty.items() if due_s <= now_s]
            for entry in due:
                del self._dirty[entry]
        for entry in due:
            self._flush(entry)
        if due or (self._again_s is not None and self._again_s <= now_s):
            wait_s = self._after()
            self._again_s = None if wait_s is None else self._ticks() + wait_s
        again = () if self._again_s is None else (self._again_s,)
        with self._condition:
            return min((*self._dirty.values(), *again), default=None)

    def flush_all(self, entries: Iterable[_Entry]) -> None:
        """Flush *entries* in the caller's thread, as at shutdown."""
        for entry in entries:
            self._flush(entry, again=False)

    def _flush(self, entry: _Entry, *, again: bool = True) -> None:
        try:
            entry.flush()
        except StorageError:  # noted by the entry: one line for an episode
            if again:
                self.note(entry, False)
        except CacheError as error:
            _log.warning("%s: %s", entry.shown_url, error)
        except Exception:  # noqa: BLE001
            # A fault of ours with one entry must not cost the others what they received.
            _log.exception("%s: it cannot be flushed", entry.shown_url)
