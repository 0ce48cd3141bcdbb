"""One process per cache directory, and how to reach the one that has it.

The lock is ``flock`` on a file, so the kernel takes it back from a process that
died, however it died. The file tells who holds it: process id, the address of
its control routes where it serves any, and the token that they want.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final

from .errors import CacheBusy, StorageError

__all__ = ["DirectoryLock", "Holder", "absolute", "in_use", "take"]

_log = logging.getLogger(__name__)

_LENGTH_BYTES: Final = 4096
"""Of the lock's file: more than an address and a token need, and one block."""


@dataclass(frozen=True)
class Holder:
    """Who holds a cache directory; ``address`` is the base URL of its control routes.

    One that does not *stay* is a command such as ``get``, which serves other commands while
    it works: what is in the queue when it ends waits for the next process.
    """

    pid: int
    address: str | None = None
    token: str | None = None
    stays: bool = True


class DirectoryLock:
    """Holds a cache directory until :meth:`release`, or the end of the process."""

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            CacheBusy: another process has it; the message names it.
            StorageError: the directory cannot be used.
        """
        path = directory / "lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot use {directory}: {error.strerror}") from error
        try:
            with _nobody_looking(directory):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read(self._fd)
            os.close(self._fd)
            raise CacheBusy(in_use(directory, holder)) from error
        except OSError as error:
            os.close(self._fd)
            raise StorageError(f"cannot lock {directory}: {error.strerror}") from error
        self._owner = os.getpid()
        self.announce(Holder(self._owner))

    def announce(self, holder: Holder) -> None:
        """Write who holds the directory, for those who find it locked."""
        if self._fd < 0:
            return  # released: a server may be closed after its cache
        try:
            self._write(json.dumps(asdict(holder)))
        except OSError as error:
            # A full disk: the lock holds all the same, only nameless.
            _log.warning("cannot write who holds the directory: %s", error.strerror)

    def release(self) -> None:
        """Let the directory go; safe to call twice. In a fork the lock stays its parent's."""
        if self._fd >= 0:
            if os.getpid() == self._owner:
                with contextlib.suppress(OSError):  # read-only by now: the next one finds our name
                    self._write("")
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # for forks, too, which may live on
            os.close(self._fd)
            self._fd = -1

    def _write(self, text: str) -> None:
        # In place, because replacing the file would replace the lock as well; and of one
        # length, because what is cut off may not be had again on a full disk.
        os.pwrite(self._fd, text.encode().ljust(_LENGTH_BYTES), 0)

    @staticmethod
    def holder(directory: Path) -> Holder | None:
        """Return who holds *directory* now, or None; does not take it."""
        try:
            fd = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            with _nobody_looking(directory):
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return _read(fd) or Holder(0)
                fcntl.flock(fd, fcntl.LOCK_UN)
            return None
        finally:
            os.close(fd)


def absolute(directory: str | os.PathLike[str]) -> Path:
    """Return *directory* as a path that stays the same wherever the process goes.

    Raises:
        StorageError: it is in a home that nobody has.
    """
    try:
        return Path(directory).expanduser().absolute()
    except RuntimeError as error:
        raise StorageError(f"cannot use {directory}: there is no such home") from error


def take(directory: Path) -> DirectoryLock:
    """Make the directory, if it is not there, and take it for this process.

    Raises:
        CacheBusy: another process has it.
        StorageError: it cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except ValueError as error:  # it holds a NUL
        raise StorageError(f"cannot use {str(directory)!r}: {error}") from error
    except OSError as error:
        reason = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
        raise StorageError(f"cannot use {directory}: {reason}") from error
    return DirectoryLock(directory)


@contextlib.contextmanager
def _nobody_looking(directory: Path) -> Iterator[None]:
    """Exclude a look at the lock (which takes it for a moment) and taking it for good.

    Otherwise a process that takes the lock would sometimes be told, because of a mere look,
    that the directory is in use.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a network's file system may not lock directories
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


_TYPES: Final[dict[str, Any]] = {
    "pid": int,
    "address": (str, NoneType),
    "token": (str, NoneType),
    "stays": bool,
}
_UNREADABLE: Final = (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


def _read(fd: int) -> Holder | None:
    with contextlib.suppress(*_UNREADABLE):
        told: dict[str, Any] = json.loads(os.pread(fd, _LENGTH_BYTES, 0))
        if all(isinstance(value, _TYPES[name]) for name, value in told.items()):
            return Holder(**told)
    return None  # the holder is just writing it, or is another version


def in_use(directory: Path, holder: Holder | None) -> str:
    """Return the message for a process that finds *directory* locked."""
    if holder is None or not holder.pid:
        return f"{directory} is in use by another process"
    where = f", serving at {holder.address}" if holder.address and holder.stays else ""
    return f"{directory} is in use by process {holder.pid}{where}"
