"""The scheduler's input and output: values without behaviour. Pure.

Words: a *want* is a byte range that somebody would like, with a priority; a
*stream* is a connection that fills its claim ``[position, stop)``. Claims of one
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

    ``impatient``: a blocked reader that has waited longer than ``Limits.patience_s``.
    ``active``: a reader that has read or waited just now, and so is neither paused nor gone.
    ``apart``: worth a stream of its own, even if another stream will get there later.
    Of two equally urgent wants, the older one (by ``since_s``, monotonic) goes first.
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

    It asked the origin for ``[begun, reach)`` and cannot go beyond that. It is ``extra`` if
    it was opened only for speed. The origin answered it ``served_s`` seconds ago.
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
    """What has been learnt of an origin; 0 where nothing has been.

    How fast one connection is, how long an answer takes, and how many connections at
    once it allowed at ``most``.
    """

    rate_bytes_s: float = 0.0
    latency_s: float = 0.0
    most: int = END


class Ask(Enum):
    """Whether the origin is to be asked about the file as a whole: for its fields and length
    at first, later whether what is stored is still current."""

    NO = auto()
    WANTED = auto()
    UNDER_WAY = auto()


@dataclass(frozen=True)
class EntryView:
    """What the decision needs to know of one entry.

    ``length`` is END while unknown. ``seekable`` says that bytes of several answers may be
    joined; if not, there is one stream, from the front. ``settled`` is False until the
    origin's first answer has told which of the two it is. ``width`` is the number of
    connections that it is to have, even if fewer could serve all wants; ``skip_bytes`` is
    the longest stored run that a stream may receive again. A question has been there
    since ``ask_since_s``, monotonic; ``ask_impatient``: somebody has waited for its answer
    longer than ``Limits.patience_s``. While it ``rests``, as an attempt has failed, no
    connection is begun for it.
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
    ask_since_s: float = 0.0
    ask_impatient: bool = False
    width: int = 1
    skip_bytes: int = 0
    rests: bool = False
    origin: OriginView = OriginView()


@dataclass(frozen=True)
class Leaving:
    """A connection that was given up and still stands: its thread has not let go of it yet."""

    entry_id: int
    host: str


@dataclass(frozen=True)
class Limits:
    """The most connections at once, and what counts as near.

    A stream reaches a byte soon if it has at most ``near_bytes`` to go, or will be there
    within ``near_s`` at its measured rate. For a reader that has been blocked for
    ``patience_s`` only the rate counts, as the stream has probably stalled. If there are
    more readers than connections, each has one for at least ``turn_s``. A stream that has
    brought all that is wanted waits for a reader close behind that has moved within the
    last ``hold_s``, unless its connection is needed elsewhere. The fraction ``for_readers``
    of the connections per host and in all is kept for readers, so that a new reader need
    not wait until somebody else's connection is gone.

    A connection for speed only is given a part of at least ``part_bytes``, or as much as it
    brings in ``part_s`` if that is less; ahead of a reader always the latter. Stored runs
    longer than ``skip_bytes`` are not received again. ``abandoned`` says what becomes of
    streams whose bytes nobody wants any more.
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
    """The number of connections that the origin has been found to allow."""


@dataclass(frozen=True)
class Denied:
    """A range that would be fetched if a limit left a connection for it, and that limit."""

    entry_id: int
    start: int
    stop: int
    limit: Limit


@dataclass(frozen=True)
class Open:
    """Start a stream for ``[start, stop)``; ``extra``: for speed only.

    With ``asks`` it is for the question about the file as a whole. It receives stored runs
    of up to ``skip_bytes`` in between again.
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

    With *stop* at its position or before, the stream ends now. If it ``may_wait``, because
    its place is not needed, it waits instead while a reader is close behind.
    """

    entry_id: int
    stream_id: int
    stop: int
    may_wait: bool = True


Action = Open | SetStop
