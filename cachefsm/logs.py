"""What log lines look like to whoever runs a command. The library itself sets up nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

__all__ = ["logging_to"]


class _Lines(logging.Formatter):
    """One line per record; a traceback only where it is asked for."""

    def __init__(self, *, timed: bool, debug: bool) -> None:
        super().__init__()
        self._timed = timed
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as ``14:02:11 text``, or ``cachefsm: text`` without time."""
        text = " ".join(record.getMessage().split())
        if self._debug:
            text = f"{record.name}: {text}"
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text += f": {type(error).__name__}: {error}"
            if self._debug and record.exc_info:
                text += "\n" + self.formatException(record.exc_info)
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{moment if self._timed else 'cachefsm:'} {text}"


@contextmanager
def logging_to(
    handler: logging.Handler,
    level: int,
    *,
    timed: bool,
    debug: bool,
    floors: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[None]:
    """Send what cachefsm logs from *level* on, and others' warnings, to *handler*.

    *floors* raise the level of single loggers: those who would only say again what
    the command says by itself.
    """
    handler.setFormatter(_Lines(timed=timed, debug=debug))
    handler.setLevel(level)
    root, raises = logging.getLogger(), logging.raiseExceptions
    levels = {"cachefsm": level, **floors}
    before = {name: logging.getLogger(name).level for name in levels}
    root.addHandler(handler)
    logging.raiseExceptions = debug  # a log that cannot be written is no reason for tracebacks
    try:
        for name, its_level in levels.items():
            logging.getLogger(name).setLevel(its_level)
        yield
    finally:
        for name, its_level in before.items():
            logging.getLogger(name).setLevel(its_level)
        root.removeHandler(handler)
        logging.raiseExceptions = raises
