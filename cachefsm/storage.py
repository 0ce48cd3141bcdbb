"""One sparse file per entry: positional reads and writes from many threads.

Nothing here knows which bytes are present: a sparse file's size says nothing
about that. Offsets and sizes are in bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from contextlib import suppress
from pathlib import Path

from .errors import StorageError

__all__ = [
    "ContentFile",
    "bytes_free",
    "content_name",
    "disk_usage",
    "is_content_name",
    "is_content_name_of",
    "remove_content",
]

_fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def content_name(key: str) -> str:
    """Return a relative path for a new content file of *key*, never given before.

    A hash, so that no URL can name a path; and a random part, so that whoever
    still reads or writes an invalidated or removed file never meets its successor.
    """
    return f"{_stem(key)}-{secrets.token_hex(4)}"


def is_content_name(name: object) -> bool:
    """Say whether *name* is one that :func:`content_name` may have given."""
    return isinstance(name, str) and _CONTENT_NAME.fullmatch(name) is not None


def is_content_name_of(name: object, key: object) -> bool:
    """Say whether *name* is one that :func:`content_name` may have given for *key*."""
    if not isinstance(name, str) or not isinstance(key, str):
        return False
    return is_content_name(name) and name.startswith(f"{_stem(key)}-")


def _stem(key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:34]}"


_CONTENT_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{32}-[0-9a-f]{8}")


def remove_content(path: Path) -> None:
    """Delete the file if it is there; who has it open keeps reading it.

    Raises:
        StorageError: the operating system refused.
    """
    try:
        with suppress(NotADirectoryError):  # what it was in is gone
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _storage_error("remove", path, error) from error


def disk_usage(path: Path) -> int:
    """Return the bytes that a file takes on the disk, which its size does not tell; 0 if gone."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def bytes_free(directory: Path) -> int:
    """Return how many bytes there is room for on the disk of *directory*.

    Raises:
        StorageError: the operating system refused, or the directory is gone.
    """
    try:
        return shutil.disk_usage(directory).free
    except OSError as error:
        raise _storage_error("look at", directory, error) from error


class ContentFile:
    """A file that is opened at its first use and counts who needs it.

    Reads and writes are positional (``pread``/``pwrite``) and so need no lock;
    the lock guards only opening and closing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._fd = -1
        self._writable = False
        self._users = 1
        self._discarded = False
        self._end = 0  # of what was written or found here: the file cannot end before it

    def retain(self) -> None:
        """Keep the file open until one more :meth:`release`."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Give up one use; the last one closes the file."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def discard(self) -> None:
        """Delete the file for good; who has it open keeps reading it.

        Raises:
            StorageError: the operating system refused.
        """
        with self._lock:
            # A late writer must not make it again, for nobody would know of it.
            self._discarded = True
            remove_content(self.path)

    def empty(self) -> None:
        """Give back at once the room that the file takes, also while somebody has it open.

        Raises:
            StorageError: the operating system refused.
        """
        try:
            with suppress(FileNotFoundError, NotADirectoryError):  # it takes none
                os.truncate(self.path, 0)
        except OSError as error:
            raise _storage_error("empty", self.path, error) from error

    def fileno(self, *, create: bool = False) -> int:
        """Return the open descriptor; valid while the caller retains the file.

        *create* is for those who will write.

        Raises:
            StorageError: the file is not there, or may not be opened.
        """
        fd = self._fd
        if fd >= 0 and (self._writable or not create):
            return fd
        with self._lock:
            if self._fd < 0 or (create and not self._writable):
                if self._discarded:
                    raise StorageError(f"{self.path.name} was discarded")
                try:
                    self._open(create=create)
                except OSError as error:
                    raise _storage_error("open", self.path, error) from error
            return self._fd

    def _open(self, *, create: bool) -> None:
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        writable = True
        try:
            fd = os.open(self.path, os.O_RDWR | (os.O_CREAT if create else 0) | _FLAGS, 0o600)
        except OSError as error:
            if create or error.errno not in _READ_ONLY:
                raise
            # What is stored on a disk that has become read-only can still be served.
            fd = os.open(self.path, os.O_RDONLY | _FLAGS)
            writable = self._writable = False
        if self._fd < 0:
            self._fd = fd
        else:  # under the same number, which readers are using
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
        # Only now: whoever sees it takes the descriptor without the lock.
        self._writable = writable

    def size(self) -> int | None:
        """Return the file's length in bytes, None where there is no file by that name.

        A file that was deleted or replaced while it is open here can still be
        read, but it is not the one that the next process will find.
        """
        try:
            found = self.path.lstat()
            if not stat.S_ISREG(found.st_mode):
                return None
            if self._fd >= 0 and not os.path.samestat(found, os.fstat(self._fd)):
                return None
            return found.st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _storage_error("look at", self.path, error) from error

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly *size* bytes.

        Raises:
            StorageError: the file is shorter than that, gone, or unreadable.
        """
        fd = self.fileno()
        try:
            data = os.pread(fd, size, offset)
            while len(data) < size:
                more = os.pread(fd, size - len(data), offset + len(data))
                if not more:
                    raise StorageError(
                        f"{self.path.name} ends at {offset + len(data)}, wanted {offset + size}"
                    )
                data += more
        except OSError as error:
            raise _storage_error("read", self.path, error) from error
        return data

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of *data* at *offset*, making the file if need be.

        Raises:
            StorageError: full disk, quota, read-only or failing device; or somebody has
                cut the file off, and more bytes would make noughts of what is lost.
        """
        fd = self.fileno(create=True)
        view = memoryview(data)
        try:
            end, size = self._end, os.fstat(fd).st_size  # in that order: others write, too
            if size < end:
                raise StorageError(f"{self.path.name} was cut off at {size}")
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
            self._end = max(self._end, offset)
        except OSError as error:
            raise _storage_error("write", self.path, error) from error

    def accept_end(self, offset: int, counted: int = 0) -> None:
        """Take note that nothing behind *offset* is counted on any more, but up to *counted* is."""
        self._end = max(min(self._end, offset), counted)

    def flush(self) -> None:
        """Return once every byte written so far would survive a power loss.

        Raises:
            StorageError: the device refused; the bytes must not be claimed.
        """
        if self._fd < 0:
            return
        try:
            _fdatasync(self._fd)
        except OSError as error:
            raise _storage_error("sync", self.path, error) from error


def _storage_error(verb: str, path: Path, error: OSError) -> StorageError:
    code = errno.errorcode.get(error.errno or 0, "")
    reason = error.strerror or str(error)
    return StorageError(f"cannot {verb} {path.name}: {reason}" + (f" ({code})" if code else ""))
