"""What an entry is given when it is made: policy, store, clocks, callbacks. No locks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from .claims import SpeedLimits
from .demands import Fill
from .errors import OriginStatus
from .fields import Fields
from .models import Store
from .negative import Negatives
from .origins import OriginBook
from .retries import RetryPolicy
from .scheduler import Limits
from .states import DownloadState
from .storage import ContentFile
from .trouble import Trouble

__all__ = ["Durability", "EntryPolicy", "Surroundings", "Transition"]


class Durability(str, Enum):
    """What recorded bytes are to survive; see ``docs/durability.md`` for the price."""

    POWER = "power"
    """The loss of power: content is synced before a row claims it."""
    PROCESS = "process"
    """The death of the process: the operating system writes when it likes."""


@dataclass(frozen=True)
class EntryPolicy:
    """What every entry of one cache goes by; sizes in bytes, times in seconds."""

    fill: Fill = Fill.REST
    grace_s: float = 10.0
    playable_head_bytes: int = 1 << 20
    playable_tail_bytes: int = 256 << 10
    durability: Durability = Durability.POWER
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    speed: SpeedLimits = field(default_factory=SpeedLimits)
    limits: Limits = field(default_factory=Limits)
    max_bytes: int | None = None
    """What the cache may hold in all: nobody fetches ahead what could not be kept."""


@dataclass(frozen=True)
class Transition:
    """One move of one entry, after it was committed."""

    entry_id: int
    url: str
    event: str
    source: DownloadState
    target: DownloadState
    reason: str | None


@dataclass(frozen=True)
class Surroundings:
    """What an entry is given when it is made, and shares with the other entries of its cache.

    ``directory`` is where content files are. ``clock`` returns Unix time, for what is
    stored; ``ticks`` returns monotonic time, for waits. The callbacks may be called with
    the entry's lock held, and must neither block nor take it: ``on_change`` when the
    conductor has to decide anew at once, ``on_hint`` when a moment later is soon enough.
    """

    store: Store
    directory: Path
    policy: EntryPolicy = field(default_factory=EntryPolicy)
    clock: Callable[[], float] = time.time
    ticks: Callable[[], float] = time.monotonic
    trouble: Trouble = field(default_factory=Trouble)
    negatives: Negatives = field(default_factory=Negatives)
    origins: OriginBook = field(default_factory=OriginBook)
    make_file: Callable[[Path], ContentFile] = ContentFile
    on_change: Callable[[Any], None] = lambda _entry: None
    on_hint: Callable[[Any], None] = lambda _entry: None
    on_want: Callable[[], None] = lambda: None
    on_dirty: Callable[[Any, bool], None] = lambda _entry, _urgent: None
    on_transition: Callable[[Transition], None] = lambda _transition: None
    on_progress: Callable[[Any], None] = lambda _entry: None
    secrets_of: Callable[[str], Fields | None] = lambda _key: ()
    renew: Callable[[Any, OriginStatus], None] | None = None
