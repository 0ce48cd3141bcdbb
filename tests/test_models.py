"""The tables and the short transactions on them, seen through a second connection."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peewee import PostgresqlDatabase, SchemaManager, SqliteDatabase

from cachefsm.errors import DatabaseDamaged, EntryNotFound, SchemaTooNew, StorageError
from cachefsm.models import (
    SCHEMA_VERSION,
    CacheChunk,
    CacheDownloadQueue,
    CacheEntry,
    EntryRecord,
    OriginRecord,
    QueueRecord,
    StaleRow,
    Store,
)
from cachefsm.prepared import Prepared, slot
from cachefsm.ranges import END, ByteRange, RangeSet
from cachefsm.raw import RawStore
from tests.support.caches import WAIT_S
from tests.support.databases import (
    FAULTS,
    add_entry,
    execute,
    locked,
    open_store,
    stored_chunks,
    stored_entry,
)
from tests.support.disks import fill, open_files, small_disk
from tests.support.threads import in_thread


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = open_store(path)
    yield store
    store.close()


@pytest.fixture
def film(store: Store) -> EntryRecord:
    return add_entry(store)


def demand(entry: EntryRecord, asked_by: str = "reader", **changes: Any) -> QueueRecord:
    plain = QueueRecord(entry.id, asked_by, 3, 0, None, 0, None, None, 1.0)
    return replace(plain, **changes)


def save(
    store: Store, record: EntryRecord, *ranges: tuple[int, int], bytes_present: int = 0
) -> EntryRecord:
    chunks = [ByteRange(start, stop) for start, stop in ranges]
    return store.save_chunks(record, chunks, bytes_present=bytes_present, now_s=9.0)


def schema(path: Path) -> list[tuple[str, str]]:
    return execute(path, "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name")


# -- opening and the schema ---------------------------------------------------


def test_a_fresh_database_has_the_contract_s_tables_and_the_current_version(
    store: Store, path: Path
) -> None:
    tables = {name for name, sql in schema(path) if sql.startswith("CREATE TABLE")}
    assert tables >= {"cache_entries", "cache_chunks", "cache_download_queue"}
    assert execute(path, "SELECT version FROM cache_schema") == [(SCHEMA_VERSION,)]
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]


def test_opening_again_changes_nothing(path: Path) -> None:
    store = open_store(path)
    film = save(store, add_entry(store), (0, 10), bytes_present=10)
    store.close()
    before = schema(path)
    store = open_store(path)
    assert store.entries() == [film]
    assert store.chunks(film.id) == [(0, 10)]
    store.close()
    assert schema(path) == before
    assert execute(path, "SELECT version FROM cache_schema") == [(SCHEMA_VERSION,)]


def test_a_database_without_a_version_is_brought_up_to_date(path: Path) -> None:
    open_store(path).close()
    execute(path, "DELETE FROM cache_schema", "DROP TABLE cache_download_queue")
    store = open_store(path)
    film = add_entry(store)
    store.enqueue(demand(film))
    store.close()
    assert execute(path, "SELECT version FROM cache_schema") == [(SCHEMA_VERSION,)]


def test_a_newer_schema_is_refused_in_one_line_and_left_alone(path: Path) -> None:
    open_store(path).close()
    newer = SCHEMA_VERSION + 1
    execute(path, f"UPDATE cache_schema SET version = {newer}", "DROP TABLE cache_chunks")
    before = schema(path)
    with pytest.raises(SchemaTooNew, match=rf"schema {newer}.* knows {SCHEMA_VERSION}") as caught:
        open_store(path)
    assert_one_line(caught.value)
    assert schema(path) == before
    assert execute(path, "SELECT version FROM cache_schema") == [(newer,)]


@pytest.mark.parametrize("content", [b"this is no database", bytes(range(256)) * 64])
def test_garbage_is_refused_in_one_line_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DatabaseDamaged, match="not a database") as caught:
        open_store(path)
    assert_one_line(caught.value)
    assert path.read_bytes() == content


def test_a_damaged_page_is_found_by_the_check_and_by_who_reads_it(path: Path) -> None:
    store = open_store(path)
    for number in range(200):
        add_entry(store, f"{number}")
    store.check()
    store.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)  # all but the page with the schema
    path.write_bytes(data)
    for look in (Store.check, Store.entries, Store.total_bytes):
        with pytest.raises(DatabaseDamaged) as caught, closing(open_store(path)) as damaged:
            look(damaged)
        assert_one_line(caught.value)


def test_an_index_that_says_something_else_than_its_table_is_found_by_the_check(
    path: Path,
) -> None:
    store = open_store(path)
    add_entry(store, "a-name-that-is-in-table-and-index")
    store.close()
    data = path.read_bytes()
    in_index = data.rindex(b"a-name-that-is-in-table-and-index")
    path.write_bytes(data[:in_index] + b"A" + data[in_index + 1 :])
    with closing(open_store(path)) as damaged, pytest.raises(DatabaseDamaged):
        damaged.check()


def test_a_schema_that_is_another_one_is_found_by_the_check(store: Store, path: Path) -> None:
    store.check()
    execute(path, "CREATE TABLE somebody_elses (id INTEGER)")
    store.check()
    execute(path, "DROP INDEX cachechunk_entry_id_start")
    with pytest.raises(DatabaseDamaged, match="schema"):
        store.check()


def test_text_that_has_rotted_is_damage(store: Store, path: Path, film: EntryRecord) -> None:
    execute(path, "UPDATE cache_entries SET etag = CAST(x'ff22' AS TEXT)")
    with pytest.raises(DatabaseDamaged) as caught:
        store.entry(film.id)
    assert_one_line(caught.value)


@pytest.mark.parametrize("where", ["nowhere/cache.sqlite3", "."])
def test_a_path_that_cannot_be_a_database_is_an_error_of_storage(
    tmp_path: Path, where: str
) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(tmp_path / where)
    assert_one_line(caught.value)


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.entries()


def test_a_store_that_could_not_be_opened_holds_no_file(path: Path) -> None:
    path.write_bytes(b"this is no database")
    for _ in range(3):
        with pytest.raises(StorageError):
            open_store(path)
    assert open_files(path.parent) == []


def assert_one_line(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)


# -- constraints --------------------------------------------------------------

CHUNK = "INSERT INTO cache_chunks (entry_id, start, stop, written_at) VALUES"
DEMAND = (
    "INSERT INTO cache_download_queue (entry_id, asked_by, priority, start, attempts, created_at) "
    "VALUES"
)


@pytest.mark.parametrize(
    ("statement", "violated"),
    [
        ("UPDATE cache_entries SET state = 'sleeping'", "CHECK"),
        ("UPDATE cache_entries SET state = 'COMPLETE'", "CHECK"),
        ("UPDATE cache_entries SET complete_length = -1", "CHECK"),
        ("UPDATE cache_entries SET bytes_present = -1", "CHECK"),
        ("UPDATE cache_entries SET key = 'film' WHERE key = 'song'", "UNIQUE"),
        ("UPDATE cache_entries SET content_file = 'fi/film' WHERE key = 'song'", "UNIQUE"),
        ("UPDATE cache_entries SET url = NULL", "NOT NULL"),
        (f"{CHUNK} (1, 5, 5, 0)", "CHECK"),
        (f"{CHUNK} (1, 5, 4, 0)", "CHECK"),
        (f"{CHUNK} (1, -1, 4, 0)", "CHECK"),
        (f"{CHUNK} (1, 0, 4, 0), (1, 0, 8, 0)", "UNIQUE"),
        (f"{CHUNK} (99, 0, 4, 0)", "FOREIGN KEY"),
        (f"{DEMAND} (1, 'nobody', 0, 0, 0, 0)", "CHECK"),
        (f"{DEMAND} (1, 'person', 0, 0, 0, 0), (1, 'person', 1, 0, 0, 0)", "UNIQUE"),
        (f"{DEMAND} (99, 'person', 0, 0, 0, 0)", "FOREIGN KEY"),
    ],
)
def test_the_tables_refuse_what_cannot_be(
    store: Store, path: Path, film: EntryRecord, statement: str, violated: str
) -> None:
    add_entry(store, "song")
    before = contents(path)
    with pytest.raises(sqlite3.IntegrityError, match=violated):
        execute(path, "PRAGMA foreign_keys = ON", statement)
    assert contents(path) == before


def contents(path: Path) -> list[list[tuple[Any, ...]]]:
    tables = ("cache_entries", "cache_chunks", "cache_download_queue")
    return [execute(path, f"SELECT * FROM {table} ORDER BY id") for table in tables]


def test_the_models_are_declared_for_postgresql_too() -> None:
    # No connection is made: only the statements that would be sent.
    postgresql = PostgresqlDatabase(None)
    for model in (CacheEntry, CacheChunk, CacheDownloadQueue):
        manager: Any = SchemaManager(model, postgresql)
        sql, _ = manager._create_table().query()
        assert '"id" SERIAL NOT NULL PRIMARY KEY' in sql
        assert "AUTOINCREMENT" not in sql


# -- entries ------------------------------------------------------------------


def test_a_new_entry_is_not_started_and_holds_nothing(store: Store, path: Path) -> None:
    film = add_entry(store, "film", now_s=7.0)
    assert (film.key, film.url, film.state) == ("film", "http://origin.test/film", "not_started")
    assert (film.created_at, film.state_since, film.last_accessed_at) == (7.0, 7.0, 7.0)
    assert (film.complete_length, film.bytes_present, film.generation) == (None, 0, 0)
    assert film == store.entry(film.id) == store.find("film") == stored_entry(path, film.id)


def test_creating_an_entry_again_finds_the_first_and_uses_it(
    store: Store, film: EntryRecord
) -> None:
    again = store.create(key=film.key, url="http://else.test/", content_file="other", now_s=8.0)
    assert again == replace(film, last_accessed_at=8.0)
    assert store.entries() == [again]


def test_a_row_that_is_found_has_the_types_of_the_one_that_was_made(
    store: Store, film: EntryRecord
) -> None:
    store.update(film, pinned=True, requested_at=7)
    for found in (store.find("film"), store.entry(film.id), store.entries()[0]):
        assert found is not None
        assert found.pinned is True
        assert found.accepts_ranges is False
        assert isinstance(found.requested_at, float)


@pytest.mark.parametrize("values", [{}, {"key": "film", "id": 1}, {"id": 1}])
def test_a_prepared_query_is_by_the_values_that_it_has_places_for(
    store: Store, film: EntryRecord, values: dict[str, Any]
) -> None:
    by_key = Prepared(
        CacheEntry.select(CacheEntry.id).where(
            CacheEntry.key == slot(CacheEntry.key), CacheEntry.generation == 0
        ),
        [CacheEntry.id],
    )
    assert store.rows(by_key, key="film") == [(film.id,)]
    with pytest.raises(ValueError, match="by key"):
        store.rows(by_key, **values)


def test_who_is_not_there_is_not_found(store: Store, film: EntryRecord) -> None:
    assert store.find("song") is None
    with pytest.raises(EntryNotFound, match="99"):
        store.entry(99)


def test_a_deleted_entry_takes_its_chunks_and_demands_along(
    store: Store, path: Path, film: EntryRecord
) -> None:
    song = add_entry(store, "song")
    for entry in (film, song):
        save(store, entry, (0, 10))
        store.enqueue(demand(entry))
    store.delete(film.id)
    assert [entry.id for entry in store.entries()] == [song.id]
    assert execute(path, "SELECT entry_id FROM cache_chunks") == [(song.id,)]
    assert [queued.entry_id for queued in store.queue()] == [song.id]


def test_the_id_of_a_deleted_entry_is_never_given_again(store: Store, path: Path) -> None:
    first = add_entry(store, "first")
    store.delete(first.id)
    second = add_entry(store, "second")
    assert second.id != first.id
    store.delete(second.id)
    store.close()
    store = open_store(path)
    assert add_entry(store, "third").id not in (first.id, second.id)
    store.close()


def test_only_initializing_and_downloading_entries_are_active(store: Store, path: Path) -> None:
    states = ["not_started", "initializing", "downloading", "paused", "complete", "failed"]
    for state in states:
        entry = add_entry(store, state)
        execute(path, f"UPDATE cache_entries SET state = '{state}' WHERE id = {entry.id}")
    assert [entry.key for entry in store.active_entries()] == ["initializing", "downloading"]


def test_an_update_writes_its_columns_and_no_others(
    store: Store, path: Path, film: EntryRecord
) -> None:
    execute(path, "UPDATE cache_entries SET access_count = 5")  # unknown to our snapshot
    updated = store.update(film, pinned=True, etag='"v1"')
    assert updated == replace(film, pinned=True, etag='"v1"')
    assert stored_entry(path, film.id) == replace(updated, access_count=5)


@pytest.mark.parametrize("column", ["state", "state_reason", "state_since", "generation"])
def test_an_update_cannot_touch_the_lifecycle(
    store: Store, path: Path, film: EntryRecord, column: str
) -> None:
    with pytest.raises(ValueError, match="lifecycle"):
        store.update(film, pinned=True, **{column: getattr(film, column)})
    assert stored_entry(path, film.id) == film


def test_a_row_that_makes_no_sense_starts_afresh_under_its_key(
    store: Store, path: Path, film: EntryRecord
) -> None:
    song = save(store, add_entry(store, "song"), (0, 5), bytes_present=5)
    old = save(store, film, (0, 10), bytes_present=10)
    execute(
        path,
        "PRAGMA ignore_check_constraints = ON",
        f"UPDATE cache_entries SET state = 'dreaming', bytes_present = 'x' WHERE id = {film.id}",
    )
    (row,) = (row for row in store.raw_rows(CacheEntry) if row["id"] == film.id)
    assert (row["state"], row["bytes_present"]) == ("dreaming", "x")
    store.start_afresh(film.id, "ab/new", 50.0)
    fresh = store.entry(film.id)
    assert (fresh.key, fresh.url, fresh.state) == (film.key, film.url, "not_started")
    assert (fresh.content_file, fresh.bytes_present, fresh.etag) == ("ab/new", 0, None)
    assert fresh == stored_entry(path, film.id)
    assert store.chunks(film.id) == []
    with pytest.raises(StaleRow):
        save(store, old, (0, 10), bytes_present=10)
    assert store.entry(song.id) == song
    assert store.chunks(song.id) == [(0, 5)]


Write = Callable[[Store, EntryRecord], EntryRecord]
WRITES: dict[str, Write] = {
    "update": lambda store, film: store.update(film, pinned=True),
    "save_chunks": lambda store, film: save(store, film, (0, 4), (8, 9), bytes_present=5),
    "write_move": lambda store, film: store.write_move(
        film, state="failed", reason=None, now_s=2.0, columns={}, chunks=[ByteRange(0, 4)]
    ),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "change",
    ["UPDATE cache_entries SET generation = generation + 1", "DELETE FROM cache_entries"],
)
def test_no_write_reaches_another_generation_or_a_row_that_is_gone(
    store: Store, path: Path, film: EntryRecord, write: str, change: str
) -> None:
    execute(path, change)
    before = contents(path)
    with pytest.raises(StaleRow, match=f"entry {film.id} "):
        WRITES[write](store, film)
    assert contents(path) == before


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_refused_write_leaves_nothing_behind_and_can_be_made_again(
    store: Store, path: Path, film: EntryRecord, write: str, fault: str
) -> None:
    if (write, fault) == ("update", "chunk"):
        return  # writes none
    before = contents(path)
    with FAULTS[fault](path), pytest.raises(StorageError, match=REASONS[fault]) as caught:
        WRITES[write](store, film)
    assert_one_line(caught.value)
    assert contents(path) == before
    assert stored_entry(path, film.id) == film
    assert WRITES[write](store, film) == stored_entry(path, film.id)


REASONS = dict.fromkeys(FAULTS, "refused: refused") | {
    "locked": "locked",
    "commit": "FOREIGN KEY",
}


def test_the_sums_are_those_of_all_entries(store: Store, path: Path) -> None:
    assert store.total_bytes() == 0
    assert store.count_by_state() == []
    for name, size in (("film", 10), ("song", 5), ("text", 1)):
        save(store, add_entry(store, name), (0, size), bytes_present=size)
    execute(path, "UPDATE cache_entries SET pinned = 1, state = 'paused' WHERE key = 'song'")
    assert store.total_bytes() == 16
    assert sorted(store.count_by_state()) == [
        ("not_started", False, 2, 11),
        ("paused", True, 1, 5),
    ]


def test_every_content_file_has_its_owner(store: Store, film: EntryRecord) -> None:
    song = add_entry(store, "song")
    assert store.content_files() == {film.content_file, song.content_file}


def test_what_may_be_evicted_comes_longest_unused_first(store: Store) -> None:
    for name, used_at, size, pinned in (
        ("recent", 30.0, 1, False),
        ("old", 10.0, 1, False),
        ("pinned", 5.0, 1, True),
        ("empty", 1.0, 0, False),
        ("older", 9.0, 1, False),
        ("old too", 10.0, 1, False),
    ):
        entry = store.update(add_entry(store, name), last_accessed_at=used_at, pinned=pinned)
        save(store, entry, bytes_present=size)
    candidates = [store.entry(entry_id).key for entry_id, _ in store.least_recently_used()]
    assert candidates == ["older", "old", "old too", "recent"]


def test_all_of_many_that_may_be_evicted_come_once_and_in_order(store: Store, path: Path) -> None:
    for number in range(600):
        add_entry(store, f"film{number}")
    # Many were used at the same moment, as after an import.
    execute(path, "UPDATE cache_entries SET bytes_present = id, last_accessed_at = id / 400")
    assert list(store.least_recently_used()) == [(number, number) for number in range(1, 601)]


# -- chunks -------------------------------------------------------------------


def test_a_range_that_has_grown_takes_the_place_of_its_parts(
    store: Store, path: Path, film: EntryRecord
) -> None:
    film = save(store, film, (0, 10), (20, 30), (50, 60), bytes_present=30)
    film = save(store, film, (0, 40), bytes_present=50)
    assert stored_chunks(path, film.id) == [(0, 40), (50, 60)]
    assert film.bytes_present == 50
    assert stored_entry(path, film.id) == film


def test_a_chunk_row_says_when_it_was_written(store: Store, path: Path, film: EntryRecord) -> None:
    save(store, film, (0, 10))
    assert execute(path, "SELECT written_at FROM cache_chunks") == [(9.0,)]


def test_one_entry_s_chunks_leave_the_others_alone(store: Store, film: EntryRecord) -> None:
    song = add_entry(store, "song")
    save(store, film, (0, 10))
    save(store, song, (5, 50))
    assert store.chunks(film.id) == [(0, 10)]
    assert store.chunks(song.id) == [(5, 50)]


def test_offsets_reach_as_far_as_files_do(store: Store, film: EntryRecord) -> None:
    far = 5 << 30
    film = save(store, film, (far, far + 1), (END - 1, END), bytes_present=END)
    assert store.chunks(film.id) == [(far, far + 1), (END - 1, END)]
    assert store.entry(film.id).bytes_present == END


def test_the_furthest_byte_of_an_entry_is_its_last_chunk_s(store: Store, film: EntryRecord) -> None:
    add_entry(store, "without bytes")
    song = add_entry(store, "song")
    film = save(store, film, (0, 10), (50, 60), (20, 30))
    song = save(store, song, (0, 5))
    assert store.furthest_bytes() == [(film.id, "fi/film", 60), (song.id, "so/song", 5)]


def test_entries_come_in_pages_with_their_chunks(store: Store) -> None:
    entries = [add_entry(store, f"{number}") for number in range(5)]
    store.delete(entries.pop(1).id)
    filled = save(store, entries[1], (20, 30), (0, 10), bytes_present=20)
    first = store.page(0, 2)
    assert first == [(entries[0], []), (filled, [(0, 10), (20, 30)])]
    assert [record for record, _ in store.page(filled.id, 2)] == entries[2:]
    assert store.page(entries[-1].id, 2) == []


def test_checksums_are_kept_with_their_ranges(store: Store, film: EntryRecord) -> None:
    sums = {0: b"\x00\xff", 20: b"twenty"}
    chunks = [ByteRange(0, 10), ByteRange(20, 30), ByteRange(40, 50)]
    film = store.save_chunks(film, chunks, bytes_present=30, now_s=1.0, checksums=sums)
    assert store.checksums(film.id) == sums
    save(store, film, (20, 35), bytes_present=35)
    assert store.checksums(film.id) == {0: b"\x00\xff"}


spans = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda s: (s[0], s[0] + s[1]))


def test_the_rows_are_always_the_coalesced_ranges(store: Store, path: Path) -> None:
    @given(saves=st.lists(st.lists(spans, min_size=1, max_size=3), max_size=12))
    @settings(max_examples=40, deadline=None)
    def save_as_they_grow(saves: list[list[tuple[int, int]]]) -> None:
        film = add_entry(store)
        durable = RangeSet()
        for fresh in saves:
            before = durable.copy()
            for start, stop in fresh:
                durable.add(start, stop)
            grown = [run for run in durable if not before.contains(*run)]
            film = save(store, film, *grown, bytes_present=durable.total)
            assert stored_chunks(path, film.id) == list(durable) == store.chunks(film.id)
        store.delete(film.id)

    save_as_they_grow()


# -- the queue ----------------------------------------------------------------


def test_the_queue_is_in_order_of_urgency_then_of_age(store: Store) -> None:
    for name, priority, created_at in (
        ("late", 3, 20.0),
        ("early", 3, 10.0),
        ("urgent", 1, 30.0),
        ("early too", 3, 10.0),
    ):
        entry = add_entry(store, name)
        store.enqueue(demand(entry, priority=priority, created_at=created_at))
    names = [store.entry(queued.entry_id).key for queued in store.queue()]
    assert names == ["urgent", "early", "early too", "late"]


def test_a_demand_is_kept_word_for_word(store: Store, film: EntryRecord) -> None:
    wanted = demand(
        film, "person", start=5, stop=500, attempts=2, not_before=8.5, last_error="no", priority=2
    )
    store.enqueue(wanted)
    assert store.queue() == [wanted]


def test_an_asker_s_new_demand_replaces_the_old_one_and_keeps_its_age(
    store: Store, film: EntryRecord
) -> None:
    store.enqueue(demand(film, "reader", created_at=1.0))
    store.enqueue(demand(film, "person", created_at=2.0))
    store.enqueue(demand(film, "reader", created_at=3.0, start=7, stop=9, priority=1))
    assert store.queue() == [
        demand(film, "reader", created_at=1.0, start=7, stop=9, priority=1),
        demand(film, "person", created_at=2.0),
    ]


def test_demands_leave_the_queue_one_asker_at_a_time_or_together(
    store: Store, film: EntryRecord
) -> None:
    song = add_entry(store, "song")
    for entry in (film, song):
        for asked_by in ("reader", "person", "prefetch"):
            store.enqueue(demand(entry, asked_by))
    store.dequeue(film.id, "person")
    left = {(queued.entry_id, queued.asked_by) for queued in store.queue()}
    assert (film.id, "person") not in left
    assert len(left) == 5
    store.dequeue(film.id)
    assert {queued.entry_id for queued in store.queue()} == {song.id}


def test_an_attempt_is_noted_with_every_demand_of_its_entry(
    store: Store, film: EntryRecord
) -> None:
    song = add_entry(store, "song")
    for entry, asked_by in ((film, "reader"), (film, "person"), (song, "person")):
        store.enqueue(demand(entry, asked_by))
    store.note_attempt(film.id, attempts=3, not_before=77.0, error="timed out")
    noted = {
        (q.entry_id, q.asked_by): (q.attempts, q.not_before, q.last_error) for q in store.queue()
    }
    assert noted == {
        (film.id, "reader"): (3, 77.0, "timed out"),
        (film.id, "person"): (3, 77.0, "timed out"),
        (song.id, "person"): (0, None, None),
    }


def test_nobody_can_ask_for_an_entry_that_is_not_there(store: Store, film: EntryRecord) -> None:
    with pytest.raises(StorageError, match="FOREIGN KEY"):
        store.enqueue(demand(replace(film, id=99)))


# -- origins ------------------------------------------------------------------


def test_what_was_learnt_of_origins_is_kept_until_it_is_forgotten(store: Store) -> None:
    first, second, third = (
        OriginRecord(f"http://{name}.test", True, number, most=number, updated_at=float(number))
        for number, name in enumerate("abc", start=1)
    )
    store.save_origins([first, second, third], forget_before_s=0.0)
    assert store.origins() == [third, second, first]
    later = replace(first, accepts_ranges=None, most=None, rate_bytes_s=5.5, updated_at=9.0)
    store.save_origins([later], forget_before_s=3.0)
    assert store.origins() == [later, third]
    assert store.origins(limit=1) == [later]


def test_a_database_of_the_first_version_is_given_a_place_for_origins(path: Path) -> None:
    store = open_store(path)
    film = add_entry(store)
    store.close()
    execute(path, "UPDATE cache_schema SET version = 1", "DROP TABLE cache_origins")
    store = open_store(path)
    assert store.origins() == []
    assert store.entries() == [film]
    assert execute(path, "SELECT version FROM cache_schema") == [(SCHEMA_VERSION,)]
    store.check()
    store.close()


def test_a_database_of_the_second_version_is_given_the_index_of_blank_entries(path: Path) -> None:
    open_store(path).close()
    execute(path, "UPDATE cache_schema SET version = 2", "DROP INDEX cacheentry_blank")
    store = open_store(path)
    assert execute(path, "SELECT version FROM cache_schema") == [(SCHEMA_VERSION,)]
    store.check()
    store.close()


# -- what holds no byte -------------------------------------------------------


def test_the_last_but_so_many_is_the_one_that_is_crowded_out(store: Store) -> None:
    for number in range(4):
        add_entry(store, f"{number}", now_s=float(number))
    save(store, add_entry(store, "held", now_s=9.0), (0, 10), bytes_present=10)
    assert store.crowded_out_s(3) == 0.0
    assert store.crowded_out_s(4) is None


def test_no_more_are_forgotten_than_wanted_and_none_that_is_spared(store: Store) -> None:
    ids = [add_entry(store, f"{number}", now_s=float(number)).id for number in range(5)]
    assert store.forget_blank(3.0, 9.0, 2, spare={ids[0]}) == ["1/1"]
    assert store.forget_blank(3.0, 9.0, 9, spare=()) == ["0/0", "2/2", "3/3"]
    assert [entry.id for entry in store.entries()] == ids[4:]


# -- indexes ------------------------------------------------------------------


def dequeue(store: Store, film: EntryRecord) -> None:
    store.dequeue(film.id)
    store.dequeue(film.id, "person")


USES: dict[str, Callable[[Store, EntryRecord], object]] = {
    "entry": lambda store, film: store.entry(film.id),
    "find": lambda store, film: store.find(film.key),
    "entries": lambda store, film: store.entries(),
    "entries_of": lambda store, film: store.entries_of(film.url, film.key),
    "active_entries": lambda store, film: store.active_entries(),
    "create": lambda store, film: add_entry(store, "another"),
    "delete": lambda store, film: store.delete(film.id),
    "total_bytes": lambda store, film: store.total_bytes(),
    "count_by_state": lambda store, film: store.count_by_state(),
    "content_files": lambda store, film: store.content_files(),
    "crowded_out_s": lambda store, film: store.crowded_out_s(0),
    "forget_blank": lambda store, film: store.forget_blank(5.0, 5.0, 10, ()),
    "least_recently_used": lambda store, film: list(store.least_recently_used()),
    "complete_like": lambda store, film: store.complete_like({"url": ["%.m3u8"]}, 1 << 20, 64),
    "chunks": lambda store, film: store.chunks(film.id),
    "checksums": lambda store, film: store.checksums(film.id),
    "enqueue": lambda store, film: store.enqueue(demand(film)),
    "dequeue": dequeue,
    "note_attempt": lambda store, film: store.note_attempt(
        film.id, attempts=1, not_before=None, error=None
    ),
    "queue": lambda store, film: store.queue(),
    "unsynced": lambda store, film: store.unsynced(),
    "note_unsynced": lambda store, film: store.note_unsynced("a boot", 1.0),
    "written_since": lambda store, film: store.written_since(1.0),
    "origins": lambda store, film: store.origins(),
    "save_origins": lambda store, film: store.save_origins([OriginRecord("http://a.test")], -1.0),
    "furthest_bytes": lambda store, film: store.furthest_bytes(),
    "page": lambda store, film: store.page(0, 10),
    "latest": lambda store, film: store.latest(10),
    "raw_rows": lambda store, film: store.raw_rows(CacheEntry),
    "delete_raw": lambda store, film: store.delete_raw(CacheEntry, film.id),
    "start_afresh": lambda store, film: store.start_afresh(film.id, "ab/new", 5.0),
    **WRITES,
}


def test_every_method_of_the_store_is_looked_at() -> None:
    methods = {name for name in (*vars(Store), *vars(RawStore)) if not name.startswith("_")}
    assert methods - {"open", "close", "check", "sync", "transaction"} == USES.keys()


@pytest.mark.parametrize("method", sorted(USES))
def test_every_query_goes_by_an_index(
    store: Store, path: Path, film: EntryRecord, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    with caplog.at_level(logging.DEBUG, "peewee"):
        USES[method](store, film)
    steps = query_steps(path, caplog)
    for step in steps:
        assert step in READS_ALL.get(method, ()) or goes_by_an_index(step)


# What is asked of every row reads every row, in the order wanted: at start-up, by a person,
# or as far as it counts.
READS_ALL = {
    "entries": ["SCAN t1"],
    "queue": ["SCAN t1 USING INDEX cachedownloadqueue_priority_created_at"],
    "furthest_bytes": ["SCAN t2 USING INDEX cachechunk_entry_id_start"],
    "raw_rows": ["SCAN t1"],
    "origins": ["SCAN t1 USING INDEX cacheorigin_updated_at"],
    "crowded_out_s": ["SCAN t1 USING INDEX cacheentry_blank"],
    "unsynced": ["SCAN t1"],
    "note_unsynced": ["SCAN cache_unsynced"],
    "written_since": ["SCAN t1 USING INDEX cachechunk_entry_id_start"],
}


def goes_by_an_index(step: str) -> bool:
    """Say whether a step of a query plan costs what it finds, not what the table holds."""
    return "SCAN" not in step or "USING COVERING INDEX" in step


def test_neither_the_queue_nor_the_evictable_are_sorted_by_the_query(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "peewee"):
        store.queue()
        list(store.least_recently_used())
    steps = query_steps(path, caplog)
    assert not any("TEMP B-TREE" in step for step in steps)


def query_steps(path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return how SQLite would go about the statements that peewee has logged."""
    logged: list[Any] = [record.msg for record in caplog.records if record.name == "peewee"]
    assert logged
    steps = []
    with closing(sqlite3.connect(path)) as connection:
        for sql, parameters in logged:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters or ())
            steps += [detail for *_, detail in plan]
    return steps


