"""Ranges and validators of RFC 9110, on header text.

Pure: no I/O and no clock. Foreign text never raises; what the grammar refuses is
None, because RFC 9110 mostly wants it ignored. Answers of an origin, which are
not to be ignored but refused, are judged in `cachefsm.acceptance`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .fields import OWS, Fields, parse_digits, parse_http_date, value_of
from .ranges import END, ByteRange

__all__ = [
    "ContentRange",
    "RangeSpec",
    "Validator",
    "coalesce_ranges",
    "format_range",
    "parse_etags",
    "parse_range",
    "strong_date",
    "strong_match",
    "weak_match",
]

#: A player asks for one range, a PDF viewer for a few dozen; RFC 9110 §14.2 lets
#: a server ignore what goes beyond reason.
MAX_RANGES: Final = 64

#: How far Date must lie past Last-Modified for the latter to be a strong
#: validator. RFC 9110 §8.8.2.2 asks for one second if both come from the same
#: clock, which nobody can know from outside, or else for "enough difference";
#: RFC 7232 §2.2.2 and RFC 2616 §13.3.3 put that at 60 s.
STRONG_AGE_S: Final = 60

_RANGE_SPEC = re.compile(r"([0-9]*)-([0-9]*)")
_CONTENT_RANGE = re.compile(
    r"bytes (?:([0-9]+)-([0-9]+)|\*)/(?:([0-9]+)|\*)", re.ASCII | re.IGNORECASE
)
_ETAG = re.compile(r'(?:W/)?"[^\x00-\x20"\x7f]*"')
_ETAG_TOKEN = re.compile(
    rf"(?P<etag>{_ETAG.pattern})|(?P<separator>[ \t,]+)|(?P<malformed>.)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class RangeSpec:
    """What a client asked: ``first-last`` (inclusive), ``first-`` or ``-suffix``.

    Unresolved, as the representation's length may not be known yet.

    Raises:
        ValueError: neither *first* nor *suffix_length*, or more than one shape.
    Source: RFC 9110 §14.1.1.
    """

    first: int | None = None
    last: int | None = None
    suffix_length: int | None = None

    def __post_init__(self) -> None:
        if (self.first is None) == (self.suffix_length is None):
            raise ValueError("a range needs either a first byte or a suffix length")
        if self.last is not None and (self.first is None or self.last < self.first):
            raise ValueError(f"not a range: {self}")

    def resolve(self, complete_length: int) -> ByteRange | None:
        """Return the bytes meant, of *complete_length* there are; None if there are none.

        None is a 416. That includes any suffix of an empty representation, which
        RFC 9110 calls satisfiable but no Content-Range can express.

        Source: RFC 9110 §14.1.2.
        """
        if self.first is None:
            start = max(0, complete_length - (self.suffix_length or 0))
            stop = complete_length
        else:
            start = self.first
            stop = complete_length if self.last is None else min(self.last + 1, complete_length)
        return ByteRange(start, stop) if start < stop else None

    def __str__(self) -> str:
        if self.first is None:
            return f"-{self.suffix_length}"
        return f"{self.first}-{'' if self.last is None else self.last}"


def parse_range(text: str | None) -> tuple[RangeSpec, ...] | None:
    """Return what a Range field asks for, or None if it is to be ignored.

    Ignored are an absent field, another unit than bytes, anything malformed, and
    what RFC 9110 §14.2 takes for a broken client or an attack: more than 64
    ranges, or more than two that overlap. Many small ranges in odd order are
    harmless here, being few and coalesced.

    Source: RFC 9110 §14.1.1, §14.1.2, §14.2.
    """
    unit, _, ranges = (text or "").strip(OWS).partition("=")
    if unit.lower() != "bytes":
        return None
    members = [member for part in ranges.split(",") if (member := part.strip(OWS))]
    if not 0 < len(members) <= MAX_RANGES:
        return None
    specs = tuple(spec for spec in map(_parse_spec, members) if spec is not None)
    if len(specs) < len(members) or _overlaps(specs) > 1:
        return None
    return specs


def _parse_spec(text: str) -> RangeSpec | None:
    match = _RANGE_SPEC.fullmatch(text)
    if not match:
        return None
    first, last = map(parse_digits, match.groups())
    if first is None:
        return None if last is None else RangeSpec(suffix_length=last)
    return None if last is not None and last < first else RangeSpec(first, last)


def _overlaps(specs: Iterable[RangeSpec]) -> int:
    """Count the ranges that overlap one with a lower start; suffixes overlap each other."""
    suffixes = 0
    bounds: list[tuple[int, int]] = []
    for spec in specs:
        if spec.first is None:
            suffixes += 1
        else:
            bounds.append((spec.first, END if spec.last is None else spec.last))
    overlaps, reached = max(0, suffixes - 1), -1
    for first, last in sorted(bounds):
        overlaps += first <= reached
        reached = max(reached, last)
    return overlaps


def coalesce_ranges(ranges: Iterable[ByteRange]) -> tuple[ByteRange, ...]:
    """Return *ranges* with overlapping and adjacent ones merged, else in order asked.

    So no byte is sent twice, and one part may be left, which must not be sent as
    multipart. Gaps are not bridged: RFC 9110 §15.3.7.2 allows it, but some clients
    then misplace the parts. A merged range stands where its first member stood.

    Source: RFC 9110 §14.2, §15.3.7.2.
    """
    merged: list[tuple[int, ByteRange]] = []
    for position, wanted in sorted(enumerate(ranges), key=lambda numbered: numbered[1]):
        if merged and wanted.start <= merged[-1][1].stop:
            earlier, run = merged[-1]
            joined = ByteRange(run.start, max(run.stop, wanted.stop))
            merged[-1] = (min(earlier, position), joined)
        else:
            merged.append((position, wanted))
    return tuple(run for _, run in sorted(merged))


def format_range(asked: ByteRange) -> str:
    """Return the Range field that asks an origin for the bytes; a stop of END is open.

    Raises:
        ValueError: the range is empty, which the wire cannot say.
    Source: RFC 9110 §14.2.
    """
    if not asked.size:
        raise ValueError(f"cannot ask for no bytes: {asked}")
    return f"bytes={asked.start}-{'' if asked.stop == END else asked.stop - 1}"


@dataclass(frozen=True, slots=True)
class ContentRange:
    """A Content-Range: which bytes a 206 carries, or a 416's complete-length.

    ``None`` stands for the wire's ``*``: length unknown, or no interval.

    Source: RFC 9110 §14.4.
    """

    interval: ByteRange | None
    complete_length: int | None

    @classmethod
    def parse(cls, text: str | None) -> ContentRange | None:
        """Return the value of *text*, or None if it is absent, malformed or impossible."""
        match = _CONTENT_RANGE.fullmatch(text or "")
        if not match:
            return None
        first, last, length = map(parse_digits, match.groups())
        if first is None or last is None:
            return None if length is None else cls(None, length)
        # Clamping is for clients; an origin that sends an offset beyond END, or
        # bytes past its own end, is not to be believed at all.
        if last < first or last >= (END if length is None else length):
            return None
        return cls(ByteRange(first, last + 1), length)

    def __str__(self) -> str:
        length = "*" if self.complete_length is None else self.complete_length
        if self.interval is None:
            return f"bytes */{length}"
        return f"bytes {self.interval.start}-{self.interval.stop - 1}/{length}"


def strong_match(one: str | None, other: str | None) -> bool:
    """Return whether two entity-tags are equal and both strong. RFC 9110 §8.8.3.2."""
    return one is not None and one == other and one.startswith('"') and _is_etag(one)


def weak_match(one: str | None, other: str | None) -> bool:
    """Return whether two entity-tags are equal, weak or not. RFC 9110 §8.8.3.2."""
    if one is None or other is None:
        return False
    return one.removeprefix("W/") == other.removeprefix("W/") and _is_etag(one)


def _is_etag(text: str) -> bool:
    return _ETAG.fullmatch(text) is not None


def parse_etags(text: str) -> tuple[str, ...]:
    """Return the entity-tags of a list, ``W/`` and quotes kept; () if it is malformed.

    An opaque tag may hold a comma, so the text is walked, not split.

    Source: RFC 9110 §8.8.3, §13.1.1.
    """
    tags: list[str] = []
    separated = True
    for token in _ETAG_TOKEN.finditer(text):
        if token.lastgroup == "separator":
            separated = separated or "," in token[0]
        elif token.lastgroup == "etag" and separated:
            tags.append(token[0])
            separated = False
        else:
            return ()
    return tuple(tags)


def strong_date(last_modified: str | None, date: str | None) -> str | None:
    """Return *last_modified* if it is a strong validator of an answer sent at *date*.

    Without the origin's Date it is not: an origin without a clock sends none, and
    its modification times are worth as much. Source: RFC 9110 §8.8.2.2, §6.6.1.
    """
    modified_s, sent_s = parse_http_date(last_modified), parse_http_date(date)
    if modified_s is None or sent_s is None or sent_s - modified_s < STRONG_AGE_S:
        return None
    return last_modified


@dataclass(frozen=True, slots=True)
class Validator:
    """What tells one version of a representation from another, as raw field text.

    Source: RFC 9110 §8.8.
    """

    etag: str | None = None
    last_modified: str | None = None
    date: str | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> Validator:
        """Return the validator of a response with these fields."""
        return cls(
            etag=value_of(fields, "ETag"),
            last_modified=value_of(fields, "Last-Modified"),
            date=value_of(fields, "Date"),
        )

    @property
    def strong(self) -> str | None:
        """Return the text to send as If-Range, or None if nothing here is strong.

        Beside any ETag, a weak or malformed one too, the date does not count:
        RFC 9110 §13.1.5 forbids sending it then.
        """
        if self.etag is not None:
            return self.etag if strong_match(self.etag, self.etag) else None
        return strong_date(self.last_modified, self.date)

    @property
    def request_fields(self) -> tuple[tuple[str, str], ...]:
        """Return the fields that ask an origin whether this version is still current.

        Weak validators serve too, as nothing is joined. Source: RFC 9111 §4.3.1.
        """
        conditions = (("If-None-Match", self.etag), ("If-Modified-Since", self.last_modified))
        return tuple((name, value) for name, value in conditions if value is not None)

    def same_version(self, other: Validator) -> bool:
        """Return whether bytes fetched under both may be joined.

        Equal strong ETags; or no ETag on either side and equal, strong
        Last-Modified. Never anything else: weak ETags mean "as good as", not
        "byte for byte". Source: RFC 9110 §15.3.7.3, RFC 9111 §3.4.
        """
        return self.strong is not None and self.strong == other.strong

    def contradicts(self, other: Validator) -> bool:
        """Return whether both name a version, and not the same one.

        Between ETags Last-Modified is not asked: servers of one farm often
        disagree about it.
        """
        if self.etag is not None and other.etag is not None:
            return self.etag != other.etag
        if self.last_modified is None or other.last_modified is None:
            return False
        return self.last_modified != other.last_modified
