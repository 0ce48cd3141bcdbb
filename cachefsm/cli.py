"""The command line: runs a command, and sees to it that its end is a civil one.

A failure is one line on stderr, whatever it was; a traceback is for ``--debug``.
Every command imports what it needs when it runs, so that the others start quickly.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from .arguments import ORDERS, parse_arguments
from .errors import CacheError, StorageError
from .settings import hide_secrets

__all__ = ["main"]

_SIGPIPE_STATUS = 128 + signal.SIGPIPE


class _Stopped(KeyboardInterrupt):
    """A signal asks the command to end; the argument is its number."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = argparse.Namespace(debug=False)
    _prepare_streams()
    try:
        with _signals_raise():
            try:
                options = parse_arguments(arguments)
                return _run(options)
            finally:
                _flush_stdout()
    except BrokenPipeError:
        _give_up(sys.stdout)  # whoever read our output has seen enough
        return _SIGPIPE_STATUS
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt)
    except CacheError as error:
        return _failed(str(error), options)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return _failed(text or str(error), options)
    except Exception as error:  # noqa: BLE001 - a person gets one line, whatever it is
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _failed(f"an internal error: {told}; --debug shows where", options)


def _prepare_streams() -> None:
    """Make sure that there are streams, and that no character is too much for them."""
    if sys.stdout is None or sys.stderr is None:  # closed, as by >&-
        nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - lasts
        sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test's may be something else
            stream.reconfigure(errors="backslashreplace")


def _flush_stdout() -> None:
    # Here, where a full disk or a closed pipe can still be said.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write to stdout: {error.strerror}") from error


def _run(options: argparse.Namespace) -> int:
    if options.command == "serve":
        from .serve import serve

        return serve(options)
    if options.command in ("get", "prefetch"):
        from . import get

        return get.get(options) if options.command == "get" else get.prefetch(options)
    if options.command == "verify":
        from .check import verify

        return verify(options)
    from . import orders, tuning
    from .logs import logging_to

    commands = {
        "list": orders.list_entries,
        "show": orders.show,
        "explain": tuning.explain,
        "limits": tuning.limits,
        "stats": orders.stats,
        "gc": orders.collect,
        "diagram": orders.diagram,
        **dict.fromkeys(ORDERS, orders.order),
    }
    level = logging.DEBUG if options.debug else logging.WARNING
    with logging_to(logging.StreamHandler(), level, timed=False, debug=options.debug):
        return commands[options.command](options)


def _failed(text: str, options: argparse.Namespace) -> int:
    if options.debug:
        traceback.print_exc()
    _say(hide_secrets(text))
    return 1


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    texts = [arg for arg in interrupt.args if isinstance(arg, str)]
    numbers = [arg for arg in interrupt.args if isinstance(arg, int)]
    _say(texts[0] if texts else "interrupted")
    return 128 + (numbers[0] if numbers else signal.SIGINT)


def _say(text: str) -> None:
    try:
        print(f"cachefsm: {' '.join(text.split())}", file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Point *stream* at nothing, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let the first signal that asks for an end raise :class:`_Stopped`; ignore the next.

    The end itself, flushing and closing, takes at most two seconds, and is not to
    be cut short. A signal that is ignored already, as under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in ends:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    before = {each: signal.getsignal(each) for each in ends}
    try:
        for each in ends:
            if before[each] != signal.SIG_IGN:
                signal.signal(each, stop)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
