"""Disks in trouble: file systems of a few MiB, mounted for one test, that fill up or fail.

Nothing is patched: the kernel refuses. Where mounting is not allowed, tests are skipped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.caches import recorded
from tests.support.origin import content

__all__ = [
    "abort",
    "assert_true",
    "episodes",
    "failing_disk",
    "file_size_limit",
    "fill",
    "open_files",
    "read_only",
    "small_disk",
    "unreadable",
]

_BLOCK = bytes(4096)
MIB = 1 << 20


@contextmanager
def small_disk(directory: Path, size_bytes: int = MIB) -> Iterator[Path]:
    """Mount a file system of *size_bytes* on *directory*; skip where that is not allowed."""
    with _mounted(directory, "-t", "tmpfs", "-o", f"size={size_bytes}", "small-disk"):
        yield directory


@contextmanager
def failing_disk(directory: Path, size_bytes: int, real_bytes: int) -> Iterator[Path]:
    """Mount a disk that says it has *size_bytes* but can keep only *real_bytes*.

    As on a thinly provisioned or dying one, a write succeeds and the sync after it
    fails; the sync after that succeeds, although the bytes are lost.
    """
    backing = directory.with_name(f"{directory.name}-backing")
    with small_disk(backing, real_bytes):
        image = backing / "image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        # Without a journal: its blocks would fail first, and end the disk for good.
        made = ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1", str(image)]
        _run_or_skip(made)
        with _mounted(directory, "-o", "loop", str(image)):
            yield directory


def abort(disk: Path) -> None:
    """Make a :func:`failing_disk` read-only at once, as the kernel does after an error."""
    _run_or_skip(["mount", "-o", "remount,abort", str(disk)])


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Let nothing be written on a :func:`small_disk` that nobody has open."""
    _run_or_skip(["mount", "-o", "remount,ro", str(disk)])
    try:
        yield
    finally:
        _run_or_skip(["mount", "-o", "remount,rw", str(disk)])


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let this process write no file beyond *size_bytes*, as a quota does; needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def unreadable(file: Path) -> Iterator[None]:
    """Let every read of *file* fail with EIO that goes by a descriptor open now.

    The descriptors lead elsewhere for a while: to this process's own memory, at an
    address where there is none.
    """
    links = [link for link in Path("/proc/self/fd").iterdir() if _leads_to(link, file)]
    kept = {int(link.name): os.dup(int(link.name)) for link in links}
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    for fd in kept:
        os.dup2(memory, fd, inheritable=False)
    os.close(memory)
    try:
        yield
    finally:
        for fd, real in kept.items():
            os.dup2(real, fd, inheritable=False)
            os.close(real)


def _leads_to(link: Path, file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # the descriptor by which we look
        return link.readlink() == file
    return False


def fill(directory: Path, leave_bytes: int = 0) -> Path:
    """Fill the disk but for *leave_bytes*; delete the file returned to have the space back."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), _BLOCK)
    os.truncate(filler, max(0, filler.stat().st_size - leave_bytes))
    return filler


def open_files(below: Path) -> list[Path]:
    """Return the files at or below *below* that this process has open, unlinked or not.

    One that is open twice is there twice. Skips where the system does not tell.
    """
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not tell which files a process has open")
    targets = []
    for link in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor by which we look
            targets.append(Path(str(link.readlink()).removesuffix(" (deleted)")))
    return [target for target in targets if target.is_relative_to(below)]


@contextmanager
def _mounted(directory: Path, *options: str) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    _run_or_skip(["mount", *options, str(directory)])
    try:
        yield
    finally:
        # Lazily: what a failing test has left open must not keep it mounted.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _run_or_skip(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"such a disk cannot be made here: {why.strip()}")


# -- what came of it ---------------------------------------------------------------


def episodes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines about storage, shortened to what they say."""
    lines = [record for record in caplog.records if record.name == "cachefsm.trouble"]
    assert {line.levelno for line in lines} <= {logging.WARNING}
    return ["refuses" if "refuses" in line.getMessage() else "works" for line in lines]


def assert_true(directory: Path) -> int:
    """Check that whatever is recorded is in the file; return how much that is."""
    found = recorded(directory)
    for start, data in found.stored():
        assert data == content(start, start + len(data))
    size = sum(len(data) for _, data in found.stored())
    assert found.bytes_present == sum(chunk.size for chunk in found.chunks) == size
    return size
