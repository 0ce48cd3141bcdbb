"""Tells listeners what happened, without slowing down the threads in which it happens.

Transitions are queued and told in order. Progress is not queued: an entry whose bytes grow
is marked, and its numbers are looked up when a listener takes the event, at most four
times a second for each entry. A slow listener gets fewer and newer ones; nothing piles up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol

from .surroundings import Transition
from .units import patience_s

__all__ = ["Event", "EventHub", "Mailbox", "Progress"]

_log = logging.getLogger(__name__)

BACKLOG: Final = 10_000
"""How many transitions wait for a slow listener at most; the oldest are dropped first."""

PROGRESS_EVERY_S: Final = 0.25
"""Often enough for a bar to move smoothly; the hundreds of writes a second in between
cost a look into a dictionary each."""


@dataclass(frozen=True)
class Progress:
    """How far one entry's download is; sizes in bytes, ``total_bytes`` None while unknown."""

    entry_id: int
    url: str
    downloaded_bytes: int
    total_bytes: int | None
    rate_bytes_s: int
    event: ClassVar[str] = "progress"
    """So that a callback can tell it from a :class:`Transition` by its ``event`` too."""


Event = Transition | Progress


class _Growing(Protocol):
    """What a mailbox needs of an entry whose bytes grow."""

    id: int

    def describe(self) -> dict[str, Any]: ...


class Mailbox:
    """The events that one listener has not taken yet; a context manager that closes it.

    Its lock is a leaf: nothing else is locked while it is held.
    """

    def __init__(
        self,
        on_close: Callable[[Mailbox], None] = lambda _mailbox: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_close = on_close
        self._clock = clock
        self._condition = threading.Condition()
        self._moves: deque[Transition] = deque(maxlen=BACKLOG)
        self._grown: dict[int, _Growing] = {}
        self._rest_until_s: dict[int, float] = {}  # by entry, after it was told of
        self._closed = False

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be put in."""
        with self._condition:
            return self._closed

    def put(self, move: Transition) -> None:
        """Keep *move* until it is taken."""
        with self._condition:
            if not self._closed:
                self._moves.append(move)
                self._condition.notify()

    def mark(self, entry: _Growing) -> None:
        """Remember that *entry* has more bytes than its listener may know of."""
        # Looked at without the lock, as this is done for every piece that arrives. It
        # is safe: a mark is taken away before the numbers are read, so that one which
        # is still there stands for these bytes as well.
        if entry.id in self._grown:
            return
        with self._condition:
            if not self._closed:
                self._grown[entry.id] = entry
                self._condition.notify()

    def get(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event; None after *timeout_s* without one, or when it is closed.

        Transitions go first. Progress has the numbers of the moment in which it is returned.

        Raises:
            UsageError: *timeout_s* is no number.
        """
        wait_s = patience_s(timeout_s)
        deadline_s = None if wait_s is None else self._clock() + wait_s
        with self._condition:
            while True:
                if self._moves:
                    return self._moves.popleft()
                now_s = self._clock()
                entry = self._take_mark(now_s)
                if entry is not None:
                    break
                if self._closed or (deadline_s is not None and now_s >= deadline_s):
                    return None
                moments = [self._rest_until_s[entry_id] for entry_id in self._grown]
                moments += [] if deadline_s is None else [deadline_s]
                self._condition.wait(min(moments) - now_s if moments else None)
        return _progress_of(entry)  # takes the entry's lock, so not under ours

    def close(self, *, drop: bool = True) -> None:
        """Put nothing more in; *drop* also what has not been taken. Safe to call twice."""
        with self._condition:
            self._closed = True
            self._grown.clear()
            if drop:
                self._moves.clear()
            self._condition.notify_all()
        self._on_close(self)

    def _take_mark(self, now_s: float) -> _Growing | None:
        """Return a marked entry whose progress is due now, if any. Call with the lock held."""
        self._rest_until_s = {
            entry_id: until_s for entry_id, until_s in self._rest_until_s.items() if until_s > now_s
        }
        for entry_id in self._grown:
            if entry_id not in self._rest_until_s:
                self._rest_until_s[entry_id] = now_s + PROGRESS_EVERY_S
                return self._grown.pop(entry_id)
        return None


class EventHub:
    """Hands each event to every listener; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced, never changed: who publishes looks at it without the lock.
        self._mailboxes: tuple[Mailbox, ...] = ()
        self._tellers: list[threading.Thread] = []
        self._closed = False

    def listen(self) -> Mailbox:
        """Return a mailbox that gets every event from now on, until it is closed."""
        mailbox = Mailbox(self._forget)
        with self._lock:
            if not self._closed:
                self._mailboxes = (*self._mailboxes, mailbox)
                return mailbox
        mailbox.close()
        return mailbox

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call *callback* with every event, in a thread of its own, until the result is called.

        Raises:
            RuntimeError: there is no thread to be had.
        """
        mailbox = self.listen()
        teller = threading.Thread(
            target=_tell, args=(mailbox, callback), name="cachefsm-events", daemon=True
        )
        try:
            with self._lock:
                teller.start()
                self._tellers = [*(t for t in self._tellers if t.is_alive()), teller]
        except RuntimeError:
            mailbox.close()  # nobody would ever take anything out of it
            raise

        def unsubscribe() -> None:
            mailbox.close()
            _join(teller)

        return unsubscribe

    def publish(self, move: Transition) -> None:
        """Tell of *move*; returns at once. Moves of one entry keep their order."""
        for mailbox in self._mailboxes:
            mailbox.put(move)

    def progressed(self, entry: _Growing) -> None:
        """Mark that *entry* has more bytes; returns at once, and costs next to nothing."""
        for mailbox in self._mailboxes:
            mailbox.mark(entry)

    def close(self) -> None:
        """End all listening after the last move."""
        with self._lock:
            self._closed = True
            mailboxes, tellers = self._mailboxes, self._tellers
        for mailbox in mailboxes:
            mailbox.close(drop=False)
        for teller in tellers:
            _join(teller)

    def _forget(self, mailbox: Mailbox) -> None:
        with self._lock:
            self._mailboxes = tuple(each for each in self._mailboxes if each is not mailbox)


def _tell(mailbox: Mailbox, callback: Callable[[Event], None]) -> None:
    while (event := mailbox.get()) is not None:
        try:
            callback(event)
        except Exception:  # noqa: BLE001 - the subscriber's bug, not ours
            _log.exception("a subscriber's callback failed")


def _join(teller: threading.Thread) -> None:
    if teller is not threading.current_thread():  # a callback may end its own subscription
        teller.join(1.0)


def _progress_of(entry: _Growing) -> Progress:
    facts = entry.describe()
    return Progress(
        entry_id=facts["id"],
        url=facts["url"],
        downloaded_bytes=facts["downloaded_bytes"],
        total_bytes=facts["total_size"],
        rate_bytes_s=facts["rate_bytes_s"],
    )
