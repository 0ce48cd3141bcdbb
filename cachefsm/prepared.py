"""Statements whose text is made once: those that a request takes, and a download's moves.

For the row of an entry, peewee takes ten times as long to write the question as SQLite
does to answer it, and for a move of an entry, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import peewee

from .tables import (
    ENTRY_COLUMNS,
    QUEUE_COLUMNS,
    CacheChunk,
    CacheDownloadQueue,
    CacheEntry,
)

__all__ = [
    "ADD_CHUNK",
    "ADD_DEMAND",
    "ADD_ENTRY",
    "CHECKSUMS_OF_ENTRY",
    "CHUNKS_OF_ENTRY",
    "DROP_CHUNKS",
    "DROP_DEMANDS",
    "DROP_DEMANDS_OF_ASKER",
    "ENTRY_OF_ID",
    "ENTRY_OF_KEY",
    "OLDEST_DEMAND",
    "Prepared",
    "change_of_entry",
    "slot",
]


class _Slot(NamedTuple):
    name: str
    field: peewee.Field


def slot(field: peewee.Field, name: str | None = None) -> peewee.Value:
    """Return what stands in a statement for a value of *field*, by that *name* or its own."""
    place = _Slot(name or field.name, field)
    return peewee.Value(place, converter=lambda it: it, unpack=False)


class Prepared:
    """A statement with places for values, see :func:`slot`; *columns* are what it selects."""

    def __init__(self, statement: peewee.Query, columns: Sequence[peewee.Field] = ()) -> None:
        self._statement = statement
        self._columns = columns
        self._texts: dict[type[peewee.Database], tuple[str, list[Any]]] = {}

    def rows(self, database: peewee.Database, **values: Any) -> list[tuple[Any, ...]]:
        """Return the rows that it finds for *values*; called with the connection held."""
        converters: list[Callable[[Any], Any]] = [c.python_value for c in self._columns]
        return [
            tuple(convert(value) for convert, value in zip(converters, row, strict=True))
            for row in self.execute(database, **values).fetchall()
        ]

    def execute(self, database: peewee.Database, **values: Any) -> Any:
        """Return the cursor for *values*; called with the connection held.

        Raises:
            ValueError: they are not those that it has places for.
        """
        known = self._texts.get(type(database))
        if known is None:
            context = database.get_sql_context()
            known = context.parse(self._statement)  # type: ignore[no-untyped-call]
            self._texts[type(database)] = known
        text, parameters = known
        places = [it for it in parameters if isinstance(it, _Slot)]
        if values.keys() != {place.name for place in places}:
            raise ValueError(f"it is a statement by {', '.join(place.name for place in places)}")
        told = [
            it.field.db_value(values[it.name]) if isinstance(it, _Slot) else it for it in parameters
        ]
        return database.execute_sql(text, told)  # type: ignore[no-untyped-call]


ENTRY_OF_ID: Final = Prepared(
    CacheEntry.select(*ENTRY_COLUMNS).where(CacheEntry.id == slot(CacheEntry.id)),
    ENTRY_COLUMNS,
)
ENTRY_OF_KEY: Final = Prepared(
    CacheEntry.select(*ENTRY_COLUMNS).where(CacheEntry.key == slot(CacheEntry.key)),
    ENTRY_COLUMNS,
)
_NEW: Final = ("key", "url", "content_file", "state_since", "created_at", "last_accessed_at")
ADD_ENTRY: Final = Prepared(
    CacheEntry.insert({name: slot(getattr(CacheEntry, name)) for name in _NEW}).on_conflict(
        conflict_target=[CacheEntry.key], preserve=[CacheEntry.last_accessed_at]
    )
)


@lru_cache(maxsize=64)  # a dozen are in use
def change_of_entry(columns: tuple[str, ...], *, in_state: bool) -> Prepared:
    """Return what changes these *columns* of the row that has ``its_id``.

    And that is in ``its_generation`` and, where asked for, *in_state* ``its_state``.
    """
    place = {"id": "its_id", "generation": "its_generation"}
    if in_state:
        place["state"] = "its_state"
    fields = {name: getattr(CacheEntry, name) for name in (*columns, *place)}
    return Prepared(
        CacheEntry.update({name: slot(fields[name]) for name in columns}).where(
            *(fields[name] == slot(fields[name], its) for name, its in place.items())
        )
    )


_ITS_CHUNKS: Final = CacheChunk.entry == slot(CacheChunk.entry)
_CHUNK_COLUMNS: Final = (CacheChunk.start, CacheChunk.stop)
CHUNKS_OF_ENTRY: Final = Prepared(
    CacheChunk.select(*_CHUNK_COLUMNS).where(_ITS_CHUNKS).order_by(CacheChunk.start),
    _CHUNK_COLUMNS,
)
_CHECKSUM_COLUMNS: Final = (CacheChunk.start, CacheChunk.checksum)
CHECKSUMS_OF_ENTRY: Final = Prepared(
    CacheChunk.select(*_CHECKSUM_COLUMNS).where(_ITS_CHUNKS & CacheChunk.checksum.is_null(False)),
    _CHECKSUM_COLUMNS,
)
_WRITTEN_COLUMNS: Final = (
    *(CacheChunk.entry, CacheChunk.start, CacheChunk.stop),
    *(CacheChunk.checksum, CacheChunk.written_at),
)
DROP_CHUNKS: Final = Prepared(
    CacheChunk.delete().where(
        _ITS_CHUNKS,
        CacheChunk.start.between(slot(CacheChunk.start, "first"), slot(CacheChunk.start, "last")),
    )
)
ADD_CHUNK: Final = Prepared(
    CacheChunk.insert({field.name: slot(field) for field in _WRITTEN_COLUMNS})
)

_ITS_DEMANDS: Final = CacheDownloadQueue.entry == slot(CacheDownloadQueue.entry)
_OF_ASKER: Final = _ITS_DEMANDS & (CacheDownloadQueue.asked_by == slot(CacheDownloadQueue.asked_by))
OLDEST_DEMAND: Final = Prepared(
    CacheDownloadQueue.select(peewee.fn.MIN(CacheDownloadQueue.created_at)).where(_OF_ASKER),
    (CacheDownloadQueue.created_at,),
)
DROP_DEMANDS: Final = Prepared(CacheDownloadQueue.delete().where(_ITS_DEMANDS))
DROP_DEMANDS_OF_ASKER: Final = Prepared(CacheDownloadQueue.delete().where(_OF_ASKER))
ADD_DEMAND: Final = Prepared(
    CacheDownloadQueue.insert({field.name: slot(field) for field in QUEUE_COLUMNS})
)
