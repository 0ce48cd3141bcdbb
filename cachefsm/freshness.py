"""When a stored response may be used again: RFC 9111, as a private cache.

Pure: times are arguments, Unix time in seconds. Being private, s-maxage, private,
proxy-revalidate and Authorization need no attention here (RFC 9111 §3.5, §5.2.2);
keeping users apart is the job of the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, TypeAlias

from .fields import Fields, list_of, members_of, parse_http_date, parse_seconds, value_of, without

__all__ = [
    "HEURISTICALLY_CACHEABLE",
    "VaryKey",
    "chosen_by",
    "current_age_s",
    "freshness_lifetime_s",
    "initial_age_s",
    "invalidates",
    "is_only_if_cached",
    "may_serve_meanwhile",
    "may_serve_on_error",
    "may_serve_stale",
    "may_store",
    "needs_validation",
    "parse_cache_control",
    "vary_key",
    "with_age",
]

#: Which request fields, with which values, a stored response answers to.
VaryKey: TypeAlias = tuple[tuple[str, "str | None"], ...]

#: RFC 9111 §4.2.2 calls 10 % of the time since Last-Modified typical, and names no
#: bound. A file untouched for years would stay unasked for months; one day bounds
#: the surprise, and asking is one 304.
HEURISTIC_FRACTION: Final = 0.1
HEURISTIC_LIMIT_S: Final = 86_400.0

#: What an origin says nothing about, not even when it last changed. Films, music and
#: data sets are replaced rarely, and asked for again with every seek.
UNDATED_LIFETIME_S: Final = 3_600.0
#: A playlist without an end is asked for again and again, every few seconds, and one
#: that players look at twice as they begin need not be fetched twice.
PLAYLIST_LIFETIME_S: Final = 1.0
#: Pages and answers of an API may be others the next second.
_FLEETING_TYPES = re.compile(
    r"text/(?:html|plain|xml|event-stream)|application/(?:[a-z0-9.+-]*\+)?(?:json|xml)(?:[ ;]|\Z)"
)
_PLAYLIST_TYPES = re.compile(
    r"(?:application|audio)/(?:vnd\.apple\.mpegurl|x-mpegurl|mpegurl)|application/dash\+xml"
)

#: RFC 9110 §15.1.
HEURISTICALLY_CACHEABLE: Final = frozenset(
    {200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501}
)

# What precedes a name is left to the search: a pattern that skipped separators
# itself would take quadratic time over a long run of them.
_DIRECTIVE = re.compile(
    r"(?P<name>[^\s=,\"]+)(?:=(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<token>[^\s,\"]*)))?[^,]*"
)
_QUOTED_PAIR = re.compile(r"\\(.)")
#: Request fields that are lists by definition, so that white space around their commas means
#: nothing. RFC 9110 §12.5, §7.6.3; RFC 7239, RFC 7240, RFC 9530; X-Forwarded-For by custom.
_LISTS: Final = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "forwarded",
        "prefer",
        "via",
        "want-content-digest",
        "want-repr-digest",
        "x-forwarded-for",
    }
)
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def parse_cache_control(fields: Fields) -> dict[str, str | None]:
    """Return the directives: lower-case name to argument, unquoted, None without one.

    Unknown directives are kept. Of a repeated one the first counts, as RFC 9111
    §4.2.1 allows. Source: RFC 9111 §5.2.
    """
    directives: dict[str, str | None] = {}
    for match in _DIRECTIVE.finditer(value_of(fields, "Cache-Control") or ""):
        argument = match["token"]
        if match["quoted"] is not None:
            argument = _QUOTED_PAIR.sub(r"\1", match["quoted"])
        directives.setdefault(match["name"].lower(), argument)
    return directives


def _request_directives(request_fields: Fields) -> dict[str, str | None]:
    """Return the client's directives; Pragma is heard where Cache-Control is absent.

    Source: RFC 9111 §5.4.
    """
    directives = parse_cache_control(request_fields)
    if not directives and "no-cache" in members_of(request_fields, "Pragma"):
        directives["no-cache"] = None
    return directives


def may_store(method: str, status: int, request_fields: Fields, response_fields: Fields) -> bool:
    """Return whether RFC 9111 §3 lets a private cache keep the answer.

    Only 200 and 206 to GET, whose lack of explicit freshness does no harm: both
    are heuristically cacheable. ``Vary: *`` would never match again (§4.1).
    """
    if method != "GET" or status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return False
    if "*" in members_of(response_fields, "Vary"):
        return False
    if "no-store" in parse_cache_control(request_fields):
        return False
    return not _forbids_storing(parse_cache_control(response_fields))


def _forbids_storing(response: dict[str, str | None]) -> bool:
    """Return whether no-store counts: caches that know the status heed must-understand.

    Source: RFC 9111 §5.2.2.3.
    """
    return "no-store" in response and "must-understand" not in response


def freshness_lifetime_s(
    status: int, fields: Fields, *, received_s: float, may_grow: bool = False
) -> float:
    """Return for how many seconds after its Date the response is fresh.

    max-age, else Expires, else the heuristic. What is there but malformed counts
    as expired. *received_s* stands in for a missing Date. *may_grow* says that it is
    a playlist, whatever its type.

    Source: RFC 9111 §4.2.1, §4.2.2.
    """
    directives = parse_cache_control(fields)
    if "max-age" in directives:
        return float(parse_seconds(directives["max-age"]) or 0)
    date_s = _date_s(fields, received_s)
    expires = value_of(fields, "Expires")
    if expires is not None:
        expires_s = parse_http_date(expires)
        return 0.0 if expires_s is None else max(0.0, expires_s - date_s)
    may_guess = status in HEURISTICALLY_CACHEABLE or "public" in directives
    return _guess_s(fields, date_s, may_grow) if may_guess else 0.0


def _guess_s(fields: Fields, date_s: float, may_grow: bool) -> float:
    """Return a lifetime where the origin gives none. Source: RFC 9111 §4.2.2."""
    media_type = (value_of(fields, "Content-Type") or "application/octet-stream").lower()
    if may_grow or _PLAYLIST_TYPES.match(media_type):
        return PLAYLIST_LIFETIME_S
    modified_s = parse_http_date(value_of(fields, "Last-Modified"))
    if modified_s is not None:
        return min(HEURISTIC_LIMIT_S, max(0.0, (date_s - modified_s) * HEURISTIC_FRACTION))
    return 0.0 if _FLEETING_TYPES.match(media_type) else UNDATED_LIFETIME_S


def current_age_s(fields: Fields, *, requested_s: float, received_s: float, now_s: float) -> float:
    """Return how old the response is, at the most, in seconds.

    *requested_s* and *received_s* are when it was asked for and when it came.

    Source: RFC 9111 §4.2.3.
    """
    initial_s = initial_age_s(fields, requested_s=requested_s, received_s=received_s)
    return initial_s + (now_s - received_s)


def initial_age_s(fields: Fields, *, requested_s: float, received_s: float) -> float:
    """Return how old the response was, at the most, when it came. RFC 9111 §4.2.3."""
    apparent_s = max(0.0, received_s - _date_s(fields, received_s))
    told_s = parse_seconds(members_of(fields, "Age")[0]) if members_of(fields, "Age") else None
    corrected_s = (told_s or 0) + (received_s - requested_s)
    return max(apparent_s, corrected_s)


def _date_s(fields: Fields, received_s: float) -> float:
    date_s = parse_http_date(value_of(fields, "Date"))
    return received_s if date_s is None else date_s


def needs_validation(
    request_fields: Fields, response_fields: Fields, *, lifetime_s: float, age_s: float
) -> bool:
    """Return whether the origin must be asked before this response is served.

    Source: RFC 9111 §4, §4.2.4, §5.2.1.
    """
    request, response = _request_directives(request_fields), parse_cache_control(response_fields)
    # no-cache="field" is treated like plain no-cache, as §5.2.2.4 lets caches do.
    # What must not be stored is here only because a person ordered it.
    if "no-cache" in response or _forbids_storing(response) or _refuses(request, age_s):
        return True
    if "min-fresh" in request:
        age_s += parse_seconds(request["min-fresh"]) or 0
    if lifetime_s > age_s:
        return False
    return not (may_serve_stale(response_fields) and _accepts_stale(request, age_s - lifetime_s))


def _refuses(request: dict[str, str | None], age_s: float) -> bool:
    """Return whether the client does not want what is that old, fresh or not."""
    too_old = "max-age" in request and age_s > (parse_seconds(request["max-age"]) or 0)
    return too_old or "no-cache" in request


def _accepts_stale(request: dict[str, str | None], staleness_s: float) -> bool:
    """Return whether the client's max-stale covers it; without a value it covers all."""
    if "max-stale" not in request:
        return False
    limit = request["max-stale"]
    return limit is None or staleness_s <= (parse_seconds(limit) or 0)


