"""Rows as SQLite gives them, for those that make no sense as anything else.

:mod:`cachefsm.sanity` finds them and says what becomes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peewee import SQL, Model

from .database import Database
from .tables import CacheChunk, CacheEntry

__all__ = ["RawStore"]


class RawStore(Database):
    """A database whose rows may be anything; thread-safe."""

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
        query = table.select(*map(SQL, columns.values())).where(SQL(where))
        return [dict(zip(columns, row, strict=True)) for row in self._rows(query)]

    def delete_raw(self, table: type[Model], row_id: int) -> None:
        """Delete one row, and what hangs on it."""
        self._do(table.delete().where(SQL("id") == row_id))

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
            self._do(CacheChunk.delete().where(CacheChunk.entry == entry_id))
            self._do(CacheEntry.update(**changes).where(CacheEntry.id == entry_id))
