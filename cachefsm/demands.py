"""Who wants which bytes of one entry, and for how long. No locks, no I/O.

The owner's lock guards it. Readers come and go; what they asked for lingers for
a grace, so that a player that seeks, or closes and opens again, finds its stream
still there. People and prefetches stay until they have what they asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .content import Content
from .explain import Reading
from .meters import RateMeter
from .models import QueueRecord
from .ranges import END, RangeSet
from .scheduler import Priority, Want

__all__ = ["DEADLINE", "IDLE", "READER", "TOO_LARGE", "Demand", "Demands", "Fill"]

READER = "reader"

PACE_HALF_LIFE_S: Final = 10.0
"""Players read in bursts: over less, their pace would be the line's."""

IDLE = "idle"
DEADLINE = "deadline"
TOO_LARGE = "too large"
"""Why an entry that nobody wants any more comes to rest: its readers have left and what
was ordered is there, an order was not met in time, or the cache may not hold so much."""


class Fill(str, Enum):
    """What is fetched of a file beyond what its readers ask for."""

    REST = "rest"
    """Everything missing, while somebody reads it and for a grace after."""
    FINISH = "finish"
    """Everything missing, to the end, once somebody has begun to read."""
    REQUESTED = "requested"
    """Nothing but read-ahead."""


@dataclass(eq=False)
class Demand:
    """Somebody's wish for bytes, alive until dropped or, where set, ``expires_at_s``.

    That is when a reader that has left is forgotten, and an order's deadline.

    ``blocked_since_s`` is set while a reader waits for the byte at ``start``,
    ``moved_s`` is when it last came to a byte, ``pace`` how fast it goes on. An order
    counts from ``ordered_s``, Unix time.
    """

    asked_by: str
    priority: Priority
    start: int = 0
    stop: int = END
    expires_at_s: float | None = None
    blocked_since_s: float | None = None
    moved_s: float | None = None
    pace: RateMeter | None = None
    ordered_s: float = 0.0

    @classmethod
    def of(cls, queued: QueueRecord, offset_s: float) -> Demand:
        """Return the demand that a row tells of; Unix time is *offset_s* after monotonic."""
        return cls(
            queued.asked_by,
            Priority(queued.priority),
            queued.start,
            END if queued.stop is None else queued.stop,
            None if queued.deadline is None else queued.deadline - offset_s,
            ordered_s=queued.created_at,
        )

    def record(self, entry_id: int, now_s: float, offset_s: float) -> QueueRecord:
        """Return the row that :meth:`of` reads; a deadline goes on while no process runs."""
        return QueueRecord(
            entry_id=entry_id,
            asked_by=self.asked_by,
            priority=self.priority,
            start=self.start,
            stop=None if self.stop == END else self.stop,
            attempts=0,
            not_before=None,
            last_error=None,
            created_at=now_s,
            deadline=None if self.expires_at_s is None else self.expires_at_s + offset_s,
        )

    def move(self, start: int, stop: int, *, blocked: bool, now_s: float) -> None:
        """Note where a reader is now, and whether it waits there."""
        if not blocked:
            self.blocked_since_s = None
        elif self.blocked_since_s is None or start != self.start:
            self.blocked_since_s = now_s
        if self.pace is None or not self.start <= start <= self.stop:
            self.pace = RateMeter(now_s, PACE_HALF_LIFE_S)
        else:
            self.pace.add(start - self.start, now_s)
        self.moved_s = now_s
        self.start, self.stop = start, stop
        self.priority = Priority.BLOCKED if blocked else Priority.READ_AHEAD

    def reading(self, now_s: float) -> Reading:
        """Return where a reader is and how it goes on."""
        pace = self.pace.rate_bytes_s(now_s) if self.pace is not None else 0.0
        return Reading(self.start, pace, self.priority is Priority.BLOCKED)

    def covers(self, other: Demand) -> bool:
        """Say whether *other* asks for nothing that this does not."""
        is_nothing = other.start >= other.stop
        return is_nothing or (self.start <= other.start and other.stop <= self.stop)

    def is_met(self, content: Content) -> bool:
        """Say whether all that is asked for is durably there."""
        stop = min(self.stop, content.length)
        return stop != END and content.durable.contains(self.start, max(self.start, stop))


