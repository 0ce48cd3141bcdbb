"""What the scheduler sees and what it may say: values without behaviour. Pure.

Words: a *want* is a byte range that somebody would like, with a priority; a
*stream* is a connection filling its claim ``[position, stop)``. Claims of one
entry never overlap and never cover stored bytes, so no byte is asked for twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from .ranges import END, RangeSet

__all__ = [
    "Abandoned",
    "Action",
    "Ask",
    "EntryView",
    "Leaving",
    "Limit",
    "Limits",
    "Open",
    "OriginView",
    "Priority",
    "SetStop",
    "StreamView",
    "Want",
]


class Priority(IntEnum):
    """How urgent a want is; the smallest number goes first."""

    BLOCKED = 0
    READ_AHEAD = 1
    PERSON = 2
    PREFETCH = 3
    FILL = 4


class Abandoned(str, Enum):
    """What becomes of a fetch whose bytes nobody wants any more, once the grace is over."""

    STOP = "stop"
    """It ends at once."""
    NEARLY = "nearly"
    """It goes on to the end of what it asked for if a tenth of that is left, or less."""
    FINISH = "finish"
    """It goes on to the end of what it asked for."""


@dataclass(frozen=True)
class Want:
    """Somebody would like ``[start, stop)``; *stop* is END for "to the end".

    ``impatient`` is a blocked reader that has waited longer than "soon" takes, ``active``
    a reader that has read or waited just now: not one that is paused, or gone. What is
    wanted *apart* is worth a stream of its own, though another one will come to it later.
    Of two that are as urgent the one ``since_s`` longer goes first.
    """

    start: int
    stop: int
    priority: Priority
    impatient: bool = False
    active: bool = False
    apart: bool = False
    since_s: float = 0.0


@dataclass(frozen=True)
class StreamView:
    """A connection at work: it has ``position`` next and its claim ends at ``stop``.

    It asked the origin for what lies from ``begun`` to ``reach``, past which it cannot
    go. An *extra* one was opened for speed, where fewer would have done. ``served_s`` ago
    it was answered.
    """

    id: int
    position: int
    stop: int
    reach: int
    rate_bytes_s: float = 0.0
    extra: bool = False
    begun: int = 0
    served_s: float = 0.0


@dataclass(frozen=True)
class OriginView:
    """What is known of an origin, 0 where nothing is.

    What one connection brings, how long an answer takes, and how many connections
    at once it has been seen to bear at ``most``.
    """

    rate_bytes_s: float = 0.0
    latency_s: float = 0.0
    most: int = END


class Ask(Enum):
    """Whether the origin is to be asked about the file as a whole: the first question of
    all, or whether what is stored is still current."""

    NO = auto()
    WANTED = auto()
    UNDER_WAY = auto()


@dataclass(frozen=True)
class EntryView:
    """What the decision needs to know of one entry.

    ``length`` is END while unknown. ``seekable`` says that bytes of several
    answers may be joined; without it there is one stream, from the front.
    ``settled`` is False until the origin's first answer has told which it is.
    ``width`` is the number of connections that it is to have where fewer would do,
    ``skip_bytes`` the longest stored run that may be received once more.
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
    width: int = 1
    skip_bytes: int = 0
    origin: OriginView = OriginView()


@dataclass(frozen=True)
class Leaving:
    """A connection that was given up and still stands: its thread has not let go of it yet."""

    entry_id: int
    host: str


@dataclass(frozen=True)
class Limits:
    """The most connections at once, and what counts as near.

    A stream reaches a byte soon if it has at most ``near_bytes`` to go, or will
    be there within ``near_s`` at its measured rate. A reader that has been blocked
    for ``patience_s`` all the same believes only the rate: the stream has stalled.
    Where there are more readers than connections, each has one for ``turn_s`` at least.
    A stream that has brought all that is wanted waits for a reader close behind that has
    moved within ``hold_s``, unless there is no connection for another one.
    Of the connections per host and in all, the part ``for_readers`` is given to nobody
    else: whoever begins to read need not wait until another one's is gone.

    A connection more than the wants need takes a part of at least ``part_bytes``, or
    of what it brings in ``part_s`` where that is less; ahead of a reader, of the latter.
    No stored run longer than ``skip_bytes`` is received again. What nobody wants any
    more is dealt with as ``abandoned`` says.
    """

    per_entry: int = 6
    per_host: int = 8
    total: int = 16
    for_readers: float = 1 / 8
    near_bytes: int = 1 << 20
    near_s: float = 0.25
    patience_s: float = 0.5
    turn_s: float = 2.0
    hold_s: float = 20.0
    part_bytes: int = 4 << 20
    part_s: float = 3.0
    skip_bytes: int = 1 << 20
    abandoned: Abandoned = Abandoned.STOP

    @property
    def most(self) -> int:
        """The most connections that a single entry can have."""
        return min(self.per_entry, self.per_host, self.total)


class Limit(str, Enum):
    """Which limit left no connection for something."""

    ENTRY = "entry"
    HOST = "host"
    TOTAL = "total"
    ORIGIN = "origin"
    """What the origin itself bears, as it has shown."""


@dataclass(frozen=True)
class Denied:
    """What would be fetched if there were a connection for it, and which limit there is."""

    entry_id: int
    start: int
    stop: int
    limit: Limit


@dataclass(frozen=True)
class Open:
    """Start a stream for ``[start, stop)``, an *extra* one if fewer would do.

    One that ``asks`` is for whatever is asked. Stored runs of up to ``skip_bytes`` in
    between are to be received again.
    """

    entry_id: int
    start: int
    stop: int
    priority: Priority
    extra: bool = False
    asks: bool = False
    skip_bytes: int = 0


@dataclass(frozen=True)
class SetStop:
    """Let a stream's claim end at *stop*.

    At its position or before, it ends now; unless a reader is close behind, for which it
    waits if it may, which is not so where its place is needed.
    """

    entry_id: int
    stream_id: int
    stop: int
    may_wait: bool = True


Action = Open | SetStop
