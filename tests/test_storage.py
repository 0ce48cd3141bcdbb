"""One sparse file: positional access from many threads, and what a disk can refuse."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachefsm.errors import StorageError
from cachefsm.storage import ContentFile, content_name, disk_usage, remove_content
from tests.support.caches import WAIT_S
from tests.support.disks import fill, open_files, small_disk
from tests.support.origin import content
from tests.support.threads import in_thread

GIB = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ab" / "content"


@pytest.fixture
def file(path: Path) -> Iterator[ContentFile]:
    file = ContentFile(path)
    yield file
    file.release()


def times_open(path: Path) -> int:
    return len(open_files(path))


# -- bytes --------------------------------------------------------------------


def test_bytes_are_read_where_they_were_written(file: ContentFile) -> None:
    file.write_at(1000, content(1000, 2000))
    file.write_at(0, memoryview(content(0, 500)))
    assert file.read_at(0, 500) == content(0, 500)
    assert file.read_at(1200, 300) == content(1200, 1500)
    assert file.size() == 2000


def test_writing_nothing_makes_the_file_and_reading_nothing_reads_none(
    file: ContentFile, path: Path
) -> None:
    file.write_at(0, b"")
    assert path.exists()
    assert file.read_at(0, 0) == b""
    assert file.size() == 0


def test_offsets_beyond_four_gibibytes_are_kept_apart(file: ContentFile) -> None:
    for offset in (5, 4 * GIB + 5, 5 * GIB + 5):
        file.write_at(offset, content(offset, offset + 100))
    for offset in (5, 4 * GIB + 5, 5 * GIB + 5):
        assert file.read_at(offset, 100) == content(offset, offset + 100)
    assert file.size() == 5 * GIB + 105


def test_a_file_takes_the_disk_space_of_what_was_written_only(
    file: ContentFile, path: Path
) -> None:
    file.write_at(GIB, content(0, 4096))
    file.flush()
    assert 0 < disk_usage(path) < 1 << 20
    path.unlink()
    assert disk_usage(path) == 0


def test_many_threads_read_and_write_one_file_at_once(file: ContentFile, path: Path) -> None:
    piece, threads = 4096, 8
    together = threading.Barrier(threads)

    def work(number: int) -> None:
        together.wait(WAIT_S)
        for index in range(number, 30 * threads, threads):
            start = index * piece
            file.write_at(start, content(start, start + piece))
            assert file.read_at(start, piece) == content(start, start + piece)

    for done in [in_thread(work, number) for number in range(threads)]:
        done.result(WAIT_S)
    size = 30 * threads * piece
    assert file.read_at(0, size) == content(0, size)
    assert times_open(path) == 1


def test_flushed_bytes_are_seen_by_whoever_opens_the_file(file: ContentFile, path: Path) -> None:
    file.write_at(0, content(0, 5000))
    file.flush()
    assert path.read_bytes() == content(0, 5000)


# -- what is not there --------------------------------------------------------


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (50, 51), (100, 1), (5000, 10)])
def test_a_file_that_is_too_short_says_where_it_ends(
    file: ContentFile, offset: int, size: int
) -> None:
    file.write_at(0, content(0, 100))
    ends = max(100, offset)
    with pytest.raises(StorageError, match=f"ends at {ends}, wanted {offset + size}"):
        file.read_at(offset, size)


def test_a_file_that_was_cut_under_us_is_an_error_not_zeros(file: ContentFile, path: Path) -> None:
    file.write_at(0, content(0, 100))
    os.truncate(path, 40)
    assert file.size() == 40
    with pytest.raises(StorageError, match="ends at 40, wanted 100"):
        file.read_at(0, 100)


def test_reading_does_not_make_a_file(file: ContentFile, path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open content: .*ENOENT"):
        file.read_at(0, 1)
    assert file.size() is None
    file.flush()  # nothing was written: nothing to do
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: path.mkdir(parents=True), "EISDIR"),
        (lambda path: path.parent.write_bytes(b""), "EEXIST|ENOTDIR"),
    ],
    ids=["a directory", "below a file"],
)
def test_what_is_no_file_can_be_neither_read_nor_written(
    file: ContentFile, path: Path, make: Callable[[Path], object], code: str
) -> None:
    make(path)
    for use in (lambda: file.write_at(0, b"x"), lambda: file.read_at(0, 1)):
        with pytest.raises(StorageError, match=rf"cannot open content: .*({code}|ENOTDIR)"):
            use()


def test_a_device_that_refuses_is_named_by_what_was_tried(tmp_path: Path) -> None:
    # A pipe has no offsets and nothing to sync, and the kernel says so each time.
    os.mkfifo(tmp_path / "pipe")
    pipe = ContentFile(tmp_path / "pipe")
    with pytest.raises(StorageError, match=r"cannot read pipe: .*ESPIPE"):
        pipe.read_at(0, 1)
    with pytest.raises(StorageError, match=r"cannot write pipe: .*ESPIPE"):
        pipe.write_at(0, b"x")
    with pytest.raises(StorageError, match=r"cannot sync pipe: .*EINVAL"):
        pipe.flush()
    pipe.release()


def test_the_size_of_what_cannot_be_looked_at_is_an_error(file: ContentFile, path: Path) -> None:
    path.parent.symlink_to(path.parent)
    with pytest.raises(StorageError, match="cannot look at content"):
        file.size()


@pytest.mark.parametrize("other", ["directory", "link", "file above"])
def test_what_is_no_file_has_no_size(file: ContentFile, path: Path, other: str) -> None:
    if other == "file above":
        path.parent.write_bytes(b"a file where the directory should be")
    else:
        path.parent.mkdir()
        path.mkdir() if other == "directory" else path.symlink_to(__file__)
    assert file.size() is None


# -- who holds it open --------------------------------------------------------


def test_the_file_is_opened_at_its_first_use_and_stays_so_while_used(
    file: ContentFile, path: Path
) -> None:
    assert times_open(path) == 0
    file.write_at(0, b"x")
    assert times_open(path) == 1
    file.retain()
    file.retain()
    for _ in range(2):
        file.release()
        assert times_open(path) == 1
        assert file.read_at(0, 1) == b"x"


def test_the_last_release_closes_it(path: Path) -> None:
    file = ContentFile(path)
    file.write_at(0, b"x")
    file.retain()
    file.release()
    file.release()
    assert times_open(path) == 0


def test_releasing_a_file_that_was_never_opened_is_nothing(path: Path) -> None:
    file = ContentFile(path)
    file.retain()
    file.release()
    file.release()
    assert times_open(path) == 0


def test_users_on_many_threads_close_it_once_and_at_the_end(path: Path) -> None:
    file = ContentFile(path)
    file.write_at(0, content(0, 100))
    for _ in range(8):
        file.retain()

    def work() -> None:
        for _ in range(200):
            file.retain()
            assert file.read_at(0, 100) == content(0, 100)
            file.release()
        file.release()

    for done in [in_thread(work) for _ in range(8)]:
        done.result(WAIT_S)
    assert times_open(path) == 1
    file.release()
    assert times_open(path) == 0


def test_a_removed_file_is_read_by_who_holds_it_and_found_by_nobody_else(
    file: ContentFile, path: Path
) -> None:
    file.write_at(0, content(0, 100))
    remove_content(path)
    assert file.read_at(0, 100) == content(0, 100)
    assert file.size() is None
    assert ContentFile(path).size() is None
    with pytest.raises(StorageError, match="ENOENT"):
        ContentFile(path).read_at(0, 1)


def test_removing_what_is_not_there_is_nothing(path: Path) -> None:
    remove_content(path)


def test_removing_what_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot remove {tmp_path.name}: "):
        remove_content(tmp_path)


# -- full disks and names -----------------------------------------------------


def test_a_full_disk_is_named_and_what_was_stored_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        file = ContentFile(disk / "ab" / "content")
        file.write_at(0, content(0, 50_000))
        filler = fill(disk)
        with pytest.raises(StorageError, match=r"cannot write content: .*ENOSPC"):
            file.write_at(50_000, content(50_000, 200_000))
        assert file.read_at(0, 50_000) == content(0, 50_000)
        filler.unlink()
        file.write_at(50_000, content(50_000, 200_000))
        file.flush()
        assert file.read_at(0, 200_000) == content(0, 200_000)
        file.release()


def test_a_full_disk_has_no_room_for_a_new_file_s_bytes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        file = ContentFile(disk / "ab" / "content")
        with pytest.raises(StorageError, match="ENOSPC"):
            file.write_at(0, b"x")
        file.release()
        assert times_open(file.path) == 0


@pytest.mark.parametrize("key", ["http://origin.test/../../etc/passwd?a=b", "", "ünïcode/☂"])
def test_a_content_name_is_made_of_hashes_and_was_never_given_before(key: str) -> None:
    names = {content_name(key) for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{32}-[0-9a-f]{8}", name) for name in names)
    assert len({name.partition("-")[0] for name in names}) == 1
