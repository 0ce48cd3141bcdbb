"""``cachefsm.fsspec_filesystem``: what reads through fsspec reads through the cache."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
import threading
import zipfile
from array import array
from pathlib import Path

import fsspec
import pytest

from cachefsm import Cache
from cachefsm.errors import UsageError
from cachefsm.fsspec_filesystem import CacheFileSystem
from tests.support.caches import WAIT_S, OpenCache
from tests.support.faults import hold_after
from tests.support.origin import Answer, Origin, Resource, content

SIZE = 3_000_000


@pytest.fixture
def cache(open_cache: OpenCache) -> Cache:
    return open_cache(fill="requested")


@pytest.fixture
def fs(cache: Cache) -> CacheFileSystem:
    return CacheFileSystem(cache)


@pytest.fixture
def film(origin: Origin) -> str:
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


@pytest.fixture(autouse=True)
def _registered() -> None:
    # As setup.cfg's entry point does for what is installed.
    fsspec.register_implementation("cachefsm", CacheFileSystem, clobber=True)


def test_a_file_is_read_and_sought_as_any_other(fs: CacheFileSystem, film: str) -> None:
    with fs.open(film) as file:
        assert file.read(10) == content(0, 10)
        file.seek(-5, io.SEEK_END)
        assert file.read() == content(SIZE - 5, SIZE)
        file.seek(1_000_000)
        assert file.read(700_000) == content(1_000_000, 1_700_000)
        assert (file.mode, file.size, file.path) == ("rb", SIZE, film)
        assert file.info() == fs.info(film)


def test_closing_lets_the_entry_go(fs: CacheFileSystem, cache: Cache, film: str) -> None:
    file = fs.open(film)
    file.read(1)
    assert cache.stats()["readers"] == 1
    file.close()
    fs.info(film)
    fs.cat_file(film, 0, 10)
    assert cache.stats()["readers"] == 0


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, None),
        (0, 10),
        (10, None),
        (None, 10),
        (-10, None),
        (-10, -5),
        (10, -10),
        (None, -10),
        (10, 10),
        (10, 5),
        (0, 0),
        (SIZE, None),
        (SIZE - 1, SIZE + 10),
        (-2 * SIZE, 10),
    ],
)
def test_a_part_is_what_the_slice_would_be(
    fs: CacheFileSystem, film: str, start: int | None, end: int | None
) -> None:
    assert fs.cat_file(film, start, end) == content(0, SIZE)[start:end]


def test_a_part_costs_the_origin_little_more(
    fs: CacheFileSystem, film: str, origin: Origin
) -> None:
    fs.cat_file(film, -10)
    fs.cat_file(film, 1_000_000, 1_000_010)
    assert origin.body_bytes_sent < SIZE / 2


def test_parts_of_many_files_are_fetched_together(
    fs: CacheFileSystem, film: str, origin: Origin
) -> None:
    origin.put("/other", Resource(SIZE, version=1))
    both = [film, origin.url("/other")]
    holds = [origin.script(hold_after(0), path=path) for path in ("/film", "/other")]
    found: list[list[bytes]] = []
    reading = threading.Thread(target=lambda: found.append(fs.cat_ranges(both, [5, 7], 100)))
    reading.start()
    for hold in holds:
        assert hold.reached.wait(WAIT_S)  # neither waits for the other
    for hold in holds:
        hold.release()
    reading.join(WAIT_S)
    assert found == [[content(5, 100), content(8, 101)]]


def test_offsets_of_parts_come_in_whatever_can_be_gone_through(
    fs: CacheFileSystem, film: str
) -> None:
    expected = [content(0, 5), content(10, 15)]
    assert fs.cat_ranges([film, film], (0, 10), (5, 15)) == expected
    assert fs.cat_ranges([film, film], range(0, 20, 10), array("q", [5, 15])) == expected


def test_a_part_that_failed_is_told_in_its_place(fs: CacheFileSystem, film: str) -> None:
    there, missing = fs.cat_ranges([film, f"{film}/missing"], 0, [10, 10])
    assert there == content(0, 10)
    assert isinstance(missing, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([film, f"{film}/missing"], 0, 10, on_error="raise")
    with pytest.raises(ValueError, match="differ in number"):
        fs.cat_ranges([film], [0, 1], 10)


def test_the_origin_is_asked_once_for_what_is_looked_at_and_read(
    fs: CacheFileSystem, origin: Origin
) -> None:
    fresh = (("Cache-Control", "max-age=60"),)
    table = Resource.of(b"name,size\nfilm,3\n", content_type="text/csv", headers=fresh)
    origin.put("/table.csv", table)
    url = origin.url("/table.csv")
    info = fs.info(url)
    assert (info["name"], info["size"], info["type"]) == (url, 17, "file")
    assert info["mimetype"] == "text/csv"
    assert fs.size(url) == 17
    assert fs.exists(url)
    assert fs.isfile(url)
    with fs.open(url, "r", newline="") as file:
        assert list(csv.DictReader(file)) == [{"name": "film", "size": "3"}]
    assert fs.cat(url) == b"name,size\nfilm,3\n"
    assert len(origin.requests) == 1


def test_another_version_is_another_file_to_whoever_compares_keys(
    fs: CacheFileSystem, origin: Origin
) -> None:
    modified = "Tue, 15 Nov 2022 08:12:31 GMT"
    origin.put("/a", Resource(100, etag='"1"', last_modified=modified))
    origin.put("/b", Resource(100, etag='"2"'))
    infos = [fs.info(origin.url(path)) for path in ("/a", "/b")]
    assert [info["ETag"] for info in infos] == ['"1"', '"2"']
    assert fs.modified(origin.url("/a")).isoformat() == "2022-11-15T08:12:31+00:00"
    with pytest.raises(NotImplementedError):
        fs.modified(origin.url("/b"))
    assert fs.ukey(origin.url("/a")) == fs.ukey(origin.url("/a")) != fs.ukey(origin.url("/b"))


def test_a_query_is_no_pattern(fs: CacheFileSystem, origin: Origin, film: str) -> None:
    url = f"{film}?part=[1]&all=*"
    assert fs.cat(url) == content(0, SIZE)
    assert fs.glob(url) == fs.find(url) == fs.ls(url, detail=False) == [url]
    assert fs.glob(f"{film}/missing") == []
    assert not fs.isdir(url)
    assert {request.target for request in origin.requests} >= {"/film?part=[1]&all=*"}


def test_paths_may_carry_the_scheme(fs: CacheFileSystem, cache: Cache, film: str) -> None:
    assert fs.unstrip_protocol(film) == f"cachefsm://{film}"
    assert fs.cat_file(f"cachefsm://{film}", 0, 5) == content(0, 5)
    assert fs.entry(f"cachefsm://{film}").id == cache.entry(film).id
    assert len(cache.entries()) == 1


@pytest.mark.parametrize(
    ("status", "kind"), [(404, FileNotFoundError), (410, FileNotFoundError), (403, PermissionError)]
)
def test_the_origins_refusal_is_an_error_of_files(
    fs: CacheFileSystem, origin: Origin, status: int, kind: type[OSError]
) -> None:
    origin.script(lambda exchange: setattr(exchange, "answer", Answer.fixed(status)), times=None)
    url = origin.url("/film?token=secret")
    for read in (fs.info, fs.cat_file, lambda path: fs.open(path).read()):
        with pytest.raises(kind) as caught:
            read(url)
        assert "secret" not in str(caught.value)
    assert not fs.exists(url)


def test_what_is_no_url_is_no_path(fs: CacheFileSystem) -> None:
    with pytest.raises(ValueError, match="not an http"):
        fs.open("film.mkv")


def test_nothing_is_written(fs: CacheFileSystem, film: str) -> None:
    for mode in ("wb", "ab", "w"):
        with pytest.raises(OSError, match="read, not written"):
            fs.open(film, mode)


def test_compressed_files_and_archives_work_on_top(
    fs: CacheFileSystem, origin: Origin, tmp_path: Path
) -> None:
    origin.put("/words.gz", Resource.of(gzip.compress(b"words")))
    with fs.open(origin.url("/words.gz"), compression="infer") as file:
        assert file.read() == b"words"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("inside", b"words")
    origin.put("/words.zip", Resource.of(archive.getvalue()))
    with fs.open(origin.url("/words.zip")) as file, zipfile.ZipFile(file) as reading:
        assert reading.read("inside") == b"words"
    fs.get(origin.url("/words.gz"), str(tmp_path / "words.gz"))
    assert gzip.decompress((tmp_path / "words.gz").read_bytes()) == b"words"


BY_DIRECTORY = """
import pickle, sys, threading
import fsspec
from cachefsm.fsspec_filesystem import CacheFileSystem

