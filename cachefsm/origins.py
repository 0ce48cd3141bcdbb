"""What is learnt about origins: speed, latency, how many connections they allow.

One :class:`OriginFacts` for each origin (scheme, host and port), shared by its
entries and kept from one run to the next. How many connections are worth while is
found out by :mod:`cachefsm.parallel`; how many are too many is what the origin says,
with a 429 or 503, or by refusing or resetting connections while others stand.

Not every refusal is about connections: a single file may be unavailable. The two are told
apart by what else gets through. A 429, or the refusal of one connection of a file that other
connections bring, is about the number. If nothing comes of a file, too many connections
are only suspected, for a second. If another file is refused as well, or if the same file
comes with fewer connections and is refused with more, there were too many. If it is
refused with fewer, too, the file is at fault, and the suspicion is forgotten. Once the number
is known, whatever is refused beyond it is one too many.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from http import HTTPStatus
from math import inf
from typing import Final

from .errors import OriginStatus, OriginUnreachable
from .picture import OriginView
from .ranges import END
from .tables import OriginRecord

__all__ = ["OriginBook", "OriginFacts", "OriginRecord", "says_too_many"]

_log = logging.getLogger(__name__)

FORGOTTEN_S: Final = 7 * 86_400.0
"""After this time it is found out anew how many connections are worth while, and how many
too many: lines change, and so do origins."""

FIRST_REST_S: Final = OriginRecord.rest_s
"""After a refusal, as many connections are not tried again for this long; then for
twice as long each time."""

LONGEST_REST_S: Final = 3600.0

ONE_CAUSE_S: Final = 1.0
"""Connections that break within this time have one cause: an outage cuts them all. But it
leaves none standing, so what is begun after one broke, and breaks beside others that the
origin has answered, has a cause of its own."""

BLAME_S: Final = 2.0
"""A connection that breaks within this time after another one was begun may have had
to make room for it; later, it just broke."""

SUSPECTED_S: Final = 1.0
"""For how long there are fewer connections because of one file of which nothing comes:
time enough to ask for it with fewer."""

ONE_REASON_S: Final = 60.0
"""Refusals within this time are taken to have the same reason."""

REMEMBERED: Final = 1000
"""How many origins (and refused files of each) are remembered, the latest ones."""

WEIGHT: Final = 0.3
"""How much the newest measurement counts in an average."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What the refusal of a file has changed, and when; and whether the file *came* since.

    It came with no more than *most* connections, or this would be settled.
    """

    before: OriginRecord
    most: int
    most_until: float
    at_s: float
    came: bool = False


class _Blame(Enum):
    """The cause of a refusal: too many connections, perhaps too many, or the file itself."""

    NUMBER = auto()
    MAYBE_NUMBER = auto()
    FILE = auto()


class OriginFacts:
    """What is known of one origin; thread-safe, and its lock is a leaf."""

    def __init__(self, record: OriginRecord, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._saved = record
        if clock() > record.updated_at + FORGOTTEN_S:
            record = replace(record, connections=1, most=None, rest_s=FIRST_REST_S)
        self._record = record
        self._standing: dict[int, float] = {}  # when each was begun
        self._answered: set[int] = set()
        self._suspected_until = -inf
        self._broken_at = 0.0
        self._begun_at = 0.0
        self._refusals: dict[int, _Refusal | None] = {}  # by file; None: it is the file

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

    def rests_s(self) -> float | None:
        """Return in how many seconds one more connection is tried, None if no wait is set."""
        with self._lock:
            left_s = self._record.most_until - self._clock()
            return left_s if self._record.most is not None and left_s > 0 else None

    @property
    def knows_most(self) -> bool:
        """Whether it is beyond suspicion that it bears so many connections and no more."""
        with self._lock:
            return self._record.most is not None and not self._is_suspicion

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
            self._standing[connection] = self._begun_at = self._clock()

    def end(self, connection: int) -> None:
        """Stop counting a connection."""
        with self._lock:
            self._standing.pop(connection, None)
            self._answered.discard(connection)

    def answered(
        self, latency_s: float, *, accepts_ranges: bool, file: int = 0, connection: int = 0
    ) -> None:
        """Note that a connection has brought an acceptable answer of *file*, after *latency_s*."""
        with self._lock:
            if connection in self._standing:
                self._answered.add(connection)
            known = self._record
            refusal = self._refusals.get(file)
            if refusal is None or len(self._standing) > refusal.most:
                self._refusals.pop(file, None)
            else:
                self._refusals[file] = replace(refusal, came=True)
            changes = {
                "latency_s": _average(known.latency_s, latency_s),
                "accepts_ranges": accepts_ranges,
            }
            if known.most is not None and len(self._standing) > known.most:
                # It bears one more after all; the next one is tried soon.
                until = self._clock() + FIRST_REST_S
                changes |= {"most": len(self._standing), "rest_s": FIRST_REST_S}
                changes |= {"most_until": until}
                if self._is_suspicion:
                    self._suspected_until = until
            self._note(**changes)

    def brought(self, rate_bytes_s: float) -> None:
        """Note how fast one connection was, measured over a time long enough to tell."""
        with self._lock:
            self._note(rate_bytes_s=_average(self._record.rate_bytes_s, rate_bytes_s))

    def proved(self, connections: int) -> None:
        """Note how many connections for one entry have been worth it."""
        with self._lock:
            self._note(connections=connections)

    def refused(
        self, error: Exception, file: int, *, others_come: bool, connection: int = 0
    ) -> bool:
        """Take note of an attempt's *error*; say whether it was one connection too many.

        To be called before the connection is counted out. *others_come* says that other
        connections bring parts of the same *file*.
        """
        if not says_too_many(error):
            return False
        is_said = others_come or _is_status(error, HTTPStatus.TOO_MANY_REQUESTS)
        with self._lock:
            standing, now_s = len(self._standing), self._clock()
            blame = _Blame.NUMBER if is_said else self._blame(file, standing, now_s)
            if standing < 2 or blame is _Blame.FILE:
                return False  # it would have been refused alone, too
            if isinstance(error, OriginUnreachable):
                is_known = self._has_known_cause(connection, now_s)
                self._broken_at = now_s
                if is_known or now_s > self._begun_at + BLAME_S:
                    return False
            before = self._record
            if blame is _Blame.NUMBER:
                self._lower(standing - 1, now_s, _retry_after_s(error))
            else:
                self._suspected_until = now_s + SUSPECTED_S
                self._note(most=standing - 1, most_until=self._suspected_until)
                _log.info("%s: maybe no more than %d connections", before.origin, standing - 1)
            self._remember(file, _Refusal(before, standing - 1, self._record.most_until, now_s))
            return True

    # -- with the lock held ----------------------------------------------------

    def _blame(self, file: int, standing: int, now_s: float) -> _Blame:
        """Return the probable cause of a refusal that may be about *file* alone."""
        refusal = self._refusals.get(file)
        if file in self._refusals and refusal is None:
            return _Blame.FILE
        if self._is_beyond_known(standing) or self._are_others_refused(file, now_s - BLAME_S):
            return _Blame.NUMBER
        if refusal is not None:
            if standing <= refusal.most:
                self._take_back(refusal)
                self._remember(file, None)
                return _Blame.FILE
            if now_s < refusal.at_s + ONE_REASON_S:
                return _Blame.NUMBER if refusal.came else _Blame.FILE
        is_shared = self._are_others_refused(file, now_s - ONE_REASON_S)
        return _Blame.NUMBER if is_shared else _Blame.MAYBE_NUMBER

    def _has_known_cause(self, connection: int, now_s: float) -> bool:
        """Say whether what broke another connection just before has broken this one, too."""
        is_later = self._standing.get(connection, 0.0) > self._broken_at
        is_alone = not self._answered - {connection}
        return now_s < self._broken_at + ONE_CAUSE_S and (is_alone or not is_later)

    def _is_beyond_known(self, standing: int) -> bool:
        """Say whether more connections stand than the origin bore when it was last tried."""
        most = self._record.most
        return most is not None and standing > most and not self._is_suspicion

    @property
    def _is_suspicion(self) -> bool:
        """Whether the limit is no more than what one file's refusal makes of it."""
        return self._record.most_until == self._suspected_until

    def _take_back(self, refusal: _Refusal) -> None:
        known, before = self._record, refusal.before
        if (known.most, known.most_until) == (refusal.most, refusal.most_until):
            self._note(most=before.most, most_until=before.most_until, rest_s=before.rest_s)

    def _are_others_refused(self, file: int, since_s: float) -> bool:
        return any(
            refusal is not None and other != file and refusal.at_s > since_s
            for other, refusal in self._refusals.items()
        )

    def _remember(self, file: int, refusal: _Refusal | None) -> None:
        self._refusals.pop(file, None)
        self._refusals[file] = refusal
        while len(self._refusals) > REMEMBERED:
            del self._refusals[next(iter(self._refusals))]

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

    By a status that says so; many origins just reset or refuse.
    """
    if isinstance(error, OriginStatus):
        return error.says_too_many
    return isinstance(error, OriginUnreachable)


def _is_status(error: Exception, status: int) -> bool:
    return isinstance(error, OriginStatus) and error.status == status


def _retry_after_s(error: Exception) -> float:
    asked = error.retry_after_s if isinstance(error, OriginStatus) else None
    return min(asked or 0.0, LONGEST_REST_S)


def _average(known: float, measured: float) -> float:
    return measured if not known else known + WEIGHT * (measured - known)
