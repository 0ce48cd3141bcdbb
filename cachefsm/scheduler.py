"""Which bytes to ask for next, on how many connections, and for whom.

Pure: a picture of the active entries goes in, a list of actions comes out, and
nothing is done here. The conductor takes the picture, applies the actions and
calls again whenever something has changed, so a decision that went stale costs
one more round and nothing else.

Words: a *want* is a byte range that somebody would like, with a priority; a
*stream* is a connection filling its claim ``[position, stop)``. Claims of one
entry never overlap and never cover stored bytes, so no byte is asked for twice.

The rules, in the order they are applied:

0. Where something is to be asked about the file as a whole, that takes a connection
   before anything else, and while nothing is known of the file nothing else is fetched.
1. A byte is fetched only if it is wanted and missing.
2. A stream whose next byte is no longer wanted stops; one whose claim reaches
   past what is wanted is shortened, one that may go further is lengthened.
3. A blocked reader is served by a stream that will be there soon, else by a new
   one at its first missing byte, which takes the rest of the claim it falls in.
4. Every other want's first missing byte is fetched too: by the claim that it falls
   in, else by a new stream. So there is at most one stream for each want.
5. Limits per entry, per host and in all are kept by giving connections to the
   most urgent first; a blocked reader takes the place of a stream that nobody
   is waiting for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from itertools import pairwise

from .ranges import END, RangeSet

__all__ = [
    "Action",
    "Ask",
    "EntryView",
    "Limits",
    "Open",
    "Priority",
    "SetStop",
    "StreamView",
    "Want",
    "plan",
]


class Priority(IntEnum):
    """How urgent a want is; the smallest number goes first."""

    BLOCKED = 0
    READ_AHEAD = 1
    PERSON = 2
    PREFETCH = 3
    FILL = 4


@dataclass(frozen=True)
class Want:
    """Somebody would like ``[start, stop)``; *stop* is END for "to the end".

    ``impatient`` is a blocked reader that has waited longer than "soon" takes.
    """

    start: int
    stop: int
    priority: Priority
    impatient: bool = False


@dataclass(frozen=True)
class StreamView:
    """A connection at work: it has ``position`` next and its claim ends at ``stop``.

    ``reach`` is the stop it asked the origin for, past which it cannot go.
    """

    id: int
    position: int
    stop: int
    reach: int
    rate_bytes_s: float = 0.0


class Ask(Enum):
    """Whether the origin is to be asked about the file as a whole: a first question, or
    whether what is stored is still current."""

    NO = auto()
    WANTED = auto()
    UNDER_WAY = auto()


@dataclass(frozen=True)
class EntryView:
    """What the decision needs to know of one entry.

    ``length`` is END while unknown. ``seekable`` says that bytes of several
    answers may be joined; without it there is one stream, from the front.
    ``settled`` is False until the origin's first answer has told which it is.
    """

    id: int
    host: str
    present: RangeSet
    wants: tuple[Want, ...]
    streams: tuple[StreamView, ...] = ()
    length: int = END
    seekable: bool = True
    settled: bool = True
    ask: Ask = Ask.NO


@dataclass(frozen=True)
class Limits:
    """The most connections at once, and what counts as near.

    A stream reaches a byte soon if it has at most ``near_bytes`` to go, or will
    be there within ``near_s`` at its measured rate. A reader that has been blocked
    for ``patience_s`` all the same believes only the rate: the stream has stalled.
    """

    per_entry: int = 4
    per_host: int = 6
    total: int = 16
    near_bytes: int = 1 << 20
    near_s: float = 0.25
    patience_s: float = 0.5


@dataclass(frozen=True)
class Open:
    """Start a stream for ``[start, stop)``; or, if it ``asks``, for what is asked."""

    entry_id: int
    start: int
    stop: int
    priority: Priority
    asks: bool = False


@dataclass(frozen=True)
class SetStop:
    """Let a stream's claim end at *stop*; at its position or before, it ends now."""

    entry_id: int
    stream_id: int
    stop: int