fsspec.register_implementation("cachefsm", CacheFileSystem)
url, directory = sys.argv[1:]
found = []

def read(start):
    with fsspec.open(f"cachefsm://{url}", directory=directory) as file:
        file.seek(start)
        found.append(file.read(10))

threads = [threading.Thread(target=read, args=(start,)) for start in (0, 10, 20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
fs = CacheFileSystem(directory=directory)
assert fs.entry(url).has(0, 30)
assert pickle.loads(pickle.dumps(fs)).entry(url).has(0, 30)
print(*sorted(data.hex() for data in found))
"""


def test_a_directory_is_opened_once_for_all_threads_and_closed_in_the_end(
    film: str, tmp_path: Path, open_cache: OpenCache
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BY_DIRECTORY, film, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [content(start, start + 10).hex() for start in (0, 10, 20)]
    entry = open_cache(start=False).find(film)
    assert entry.has(0, 30)
    assert entry.state == "paused"  # not found active: it was closed, not killed
    assert entry.reason != "recovered"


def test_options_that_contradict_each_other_are_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        CacheFileSystem(cache, directory=tmp_path)
    with pytest.raises(UsageError):
        CacheFileSystem(cache, max_size="1G")
    with pytest.raises(UsageError, match="cachefsm://https"):
        CacheFileSystem(directory=tmp_path, target_protocol="https", fo="https://example.test")


def test_a_file_of_unknown_length_is_read_from_the_front(
    fs: CacheFileSystem, origin: Origin
) -> None:
    origin.put("/live", Resource(1000, framing="chunked", accepts_ranges=False))
    with fs.open(origin.url("/live")) as file:
        assert file.read(10) == content(0, 10)
        assert file.read() == content(10, 1000)


def test_who_reads_a_column_here_and_there_gets_that_and_no_more(
    fs: CacheFileSystem, origin: Origin
) -> None:
    """Python cuts a large read into buffers, which would look like reading on."""
    size, column = 16 << 20, 600_000
    origin.put("/table", Resource(size))
    with fs.open(origin.url("/table")) as file:
        for start in range(0, size - column, 3 << 20):
            file.seek(start)
            assert file.read(column) == content(start, start + column)
    assert sum(r.body_bytes_sent for r in origin.requests) == 6 * column


def test_who_reads_on_asks_ever_further_and_who_looks_around_does_not(
    fs: CacheFileSystem, origin: Origin
) -> None:
    size = 16 << 20
    origin.put("/long", Resource(size))
    with fs.open(origin.url("/long"), block_size=64 << 10) as file:
        while file.read(64 << 10):
            pass
    assert len(origin.requests) < 25  # for 256 reads
    origin.put("/index", Resource(size))
    with fs.open(origin.url("/index"), block_size=64 << 10) as file:
        for start in range(0, size, 2 << 20):
            file.seek(start)
            assert file.read(100) == content(start, start + 100)
    looked = sum(r.body_bytes_sent for r in origin.requests if r.path == "/index")
    assert looked == 8 * (64 << 10)
