"""The short transactions on the tables.

:class:`Store` is the only code that runs queries. Each of its methods is one short
transaction, or a part of the caller's where it stands inside
:meth:`Store.transaction`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Any, Final

import peewee
from peewee import SQL

from .errors import EntryNotFound, StorageError
from .prepared import (
    ADD_CHUNK,
    ADD_DEMAND,
    ADD_ENTRY,
    CHECKSUMS_OF_ENTRY,
    CHUNKS_OF_ENTRY,
    DROP_CHUNKS,
    DROP_DEMANDS,
    DROP_DEMANDS_OF_ASKER,
    ENTRY_OF_ID,
    ENTRY_OF_KEY,
    OLDEST_DEMAND,
    change_of_entry,
)
from .ranges import ByteRange
from .raw import RawStore
from .states import ACTIVE, PERSON, DownloadState
from .tables import (
    BLANK_ENTRY,
    ENTRY_COLUMNS,
    ORIGIN_COLUMNS,
    QUEUE_COLUMNS,
    SCHEMA_VERSION,
    CacheChunk,
    CacheDownloadQueue,
    CacheEntry,
    CacheOrigin,
    CacheUnsynced,
    EntryRecord,
    OriginRecord,
    QueueRecord,
    unsaved_entry,
)

__all__ = [
    "SCHEMA_VERSION",
    "CacheChunk",
    "CacheDownloadQueue",
    "CacheEntry",
    "CacheOrigin",
    "CacheUnsynced",
    "EntryRecord",
    "OriginRecord",
    "QueueRecord",
    "StaleRow",
    "Store",
    "unsaved_entry",
]

_NONE: Final[Mapping[int, bytes]] = MappingProxyType({})

_PAGE_ROWS: Final = 256
"""How many rows are read at once for callers that probably need only the first ones."""


class StaleRow(StorageError):
    """The row is not in the state or generation that we knew: somebody else changed it."""


class Store(RawStore):
    """What is asked of the database of one cache directory; thread-safe.

    Every method raises StorageError where the database refuses: locked by
    another program, full, read-only or damaged.
    """

    # -- entries ---------------------------------------------------------------

    def entry(self, entry_id: int) -> EntryRecord:
        """Return the row with that id, or raise EntryNotFound."""
        for row in self.rows(ENTRY_OF_ID, id=entry_id):
            return EntryRecord(*row)
        raise EntryNotFound(f"there is no entry {entry_id}")

    def find(self, key: str) -> EntryRecord | None:
        """Return the row with that key, or None."""
        rows = self.rows(ENTRY_OF_KEY, key=key)
        return EntryRecord(*rows[0]) if rows else None

    def entries_of(self, url: str, key: str) -> list[EntryRecord]:
        """Return the rows with that URL, and the one with *key* (without credentials) first."""
        found = self._entries((CacheEntry.url == url) | (CacheEntry.key == key))
        return sorted(found, key=lambda row: row.key != key)

    def entries(self) -> list[EntryRecord]:
        """Return every row, oldest first."""
        return self._entries(None)

    def page(self, after: int, limit: int) -> list[tuple[EntryRecord, list[ByteRange]]]:
        """Return up to *limit* rows with a higher id than *after*, each with its stored ranges."""
        rows = CacheEntry.select(*ENTRY_COLUMNS).where(CacheEntry.id > after)
        rows = rows.order_by(CacheEntry.id).limit(limit)
        with self.reading():  # both as of one moment
            records = [EntryRecord(*row) for row in self._rows(rows)]
            if not records:
                return []
            return self._with_ranges(
                records, CacheChunk.entry.between(records[0].id, records[-1].id)
            )

    def latest(self, most: int) -> list[tuple[EntryRecord, list[ByteRange]]]:
        """Return the *most* rows that were used last, the latest first, with their ranges."""
        records: list[EntryRecord] = []
        with self.reading():
            for pinned in (False, True):  # each is read off the end of the same index
                rows = CacheEntry.select(*ENTRY_COLUMNS).where(CacheEntry.pinned == pinned)
                rows = rows.order_by(CacheEntry.last_accessed_at.desc(), CacheEntry.id.desc())
                records += [EntryRecord(*row) for row in self._rows(rows.limit(most))]
            records.sort(key=lambda record: (-record.last_accessed_at, -record.id))
            del records[most:]
            return self._with_ranges(
                records, CacheChunk.entry.in_([record.id for record in records])
            )

    def _with_ranges(
        self, records: list[EntryRecord], theirs: Any
    ) -> list[tuple[EntryRecord, list[ByteRange]]]:
        stored: dict[int, list[ByteRange]] = {record.id: [] for record in records}
        chunks = CacheChunk.select(CacheChunk.entry, CacheChunk.start, CacheChunk.stop)
        chunks = chunks.where(theirs).order_by(CacheChunk.entry, CacheChunk.start)
        for entry_id, start, stop in self._rows(chunks):
            stored[entry_id].append(ByteRange(start, stop))
        return [(record, stored[record.id]) for record in records]

    def active_entries(self) -> list[EntryRecord]:
        """Return the rows whose state says that somebody is fetching them."""
        return self._entries(CacheEntry.state.in_([state.value for state in ACTIVE]))

    def create(self, *, key: str, url: str, content_file: str, now_s: float) -> EntryRecord:
        """Return the row with that key, made now if it wasn't there; it counts as used now."""
        with self.transaction():
            self.write(
                ADD_ENTRY,
                key=key,
                url=url,
                content_file=content_file,
                state_since=now_s,
                created_at=now_s,
                last_accessed_at=now_s,
            )
            record = self.find(key)
            if record is None:
                raise EntryNotFound("an entry vanished while it was made")
            return record

    def delete(self, entry_id: int) -> None:
        """Delete the row, and with it its chunks and its place in the queue."""
        self._do(CacheEntry.delete().where(CacheEntry.id == entry_id))

    def update(self, record: EntryRecord, **columns: Any) -> EntryRecord:
        """Write *columns* that are no part of the lifecycle; return the new snapshot.

        Raises:
            StaleRow: the row is gone or in another generation.
        """
        if columns.keys() & {"state", "state_reason", "state_since", "generation"}:
            raise ValueError("a state moves only through the lifecycle")
        with self.transaction():
            self._guarded_update(record, columns)
        return replace(record, **columns)

    def write_move(
        self,
        record: EntryRecord,
        *,
        state: str,
        reason: str | None,
        now_s: float,
        columns: Mapping[str, Any],
        chunks: Iterable[ByteRange],
        checksums: Mapping[int, bytes] = _NONE,
    ) -> EntryRecord:
        """Write one transition where the row still is as *record* says.

        A change of generation drops the chunks but for those given, as the bytes
        are gone with it. *checksums* are by a chunk's start.

        Raises:
            StaleRow: the row is gone, or in another state or generation.
        """
        changes = {**columns, "state": state, "state_reason": reason, "state_since": now_s}
        with self.transaction():
            self._guarded_update(record, changes, in_state=True)
            if changes.get("generation", record.generation) != record.generation:
                self._do(CacheChunk.delete().where(CacheChunk.entry == record.id))
            self._write_chunks(record.id, chunks, checksums, now_s)
        return replace(record, **changes)

    def total_bytes(self) -> int:
        """Return how many bytes all entries hold together."""
        query = CacheEntry.select(peewee.fn.COALESCE(peewee.fn.SUM(CacheEntry.bytes_present), 0))
        return int(self._rows(query)[0][0])

    def count_by_state(self) -> list[tuple[str, bool, int, int]]:
        """Return state, pinned, number of entries and bytes, for each combination that occurs."""
        kind = (CacheEntry.state, CacheEntry.pinned)
        count, size = peewee.fn.COUNT(CacheEntry.id), peewee.fn.SUM(CacheEntry.bytes_present)
        query = CacheEntry.select(*kind, count, size).group_by(*kind)
        return [
            (state, bool(pinned), int(number), int(total))
            for state, pinned, number, total in self._rows(query)
        ]

    def crowded_out_s(self, most: int) -> float | None:
        """Return when the newest entry without bytes was last used, *most* newer ones apart.

        None if there are no more than *most* of them.
        """
        query = (
            CacheEntry.select(CacheEntry.last_accessed_at)
            .where(SQL(BLANK_ENTRY))
            .order_by(CacheEntry.last_accessed_at.desc())
            .offset(most)
            .limit(1)
        )
        rows = self._rows(query)
        return rows[0][0] if rows else None

    def forget_blank(
        self, before_s: float, moved_before_s: float, most: int, spare: Container[int]
    ) -> list[str]:
        """Delete up to *most* entries without a byte that nobody has used since *before_s*.

        Not those in *spare* or evicted since *moved_before_s*, nor what is pinned, under
        way, wanted by somebody, or held by a person. Returns their content files.
        """
        queue = CacheDownloadQueue
        wanted = queue.select(SQL("1")).where(queue.entry == CacheEntry.id)
        held = (CacheEntry.state == DownloadState.PAUSED.value) & (
            peewee.fn.COALESCE(CacheEntry.state_reason, "") == PERSON
        )
        query = (
            CacheEntry.select(CacheEntry.id, CacheEntry.content_file)
            .where(
                SQL(BLANK_ENTRY),
                CacheEntry.last_accessed_at <= before_s,
                CacheEntry.state_since <= moved_before_s,
                CacheEntry.pinned == False,  # noqa: E712
                CacheEntry.state.not_in([state.value for state in ACTIVE]),
                ~held,
                ~peewee.fn.EXISTS(wanted),
            )
            .order_by(CacheEntry.last_accessed_at)
            .limit(most)
        )
        with self.transaction():
            rows = [row for row in self._rows(query) if row[0] not in spare]
            ids = [entry_id for entry_id, _ in rows]
            self._do(CacheEntry.delete().where(CacheEntry.id.in_(ids)))
        return [name for _, name in rows]

    def content_files(self) -> set[str]:
        """Return the relative paths of the content files that entries own."""
        query = CacheEntry.select(CacheEntry.content_file)
        return {path for (path,) in self._rows(query)}

    def least_recently_used(self) -> Iterator[tuple[int, int]]:
        """Yield id and stored bytes of the entries that may be evicted, longest unused first.

        Pinned entries are left out. The rows are read piece by piece, so that a caller that
        needs a few of a hundred thousand does not wait for the rest.
        """
        held = (CacheEntry.pinned == False) & (CacheEntry.bytes_present > 0)  # noqa: E712
        used_at, last_id = float("-inf"), 0
        while True:
            later = (CacheEntry.last_accessed_at > used_at) | (
                (CacheEntry.last_accessed_at == used_at) & (CacheEntry.id > last_id)
            )
            query = (
                CacheEntry.select(
                    CacheEntry.id, CacheEntry.bytes_present, CacheEntry.last_accessed_at
                )
                .where(held & (CacheEntry.last_accessed_at >= used_at) & later)
                .order_by(CacheEntry.last_accessed_at, CacheEntry.id)
                .limit(_PAGE_ROWS)
            )
            page = self._rows(query)
            yield from ((entry_id, size) for entry_id, size, _ in page)
            if len(page) < _PAGE_ROWS:
                return
            last_id, _, used_at = page[-1]

    def complete_like(
        self, patterns: Mapping[str, Iterable[str]], most_bytes: int, limit: int
    ) -> list[EntryRecord]:
        """Return complete entries of at most so many bytes, the last used first.

        Of each, one of the columns is like one of its *patterns*, in any case.
        """
        likes = [
            getattr(CacheEntry, column) ** text for column in patterns for text in patterns[column]
        ]
        complete = CacheEntry.state == DownloadState.COMPLETE.value
        query = (
            CacheEntry.select(*ENTRY_COLUMNS)
            .where(complete & (CacheEntry.bytes_present <= most_bytes) & reduce(or_, likes))
            .order_by(CacheEntry.last_accessed_at.desc(), CacheEntry.id.desc())
            .limit(limit)
        )
        with self.reading():
            return [EntryRecord(*row) for row in query.tuples().execute(self._database)]

    # -- chunks ----------------------------------------------------------------

    def chunks(self, entry_id: int) -> list[ByteRange]:
        """Return the stored ranges, in order."""
        found = self.rows(CHUNKS_OF_ENTRY, entry=entry_id)
        return [ByteRange(start, stop) for start, stop in found]

    def furthest_bytes(self) -> list[tuple[int, str, int]]:
        """Return id and content file of every entry that holds bytes, and its last chunk's stop."""
        query = (
            CacheChunk.select(
                CacheEntry.id, CacheEntry.content_file, peewee.fn.MAX(CacheChunk.stop)
            )
            .join(CacheEntry)
            .group_by(CacheChunk.entry)
        )
        return self._rows(query)

    def checksums(self, entry_id: int) -> dict[int, bytes]:
        """Return the checksums of the stored ranges that have some, by the range's start."""
        found = self.rows(CHECKSUMS_OF_ENTRY, entry=entry_id)
        return {start: bytes(blob) for start, blob in found}

    def save_chunks(
        self,
        record: EntryRecord,
        chunks: Iterable[ByteRange],
        *,
        bytes_present: int,
        now_s: float,
        checksums: Mapping[int, bytes] = _NONE,
    ) -> EntryRecord:
        """Record ranges that have become durable, each already coalesced.

        *checksums* are by a chunk's start, as :mod:`cachefsm.integrity` packs them.

        Raises:
            StaleRow: the entry is gone or in another generation; nothing is written.
        """
        with self.transaction():
            self._guarded_update(record, {"bytes_present": bytes_present})
            self._write_chunks(record.id, chunks, checksums, now_s)
        return replace(record, bytes_present=bytes_present)

    def _write_chunks(
        self,
        entry_id: int,
        chunks: Iterable[ByteRange],
        checksums: Mapping[int, bytes],
        now_s: float,
    ) -> None:
        for start, stop in chunks:
            # One row per coalesced range: it takes the place of what it has grown over.
            self.write(DROP_CHUNKS, entry=entry_id, first=start, last=stop - 1)
            self.write(
                ADD_CHUNK,
                entry=entry_id,
                start=start,
                stop=stop,
                checksum=checksums.get(start),
                written_at=now_s,
            )

    # -- what was never synced -------------------------------------------------

    def unsynced(self) -> tuple[str, float] | None:
        """Return in which boot, and since when, rows were written without a sync; None if none."""
        query = CacheUnsynced.select(CacheUnsynced.boot_id, CacheUnsynced.since)
        rows = self._rows(query)
        return rows[0] if rows else None

    def note_unsynced(self, boot_id: str | None, since_s: float) -> None:
        """Write what :meth:`unsynced` returns; None for *boot_id* if everything is synced."""
        with self.transaction():
            self._do(CacheUnsynced.delete())
            if boot_id is not None:
                self._do(CacheUnsynced.insert(boot_id=boot_id, since=since_s))

    def written_since(self, since_s: float) -> list[int]:
        """Return the ids of the entries of which something was recorded at *since_s* or later."""
        query = CacheChunk.select(CacheChunk.entry).where(CacheChunk.written_at >= since_s)
        return [entry_id for (entry_id,) in self._rows(query.distinct())]

    # -- the queue -------------------------------------------------------------

    def enqueue(self, *demands: QueueRecord) -> None:
        """Write one asker's demands on one entry, in place of all its earlier ones there.

        They count as old as the oldest one replaced, so that asking again costs no turn.
        """
        its_own = {"entry": demands[0].entry_id, "asked_by": demands[0].asked_by}
        with self.transaction():
            ((since,),) = self.rows(OLDEST_DEMAND, **its_own)
            self.write(DROP_DEMANDS_OF_ASKER, **its_own)
            for demand in demands:
                row = {name: getattr(demand, name) for name in QueueRecord.__dataclass_fields__}
                row["entry"] = row.pop("entry_id")
                row["created_at"] = min(since or demand.created_at, demand.created_at)
                self.write(ADD_DEMAND, **row)

    def dequeue(self, entry_id: int, asked_by: str | None = None) -> None:
        """Delete the demands on that entry, or those of one asker."""
        if asked_by is None:
            self.write(DROP_DEMANDS, entry=entry_id)
        else:
            self.write(DROP_DEMANDS_OF_ASKER, entry=entry_id, asked_by=asked_by)

    def note_attempt(
        self, entry_id: int, *, attempts: int, not_before: float | None, error: str | None
    ) -> None:
        """Write how the last attempt for that entry's demands went."""
        told = CacheDownloadQueue.update(attempts=attempts, not_before=not_before, last_error=error)
        self._do(told.where(CacheDownloadQueue.entry == entry_id))

    def queue(self) -> list[QueueRecord]:
        """Return the demands, most urgent first, then oldest first."""
        query = CacheDownloadQueue.select(*QUEUE_COLUMNS).order_by(
            CacheDownloadQueue.priority, CacheDownloadQueue.created_at, CacheDownloadQueue.id
        )
        return [QueueRecord(*row) for row in self._rows(query)]

    # -- origins ---------------------------------------------------------------

    def origins(self, limit: int = 1000) -> list[OriginRecord]:
        """Return what was learnt of origins, of the last ones that anything was asked of."""
        query = (
            CacheOrigin.select(*ORIGIN_COLUMNS).order_by(CacheOrigin.updated_at.desc()).limit(limit)
        )
        return [OriginRecord(*row) for row in self._rows(query)]

    def save_origins(self, records: Iterable[OriginRecord], forget_before_s: float) -> None:
        """Write what was learnt of origins; forget those that nothing was asked of since then."""
        learnt = [column for column in ORIGIN_COLUMNS if column.name != "origin"]
        with self.transaction():
            for record in records:
                row = CacheOrigin.insert(asdict(record))
                self._do(row.on_conflict(conflict_target=[CacheOrigin.origin], preserve=learnt))
            self._do(CacheOrigin.delete().where(CacheOrigin.updated_at < forget_before_s))

    # -- helpers ---------------------------------------------------------------

    def _entries(self, condition: Any) -> list[EntryRecord]:
        query = CacheEntry.select(*ENTRY_COLUMNS).order_by(CacheEntry.id)
        if condition is not None:
            query = query.where(condition)
        return [EntryRecord(*row) for row in self._rows(query)]

    def _guarded_update(
        self, record: EntryRecord, columns: Mapping[str, Any], *, in_state: bool = False
    ) -> None:
        its: dict[str, Any] = {"its_id": record.id, "its_generation": record.generation}
        if in_state:
            its["its_state"] = record.state
        change = change_of_entry(tuple(sorted(columns)), in_state=in_state)
        if self.write(change, **columns, **its) != 1:
            raise StaleRow(f"entry {record.id} was changed by another program")
