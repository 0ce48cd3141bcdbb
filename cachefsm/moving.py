"""An entry's row and machine, and what is known of its content, under one lock.

:class:`MovingEntry` is the ground that :class:`cachefsm.entry.LiveEntry` stands on. It
moves the entry through its lifecycle, lets others wait for that, and starts a new
generation when the stored bytes have become useless. It reads and writes no content
file, and knows nothing of readers and downloaders.

Lock order: registry, then entry, then the store's. File I/O never happens under the
entry's lock: files that are given up under it are deleted when it is let go. A method
named ``_name`` is called with the entry's lock held, unless it says otherwise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .content import Content
from .errors import CacheError, EntryNotFound, RepresentationChanged, StorageError
from .freshness import VaryKey
from .lifecycle import Lifecycle, Move
from .models import EntryRecord
from .ranges import ByteRange, RangeSet
from .records import BLANK, EACH_ITS_OWN, columns_of, failure_of, representation_of, vary_to_json
from .representation import Representation
from .states import ACTIVE, PERSON, DownloadState
from .storage import ContentFile, content_name
from .surroundings import Surroundings, Transition
from .terms import Stored
from .urls import parse_url, redact
from .waiting import Waiters

__all__ = ["MovingEntry"]

_log = logging.getLogger(__name__)


class MovingEntry:
    """One entry's row, machine and content under one lock; see the module."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        # Write once.
        self.id = record.id
        self.key = record.key
        self._around = surroundings
        self._lock = threading.RLock()
        # Read write, under the lock.
        self.url = parse_url(record.url)
        self.shown_url = redact(record.url)
        self._lifecycle = Lifecycle(surroundings.store, record)
        self._content = self._load_content(record)
        self._waiters = Waiters(self._lock)
        self._failure: CacheError | None = None
        self._closed: CacheError | None = None
        self._removed = False
        self._unwritten: dict[str, Any] = {}
        """Columns to be written with the next record of progress; losing them costs little."""
        self._given_up: list[ContentFile] = []

    def _load_content(self, record: EntryRecord) -> Content:
        store = self._around.store
        chunks = store.chunks(record.id)
        content = Content(
            self._around.make_file(self._around.directory / record.content_file),
            RangeSet(chunks),
            RangeSet(chunks),
            representation=representation_of(record),
            requested_s=record.requested_at or 0.0,
            received_s=record.validated_at or 0.0,
            path=self.url.path,
        )
        for start, blob in store.checksums(record.id).items():
            run = ByteRange(start, content.durable.run_stop(start))
            content.digests.unpack(run, blob, content.length)
        return content

    # -- looking ---------------------------------------------------------------

    @property
    def record(self) -> EntryRecord:
        """The row as this process last read or wrote it."""
        with self._lock:
            return self._lifecycle.record

    @property
    def state(self) -> DownloadState:
        """Where the download stands."""
        with self._lock:
            return self._lifecycle.state

    @property
    def content(self) -> Content:
        """The present generation's content."""
        with self._lock:
            return self._content

    def ranges(self) -> list[ByteRange]:
        """Return the present byte ranges, in order."""
        with self._lock:
            return list(self._content.present)

    def has(self, start: int, stop: int) -> bool:
        """Say whether ``[start, stop)``, clipped to the file, is here."""
        with self._lock:
            return self._content.has(start, stop)

    def stored_until(self, content: Content, position: int, stop: int) -> int:
        """Return where the stored run at *position* ends, or *position*; at most *stop*."""
        with self._lock:
            return min(content.present.run_stop(position), max(position, stop))

    def open_file(self, content: Content) -> None:
        """Open the content's file, so that what is present stays readable until released.

        Raises:
            CacheError: it is gone, because the entry was removed or moved on; or
                it cannot be opened.
        """
        try:
            content.file.fileno()
        except StorageError:
            with self._lock:
                cause = self._closed or content.superseded
            if cause is None:
                raise
            raise cause.again() from None

    def failure(self) -> CacheError | None:
        """Return why the entry failed, or None if it has not."""
        with self._lock:
            if self._lifecycle.state is not DownloadState.FAILED:
                return None
            return self._failure or failure_of(self._lifecycle.record)

    # -- waiting ---------------------------------------------------------------

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        timeout_s: float | None,
        content: Content | None = None,
    ) -> bool:
        """Return True once *ready* does, which is called with the lock held; False on timeout.

        Raises:
            CacheError: it can no longer become true: the entry failed, *content*
                was superseded, or the cache closed. Raised at once, with the cause.
        """
        with self._lock:
            return self._waiters.wait(
                ready, lambda deadline_s: self._hopeless(content, deadline_s), timeout_s
            )

    def wake(self) -> None:
        """Let every waiter look again: something outside the entry has changed."""
        with self._lock:
            self._waiters.wake_all()

    # -- changing --------------------------------------------------------------

    def invalidate(self, reason: str) -> None:
        """Drop the stored bytes: the representation changed, rotted or is evicted.

        Readers may go on to read what this generation holds; no more will come.
        """
        with self._letting_go():
            self._invalidate(reason)
        self._around.on_change(self)

    def update(self, **columns: Any) -> None:
        """Write columns that are no part of the lifecycle, such as ``pinned``."""
        with self._lock:
            self._write(**columns)

    def recover(self) -> None:
        """Bring an entry that a stopped process left active to its defined state."""
        with self._lock:
            self._send("recover", reason="recovered")

    def rest(self, reason: str) -> None:
        """Pause an active entry because the cache closes."""
        with self._lock:
            if self._lifecycle.state in ACTIVE:
                self._send("pause", reason=reason)

    def close(self, cause: CacheError) -> None:
        """Stop its streams and fail its waiters with *cause*; nothing more is accepted."""
        with self._lock:
            self._closed = cause
            self._stop_filling()
            self._waiters.wake_all()

    def remove(self) -> None:
        """Delete the row; whoever is still here is told that the entry is gone.

        Raises:
            StorageError: the database refused; nothing has changed.
        """
        with self._lock:
            self._around.store.delete(self.id)
            self._removed = True
            self.close(EntryNotFound(f"entry {self.id} was removed"))

    def release_file(self) -> None:
        """Close the content file once nobody else has it open."""
        self.content.file.release()

    def discard_given_up(self) -> None:
        """Delete the files that were given up; without the lock, as a large one takes a while.

        A file that cannot be deleted now belongs to no entry, so the next start deletes it.
        """
        with self._lock:
            files, self._given_up = self._given_up, []
        for file in files:
            try:
                file.discard()
            except StorageError as error:
                _log.warning("%s: %s", self.shown_url, error)

    # -- with the lock held ----------------------------------------------------

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        """Take and hold the lock; afterwards delete the files that were given up meanwhile."""
        try:
            with self._lock:
                yield
        finally:
            self.discard_given_up()

    def _send(self, event: str, *, reason: str | None = None, **facts: Any) -> None:
        """Move by *event*, wake everybody who waits, and tell everybody who listens."""
        self._send_all((event, self._move_of(reason, **facts)))

    def _send_all(self, *moves: tuple[str, Move]) -> None:
        """Move by several events in one transaction: by all of them, or by none."""
        source = self._lifecycle.state
        try:
            records = self._lifecycle.send_all(moves)
        finally:
            self._waiters.wake_all()
        for (event, move), record in zip(moves, records, strict=True):
            target = DownloadState(record.state)
            self._tell(event, source, target, move.reason)
            source = target

    def _move_of(self, reason: str | None, **facts: Any) -> Move:
        return Move(reason=reason, now_s=self._around.clock(), **facts)

    def _tell(
        self, event: str, source: DownloadState, target: DownloadState, reason: str | None
    ) -> None:
        if target is not DownloadState.FAILED:
            self._failure = None
            self._around.negatives.forget(self.id)
        why = f" ({reason})" if reason else ""
        _log.info("%s %s %s -> %s%s", self.shown_url, event, source, target, why)
        self._around.on_transition(
            Transition(self.id, self.shown_url, event, source, target, reason)
        )

    def _fail(
        self, error: CacheError, *, event: str = "fail", reason: str | None = None, rest_s: float
    ) -> None:
        """Move to failed: streams end, waiters hear *error*, new readers wait *rest_s*."""
        self._send(
            event,
            reason=reason or str(error),
            columns={
                "retry_at": self._around.clock() + rest_s,
                "error_status": error.status_hint,
            },
            ends_demands=True,
        )
        self._failure = error
        self._stop_filling()
        self._finished()
        self._waiters.wake_all()

    def _invalidate(self, reason: str, *, keeps_pause: bool = False) -> None:
        """Move to a new, empty generation; :meth:`_letting_go` deletes the old file."""
        name = content_name(self.key)
        self._send_invalidate(
            reason, keeps_pause=keeps_pause, columns={**BLANK, "content_file": name}
        )
        self._stop_filling()
        old = self._content
        file = self._around.make_file(self._around.directory / name)
        self._content = Content(file, path=self.url.path)
        old.superseded = self._superseded(reason)
        self._unwritten = {}
        old.file.release()
        self._given_up.append(old.file)
        self._waiters.wake_all()

    def _send_invalidate(self, reason: str, *, keeps_pause: bool, **facts: Any) -> None:
        """Move to a new generation; with *keeps_pause* a person's pause stays in force.

        That takes two moves, in one transaction: a kill in between must not end the pause.
        """
        moves = [("invalidate", self._move_of(reason, **facts))]
        if self._lifecycle.state is DownloadState.NOT_STARTED:
            # It is a legal move then: bytes may be left from the last invalidation.
            moves.insert(0, ("initialize", self._move_of(None)))
        if keeps_pause and self._is_held():
            moves += [("initialize", self._move_of(None)), ("pause", self._move_of(PERSON))]
        self._send_all(*moves)

    def _is_held(self) -> bool:
        """Say whether a person has paused it."""
        record = self._lifecycle.record
        return record.state == DownloadState.PAUSED and record.state_reason == PERSON

    def _learn(
        self,
        content: Content,
        new: Representation,
        *,
        asked_at_s: float | None = None,
        selected_by: VaryKey | None = None,
    ) -> None:
        """Write what an answer told of the representation, and make the move that it calls for.

        A further answer of the same version is not written at once: its time and fields go
        with the next record of the bytes that it brings. If the process dies before that,
        the row and the bytes are both as they were before that answer.

        *asked_at_s* is the Unix time of the request, None if there was none; then the
        stored response does not become any younger. *selected_by* are the request fields
        that selected it (Vary).
        """
        old, now_s = content.representation, self._around.clock()
        if old is not None and old.complete_length is not None and new.complete_length is None:
            new = replace(new, complete_length=old.complete_length)
        told = Stored(new, content.requested_s, content.received_s)
        if asked_at_s is not None or old is None:
            told = Stored(new, now_s if asked_at_s is None else asked_at_s, now_s)
        columns = columns_of(told)
        if selected_by is not None:
            columns["vary"] = vary_to_json(selected_by)
        if self._lifecycle.state is DownloadState.INITIALIZING:
            self._send("begin", columns=columns)
            self._unwritten = {}
        elif self._lifecycle.state is DownloadState.DOWNLOADING and self._is_no_news(columns):
            self._unwritten = columns
            self._around.on_dirty(self, False)
        else:
            self._write(**columns)
            self._unwritten = {}
        content.representation = new
        content.requested_s, content.received_s = told.requested_s, told.received_s
        if asked_at_s is not None:
            content.confirmed_s = self._around.ticks()

    def _is_no_news(self, columns: dict[str, Any]) -> bool:
        """Say whether *columns* differ from the row only in what changes with each answer."""
        record = self._lifecycle.record
        return all(getattr(record, name) == columns[name] for name in columns.keys() - EACH_ITS_OWN)

    def _write(self, **columns: Any) -> None:
        """Write columns that are no part of the lifecycle."""
        self._lifecycle.update(columns)

    def _hopeless(self, content: Content | None, deadline_s: float | None) -> CacheError | None:
        """Return the error that makes waiting for *content* useless, or None.

        *deadline_s* is the monotonic time at which the wait ends, for subclasses.
        """
        if self._closed is not None:
            return self._closed
        if content is not None and content.superseded is not None:
            return content.superseded
        return self.failure()

    # What the layer above does when the ground moves.

    def _finished(self) -> None:
        """Nothing more is to be fetched: complete, failed or cancelled."""

    def _stop_filling(self) -> None:
        """No byte may be added to the present content any more."""

    def _superseded(self, reason: str) -> CacheError:
        return RepresentationChanged(reason)