class Demands:
    """The demands on one entry and the wants that follow from them."""

    def __init__(self, fill: Fill, grace_s: float) -> None:
        self._fill = fill
        self._grace_s = grace_s
        self._readers: list[Demand] = []
        self._others: list[Demand] = []
        self._rest: Demand | None = None
        self.ended = IDLE
        """Why nobody wants anything, when nobody does: IDLE, DEADLINE or TOO_LARGE."""

    def __bool__(self) -> bool:
        return bool(self._readers or self._others or self._rest)

    def __iter__(self) -> Iterator[Demand]:
        yield from self._readers
        yield from self._others
        if self._rest is not None:
            yield self._rest

    @property
    def askers(self) -> frozenset[str]:
        """Those on whose behalf something is wanted, as the queue names them."""
        return frozenset(demand.asked_by for demand in self)

    @property
    def are_readers(self) -> bool:
        """Whether nobody has ordered anything."""
        return not self._others

    @property
    def place_in_line(self) -> tuple[Priority, float] | None:
        """Which orders go before: those with a smaller value. None if there are not only orders.

        Nor has one of them a deadline: nothing changes while they wait.
        """
        others = self._others
        if self._readers or self._rest or any(d.expires_at_s is not None for d in others):
            return None
        return min(((d.priority, d.ordered_s) for d in others), default=None)

    def wants(self, now_s: float, patience_s: float) -> tuple[Want, ...]:
        """Return what the scheduler should know."""
        return tuple(
            Want(
                demand.start,
                demand.stop,
                demand.priority,
                demand.blocked_since_s is not None and now_s >= demand.blocked_since_s + patience_s,
                demand.moved_s is not None and now_s < demand.moved_s + patience_s,
                since_s=(
                    demand.ordered_s if demand.blocked_since_s is None else demand.blocked_since_s
                ),
            )
            for demand in self
            if demand.stop > demand.start
        )

    def is_read(self, start: int, stop: int) -> bool:
        """Whether a reader that is here now has some of ``[start, stop)`` in its window."""
        return any(
            reader.start < stop and start < reader.stop
            for reader in self._readers
            if reader.expires_at_s is None and reader.priority <= Priority.READ_AHEAD
        )

    def wanted_until(self, position: int) -> int:
        """Return how far what is wanted goes on from *position*; that itself if nowhere."""
        wanted = RangeSet((d.start, d.stop) for d in self if d.start < d.stop)
        return wanted.run_stop(position)

    def are_near(self, offset: int, near_bytes: int, since_s: float) -> bool:
        """Say whether a reader that has moved *since_s* is about to want what lies at *offset*."""
        return any(
            reader.moved_s is not None
            and reader.moved_s > since_s
            and reader.start <= offset <= reader.stop + near_bytes
            for reader in self._readers
        )

    @property
    def readers(self) -> list[Demand]:
        """Those of the readers that are here now."""
        return [reader for reader in self._readers if reader.expires_at_s is None]

    @property
    def fills(self) -> bool:
        """Whether a reader is here, and more is fetched than it asks for."""
        return self._rest is not None and any(r.expires_at_s is None for r in self._readers)

    def add_reader(self, start: int, stop: int, priority: Priority) -> Demand:
        """Register a reader."""
        demand = Demand(READER, priority, start, stop)
        self._readers.append(demand)
        self.ended = IDLE
        if self._fill is not Fill.REQUESTED:
            self.fill_the_rest()
        return demand

    def fill_the_rest(self) -> None:
        """Want everything that is missing, behind everybody else."""
        self._rest = self._rest or Demand(READER, Priority.FILL)
        self._rest.expires_at_s = None

    def calm(self) -> None:
        """Let no reader count as waiting: what they wait for comes another way."""
        for demand in self._readers:
            demand.move(demand.start, demand.stop, blocked=False, now_s=0.0)

    def drop_reader(self, demand: Demand, now_s: float, *, linger: bool = True) -> None:
        """Let a reader go; what it wanted is still wanted for the grace."""
        if demand not in self._readers:
            return
        demand.priority = Priority.READ_AHEAD
        demand.blocked_since_s = demand.moved_s = None
        expires_at_s = demand.expires_at_s = now_s + (self._grace_s if linger else 0.0)
        # A client that asks for range after range leaves a reader each time: of those
        # that want nothing beyond what the last one does, it is enough.
        self._readers = [
            other
            for other in self._readers
            if other is demand
            or other.expires_at_s is None
            or other.expires_at_s > expires_at_s
            or not demand.covers(other)
        ]
        live = any(reader.expires_at_s is None for reader in self._readers)
        if self._rest is not None and self._fill is Fill.REST and not live:
            self._rest.expires_at_s = now_s + self._grace_s

    def drop_left(self) -> None:
        """Forget what readers wanted that have left."""
        self._readers = [d for d in self._readers if d.expires_at_s is None]
        if not self._readers:
            self._rest = None

    def add(self, demand: Demand) -> None:
        """Register a person's or a prefetch's demand, beside those that it has."""
        self._others.append(demand)
        self.ended = IDLE

    def order(self, *order: Demand, now_s: float) -> None:
        """Register what one asker orders, in place of what the same one ordered before.

        It is as old as that, so that asking again costs nobody its turn.
        """
        asked_by = order[0].asked_by
        ordered_s = min([now_s, *(d.ordered_s for d in self._others if d.asked_by == asked_by)])
        self.drop(asked_by)
        for demand in order:
            demand.ordered_s = ordered_s
            self.add(demand)

    def drop(self, asked_by: str) -> None:
        """Forget what a person or a prefetch wanted."""
        self._others = [d for d in self._others if d.asked_by != asked_by]

    def drop_others(self) -> None:
        """Forget everybody but the readers that are here now."""
        self._others.clear()
        self.drop_left()
        self._rest = None

    def expire(self, now_s: float, content: Content) -> bool:
        """Forget those whose time is over, and those who have what they asked for.

        Returns whether a deadline has passed.
        """
        self._readers = [d for d in self._readers if not _over(d, now_s)]
        waiting = [d for d in self._others if not d.is_met(content)]
        self._others = [d for d in waiting if not _over(d, now_s)]
        if self._rest is not None and _over(self._rest, now_s):
            self._rest = None
        lapsed = len(self._others) < len(waiting)
        if lapsed:
            self.ended = DEADLINE
        return lapsed

    def drop_larger(self, length: int, most_bytes: int) -> bool:
        """Forget what would be fetched ahead of anybody's need, of more than *most_bytes*.

        That is the rest of a file of *length* behind its readers, and what prefetches
        want of it; a person's order stands. Returns whether there was an order.
        """
        if length > most_bytes:
            self._rest = None
        ahead = [
            d
            for d in self._others
            if d.priority is Priority.PREFETCH and min(d.stop, length) - d.start > most_bytes
        ]
        if ahead:
            self._others = [d for d in self._others if d not in ahead]
            self.ended = TOO_LARGE
        return bool(ahead)

    def next_due_s(self, now_s: float, patience_s: float) -> float | None:
        """Return when the next demand expires or becomes impatient, or None."""
        moments = [d.expires_at_s for d in self if d.expires_at_s is not None]
        moments += [
            due_s
            for d in self
            if d.blocked_since_s is not None and (due_s := d.blocked_since_s + patience_s) > now_s
        ]
        return min(moments, default=None)


def _over(demand: Demand, now_s: float) -> bool:
    return demand.expires_at_s is not None and now_s >= demand.expires_at_s
