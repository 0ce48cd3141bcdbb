"""Rows that make no sense, found when the database is opened and reset.

SQLite keeps whatever it is given, so a crash of the machine, another program or a
person can leave text where a number belongs. Such a row is looked for once, here,
so that no code above has to. Of a damaged entry its URL is kept and nothing else:
its bytes can't be trusted, so it starts afresh, in a new generation and file.

SQLite itself looks at most of it: 100,000 entries must not hold up the start.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .errors import CacheError, StorageError
from .integrity import BLOCK_BYTES
from .models import CacheChunk, CacheDownloadQueue, CacheEntry, CacheOrigin, CacheUnsynced, Store
from .representation import fields_from_json, storable_fields
from .states import DownloadState
from .storage import content_name, is_content_name, is_content_name_of
from .urls import parse_url

__all__ = ["reset_nonsense"]

_log = logging.getLogger(__name__)

# What a column must hold, as SQL. No byte lies past 2**60, and no sum overflows.
_TEXT: Final = "typeof({0}) = 'text'"
_COUNT: Final = "typeof({0}) = 'integer' AND {0} BETWEEN 0 AND (1 << 60)"
_INTEGER: Final = "typeof({0}) = 'integer'"
_NUMBER: Final = "typeof({0}) IN ('integer', 'real') AND {0} BETWEEN -1e18 AND 1e18"


def _or_null(kind: str) -> str:
    return f"{{0}} IS NULL OR {kind}"


def _one_of(*values: str) -> str:
    return f"{_TEXT} AND {{0}} IN ({', '.join(map(repr, values))})"


_ENTRY: Final[Mapping[str, str]] = {
    "key": _TEXT,
    "url": _TEXT,
    "content_file": _TEXT,
    "state": _one_of(*(state.value for state in DownloadState)),
    "state_reason": _or_null(_TEXT),
    "state_since": _NUMBER,
    "error_status": _or_null(f"{_COUNT} AND {{0}} BETWEEN 400 AND 599"),
    "retry_at": _or_null(_NUMBER),
    "complete_length": _or_null(_COUNT),
    "etag": _or_null(_TEXT),
    "last_modified": _or_null(_TEXT),
    "response_fields": _TEXT,
    "accepts_ranges": _COUNT,
    "requested_at": _or_null(_NUMBER),
    "validated_at": _or_null(_NUMBER),
    "vary": _TEXT,
    "priority": _INTEGER,
    "pinned": _COUNT,
    "bytes_present": _COUNT,
    "created_at": _NUMBER,
    "last_accessed_at": _NUMBER,
    "access_count": _COUNT,
    "generation": _COUNT,
}

# How many blocks lie wholly within a chunk, but for a last, short one.
_BLOCKS: Final = f"max(0, stop / {BLOCK_BYTES} - (start + {BLOCK_BYTES - 1}) / {BLOCK_BYTES})"

_CHUNK: Final[Mapping[str, str]] = {
    "start": _COUNT,
    "stop": f"{_COUNT} AND {{0}} > start",
    # One of another length may be all that tells of a row that was stretched over a hole in
    # the file. There is none where a block could not be read when it was recorded.
    "checksum": f"CASE typeof({{0}}) WHEN 'null' THEN TRUE WHEN 'blob' THEN "
    f"length({{0}}) > 0 AND length({{0}}) IN (4 * {_BLOCKS}, 4 * {_BLOCKS} + 4) ELSE FALSE END",
}

_QUEUE: Final[Mapping[str, str]] = {
    "asked_by": _one_of("reader", "prefetch", "person"),
    "priority": f"{_INTEGER} AND {{0}} BETWEEN 0 AND 4",
    "start": _COUNT,
    # A wish may end where nothing can: 2**63 - 1 is "to the end".
    "stop": _or_null("typeof({0}) = 'integer' AND {0} >= 0"),
    "attempts": _COUNT,
    "not_before": _or_null(_NUMBER),
    "last_error": _or_null(_TEXT),
    "created_at": _NUMBER,
    "deadline": _or_null(_NUMBER),
}


_ORIGIN: Final[Mapping[str, str]] = {
    "origin": _TEXT,
    "accepts_ranges": _or_null(_COUNT),
    "connections": f"{_COUNT} AND {{0}} BETWEEN 1 AND 9999",
    "most": _or_null(f"{_COUNT} AND {{0}} > 0"),
    "most_until": _NUMBER,
    "rest_s": f"{_NUMBER} AND {{0}} > 0",
    "rate_bytes_s": f"{_NUMBER} AND {{0}} >= 0",
    "latency_s": f"{_NUMBER} AND {{0}} >= 0",
    "updated_at": _NUMBER,
}


def _makes_no_sense(checks: Mapping[str, str]) -> str:
    return f"NOT ({' AND '.join(f'({check.format(name)})' for name, check in checks.items())})"


_CONTRADICTORY: Final = f"""id IN (
    SELECT entry.id FROM cache_entries entry LEFT JOIN (
        SELECT entry_id, sum(stop - start) AS total, max(stop) AS last
        FROM cache_chunks WHERE NOT {_makes_no_sense(_CHUNK)} GROUP BY entry_id
    ) held ON held.entry_id = entry.id
    WHERE entry.bytes_present <> coalesce(held.total, 0)
       OR held.last > entry.complete_length
       OR held.total > 0 AND entry.validated_at IS NULL
       OR entry.state = 'complete' AND entry.bytes_present IS NOT entry.complete_length
) OR id IN (
    SELECT entry_id FROM (
        SELECT entry_id, start, lag(stop) OVER (PARTITION BY entry_id ORDER BY start) AS before
        FROM cache_chunks
    ) WHERE start <= before
)"""  # noqa: S608 - nothing in it comes from outside
"""Entries whose rows are each possible, but not together: chunks that overlap or
reach past the end, that do not add up to what the entry claims, or are of nothing
known."""

_OF_NO_ENTRY: Final = "entry_id NOT IN (SELECT id FROM cache_entries)"
"""Rows whose entry somebody has deleted without them, as SQLite's shell does."""

