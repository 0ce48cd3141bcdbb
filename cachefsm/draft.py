"""The scheduler's working copy of one entry: its claims, as it changes them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from .picture import EntryView, Limit, Priority, StreamView
from .ranges import END, RangeSet

__all__ = ["Draft", "Planned"]


@dataclass(eq=False)
class Planned:
    """A claim as the plan would have it, with its stream if that runs already.

    A claim whose ``stop`` is its ``position`` is given up. It could go as far as
    ``limit``; what it brings before ``keeps`` somebody is waiting for.

    What it is there for: ``extra``, speed only; ``needed``, the first missing byte of some
    want (which outweighs ``extra``); ``attended``, bytes that a reader is reading just
    now; ``impatient``, a reader that has waited for long; ``asks``, a question about the
    file as a whole rather than certain bytes. ``since_s`` is the monotonic time since when
    it has been wanted.

    What became of it: ``waits``, it has a place, but the connection that leaves this place
    to it is not gone yet, so it is opened in a later round; ``denied``, it has no place;
    ``let_go``, it only waited for its reader, and its place is given to somebody else.
    """

    position: int
    stop: int
    limit: int
    stream: StreamView | None = None
    priority: Priority = Priority.FILL
    extra: bool = False
    needed: bool = False
    attended: bool = False
    impatient: bool = False
    since_s: float = inf
    keeps: int = 0
    waits: bool = False
    denied: Limit | None = None
    asks: bool = False
    let_go: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether there is anything for it to bring."""
        return self.stop > self.position

    @property
    def is_spare(self) -> bool:
        """Whether it is there for speed alone."""
        return self.extra and not self.needed

    @property
    def is_idle(self) -> bool:
        """Whether it stands and could go on, and brings nothing: it may wait for a reader."""
        stream = self.stream
        could = stream is not None and stream.position < stream.reach
        return could and not self.is_kept and not self.let_go

    @property
    def is_new(self) -> bool:
        """Whether it has yet to be opened."""
        return self.stream is None


@dataclass(eq=False)
class Draft:
    """One entry's part of the plan: which bytes are to be fetched, by which claims.

    A stored run of up to ``skip_bytes`` between two missing ones is received again and
    thrown away, as a new request for the bytes behind it would take longer.
    """

    view: EntryView
    missing: RangeSet = field(default_factory=RangeSet)
    skip_bytes: int = 0
    claims: list[Planned] = field(default_factory=list)

    @property
    def kept(self) -> Iterator[Planned]:
        """The claims that are to go on, and those that are to begin."""
        return (claim for claim in self.claims if claim.is_kept)

    def run_stop(self, offset: int) -> int:
        """Return how far a stream at *offset* would go by itself; *offset* if nowhere."""
        stop = self.missing.run_stop(offset)
        while (following := self.missing.next_start(stop)) <= stop + self.skip_bytes:
            if following == END or not self.view.present.contains(stop, following):
                break
            stop = self.missing.run_stop(following)
        return stop

    def last_missing(self, start: int, stop: int) -> int:
        """Return *stop*, or where the stored bytes before it begin; at least *start*."""
        last = start
        for run in self.missing.intersection(start, max(start, stop)):
            last = run.stop
        return last

    def open(
        self, start: int, limit: int, priority: Priority = Priority.FILL, *, extra: bool = False
    ) -> Planned:
        """Add a stream from *start*, as far as *limit* or the next claim."""
        stop = min(limit, self._next_after(start))
        claim = Planned(start, stop, limit, None, priority, extra)
        self.claims.append(claim)
        return claim

    def give_up(self, claim: Planned) -> None:
        """Drop a claim; the one before it takes over its bytes, as far as it can."""
        start, claim.stop = claim.position, claim.position
        for other in self.kept:
            if other.position < start == other.stop:
                other.stop = min(other.limit, self._next_after(other.position))

    def _next_after(self, offset: int) -> int:
        return min((c.position for c in self.kept if c.position > offset), default=END)
