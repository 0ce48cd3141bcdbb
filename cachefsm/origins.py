"""What origins have shown of themselves: speed, latency, how many connections they bear.

One :class:`OriginFacts` for each origin (scheme, host and port), shared by its
entries and kept from one run to the next. How many connections are worth while is
found out by :mod:`cachefsm.parallel`; how many are too many is what the origin says,
with a 429 or 503, or by refusing or resetting connections while others stand.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from .errors import OriginStatus, OriginUnreachable
from .picture import OriginView
from .ranges import END
from .tables import OriginRecord

__all__ = ["OriginBook", "OriginFacts", "OriginRecord", "says_too_many"]

_log = logging.getLogger(__name__)

FORGOTTEN_S: Final = 7 * 86_400.0
"""How many connections are worth while, and how many too many, is found out anew after
so long: lines change, and so do origins."""

FIRST_REST_S: Final = OriginRecord.rest_s
"""After a refusal, as many connections are not tried again for this long; then for
twice as long each time."""

LONGEST_REST_S: Final = 3600.0

ONE_CAUSE_S: Final = 1.0
"""Connections that break within this time have one cause: an outage cuts them all."""

BLAME_S: Final = 2.0
"""A connection that breaks within this time after another one was begun may have had
to make room for it; later, it just broke."""

REMEMBERED: Final = 1000
"""How many origins are known at a time, those that were last asked for anything."""

WEIGHT: Final = 0.3
"""How much the newest measurement counts in an average."""


class OriginFacts:
    """What is known of one origin; thread-safe, and its lock is a leaf."""

    def __init__(self, record: OriginRecord, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._saved = record
        if clock() > record.updated_at + FORGOTTEN_S:
            record = replace(record, connections=1, most=None, rest_s=FIRST_REST_S)
        self._record = record
        self._standing: set[int] = set()
        self._broken_at = 0.0
        self._begun_at = 0.0

    @property
    def record(self) -> OriginRecord:
        """What is known now."""
        with self._lock:
            return self._record

    def view(self) -> OriginView:
        """Return what the scheduler should know."""
        with self._lock:
            record = self._record
            return OriginView(record.rate_bytes_s, record.latency_s, self._most())

    def changes(self) -> OriginRecord | None:
        """Return the record if it differs from when it was last asked for, else None."""
        with self._lock:
            if self._record == self._saved:
                return None
            self._saved = self._record
            return self._record

    def begin(self, connection: int) -> None:
        """Count a connection that is about to be made."""
        with self._lock:
            self._standing.add(connection)
            self._begun_at = self._clock()

    def end(self, connection: int) -> None:
        """Count it no more."""
        with self._lock:
            self._standing.discard(connection)

    def answered(self, latency_s: float, *, accepts_ranges: bool) -> None:
        """Note that a connection has brought an acceptable answer, after *latency_s*."""
        with self._lock:
            known = self._record
            changes = {
                "latency_s": _average(known.latency_s, latency_s),
                "accepts_ranges": accepts_ranges,
            }
            if known.most is not None and len(self._standing) > known.most:
                # It bears one more after all; the next one is tried soon.
                changes |= {"most": len(self._standing), "rest_s": FIRST_REST_S}
                changes |= {"most_until": self._clock() + FIRST_REST_S}
            self._note(**changes)

    def brought(self, rate_bytes_s: float) -> None:
        """Note how fast one connection was, over a time that says something."""
        with self._lock:
            self._note(rate_bytes_s=_average(self._record.rate_bytes_s, rate_bytes_s))

    def proved(self, connections: int) -> None:
        """Note how many connections for one entry have been worth it."""
        with self._lock:
            self._note(connections=connections)

    def refused(self, error: Exception) -> bool:
        """Take note of an attempt's *error*; say whether it was one connection too many.

        To be called before the connection is counted out.
        """
        if not says_too_many(error):
            return False
        with self._lock:
            standing, now_s = len(self._standing), self._clock()
            if standing < 2:
                return False  # that is what it says to anybody
            if isinstance(error, OriginUnreachable):
                last_s, self._broken_at = self._broken_at, now_s
                if now_s > self._begun_at + BLAME_S or now_s < last_s + ONE_CAUSE_S:
                    return False
            self._lower(standing - 1, now_s, _retry_after_s(error))
            return True

    # -- with the lock held ----------------------------------------------------

    def _most(self) -> int:
        known = self._record
        if known.most is None:
            return END
        return known.most + (self._clock() >= known.most_until)

    def _lower(self, most: int, now_s: float, at_least_s: float) -> None:
        known = self._record
        if known.most is not None and now_s < known.most_until:
            rest_s = known.rest_s  # it had not been tried again
        else:
            rest_s = min(LONGEST_REST_S, 2 * known.rest_s) if known.most else known.rest_s
        until = now_s + max(rest_s, at_least_s)
        self._note(most=most, most_until=until, rest_s=rest_s)
        _log.warning("%s: no more than %d connections for %.0f s", known.origin, most, rest_s)

    def _note(self, **changes: object) -> None:
        self._record = replace(self._record, **changes, updated_at=self._clock())  # type: ignore[arg-type]


class OriginBook:
    """The facts of every origin met; thread-safe."""

    def __init__(
        self, records: Iterable[OriginRecord] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # The last one that was asked for comes last.
        self._facts = {
            record.origin: OriginFacts(record, clock)
            for record in sorted(records, key=lambda record: record.updated_at)
        }

    def of(self, origin: str) -> OriginFacts:
        """Return the facts of *origin*, which are blank if it is not known."""
        with self._lock:
            facts = self._facts.pop(origin, None)
            if facts is None:
                facts = OriginFacts(OriginRecord(origin), self._clock)
            self._facts[origin] = facts
            while len(self._facts) > REMEMBERED:
                del self._facts[next(iter(self._facts))]
            return facts

    def changes(self) -> list[OriginRecord]:
        """Return what is to be written down since this was last called."""
        with self._lock:
            known = list(self._facts.values())
        return [record for facts in known if (record := facts.changes()) is not None]


def says_too_many(error: Exception) -> bool:
    """Say whether *error* may mean that the origin wants fewer connections.

    Source: RFC 6585 §4, RFC 9110 §15.6.4; many origins just reset or refuse.
    """
    if isinstance(error, OriginStatus):
        return error.status in (429, 503)
    return isinstance(error, OriginUnreachable)


def _retry_after_s(error: Exception) -> float:
    asked = error.retry_after_s if isinstance(error, OriginStatus) else None
    return min(asked or 0.0, LONGEST_REST_S)


def _average(known: float, measured: float) -> float:
    return measured if not known else known + WEIGHT * (measured - known)