# As bytes, because SQLite also keeps text that is no UTF-8.
_TEXTS: Final = {
    "id": "id",
    "key": "CAST(key AS BLOB)",
    "url": "CAST(url AS BLOB)",
    "content_file": "CAST(content_file AS BLOB)",
    "fields": "CAST(response_fields AS BLOB)",
    "vary": "CAST(vary AS BLOB)",
    "others": "CAST(coalesce(state_reason, '') || coalesce(etag, '')"
    " || coalesce(last_modified, '') AS BLOB)",
}

_ORDINARY_URL: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,4})?/[!-~]*")
"""URLs that need no closer look; it would take most of the time."""

_ORDINARY_FIELD: Final = (
    r'\["(?:Date|Server|ETag|Age|Expires|Last-Modified|Content-(?:Type|Disposition|Language)'
    r'|Cache-Control|Vary|Via|X-[A-Za-z0-9-]+)", "(?:[ !#-\[\]-~]|\\")*"\]'
)
_ORDINARY_FIELDS: Final = re.compile(
    rf"\[(?:{_ORDINARY_FIELD}(?:, {_ORDINARY_FIELD})*)?\]", re.IGNORECASE
)
"""Response fields of which the same is true."""


def reset_nonsense(store: Store, now_s: float) -> int:
    """Reset every entry with a row that makes no sense; return how many there were.

    Raises:
        StorageError: the database refused.
    """
    with store.transaction():
        for table in (CacheChunk, CacheDownloadQueue):
            for row in store.raw_rows(table, _OF_NO_ENTRY, {"id": "id"}):
                store.delete_raw(table, row["id"])
        for row_id in _bad_queue_rows(store):
            store.delete_raw(CacheDownloadQueue, row_id)
        for row_id in _bad_origins(store):
            store.delete_raw(CacheOrigin, row_id)
        damaged = set(_bad_entries(store))
        for entry_id in damaged:
            _reset(store, entry_id, now_s)
        if not _doubts_make_sense(store):
            store.note_unsynced("unknown", 0.0)  # all of it is in doubt, then
    return len(damaged)


