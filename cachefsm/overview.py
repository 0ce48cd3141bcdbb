"""Describes all entries, without loading into memory those that are only rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from . import facts
from .content import Content
from .models import EntryRecord, Store
from .ranges import ByteRange, RangeSet
from .records import representation_of
from .registry import Registry
from .states import DownloadState
from .storage import ContentFile
from .surroundings import EntryPolicy

__all__ = ["Overview"]

PAGE_ENTRIES: Final = 2000
"""How many entries are read at once: the store's lock is held for 50 ms for so many."""


class Overview:
    """What may be shown of the entries of one cache, as JSON values; thread-safe."""

    def __init__(
        self, store: Store, registry: Registry, directory: Path, policy: EntryPolicy
    ) -> None:
        self._store = store
        self._registry = registry
        self._directory = directory
        self._policy = policy

    def entries(self, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Describe at most *limit* entries with higher ids than *after*, oldest first."""
        found: list[dict[str, Any]] = []
        while limit is None or len(found) < limit:
            wanted = PAGE_ENTRIES if limit is None else min(PAGE_ENTRIES, limit - len(found))
            page = self._store.page(after, wanted)
            found += self._described(page)
            if len(page) < wanted:
                break
            after = found[-1]["id"]
        return found

    def latest(self, most: int) -> list[dict[str, Any]]:
        """Describe the *most* entries that were used last, and all that are being fetched."""
        found = self._described(self._store.latest(most))
        shown = {facts["id"] for facts in found}
        others = [entry.describe() for entry in self._registry.live() if entry.id not in shown]
        return found + [facts for facts in others if facts["streams"]]

    def stored(self) -> dict[str, Any]:
        """Return how much there is; sizes are in bytes."""
        kinds = self._store.count_by_state()
        states: Counter[str] = Counter()
        for state, _, count, _ in kinds:
            states[state] += count
        return {
            "entries": sum(states.values()),
            "states": {state.value: states[state] for state in DownloadState if states[state]},
            "bytes_stored": sum(size for _, _, _, size in kinds),
            "bytes_pinned": sum(size for _, pinned, _, size in kinds if pinned),
        }

    def in_use(self) -> dict[str, int]:
        """Return how many readers and streams there are now."""
        live = [entry.describe() for entry in self._registry.live()]
        return {
            "streams": sum(len(entry["streams"]) for entry in live),
            "readers": sum(entry["readers"] for entry in live),
        }

    def _described(self, rows: list[tuple[EntryRecord, list[ByteRange]]]) -> list[dict[str, Any]]:
        # After the rows were read: what has come to life since knows better.
        live = {entry.id: entry for entry in self._registry.live()}
        return [
            live[record.id].describe() if record.id in live else self._at_rest(record, ranges)
            for record, ranges in rows
        ]

    def _at_rest(self, record: EntryRecord, ranges: list[ByteRange]) -> dict[str, Any]:
        file = ContentFile(self._directory / record.content_file)
        stored = RangeSet(ranges)
        content = Content(file, stored, stored, representation=representation_of(record))
        return facts.describe(record, content, self._policy)
