"""Which bytes to ask for next, on how many connections, and for whom.

Pure: a picture of the active entries goes in, a list of actions comes out, and
nothing is done here. The conductor takes the picture, applies the actions and
calls again whenever something has changed, so a decision that went stale costs
one more round and nothing else.

The words are explained in :mod:`cachefsm.picture`.

The rules, in the order they are applied:

0. A question about the file as a whole is given a connection as a blocked reader is, and
   while nothing is known of the file no other is opened for it.
1. A byte is fetched only if it is wanted and missing.
2. A stream whose next byte is no longer wanted stops, unless it is told to bring
   what it asked for all the same; one whose claim reaches
   past what is wanted is shortened, one that may go further is lengthened. Stored
   bytes in between are received again and thrown away if that is over sooner than
   a new request would be answered.
3. A blocked reader is served by a stream that will be there soon, else by a new
   one at its first missing byte, which takes the rest of the claim it falls in.
4. Every other want's first missing byte is fetched too: by the claim that it falls
   in, else by a new stream. So there is at most one stream for each want. Read-ahead
   waits until half of the reader's window is missing, and then asks for all of it.
5. If an entry is to have more connections than that, they go where they do most
   good; see :mod:`cachefsm.spread`.
6. Limits per entry, per host and in all are kept by giving connections to the
   most urgent first; a blocked reader takes the place of a stream that nobody
   is waiting for. A stream that has brought all that is wanted, and only waits for its
   reader to catch up, gives its place to anybody. See :mod:`cachefsm.quota`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from .draft import Draft, Planned
from .picture import (
    Abandoned,
    Action,
    Ask,
    Denied,
    EntryView,
    Leaving,
    Limits,
    Open,
    OriginView,
    Priority,
    SetStop,
    StreamView,
    Want,
)
from .quota import keep_limits
from .ranges import END, RangeSet
from .spread import spread

__all__ = [
    "Abandoned",
    "Action",
    "Ask",
    "Decision",
    "Denied",
    "EntryView",
    "Leaving",
    "Limits",
    "Open",
    "OriginView",
    "Priority",
    "SetStop",
    "StreamView",
    "Want",
    "decide",
    "plan",
]


NEARLY: Final = 0.1
"""A fetch is nearly done when no more than this part of what it asked for is left."""


@dataclass(frozen=True)
class Decision:
    """The actions to apply now, endings before openings; and the wants without a connection."""

    actions: list[Action]
    denied: list[Denied]


def plan(
    entries: Iterable[EntryView], limits: Limits, leaving: Iterable[Leaving] = ()
) -> list[Action]:
    """Return the actions that :func:`decide` decides on."""
    return decide(entries, limits, leaving).actions


def decide(
    entries: Iterable[EntryView], limits: Limits, leaving: Iterable[Leaving] = ()
) -> Decision:
    """Return what to do now, and what cannot be done because of a limit.

    *leaving* are connections that were given up, so that no stream in the picture has them,
    but that are still open: they count against the limits until they are gone.
    """
    drafts = [_plan_entry(view, limits) for view in entries]
    keep_limits(drafts, limits, leaving)
    endings: list[Action] = []
    openings: list[Open] = []
    denied: list[Denied] = []
    for draft in drafts:
        for claim in draft.claims:
            if claim.denied is not None and not claim.is_spare:
                denied.append(Denied(draft.view.id, claim.position, claim.limit, claim.denied))
            if draft.skip_bytes and not claim.asks:  # nothing is behind the last missing byte
                claim.stop = draft.last_missing(claim.position, claim.stop)
            if claim.stream is not None:
                may_wait = claim.denied is None and not claim.let_go
                if claim.stop != claim.stream.stop or not may_wait:
                    endings.append(SetStop(draft.view.id, claim.stream.id, claim.stop, may_wait))
            elif claim.is_kept and not claim.waits:
                openings.append(_opening(draft, claim))
    openings.sort(key=lambda action: action.priority)
    return Decision([*endings, *openings], denied)


def _opening(draft: Draft, claim: Planned) -> Open:
    return Open(
        draft.view.id,
        claim.position,
        claim.stop,
        claim.priority,
        extra=claim.is_spare,
        asks=claim.asks,
        skip_bytes=draft.skip_bytes,
    )


def _plan_entry(view: EntryView, limits: Limits) -> Draft:
    draft = Draft(view, _missing(view))
    if view.ask is Ask.NO or view.settled:
        _plan_streams(draft, limits)
    else:  # its answer is waited for
        draft.claims = [_undisturbed(stream) for stream in view.streams]
    if view.ask is Ask.WANTED:
        draft.claims.append(_question(view))
    if view.rests:  # what is not begun takes nobody's place
        for claim in draft.claims:
            if claim.is_new:
                draft.give_up(claim)
    return draft


def _question(view: EntryView) -> Planned:
    return Planned(
        position=0,
        stop=1,
        limit=1,
        priority=Priority.BLOCKED,
        impatient=view.ask_impatient,
        since_s=view.ask_since_s,
        asks=True,
    )


def _plan_streams(draft: Draft, limits: Limits) -> None:
    view = draft.view
    if not view.seekable or not view.settled:
        _plan_single(draft)
        return
    draft.skip_bytes = _worth_skipping(view, limits)
    for stream in view.streams:
        stop = min(stream.reach, _goes_on_to(stream, draft, limits))
        draft.claims.append(Planned(stream.position, stop, stop, stream, extra=stream.extra))
    _untangle(draft.claims)
    for want in sorted(view.wants, key=lambda want: (want.priority, want.since_s)):
        _serve(draft, want, limits)
    spread(draft, limits)
    for claim in draft.claims:
        claim.priority = _spare_urgency(view) if claim.is_spare else _urgency(claim, draft, limits)


def _goes_on_to(stream: StreamView, draft: Draft, limits: Limits) -> int:
    """Return where *stream* is to end: where nobody wants more, unless it must go on anyway."""
    wanted = draft.run_stop(stream.position)
    reach = min(stream.reach, draft.view.length)
    left, asked = reach - stream.position, reach - stream.begun
    if limits.abandoned is Abandoned.STOP or (
        limits.abandoned is Abandoned.NEARLY and left > NEARLY * asked
    ):
        return wanted
    present = draft.view.present
    if present.run_stop(stream.position) > stream.position:
        return wanted
    return max(wanted, present.next_start(stream.position))


def _worth_skipping(view: EntryView, limits: Limits) -> int:
    """Return how many stored bytes are received in the time that a new request takes."""
    return min(
        limits.skip_bytes,
        view.skip_bytes,
        int(view.origin.rate_bytes_s * view.origin.latency_s),
    )


def _missing(view: EntryView) -> RangeSet:
    """Return the bytes that somebody wants and that are not stored."""
    wanted = RangeSet()
    for want in view.wants:
        stop = min(want.stop, view.length)
        if stop > want.start:
            wanted.add(want.start, stop)
    return wanted.difference(view.present)


def _plan_single(draft: Draft) -> None:
    """Plan a single stream, as answers cannot be joined or none has come yet."""
    view, missing = draft.view, draft.missing
    # A reader that has all of its window will want more, and there would be no more.
    is_read = any(want.priority <= Priority.READ_AHEAD for want in view.wants)
    if not missing and not (view.streams and is_read):
        draft.claims = [Planned(s.position, s.position, s.stop, s) for s in view.streams]
        return
    if view.streams:
        draft.claims = [_undisturbed(stream) for stream in view.streams]
        return
    first = min(view.wants, key=lambda want: (want.priority, want.since_s, want.start))
    start, stop = 0, view.length
    if not view.settled:  # else it can only come from the front, and whole
        gap = missing.intersection(first.start, END)
        start, stop = next(iter(gap), None) or next(iter(missing))
    claim = draft.open(start, stop, first.priority)
    claim.since_s, claim.impatient = first.since_s, first.impatient


def _undisturbed(stream: StreamView) -> Planned:
    # All the way: it may have been told to wait for a reader, and there is no other one.
    return Planned(stream.position, stream.reach, stream.reach, stream, Priority.BLOCKED)


def _untangle(claims: list[Planned]) -> None:
    """Keep claims apart: each ends where the next one begins."""
    claims.sort(key=lambda claim: claim.position)
    for claim, following in pairwise(claims):
        if following.stop > following.position:
            claim.stop = max(claim.position, min(claim.stop, following.position))


def _serve(draft: Draft, want: Want, limits: Limits) -> None:
    """Make sure that somebody fetches the first missing byte of *want*."""
    offset = _first_missing(want, draft)
    if offset is None:
        return
    holder = next((claim for claim in draft.claims if claim.position <= offset < claim.stop), None)
    blocked = want.priority is Priority.BLOCKED
    apart = blocked or want.apart
    if holder is not None and apart and not _is_near(holder, offset, want, limits):
        holder.stop, holder = offset, None
    if holder is None:
        if want.priority is Priority.READ_AHEAD and not _runs_dry(want, offset):
            return  # rather all of it at once, a little later
        holder = draft.open(offset, draft.run_stop(offset), want.priority)
    if not holder.needed:  # the most urgent comes first, and of those the oldest
        holder.since_s = want.since_s
    holder.needed = True
    holder.attended |= blocked or (want.active and _runs_dry(want, offset))
    if blocked:
        holder.keeps = max(holder.keeps, offset)
        holder.impatient |= want.impatient


def _runs_dry(want: Want, offset: int) -> bool:
    """Say whether less than half of a reader's window is stored; *offset* is missing first."""
    return offset - want.start < want.stop - offset


