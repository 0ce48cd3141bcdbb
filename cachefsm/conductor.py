"""The thread that decides who fetches what.

It asks the pure scheduler what to do whenever an entry says that something has changed,
and starts and stops downloader threads accordingly.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

from .claims import Claim
from .entry import LiveEntry
from .errors import CacheError, OriginUnreachable, StorageError
from .loop import Loop
from .scheduler import Denied, EntryView, Leaving, Limits, Open, SetStop, decide

__all__ = ["Conductor"]

_log = logging.getLogger(__name__)


class Conductor(Loop):
    """Applies the scheduler's plan to the live entries.

    It remembers every connection that it had opened until the connection's thread has
    ended, even if the entry is removed before that.
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
        """Look at every live entry and apply the plan; return the time of the next look, if any."""
        live = list(self._entries())
        # Dozens of those that were just read are in memory for each that is fetched.
        entries = {entry.id: entry for entry in live if not entry.is_at_rest}
        views = []
        for entry in entries.values():
            try:
                view = entry.view()
            except StorageError as error:
                entry.refuse(error)  # it is looked at again after a rest
                continue
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
        for entry in live:
            entry.denied = tuple(denied[entry.id])
        for action in decision.actions:
            entry = entries[action.entry_id]
            if isinstance(action, SetStop):
                entry.set_stop(action)
            else:
                self._open(entry, action)
        moments = [due for entry in entries.values() if (due := entry.due_s()) is not None]
        return min(moments, default=None)

    def _leaving(self, views: list[EntryView]) -> list[Leaving]:
        """Return the connections that are still open although no view shows them any more."""
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
