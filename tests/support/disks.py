"""A disk that fills up: a file system of a few pages, mounted for one test."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["fill", "small_disk"]

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
