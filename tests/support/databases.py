"""The database as others see and spoil it: a second connection, and honest refusals.

Every fault is something that SQLite itself does: a lock that another program
holds, a constraint that fails, a COMMIT that is refused. Nothing is patched.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from cachefsm.models import EntryRecord, Store

__all__ = [
    "FAULTS",
    "Fault",
    "aborting",
    "add_entry",
    "execute",
    "locked",
    "open_store",
    "stored",
    "stored_chunks",
    "stored_entry",
    "unable_to_commit",
]

Fault = Callable[[Path], AbstractContextManager[None]]


def open_store(path: Path) -> Store:
    """Open the store with next to no patience for locks."""
    return Store.open(path, busy_timeout_s=0.01)


def add_entry(store: Store, name: str = "film", *, now_s: float = 1.0) -> EntryRecord:
    """Register an entry whose key, URL and file are made from *name*."""
    return store.create(
        key=name,
        url=f"http://origin.test/{name}",
        content_file=f"{name[:2]}/{name}",
        now_s=now_s,
    )


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # the tests survive no power loss
        yield connection


def execute(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Run *statements* as another program would; return the last one's rows."""
    rows: list[tuple[Any, ...]] = []
    with _connected(path) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def stored_entry(path: Path, entry_id: int) -> EntryRecord | None:
    """Return the row as another program sees it, or None if there is none."""
    return stored(path, entry_id)[0]


def stored_chunks(path: Path, entry_id: int) -> list[tuple[int, int]]:
    """Return the chunk rows of an entry as another program sees them, in order."""
    return stored(path, entry_id)[1]


def stored(path: Path, entry_id: int) -> tuple[EntryRecord | None, list[tuple[int, int]]]:
    """Return both, for the price of one connection."""
    names = ", ".join(field.name for field in fields(EntryRecord))
    with _connected(path) as connection:
        row = connection.execute(
            f"SELECT {names} FROM cache_entries WHERE id = {entry_id}"
        ).fetchone()
        chunks = connection.execute(
            f"SELECT start, stop FROM cache_chunks WHERE entry_id = {entry_id} ORDER BY start"
        ).fetchall()
    return EntryRecord(*row) if row else None, chunks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let another program hold the database for itself."""
    with _connected(path) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


@contextmanager
def aborting(path: Path, when: str, how: str = "ABORT") -> Iterator[None]:
    """Let a trigger refuse *when*, say ``AFTER UPDATE ON cache_entries``.

    *how* is what is undone: ABORT the statement, FAIL nothing, ROLLBACK everything.
    """
    execute(path, f"CREATE TRIGGER refusal {when} BEGIN SELECT RAISE({how}, 'refused'); END")
    try:
        yield
    finally:
        execute(path, "DROP TRIGGER refusal")


@contextmanager
def unable_to_commit(path: Path) -> Iterator[None]:
    """Let every statement on an entry succeed and the COMMIT be refused.

    A deferred foreign key is checked by COMMIT and by nothing before it.
    """
    execute(
        path,
        "CREATE TABLE poison (id INTEGER REFERENCES cache_entries DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TRIGGER refusal AFTER UPDATE ON cache_entries "
        "BEGIN INSERT INTO poison VALUES (-1); END",
    )
    try:
        yield
    finally:
        execute(path, "DROP TRIGGER refusal", "DROP TABLE poison")


def _aborting(when: str, how: str) -> Fault:
    return lambda path: aborting(path, when, how)


FAULTS: dict[str, Fault] = {
    "locked": locked,
    "commit": unable_to_commit,
    "row": _aborting("BEFORE UPDATE ON cache_entries", "ABORT"),
    "row, half done": _aborting("AFTER UPDATE ON cache_entries", "FAIL"),
    "row, rolled back": _aborting("AFTER UPDATE ON cache_entries", "ROLLBACK"),
    "chunk": _aborting("AFTER INSERT ON cache_chunks", "ABORT"),
}
"""The ways in which a database refuses a move that writes chunks; by what refuses."""
