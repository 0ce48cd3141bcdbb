"""The tables, and the short transactions on them.

peewee models declare the schema; :class:`Store` owns the one connection and is
the only code that runs queries. Each of its methods is one short transaction, or
a part of the caller's where it stands inside :meth:`Store.transaction`.

One connection serves every thread, behind one lock, because SQLite writes one
at a time whatever we do and its own busy loop is unfair (1.8 s at worst with 8
writers, where a lock waits 165 ms), and because a connection per thread leaks
with dead threads. The lock is a leaf: nothing else is locked while it is held.

Times are Unix times in seconds, offsets and lengths are bytes, and ranges are
half-open. Models stay within what PostgreSQL also takes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import peewee
from peewee import (
    SQL,
    AutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    Check,
    DoubleField,
    ForeignKeyField,
    IntegerField,
    Model,
    NodeList,
    SchemaManager,
    SqliteDatabase,
    TextField,
)

from .errors import DatabaseDamaged, EntryNotFound, SchemaTooNew, StorageError
from .ranges import ByteRange
from .states import ACTIVE, DownloadState

__all__ = [
    "SCHEMA_VERSION",
    "CacheChunk",
    "CacheDownloadQueue",
    "CacheEntry",
    "EntryRecord",
    "QueueRecord",
    "StaleRow",
    "Store",
]


class StaleRow(StorageError):
    """The row is not in the state or generation we knew: somebody else moved it."""


def _one_of(column: str, names: Iterable[str]) -> Any:
    return Check(f"{column} IN ({', '.join(repr(name) for name in names)})")


_STATES: Final = tuple(state.value for state in DownloadState)
_ASKERS: Final = ("reader", "prefetch", "person")


class _LastingId(AutoField):
    """An id that is never given again, though SQLite would reuse the highest one.

    Whoever still holds the id of a removed entry must find nothing, not its successor.
    PostgreSQL's SERIAL never goes back.
    """

    def ddl(self, ctx: Any) -> NodeList:
        nodes = super().ddl(ctx)
        if ctx.state.field_types.get(self.field_type) != "INTEGER":
            return nodes
        return NodeList((nodes, SQL("AUTOINCREMENT")))


class CacheSchema(Model):
    """One row: the version of the schema that this database has."""

    version = IntegerField()

    class Meta:
        table_name = "cache_schema"


class CacheEntry(Model):
    """One URL: where its download stands and what is known of its representation."""

    id = _LastingId()
    key = TextField(unique=True)
    url = TextField()
    content_file = TextField(unique=True)
    state = TextField(
        default=DownloadState.NOT_STARTED.value, constraints=[_one_of("state", _STATES)]
    )
    state_reason = TextField(null=True)
    state_since = DoubleField()
    error_status = IntegerField(null=True)
    retry_at = DoubleField(null=True)
    complete_length = BigIntegerField(null=True, constraints=[Check("complete_length >= 0")])
    etag = TextField(null=True)
    last_modified = TextField(null=True)
    response_fields = TextField(default="[]")  # JSON, [[name, value], …]
    accepts_ranges = BooleanField(default=False)
    validated_at = DoubleField(null=True)
    priority = IntegerField(default=0)
    pinned = BooleanField(default=False)
    bytes_present = BigIntegerField(default=0, constraints=[Check("bytes_present >= 0")])
    created_at = DoubleField()
    last_accessed_at = DoubleField()
    access_count = IntegerField(default=0)
    generation = IntegerField(default=0)

    class Meta:
        table_name = "cache_entries"
        indexes = (
            # What is added up over all entries is read from this index alone.
            (("state", "pinned", "bytes_present"), False),
            (("pinned", "last_accessed_at"), False),
        )


class CacheChunk(Model):
    """A stored byte range; the bytes are durable in the file before the row is."""

    id = AutoField()
    entry = ForeignKeyField(CacheEntry, backref="chunks", on_delete="CASCADE", index=False)
    start = BigIntegerField(constraints=[Check("start >= 0")])
    stop = BigIntegerField()
    checksum = BlobField(null=True)
    written_at = DoubleField()

    class Meta:
        table_name = "cache_chunks"
        constraints = [Check("stop > start")]  # noqa: RUF012 - peewee's declaration
        indexes = ((("entry", "start"), True),)


class CacheDownloadQueue(Model):
    """Why an entry is to be fetched: who asked, for which bytes, how urgently."""

    id = AutoField()
    entry = ForeignKeyField(CacheEntry, backref="demands", on_delete="CASCADE", index=False)
    asked_by = TextField(constraints=[_one_of("asked_by", _ASKERS)])
    priority = IntegerField()
    start = BigIntegerField(default=0)
    stop = BigIntegerField(null=True)
    attempts = IntegerField(default=0)
    not_before = DoubleField(null=True)
    last_error = TextField(null=True)
    created_at = DoubleField()

    class Meta:
        table_name = "cache_download_queue"
        indexes = (
            (("entry", "asked_by"), True),
            (("priority", "created_at"), False),
        )


_TABLES: Final = (CacheEntry, CacheChunk, CacheDownloadQueue)


@dataclass(frozen=True)
class EntryRecord:
    """An immutable snapshot of one row of ``cache_entries``."""

    id: int
    key: str
    url: str
    content_file: str
    state: str
    state_reason: str | None
    state_since: float
    error_status: int | None
    retry_at: float | None
    complete_length: int | None
    etag: str | None
    last_modified: str | None
    response_fields: str
    accepts_ranges: bool
    validated_at: float | None
    priority: int
    pinned: bool
    bytes_present: int
    created_at: float
    last_accessed_at: float
    access_count: int
    generation: int


@dataclass(frozen=True)
class QueueRecord:
    """An immutable snapshot of one row of ``cache_download_queue``."""

    entry_id: int
    asked_by: str
    priority: int
    start: int
    stop: int | None
    attempts: int
    not_before: float | None
    last_error: str | None
    created_at: float


_ENTRY_COLUMNS: Final = tuple(
    getattr(CacheEntry, name) for name in EntryRecord.__dataclass_fields__
)
_QUEUE_COLUMNS: Final = (
    CacheDownloadQueue.entry,
    *(
        getattr(CacheDownloadQueue, name)
        for name in QueueRecord.__dataclass_fields__
        if name != "entry_id"
    ),
)


# SQLite's own words for SQLITE_NOTADB and SQLITE_CORRUPT, and for a page of schema
# or text that is another one; codes are on the exception only from Python 3.11 on.
_SIGNS_OF_DAMAGE: Final = (
    "file is not a database",
    "malformed",
    "unsupported file format",
    "no such table",
    "no such column",
    "Could not decode",
    "codec can't decode",
)

_NONE: Final[Mapping[int, bytes]] = MappingProxyType({})


def _create_tables(database: peewee.Database) -> None:
    for model in _TABLES:
        SchemaManager(model, database).create_all(safe=True)


_MIGRATIONS: Final = (_create_tables,)
"""Step *n* takes a database from version *n* to *n* + 1; never edited once released."""

SCHEMA_VERSION: Final = len(_MIGRATIONS)


def _schema_of(database: peewee.Database) -> set[tuple[Any, ...]]:
    # As bytes, because what has rotted need not be UTF-8.
    query = "SELECT type, CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master"
    return set(database.execute_sql(query).fetchall())  # type: ignore[no-untyped-call]


@cache
def _expected_schema() -> set[tuple[Any, ...]]:
    """Return the schema that the same migrations make of nothing."""
    with closing(SqliteDatabase(":memory:")) as database:
        store = Store(database)
        with store.transaction():
            return _schema_of(database)


class Store:
    """The database of one cache directory; thread-safe.

    Every method raises StorageError where the database refuses: locked by
    another program, full, read-only or damaged.
    """

    def __init__(self, database: peewee.Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._depth = 0
        with self._lock, _translated():
            database.connect(reuse_if_open=True)
            self._migrate()

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = 10.0) -> Store:
        """Open or create the SQLite database at *path* and bring its schema up to date.

        Commits are not synced: a power loss may take the last ones back, and a row
        taken back claims nothing.

        Raises:
            DatabaseDamaged: it is no database, or not a whole one.
            SchemaTooNew: a newer cachefsm wrote it.
            StorageError: it cannot be opened, or is no database.
        """
        database = SqliteDatabase(
            str(path),
            pragmas={
                "journal_mode": "wal",
                "synchronous": "normal",
                "foreign_keys": 1,
                "busy_timeout": int(busy_timeout_s * 1000),
            },
            # A deferred transaction that reads and then writes fails at once
            # with "database is locked"; an immediate one waits its turn.
            lock_type="IMMEDIATE",
            timeout=busy_timeout_s,
            thread_safe=False,
            check_same_thread=False,
        )
        try:
            return cls(database)
        except BaseException:
            database.close()
            raise

    def check(self) -> None:
        """Look through the whole database; raise DatabaseDamaged if it is not sound.

        All pages, the schema, and whether indexes say what their tables do: 0.25 s
        for 100,000 entries.
        """
        with self.transaction():
            found = self._database.execute_sql(  # type: ignore[no-untyped-call]
                "PRAGMA integrity_check(1)"
            ).fetchone()
            missing = _expected_schema() - _schema_of(self._database)
        if found is None or found[0] != "ok":
            raise DatabaseDamaged(f"the database is malformed: {found[0] if found else 'empty'}")
        if missing:
            raise DatabaseDamaged("the database's schema is malformed")

    def sync(self) -> None:
        """Make every commit so far survive a power loss."""
        with self._lock, _translated():
            # It syncs the log before it copies from it, also with synchronous=NORMAL.
            self._database.execute_sql("PRAGMA wal_checkpoint(FULL)")  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection; later calls raise StorageError."""
        with self._lock, _translated():
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the connection for several statements that succeed or fail as one.

        Nested calls join the outer transaction. Source of the isolation: SQLite's
        ``BEGIN IMMEDIATE``.
        """
        with self._lock, _translated():
            if self._depth:
                yield
                return
            if self._database.is_closed():
                raise StorageError("the database is closed")
            self._depth += 1
            try:
                with self._database.atomic():
                    yield
            finally:
                self._depth -= 1

    # -- entries ---------------------------------------------------------------

    def entry(self, entry_id: int) -> EntryRecord:
        """Return the row with that id, or raise EntryNotFound."""
        return self._one(CacheEntry.id == entry_id, f"there is no entry {entry_id}")

    def find(self, key: str) -> EntryRecord | None:
        """Return the row with that key, or None."""
        rows = self._entries(CacheEntry.key == key)
        return rows[0] if rows else None

    def entries(self) -> list[EntryRecord]:
        """Return every row, oldest first."""
        return self._entries(None)

    def page(self, after: int, limit: int) -> list[tuple[EntryRecord, list[ByteRange]]]:
        """Return up to *limit* rows with a higher id than *after*, each with its stored ranges."""
        rows = CacheEntry.select(*_ENTRY_COLUMNS).where(CacheEntry.id > after)
        rows = rows.order_by(CacheEntry.id).limit(limit).tuples()
        with self.transaction():
            page = [(EntryRecord(*row), list[ByteRange]()) for row in rows.execute(self._database)]
            if page:
                stored = {record.id: ranges for record, ranges in page}
                chunks = CacheChunk.select(CacheChunk.entry, CacheChunk.start, CacheChunk.stop)
                chunks = chunks.where(CacheChunk.entry.between(page[0][0].id, page[-1][0].id))
                chunks = chunks.order_by(CacheChunk.entry, CacheChunk.start).tuples()
                for entry_id, start, stop in chunks.execute(self._database):
                    stored[entry_id].append(ByteRange(start, stop))
        return page

    def active_entries(self) -> list[EntryRecord]:
        """Return the rows whose state says that somebody is fetching them."""
        return self._entries(CacheEntry.state.in_([state.value for state in ACTIVE]))

    def create(self, *, key: str, url: str, content_file: str, now_s: float) -> EntryRecord:
        """Return the row with that key, made now if it wasn't there."""
        with self.transaction():
            CacheEntry.insert(
                key=key,
                url=url,
                content_file=content_file,
                state_since=now_s,
                created_at=now_s,
                last_accessed_at=now_s,
            ).on_conflict_ignore().execute(self._database)
            return self._one(CacheEntry.key == key, "an entry vanished while it was made")

    def delete(self, entry_id: int) -> None:
        """Delete the row, and with it its chunks and its place in the queue."""
        with self.transaction():
            CacheEntry.delete().where(CacheEntry.id == entry_id).execute(self._database)

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
            self._guarded_update(record, changes, CacheEntry.state == record.state)
            if changes.get("generation", record.generation) != record.generation:
                CacheChunk.delete().where(CacheChunk.entry == record.id).execute(self._database)
            self._write_chunks(record.id, chunks, checksums, now_s)
        return replace(record, **changes)

    def total_bytes(self) -> int:
        """Return how many bytes all entries hold together."""
        query = CacheEntry.select(peewee.fn.COALESCE(peewee.fn.SUM(CacheEntry.bytes_present), 0))
        with self.transaction():
            return int(query.tuples().execute(self._database)[0][0])

    def count_by_state(self) -> list[tuple[str, bool, int, int]]:
        """Return state, pinned, number of entries and bytes present of each kind there is."""
        kind = (CacheEntry.state, CacheEntry.pinned)
        count, size = peewee.fn.COUNT(CacheEntry.id), peewee.fn.SUM(CacheEntry.bytes_present)
        query = CacheEntry.select(*kind, count, size).group_by(*kind).tuples()
        with self.transaction():
            return [
                (state, bool(pinned), int(number), int(total))
                for state, pinned, number, total in query.execute(self._database)
            ]

    def content_files(self) -> set[str]:
        """Return the relative paths of the content files that entries own."""
        query = CacheEntry.select(CacheEntry.content_file).tuples()
        with self.transaction():
            return {path for (path,) in query.execute(self._database)}

    def least_recently_used(self) -> list[EntryRecord]:
        """Return what may be evicted: not pinned, holding bytes; longest unused first."""
        query = (
            CacheEntry.select(*_ENTRY_COLUMNS)
            .where((CacheEntry.pinned == False) & (CacheEntry.bytes_present > 0))  # noqa: E712
            .order_by(CacheEntry.last_accessed_at, CacheEntry.id)
        )
        with self.transaction():
            return [EntryRecord(*row) for row in query.tuples().execute(self._database)]

    # -- chunks ----------------------------------------------------------------

    def chunks(self, entry_id: int) -> list[ByteRange]:
        """Return the stored ranges, in order."""
        query = (
            CacheChunk.select(CacheChunk.start, CacheChunk.stop)
            .where(CacheChunk.entry == entry_id)
            .order_by(CacheChunk.start)
            .tuples()
        )
        with self.transaction():
            return [ByteRange(start, stop) for start, stop in query.execute(self._database)]

    def furthest_bytes(self) -> list[tuple[int, str, int]]:
        """Return id and content file of every entry that holds bytes, and its last chunk's stop."""
        query = (
            CacheChunk.select(
                CacheEntry.id, CacheEntry.content_file, peewee.fn.MAX(CacheChunk.stop)
            )
            .join(CacheEntry)
            .group_by(CacheChunk.entry)
            .tuples()
        )
        with self.transaction():
            return list(query.execute(self._database))

    def checksums(self, entry_id: int) -> dict[int, bytes]:
        """Return the checksums of the stored ranges that have some, by the range's start."""
        query = (
            CacheChunk.select(CacheChunk.start, CacheChunk.checksum)
            .where((CacheChunk.entry == entry_id) & CacheChunk.checksum.is_null(False))
            .tuples()
        )
        with self.transaction():
            return {start: bytes(blob) for start, blob in query.execute(self._database)}

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
            CacheChunk.delete().where(
                (CacheChunk.entry == entry_id)
                & (CacheChunk.start >= start)
                & (CacheChunk.start < stop)
            ).execute(self._database)
            CacheChunk.insert(
                entry=entry_id,
                start=start,
                stop=stop,
                checksum=checksums.get(start),
                written_at=now_s,
            ).execute(self._database)

    # -- the queue -------------------------------------------------------------

    def enqueue(self, demand: QueueRecord) -> None:
        """Write a demand; the same asker's earlier one for that entry is replaced."""
        row = {name: getattr(demand, name) for name in QueueRecord.__dataclass_fields__}
        row["entry"] = row.pop("entry_id")
        with self.transaction():
            CacheDownloadQueue.insert(row).on_conflict(
                conflict_target=[CacheDownloadQueue.entry, CacheDownloadQueue.asked_by],
                preserve=[
                    CacheDownloadQueue.priority,
                    CacheDownloadQueue.start,
                    CacheDownloadQueue.stop,
                    CacheDownloadQueue.attempts,
                    CacheDownloadQueue.not_before,
                    CacheDownloadQueue.last_error,
                ],
            ).execute(self._database)

    def dequeue(self, entry_id: int, asked_by: str | None = None) -> None:
        """Delete the demands on that entry, or those of one asker."""
        condition = CacheDownloadQueue.entry == entry_id
        if asked_by is not None:
            condition &= CacheDownloadQueue.asked_by == asked_by
        with self.transaction():
            CacheDownloadQueue.delete().where(condition).execute(self._database)

    def note_attempt(
        self, entry_id: int, *, attempts: int, not_before: float | None, error: str | None
    ) -> None:
        """Write how the last attempt for that entry's demands went."""
        with self.transaction():
            CacheDownloadQueue.update(
                attempts=attempts, not_before=not_before, last_error=error
            ).where(CacheDownloadQueue.entry == entry_id).execute(self._database)

    def queue(self) -> list[QueueRecord]:
        """Return the demands, most urgent first, then oldest first."""
        query = (
            CacheDownloadQueue.select(*_QUEUE_COLUMNS)
            .order_by(
                CacheDownloadQueue.priority, CacheDownloadQueue.created_at, CacheDownloadQueue.id
            )
            .tuples()
        )
        with self.transaction():
            return [QueueRecord(*row) for row in query.execute(self._database)]

    # -- what makes no sense, for cachefsm.sanity ------------------------------

    def raw_rows(
        self,
        table: type[Model],
        where: str = "TRUE",
        columns: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Return rows of *table* as SQLite gives them, unconverted.

        *where* is SQL; so are the values of *columns*, by the names to give them.
        """
        columns = columns or {
            field.name: f'"{field.column_name}"' for field in table._meta.sorted_fields
        }
        query = table.select(*map(SQL, columns.values())).where(SQL(where)).tuples()
        with self.transaction():
            return [dict(zip(columns, row, strict=True)) for row in query.execute(self._database)]

    def delete_raw(self, table: type[Model], row_id: int) -> None:
        """Delete one row, and what hangs on it."""
        with self.transaction():
            table.delete().where(SQL("id") == row_id).execute(self._database)

    def start_afresh(self, entry_id: int, content_file: str, now_s: float) -> None:
        """Make an entry whose row makes no sense a new one of the same key and URL.

        The one place where a state is written without the lifecycle: what stood
        there was none that a move could start from.
        """
        defaults = {
            field.name: field.default
            for field in CacheEntry._meta.sorted_fields
            if field.default is not None or field.null
        }
        changes = {**defaults, "content_file": content_file, "state_reason": "its row was damaged"}
        changes |= {"state_since": now_s, "created_at": now_s, "last_accessed_at": now_s}
        # Whatever generation a straggler may know, it is not this one.
        changes["generation"] = int(now_s)
        with self.transaction():
            CacheChunk.delete().where(CacheChunk.entry == entry_id).execute(self._database)
            CacheEntry.update(**changes).where(CacheEntry.id == entry_id).execute(self._database)

    # -- helpers ---------------------------------------------------------------

    def _entries(self, condition: Any) -> list[EntryRecord]:
        query = CacheEntry.select(*_ENTRY_COLUMNS).order_by(CacheEntry.id)
        if condition is not None:
            query = query.where(condition)
        with self.transaction():
            return [EntryRecord(*row) for row in query.tuples().execute(self._database)]

    def _one(self, condition: Any, missing: str) -> EntryRecord:
        rows = self._entries(condition)
        if not rows:
            raise EntryNotFound(missing)
        return rows[0]

    def _guarded_update(
        self, record: EntryRecord, columns: Mapping[str, Any], *conditions: Any
    ) -> None:
        touched = (
            CacheEntry.update(**columns)
            .where(
                CacheEntry.id == record.id,
                CacheEntry.generation == record.generation,
                *conditions,
            )
            .execute(self._database)
        )
        if touched != 1:
            raise StaleRow(f"entry {record.id} was changed by another program")

    def _migrate(self) -> None:
        with self.transaction():
            SchemaManager(CacheSchema, self._database).create_all(safe=True)
            versions = [
                row[0]
                for row in CacheSchema.select(CacheSchema.version).tuples().execute(self._database)
            ]
            version = max(versions, default=0)
            if version > SCHEMA_VERSION:
                raise SchemaTooNew(
                    f"the database has schema {version}, this cachefsm knows {SCHEMA_VERSION}: "
                    "use a newer cachefsm or another cache directory"
                )
            for migrate in _MIGRATIONS[version:]:
                migrate(self._database)
            if version != SCHEMA_VERSION:
                CacheSchema.delete().execute(self._database)
                CacheSchema.insert(version=SCHEMA_VERSION).execute(self._database)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (*_REFUSALS, UnicodeError, OverflowError) as error:
        first: BaseException = error
        # After a full disk SQLite has rolled back by itself and refuses peewee's
        # ROLLBACK in turn: the first refusal is the one to tell.
        while isinstance(first.__context__, _REFUSALS):
            first = first.__context__
        text = str(first).splitlines()[0] if str(first) else type(first).__name__
        if any(sign in text for sign in _SIGNS_OF_DAMAGE):
            raise DatabaseDamaged(f"the database cannot be read: {text}") from error
        raise StorageError(f"the database refused: {text}") from error


_REFUSALS: Final = (peewee.PeeweeException, sqlite3.Error)
