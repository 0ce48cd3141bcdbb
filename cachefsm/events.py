"""Tells subscribers what happened, without ever slowing down who makes it happen."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from .stored import Transition

__all__ = ["EventHub"]

_log = logging.getLogger(__name__)

BACKLOG: Final = 10_000
"""Events kept for a subscriber that does not keep up; the oldest go first."""


class _Subscriber:
    def __init__(self, callback: Callable[[Transition], None]) -> None:
        self._callback = callback
        self._condition = threading.Condition()
        self._backlog: deque[Transition] = deque(maxlen=BACKLOG)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="cachefsm-events", daemon=True)
        self._thread.start()

    def put(self, event: Transition) -> None:
        with self._condition:
            self._backlog.append(event)
            self._condition.notify()

    def end(self, *, deliver: bool) -> None:
        """Stop, after what is waiting or at once; a callback may end its own subscription."""
        with self._condition:
            if not deliver:
                self._backlog.clear()
            self._ended = True
            self._condition.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._backlog and not self._ended:
                    self._condition.wait()
                if not self._backlog:
                    return
                event = self._backlog.popleft()
            try:
                self._callback(event)
            except Exception:  # noqa: BLE001 - the subscriber's bug, not ours
                _log.exception("a subscriber's callback failed")


class EventHub:
    """Hands each event to every subscriber, in order, each in a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscribers: list[_Subscriber] = []

    def subscribe(self, callback: Callable[[Transition], None]) -> Callable[[], None]:
        """Call *callback* with every event from now on, until the result is called."""
        subscriber = _Subscriber(callback)
        with self._lock:
            self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with self._lock:
                if subscriber not in self._subscribers:
                    return
                self._subscribers.remove(subscriber)
            subscriber.end(deliver=False)

        return unsubscribe

    def publish(self, event: Transition) -> None:
        """Queue *event*; returns at once."""
        with self._lock:
            for subscriber in self._subscribers:
                subscriber.put(event)

    def close(self) -> None:
        """End every subscription after its last event."""
        with self._lock:
            subscribers, self._subscribers = self._subscribers, []
        for subscriber in subscribers:
            subscriber.end(deliver=True)
