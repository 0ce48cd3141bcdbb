"""A plan in the making: one entry's claims as they stand, and as they are to be. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from .picture import EntryView, Limit, Priority, StreamView
from .ranges import END, RangeSet

__all__ = ["Draft", "Planned"]


@dataclass(eq=False)
class Planned:
    """A stream as the plan would have it: one that runs, or one that is to be opened.

    It is given up if it ends where it begins; ``limit`` is how far it could go, and up
    to ``keeps`` somebody waits for what it brings. An *extra* one is there for speed,
    unless it is *needed*, as it brings the first missing byte of some want; one that is
    *attended* brings what a reader is reading. A new one that *waits* is opened in a
    later round, when the place that it is to have is free; an *impatient* one is for a
    reader that has waited for long; ``since_s`` is how long whoever it is for has waited,
    compared with others. One that is *denied* has no place at all. One that
    *asks* is for no bytes in particular, but
    takes a connection like any other. One that waits for a reader is *let go* where
    somebody else has no connection.
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
    """One entry's part of the plan: what is to be fetched of it, and by whom.

    Of stored bytes between two missing ones, ``skip_bytes`` are received once more and
    thrown away rather than that a new request is made for what lies behind them.
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
