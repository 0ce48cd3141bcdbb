"""Keeping a cache directory in order: its size, its files, and what is remembered.

Done by the flusher's thread after it has recorded bytes, and on a person's order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from .errors import CacheClosed, StorageError
from .models import Store
from .origins import OriginBook
from .registry import TOUCHED_S, Registry
from .storage import disk_usage, remove_content
from .trouble import Trouble
from .verify import find_orphans

__all__ = ["Upkeep"]

ORIGINS_KEPT_S: Final = 90 * 86_400.0
"""How long what was learnt of an origin is kept after it was last asked for something."""

BLANK_KEPT_S: Final = 7 * 86_400.0
"""How long an entry that holds no byte is kept after somebody asked for it."""

BLANK_MOST: Final = 10_000
"""If there are more such entries, the longest unused are forgotten sooner, so that a client
that crawls a site does not grow the database for ever. 10,000 take 5 MB."""

SPARED_S: Final = 2 * TOUCHED_S
"""Entries used within this time are not forgotten: somebody may just have been given the id."""

FORGET_EVERY_S: Final = 600.0
"""How often to look for entries to forget."""

FORGOTTEN_AT_ONCE: Final = 500

LACK_OF_ROOM_S: Final = 2.0
"""How often a cache that exceeds its limit looks for something to evict."""

EVICTED_AT_ONCE: Final = 64
"""After so many evictions newly received bytes are flushed before the next ones: evicting
thousands takes a while, in which no download could finish."""


class Upkeep:
    """Keeps one cache to its size limit and forgets what is no longer needed; thread-safe."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        directory: Path,
        *,
        max_bytes: int | None,
        origins: OriginBook,
        trouble: Trouble,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._registry = registry
        self._directory = directory
        self._max_bytes = max_bytes
        self._origins = origins
        self._trouble = trouble
        self._clock = clock
        self._forgot_s = float("-inf")

    def step(self) -> float | None:
        """Save what was learnt of origins, forget, evict; return in how many seconds to go on.

        None if there is nothing more to do until bytes are added.
        """
        try:
            self._save_origins()
            forgotten = self._forget()
            wait_s = self._make_room()
            return 0.0 if forgotten == FORGOTTEN_AT_ONCE else wait_s
        except CacheClosed:
            return None
        except StorageError as error:
            self._trouble.note(error)
            return LACK_OF_ROOM_S

    def collect(self, max_bytes: int | None = None) -> dict[str, int]:
        """Evict down to *max_bytes* or the cache's own limit, and remove the orphans.

        Returns what was freed, in bytes but for ``orphan_files``.
        """
        limit = self._max_bytes if max_bytes is None else max_bytes
        evicted = 0 if limit is None else self._registry.evict(limit)
        orphans, size = self.remove_orphans()
        return {
            "evicted_bytes": evicted,
            "orphan_files": orphans,
            "orphan_bytes": size,
            "bytes_stored": self._store.total_bytes(),
        }

    def remove_orphans(self) -> tuple[int, int]:
        """Delete content files that belong to no entry; return their number and size."""
        orphans = find_orphans(self._directory, self._store)
        size = sum(disk_usage(path) for path in orphans)
        for path in orphans:
            remove_content(path)
        return len(orphans), size

    def _save_origins(self) -> None:
        learnt = self._origins.changes()
        if learnt:
            self._store.save_origins(learnt, self._clock() - ORIGINS_KEPT_S)

    def _forget(self) -> int:
        """Forget entries that hold no byte and that nobody asks for; return how many."""
        now_s = self._clock()
        if self._forgot_s <= now_s < self._forgot_s + FORGET_EVERY_S:
            return 0
        before_s, spared_s = now_s - BLANK_KEPT_S, now_s - SPARED_S
        crowded_out_s = self._store.crowded_out_s(BLANK_MOST)
        if crowded_out_s is not None:
            before_s = max(before_s, min(crowded_out_s, spared_s))
        names = self._registry.forget(before_s, spared_s, FORGOTTEN_AT_ONCE)
        for name in names:
            remove_content(self._directory / name)  # what came may not have been recorded
        if len(names) < FORGOTTEN_AT_ONCE:
            self._forgot_s = now_s
        return len(names)

    def _make_room(self) -> float | None:
        """Evict what exceeds the limit; return in how many seconds to go on, if need be.

        Also drops idle entries from memory: until its accesses have been flushed, an entry
        that was only looked at counts as busy.
        """
        self._registry.drop_idle()
        if self._max_bytes is None:
            return None
        self._registry.stop_endless(self._max_bytes)
        excess = self._store.total_bytes() - self._max_bytes
        freed = self._registry.evict(self._max_bytes, most=EVICTED_AT_ONCE) if excess > 0 else 0
        if freed >= excess:
            return None
        # Nobody says that what is in the way has come to rest.
        return 0.0 if freed else LACK_OF_ROOM_S
