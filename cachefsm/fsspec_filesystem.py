"""A cache as an ``fsspec`` filesystem, so that what reads through fsspec uses it unchanged.

A path is a URL: ``cachefsm://https://example.org/data.csv``, or without the first
scheme where the filesystem is named already. Installed with ``cachefsm[fsspec]``, the
protocol is known to fsspec by itself.

A URL names a file; nothing is listed, nothing is written, and ``?``, ``*`` and ``[``
in it are no patterns. Errors are the ones that fsspec's users expect: an OSError, which
is a FileNotFoundError or PermissionError where the origin's status says so.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from fsspec import AbstractFileSystem

from .cache import Cache
from .cachefile import BUFFER_BYTES, BufferedCacheFile, CacheFile
from .errors import CacheError, UsageError
from .fields import parse_http_date, value_of
from .handle import Entry
from .ranges import END
from .reader import Reader
from .representation import Representation
from .urls import redact
from .values import default_cache_dir

__all__ = ["CacheFileSystem", "CachedFile"]

_SCHEME: Final = "cachefsm://"

_PARALLEL_RANGES: Final = 8
"""How many ranges of :meth:`CacheFileSystem.cat_ranges` are waited for at a time."""


class CacheFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files behind URLs, by way of a cache.

    Thread-safe. Only a filesystem that was made by *directory* can be pickled, and
    only one process at a time can use a directory.

    Args:
        cache: an open cache, which stays the caller's to close.
        directory: instead, the directory of one, by default the command line's. It is
            opened once for all filesystems of the process that name it, with the
            options that the first one gave, and closed when the process ends.
        options: of :class:`cachefsm.Cache`, for a directory. Unlike there, ``fill`` is
            ``"requested"``: tables are read in parts.

    Raises:
        CacheBusy: another process holds the directory.
        UsageError: an option makes no sense.
    """

    protocol = "cachefsm"
    # fsspec would find an instance by what its arguments look like, which is the same
    # for a closed cache and another one of the same directory.
    cachable = False

    def __init__(
        self,
        cache: Cache | None = None,
        directory: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if "target_protocol" in options:
            raise UsageError("a path is the URL itself: cachefsm://https://…, not cachefsm::")
        if cache is not None and (directory is not None or options):
            raise UsageError("an open cache has its directory and options already")
        self._cache = cache or _shared_cache(directory or default_cache_dir(), options)

    # -- paths -----------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return os.fspath(path).removeprefix(_SCHEME)

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL *name* as a path that any filesystem is found by."""
        return f"{_SCHEME}{self._strip_protocol(name)}"

    def expand_path(
        self, path: str | Sequence[str], recursive: bool = False, **_options: Any
    ) -> list[str]:
        """Return the paths as they are: a URL holds no patterns."""
        paths: list[str] = self._strip_protocol([path] if isinstance(path, str) else list(path))
        return paths

    def glob(self, path: str, detail: bool = False, **_options: Any) -> Any:
        """Return *path*, if there is such a file."""
        path = self._strip_protocol(path)
        found = {path: self.info(path)} if self.exists(path) else {}
        return found if detail else list(found)

    def isdir(self, path: str) -> bool:
        """Return False: URLs are files."""
        return False

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        """Return the file itself."""
        return [self.info(path) if detail else self._strip_protocol(path)]

    # -- files -----------------------------------------------------------------

    def entry(self, path: str) -> Entry:
        """Return the cache's entry behind *path*, to be pinned, prefetched or looked at."""
        with _translated(path):
            return self._cache.entry(self._strip_protocol(path))

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """Return name, size (None while unknown), type, and what else the origin says.

        Raises:
            FileNotFoundError: the origin says that there is no such file.
            OSError: it cannot be asked.
        """
        with self._reading(path) as file:
            return _info(self._strip_protocol(path), file.representation(0, BUFFER_BYTES))

    def modified(self, path: str) -> datetime:
        """Return the origin's Last-Modified."""
        modified_s = parse_http_date(self.info(path)["LastModified"])
        if modified_s is None:
            raise NotImplementedError("the origin does not say when the file was modified")
        return datetime.fromtimestamp(modified_s, timezone.utc)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_options: Any
    ) -> bytes:
        """Return the bytes from *start* to *end*; as in a slice, negative is from the end.

        Raises:
            OSError: they cannot be had.
        """
        first = max(0, start or 0)
        from_end = (start or 0) < 0 or (end or 0) < 0
        with self._reading(path) as file:
            if from_end or (end is not None and end <= first):
                length = file.representation(0, BUFFER_BYTES).complete_length
            else:
                length = file.representation(first, end or END).complete_length
            if length is not None:
                first, stop, _ = slice(start, end).indices(length)
            elif from_end:
                raise OSError(errno.ESPIPE, "the origin has not said how long the file is")
            else:
                stop = END if end is None else end
            return b"".join(file.pieces(first, stop))

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Iterable[int | None] | None,
        ends: int | Iterable[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_options: Any,
    ) -> list[bytes | BaseException]:
        """Return several ranges, asked for at the same time; *max_gap* is not needed here.

        With *on_error* ``"return"``, the place of what failed holds its error.
        """
        count = len(paths)
        starts = list(starts) if isinstance(starts, Iterable) else [starts] * count
        ends = list(ends) if isinstance(ends, Iterable) else [ends] * count
        if not len(starts) == len(ends) == count:
            raise ValueError("paths, starts and ends differ in number")
        with ThreadPoolExecutor(_PARALLEL_RANGES) as pool:
            waits = [
                pool.submit(self.cat_file, *wanted)
                for wanted in zip(paths, starts, ends, strict=True)
            ]
            if on_error == "return":
                return [wait.exception() or wait.result() for wait in waits]
            return [wait.result() for wait in waits]

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **_options: Any
    ) -> CachedFile:
        if mode != "rb":
            raise OSError(errno.EROFS, "a cache is read, not written", redact(path))
        with _translated(path):
            file = _RawFile(path, self._cache.readers(self.entry(path).id))
        return CachedFile(self, path, file, block_size or BUFFER_BYTES)

    @contextmanager
    def _reading(self, path: str) -> Iterator[CacheFile]:
        readers = self._cache.readers(self.entry(path).id)
        with _translated(path), closing(CacheFile(readers)) as file:
            yield file