def may_serve_stale(response_fields: Fields) -> bool:
    """Return whether a stale response may be served when the origin cannot be asked.

    Source: RFC 9111 §4.2.4, §5.2.2.2, §5.2.2.4.
    """
    response = parse_cache_control(response_fields)
    return {"must-revalidate", "no-cache"}.isdisjoint(response) and not _forbids_storing(response)


def may_serve_on_error(
    request_fields: Fields, response_fields: Fields, *, staleness_s: float
) -> bool:
    """Return whether a stale response may stand in for an origin that cannot answer.

    Without stale-if-error for any time, as for a cache that is disconnected; with it
    for as long as the more generous of client and origin says.

    Source: RFC 9111 §4.2.4, §4.3.3; RFC 5861 §4.
    """
    if not may_serve_stale(response_fields):
        return False
    told = [
        parse_seconds(directives["stale-if-error"]) or 0
        for directives in (
            _request_directives(request_fields),
            parse_cache_control(response_fields),
        )
        if "stale-if-error" in directives
    ]
    return not told or staleness_s <= max(told)


def may_serve_meanwhile(
    request_fields: Fields, response_fields: Fields, *, lifetime_s: float, age_s: float
) -> bool:
    """Return whether a stale response may be served while it is validated.

    The client's own words count for more. Source: RFC 5861 §3.
    """
    request = _request_directives(request_fields)
    if "min-fresh" in request or _refuses(request, age_s) or not may_serve_stale(response_fields):
        return False
    limit_s = parse_seconds(parse_cache_control(response_fields).get("stale-while-revalidate"))
    return limit_s is not None and age_s - lifetime_s <= limit_s


