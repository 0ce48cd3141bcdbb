"""The thread that decides who fetches what.

It asks the pure scheduler what to do whenever an entry says that something has changed,
and starts and stops downloader threads accordingly.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from .claims import Claim
from .entry import LiveEntry
from .errors import CacheError, OriginUnreachable, StorageError
from .loop import Loop
from .picture import Limit
from .ranges import END
from .scheduler import Denied, EntryView, Leaving, Limits, Open, Priority, SetStop, decide

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
        limits = self._limits()
        # Dozens of those that were just read are in memory for each that is fetched.
        active = [entry for entry in live if not entry.is_at_rest]
        looked = list(_look(active, limits))
        entries = {entry.id: entry for entry, _ in looked}
        views = [view for _, view in looked if view is not None]
        # After the views: a stream that ends meanwhile is counted twice rather than not.
        decision = decide(views, limits, self._leaving(views))
        behind = {entry.id for entry in active if entry.id not in entries}
        _tell(live, views, behind, decision.denied)
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


def _look(
    entries: Iterable[LiveEntry], limits: Limits
) -> Iterator[tuple[LiveEntry, EntryView | None]]:
    """Yield *entries* with their views, but for those whose turn cannot come yet.

    Of thousands of orders to one origin, as many can be begun as it may have connections:
    the first ones that there is something to decide about.
    """
    lines: defaultdict[str, list[tuple[tuple[Priority, float], int, LiveEntry]]]
    lines = defaultdict(list)
    for entry in entries:
        place = entry.place_in_line
        if place is None:
            yield entry, _view(entry)
        else:
            lines[entry.url.origin].append((place, entry.id, entry))
    for line in lines.values():
        left = limits.per_host
        for _, _, entry in sorted(line):
            if not left:
                break
            view = _view(entry)
            left -= view is not None
            yield entry, view


def _view(entry: LiveEntry) -> EntryView | None:
    try:
        return entry.view()
    except StorageError as error:
        entry.refuse(error)  # it is looked at again after a rest
    except CacheError as error:
        _log.warning("entry %s: %s", entry.id, error)
    return None


def _tell(
    live: list[LiveEntry], views: list[EntryView], behind: set[int], denials: list[Denied]
) -> None:
    """Let each entry know for what it has no connection; so has none who is *behind* in line."""
    denied: defaultdict[int, list[Denied]] = defaultdict(list)
    for denial in denials:
        denied[denial.entry_id].append(denial)
    full = {
        view.host: denied[view.id][0].limit
        for view in views
        if view.id in denied and denied[view.id][0].limit is not Limit.ENTRY
    }
    for entry in live:
        limit = full.get(entry.url.origin) if entry.id in behind else None
        own = denied.get(entry.id, ())
        entry.denied = tuple(own) if limit is None else (Denied(entry.id, 0, END, limit),)
