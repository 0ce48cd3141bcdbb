"""Running something beside the test, and getting its result or its error back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

__all__ = ["in_thread"]

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Call *function* in a thread of its own; ``result(timeout)`` returns or raises for it.

    A daemon thread: a call that a failed test left blocked does not keep pytest alive.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - the caller of result() gets it
            future.set_exception(error)

    threading.Thread(target=run, name=f"test:{function!r}", daemon=True).start()
    return future
