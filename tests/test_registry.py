"""One live entry for everybody, leases, removal, and who goes when space is wanted.

Real entries, rows and files; nothing is fetched.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cachefsm.entry import LiveEntry
from cachefsm.errors import CacheClosed, EntryNotFound, StorageError
from cachefsm.models import EntryRecord, Store
from cachefsm.ranges import ByteRange
from cachefsm.registry import IDLE_ENTRIES, Registry
from cachefsm.scheduler import Open, Priority
from cachefsm.storage import ContentFile
from cachefsm.surroundings import Surroundings
from cachefsm.unstored import UnstoredEntry
from cachefsm.urls import parse_url
from tests.support.caches import WAIT_S
from tests.support.databases import execute, locked, open_store
from tests.support.disks import open_files
from tests.support.origin import content
from tests.support.threads import in_thread

URL = parse_url("http://origin.test/film")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite3"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Where the content files are."""
    return tmp_path / "content"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = open_store(path)
    yield store
    store.close()


@pytest.fixture
def registry(store: Store, files: Path) -> Registry:
    return registry_of(store, files)


def registry_of(
    store: Store, files: Path, make_file: Callable[[Path], ContentFile] = ContentFile
) -> Registry:
    around = Surroundings(store=store, directory=files, make_file=make_file)
    return Registry(
        store,
        lambda record: LiveEntry(record, around),
        partial(UnstoredEntry, surroundings=around),
        lambda: 1000.0,
    )


Stored = Callable[..., EntryRecord]


@pytest.fixture
def stored(store: Store, files: Path, path: Path) -> Stored:
    """Makes an entry that holds bytes, as an earlier process left it."""

    def make(
        name: str, size: int = 10, *, used_at: float = 1.0, pinned: bool = False
    ) -> EntryRecord:
        record = store.create(
            key=name, url=f"http://origin.test/{name}", content_file=f"ab/{name}", now_s=1.0
        )
        file = ContentFile(files / record.content_file)
        file.write_at(0, content(0, size))
        file.release()
        record = store.update(record, last_accessed_at=used_at, pinned=pinned)
        record = store.save_chunks(record, [ByteRange(0, size)], bytes_present=size, now_s=1.0)
        execute(path, f"UPDATE cache_entries SET state = 'paused' WHERE id = {record.id}")
        return replace(record, state="paused")

    return make


def on_disk(files: Path) -> set[str]:
    return {file.name for file in files.glob("*/*")}


# -- one entry for everybody --------------------------------------------------


def test_a_key_is_registered_once(registry: Registry, store: Store) -> None:
    def register(number: int) -> int:
        return registry.find_or_create(URL, "film")

    ids = {done.result(WAIT_S) for done in [in_thread(register, n) for n in range(8)]}
    assert len(ids) == 1
    (record,) = store.entries()
    assert (record.key, record.url, record.created_at) == ("film", str(URL), 1000.0)


def test_one_url_under_two_keys_is_two_entries_with_a_file_each(
    registry: Registry, store: Store
) -> None:
    ids = {registry.find_or_create(URL, key) for key in ("of alice", "of bob")}
    assert len(ids) == 2
    assert len({record.content_file for record in store.entries()}) == 2


def test_everybody_who_leases_an_entry_gets_the_same_one(registry: Registry) -> None:
    entry_id = registry.find_or_create(URL, "film")
    together = threading.Barrier(8)

    def lease() -> LiveEntry:
        together.wait(WAIT_S)
        return registry.acquire(entry_id)

    leased = [done.result(WAIT_S) for done in [in_thread(lease) for _ in range(8)]]
    assert len(set(leased)) == 1
    assert registry.live() == [leased[0]]


def test_an_entry_that_is_not_there_is_not_found(registry: Registry) -> None:
    with pytest.raises(EntryNotFound, match="99"):
        registry.acquire(99)
    assert registry.live() == []


def test_a_lease_ends_with_its_block_even_if_that_fails(registry: Registry, stored: Stored) -> None:
    film = stored("film")

    def fail_while_leasing() -> None:
        with registry.lease(film.id):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_while_leasing()
    assert registry.evict(0) == 10  # nobody has it any more


def test_an_entry_brings_its_stored_bytes_along(registry: Registry, stored: Stored) -> None:
    film = stored("film", 100)
    with registry.lease(film.id) as entry:
        assert entry.ranges() == [(0, 100)]
        assert entry.content.file.read_at(10, 50) == content(10, 60)


