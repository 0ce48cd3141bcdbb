"""A disk that fills up, mounted for one test; and which files this process holds open."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["fill", "open_files", "small_disk"]

_BLOCK = bytes(4096)


@contextmanager
def small_disk(directory: Path, size_bytes: int = 1 << 20) -> Iterator[Path]:
    """Mount a file system of *size_bytes* on *directory*; skip where that is not allowed."""
    directory.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "small-disk", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"a small file system cannot be mounted here: {why.strip()}")
    try:
        yield directory
    finally:
        # Lazily: what a failing test has left open must not keep it mounted.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Write a file that takes all the space there is; delete it to have the space back."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), _BLOCK)
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