def is_only_if_cached(request_fields: Fields) -> bool:
    """Return whether the client wants what is stored or nothing. RFC 9111 §5.2.1.7."""
    return "only-if-cached" in parse_cache_control(request_fields)


def invalidates(method: str, status: int) -> bool:
    """Return whether this exchange makes what is stored under its URL doubtful.

    Methods unknown here count as unsafe. Source: RFC 9111 §4.4.
    """
    is_error = status >= HTTPStatus.BAD_REQUEST
    return method not in _SAFE and not is_error


def vary_key(stored_fields: Fields, request_fields: Fields) -> VaryKey | None:
    """Return what a request must equal to be answered with the stored response.

    Two requests with equal keys select the same response. None matches nothing,
    not even itself: the response said ``Vary: *``. Absent is not the same as empty.

    Source: RFC 9111 §4.1.
    """
    names = sorted(set(members_of(stored_fields, "Vary")))
    return None if "*" in names else chosen_by(names, request_fields)


def chosen_by(names: Iterable[str], request_fields: Fields) -> VaryKey:
    """Return the fields called *names*, as they are compared: lists however they are spaced.

    Whether their order, or case, means anything is for each origin to say.
    Source: RFC 9111 §4.1.
    """
    chosen = []
    for name in names:
        value = value_of(request_fields, name)
        if value is not None and name in _LISTS:
            value = list_of(value)
        chosen.append((name, value))
    return tuple(chosen)


def with_age(fields: Fields, age_s: float) -> tuple[tuple[str, str], ...]:
    """Return the fields of a stored response as served at that age. RFC 9111 §5.1."""
    return (*without(fields, {"age"}), ("Age", str(max(0, int(age_s)))))