# -- idle entries -------------------------------------------------------------


def test_an_idle_entry_stays_for_the_next_one_who_asks(registry: Registry, stored: Stored) -> None:
    film = stored("film")
    with registry.lease(film.id) as first:
        pass
    with registry.lease(film.id) as second:
        assert second is first


def test_beyond_a_number_the_longest_idle_are_let_go_with_their_files(
    registry: Registry, store: Store, files: Path
) -> None:
    ids = [registry.find_or_create(URL, f"film-{number}") for number in range(IDLE_ENTRIES + 3)]
    for entry_id in ids:
        with registry.lease(entry_id) as entry:
            entry.content.file.write_at(0, b"x")
    assert [entry.id for entry in registry.live()] == ids[3:]
    assert len(open_files(files)) == IDLE_ENTRIES
    with registry.lease(ids[0]) as again:
        assert again.id == ids[0]


def test_a_busy_entry_is_never_let_go(registry: Registry) -> None:
    busy = registry.find_or_create(URL, "busy")
    with registry.lease(busy) as entry:
        entry.start("person", Priority.PERSON)
    look_at_many(registry)
    assert busy in [live.id for live in registry.live()]
    with registry.lease(busy) as again:
        assert again is entry


def test_an_entry_is_not_let_go_while_a_download_that_was_ended_still_writes(
    registry: Registry,
) -> None:
    """It would be recorded beside what its successor in memory knows of the same file."""
    film = registry.find_or_create(URL, "film")
    with registry.lease(film) as entry:
        claim = entry.grant(Open(film, 0, 1000, Priority.PERSON))
        assert claim is not None
        entry.pause()
    look_at_many(registry)
    with registry.lease(film) as again:
        assert again is entry
    entry.ended(claim, None)
    entry.flush()
    look_at_many(registry)
    assert entry not in registry.live()


def look_at_many(registry: Registry) -> None:
    """Bring so many entries to memory that none stays there for being idle."""
    for number in range(IDLE_ENTRIES + 3):
        with registry.lease(registry.find_or_create(URL, f"film-{number}")):
            pass


def test_a_leased_entry_is_never_let_go(registry: Registry) -> None:
    leased = registry.acquire(registry.find_or_create(URL, "leased"))
    registry.release(leased)
    assert registry.acquire(leased.id) is leased  # no longer idle
    look_at_many(registry)
    assert leased in registry.live()
    assert registry.acquire(leased.id) is leased


def test_what_gets_no_row_is_there_for_who_found_it_however_many_are_busy(
    registry: Registry, path: Path
) -> None:
    """On a full disk nobody's reading can be recorded, so that all of them stay."""
    for number in range(IDLE_ENTRIES + 3):
        with registry.lease(registry.find_or_create(URL, f"film-{number}")) as entry:
            entry.detach(entry.attach())
    with locked(path):
        unstored = registry.find_or_create(URL, "new")
        registry.drop_idle()  # as is done all the time
        with registry.lease(unstored) as entry:
            assert entry.id == unstored


# -- removal ------------------------------------------------------------------


def test_a_removed_entry_leaves_no_row_file_or_descriptor(
    registry: Registry, store: Store, stored: Stored, files: Path
) -> None:
    film, song = stored("film"), stored("song")
    with registry.lease(film.id) as entry:
        entry.content.file.read_at(0, 10)
    registry.remove(film.id)
    assert [record.id for record in store.entries()] == [song.id]
    assert on_disk(files) == {"song"}
    assert open_files(files) == []
    assert registry.live() == []
    with pytest.raises(EntryNotFound):
        registry.acquire(film.id)


def test_removing_what_is_not_there_is_said(registry: Registry, stored: Stored) -> None:
    film = stored("film")
    registry.remove(film.id)
    with pytest.raises(EntryNotFound):
        registry.remove(film.id)


def test_who_still_holds_a_removed_entry_keeps_its_bytes_and_is_told(
    registry: Registry, stored: Stored, files: Path
) -> None:
    film = stored("film")
    with registry.lease(film.id) as entry:
        entry.content.file.read_at(0, 1)
        registry.remove(film.id)
        assert on_disk(files) == set()
        assert entry.content.file.read_at(0, 10) == content(0, 10)
        with pytest.raises(EntryNotFound, match="removed"):
            entry.wait(lambda: False, timeout_s=WAIT_S)
    assert open_files(files) == []


