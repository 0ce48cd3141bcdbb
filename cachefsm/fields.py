"""Header fields as text: finding, splitting, stripping them; numbers and dates.

A message's fields are always a sequence of (name, value) pairs, repeated fields
kept apart, names in any case. Nothing here raises on foreign text: what does not
follow the grammar is None, and each caller knows whether that means "ignore it"
or "refuse it".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from email.utils import formatdate
from functools import lru_cache
from typing import Final, TypeAlias

from .ranges import END

__all__ = [
    "Fields",
    "connection_fields",
    "cookies_of",
    "end_to_end",
    "format_http_date",
    "is_sendable",
    "list_of",
    "members_of",
    "parse_digits",
    "parse_http_date",
    "parse_seconds",
    "value_of",
    "values_of",
    "without",
]

Fields: TypeAlias = Sequence[tuple[str, str]]

#: Optional whitespace, RFC 9110 §5.6.3. Not `str.strip()`'s, which would also
#: take NEL and no-break spaces.
OWS: Final = " \t"

#: About one connection only, so neither stored nor forwarded. RFC 9110 §7.6.1,
#: with what RFC 2616 §13.5.1 listed and old software still sends; RFC 9111 §3.1
#: adds the proxy's own.
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

#: The largest delta-seconds kept apart from "forever". RFC 9111 §1.2.2.
MAX_SECONDS: Final = 2**31

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: A quoted string, which goes to the end if nothing ends it; a comma; anything else.
_LIST_PART = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|,|[^",]+', re.DOTALL)
_DIGITS = re.compile(r"[0-9]+")


def values_of(fields: Fields, name: str) -> list[str]:
    """Return the values of every field called *name*, without outer whitespace."""
    wanted = name.lower()
    return [value.strip(OWS) for key, value in fields if key.lower() == wanted]


def value_of(fields: Fields, name: str) -> str | None:
    """Return the value of *name*, or None if it is absent or empty.

    Repeats are joined by commas (RFC 9110 §5.3), identical ones counting once. So
    two different values of a field that allows one, an ETag say, become a text
    that its grammar refuses, instead of a silent choice between them.
    """
    return ", ".join(dict.fromkeys(filter(None, values_of(fields, name)))) or None


def list_of(text: str) -> str:
    """Return a comma-separated list with its members as they are and ``", "`` between them.

    A comma in a quoted string is none. Source: RFC 9110 §5.6.1, §5.6.3.
    """
    members = [""]
    for part in _LIST_PART.finditer(text):
        if part[0] == ",":
            members.append("")
        else:
            members[-1] += part[0]
    return ", ".join(member.strip(OWS) for member in members)


def members_of(fields: Fields, name: str) -> list[str]:
    """Return the members of a comma-separated list of tokens, in lower case.

    Empty members are skipped. Source: RFC 9110 §5.6.1.2.
    """
    members = (m.strip(OWS) for value in values_of(fields, name) for m in value.split(","))
    return [member.lower() for member in members if member]


def connection_fields(fields: Fields) -> frozenset[str]:
    """Return the lower-case names that concern this connection only.

    Source: RFC 9110 §7.6.1: the known ones, and those that Connection names.
    """
    return HOP_BY_HOP.union(members_of(fields, "Connection"))


def without(fields: Fields, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return *fields* less those with one of the lower-case *names*."""
    unwanted = frozenset(names)
    return tuple((name, value) for name, value in fields if name.lower() not in unwanted)


def end_to_end(fields: Fields) -> tuple[tuple[str, str], ...]:
    """Return the fields that may be stored or forwarded.

    Source: RFC 9110 §7.6.1.
    """
    return without(fields, connection_fields(fields))


def cookies_of(fields: Fields) -> tuple[tuple[str, str], ...]:
    """Return those that set cookies, each on its own: they cannot be joined. RFC 6265 §3."""
    return tuple(
        (name, value)
        for name, value in fields
        if name.lower() == "set-cookie" and is_sendable(name, value)
    )


