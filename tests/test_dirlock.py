"""One process per cache directory, and what the others are told of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefsm.dirlock import DirectoryLock, Holder
from cachefsm.errors import CacheBusy, StorageError
from tests.support.caches import WAIT_S
from tests.support.disks import fill, small_disk
from tests.support.threads import in_thread

ROOT = Path(__file__).parents[1]
# Takes the lock, says so, and holds it until its input ends.
PROGRAM = """
import sys
from pathlib import Path
from cachefsm.dirlock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
lock.release()
"""


@contextmanager
def another_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Let a process hold *directory*; it lets go when its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[DirectoryLock]:
    lock = DirectoryLock(tmp_path)
    yield lock
    lock.release()


@pytest.mark.fault(
    "process",
    "a second one wants the same directory",
    client="notices nothing",
    kept="everything",
    next_reader="the second one is told who has it",
)
def test_another_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        told = f"{tmp_path} is in use by process {process.pid}$"
        with pytest.raises(CacheBusy, match=told):
            DirectoryLock(tmp_path)
        assert DirectoryLock.holder(tmp_path) == Holder(process.pid)


def test_the_same_process_cannot_take_it_twice_either(tmp_path: Path, lock: DirectoryLock) -> None:
    with pytest.raises(CacheBusy, match=f"process {os.getpid()}"):
        DirectoryLock(tmp_path)


def test_of_eight_threads_one_gets_it(tmp_path: Path) -> None:
    def take() -> DirectoryLock | None:
        try:
            return DirectoryLock(tmp_path)
        except CacheBusy:
            return None

    outcomes = [done.result(WAIT_S) for done in [in_thread(take) for _ in range(8)]]
    (winner,) = filter(None, outcomes)
    winner.release()


def test_a_released_directory_can_be_taken_again(tmp_path: Path, lock: DirectoryLock) -> None:
    lock.release()
    lock.release()
    assert DirectoryLock.holder(tmp_path) is None
    DirectoryLock(tmp_path).release()


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.kill()
        process.wait(WAIT_S)
        assert DirectoryLock.holder(tmp_path) is None
        DirectoryLock(tmp_path).release()


# -- what is announced --------------------------------------------------------


def test_others_find_the_announced_address_and_token(tmp_path: Path, lock: DirectoryLock) -> None:
    holder = Holder(os.getpid(), "http://127.0.0.1:8080", "a token", stays=True)
    lock.announce(holder)
    assert DirectoryLock.holder(tmp_path) == holder
    with pytest.raises(CacheBusy, match=r"serving at http://127\.0\.0\.1:8080$") as caught:
        DirectoryLock(tmp_path)
    assert "a token" not in str(caught.value)


def test_a_shorter_announcement_leaves_nothing_of_the_longer_one(
    tmp_path: Path, lock: DirectoryLock
) -> None:
    lock.announce(Holder(1, "http://127.0.0.1:8080", "t" * 500))
    lock.announce(Holder(2))
    assert DirectoryLock.holder(tmp_path) == Holder(2)


def test_the_token_is_for_the_owner_s_eyes(tmp_path: Path, lock: DirectoryLock) -> None:
    lock.announce(Holder(1, "http://127.0.0.1:8080", "a token"))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_nothing_is_announced_after_the_release(tmp_path: Path, lock: DirectoryLock) -> None:
    lock.release()
    lock.announce(Holder(1, "http://127.0.0.1:8080", "a token"))
    assert (tmp_path / "lock").read_bytes().strip() == b""
    assert DirectoryLock.holder(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"pid": 1, "colour": "red"}',
        b'{"pid": "1"}',
        b'{"pid": 1, "address": 5}',
        b'{"pid": 1, "token": []}',
        b"\xff\xfe",
        b"[" * 4096,
    ],
)
def test_a_holder_that_cannot_be_read_is_still_a_holder(
    tmp_path: Path, lock: DirectoryLock, content: bytes
) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert DirectoryLock.holder(tmp_path) == Holder(0)
    with pytest.raises(CacheBusy, match="in use by another process"):
        DirectoryLock(tmp_path)


def test_looking_does_not_make_a_lock_file(tmp_path: Path) -> None:
    assert DirectoryLock.holder(tmp_path) is None
    assert DirectoryLock.holder(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == []


def test_whoever_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    # A look takes the lock for a moment; thousands of them met by hundreds of takers.
    DirectoryLock(tmp_path).release()
    enough = threading.Event()

    def look() -> None:
        while not enough.is_set():
            DirectoryLock.holder(tmp_path)

    looking = [in_thread(look) for _ in range(2)]
    try:
        for _ in range(300):
            DirectoryLock(tmp_path).release()
    finally:
        enough.set()
    for done in looking:
        done.result(WAIT_S)


# -- what cannot be locked ----------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "a file"])
def test_a_directory_that_is_none_is_an_error_of_storage(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(StorageError, match=f"cannot use .*{name}"):
        DirectoryLock(tmp_path / name)


def test_who_has_held_the_directory_before_can_announce_himself_on_a_full_disk_too(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        DirectoryLock(disk).release()
        filler = fill(disk)
        lock = DirectoryLock(disk)
        holder = Holder(os.getpid(), "http://127.0.0.1:8080", "a token")
        lock.announce(holder)
        with pytest.raises(CacheBusy, match="serving at"):
            DirectoryLock(disk)
        assert DirectoryLock.holder(disk) == holder
        lock.release()
        (disk / "lock").unlink()
        fill(disk)
        lock = DirectoryLock(disk)
        with pytest.raises(CacheBusy, match="in use by another process"):
            DirectoryLock(disk)
        filler.unlink()
        lock.announce(holder)
        with pytest.raises(CacheBusy, match="serving at"):
            DirectoryLock(disk)
        lock.release()