# -- transactions, threads, disks ---------------------------------------------


def test_what_stands_in_one_transaction_succeeds_or_fails_as_one(
    store: Store, path: Path, film: EntryRecord
) -> None:
    before = contents(path)

    def fail_at_the_end() -> None:
        with store.transaction():
            changed = store.update(film, pinned=True)
            save(store, changed, (0, 10), bytes_present=10)
            with store.transaction():
                store.enqueue(demand(film))
            raise RuntimeError("at the end")

    with pytest.raises(RuntimeError, match="at the end"):
        fail_at_the_end()
    assert contents(path) == before
    store.enqueue(demand(film))
    assert store.queue() == [demand(film)]


def test_a_lock_that_is_let_go_is_waited_for(path: Path, film: EntryRecord) -> None:
    patient = Store.open(path, busy_timeout_s=WAIT_S)
    with locked(path):
        waiting = in_thread(patient.update, film, pinned=True)
    assert waiting.result(WAIT_S).pinned
    patient.close()


def test_eight_threads_share_the_store_and_none_undoes_another_s_work(store: Store) -> None:
    def fail(own: EntryRecord) -> None:
        with store.transaction():
            save(store, own, (100, 200), bytes_present=999)
            raise RuntimeError("taken back")

    def work(number: int) -> EntryRecord:
        own = add_entry(store, f"own {number}")
        for step in range(10):
            own = save(store, own, (0, step + 1), bytes_present=step + 1)
            with pytest.raises(RuntimeError, match="taken back"):
                fail(own)
            store.enqueue(demand(own))
            assert store.chunks(own.id) == [(0, step + 1)]
        return add_entry(store, "shared")

    shared = {done.result(WAIT_S) for done in [in_thread(work, n) for n in range(8)]}
    assert len(shared) == 1
    assert len(store.entries()) == 9
    assert store.total_bytes() == 80
    assert len(store.queue()) == 8


def test_a_full_disk_is_said_in_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "cache.sqlite3"
        store = open_store(path)
        film = save(store, add_entry(store), (0, 10), bytes_present=10)
        filler = fill(disk)
        with pytest.raises(StorageError, match="disk is full") as caught:
            store.update(film, response_fields="x" * 100_000)
        assert_one_line(caught.value)
        assert store.entry(film.id) == film
        assert store.chunks(film.id) == [(0, 10)]
        filler.unlink()
        assert len(store.update(film, response_fields="x" * 100_000).response_fields) == 100_000
        store.close()


def test_a_database_that_may_not_be_written_is_an_error_of_storage(
    store: Store, path: Path, film: EntryRecord
) -> None:
    database = SqliteDatabase(
        str(path), pragmas={"query_only": 1}, thread_safe=False, lock_type="IMMEDIATE"
    )
    with pytest.raises(StorageError, match="read") as caught:
        Store(database)
    assert_one_line(caught.value)
    database.close()