def test_who_waits_for_an_entry_is_told_that_it_was_removed(
    registry: Registry, stored: Stored
) -> None:
    film = stored("film")
    asked = threading.Event()

    def never() -> bool:
        asked.set()
        return False

    with registry.lease(film.id) as entry:
        waiting = in_thread(entry.wait, never, timeout_s=WAIT_S)
        assert asked.wait(WAIT_S)
        registry.remove(film.id)
        with pytest.raises(EntryNotFound, match="removed"):
            waiting.result(WAIT_S)


def test_the_successor_of_a_removed_entry_has_nothing_to_do_with_it(
    registry: Registry, store: Store, stored: Stored
) -> None:
    film = stored("film")
    with registry.lease(film.id) as old:
        registry.remove(film.id)
        new_id = registry.find_or_create(URL, "film")
        assert new_id != film.id
        with registry.lease(new_id) as new:
            assert new is not old
            assert new.ranges() == []
            assert new.content.file.path != old.content.file.path
    assert store.chunks(new_id) == []


def test_an_entry_in_memory_is_found_without_a_query(
    registry: Registry, store: Store, stored: Stored
) -> None:
    film = stored("film")
    stored("song")
    with registry.lease(film.id):
        store.close()
        assert registry.find("film") == film
        assert registry.find_or_create(URL, "film") == film.id
        with pytest.raises(StorageError):
            registry.find("song")


def test_what_has_left_memory_is_found_all_the_same(registry: Registry) -> None:
    ids = [registry.find_or_create(URL, f"film-{number}") for number in range(IDLE_ENTRIES + 3)]
    for entry_id in ids:
        with registry.lease(entry_id):
            pass
    assert ids[0] not in [entry.id for entry in registry.live()]
    assert [registry.find_or_create(URL, f"film-{number}") for number in range(len(ids))] == ids


def test_a_removed_entry_is_not_found(registry: Registry, stored: Stored) -> None:
    film = stored("film")
    with registry.lease(film.id):
        assert registry.find("film") == film
        registry.remove(film.id)
        assert registry.find("film") is None


def test_a_removal_that_the_database_refuses_leaves_the_entry_as_it_was(
    registry: Registry, stored: Stored, path: Path, files: Path
) -> None:
    film = stored("film")
    with registry.lease(film.id) as entry, locked(path):
        with pytest.raises(StorageError, match="locked"):
            registry.remove(film.id)
    assert on_disk(files) == {"film"}
    with registry.lease(film.id) as again:
        assert again is entry
        assert again.wait(lambda: True, timeout_s=0)
        again.update(pinned=True)
    registry.remove(film.id)
    assert on_disk(files) == set()


# -- eviction -----------------------------------------------------------------


def test_the_least_recently_used_go_until_the_rest_fits(
    registry: Registry, store: Store, stored: Stored, files: Path
) -> None:
    for name, used_at in (("new", 30.0), ("oldest", 10.0), ("old", 20.0)):
        stored(name, 10, used_at=used_at)
    assert registry.evict(30) == 0
    assert registry.evict(15) == 20
    assert store.total_bytes() == 10
    assert on_disk(files) == {"new"}
    states = {record.key: record.state for record in store.entries()}
    assert states == {"new": "paused", "oldest": "not_started", "old": "not_started"}


def test_no_more_is_evicted_than_has_to_be(registry: Registry, stored: Stored) -> None:
    for number in range(5):
        stored(f"film-{number}", 10, used_at=number)
    assert registry.evict(45) == 10
    assert registry.evict(45) == 0


def test_no_more_are_evicted_at_once_than_asked_for(registry: Registry, stored: Stored) -> None:
    for number in range(5):
        stored(f"film-{number}", 10, used_at=number)
    assert registry.evict(0, most=2) == 20
    assert registry.evict(0, most=4) == 30


def test_an_evicted_entry_starts_afresh_in_a_new_file(
    registry: Registry, store: Store, stored: Stored
) -> None:
    film = stored("film")
    registry.evict(0)
    evicted = store.entry(film.id)
    assert evicted.generation == film.generation + 1
    assert evicted.content_file != film.content_file
    assert (evicted.bytes_present, store.chunks(film.id)) == (0, [])


