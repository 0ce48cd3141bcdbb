"""Decides who gets a connection if there are not enough: limits per entry, host and cache. Pure.

A *place* is the right to a connection; a *connection* is what the origin sees, and one
that was given up is open until its thread has closed it. So a claim can be given the
place of another at once, but is opened only when the other's connection is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum, auto

from .draft import Draft, Planned
from .picture import Ask, EntryView, Leaving, Limit, Limits, Priority

__all__ = ["keep_limits"]


class _Room:
    """How many more connections (or places) the limits allow."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = 0
        self._hosts: Counter[str] = Counter()
        self._entries: Counter[int] = Counter()

    def take(self, entry_id: int, host: str) -> None:
        """Count one more for that entry, whether there is room for it or not."""
        self._total += 1
        self._hosts[host] += 1
        self._entries[entry_id] += 1

    def lacks_for(self, view: EntryView, kept_free: float = 0.0) -> Limit | None:
        """Return the limit that leaves no room for one more for that entry, or None.

        The fraction *kept_free* of the limits per host and in all does not count as room.
        """
        limits = self._limits
        if self._total >= limits.total - int(kept_free * limits.total):
            return Limit.TOTAL
        if self._hosts[view.host] >= limits.per_host - int(kept_free * limits.per_host):
            return Limit.HOST
        if self._hosts[view.host] >= view.origin.most:
            return Limit.ORIGIN
        return Limit.ENTRY if self._entries[view.id] >= limits.per_entry else None


def keep_limits(drafts: Sequence[Draft], limits: Limits, leaving: Iterable[Leaving]) -> None:
    """Give up the claims that exceed a limit; let others wait until their place is free."""
    claims = sorted(
        ((draft, claim) for draft in drafts for claim in draft.kept),
        key=lambda each: _rank(each[0], each[1], limits),
    )
    _give_places(drafts, claims, limits)
    connections = _Room(limits)
    for gone in leaving:
        connections.take(gone.entry_id, gone.host)
    for draft in drafts:
        for _ in draft.view.streams:
            connections.take(draft.view.id, draft.view.host)
    for draft, claim in claims:
        if claim.is_kept and claim.is_new:
            lack = connections.lacks_for(draft.view)
            claim.waits = lack is not None
            if lack is None:
                connections.take(draft.view.id, draft.view.host)
            else:
                _let_go(drafts, draft.view, lack)


def _let_go(drafts: Sequence[Draft], view: EntryView, lack: Limit) -> None:
    """End a connection that waits for its reader, if *lack* is what leaves *view* without one."""
    for draft in drafts:
        same_host = draft.view.host == view.host
        if lack is Limit.TOTAL or (same_host and lack is not Limit.ENTRY) or draft.view is view:
            idle = next((claim for claim in draft.claims if claim.is_idle), None)
            if idle is not None:
                idle.let_go = True
                return


class _Rank(IntEnum):
    """Who is given a place first."""

    KEPT = auto()
    """Streams whose answers cannot be joined with others, so that they could not be resumed;
    and those that a reader is reading, until its turn is over."""
    LONG_AWAITED = auto()
    AWAITED = auto()
    """Streams that a reader is blocked on, its turn being over."""
    NEW = auto()
    """Those that a blocked reader needs."""
    RUNNING = auto()
    OTHER = auto()


def _rank(
    draft: Draft, claim: Planned, limits: Limits
) -> tuple[_Rank, int, bool, bool, float, int]:
    """Return a key by which claims are given places, the first one first.

    A running stream gives way only to a blocked reader, as anything else would close
    connections only to open others. While a reader is reading what the stream brings, it
    does so only after that reader's turn; and if that reader is blocked on it, only to one
    that has waited for long. A stream for speed only also gives way to any equally urgent
    want that has none. Of equally urgent claims, the one that has waited longest goes first.
    """
    blocked, whose = claim.priority is Priority.BLOCKED, (claim.since_s, claim.position)
    if claim.stream is None:
        if blocked:
            return (_Rank.LONG_AWAITED if claim.impatient else _Rank.NEW, 0, False, False, *whose)
        return (_Rank.OTHER, claim.priority, claim.is_spare, True, *whose)
    whole = not (draft.view.seekable and draft.view.settled)
    if whole or (claim.attended and claim.stream.served_s < limits.turn_s):
        return (_Rank.KEPT, 0, False, False, *whose)
    if blocked:
        return (_Rank.AWAITED, 0, False, False, *whose)
    if claim.is_spare:
        return (_Rank.OTHER, claim.priority, True, False, *whose)
    return (_Rank.RUNNING, claim.priority, False, False, *whose)


def _give_places(
    drafts: Sequence[Draft], claims: Sequence[tuple[Draft, Planned]], limits: Limits
) -> None:
    places = _Room(limits)
    for draft in drafts:
        if draft.view.ask is Ask.UNDER_WAY and draft.view.settled:
            places.take(draft.view.id, draft.view.host)  # it is none of the streams
    for draft, claim in claims:
        is_background = claim.is_new and claim.priority > Priority.READ_AHEAD
        kept_free = limits.for_readers if is_background else 0.0
        claim.denied = places.lacks_for(draft.view, kept_free)
        if claim.denied is None:
            places.take(draft.view.id, draft.view.host)
        else:
            draft.give_up(claim)
