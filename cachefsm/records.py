"""Rows of ``cache_entries`` read and written in the terms of the layers above."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from .errors import CacheError, DownloadCancelled, OriginError, StorageError
from .freshness import VaryKey
from .models import EntryRecord
from .representation import Representation, fields_from_json, fields_to_json
from .semantics import Validator
from .terms import Stored

__all__ = [
    "BLANK",
    "CANCELLED",
    "EACH_ITS_OWN",
    "columns_of",
    "failure_of",
    "representation_of",
    "vary_from_json",
    "vary_to_json",
]

CANCELLED = "cancelled"
"""The reason of a failure that is a person's ``cancel``."""

BLANK: dict[str, Any] = {
    "complete_length": None,
    "etag": None,
    "last_modified": None,
    "response_fields": "[]",
    "accepts_ranges": False,
    "requested_at": None,
    "validated_at": None,
    "vary": "[]",
    "bytes_present": 0,
    "error_status": None,
    "retry_at": None,
}
"""The columns about the representation, as they are while nothing is known of it."""


EACH_ITS_OWN = frozenset({"response_fields", "requested_at", "validated_at"})
"""Columns that every answer changes, even one of the same version: it has a Date."""


def columns_of(stored: Stored) -> dict[str, Any]:
    """Return the columns that keep what is known of a stored response."""
    representation = stored.representation
    return {
        "complete_length": representation.complete_length,
        "etag": representation.validator.etag,
        "last_modified": representation.validator.last_modified,
        "response_fields": fields_to_json(representation.fields),
        "accepts_ranges": representation.accepts_ranges,
        "requested_at": stored.requested_s,
        "validated_at": stored.received_s,
    }


def representation_of(record: EntryRecord) -> Representation | None:
    """Return the representation that the row keeps, or None if no answer came yet."""
    if record.validated_at is None:
        return None
    fields = fields_from_json(record.response_fields)
    return Representation(
        complete_length=record.complete_length,
        validator=Validator.from_fields(fields),
        fields=fields,
        accepts_ranges=record.accepts_ranges,
    )


def vary_to_json(key: VaryKey) -> str:
    """Return *key* as JSON text: ``[[name, value or null], …]``."""
    return json.dumps([list(pair) for pair in key])


@lru_cache(maxsize=128)
def vary_from_json(text: str) -> VaryKey:
    """Return the key that :func:`vary_to_json` wrote.

    Raises:
        StorageError: the text is something else; the database is damaged.
    """
    try:
        return tuple((str(name), value) for name, value in json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise StorageError("the stored selecting fields are damaged") from error


def failure_of(record: EntryRecord) -> CacheError:
    """Return an error that says what the row remembers of a failure."""
    error: CacheError
    if record.state_reason == CANCELLED:
        error = DownloadCancelled("a person cancelled the download")
    else:
        error = OriginError(record.state_reason or "the download failed")
    if record.error_status is not None:
        error.status_hint = record.error_status
    return error
