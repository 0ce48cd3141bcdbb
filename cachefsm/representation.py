"""What is stored about the file behind a URL, and what later answers change of it.

Pure: no I/O and no clock. Which answers may change it is `cachefsm.acceptance`'s
question.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from .errors import StorageError
from .fields import Fields, connection_fields, is_sendable, members_of, without
from .semantics import Validator

__all__ = [
    "Representation",
    "fields_from_json",
    "fields_to_json",
    "is_coded",
    "storable_fields",
    "update_fields",
]

#: End-to-end, but not for whoever is served from storage later.
_NOT_STORED: Final = frozenset(
    {
        # About the bytes of this one message, which may be a part of the file.
        "content-digest",
        "content-length",
        "content-md5",
        "content-range",
        # About the origin's own support; the proxy states ours.
        "accept-ranges",
        # About the one user who asked, or the origin's own authority, which is
        # not the proxy's.
        "alt-svc",
        "clear-site-data",
        "set-cookie",
        "set-cookie2",
        "strict-transport-security",
    }
)

#: Never taken from a later answer: the stored bytes were fetched under the stored
#: ones, and must not be served under others.
_TIED_TO_BYTES: Final = frozenset({"content-encoding", "etag", "last-modified"})


@dataclass(frozen=True, slots=True)
class Representation:
    """What is known of the file behind a URL: enough to store, join and serve it.

    ``complete_length`` is in bytes, None while unknown; ``fields`` are those to
    serve again, Date and Age among them, as freshness is computed from them (the
    proxy replaces Age). ``accepts_ranges`` is learnt, not believed: a 206 proves
    it, ``Accept-Ranges: bytes`` only suggests it, a 200 to a part disproves it.
    """

    complete_length: int | None
    validator: Validator
    fields: tuple[tuple[str, str], ...]
    accepts_ranges: bool

    @property
    def joinable(self) -> bool:
        """Return whether bytes of several answers may make up one file.

        Only with ranges to ask for and a strong validator to ask with. Coded bytes
        may be stored and served as they came, yet are not joined even under a
        strong ETag: identity is asked for, and some servers give the coded and the
        plain bytes one ETag, so a range may be of either.
        """
        is_strong = self.validator.strong is not None
        return self.accepts_ranges and is_strong and not is_coded(self.fields)


def update_fields(stored: Fields, later: Fields) -> tuple[tuple[str, str], ...]:
    """Return *stored* with the fields of a 304, or of a further 206, in their place.

    Those that the stored bytes depend on stay. The stored Age goes in any case: it
    belongs to the stored Date. Source: RFC 9111 §3.2, §3.4.
    """
    news = without(storable_fields(later), _TIED_TO_BYTES)
    return (*without(stored, {"age", *(name.lower() for name, _ in news)}), *news)


def storable_fields(fields: Fields) -> tuple[tuple[str, str], ...]:
    """Return the fields to keep and to serve again to anyone.

    Left out are those about the connection, about the message rather than the
    representation, and about the one user who asked; and what could not be sent
    on as one header line. Source: RFC 9111 §3.1.
    """
    kept = without(fields, connection_fields(fields) | _NOT_STORED)
    return tuple((name, value) for name, value in kept if is_sendable(name, value))


def fields_to_json(fields: Fields) -> str:
    """Return *fields* as JSON text: ``[[name, value], …]``."""
    return json.dumps([list(field) for field in fields])


def fields_from_json(text: str) -> tuple[tuple[str, str], ...]:
    """Return the fields that `fields_to_json` wrote.

    Raises:
        StorageError: the text is something else; the database is damaged.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError("the stored response fields are damaged") from error
    if not isinstance(fields, list) or not all(map(_is_field, fields)):
        raise StorageError("the stored response fields are damaged")
    return tuple((name, value) for name, value in fields)


def _is_field(item: object) -> bool:
    return isinstance(item, list) and [type(part) for part in item] == [str, str]


def is_coded(fields: Fields) -> bool:
    """Return whether the bytes are under a content coding. RFC 9110 §8.4."""
    return any(coding != "identity" for coding in members_of(fields, "Content-Encoding"))