def is_sendable(name: str, value: str) -> bool:
    """Return whether the field fits on one header line and cannot start another.

    A folded line or a bare CR reaches us as part of a value, and would leave as a
    header line of the origin's choosing. Source: RFC 9110 §5.5, RFC 9112 §5.2.
    """
    return _TOKEN.fullmatch(name) is not None and _CONTROL.search(value) is None


def parse_digits(text: str | None, *, limit: int = END) -> int | None:
    """Return a run of ASCII digits as a number no larger than *limit*, or None.

    Saturates rather than fails: ``bytes=0-99999999999999999999`` is grammatical
    and means "to the end". Long runs are never handed to `int`, which refuses
    more than 4300 digits and is slow before that.
    """
    if text is None or not _DIGITS.fullmatch(text):
        return None
    significant = text.lstrip("0")
    return min(int(significant or "0"), limit) if len(significant) <= len(str(END)) else limit


def parse_seconds(text: str | None) -> int | None:
    """Return delta-seconds, at most 2**31, or None. Source: RFC 9111 §1.2.2."""
    return parse_digits(text, limit=MAX_SECONDS)


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SHORT_WEEKDAY = f"(?:{'|'.join(name[:3] for name in _WEEKDAYS)})"
_LONG_WEEKDAY = f"(?:{'|'.join(_WEEKDAYS)})"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_YEAR = "(?P<year>[0-9]{4})"

_DATE_FORMS = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        # IMF-fixdate, then the two that recipients must still read: RFC 850's and
        # asctime()'s.
        rf"{_SHORT_WEEKDAY}, (?P<day>[0-9]{{2}}) {_MONTH} {_YEAR} {_TIME} GMT",
        rf"{_LONG_WEEKDAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"{_SHORT_WEEKDAY} {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} {_YEAR}",
    )
)

_LONGEST_DATE: Final = len("Wednesday, 09-Nov-94 08:49:37 GMT")
_LEAP_SECOND = 60
_PIVOT_YEAR = 70


def parse_http_date(text: str | None) -> int | None:
    """Return an HTTP-date as Unix time in seconds, or None if it is not one.

    A day that does not exist, 31 February say, is none; but a wrong weekday harms
    nothing, nor does a name in another case. Source: RFC 9110 §5.6.7; RFC 9111 §4.2.
    """
    return None if text is None or len(text) > _LONGEST_DATE else _parse_date(text)


@lru_cache(maxsize=512)  # a file's dates are looked at several times for each request
def _parse_date(text: str) -> int | None:
    for form in _DATE_FORMS:
        if match := form.fullmatch(text):
            return _unix_time(match.groupdict())
    return None


def _unix_time(part: dict[str, str]) -> int | None:
    # datetime knows no leap seconds; POSIX time counts one as the next second.
    leap = int(part["second"]) == _LEAP_SECOND
    try:
        moment = datetime(
            _full_year(part["year"]),
            _MONTHS.index(part["month"].title()) + 1,
            int(part["day"]),
            int(part["hour"]),
            int(part["minute"]),
            int(part["second"]) - leap,
            tzinfo=timezone.utc,
        )
    except ValueError:
        return None
    return int(moment.timestamp()) + leap


def _full_year(digits: str) -> int:
    """Return the year; of two digits, 70 to 99 are 19xx and the others 20xx.

    RFC 9110 §5.6.7 wants what would lie more than 50 years ahead put in the past.
    A fixed turning point satisfies that from 2019 on and needs no clock.
    """
    year = int(digits)
    if len(digits) == len("1994"):
        return year
    return year + (1900 if year >= _PIVOT_YEAR else 2000)


def format_http_date(unix_s: float) -> str:
    """Return Unix time as an IMF-fixdate. Source: RFC 9110 §5.6.7."""
    return formatdate(unix_s, usegmt=True)
