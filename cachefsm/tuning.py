"""The commands that ask a running cache about its pace, and set it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from .backend import Facts, open_backend
from .pacing import RATES
from .units import format_size

__all__ = ["explain", "limits"]


def limits(options: argparse.Namespace) -> int:
    """Change the rates that were given; print those that hold."""
    given = {rate: getattr(options, f"limit_{rate}") for rate in RATES}
    changes = {rate: size for rate, size in given.items() if size is not None}
    with open_backend(options.cache_dir) as backend:
        found = backend.limits(changes)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for rate, what in RATES.items():
            size = f"{format_size(found[rate])}/s" if found[rate] else "no limit"
            print(f"{size:>12}  {what}")
    return 0


def explain(options: argparse.Namespace) -> int:
    """Say what there is to be said of one byte."""
    with open_backend(options.cache_dir) as backend:
        found = backend.explain(options.entry, options.offset)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(found)))
    return 0


def _lines(found: Facts) -> Iterator[str]:
    yield f"byte {found['offset']}: {found['status'].replace('_', ' ')} ({found['why']})"
    stream = found["stream"]
    if stream is not None:
        when = "" if found["in_s"] is None else f", here in about {_duration(found['in_s'])}"
        yield (
            f"  stream {stream['id']} is {format_size(stream['distance_bytes'])} before it, "
            f"at {format_size(stream['rate_bytes_s'])}/s{when}"
        )
    if found["retry_at"] is not None:
        yield f"  a new reader may try it again in {_duration(found['retry_at'] - time.time())}"
    for want in found["wanted_by"]:
        waits = ", which waits" if want["waits"] else ""
        yield f"  wanted: {want['priority'].replace('_', ' ')}{waits}"
    for reader in found["readers"]:
        yield f"  a reader at {reader['position']}: {_outlook(reader)}"


def _outlook(reader: dict[str, Any]) -> str:
    if reader["waits"]:
        return "it waits"
    ahead = f"{format_size(reader['ahead_bytes'])} ahead of it"
    if reader["stalls"] is None:
        return f"{ahead}; whether it will have to wait is not known"
    pace = f"{ahead}, reading {format_size(reader['pace_bytes_s'])}/s"
    if not reader["stalls"]:
        return f"{pace}; it will not have to wait"
    return f"{pace}; it will have to wait in about {_duration(reader['stalls_in_s'])}"


def _duration(seconds: float) -> str:
    return f"{max(0.0, seconds):.1f} s"
