"""The lifecycle of a download: states, events, guards and the hook that persists.

Rule 1, borrowed from h11: whatever decides whether an entry may move lives in
this file. A missing line in :class:`DownloadLifecycle` *is* the refusal.

Theory of operation. The machine never owns the truth; the row does. A move is

1. an outer ``BEGIN IMMEDIATE`` transaction, opened by :meth:`Lifecycle.send`;
2. the machine's guards, then its one hook that may raise, ``on_transition``,
   which updates the row *where it still is in the source state and generation*
   and must touch exactly one row;
3. ``COMMIT``; only then is :attr:`Lifecycle.record`, an immutable snapshot,
   replaced, so that memory can't run ahead of the database.

If anything raises on the way, the transaction is rolled back, the machine (whose
state may have moved) is thrown away, and the snapshot is what it was, or what
the row says if somebody else had changed it. A machine takes 80 KiB, and longer to
build than to move; so machines are reused: before each move a machine is given the
entry and its state, and after the move it serves the next entry.

python-statemachine queues a ``send`` made during another thread's ``send``, so
:meth:`Lifecycle.send` is called with the entry's lock held, always.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from statemachine import State, StateMachine
from statemachine.exceptions import TransitionNotAllowed

from .errors import IllegalMove, StorageError
from .models import EntryRecord, QueueRecord, StaleRow, Store
from .ranges import ByteRange
from .states import PERSON, DownloadState

__all__ = ["PERSON", "DownloadLifecycle", "Lifecycle", "Move", "is_resting"]


@dataclass(frozen=True)
class Move:
    """The facts that go with an event: for the guards, and to be written with the move.

    ``columns`` are written with the new state; ``chunks`` are byte ranges that have become
    durable since the last save, with their ``checksums`` by start. ``demands`` replace what
    their asker had in the queue; ``ends_demands`` deletes everybody's. The rest is for the
    guards.
    """

    reason: str | None = None
    asked_by: str | None = None
    now_s: float = 0.0
    durable_bytes: int = 0
    complete_length: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    chunks: tuple[ByteRange, ...] = ()
    checksums: Mapping[int, bytes] = field(default_factory=dict)
    demands: tuple[QueueRecord, ...] = ()
    ends_demands: bool = False


class DownloadLifecycle(StateMachine):
    """The life of one download.

    {statechart:md}
    """

    not_started = State("NotStarted", value=DownloadState.NOT_STARTED.value, initial=True)
    initializing = State("Initializing", value=DownloadState.INITIALIZING.value)
    downloading = State("Downloading", value=DownloadState.DOWNLOADING.value)
    paused = State("Paused", value=DownloadState.PAUSED.value)
    # Not final: nothing leaves a final state, and eviction must.
    complete = State("Complete", value=DownloadState.COMPLETE.value)
    failed = State("Failed", value=DownloadState.FAILED.value)

    initialize = not_started.to(initializing)
    begin = initializing.to(downloading)
    pause = initializing.to(paused) | downloading.to(paused)
    resume = paused.to(initializing, cond="not_held_by_a_person")
    finish = initializing.to(complete, cond="every_byte_is_durable") | downloading.to(
        complete, cond="every_byte_is_durable"
    )
    fail = initializing.to(failed) | downloading.to(failed) | paused.to(failed)
    cancel = (
        not_started.to(failed)
        | initializing.to(failed)
        | downloading.to(failed)
        | paused.to(failed)
    )
    retry = failed.to(initializing, cond="back_off_has_passed")
    invalidate = (
        initializing.to(not_started)
        | downloading.to(not_started)
        | paused.to(not_started)
        | complete.to(not_started)
        | failed.to(not_started)
    )
    recover = initializing.to(paused) | downloading.to(paused)

    def not_held_by_a_person(self, move: Move) -> bool:
        """A person's pause ends when a person says so; any other when bytes are wanted."""
        return self._record.state_reason != PERSON or move.asked_by == PERSON

    def every_byte_is_durable(self, move: Move) -> bool:
        """The length is known and that many bytes are safe in the file."""
        return move.complete_length is not None and move.durable_bytes == move.complete_length

    def back_off_has_passed(self, move: Move) -> bool:
        """A person may retry at once; a new reader, after the wait that the failure set."""
        return move.asked_by == PERSON or not is_resting(self._record, move.now_s)

    def on_transition(self, event: str, target: State, move: Move) -> None:
        """Write the move to the row; whatever this raises, the move did not happen."""
        subject: _Subject = self.model
        columns = move.columns
        if event == "invalidate":
            # Whoever still writes for the old generation finds no such row.
            columns = {**columns, "generation": subject.record.generation + 1}
        subject.record = subject.store.write_move(
            subject.record,
            state=str(target.value),
            reason=move.reason,
            now_s=move.now_s,
            columns=columns,
            chunks=move.chunks,
            checksums=move.checksums,
        )
        if move.demands:
            subject.store.enqueue(*move.demands)
        if move.ends_demands:
            subject.store.dequeue(subject.record.id)

    @property
    def _record(self) -> EntryRecord:
        subject: _Subject = self.model
        return subject.record


#: Events that people order, by what they call them: on the command line, in Python, in JSON.
_ORDERS: Final = {
    "initialize": "prefetch",
    "pause": "pause",
    "resume": "resume",
    "retry": "retry",
    "cancel": "cancel",
}


