"""The tables of a cache's database, and one row of each as an immutable record.

peewee models declare the schema; a list of migrations makes it, of nothing or of an
older version. Times are Unix times in seconds, offsets and lengths are bytes, and
ranges are half-open. The tables stay within what PostgreSQL also takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
    TextField,
)

from .states import DownloadState

__all__ = [
    "BLANK_ENTRY",
    "ENTRY_COLUMNS",
    "MIGRATIONS",
    "ORIGIN_COLUMNS",
    "QUEUE_COLUMNS",
    "SCHEMA_VERSION",
    "CacheChunk",
    "CacheDownloadQueue",
    "CacheEntry",
    "CacheOrigin",
    "CacheSchema",
    "CacheUnsynced",
    "EntryRecord",
    "OriginRecord",
    "QueueRecord",
    "unsaved_entry",
]


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
    url = TextField(index=True)
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
    requested_at = DoubleField(null=True)  # of the answer that was last taken note of
    validated_at = DoubleField(null=True)  # when it came
    vary = TextField(default="[]")  # JSON, [[name, value or null], …]: what it was selected by
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
    deadline = DoubleField(null=True)

    class Meta:
        table_name = "cache_download_queue"
        indexes = (
            (("entry", "asked_by", "start"), True),
            (("priority", "created_at"), False),
        )


class CacheUnsynced(Model):
    """At most one row: since when, and in which boot, rows claim what was never synced."""

    boot_id = TextField()
    since = DoubleField()

    class Meta:
        table_name = "cache_unsynced"


class CacheOrigin(Model):
    """What was learnt of an origin: how fast it is, and how many connections it bears."""

    id = AutoField()
    origin = TextField(unique=True)
    accepts_ranges = BooleanField(null=True)
    connections = IntegerField(constraints=[Check("connections > 0")])
    most = IntegerField(null=True, constraints=[Check("most > 0")])
    most_until = DoubleField()
    rest_s = DoubleField()
    rate_bytes_s = DoubleField()
    latency_s = DoubleField()
    updated_at = DoubleField(index=True)

    class Meta:
        table_name = "cache_origins"


_TABLES: Final = (CacheEntry, CacheChunk, CacheDownloadQueue, CacheUnsynced)


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
    requested_at: float | None
    validated_at: float | None
    vary: str
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
    deadline: float | None = None


@dataclass(frozen=True)
class OriginRecord:
    """An immutable snapshot of one row of ``cache_origins``; times are Unix times.

    ``connections`` is the number per entry that was last found worth while, and
    ``most`` the number to all of them that it bore when it refused one more; None if
    it never did. After ``most_until`` one more is tried, and if that is refused again,
    after twice ``rest_s``.
    """

    origin: str
    accepts_ranges: bool | None = None
    connections: int = 1
    most: int | None = None
    most_until: float = 0.0
    rest_s: float = 30.0
    rate_bytes_s: float = 0.0
    latency_s: float = 0.0
    updated_at: float = 0.0


ORIGIN_COLUMNS: Final = tuple(
    getattr(CacheOrigin, name) for name in OriginRecord.__dataclass_fields__
)
ENTRY_COLUMNS: Final = tuple(getattr(CacheEntry, name) for name in EntryRecord.__dataclass_fields__)
QUEUE_COLUMNS: Final = (
    CacheDownloadQueue.entry,
    *(
        getattr(CacheDownloadQueue, name)
        for name in QueueRecord.__dataclass_fields__
        if name != "entry_id"
    ),
)


def unsaved_entry(
    entry_id: int, *, key: str, url: str, now_s: float, **columns: Any
) -> EntryRecord:
    """Return what the row of a new entry would be."""
    row = CacheEntry(
        id=entry_id,
        key=key,
        url=url,
        state_since=now_s,
        created_at=now_s,
        last_accessed_at=now_s,
        **columns,
    )
    return EntryRecord(**{name: getattr(row, name) for name in EntryRecord.__dataclass_fields__})


BLANK_ENTRY: Final = "bytes_present = 0"
"""Entries without a byte; a query must say just this to go by their index."""


def _create_tables(database: peewee.Database) -> None:
    for model in _TABLES:
        SchemaManager(model, database).create_all(safe=True)


def _create_origins(database: peewee.Database) -> None:
    SchemaManager(CacheOrigin, database).create_all(safe=True)


def _index_blank_entries(database: peewee.Database) -> None:
    # Few rows are in it: of a cache in use, most hold bytes.
    database.execute_sql(  # type: ignore[no-untyped-call]
        "CREATE INDEX IF NOT EXISTS cacheentry_blank ON cache_entries (last_accessed_at) "
        f"WHERE {BLANK_ENTRY}"
    )


MIGRATIONS: Final = (_create_tables, _create_origins, _index_blank_entries)
"""Step *n* takes a database from version *n* to *n* + 1; never edited once released."""

SCHEMA_VERSION: Final = len(MIGRATIONS)