def _doubts_make_sense(store: Store) -> bool:
    columns = {"boot_id": "CAST(boot_id AS BLOB)", "since": "since"}
    return all(
        _text(row["boot_id"]) is not None
        and isinstance(row["since"], (int, float))
        and math.isfinite(row["since"])
        for row in store.raw_rows(CacheUnsynced, columns=columns)
    )


def _bad_queue_rows(store: Store) -> Iterator[int]:
    row_id, error = {"id": "id"}, {"id": "id", "error": "CAST(last_error AS BLOB)"}
    for row in store.raw_rows(CacheDownloadQueue, _makes_no_sense(_QUEUE), row_id):
        yield row["id"]
    for row in store.raw_rows(CacheDownloadQueue, "last_error IS NOT NULL", error):
        if _text(row["error"]) is None:
            yield row["id"]


def _bad_origins(store: Store) -> Iterator[int]:
    for row in store.raw_rows(CacheOrigin, _makes_no_sense(_ORIGIN), {"id": "id"}):
        yield row["id"]
    for row in store.raw_rows(CacheOrigin, columns={"id": "id", "name": "CAST(origin AS BLOB)"}):
        if _text(row["name"]) is None:
            yield row["id"]


def _bad_entries(store: Store) -> Iterator[int]:
    for row in store.raw_rows(CacheChunk, _makes_no_sense(_CHUNK), {"entry": "entry_id"}):
        yield row["entry"]
    for where in (_makes_no_sense(_ENTRY), _CONTRADICTORY):
        for row in store.raw_rows(CacheEntry, where, {"id": "id"}):
            yield row["id"]
    for row in store.raw_rows(CacheEntry, columns=_TEXTS):
        if not _reads_well(row):
            yield row["id"]


def _reads_well(row: Mapping[str, Any]) -> bool:
    return (
        _is_url(_text(row["url"]))
        and is_content_name_of(_text(row["content_file"]), _text(row["key"]))
        and _are_stored_fields(_text(row["fields"]))
        and _are_selecting_fields(_text(row["vary"]))
        and _text(row["others"]) is not None
    )


def _text(value: object) -> str | None:
    try:
        return value.decode() if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return None


def _is_url(value: str | None) -> bool:
    try:
        return value is not None and (
            _ORDINARY_URL.fullmatch(value) is not None or bool(parse_url(value))
        )
    except CacheError:
        return False


def _are_stored_fields(value: str | None) -> bool:
    """Say whether they are such as could have been stored, and can be sent."""
    if value is not None and _ORDINARY_FIELDS.fullmatch(value):
        return True
    try:
        fields = fields_from_json(value or "")
        "".join(value for _, value in fields).encode("latin-1")
    except (StorageError, UnicodeEncodeError):
        return False
    return storable_fields(fields) == fields


def _are_selecting_fields(value: str | None) -> bool:
    try:
        fields = json.loads(value) if value is not None else None
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, list) and all(
        isinstance(field, list)
        and len(field) == 2
        and isinstance(field[0], str)
        and isinstance(field[1], (str, type(None)))
        for field in fields
    )


def _reset(store: Store, entry_id: int, now_s: float) -> None:
    where = f"id = {entry_id} AND typeof(key) = 'text'"
    for row in store.raw_rows(CacheEntry, where, _TEXTS):
        key, name = _text(row["key"]), _text(row["content_file"])
        # The name of another key's file: who knows whose is the URL?
        is_mixed_up = is_content_name(name) and not is_content_name_of(name, key)
        if key is not None and _is_url(_text(row["url"])) and not is_mixed_up:
            _log.warning("entry %s of the database makes no sense and starts afresh", entry_id)
            store.start_afresh(entry_id, content_name(key), now_s)
            return
    _log.warning("entry %s of the database makes no sense and was deleted", entry_id)
    store.delete_raw(CacheEntry, entry_id)
