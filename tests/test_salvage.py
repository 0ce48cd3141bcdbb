"""Databases that are damaged, lost or another program's, and what is made of them."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState
from cachefsm.errors import CacheBusy, SchemaTooNew, StorageError
from cachefsm.integrity import BLOCK_BYTES
from cachefsm.models import Store
from cachefsm.sanity import reset_nonsense
from cachefsm.storage import content_name
from tests.support.caches import WAIT_S, OpenCache, eventually, fetch, recorded, rows
from tests.support.child import Child
from tests.support.damage import (
    flip,
    lose_log,
    overwrite_page,
    page_count,
    replace,
    root_page,
    truncate,
)
from tests.support.databases import execute
from tests.support.disks import file_size_limit
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource, content, pattern

MIB = BLOCK_BYTES
SIZE = 5 * MIB + 1000
SMALL = 1000
MANY = 60


@pytest.fixture
def url(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "cache.sqlite3"


def _stored(open_cache: OpenCache, urls: Iterable[str]) -> None:
    """Download *urls*, and end well."""
    cache = open_cache(grace=0)
    for url in urls:
        assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()


def _small_files(origin: Origin, count: int) -> list[str]:
    """Serve *count* files, each of other bytes."""
    for number in range(count):
        origin.put(f"/{number}", Resource(SMALL, version=number))
    return [origin.url(f"/{number}") for number in range(count)]


def _leave_lock(database: Path) -> None:
    """Leave what a process leaves that was killed."""
    (database.parent / "lock").write_bytes(b'{"pid": 1}')


def _kept_aside(database: Path) -> list[str]:
    return sorted(path.name for path in database.parent.glob("*.damaged-*"))


def _damage_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- damaged as a whole ------------------------------------------------------------


def _garbage(database: Path) -> None:
    database.write_bytes(b"garbage" * 1000)


def _header_and_garbage(database: Path) -> None:
    database.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


def _half(database: Path) -> None:
    truncate(database, database.stat().st_size // 2)


def _pages_behind_the_header(database: Path) -> None:
    for page in range(2, page_count(database) + 1):
        overwrite_page(database, page)


def _schema(database: Path) -> None:
    overwrite_page(database, 1, keep_bytes=100)


def _schema_that_is_no_text(database: Path) -> None:
    """SQLite quotes a name of it in what it says, which then is no text either."""
    execute(
        database,
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT), sql = 'CREATE TABLE (' "
        "WHERE name = 'cache_entries'",
    )


@pytest.mark.fault(
    "database",
    "it is no database, or a part of one",
    client="notices nothing",
    kept="the old one, under another name; entries whose blocks have their checksums",
    next_reader="what was proven; the rest is fetched again",
)
@pytest.mark.parametrize(
    "harm",
    [
        _garbage,
        _header_and_garbage,
        _half,
        _pages_behind_the_header,
        _schema,
        _schema_that_is_no_text,
    ],
    ids=lambda harm: harm.__name__.strip("_"),
)
def test_a_damaged_database_is_kept_aside_and_begun_anew_with_one_line(
    open_cache: OpenCache,
    origin: Origin,
    url: str,
    database: Path,
    harm: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    _stored(open_cache, [url])
    harm(database)
    damaged = database.read_bytes()
    caplog.clear()
    cache = open_cache()
    (line,) = _damage_lines(caplog)
    assert "damaged" in line
    assert "cache.sqlite3.damaged-1" in line
    assert _kept_aside(database)[0] == "cache.sqlite3.damaged-1"
    assert database.with_name("cache.sqlite3.damaged-1").read_bytes()[:100] == damaged[:100]
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    assert cache.entry(url).wait_complete(WAIT_S)
    assert rows(cache.directory, "PRAGMA integrity_check") == [("ok",)]


def test_every_damaged_database_is_kept_under_a_name_of_its_own(
    open_cache: OpenCache, url: str, database: Path
) -> None:
    for _ in range(3):
        _stored(open_cache, [url])
        _garbage(database)
    open_cache()
    names = _kept_aside(database)
    assert names == [f"cache.sqlite3.damaged-{number}" for number in (1, 2, 3)]


@pytest.mark.fault(
    "database",
    "it is gone",
    client="notices nothing",
    kept="nothing: content without rows is deleted",
    next_reader="the right bytes, fetched again",
)
def test_a_database_that_is_gone_is_begun_anew(
    open_cache: OpenCache, url: str, database: Path
) -> None:
    _stored(open_cache, [url])
    file = recorded(database.parent).file
    database.unlink()
    cache = open_cache()
    assert cache.entries() == []
    eventually(lambda: not file.exists())  # no row names it any more
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)


@pytest.mark.fault(
    "database",
    "a newer cachefsm wrote it",
    client="nothing: opening is refused in one line",
    kept="everything",
    next_reader="a newer cachefsm finds it as it was",
)
def test_a_database_of_the_future_is_refused_and_left_alone(
    open_cache: OpenCache, url: str, database: Path
) -> None:
    _stored(open_cache, [url])
    file = recorded(database.parent).file
    execute(database, "UPDATE cache_schema SET version = version + 1")
    before = database.read_bytes()
    with pytest.raises(SchemaTooNew, match="newer cachefsm"):
        open_cache()
    assert _kept_aside(database) == []
    assert database.read_bytes() == before
    assert file.stat().st_size == SIZE


# -- what is proven is taken over --------------------------------------------------


@pytest.mark.fault(
    "database",
    "pages of it hold something else",
    client="notices nothing",
    kept="every entry whose row can be read, with exactly the blocks that have their checksums",
    next_reader="what was proven; the rest is fetched again",
)
@pytest.mark.parametrize("left", [False, True], ids=["ended well", "was killed"])
def test_whatever_page_is_damaged_every_byte_that_is_served_is_right(
    open_cache: OpenCache, origin: Origin, database: Path, left: bool
) -> None:
    urls = _small_files(origin, 3)
    _stored(open_cache, urls)
    whole = database.parent
    unharmed = 0
    for page in range(1, page_count(database) + 1):
        copy = whole.with_name(f"copy-{page}")
        shutil.copytree(whole, copy)
        overwrite_page(copy / database.name, page)
        if left:
            _leave_lock(copy / database.name)
        before = len(origin.requests)
        cache = open_cache(copy.name, grace=0)
        for number, url in enumerate(urls):
            assert fetch(cache, cache.entry(url)) == content(number, number + SMALL)
        cache.close()
        unharmed += len(origin.requests) == before
    # Only the pages that hold the schema (two), the entries and the chunks cost anything.
    assert unharmed == page_count(database) - 4


@pytest.mark.fault("database", "pages of it hold something else")
def test_random_flipped_bytes_in_the_database_never_have_a_wrong_byte_served(
    open_cache: OpenCache, origin: Origin, database: Path
) -> None:
    urls = _small_files(origin, 3)
    _stored(open_cache, urls)
    dice = random.Random(39)
    used = [offset for offset, byte in enumerate(database.read_bytes()) if byte]
    for number in range(40):
        copy = database.parent.with_name(f"copy-{number}")
        shutil.copytree(database.parent, copy)
        flip(copy / database.name, set(dice.choices(used, k=dice.choice([1, 1, 3, 20]))))
        _leave_lock(copy / database.name)
        cache = open_cache(copy.name, grace=0)
        for version, url in enumerate(urls):
            assert fetch(cache, cache.entry(url)) == content(version, version + SMALL)
        cache.close()


@pytest.mark.fault("database", "pages of it hold something else")
def test_only_the_blocks_that_are_proven_are_taken_over(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    _stored(open_cache, [url])
    flip(recorded(database.parent).file, [2 * MIB])
    overwrite_page(database, root_page(database, "index", "cache_entries"))
    cache = open_cache(start=False)
    film = cache.entry(url)
    assert (film.state, film.reason) == (DownloadState.PAUSED, "recovered")
    assert film.ranges == [(0, 2 * MIB), (3 * MIB, SIZE)]
    assert film.total_bytes == SIZE
    cache.close()
    cache = open_cache()
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    assert [request.range for request in origin.requests[1:]] == [f"bytes={2 * MIB}-{3 * MIB - 1}"]


@pytest.mark.fault("database", "pages of it hold something else")
def test_a_whole_proven_file_is_complete_and_costs_the_origin_nothing(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    cache = open_cache()
    film = cache.entry(url)
    assert film.wait_complete(WAIT_S)
    film.pin()
    before = film.describe()
    cache.close()
    overwrite_page(database, root_page(database, "index", "cache_entries"))
    with origin.outage():
        cache = open_cache()
        film = cache.entry(url)
        assert film.state is DownloadState.COMPLETE
        assert fetch(cache, film) == content(0, SIZE)
        found = film.describe()
    for fact in ("pinned", "content_type", "created_at", "total_size", "url"):
        assert found[fact] == before[fact]
    assert film.verify().unchecked_bytes == 0


@pytest.mark.fault(
    "database",
    "taking over from a damaged one is broken off",
    client="notices nothing",
    kept="the damaged one, where it was, and all content",
    next_reader="what was proven: the next start begins the taking over anew",
)
def test_a_salvage_that_is_broken_off_loses_nothing(
    open_cache: OpenCache, origin: Origin, database: Path
) -> None:
    urls = _small_files(origin, MANY)
    _stored(open_cache, urls)
    overwrite_page(database, root_page(database, "index", "cache_entries"))
    for limit_bytes in (256 << 10, 128 << 10):
        with file_size_limit(limit_bytes), pytest.raises(StorageError):
            open_cache()
    with origin.outage():
        cache = open_cache()
        assert [entry.state for entry in cache.entries()] == [DownloadState.COMPLETE] * MANY
    assert list(database.parent.glob("*.rebuilt*")) == []


@pytest.mark.parametrize("harm", [replace, Path.unlink], ids=["replaced", "gone"])
def test_an_entry_whose_file_proves_nothing_is_left_out(
    open_cache: OpenCache,
    origin: Origin,
    url: str,
    database: Path,
    harm: Callable[[Path], None],
) -> None:
    other = _small_files(origin, 1)[0]
    _stored(open_cache, [url, other])
    (film,) = rows(database.parent, "SELECT content_file FROM cache_entries WHERE url = ?", url)
    harm(database.parent / "content" / film[0])
    overwrite_page(database, root_page(database, "index", "cache_entries"))
    cache = open_cache()
    assert [entry.url for entry in cache.entries()] == [other]
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)


def test_a_bytes_rows_without_checksums_prove_nothing(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    _stored(open_cache, [url])
    execute(database, "UPDATE cache_chunks SET checksum = NULL")
    overwrite_page(database, root_page(database, "index", "cache_entries"))
    cache = open_cache()
    assert cache.entries() == []
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    assert len(origin.requests) == 2


@pytest.mark.fault("database", "pages of it hold something else")
def test_what_is_said_of_an_index_costs_no_entry(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    """Damage in a part of the schema that reading the rows does not need."""
    _stored(open_cache, [url])
    said = b"CREATE INDEX"
    place = database.read_bytes().index(said)
    flip(database, [place + len(said) - 1])
    cache = open_cache()
    assert cache.entry(url).state is DownloadState.COMPLETE
    assert _kept_aside(database)
    assert len(origin.requests) == 1


@pytest.mark.fault("database", "pages of it hold something else")
@pytest.mark.parametrize("version", ["'three'", "x'03'"])
def test_a_version_that_is_no_number_is_damage(
    open_cache: OpenCache, origin: Origin, url: str, database: Path, version: str
) -> None:
    _stored(open_cache, [url])
    execute(database, f"UPDATE cache_schema SET version = {version}")
    cache = open_cache()
    assert cache.entry(url).state is DownloadState.COMPLETE
    assert _kept_aside(database)


@pytest.mark.fault("database", "pages of it hold something else")
def test_what_lies_behind_a_damaged_page_is_taken_over_too(
    open_cache: OpenCache, origin: Origin, database: Path
) -> None:
    urls = _small_files(origin, MANY)
    _stored(open_cache, urls)
    with closing(sqlite3.connect(database)) as opened:
        query = (
            "SELECT pageno, ncell FROM dbstat WHERE name = 'cache_entries' AND pagetype = 'leaf'"
        )
        try:
            leaves = opened.execute(query).fetchall()
        except sqlite3.OperationalError:
            pytest.skip("this SQLite cannot say where its rows are (no dbstat)")
    assert len(leaves) > 3
    number, lost = leaves[1]
    overwrite_page(database, number)
    asked = len(origin.requests)
    cache = open_cache(start=False)
    assert len(cache.entries()) == MANY - lost
    assert len(origin.requests) == asked
    for entry in cache.entries():
        assert entry.state is DownloadState.COMPLETE


@pytest.mark.fault("database", "rows of one entry make no sense")
def test_a_damaged_row_names_no_file_outside_the_cache(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    _stored(open_cache, [url])
    precious = database.parent.parent / "precious"
    shutil.copy(recorded(database.parent).file, precious)  # so that every checksum is right
    execute(database, "UPDATE cache_entries SET content_file = '../../precious'")
    overwrite_page(database, root_page(database, "index", "cache_entries"))
    cache = open_cache()
    film = cache.entry(url)
    assert fetch(cache, film) == content(0, SIZE)
    film.remove()
    assert precious.read_bytes() == content(0, SIZE)


def test_a_directory_of_any_name_can_be_salvaged(
    open_cache: OpenCache, origin: Origin, url: str, tmp_path: Path
) -> None:
    name = "a b?c#d%20e"
    cache = open_cache(name)
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    database = tmp_path / name / "cache.sqlite3"
    overwrite_page(database, root_page(database, "index", "cache_entries"))
    assert open_cache(name).entry(url).state is DownloadState.COMPLETE


# -- a log that is lost, a process that was killed ---------------------------------


def _killed_half_way(origin: Origin, url: str, directory: Path, size_bytes: int) -> None:
    """Leave what a process leaves that is killed with *size_bytes* recorded."""
    origin.script(hold_after(size_bytes))
    with Child(directory, url) as child:
        child.go()
        query = "SELECT 1 FROM cache_entries WHERE url = ? AND bytes_present = ?"
        eventually(lambda: bool(rows(directory, query, url, size_bytes)))


@pytest.mark.fault(
    "database",
    "its log is lost",
    client="notices nothing",
    kept="what was in the file itself",
    next_reader="the right bytes: what only the log knew is fetched again",
)
def test_a_log_that_is_lost_costs_what_was_in_it_and_nothing_else(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    _killed_half_way(origin, url, database.parent, 2 * MIB)
    assert database.with_name("cache.sqlite3-wal").exists()
    lose_log(database)
    cache = open_cache()
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    assert cache.entry(url).wait_complete(WAIT_S)


def test_a_killed_processs_damaged_database_is_salvaged_with_its_log(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    _stored(open_cache, [url])
    other = origin.url("/other")
    origin.put("/other", Resource(SIZE))
    _killed_half_way(origin, other, database.parent, 2 * MIB)
    # This page has been in the file since the first run; the second one's are in the log.
    overwrite_page(database, root_page(database, "index", "cache_download_queue"))
    cache = open_cache(start=False)
    assert "cache.sqlite3.damaged-1-wal" in _kept_aside(database)
    assert cache.entry(url).state is DownloadState.COMPLETE
    assert cache.entry(other).ranges == [(0, 2 * MIB)]


def test_an_index_that_contradicts_its_table_is_noticed(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    _stored(open_cache, [url])
    data, key = database.read_bytes(), url.encode()
    copies = [offset for offset in range(len(data)) if data.startswith(key, offset)]
    assert len(copies) > 2  # key and URL in the table, the key in an index
    for offset in copies:
        copy = database.parent.with_name(f"copy-{offset}")
        shutil.copytree(database.parent, copy)
        flip(copy / database.name, [offset + len(key) - 1])
        cache = open_cache(copy.name, grace=0)
        assert fetch(cache, cache.entry(url)) == content(0, SIZE)
        cache.close()


@pytest.mark.fault(
    "process",
    "it left its lock",
    client="notices nothing",
    kept="everything",
    next_reader="finds the directory free",
)
def test_a_lock_that_a_dead_process_left_is_taken_over(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    _killed_half_way(origin, url, database.parent, 2 * MIB)
    assert (database.parent / "lock").read_bytes().strip()
    cache = open_cache()
    with pytest.raises(CacheBusy):
        open_cache()
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    assert not (database.parent / "lock").read_bytes().strip()


# -- rows that make no sense -------------------------------------------------------

# What else garbage in one entry's rows must not do is in test_restart.
_CONTRADICTIONS = {
    "complete without all bytes": "UPDATE cache_entries SET complete_length = complete_length + 1",
    "more bytes than chunks": "UPDATE cache_entries SET bytes_present = 1000000000000",
    "bytes of nothing known": "UPDATE cache_entries SET validated_at = NULL",
    "chunks that overlap": "INSERT INTO cache_chunks (entry_id, start, stop, written_at)"
    " VALUES (1, 5, 20, 0)",
    "chunks that touch": "UPDATE cache_chunks SET stop = 500;"
    "INSERT INTO cache_chunks (entry_id, start, stop, written_at) VALUES (1, 500, 1000, 0)",
    "a chunk in the exabytes": "UPDATE cache_entries SET complete_length = NULL, state = 'paused';"
    "UPDATE cache_chunks SET stop = 1 << 62",
    "text that is no text": "UPDATE cache_entries SET state_reason = CAST(x'ff22' AS TEXT)",
    "a name of another kind": "UPDATE cache_entries SET content_file = 'ab/cd'",
    "a time that is none": "UPDATE cache_entries SET last_accessed_at = 9e999",
    "a status that is no error's": "UPDATE cache_entries SET error_status = 200",
    "a field of framing": "UPDATE cache_entries SET response_fields = "
    """'[["Transfer-Encoding", "chunked"]]'""",
    "a field that is two lines": "UPDATE cache_entries SET response_fields = "
    r"""'[["X-One", "1\r\nX-Two: 2"]]'""",
    "a field beyond Latin-1": r"""UPDATE cache_entries SET response_fields = '[["X", "\u2603"]]'""",
    "a checksum of another size": "UPDATE cache_chunks SET checksum = zeroblob(12)",
    "checksums that are none": "UPDATE cache_chunks SET checksum = x''",
}


def _spoil(database: Path, statements: str) -> None:
    execute(database, "PRAGMA journal_mode = wal")
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA ignore_check_constraints = 1")
        opened.executescript(statements)


@pytest.mark.fault("database", "rows of one entry make no sense")
@pytest.mark.parametrize("spoiling", _CONTRADICTIONS.values(), ids=_CONTRADICTIONS.keys())
def test_rows_that_contradict_each_other_start_afresh_with_one_line(
    open_cache: OpenCache,
    origin: Origin,
    database: Path,
    spoiling: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (url,) = _small_files(origin, 1)
    _stored(open_cache, [url])
    _spoil(database, spoiling)
    caplog.clear()
    cache = open_cache(start=False)
    assert _damage_lines(caplog) == ["entry 1 of the database makes no sense and starts afresh"]
    assert _kept_aside(database) == []
    film = cache.entry(url)
    assert (film.state, film.reason) == (DownloadState.NOT_STARTED, "its row was damaged")
    assert film.ranges == []
    cache.close()
    cache = open_cache()
    assert fetch(cache, cache.entry(url)) == content(0, SMALL)


@pytest.mark.fault("database", "rows of one entry make no sense")
def test_a_chunk_whose_checksums_are_not_those_of_its_blocks_is_not_believed(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    """A row that was stretched over a hole: nothing but their number could tell."""
    cache = open_cache(fill="requested", read_ahead=0)
    with cache.entry(url).open() as film:
        film.seek(2 * MIB)
        assert film.read(MIB) == content(2 * MIB, 3 * MIB)
    cache.close()
    _spoil(
        database,
        "UPDATE cache_chunks SET start = 0;"
        "UPDATE cache_entries SET bytes_present = (SELECT stop FROM cache_chunks)",
    )
    cache = open_cache(fill="requested", read_ahead=0, verify_reads="never")
    with cache.entry(url).open() as film:
        assert film.read(3 * MIB) == content(0, 3 * MIB)


def test_a_chunk_without_checksums_is_kept(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    """There is none where a block could not be read when it was recorded."""
    cache = open_cache()
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    execute(database, "UPDATE cache_chunks SET checksum = NULL")
    asked = len(origin.requests)
    cache = open_cache()
    film = cache.entry(url)
    assert film.state is DownloadState.COMPLETE
    assert fetch(cache, film, 0, MIB) == content(0, MIB)
    assert len(origin.requests) == asked


@pytest.mark.fault("database", "rows of one entry make no sense")
@pytest.mark.parametrize("column", ["key", "content_file"])
@pytest.mark.parametrize("salvaged", [False, True], ids=["sound", "damaged"])
def test_bytes_of_one_url_are_never_served_under_another(
    open_cache: OpenCache, origin: Origin, database: Path, column: str, salvaged: bool
) -> None:
    """Rows that have swapped a column: each block has its checksum."""
    urls = _small_files(origin, 2)
    _stored(open_cache, urls)
    _spoil(
        database,
        "CREATE TEMP TABLE swapped AS SELECT * FROM cache_entries;"
        f"UPDATE cache_entries SET {column} = id;"
        f"UPDATE cache_entries SET {column} = "
        f"(SELECT {column} FROM swapped WHERE swapped.id = 3 - cache_entries.id)",
    )
    if salvaged:
        overwrite_page(database, root_page(database, "index", "cache_chunks"))
    cache = open_cache()
    for number, url in enumerate(urls):
        assert fetch(cache, cache.entry(url)) == pattern(number)(0, SMALL)


@pytest.mark.fault("database", "rows of one entry make no sense")
def test_what_a_deleted_row_left_hinders_no_start_and_becomes_no_other_entrys(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    """SQLite's own shell does not delete what hangs on a row."""
    _stored(open_cache, [url])
    execute(
        database,
        "INSERT INTO cache_download_queue (entry_id, asked_by, priority, start, attempts, "
        "created_at) VALUES (1, 'person', 1, 0, 0, 0)",
        "DELETE FROM cache_entries",
        "UPDATE sqlite_sequence SET seq = 0 WHERE name = 'cache_entries'",
    )
    cache = open_cache()
    assert cache.queued_urls() == []
    film = cache.entry(url)
    assert (film.id, film.downloaded_bytes) == (1, 0)
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.fault("database", "rows of one entry make no sense")
def test_an_entry_that_claims_too_much_evicts_no_other(
    open_cache: OpenCache, origin: Origin, database: Path
) -> None:
    urls = _small_files(origin, 3)
    _stored(open_cache, urls)
    _spoil(database, "UPDATE cache_entries SET bytes_present = 1000000000000 WHERE id = 1")
    cache = open_cache(max_size="1M")
    cache.collect()
    assert [entry.downloaded_bytes for entry in cache.entries()] == [0, SMALL, SMALL]


