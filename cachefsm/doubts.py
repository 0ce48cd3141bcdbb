"""Checks, after a power loss, rows that were written without a sync of their content.

With :attr:`Durability.PROCESS` rows claim bytes that only the operating system's memory
may have, which is good for as long as the machine is up. So the database remembers in
which boot, and since when, such rows were written. In another boot, whatever was recorded
from then on is compared with its checksums before it is served. On systems that do not
tell one boot from the next, nothing is remembered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .content import Content
from .entry import LiveEntry
from .integrity import block_at
from .models import Store
from .ranges import END, RangeSet
from .registry import Registry
from .surroundings import Durability
from .verify import verify

__all__ = ["Doubts"]

_log = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

WRITTEN_BACK_S: Final = 120.0
"""After so long the system has written what it was given: Linux begins after 30 s
(``vm.dirty_expire_centisecs``), and a slow disk takes its time."""

UNPROVEN: Final = "the machine went down before they were synced"


class Doubts:
    """Remembers which rows of one cache were written without a sync, and checks them."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        durability: Durability,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._registry = registry
        self._durability = durability
        self._clock = clock
        self._opened_s = clock()

    def settle(self) -> None:
        """Drop what an earlier boot left unproven; called before anybody is served.

        Raises:
            StorageError: the database refused.
        """
        boot_id, noted = _boot_id(), self._store.unsynced()
        if noted is not None and noted[0] != boot_id:
            self._prove(noted[1])
            self._store.note_unsynced(None, 0.0)
            noted = None
        if noted is None and boot_id is not None and self._durability is Durability.PROCESS:
            self._store.note_unsynced(boot_id, self._opened_s)

    def rest(self) -> None:
        """Stop doubting rows whose bytes the system has written by now; called on closing.

        Raises:
            StorageError: the database refused.
        """
        noted = self._store.unsynced()
        if noted is None:
            return
        boot_id, since_s = noted
        written_s = self._clock() - WRITTEN_BACK_S
        if self._durability is Durability.POWER and self._opened_s < written_s:
            self._store.note_unsynced(None, 0.0)
        elif since_s < written_s:
            self._store.note_unsynced(boot_id, written_s)

    def _prove(self, since_s: float) -> None:
        dropped = 0
        entry_ids = self._store.written_since(since_s)
        for entry_id in entry_ids:
            with self._registry.lease(entry_id) as entry:
                dropped += _drop_unproven(entry)
        _log.log(
            logging.WARNING if dropped else logging.INFO,
            "the machine has been down since content was last written without a sync: "
            "%d entries were checked, and %d bytes of them dropped",
            len(entry_ids),
            dropped,
        )


def _drop_unproven(entry: LiveEntry) -> int:
    """Drop all of *entry* that has no checksum or another one; return how many bytes."""
    before = entry.content.durable.total
    verify(entry)
    content = entry.content
    entry.drop(content, _unproven(content), UNPROVEN)
    return before - entry.content.durable.total


def _unproven(content: Content) -> RangeSet:
    """Return what has no checksum."""
    left = content.durable.copy()
    for index in content.digests.within(0, END, content.length):
        left.remove(*block_at(index, content.length))
    return left


def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None
