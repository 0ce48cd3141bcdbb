"""Two threads that everything else is spared: one decides, one makes durable.

The :class:`Conductor` asks the pure scheduler what to do whenever an entry says
that something has changed, and starts and stops downloader threads accordingly.
The :class:`Flusher` syncs content files and records progress, so that no stream
waits for a disk and a stalled one's bytes are recorded all the same.

Both have a ``step`` that does one round and no waiting, which is what tests
drive. Both sleep on a Condition until told or until the next moment that
something is due; neither polls.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from .claims import Claim
from .entry import LiveEntry
from .errors import CacheError, OriginUnreachable, StorageError
from .scheduler import Denied, EntryView, Leaving, Limits, Open, SetStop, decide

__all__ = ["Conductor", "Flusher", "Loop"]

_log = logging.getLogger(__name__)

FLUSH_INTERVAL_S: Final = 1.0
"""Received bytes are recorded within this time: it bounds what a kill can cost."""


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


class Conductor(Loop):
    """Applies the scheduler's plan to the live entries.

    It remembers every connection that it had opened until its thread has let go of
    it, whatever becomes of the entry: one may be removed while its streams end.
    """

    def __init__(
        self,
        entries: Callable[[], Iterable[LiveEntry]],
        limits: Callable[[], Limits],
        download: Callable[[LiveEntry, Claim], None],
    ) -> None:
        super().__init__("cachefsm-conductor")
        self._entries = entries
        self._limits = limits
        self._download = download
        self._standing: list[tuple[LiveEntry, Claim]] = []

    def step(self) -> float | None:
        """Look at every live entry, apply the plan, return when to look again."""
        entries = {entry.id: entry for entry in self._entries()}
        views = []
        for entry in entries.values():
            try:
                view = entry.view()
            except CacheError as error:
                _log.warning("entry %s: %s", entry.id, error)
                continue
            if view is not None:
                views.append(view)
        # After the views: a stream that ends meanwhile is counted twice rather than not.
        decision = decide(views, self._limits(), self._leaving(views))
        denied: defaultdict[int, list[Denied]] = defaultdict(list)
        for denial in decision.denied:
            denied[denial.entry_id].append(denial)
        for entry in entries.values():
            entry.denied = tuple(denied[entry.id])
        for action in decision.actions:
            entry = entries[action.entry_id]
            if isinstance(action, SetStop):
                entry.set_stop(action.stream_id, action.stop)
            else:
                self._open(entry, action)
        moments = [due for entry in entries.values() if (due := entry.due_s()) is not None]
        return min(moments, default=None)

    def _leaving(self, views: list[EntryView]) -> list[Leaving]:
        """Return the connections that stand although no view has them any more."""
        seen = {stream.id for view in views for stream in view.streams}
        self._standing = [each for each in self._standing if not each[1].ended]
        return [
            Leaving(entry.id, entry.url.origin)
            for entry, claim in self._standing
            if claim.id not in seen
        ]

    def _open(self, entry: LiveEntry, action: Open) -> None:
        try:
            claim = entry.grant(action)
        except CacheError as error:
            # Nobody would fetch for those who wait, so they are told why.
            entry.refuse(error)
            return
        if claim is None:
            return
        self._standing.append((entry, claim))
        try:
            self._download(entry, claim)
        except RuntimeError as error:  # no thread to be had, at the moment
            entry.ended(claim, OriginUnreachable(f"the download cannot start: {error}"))


class Flusher(Loop):
    """Flushes entries that have unsynced bytes: the urgent ones now, the others soon.

    *after* is called when bytes may have been added: the place to make room. If there is
    still too little, it returns in how many seconds to call it again, else None.
    """

    def __init__(
        self,
        after: Callable[[], float | None] = lambda: None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("cachefsm-flusher")
        self._after = after
        self._ticks = ticks
        self._dirty: dict[LiveEntry, float] = {}
        self._again_s: float | None = None

    def note(self, entry: LiveEntry, urgent: bool) -> None:
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

    def flush_all(self, entries: Iterable[LiveEntry]) -> None:
        """Flush *entries* in the caller's thread, as at shutdown."""
        for entry in entries:
            self._flush(entry, again=False)

    def _flush(self, entry: LiveEntry, *, again: bool = True) -> None:
        try:
            entry.flush()
        except StorageError:  # noted by the entry: one line for an episode
            if again:
                self.note(entry, False)
        except CacheError as error:
            _log.warning("%s: %s", entry.shown_url, error)