Action = Open | SetStop


@dataclass
class _Claim:
    """A stream as the plan would have it: existing, or about to be opened."""

    position: int
    stop: int
    stream: StreamView | None = None
    priority: Priority = Priority.FILL
    asks: bool = False


@dataclass
class _EntryPlan:
    view: EntryView
    claims: list[_Claim] = field(default_factory=list)

    @property
    def kept(self) -> Iterator[_Claim]:
        return (claim for claim in self.claims if claim.stop > claim.position)


def plan(entries: Iterable[EntryView], limits: Limits) -> list[Action]:
    """Return what to do now, shortenings and endings before openings."""
    plans = [_plan_entry(view, limits) for view in entries]
    _keep_limits(plans, limits)
    endings: list[Action] = []
    openings: list[Open] = []
    for entry_plan in plans:
        for claim in entry_plan.claims:
            if claim.stream is None:
                if claim.stop > claim.position:
                    openings.append(
                        Open(
                            entry_plan.view.id,
                            claim.position,
                            claim.stop,
                            claim.priority,
                            claim.asks,
                        )
                    )
            elif claim.stop != claim.stream.stop:
                endings.append(SetStop(entry_plan.view.id, claim.stream.id, claim.stop))
    openings.sort(key=lambda action: action.priority)
    return [*endings, *openings]


def _plan_entry(view: EntryView, limits: Limits) -> _EntryPlan:
    missing = _missing(view)
    entry_plan = _EntryPlan(view)
    if view.ask is not Ask.NO and not view.settled:
        entry_plan.claims.append(_question(view.ask))  # nothing else before its answer
        return entry_plan
    _plan_streams(entry_plan, missing, limits)
    if view.ask is not Ask.NO:
        entry_plan.claims.append(_question(view.ask))
    return entry_plan


def _question(ask: Ask) -> _Claim:
    """Return a claim on no bytes in particular, but on a connection."""
    stream = StreamView(-1, 0, 1, 1) if ask is Ask.UNDER_WAY else None
    return _Claim(0, 1, stream, Priority.BLOCKED, asks=True)


def _plan_streams(entry_plan: _EntryPlan, missing: RangeSet, limits: Limits) -> None:
    view = entry_plan.view
    if not view.seekable or not view.settled:
        _plan_single(entry_plan, missing)
        return
    for stream in view.streams:
        stop = min(stream.reach, missing.run_stop(stream.position))
        entry_plan.claims.append(_Claim(stream.position, stop, stream))
    _untangle(entry_plan.claims)
    for want in sorted(view.wants, key=lambda want: want.priority):
        _serve(entry_plan, want, missing, limits)
    for claim in entry_plan.claims:
        claim.priority = _urgency(claim, view, missing, limits)


def _missing(view: EntryView) -> RangeSet:
    """Return the bytes that somebody wants and that are not stored."""
    wanted = RangeSet()
    for want in view.wants:
        stop = min(want.stop, view.length)
        if stop > want.start:
            wanted.add(want.start, stop)
    return wanted.difference(view.present)


def _plan_single(entry_plan: _EntryPlan, missing: RangeSet) -> None:
    """One stream does it all: where answers can't be joined, or none has come yet."""
    view = entry_plan.view
    if not missing:
        entry_plan.claims = [_Claim(s.position, s.position, s) for s in view.streams]
        return
    if view.streams:
        entry_plan.claims = [_Claim(s.position, s.stop, s, Priority.BLOCKED) for s in view.streams]
        return
    first = min(view.wants, key=lambda want: (want.priority, want.start))
    if view.settled:  # and not seekable: it can only come from the front, and whole
        entry_plan.claims.append(_Claim(0, view.length, None, first.priority))
        return
    gap = missing.intersection(first.start, END)
    start, stop = next(iter(gap), None) or next(iter(missing))
    entry_plan.claims.append(_Claim(start, stop, None, first.priority))


