"""A plan in the making: one entry's claims as they stand, and as they are to be. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .picture import EntryView, Priority, StreamView

__all__ = ["Draft", "Planned"]


@dataclass(eq=False)
class Planned:
    """A stream as the plan would have it: one that runs, or one that is to be opened.

    It is given up if it ends where it begins. A new one that *waits* is opened in a
    later round, when the place that it is to have is free. One that *asks* is for no
    bytes in particular, but takes a connection like any other.
    """

    position: int
    stop: int
    stream: StreamView | None = None
    priority: Priority = Priority.FILL
    waits: bool = False
    asks: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether there is anything for it to bring."""
        return self.stop > self.position

    @property
    def is_new(self) -> bool:
        """Whether it has yet to be opened."""
        return self.stream is None


@dataclass(eq=False)
class Draft:
    """One entry's part of the plan."""

    view: EntryView
    claims: list[Planned] = field(default_factory=list)

    @property
    def kept(self) -> Iterator[Planned]:
        """The claims that are to go on, and those that are to begin."""
        return (claim for claim in self.claims if claim.is_kept)

    def open(self, start: int, stop: int, priority: Priority) -> Planned:
        """Add a stream from *start*, as far as *stop* or the next claim."""
        ahead = [claim.position for claim in self.kept if claim.position > start]
        claim = Planned(start, min([stop, *ahead]), None, priority)
        self.claims.append(claim)
        return claim

    def give_up(self, claim: Planned) -> None:
        """Drop a claim; the running one that would end where it begins goes on, if it can."""
        start, stop = claim.position, claim.stop
        claim.stop = start
        for other in self.claims:
            if other.stream is not None and other.position < start == other.stop:
                other.stop = min(stop, other.stream.reach)
