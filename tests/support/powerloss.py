"""Recording what a cache does to its disk, and what is left of it when the power fails.

A content file's bytes survive once they were synced after they were written. Of what
was not synced nothing may be left, or any part. The database survives as of any commit
so far: it syncs its log when it likes, which may lose the last ones but keeps their
order. A file's name may be lost with everything in it, as directories are not synced.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

from cachefsm.errors import StorageError
from cachefsm.models import Store
from cachefsm.storage import ContentFile
from tests.support.audit import StoredEntry, entries_in

__all__ = ["Commit", "Disk", "Loss", "Recorder", "RecordingFile", "RefusedOnce", "Sync", "Write"]

PAGE_BYTES: Final = 4096  # what a disk writes or loses as one


@dataclass(frozen=True)
class Write:
    """Bytes that were handed to the operating system."""

    at: int
    file: str
    start: int
    data: bytes

    def pages(self) -> Iterator[Write]:
        """Yield it in the parts that a disk writes or loses."""
        position, stop = self.start, self.start + len(self.data)
        while position < stop:
            end = min(stop, (position // PAGE_BYTES + 1) * PAGE_BYTES)
            data = self.data[position - self.start : end - self.start]
            yield replace(self, start=position, data=data)
            position = end


@dataclass(frozen=True)
class Sync:
    """Everything written to the file before moment *since* is on the disk."""

    at: int
    file: str
    since: int


@dataclass(frozen=True)
class Loss:
    """What had been written to the file, and not synced, will never be on the disk."""

    at: int
    file: str


@dataclass(frozen=True)
class Commit:
    """The database as it has been since that moment."""

    at: int
    database: sqlite3.Connection


Event = Write | Sync | Loss | Commit


class Recorder:
    """What happened, each event with its moment: a number that only grows.

    An event that makes something certain has the moment of its end, one that makes
    something possible that of its beginning: in doubt, it is the worse for the cache.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._moments = count()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._transactions = threading.RLock()
        self._depth = 0
        self._observer: sqlite3.Connection | None = None
        self._seen: Any = None

    @property
    def events(self) -> list[Event]:
        """What has happened so far, in order."""
        with self._lock:
            return sorted(self._events, key=lambda event: event.at)

    def moment(self) -> int:
        return next(self._moments)

    def note(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)

    def name(self, path: Path) -> str:
        """Return how a content file is called wherever the directory is."""
        return path.relative_to(self.directory / "content").as_posix()

    def store_class(self) -> type[Store]:
        """Return a Store whose commits are recorded as another connection sees them."""
        recorder = self

        class RecordingStore(Store):
            @contextmanager
            def transaction(self) -> Iterator[None]:
                with recorder._transactions:  # so that nothing is committed before the look
                    recorder._depth += 1
                    try:
                        with super().transaction():
                            yield
                            begun = recorder.moment()
                    finally:
                        recorder._depth -= 1
                    if not recorder._depth:
                        recorder._look(begun)

        return RecordingStore

    def _look(self, begun: int) -> None:
        observer = self._observer
        if observer is None:
            path = self.directory / "cache.sqlite3"
            observer = self._observer = sqlite3.connect(path, check_same_thread=False)
        version = observer.execute("PRAGMA data_version").fetchone()
        if version == self._seen and self._events:
            return  # it only read
        self._seen = version
        snapshot = sqlite3.connect(":memory:", check_same_thread=False)
        observer.backup(snapshot)
        self.note(Commit(begun, snapshot))

    def close(self) -> None:
        """Let go of the databases."""
        if self._observer is not None:
            self._observer.close()
        for event in self.events:
            if isinstance(event, Commit):
                event.database.close()


class RecordingFile(ContentFile):
    """A content file whose writes and syncs are recorded once they are done."""

    def __init__(self, recorder: Recorder, path: Path) -> None:
        super().__init__(path)
        self._recorder = recorder
        self._name = recorder.name(path)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        super().write_at(offset, data)
        self._recorder.note(Write(self._recorder.moment(), self._name, offset, bytes(data)))

    def flush(self) -> None:
        since, is_open = self._recorder.moment(), self._fd >= 0
        super().flush()
        if is_open:  # else there was nothing to sync
            self._recorder.note(Sync(self._recorder.moment(), self._name, since))


class RefusedOnce(RecordingFile):
    """A file whose first sync fails, with which the kernel gives up those bytes.

    The next sync succeeds and says nothing of them: ``man 2 fsync``, EIO.
    """

    _refused = False

    def flush(self) -> None:
        if self._refused:
            super().flush()
            return
        self._refused = True
        self._recorder.note(Loss(self._recorder.moment(), self._name))
        raise StorageError("cannot sync: Input/output error (EIO)")


@dataclass
class Disk:
    """What is left: content files by name, and the database."""

    database: sqlite3.Connection
    files: dict[str, bytearray] = field(default_factory=dict)

    @classmethod
    def after(
        cls,
        events: Iterable[Event],
        until: int,
        commit: Commit,
        lucky: Callable[[], bool] = lambda: False,
    ) -> Disk:
        """Return what a power loss at moment *until* leaves, the database as of *commit*.

        *lucky* says of each page that was written and not synced whether it is there.
        """
        disk = cls(commit.database)
        unsynced: dict[str, list[Write]] = {}
        for event in events:
            if event.at >= until:
                break
            if isinstance(event, Write):
                unsynced.setdefault(event.file, []).append(event)
            elif isinstance(event, Loss):
                unsynced.pop(event.file, None)
            elif isinstance(event, Sync):
                written = unsynced.pop(event.file, [])
                disk._write(write for write in written if write.at < event.since)
                unsynced[event.file] = [write for write in written if write.at >= event.since]
        for written in unsynced.values():
            disk._write(page for write in written for page in write.pages() if lucky())
        return disk

    def as_of(self, commit: Commit) -> Disk:
        """Return the same files beside the database as of another commit."""
        return Disk(commit.database, self.files)

    def _write(self, writes: Iterable[Write]) -> None:
        for write in writes:
            self._put(write.file, write.start, write.data)

    def _put(self, name: str, start: int, data: bytes) -> None:
        file = self.files.setdefault(name, bytearray())
        file.extend(bytes(max(0, start + len(data) - len(file))))
        file[start : start + len(data)] = data

    def entries(self, directory: Path) -> list[StoredEntry]:
        """Return what the database says, as if all this were in *directory*."""
        return entries_in(self.database, directory)

    def reader(self, directory: Path) -> Callable[[Path, int, int], bytes]:
        """Return how `audit.complaints` reads these files."""

        def read(path: Path, start: int, stop: int) -> bytes:
            name = path.relative_to(directory / "content").as_posix()
            return bytes(self.files.get(name, b"")[start:stop])

        return read

    def write_to(self, directory: Path) -> None:
        """Make *directory* what the next start finds."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        target = sqlite3.connect(directory / "cache.sqlite3")
        self.database.backup(target)
        target.close()
        for name, data in self.files.items():
            path = directory / "content" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
