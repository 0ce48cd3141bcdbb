"""The one connection to a cache's database: opened, migrated, checked, shared by all threads.

One connection serves every thread, behind one lock, because SQLite writes one
at a time whatever we do and its own busy loop is unfair (1.8 s at worst with 8
writers, where a lock waits 165 ms), and because a connection per thread leaks
with dead threads. The lock is a leaf: nothing else is locked while it is held.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import peewee
from peewee import SchemaManager, SqliteDatabase

from .errors import DatabaseDamaged, DatabaseFull, RowRefused, SchemaTooNew, StorageError
from .prepared import Prepared
from .tables import MIGRATIONS, SCHEMA_VERSION, CacheSchema

__all__ = ["Database"]

_D = TypeVar("_D", bound="Database")

BUSY_TIMEOUT_S: Final = 2.0
"""How long a write waits for another program to let go of the database. All of ours
share one connection, so that is a person's shell or a backup; and clients wait, too."""

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
_SIGN_OF_A_FULL_DISK: Final = "disk is full"


def _schema_of(database: peewee.Database) -> set[tuple[Any, ...]]:
    # As bytes, because what has rotted need not be UTF-8.
    query = "SELECT type, CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master"
    return set(database.execute_sql(query).fetchall())  # type: ignore[no-untyped-call]


@cache
def _expected_schema() -> set[tuple[Any, ...]]:
    """Return the schema that the same migrations make of nothing."""
    with closing(SqliteDatabase(":memory:")) as database:
        made = Database(database)
        with made.transaction():
            return _schema_of(database)


class Database:
    """The connection, and transactions on it; thread-safe.

    Every method raises StorageError where the database refuses: locked by
    another program, full, read-only or damaged.
    """

    def __init__(
        self, database: peewee.Database, *, busy_timeout_s: float = BUSY_TIMEOUT_S
    ) -> None:
        self._database = database
        self._busy_timeout_s = self._waits_s = busy_timeout_s
        self._lock = threading.RLock()
        self._depth = 0
        with self._lock, _translated():
            database.connect(reuse_if_open=True)
            self._migrate()

    @classmethod
    def open(cls: type[_D], path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> _D:
        """Open or create the SQLite database at *path* and bring its schema up to date.

        Commits are not synced: a power loss may take the last ones back, and a row
        taken back claims nothing.

        Raises:
            DatabaseDamaged: it is no database, or not a whole one.
            SchemaTooNew: a newer cachefsm wrote it.
            StorageError: it cannot be opened, or is no database.
        """
        with suppress(OSError):  # SQLite will say what is wrong
            # It holds URLs in full. What SQLite puts beside it has the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            return cls._open(path, busy_timeout_s, "normal")
        except (DatabaseDamaged, SchemaTooNew):
            raise
        except StorageError:
            # A full disk has no room for the log's index, which is for other programs:
            # without them it is kept in memory, and what is stored can be served.
            return cls._open(path, busy_timeout_s, "exclusive")

    @classmethod
    def _open(cls: type[_D], path: Path, busy_timeout_s: float, locking_mode: str) -> _D:
        database = SqliteDatabase(
            str(path),
            pragmas={
                "locking_mode": locking_mode,
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
            return cls(database, busy_timeout_s=busy_timeout_s)
        except BaseException:
            database.close()
            raise

    def check(self) -> None:
        """Look through the whole database; raise DatabaseDamaged if it is not sound.

        All pages, the schema, and whether indexes say what their tables do: 0.25 s
        for 100,000 entries.
        """
        with self.reading():
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
    def reading(self) -> Iterator[None]:
        """Hold the connection for queries, which wait for no writer of another program."""
        with self._lock:
            if self._depth:
                yield  # the transaction that this stands in tells what goes wrong
                return
            with _translated():
                if self._database.is_closed():
                    raise StorageError("the database is closed")
                yield

    def rows(self, query: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        """Return what *query* finds for *values*."""
        with self.reading():
            return query.rows(self._database, **values)

    def write(self, statement: Prepared, **values: Any) -> int:
        """Execute *statement* with *values*; return how many rows it touched."""
        with self.transaction():
            return int(statement.execute(self._database, **values).rowcount)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the connection for several statements that succeed or fail as one.

        Nested calls join the outer transaction. Source of the isolation: SQLite's
        ``BEGIN IMMEDIATE``.
        """
        with self.reading():
            if self._depth:
                yield
                return
            self._depth += 1
            try:
                with self._database.atomic():
                    self._wait_for_others(self._busy_timeout_s)
                    yield
            except peewee.OperationalError as error:
                if "locked" in str(error):
                    self._wait_for_others(0.0)
                raise
            finally:
                self._depth -= 1

    def _rows(self, query: Any) -> list[tuple[Any, ...]]:
        """Return what *query* finds."""
        with self.reading():
            return list(query.tuples().execute(self._database))

    def _do(self, statement: Any) -> int:
        """Execute *statement*; return how many rows it touched, of an INSERT the last one's id."""
        with self.transaction():
            return int(statement.execute(self._database) or 0)

    def _wait_for_others(self, timeout_s: float) -> None:
        # One has waited in vain: until another program lets go, nobody else need.
        if timeout_s != self._waits_s:
            self._waits_s = timeout_s
            self._database.execute_sql(  # type: ignore[no-untyped-call]
                f"PRAGMA busy_timeout = {int(timeout_s * 1000)}"
            )

    def _migrate(self) -> None:
        with self.transaction():
            SchemaManager(CacheSchema, self._database).create_all(safe=True)
            versions = [
                row[0]
                for row in CacheSchema.select(CacheSchema.version).tuples().execute(self._database)
            ]
            if not all(isinstance(version, int) for version in versions):
                raise DatabaseDamaged("the version of the database is no number")
            version = max(versions, default=0)
            if version > SCHEMA_VERSION:
                raise SchemaTooNew(
                    f"the database has schema {version}, this cachefsm knows {SCHEMA_VERSION}: "
                    "use a newer cachefsm or another cache directory"
                )
            for migrate in MIGRATIONS[version:]:
                migrate(self._database)
            if version != SCHEMA_VERSION:
                CacheSchema.delete().execute(self._database)
                CacheSchema.insert(version=SCHEMA_VERSION).execute(self._database)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (*_REFUSALS, *_NO_SUCH_ROW) as error:
        first: BaseException = error
        # After a full disk SQLite has rolled back by itself and refuses peewee's
        # ROLLBACK in turn: the first refusal is the one to tell.
        while isinstance(first.__context__, _REFUSALS):
            first = first.__context__
        text = str(first).splitlines()[0] if str(first) else type(first).__name__
        if _tells_of_damage(first):
            raise DatabaseDamaged(f"the database cannot be read: {text}") from error
        if isinstance(error, _NO_SUCH_ROW):
            raise RowRefused(f"the database refused: {text}") from error
        if _SIGN_OF_A_FULL_DISK in text:
            raise DatabaseFull(f"the database refused: {text}") from error
        raise StorageError(f"the database refused: {text}") from error


def _tells_of_damage(error: BaseException) -> bool:
    # SQLite quotes names of the schema. Where those are no text, Python 3.10 leaves out
    # all that it said, and later ones cannot decode it.
    is_wordless = type(error) in (sqlite3.DatabaseError, peewee.DatabaseError) and not str(error)
    return is_wordless or any(sign in str(error) for sign in _SIGNS_OF_DAMAGE)


_REFUSALS: Final = (peewee.PeeweeException, sqlite3.Error)
_NO_SUCH_ROW: Final = (peewee.IntegrityError, peewee.DataError, UnicodeError, OverflowError)