def _untangle(claims: list[_Claim]) -> None:
    """Keep claims apart: each ends where the next one begins."""
    claims.sort(key=lambda claim: claim.position)
    for claim, following in pairwise(claims):
        if following.stop > following.position:
            claim.stop = max(claim.position, min(claim.stop, following.position))


def _serve(entry_plan: _EntryPlan, want: Want, missing: RangeSet, limits: Limits) -> None:
    """Make sure that somebody fetches the first missing byte of *want*."""
    claims, offset = entry_plan.claims, _first_missing(want, entry_plan.view, missing)
    if offset is None:
        return
    holder = next((claim for claim in claims if claim.position <= offset < claim.stop), None)
    if holder is None:
        _open(claims, offset, missing.run_stop(offset), want.priority)
    elif want.priority is Priority.BLOCKED and not _is_near(holder, offset, want, limits):
        stop, holder.stop = holder.stop, offset
        _open(claims, offset, stop, want.priority)


def _first_missing(want: Want, view: EntryView, missing: RangeSet) -> int | None:
    """Return the first byte of *want* that has to be fetched: what a blocked reader waits for."""
    # It may lie past the end, asked for before the length was known.
    stop = max(want.start, min(want.stop, view.length))
    gap = next(missing.intersection(want.start, stop), None)
    return None if gap is None else gap.start


def _is_near(claim: _Claim, offset: int, want: Want, limits: Limits) -> bool:
    """Say whether *claim* will be at *offset*, which it holds, soon enough for *want*."""
    reach = limits.near_s * claim.stream.rate_bytes_s if claim.stream else 0.0
    near = reach if want.impatient else max(limits.near_bytes, reach)
    return offset - claim.position <= near


def _open(claims: list[_Claim], start: int, stop: int, priority: Priority) -> None:
    ahead = [c.position for c in claims if c.position > start and c.stop > c.position]
    claims.append(_Claim(start, min([stop, *ahead]), None, priority))


def _urgency(claim: _Claim, view: EntryView, missing: RangeSet, limits: Limits) -> Priority:
    """Return the priority of the most urgent want that this claim serves soon."""
    near = min(claim.stop, claim.position + limits.near_bytes + 1)
    served = [Priority.FILL]
    for want in view.wants:
        if want.priority is Priority.BLOCKED:
            offset = _first_missing(want, view, missing)
            holds = offset is not None and claim.position <= offset < claim.stop
            if offset is not None and holds and _is_near(claim, offset, want, limits):
                return Priority.BLOCKED
        if want.start < near and want.stop > claim.position:
            # What lies ahead in a blocked reader's window is not what it waits for.
            served.append(max(want.priority, Priority.READ_AHEAD))
    return min(served)


def _keep_limits(plans: Sequence[_EntryPlan], limits: Limits) -> None:
    """Take away what is over a limit, the least urgent first, running streams last.

    A running stream gives way only to a blocked reader, and only if nobody is
    blocked on it: anything else would tear down connections to build others.
    """

    def order(item: tuple[_EntryPlan, _Claim]) -> tuple[int, int, int]:
        claim = item[1]
        if claim.priority is Priority.BLOCKED:
            return (0, claim.stream is None, claim.position)
        return (1 if claim.stream is not None else 2, claim.priority, claim.position)

    total = 0
    per_host: Counter[str] = Counter()
    per_entry: Counter[int] = Counter()
    for entry_plan, claim in sorted(((p, c) for p in plans for c in p.kept), key=order):
        view = entry_plan.view
        if (
            total >= limits.total
            or per_host[view.host] >= limits.per_host
            or per_entry[view.id] >= limits.per_entry
        ):
            _give_up(entry_plan, claim)
            continue
        total += 1
        per_host[view.host] += 1
        per_entry[view.id] += 1


def _give_up(entry_plan: _EntryPlan, claim: _Claim) -> None:
    """Drop a claim; a running one that ends where it begins goes on over its bytes, if it can."""
    start, stop = claim.position, claim.stop
    claim.stop = start
    for other in entry_plan.claims:
        if other.stream is not None and other.position < start == other.stop:
            other.stop = min(stop, other.stream.reach)
