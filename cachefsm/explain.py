"""Says where a byte is, when it will come, or why it will not. Pure: values in, words out.

It goes by what the scheduler sees of an entry, and by what limits kept the scheduler from
doing; see :mod:`cachefsm.picture`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .buckets import LEAST_BYTES
from .picture import EntryView, Limit, Priority, StreamView, Want
from .ranges import END
from .states import DownloadState

__all__ = ["Reading", "Situation", "explain"]


@dataclass(frozen=True)
class Reading:
    """A reader: its position, how fast it reads on (0 if not known), whether it waits."""

    position: int
    pace_bytes_s: float = 0.0
    waits: bool = False


@dataclass(frozen=True)
class Situation:
    """One entry at one moment.

    ``held``: a person has paused it. ``unanswered``: ids of the streams that the origin has
    not answered yet. ``held_back``: ids of the streams that a rate limit holds back, each
    with the bytes per second that it is allowed (0 if no longer limited). ``denied``: ranges
    for which no connection was left, each with the limit. ``resting_s``: for how long no new
    attempt is made; ``cause``: the last attempt's error; ``retry_at``: the Unix time from
    which a failed entry may be tried again. ``renewing``: a fresh link is being asked for.
    ``locked``: it needs credentials that no client has brought since the start.
    """

    view: EntryView
    state: DownloadState
    reason: str | None = None
    held: bool = False
    unanswered: frozenset[int] = frozenset()
    held_back: Mapping[int, float] = field(default_factory=dict)
    denied: tuple[tuple[int, int, Limit], ...] = ()
    resting_s: float = 0.0
    retry_at: float | None = None
    cause: str | None = None
    readings: tuple[Reading, ...] = ()
    closed: bool = False
    renewing: bool = False
    locked: bool = False


_LIMITS: Final = {
    Limit.ENTRY: "all connections that one entry may have are in use",
    Limit.HOST: "all connections that this origin may have for it are in use",
    Limit.TOTAL: "all connections that there may be for it are in use",
    Limit.ORIGIN: "the origin bears no more connections at the moment",
}


def explain(situation: Situation, offset: int) -> dict[str, Any]:
    """Return where the byte at *offset* is, or when it will come, or why not, as JSON values.

    docs/interface.md explains the fields, and each ``status``.
    """
    view = situation.view
    stream = _bringer(view, offset)
    status, why = _status(situation, offset, stream)
    coming = stream if status == "coming" else None
    return {
        "offset": offset,
        "status": status,
        "why": why,
        "stream": _describe(coming, offset) if coming else None,
        "in_s": _rounded(_arrival_s(situation, coming, offset)) if coming else None,
        "retry_at": situation.retry_at if status == "failed" else None,
        "wanted_by": [_wish(want) for want in view.wants if want.start <= offset < want.stop],
        "readers": [_outlook(situation, reading) for reading in situation.readings],
    }


def _status(situation: Situation, offset: int, stream: StreamView | None) -> tuple[str, str]:
    view = situation.view
    if offset >= view.length:
        return "past_end", f"the file has {view.length} bytes"
    if view.present.contains(offset, offset + 1):
        return "here", "it is stored"
    if situation.closed:
        return "closed", "the cache is closing, or the entry was removed"
    if situation.state is DownloadState.FAILED:
        return "failed", situation.reason or "the download failed"
    if situation.held:
        return "held", "a person has paused the download"
    if stream is not None:
        if stream.id in situation.unanswered:
            return "coming", "a request for it is under way, and not answered yet"
        if stream.id in situation.held_back:
            return "coming", "a stream is on its way to it, held back by a limit on the rate"
        if not stream.rate_bytes_s:
            return "coming", "a stream is on its way to it, but nothing comes at the moment"
        return "coming", "a stream is on its way to it"
    wanted = any(want.start <= offset < want.stop for want in view.wants)
    if not wanted:
        return "unwanted", "nobody wants it"
    if situation.renewing:
        return "renewing", "the link to it has expired, and a fresh one is asked for"
    if situation.resting_s > 0:
        cause = f": {situation.cause}" if situation.cause else ""
        return "resting", f"the next attempt is made in {situation.resting_s:.1f} s{cause}"
    return _queued(situation, offset)


def _queued(situation: Situation, offset: int) -> tuple[str, str]:
    if situation.locked:
        return "locked", "it needs credentials, and no client has come back yet that has them"
    for start, stop, limit in situation.denied:
        if start <= offset < stop:
            return "waiting", _LIMITS[limit]
    if not situation.view.settled:
        return "unsettled", "the origin has not said yet how long the file is"
    return "queued", "what comes before it is fetched first"


def _bringer(view: EntryView, offset: int) -> StreamView | None:
    """Return the stream whose claim holds the byte, or that brings the file from the front."""
    for stream in view.streams:
        if stream.position <= offset < stream.stop:
            return stream
    return None


def _arrival_s(situation: Situation, stream: StreamView, offset: int) -> float | None:
    """Return in about how many seconds *stream* is at *offset*; None while it stands still."""
    origin = situation.view.origin
    rate, delay_s = _rate_bytes_s(situation, stream), 0.0
    if stream.id in situation.unanswered:
        rate, delay_s = origin.rate_bytes_s, origin.latency_s
    return delay_s + (offset + 1 - stream.position) / rate if rate else None


def _rate_bytes_s(situation: Situation, stream: StreamView) -> float:
    """Return the rate to expect of *stream*: its present one, or its limit if that is lower."""
    measured, allowed = stream.rate_bytes_s, situation.held_back.get(stream.id)
    if not allowed:
        return measured
    # Others may have their share of it. But of packets that come less than once in a
    # second, the first counts for far too much, and soon for nothing.
    return min(measured or allowed, allowed) if allowed >= LEAST_BYTES else allowed


def _describe(stream: StreamView, offset: int) -> dict[str, Any]:
    return {
        "id": stream.id,
        "position": stream.position,
        "stop": None if stream.stop == END else stream.stop,
        "rate_bytes_s": round(stream.rate_bytes_s),
        "distance_bytes": offset - stream.position,
    }


def _wish(want: Want) -> dict[str, Any]:
    return {
        "priority": want.priority.name.lower(),
        "start": want.start,
        "stop": None if want.stop == END else want.stop,
        "waits": want.priority is Priority.BLOCKED,
    }


# -- will a reader stall -----------------------------------------------------------


def _outlook(situation: Situation, reading: Reading) -> dict[str, Any]:
    """Return a reader as JSON values, with whether and when it will have to wait.

    ``stalls`` is None if that cannot be told: its pace is not known, or it will come to
    bytes that are wanted but that no stream has claimed yet. ``stalls_in_s`` is 0 if it
    waits now.
    """
    present = situation.view.present
    ahead = present.run_stop(reading.position) - reading.position
    stalls, stalls_in_s = _stall(situation, reading)
    return {
        "position": reading.position,
        "waits": reading.waits,
        "pace_bytes_s": round(reading.pace_bytes_s),
        "ahead_bytes": ahead,
        "stalls": stalls,
        "stalls_in_s": _rounded(stalls_in_s),
    }


def _stall(situation: Situation, reading: Reading) -> tuple[bool | None, float | None]:
    if reading.waits:
        return True, 0.0
    if not reading.pace_bytes_s:
        return None, None
    for start, stop, stream in _way_ahead(situation.view, reading.position):
        if stream is None:
            if start >= situation.view.length:
                return False, None
            wanted = any(want.start <= start < want.stop for want in situation.view.wants)
            # Wanted, so somebody will fetch it; when, nobody can say.
            return (None, None) if wanted else (True, _reader_s(reading, start))
        late = _late_at(situation, reading, stream, start, stop)
        if late is not None:
            return True, _reader_s(reading, late)
    return False, None


def _way_ahead(view: EntryView, position: int) -> Iterator[tuple[int, int, StreamView | None]]:
    """Yield the missing ranges that a reader at *position* comes to, each with its stream."""
    at = view.present.run_stop(position)
    while at < view.length:
        stream = _bringer(view, at)
        if stream is None:
            break
        yield at, min(stream.stop, view.length), stream
        at = view.present.run_stop(min(stream.stop, view.length))
    yield at, at, None


def _late_at(
    situation: Situation, reading: Reading, stream: StreamView, start: int, stop: int
) -> int | None:
    """Return the first of ``[start, stop)`` that the reader is at before *stream* is, or None.

    Both go on at a steady rate, so their distance grows or shrinks from end to end.
    """
    first_s = _arrival_s(situation, stream, start)
    last_s = _arrival_s(situation, stream, stop - 1)
    if first_s is None or first_s > _reader_s(reading, start):
        return start
    if last_s is None or last_s <= _reader_s(reading, stop - 1):
        return None
    margin_s = _reader_s(reading, start) - first_s
    loss_s = last_s - _reader_s(reading, stop - 1)
    return start + int((stop - 1 - start) * margin_s / (margin_s + loss_s))


def _reader_s(reading: Reading, offset: int) -> float:
    return (offset - reading.position) / reading.pace_bytes_s


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