def _first_missing(want: Want, draft: Draft) -> int | None:
    """Return the first byte of *want* that has to be fetched: what a blocked reader waits for."""
    # It may lie past the end, asked for before the length was known.
    stop = max(want.start, min(want.stop, draft.view.length))
    gap = next(draft.missing.intersection(want.start, stop), None)
    return None if gap is None else gap.start


def _is_near(claim: Planned, offset: int, want: Want, limits: Limits) -> bool:
    """Say whether *claim* will be at *offset*, which it holds, soon enough for *want*."""
    reach = limits.near_s * claim.stream.rate_bytes_s if claim.stream else 0.0
    near = reach if want.impatient else max(limits.near_bytes, reach)
    return offset - claim.position <= near


def _urgency(claim: Planned, draft: Draft, limits: Limits) -> Priority:
    """Return the priority of the most urgent want that this claim serves soon."""
    near = min(claim.stop, claim.position + limits.near_bytes + 1)
    served = [Priority.FILL]
    for want in draft.view.wants:
        if want.priority is Priority.BLOCKED:
            offset = _first_missing(want, draft)
            holds = offset is not None and claim.position <= offset < claim.stop
            if offset is not None and holds and _is_near(claim, offset, want, limits):
                return Priority.BLOCKED
        if want.start < near and want.stop > claim.position:
            # What lies ahead in a blocked reader's window is not what it waits for.
            served.append(max(want.priority, Priority.READ_AHEAD))
    return min(served)


def _spare_urgency(view: EntryView) -> Priority:
    """Return the priority of what is there for speed alone: the same all over the entry.

    Otherwise a part near the reader would take the place of one that is at work.
    """
    most_urgent = min((want.priority for want in view.wants), default=Priority.FILL)
    return max(most_urgent, Priority.READ_AHEAD)
