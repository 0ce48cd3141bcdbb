"""Queries whose text is made once: those that every request asks that finds its entry at rest.

For the row of an entry, peewee takes ten times as long to write the question as SQLite
does to answer it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import peewee

from .tables import ENTRY_COLUMNS, CacheChunk, CacheEntry

__all__ = ["CHECKSUMS_OF_ENTRY", "CHUNKS_OF_ENTRY", "ENTRY_OF_ID", "ENTRY_OF_KEY", "Prepared"]


class Prepared:
    """A query by one value; *query* makes it for a value, *columns* are what it selects."""

    def __init__(
        self, query: Callable[[Any], peewee.Query], columns: Sequence[peewee.Field]
    ) -> None:
        self._query = query
        self._columns = columns
        self._texts: dict[type[peewee.Database], str] = {}

    def execute(self, database: peewee.Database, value: Any) -> list[tuple[Any, ...]]:
        """Return the rows for *value*; called with the connection held."""
        text = self._texts.get(type(database))
        if text is None:
            context = database.get_sql_context()
            text, parameters = context.parse(self._query(value))  # type: ignore[no-untyped-call]
            if parameters != [value]:
                raise ValueError("it is a query by more than one value")
            self._texts[type(database)] = text
        rows = database.execute_sql(text, (value,)).fetchall()  # type: ignore[no-untyped-call]
        converters: list[Callable[[Any], Any]] = [c.python_value for c in self._columns]
        return [
            tuple(convert(value) for convert, value in zip(converters, row, strict=True))
            for row in rows
        ]


ENTRY_OF_ID: Final = Prepared(
    lambda entry_id: CacheEntry.select(*ENTRY_COLUMNS).where(CacheEntry.id == entry_id),
    ENTRY_COLUMNS,
)
ENTRY_OF_KEY: Final = Prepared(
    lambda key: CacheEntry.select(*ENTRY_COLUMNS).where(CacheEntry.key == key),
    ENTRY_COLUMNS,
)
_CHUNK_COLUMNS: Final = (CacheChunk.start, CacheChunk.stop)
CHUNKS_OF_ENTRY: Final = Prepared(
    lambda entry_id: (
        CacheChunk.select(*_CHUNK_COLUMNS)
        .where(CacheChunk.entry == entry_id)
        .order_by(CacheChunk.start)
    ),
    _CHUNK_COLUMNS,
)
_CHECKSUM_COLUMNS: Final = (CacheChunk.start, CacheChunk.checksum)
CHECKSUMS_OF_ENTRY: Final = Prepared(
    lambda entry_id: CacheChunk.select(*_CHECKSUM_COLUMNS).where(
        (CacheChunk.entry == entry_id) & CacheChunk.checksum.is_null(False)
    ),
    _CHECKSUM_COLUMNS,
)
