"""Sizes and durations as people write them: ``20G``, ``1.5GiB``, ``500ms``, ``1h30m``.

Everything that reads or shows one, on the command line, in the environment, in
Python and in the dashboard's text, goes through these functions.
"""

from __future__ import annotations

import re
from decimal import Decimal

from .errors import UsageError

__all__ = ["format_size", "parse_duration", "parse_size", "patience_s"]

# A bare letter is a power of 1024, as in rclone, nginx, ls and dd: whoever gives
# a cache 20G means what `du -h` shows as 20G. Powers of 1000 want their B.
_SIZE_FACTORS = {
    "": 1,
    "b": 1,
    **{unit: 1024**power for power, unit in enumerate("kmgtpe", 1)},
    **{f"{unit}ib": 1024**power for power, unit in enumerate("kmgtpe", 1)},
    **{f"{unit}b": 1000**power for power, unit in enumerate("kmgtpe", 1)},
}
_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

# Largest first, which is also the order they are written in.
_DURATION_FACTORS_MS = {
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SIZE = re.compile(rf"({_NUMBER}) *([A-Za-z]*)")
_PLAIN = re.compile(_NUMBER)
_DURATION = re.compile(" *".join(rf"(?:({_NUMBER}) *{unit})?" for unit in _DURATION_FACTORS_MS))

# What SQLite's integers hold, and a century: enough for any use, and short of
# the numbers at which the clock or threading.Lock raises OverflowError.
_MAX_SIZE_BYTES = 2**63 - 1
_MAX_DURATION_MS = 36_500 * 86_400_000


def parse_size(text: str | int) -> int:
    """Return the number of bytes that *text* stands for, rounded down.

    A number and a unit, in any case: ``K M G T P E`` and ``KiB … EiB`` are powers
    of 1024, ``kB … EB`` are powers of 1000, none or ``B`` is bytes. An integer
    is taken as it is, so that Python callers may pass either.

    Raises:
        UsageError: *text* is something else, negative, or 8 EiB or more.
    """
    if isinstance(text, str):
        match = _SIZE.fullmatch(text.strip(" "))
        factor = _SIZE_FACTORS.get(match[2].lower()) if match else None
        # A fraction of a byte is a unit forgotten, not a very small cache.
        if not match or factor is None or (factor == 1 and "." in match[1]):
            raise _not_a_size(text)
        size_bytes = int(Decimal(match[1]) * factor) if len(match[1]) <= 40 else -1
    elif type(text) is int:
        size_bytes = text
    else:
        raise _not_a_size(text)
    if not 0 <= size_bytes <= _MAX_SIZE_BYTES:
        raise _not_a_size(text)
    return size_bytes


def parse_duration(text: str | float) -> float:
    """Return the seconds that *text* stands for.

    Numbers with units, the largest unit first and each at most once: ``w d h m s
    ms``, as in ``30d``, ``1h30m`` or ``1.5s``; a number alone is seconds. A float
    or an integer is seconds, so that Python callers may pass either.

    Raises:
        UsageError: *text* is something else, negative, not finite, or longer
            than 36500 days.
    """
    if isinstance(text, str):
        duration_ms = _duration_ms(text)
    elif type(text) not in (int, float) or not 0 <= text <= _MAX_DURATION_MS / 1000:  # nan neither
        raise _not_a_duration(text)
    else:
        return float(text)
    if duration_ms > _MAX_DURATION_MS:
        raise _not_a_duration(text)
    return float(duration_ms / 1000)


def patience_s(timeout: object) -> float | None:
    """Return for how many seconds to wait, None for no limit; no longer than clocks can.

    Raises:
        UsageError: *timeout* is no number.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)) or timeout != timeout:  # nan is no number either
        raise UsageError(f"{_shown(timeout)} is no number of seconds to wait")
    return min(timeout, _MAX_DURATION_MS / 1000)


def _duration_ms(text: str) -> Decimal:
    stripped = text.strip(" ")
    if len(stripped) > 100:
        raise _not_a_duration(text)
    if _PLAIN.fullmatch(stripped):
        return Decimal(stripped) * 1000
    match = _DURATION.fullmatch(stripped)
    if not match or not stripped:
        raise _not_a_duration(text)
    return sum(
        (
            Decimal(number) * factor_ms
            for number, factor_ms in zip(match.groups(), _DURATION_FACTORS_MS.values(), strict=True)
            if number is not None
        ),
        Decimal(0),
    )


def format_size(size_bytes: int) -> str:
    """Return *size_bytes* for people: ``0 B``, ``1.5 GiB``, ``123.4 MiB``.

    Powers of 1024 and one digit after the point, left out where it is 0.
    :func:`parse_size` reads the result.
    """
    value = float(size_bytes)
    for unit in _SIZE_UNITS:
        # Compare what will be shown, or 1048575 bytes would be "1024 KiB".
        if round(value, 1) < 1024 or unit == _SIZE_UNITS[-1]:
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def _not_a_size(text: object) -> UsageError:
    return UsageError(f"{_shown(text)} is not a size: write one such as 500M, 1.5GiB or 20G")


def _not_a_duration(text: object) -> UsageError:
    return UsageError(f"{_shown(text)} is not a duration: write one such as 500ms, 90s or 1h30m")


def _shown(text: object) -> str:
    """Return *text* quoted, short enough for a message of one line."""
    shown = repr(text)
    return shown if len(shown) <= 42 else f"{shown[:40]}…"
