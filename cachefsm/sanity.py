"""Rows that make no sense, found when the database is opened and reset.

SQLite keeps whatever it is given, so a crash of the machine, another program or a
person can leave text where a number belongs. Such a row is checked for once, here,
so that no code above has to. Of a damaged entry its URL is kept and nothing else:
its bytes can't be trusted, so it starts afresh, in a new generation and file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from .errors import CacheError
from .models import CacheChunk, CacheDownloadQueue, CacheEntry, Store
from .states import DownloadState
from .storage import content_name
from .urls import parse_url

__all__ = ["reset_nonsense"]

_log = logging.getLogger(__name__)

_FILE = re.compile(r"[^/.\\][^/\\]*/[^/.\\][^/\\]*\Z")
_LARGEST: Final = 2**63 - 1


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _LARGEST


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _LARGEST


def _or_none(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _is_field_list(value: object) -> bool:
    try:
        fields = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, list) and all(
        isinstance(field, list) and [type(part) for part in field] == [str, str] for field in fields
    )


_ENTRY: Final[Mapping[str, Callable[[object], bool]]] = {
    "content_file": lambda value: isinstance(value, str) and bool(_FILE.match(value)),
    "state": lambda value: value in {state.value for state in DownloadState},
    "state_reason": _or_none(_is_text),
    "state_since": _is_number,
    "error_status": _or_none(_is_count),
    "retry_at": _or_none(_is_number),
    "complete_length": _or_none(_is_count),
    "etag": _or_none(_is_text),
    "last_modified": _or_none(_is_text),
    "response_fields": _is_field_list,
    "accepts_ranges": _is_count,
    "validated_at": _or_none(_is_number),
    "priority": lambda value: isinstance(value, int),
    "pinned": _is_count,
    "bytes_present": _is_count,
    "created_at": _is_number,
    "last_accessed_at": _is_number,
    "access_count": _is_count,
    "generation": _is_count,
}

_QUEUE: Final[Mapping[str, Callable[[object], bool]]] = {
    "priority": lambda value: isinstance(value, int) and 0 <= value <= 4,
    "start": _is_count,
    "stop": _or_none(_is_count),
    "attempts": _is_count,
    "not_before": _or_none(_is_number),
    "last_error": _or_none(_is_text),
    "created_at": _is_number,
}


def reset_nonsense(store: Store, now_s: float) -> int:
    """Reset every entry with a row that makes no sense; return how many there were.

    Raises:
        StorageError: the database refused.
    """
    with store.transaction():
        damaged = set()
        lengths: dict[int, int] = {}
        for row in store.raw_rows(CacheEntry):
            lengths[row["id"]] = _LARGEST
            if not _makes_sense(row, _ENTRY) or not _is_url(row["url"]):
                damaged.add(row["id"])
            elif row["complete_length"] is not None:
                lengths[row["id"]] = row["complete_length"]
        damaged |= set(_with_bad_chunks(store, lengths))
        for row in store.raw_rows(CacheDownloadQueue):
            if not _makes_sense(row, _QUEUE):
                store.delete_raw(CacheDownloadQueue, row["id"])
        for row in [row for row in store.raw_rows(CacheEntry) if row["id"] in damaged]:
            _reset(store, row, now_s)
    return len(damaged)


def _makes_sense(row: Mapping[str, Any], checks: Mapping[str, Callable[[object], bool]]) -> bool:
    return all(check(row[name]) for name, check in checks.items())


def _is_url(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(parse_url(value))
    except CacheError:
        return False


def _with_bad_chunks(store: Store, lengths: Mapping[int, int]) -> list[int]:
    return [
        row["entry"]
        for row in store.raw_rows(CacheChunk)
        if not (_is_count(row["start"]) and _is_count(row["stop"]))
        or not row["start"] < row["stop"] <= lengths.get(row["entry"], _LARGEST)
        or not (row["checksum"] is None or isinstance(row["checksum"], (bytes, memoryview)))
    ]


def _reset(store: Store, row: Mapping[str, Any], now_s: float) -> None:
    if not _is_url(row["url"]) or not isinstance(row["key"], str):
        _log.warning("entry %s of the database makes no sense and was deleted", row["id"])
        store.delete_raw(CacheEntry, row["id"])
        return
    _log.warning("entry %s of the database makes no sense and starts afresh", row["id"])
    store.start_afresh(row["id"], content_name(row["key"]), now_s)