def test_an_entry_whose_key_is_lost_is_deleted(
    open_cache: OpenCache, origin: Origin, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = _small_files(origin, 2)
    _stored(open_cache, urls)
    _spoil(database, "UPDATE cache_entries SET key = CAST(x'ff' AS TEXT) WHERE id = 1")
    cache = open_cache()
    assert "entry 1 of the database makes no sense and was deleted" in _damage_lines(caplog)
    assert [entry.url for entry in cache.entries()] == urls[1:]


def test_sound_rows_are_left_as_they_are(
    open_cache: OpenCache, origin: Origin, url: str, database: Path
) -> None:
    """In every state that there is, with and without a length, chunks and demands."""
    origin.put("/endless", Resource(SIZE, framing="chunked"))
    origin.put("/empty", Resource(0))
    origin.put("/unjoinable", Resource(SIZE, etag=None))
    cache = open_cache(fill="requested")
    cache.entry(origin.url("/never"))
    assert not cache.entry(origin.url("/empty")).wait_complete(0)
    for path in ("/film", "/endless", "/unjoinable"):
        with cache.entry(origin.url(path)).open() as file:
            assert file.read(MIB) == content(0, MIB)
    assert cache.entry(origin.url("/empty")).wait_complete(WAIT_S)
    origin.put("/song", Resource(SMALL))
    assert cache.entry(origin.url("/song")).wait_complete(WAIT_S)
    cache.entry(origin.url("/cancelled?q=%20")).cancel()
    cache.close()
    cache = open_cache(start=False)
    cache.entry(url).start("prefetch", 5, MIB)
    cache.close()
    before = _everything(database)
    with closing(Store.open(database)) as store:
        assert reset_nonsense(store, 0.0) == 0
    assert _everything(database) == before


def _everything(database: Path) -> list[list[tuple[object, ...]]]:
    tables = ("cache_entries", "cache_chunks", "cache_download_queue")
    return [rows(database.parent, f"SELECT * FROM {table}") for table in tables]


def test_every_content_file_is_named_as_sanity_expects(database: Path) -> None:
    """Whatever key: a name that the check refuses would reset a sound entry."""
    database.parent.mkdir()
    with closing(Store.open(database)) as store:
        for number, key in enumerate(["", "ü", "a" * 5000, "../x", "\n"]):
            store.create(
                key=key, url=f"http://h/{number}", content_file=content_name(key), now_s=1.0
            )
        assert reset_nonsense(store, 0.0) == 0


def test_a_cache_can_be_opened_after_any_of_this(open_cache: OpenCache, database: Path) -> None:
    open_cache().close()
    _garbage(database)
    open_cache().close()
    assert isinstance(open_cache(), Cache)
