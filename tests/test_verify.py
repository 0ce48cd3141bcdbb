"""Bytes and databases that rot, and how that is found out and mended."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from cachefsm import ByteRange, Cache, DownloadState, Entry
from tests.support.caches import WAIT_S, OpenCache, eventually, fetch, recorded, rows
from tests.support.origin import Origin, Resource, content

MIB = 1 << 20
SIZE = 8 * MIB + 1000  # the last block is a short one
ROTTEN = (3 * MIB + 5, 8 * MIB + 7)
DAMAGED = (ByteRange(3 * MIB, 4 * MIB), ByteRange(8 * MIB, SIZE))


@pytest.fixture
def url(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


def _complete(cache: Cache, url: str) -> Entry:
    film = cache.entry(url)
    assert film.wait_complete(WAIT_S)
    return film


def _flip(file: Path, offsets: Iterable[int] = ROTTEN) -> None:
    """Change the bytes at *offsets*; size and the rest stay."""
    with file.open("r+b") as opened:
        for offset in offsets:
            opened.seek(offset)
            (byte,) = opened.read(1)
            opened.seek(offset)
            opened.write(bytes([byte ^ 0xFF]))


def _asked_after_the_first(origin: Origin) -> list[str | None]:
    return sorted(request.range or "" for request in origin.requests[1:])


def test_sound_content_is_found_sound(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    looks: list[tuple[int, int]] = []
    found = film.verify(lambda done, total: looks.append((done, total)))
    assert (found.checked_bytes, found.unchecked_bytes, found.damaged) == (SIZE, 0, ())
    assert looks[-1] == (SIZE, SIZE)
    assert looks == sorted(looks)
    assert film.state is DownloadState.COMPLETE


def test_flipped_bytes_are_found_and_the_damaged_blocks_alone_are_fetched_again(
    cache: Cache, origin: Origin, url: str
) -> None:
    film = _complete(cache, url)
    _flip(recorded(cache.directory).file)
    found = film.verify()
    assert found.damaged == DAMAGED
    assert found.damaged_bytes == MIB + 1000
    assert film.ranges == [ByteRange(0, 3 * MIB), ByteRange(4 * MIB, 8 * MIB)]
    assert film.state is not DownloadState.COMPLETE
    film.start()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    assert _asked_after_the_first(origin) == sorted(
        f"bytes={start}-{stop - 1}" for start, stop in DAMAGED
    )
    assert film.verify().damaged == ()


def test_checksums_survive_a_restart(open_cache: OpenCache, url: str) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    _flip(recorded(cache.directory).file)
    assert open_cache().entry(url).verify().damaged == DAMAGED


def test_what_is_no_whole_block_is_said_to_be_unchecked(open_cache: OpenCache, url: str) -> None:
    cache = open_cache(fill="requested")
    fetch(cache, cache.entry(url), 1000, 2 * MIB + 1000)
    cache.close()  # which records, and computes checksums
    found = open_cache(fill="requested").entry(url).verify()
    assert (found.checked_bytes, found.unchecked_bytes) == (MIB, MIB)


def test_a_truncated_file_is_damage_too(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    with recorded(cache.directory).file.open("r+b") as opened:
        opened.truncate(5 * MIB)
    assert film.verify().damaged_bytes == SIZE - 5 * MIB
    assert film.ranges == [ByteRange(0, 5 * MIB)]


def test_a_reader_that_has_its_reads_verified_never_gets_flipped_bytes(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache(verify_reads="always")
    film = _complete(cache, url)
    _flip(recorded(cache.directory).file)
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert _asked_after_the_first(origin) == sorted(
        f"bytes={start}-{stop - 1}" for start, stop in DAMAGED
    )


def test_damage_that_is_found_bit_by_bit_is_dropped_bit_by_bit(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    file = recorded(cache.directory).file
    for offset, block in zip(ROTTEN, DAMAGED, strict=True):
        _flip(file, [offset])
        assert film.verify().damaged == (block,)
    file.write_bytes(b"")
    film.verify()
    assert film.ranges == []
    assert fetch(cache, film) == content(0, SIZE)


def test_what_is_left_of_a_damaged_file_can_be_evicted(open_cache: OpenCache, url: str) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    _flip(recorded(cache.directory).file)
    cache = open_cache()
    film = cache.entry(url)
    film.verify()
    assert cache.collect(max_size=0)["bytes_stored"] == 0
    assert film.ranges == []


def test_an_unjoinable_file_is_fetched_anew_as_a_whole(
    cache: Cache, origin: Origin, url: str
) -> None:
    origin.put("/film", Resource(SIZE, accepts_ranges=False))
    film = _complete(cache, url)
    _flip(recorded(cache.directory).file)
    assert film.verify().damaged == DAMAGED
    assert film.ranges == []
    assert fetch(cache, film) == content(0, SIZE)


def test_rot_is_found_in_the_background(open_cache: OpenCache, url: str) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    _flip(recorded(cache.directory).file)
    film = open_cache(scrub_rate="1G").entry(url)
    eventually(lambda: film.ranges == [ByteRange(0, 3 * MIB), ByteRange(4 * MIB, 8 * MIB)])


def test_files_that_belong_to_no_entry_are_deleted_at_the_start(
    open_cache: OpenCache, url: str
) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    file = recorded(cache.directory).file
    orphan = file.with_name("0" * 32 + "-00000000")
    stranger = file.with_name("README")
    for path in (orphan, stranger):
        path.write_bytes(b"x")
    cache = open_cache()
    cache.remove_orphans()  # or the start has been quicker
    assert not orphan.exists()
    assert stranger.exists()  # not a name of ours
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)


# -- a damaged database ------------------------------------------------------------


def _spoil_index(database: Path) -> None:
    """Overwrite the page where an index begins: the tables stay readable."""
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA journal_mode = delete")  # everything in the one file
        (page,) = opened.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'cache_entries'"
            " AND sql IS NOT NULL"
        ).fetchone()
        (page_bytes,) = opened.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xa5" * page_bytes)


def test_what_a_damaged_database_still_proves_is_taken_over(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    file = recorded(cache.directory).file
    _spoil_index(cache.directory / "cache.sqlite3")
    (cache.directory / "lock").write_bytes(b'{"pid": 1}')  # as a killed process leaves it
    _flip(file, [5 * MIB])
    cache = open_cache()
    assert (cache.directory / "cache.sqlite3.damaged-1").exists()
    film = cache.entry(url)
    assert fetch(cache, film) == content(0, SIZE)
    # Only the block that no longer has its checksum was worth a question.
    assert _asked_after_the_first(origin) == [f"bytes={5 * MIB}-{6 * MIB - 1}"]
    assert film.wait_complete(WAIT_S)
    assert rows(cache.directory, "PRAGMA integrity_check") == [("ok",)]