def test_what_is_pinned_leased_or_busy_stays(
    registry: Registry, stored: Stored, files: Path
) -> None:
    stored("pinned", pinned=True)
    leased, busy, read = stored("leased"), stored("busy"), stored("read")
    stored("idle")
    with registry.lease(busy.id) as entry:
        entry.start("person", Priority.PERSON)
    with registry.lease(read.id) as reading:
        attached = reading.attach()
    with registry.lease(leased.id):
        assert registry.evict(0) == 10
    assert on_disk(files) == {"pinned", "leased", "busy", "read"}
    reading.detach(attached)
    reading.flush()  # that it was read is still to be recorded
    assert registry.evict(0) == 20
    assert on_disk(files) == {"pinned", "busy"}


def test_what_cannot_be_evicted_is_not_tried_again_and_again(
    registry: Registry, stored: Stored
) -> None:
    stored("far too large", 100, pinned=True)
    assert registry.evict(10) == 0


def test_who_is_removed_while_space_is_made_is_passed_over(
    store: Store, stored: Stored, files: Path, path: Path
) -> None:
    class Meddled(Store):
        """Somebody removes the first candidate as soon as it is one."""

        def least_recently_used(self) -> Iterator[tuple[int, int]]:
            candidates = list(super().least_recently_used())
            self.delete(candidates[0][0])
            return iter(candidates)

    for number in range(3):
        stored(f"film-{number}", 10, used_at=number)
    meddled = Meddled.open(path)
    assert registry_of(meddled, files).evict(15) == 20
    assert store.total_bytes() == 0
    meddled.close()


# -- the end ------------------------------------------------------------------


def test_a_closed_registry_leases_nothing(registry: Registry, stored: Stored) -> None:
    film = stored("film")
    with registry.lease(film.id) as entry:
        assert registry.close() == [entry]
        for refused in (
            lambda: registry.acquire(film.id),
            lambda: registry.find_or_create(URL, "film"),
        ):
            with pytest.raises(CacheClosed):
                refused()


def test_every_refusal_is_an_error_of_its_own(registry: Registry, stored: Stored) -> None:
    # One that is raised again and again would keep the frames of all who caught it.
    film = stored("film")
    registry.close()
    refusals = []
    for _ in range(3):
        with pytest.raises(CacheClosed) as caught:
            registry.acquire(film.id)
        refusals.append(caught.value)
    assert len({id(refusal) for refusal in refusals}) == 3


def test_who_waits_is_told_that_the_cache_closes(registry: Registry, stored: Stored) -> None:
    film = stored("film")
    asked = threading.Event()

    def never() -> bool:
        asked.set()
        return False

    with registry.lease(film.id) as entry:
        waiting = in_thread(entry.wait, never, timeout_s=WAIT_S)
        assert asked.wait(WAIT_S)
        registry.close()
        with pytest.raises(CacheClosed):
            waiting.result(WAIT_S)


# -- all at once --------------------------------------------------------------


def test_eight_threads_lease_evict_and_remove_without_losing_count(
    registry: Registry, store: Store, stored: Stored, files: Path
) -> None:
    for number in range(6):
        stored(f"film-{number}", 10, used_at=number)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(40):
            key = f"film-{dice.randrange(6)}"
            entry_id = registry.find_or_create(URL, key)
            try:
                with registry.lease(entry_id) as entry:
                    assert entry.id == entry_id
                    entry.content.file.write_at(0, b"x")
                    if dice.random() < 0.2:
                        registry.remove(entry_id)
            except EntryNotFound:
                pass  # another thread was faster
            if dice.random() < 0.2:
                registry.evict(20)

    for done in [in_thread(work, seed) for seed in range(8)]:
        done.result(WAIT_S)
    registry.evict(0)
    assert store.total_bytes() == 0
    live = {entry.id for entry in registry.live()}
    assert live <= {record.id for record in store.entries()}
    for entry_id in live:
        registry.remove(entry_id)
    assert open_files(files) == []


def test_nobody_waits_for_an_evicted_file_to_be_deleted(
    store: Store, files: Path, stored: Stored
) -> None:
    deleting, deleted = threading.Event(), threading.Event()

    class LargeFile(ContentFile):
        def discard(self) -> None:
            deleting.set()
            assert deleted.wait(WAIT_S)
            super().discard()

    film = stored("film")
    registry = registry_of(store, files, LargeFile)
    evicting = in_thread(registry.evict, 0)
    assert deleting.wait(WAIT_S)
    assert in_thread(registry.find_or_create, URL, "other").result(WAIT_S / 2) != film.id
    deleted.set()
    assert evicting.result(WAIT_S) == 10
    assert not (files / film.content_file).exists()
