"""How far a download is, on stderr: a bar on a terminal, elsewhere a line now and then.

The bar is a picture of the file: it shows which parts are here, so that one which
a player has jumped about in looks as it is.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

from .display import (
    file_name,
    format_eta,
    format_percent,
    format_state,
    format_stored,
    range_bar,
    shades,
)
from .units import format_size

__all__ = ["CHECKING", "LogAboveBar", "Progress", "progress_line"]

REDRAW_S: Final = 0.1
LINE_EVERY_S: Final = 15.0
"""Without a terminal: a log wants to know that it goes on, not how the bar grows."""

CHECKING: Final = "checking"
"""In place of a state: bytes are not fetched but compared with their checksums."""

_NAME_AT_MOST: Final = 28
_BAR_AT_MOST: Final = 40
_BAR_AT_LEAST: Final = 8


def progress_line(facts: dict[str, Any], width: int, marks: str) -> str:
    """Return name, bar, percent, bytes, rate and time left in at most *width* columns."""
    name = file_name(facts["url"].removesuffix("?…"))
    if len(name) > _NAME_AT_MOST:
        name = name[: _NAME_AT_MOST - 1] + "…"
    total = facts["total_size"]
    # As wide as it gets, so that the bar does not dance: "1023.9 KiB of 50 MiB".
    stored_width = 10 if total is None else 14 + len(format_size(total))
    pieces = [format_percent(facts).rjust(4), format_stored(facts).rjust(stored_width)]
    if facts["state"] in ("downloading", "initializing", CHECKING):
        rate = facts["rate_bytes_s"]
        if rate:
            pieces.append(f"{format_size(rate)}/s".rjust(12))
        if rate and total is not None:
            pieces.append(format_eta((total - facts["downloaded_bytes"]) / rate).rjust(5))
        if not rate and facts["state"] == "initializing":
            pieces.append("waiting for the origin")
    elif facts["state"] != "complete":
        pieces.append(format_state(facts))
    tail = "  ".join(pieces)
    room = min(_BAR_AT_MOST, width - len(name) - len(tail) - 4)
    if room < _BAR_AT_LEAST:
        return f"{name}  {tail}"[:width]
    return f"{name}  {range_bar(facts['ranges'], facts['total_size'], room, marks)}  {tail}"


class Progress:
    """Shows one download after another; a context manager that leaves a clean line.

    Used by one thread, but for :meth:`say`.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet or self._stream is None
        self._clock = clock
        self._bar = (
            not self._quiet and self._stream.isatty() and os.environ.get("TERM", "") != "dumb"
        )
        self._next_s = clock() + (0.0 if self._bar else LINE_EVERY_S)
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    @property
    def is_due(self) -> bool:
        """Whether :meth:`update` would show anything now."""
        return not self._quiet and self._clock() >= self._next_s

    def update(self, facts: dict[str, Any]) -> None:
        """Show *facts*, unless others were shown just now."""
        if not self.is_due:
            return
        self._next_s = self._clock() + (REDRAW_S if self._bar else LINE_EVERY_S)
        width = shutil.get_terminal_size().columns - 1 if self._bar else 120
        line = progress_line(facts, width, shades(self._stream))
        if not self._bar:
            self.say(line)
            return
        self._drawn = True
        self._write(f"\r{line}\x1b[K")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.clear()
        self._write(f"{line}\n")

    def clear(self) -> None:
        """Take the bar away."""
        if self._drawn:
            self._drawn = False
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._quiet = True  # nobody looks any more; the download matters more


class LogAboveBar(logging.Handler):
    """Prints log lines without tearing the bar apart."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            self._progress.say(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)
