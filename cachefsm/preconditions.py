"""What a client's conditional request decides, by RFC 9110 §13.

Pure: no I/O and no clock. A malformed date is a condition not made; a malformed
list of entity-tags names nothing, so If-Match fails and If-None-Match passes.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Literal

from .fields import OWS, Fields, parse_http_date, value_of
from .semantics import parse_etags, strong_date, strong_match, weak_match

__all__ = ["evaluate_preconditions", "if_range_holds"]

_READING: Final = ("GET", "HEAD")


def if_range_holds(
    text: str, *, etag: str | None, last_modified: str | None, date: str | None
) -> bool:
    """Return whether a request's If-Range names the version that is here.

    If not, its Range is to be ignored. Only exact, strong matches count, so a weak
    ETag, or a date other than Last-Modified (a future one, say), does not.

    Source: RFC 9110 §13.1.5.
    """
    named = text.strip(OWS)
    return strong_match(named, etag) or named == strong_date(last_modified, date)


def evaluate_preconditions(
    method: str,
    request_fields: Fields,
    *,
    etag: str | None,
    last_modified: str | None,
    date: str | None = None,
) -> Literal[304, 412] | None:
    """Return the status that the preconditions decide, or None to go on.

    *date* is the stored response's Date. Range and If-Range come after this, and
    count only if it returns None.

    Source: RFC 9110 §13.2.2; RFC 9111 §4.3.2.
    """
    if not _may_act(request_fields, etag, last_modified):
        return HTTPStatus.PRECONDITION_FAILED.value
    if not _client_is_current(method, request_fields, etag, last_modified or date):
        return None
    if method in _READING:
        return HTTPStatus.NOT_MODIFIED.value
    return HTTPStatus.PRECONDITION_FAILED.value


def _may_act(request_fields: Fields, etag: str | None, last_modified: str | None) -> bool:
    """Evaluate If-Match, or in its absence If-Unmodified-Since."""
    if_match = value_of(request_fields, "If-Match")
    if if_match is not None:
        return _names(if_match, etag, strong_match)
    modified_s = parse_http_date(last_modified)
    limit_s = parse_http_date(value_of(request_fields, "If-Unmodified-Since"))
    return modified_s is None or limit_s is None or modified_s <= limit_s


def _client_is_current(
    method: str, request_fields: Fields, etag: str | None, modified: str | None
) -> bool:
    """Evaluate If-None-Match, or in its absence a GET's If-Modified-Since."""
    if_none_match = value_of(request_fields, "If-None-Match")
    if if_none_match is not None:
        return _names(if_none_match, etag, weak_match)
    if method not in _READING:
        return False
    modified_s = parse_http_date(modified)
    known_s = parse_http_date(value_of(request_fields, "If-Modified-Since"))
    return modified_s is not None and known_s is not None and modified_s <= known_s


def _names(text: str, etag: str | None, matches: Callable[[str | None, str | None], bool]) -> bool:
    """Return whether a list of entity-tags, or ``*``, covers the representation."""
    return text == "*" or any(matches(etag, tag) for tag in parse_etags(text))