class CachedFile(BufferedCacheFile):
    """A seekable binary file, with the attributes that fsspec's files have.

    A read blocks until its bytes are here. Not to be shared by threads.
    """

    def __init__(
        self, fs: CacheFileSystem, path: str, file: _RawFile, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        super().__init__(file, buffer_bytes)
        self.fs = fs
        self.path = path
        self._raw_file = file

    @property
    def mode(self) -> str:
        """``"rb"``."""
        return "rb"

    @property
    def size(self) -> int | None:
        """The length in bytes; None if the origin has not said it. May wait for its answer."""
        size: int | None = self.info()["size"]
        return size

    def info(self) -> dict[str, Any]:
        """Return what the filesystem's ``info`` does, of the version that is being read."""
        with _translated(self.path):
            return _info(self.path, self._raw_file.representation(0, BUFFER_BYTES))


class _RawFile(CacheFile):
    def __init__(self, path: str, open_reader: Callable[[], Reader]) -> None:
        super().__init__(open_reader)
        self._path = path

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _translated(self._path):
            return super().seek(offset, whence)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with _translated(self._path):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _translated(self._path):
            return super().readall()


def _info(path: str, representation: Representation) -> dict[str, Any]:
    validator = representation.validator
    return {
        "name": path,
        "size": representation.complete_length,
        "type": "file",
        "mimetype": value_of(representation.fields, "Content-Type"),
        "ETag": validator.etag,
        "LastModified": validator.last_modified,
    }


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise ValueError(str(error)) from error
    except CacheError as error:
        codes = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
        # OSError picks its subclass by the code.
        code = codes.get(error.status_hint, errno.EIO)
        raise OSError(code, str(error), redact(path.removeprefix(_SCHEME))) from error


# -- caches that are shared by the process ---------------------------------------------

_sharing: Final = threading.Lock()
_shared: Final[dict[tuple[int, Path], Cache]] = {}


def _shared_cache(directory: str | os.PathLike[str], options: dict[str, Any]) -> Cache:
    """Return the process's cache in *directory*, opened now if it was not.

    By process id, too: a fork has no threads, and its parent holds the directory.
    """
    key = os.getpid(), Path(directory).expanduser().absolute()
    with _sharing:
        if key not in _shared:
            _shared[key] = Cache(key[1], **{"fill": "requested", **options})
        return _shared[key]


@atexit.register
def _close_shared() -> None:
    with _sharing:
        for (process_id, _directory), cache in _shared.items():
            if process_id == os.getpid():
                cache.close()
        _shared.clear()
