"""What makes a cache directory live: its entries, and the threads that fill them.

The conductor's thread decides what to fetch, one thread for each connection receives
bytes, the flusher's makes them durable and evicts, the scrubber's looks for damage. They
are started together, once everything that earlier processes left is in order. They are
ended in the order that loses nothing: first the conductor, which begins downloads, then
the downloads, then the flusher.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from .claims import Claim
from .conductor import Conductor
from .credentials import Credentials
from .doubts import Doubts
from .downloader import Downloader
from .entry import LiveEntry
from .errors import CacheError, StorageError
from .events import EventHub
from .flusher import Flusher
from .models import Store
from .origin import OriginClient
from .origins import OriginBook
from .registry import Registry
from .renewal import ProvenOrigin, Renewals
from .resolvers import Resolver
from .restart import recover
from .surroundings import EntryPolicy, Surroundings
from .throttle import Throttle
from .unstored import UnstoredEntry
from .upkeep import Upkeep
from .verify import Scrubber
from .workers import Workers

__all__ = ["Engine", "Parts"]

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 1.5
"""How long :meth:`Engine.close` waits for its threads; with the last flush it stays
within the two seconds that a service manager's users expect."""

HINT_S: Final = 0.05
"""How long the conductor may take to notice that a reader of stored bytes has come or gone:
a client that asks for range after range does both a thousand times a second."""


@dataclass(frozen=True)
class Parts:
    """What an engine is built from; all of it exists before the first live entry does."""

    store: Store
    content: Path
    origin: OriginClient
    throttle: Throttle
    events: EventHub
    credentials: Credentials
    clock: Callable[[], float]


class Engine:
    """The live entries of one cache directory and their threads."""

    def __init__(
        self,
        parts: Parts,
        policy: EntryPolicy,
        *,
        scrub_rate: int,
        resolver: Resolver | None,
    ) -> None:
        store, clock = parts.store, parts.clock
        self._parts = parts
        self.workers: Final = Workers()
        self._flusher = Flusher(after=self._keep_order)
        around = Surroundings(
            store=store,
            directory=parts.content,
            policy=policy,
            clock=clock,
            origins=OriginBook(store.origins(), clock),
            on_change=lambda _entry: self._conductor.poke(),
            on_hint=lambda _entry: self._conductor.poke(HINT_S),
            on_want=parts.throttle.wake,
            on_dirty=self._flusher.note,
            on_transition=parts.events.publish,
            on_progress=parts.events.progressed,
            secrets_of=parts.credentials.of,
            renew=Renewals(resolver, self.workers.start).renew if resolver else None,
        )
        self.registry: Final = Registry(
            store,
            lambda record: LiveEntry(record, around),
            partial(UnstoredEntry, surroundings=around),
            clock,
        )
        self.upkeep: Final = Upkeep(
            store,
            self.registry,
            parts.content,
            max_bytes=policy.max_bytes,
            origins=around.origins,
            trouble=around.trouble,
            clock=clock,
        )
        self._conductor = Conductor(self.registry.live, lambda: policy.limits, self._download)
        self._scrubber = Scrubber(self.registry, store, parts.content, scrub_rate)
        self._doubts = Doubts(store, self.registry, policy.durability, clock)

    def settle(self) -> None:
        """Bring everything that a stopped process left to a defined state, before serving.

        Raises:
            StorageError: the database refused.
        """
        recover(self._parts.store, self.registry)
        self._doubts.settle()

    def start(self) -> None:
        """Start the threads, or none of them.

        Raises:
            CacheError: the system gives no more threads; the engine is closed.
        """
        try:
            self._conductor.start()
            self._flusher.start()
            self._scrubber.start()
        except RuntimeError as error:
            self.close()
            raise CacheError(f"the cache cannot start: {error}") from error
        self._conductor.poke()
        self._flusher.look()

    def close(self) -> None:
        """Stop every download, fail every wait, record everything; within two seconds."""
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        self._conductor.stop(CLOSE_TIMEOUT_S)
        entries = self.registry.close()
        self._parts.origin.close()
        self.workers.join(deadline_s)
        self._scrubber.stop(max(0.1, deadline_s - time.monotonic()))
        self._flusher.stop(max(0.1, deadline_s - time.monotonic()))
        self._flusher.flush_all(entries)
        for entry in entries:
            try:
                entry.rest("shutdown")
            except CacheError as error:
                # It stays active in the database: the next start recovers it.
                _log.warning("entry %s: %s", entry.id, error)
        self._parts.events.close()
        for entry in entries:
            entry.release_file()
        try:
            self._doubts.rest()
        except StorageError as error:
            _log.warning("%s", error)  # then more is checked than need be

    def _keep_order(self) -> float | None:
        return self.upkeep.step()

    def _download(self, entry: LiveEntry, claim: Claim) -> None:
        download = Downloader(entry, claim, ProvenOrigin(entry, self._parts.origin))
        self.workers.start(f"download-{claim.id}", download.run)
