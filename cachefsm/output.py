"""Writes the files of ``get -o``: whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .display import file_name
from .errors import StorageError, UsageError

__all__ = ["STDOUT", "check_output", "outputs_for", "replaced"]

STDOUT = Path("-")


def outputs_for(urls: Sequence[str], output: str | None) -> list[Path | None]:
    """Return the path for each of *urls* if ``-o`` is *output*; None if it is not given.

    Raises:
        UsageError: several would have the same path.
    """
    if output is None:
        return [None] * len(urls)
    if output == "-" and len(urls) == 1:
        return [STDOUT]
    directory = Path(output).expanduser()
    if not directory.is_dir():
        if len(urls) > 1:
            raise UsageError(f"several URLs go into a directory, and {output!r} is none")
        if output.endswith("/"):
            raise UsageError(f"{output!r} is no directory")
        return [directory]
    paths = [directory / file_name(url) for url in urls]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"two of the URLs would both be written to {twice}")
    return list(paths)


def check_output(path: Path) -> None:
    """Raise StorageError if *path* cannot be written, before hours go into a download."""
    parent = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a directory")
    if not parent.is_dir():
        raise StorageError(f"cannot write {path}: {parent} is no directory")
    if not os.access(parent, os.W_OK | os.X_OK) and not _is_special(path):
        raise StorageError(f"cannot write {path}: {parent} is not writable")


@contextmanager
def replaced(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Give a function that writes; if the block succeeds, what it wrote becomes *path*.

    A symbolic link keeps pointing where it does; a device or a pipe is written
    to as it is.

    Raises:
        StorageError: the file cannot be written; what was there before still is.
    """
    path = Path(os.path.realpath(path))
    special = _is_special(path)
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    with _translated(path):
        file: BinaryIO = path.open("wb", 0) if special else part.open("xb", 0)
    try:
        with file:

            def write(data: bytes) -> None:
                view = memoryview(data)
                with _translated(path):
                    while view:
                        view = view[file.write(view) :]

            yield write
            if not special:
                with _translated(path):
                    os.fsync(file.fileno())
        if not special:
            with _translated(path):
                part.replace(path)
    except BaseException:
        if not special:
            part.unlink(missing_ok=True)
        raise


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
