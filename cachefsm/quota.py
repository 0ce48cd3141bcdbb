"""Who gets a connection where not everybody can: limits per entry, per host and in all. Pure.

A *place* is the right to a connection, a *connection* is what the origin counts:
one that was given up stands until its thread has let go of it. So a claim can be
given the place of another at once, and is opened once that one's connection is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .draft import Draft, Planned
from .picture import EntryView, Leaving, Limits, Priority

__all__ = ["keep_limits"]


class _Room:
    """How many more there may be."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = 0
        self._hosts: Counter[str] = Counter()
        self._entries: Counter[int] = Counter()

    def take(self, entry_id: int, host: str) -> None:
        """Count one, whether there is room for it or not."""
        self._total += 1
        self._hosts[host] += 1
        self._entries[entry_id] += 1

    def is_left_for(self, view: EntryView) -> bool:
        """Say whether one more for that entry is within all limits."""
        return (
            self._total < self._limits.total
            and self._hosts[view.host] < min(self._limits.per_host, view.origin.most)
            and self._entries[view.id] < self._limits.per_entry
        )


def keep_limits(drafts: Sequence[Draft], limits: Limits, leaving: Iterable[Leaving]) -> None:
    """Give up what is over a limit, and let what has a place wait until it is free."""
    claims = sorted(
        ((draft, claim) for draft in drafts for claim in draft.kept),
        key=lambda each: _rank(each[1]),
    )
    _give_places(claims, limits)
    connections = _Room(limits)
    for gone in leaving:
        connections.take(gone.entry_id, gone.host)
    for draft in drafts:
        for _ in draft.view.streams:
            connections.take(draft.view.id, draft.view.host)
    for draft, claim in claims:
        if claim.is_kept and claim.is_new:
            claim.waits = not connections.is_left_for(draft.view)
            if not claim.waits:
                connections.take(draft.view.id, draft.view.host)


def _rank(claim: Planned) -> tuple[int, int, bool, bool, int]:
    """Return a key by which claims are given places, the first one first.

    A running stream gives way only to a blocked reader, and only if nobody is blocked
    on it: anything else would tear down connections to build others. One that is there
    for speed alone also gives way to whoever is as urgent and has none.
    """
    if claim.priority is Priority.BLOCKED:
        return (0, 0, False, claim.is_new, claim.position)
    if not claim.is_new and not claim.is_spare:
        return (1, claim.priority, False, False, claim.position)
    return (2, claim.priority, claim.is_spare, claim.is_new, claim.position)


def _give_places(claims: Sequence[tuple[Draft, Planned]], limits: Limits) -> None:
    places = _Room(limits)
    for draft, claim in claims:
        if places.is_left_for(draft.view):
            places.take(draft.view.id, draft.view.host)
        else:
            draft.give_up(claim)
