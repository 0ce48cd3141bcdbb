"""Where to begin the connections that an entry has only for speed. Pure.

An entry may have several connections at work on bytes that one could bring, if its
origin gives each of them less than the line could carry. Each further one takes a
part of what nobody has begun: what no claim covers, or the end of a claim that is
long enough to be shared.

While somebody reads, the parts follow the reader: each connection is given what it
brings in a few seconds, the nearest first, so that all of them work on what will be
wanted next. Without a reader, or near the end, the longest claim is halved, which
takes the fewest requests. In both cases the first bytes of a claim stay with the
connection that is there already: whoever waits for them loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .draft import Draft, Planned
from .picture import EntryView, Limits, Priority
from .ranges import END

__all__ = ["spread"]


def spread(draft: Draft, limits: Limits) -> None:
    """Bring the number of connections to the entry's ``width``, as far as there is work for them.

    If there are too few, opens some. If there are too many, gives up those that were
    opened for speed only, the youngest first: those were found to bring nothing. For a
    connection that is nearly done a successor is opened already, so that the line is not
    idle while the successor waits for its answer.
    """
    view = draft.view
    spare = sorted(claim.stream.id for claim in draft.kept if claim.is_spare and claim.stream)
    ending = sum(_is_nearly_done(claim, view, _LATE) for claim in draft.kept)
    surplus = spare[max(0, view.width - 1) + ending :]
    for claim in list(draft.kept):
        if claim.stream is not None and claim.stream.id in surplus:
            draft.give_up(claim)
    if view.length == END:
        return
    lasting = sum(not _is_nearly_done(claim, view) for claim in draft.kept)
    for _ in range(view.width - lasting):
        part = _next_part(draft, limits)
        if part is None:
            return
        holder, start = part
        if draft.missing.run_stop(start) == start:  # in the middle of what is skipped
            start = draft.missing.next_start(start)
        if holder is not None:
            holder.stop = start
        draft.open(start, draft.run_stop(start), extra=True)


_LATE: Final = 4.0
"""A successor is kept even if its forerunner turns out to need up to this many times as
long as was thought."""


def _is_nearly_done(claim: Planned, view: EntryView, factor: float = 1.0) -> bool:
    """Say whether *claim* ends sooner than a new connection would be answered."""
    if claim.stream is None:
        return False
    return claim.stop - claim.position <= factor * _meanwhile_bytes(claim, view)


def _meanwhile_bytes(claim: Planned, view: EntryView) -> float:
    """Return what *claim* brings, as fast as it is now, until a new connection is answered."""
    rate = claim.stream.rate_bytes_s if claim.stream else 0.0
    return rate * view.origin.latency_s


_Part = tuple[Planned | None, int, int]
"""A part that a new connection could fetch: the claim that it would be taken from (None if
no claim covers it), its start, its stop."""


def _next_part(draft: Draft, limits: Limits) -> tuple[Planned | None, int] | None:
    """Return the claim that a further connection would shorten, if any, and where it begins."""
    least = _least_bytes(draft.view, limits)
    readers = [want.start for want in draft.view.wants if want.priority <= Priority.READ_AHEAD]
    if readers:
        size = max(least, int(limits.part_s * draft.view.origin.rate_bytes_s))
        parts = [part for part in _parts(draft, least) if _divides(part, size)]
        if parts:
            here = min(readers)
            holder, start, _ = min(parts, key=lambda part: (part[1] < here, part[1]))
            return holder, start + (size if holder else 0)
    parts = list(_parts(draft, least))
    if not parts:
        return None
    holder, start, stop = max(parts, key=lambda part: (part[2] - part[1], -part[1]))
    return holder, (start + stop + 1) // 2 if holder else start


def _least_bytes(view: EntryView, limits: Limits) -> int:
    """Return the size of the smallest part that is worth a request.

    On a slow line, a part that takes ``part_s`` seconds. In any case at least twice what a
    connection brings in the time that an answer takes: with less to do, the others would
    be done before the new connection has helped.
    """
    rate, latency_s = view.origin.rate_bytes_s, view.origin.latency_s
    lasting = int(limits.part_s * rate) or limits.part_bytes
    return max(1, min(limits.part_bytes, lasting), int(2 * latency_s * rate))


def _parts(draft: Draft, least: int) -> Iterator[_Part]:
    """Yield the parts that a new connection could fetch: unclaimed ones, and ends of claims."""
    free = draft.missing.copy()
    for claim in draft.kept:
        free.remove(claim.position, claim.stop)
        start = max(claim.position, claim.keeps)
        # By itself it may be done before another one is answered.
        if claim.stop - start >= 2 * max(least, 2 * _meanwhile_bytes(claim, draft.view)):
            yield claim, start, claim.stop
    for start, stop in free:
        if stop - start >= least:
            yield None, start, stop


def _divides(part: _Part, size: int) -> bool:
    holder, start, stop = part
    return holder is None or stop - start >= 2 * size