_MOVES: Final = [
    (str(state.value), str(move.event), str(move.target.value))
    for state in DownloadLifecycle.states
    for move in state.transitions
]
"""Every legal move: source state, event, target state."""


def _refusal(event: str, record: EntryRecord) -> IllegalMove:
    """Return the error that refuses *event*, with advice in its message.

    That is another order that leads to the same state; or that the entry is in that state
    already; or else which orders are possible.
    """
    targets = {target for _, name, target in _MOVES if name == event}
    orders = {
        order: target
        for name, order in _ORDERS.items()
        for move_from, move, target in _MOVES
        if (move_from, move) == (record.state, name)
    }
    instead = [order for order, target in orders.items() if target in targets]
    message = f"cannot {event} an entry that is {record.state}"
    if event in _ORDERS and event not in orders:  # else nobody ordered it, or it is too early
        if record.state in targets:
            why = record.state_reason
            message += f" ({why}) already" if why not in (None, PERSON) else " already"
        elif orders:
            message += f"; {instead[0]} it" if instead else f"; possible: {', '.join(orders)}"
    return IllegalMove(event, record.state, message, tuple(orders))


def is_resting(record: EntryRecord, now_s: float) -> bool:
    """Say whether a failed entry must not be retried yet at *now_s* by a new reader.

    If *now_s* is before the failure, the clock was set back; then the entry need not wait,
    as that could take arbitrarily long.
    """
    retry_at = record.retry_at
    return retry_at is not None and record.state_since <= now_s < retry_at


class _Subject:
    """What a machine moves: an entry's state, and the row as this transaction sees it."""

    store: Store
    record: EntryRecord
    state: str

    def __init__(self, store: Store, record: EntryRecord, state: DownloadState) -> None:
        self.become(store, record, state)

    def become(self, store: Store, record: EntryRecord, state: DownloadState) -> None:
        """Be that entry from now on."""
        self.store, self.record, self.state = store, record, state.value

    def nobody(self) -> None:
        """Let go of what :meth:`become` was given."""
        del self.store, self.record


_idle: Final[deque[DownloadLifecycle]] = deque(maxlen=4)
"""Machines that are not in use at the moment."""


class Lifecycle:
    """One entry's row, and how it moves.

    Not thread-safe: call with the entry's lock held.
    """

    def __init__(self, store: Store, record: EntryRecord) -> None:
        self._store = store
        self.record = record

    @property
    def state(self) -> DownloadState:
        """The state that the database holds.

        Raises:
            StorageError: it is none of the six; the database is damaged.
        """
        try:
            return DownloadState(self.record.state)
        except ValueError as error:
            state, number = self.record.state, self.record.id
            raise StorageError(f"entry {number} is in a state unknown here: {state!r}") from error

    def send(self, event: str, move: Move) -> EntryRecord:
        """Move by *event* and return the new snapshot, which is committed.

        Raises:
            IllegalMove: the table has no such event in this state, or its guard
                refuses; nothing has changed.
            StorageError: the database refused; nothing has changed. If the row
                had been changed by somebody else, :attr:`record` is now that row.
        """
        return self.send_all([(event, move)])[-1]

    def send_all(self, moves: Sequence[tuple[str, Move]]) -> list[EntryRecord]:
        """Move by several events in one transaction: a kill leaves all of it behind, or nothing.

        Returns the snapshot after each of them. Raises as :meth:`send` does.
        """
        machine = self._machine()
        subject: _Subject = machine.model
        records = []
        try:
            with self._reloading(), self._store.transaction():
                for event, move in moves:
                    machine.send(event, move=move)
                    records.append(subject.record)
        except TransitionNotAllowed as error:
            raise _refusal(event, subject.record) from error
        self.record = subject.record
        subject.nobody()
        _idle.append(machine)
        return records

    def reload(self) -> EntryRecord:
        """Take the row as it is in the database.

        Raises:
            EntryNotFound: the row is gone.
        """
        self.record = self._store.entry(self.record.id)
        return self.record

    def update(self, columns: Mapping[str, Any]) -> None:
        """Write *columns*, which are no part of the lifecycle.

        Raises:
            StorageError: the database refused; nothing has changed, as for :meth:`send`.
        """
        with self._reloading():
            self.record = self._store.update(self.record, **columns)

    def save_chunks(
        self,
        chunks: tuple[ByteRange, ...],
        *,
        bytes_present: int,
        now_s: float,
        checksums: Mapping[int, bytes],
    ) -> None:
        """Record ranges that have become durable; see :meth:`Store.save_chunks`.

        Raises:
            StorageError: the database refused; nothing has changed, as for :meth:`send`.
        """
        with self._reloading():
            self.record = self._store.save_chunks(
                self.record,
                chunks,
                bytes_present=bytes_present,
                now_s=now_s,
                checksums=checksums,
            )

    @contextmanager
    def _reloading(self) -> Iterator[None]:
        """Take the row as it is, if it turns out that somebody else has changed it."""
        try:
            yield
        except StaleRow:
            self.reload()
            raise

    def _machine(self) -> DownloadLifecycle:
        """Return a machine that nobody else has, in this entry's state."""
        # The engine does not validate a restored state; ours does.
        state = self.state
        try:
            machine = _idle.pop()
        except IndexError:
            return DownloadLifecycle(_Subject(self._store, self.record, state))
        subject: _Subject = machine.model
        subject.become(self._store, self.record, state)
        return machine
