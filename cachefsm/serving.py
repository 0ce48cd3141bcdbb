"""Makes a response from a reader: its status, its fields, its bytes.

Preconditions and ranges are RFC 9110's §13 and §14; Age and Cache-Status are RFC 9111's
and RFC 9211's. An error once the head is out is *raised* from the body, so that the
server cuts the connection where a client can see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, Final

from .clientsocket import FileSlice
from .errors import (
    CacheError,
    NotModified,
    OpenBody,
    OriginStatus,
    RangeNotSatisfiable,
    StorageError,
)
from .fields import Fields, format_http_date, is_sendable, without
from .freshness import with_age
from .multipart import Multipart, Part
from .preconditions import evaluate_preconditions, if_range_holds
from .ranges import END, ByteRange
from .reader import Reader
from .representation import Representation
from .semantics import ContentRange, RangeSpec, coalesce_ranges, parse_range
from .settling import News
from .terms import Stored
from .web import Request, Response, error_fields, error_status, plain

__all__ = ["error_response", "respond"]

_NO_NEWS: Final = News()

AWAITED_BYTES: Final = 16 << 20
"""The longest range of a file of unknown length that is waited for as a whole."""

_WITHOUT_CONTENT: Final = frozenset(
    {
        "age",
        "cache-control",
        "content-location",
        "date",
        "etag",
        "expires",
        "last-modified",
        "vary",
        "via",
    }
)
"""The fields of a 304 or 412. RFC 9110 §15.4.5."""

_ABOUT_A_BODY: Final = re.compile(r"(?:content-.*|etag|last-modified)\Z", re.IGNORECASE)


def respond(
    request: Request,
    reader: Reader,
    *,
    via: str,
    boundary: Callable[[], str],
    clock: Callable[[], float],
    reading: Callable[[Representation, Iterable[Any]], Iterable[Any]],
) -> Response:
    """Return the response; closing it closes *reader*.

    *reading* may look at the pieces of a whole representation as they pass by.

    Raises:
        CacheError: an error that can still be told by a status; *reader* stays open.
    """
    specs = parse_range(request.field("Range")) if request.method == "GET" else None
    representation = reader.representation(*_first_wish(specs))
    validator = representation.validator
    known = {
        "etag": validator.etag,
        "last_modified": validator.last_modified,
        "date": validator.date,
    }
    fields: Fields = (*_served_fields(reader, representation, clock()), ("Via", via))
    decided = evaluate_preconditions(request.method, request.fields, **known)
    if decided is not None:
        cache_status = _cache_status(reader, (), clock())
        reader.close()
        told = [field for field in fields if field[0].lower() in _WITHOUT_CONTENT]
        return Response(decided, [*told, cache_status], note=cache_status[1])
    if_range = request.field("If-Range")
    if if_range is not None and not if_range_holds(if_range, **known):
        specs = None
    length, ranges = _ranges(reader, specs, representation.complete_length)
    whole = ByteRange(0, END if length is None else length)
    cache_status = _cache_status(reader, ranges or (whole,), clock())
    fields = (*fields, ("Accept-Ranges", "bytes"), cache_status)
    body, fields, size_bytes = _laid_out(ranges, whole, length, fields, boundary)
    first = body.parts[0].range
    if request.method == "GET" and first.size:
        # An error that can still be told by a status is better than a cut connection.
        reader.check_stored(part.range for part in body.parts)
        reader.ready(*first)
    sendfile = bool(request.environ.get("cachefsm.sendfile"))
    pieces: Iterable[Any] = _body(reader, body, sendfile=sendfile)
    if [part.range for part in body.parts] == [whole]:
        pieces = reading(representation, pieces)
    return Response(
        HTTPStatus.OK if ranges is None else HTTPStatus.PARTIAL_CONTENT,
        fields,
        pieces,
        length=size_bytes,
        note=cache_status[1],
        on_close=reader.close,
    )


def error_response(
    error: CacheError,
    *,
    via: str,
    news: News = _NO_NEWS,
    opened: OpenBody | None = None,
    on_close: Callable[[], None] = lambda: None,
) -> Response:
    """Return the response that tells a client of *error*: the origin's own answer, if any.

    *news* is how the answer came about, if known. *opened* is its body, if that is open
    for this client alone; *on_close* closes it.
    """
    if not isinstance(error, OriginStatus) or not _can_be_passed_on(error, opened):
        on_close()
        return plain(error_status(error), str(error), error_fields(error))
    fields, body = error.fields, error.body or b""
    if error.body is None and opened is None:
        body = f"{error}; its body did not come\n".encode()
        kept = [field for field in fields if not _ABOUT_A_BODY.match(field[0])]
        fields = (*kept, ("Content-Type", "text/plain; charset=utf-8"))
    if error.age_s is None:
        words = [f"fwd={news.forwarded or 'miss'}", f"fwd-status={error.status}"]
        words += ["collapsed"] if news.collapsed else []
    else:
        fields, words = with_age(fields, error.age_s), ["hit"]
    status = "; ".join(["cachefsm", *words])
    told = [*fields, *news.cookies, ("Via", via), ("Cache-Status", status)]
    pieces: Iterable[bytes] = [body]
    length: int | None = len(body)
    if opened is not None:
        pieces, length = opened.pieces(), opened.length
    return Response(error.status, told, pieces, length=length, note=status, on_close=on_close)


def _can_be_passed_on(error: OriginStatus, opened: OpenBody | None) -> bool:
    """Say whether a client may get the origin's answer itself.

    A 304 answers a condition that the client did not make, and a 1xx answers nothing. A
    success (2xx) is worth nothing without its body.
    """
    if isinstance(error, NotModified) or error.status < HTTPStatus.OK:
        return False
    has_body = error.body is not None or opened is not None
    return has_body or error.status >= HTTPStatus.MULTIPLE_CHOICES


def _cache_status(reader: Reader, ranges: Iterable[ByteRange], now_s: float) -> tuple[str, str]:
    """Return the Cache-Status field, which tells how the response came about. RFC 9211 §2."""
    news, wanted = reader.news, tuple(ranges)
    if news.forwarded is None and all(reader.entry.has(*each) for each in wanted):
        left_s = reader.left_s(now_s) or 0
        return ("Cache-Status", "cachefsm; hit" + (f"; ttl={int(left_s)}" if left_s < 0 else ""))
    words = [f"fwd={news.forwarded or 'partial'}"]
    if news.status is not None:
        words.append(f"fwd-status={news.status}")
    if news.stale:
        words.append("detail=stale")
    kept = news.stale or news.status is not None
    if not (reader.is_straight or kept):
        words.append("stored")
    joined = news.forwarded is None and any(reader.entry.is_coming(*each) for each in wanted)
    if news.collapsed or joined:
        words.append("collapsed")
    return ("Cache-Status", "; ".join(["cachefsm", *words]))


def _first_wish(specs: tuple[RangeSpec, ...] | None) -> tuple[int, int]:
    """Return which bytes to ask the origin for first, before the length is known."""
    if specs is None:
        return 0, END
    first = specs[0].first
    if first is None:
        return 0, END  # a suffix: the length comes with any answer
    last = specs[0].last
    return first, END if last is None else last + 1


def _ranges(
    reader: Reader, specs: tuple[RangeSpec, ...] | None, length: int | None
) -> tuple[int | None, tuple[ByteRange, ...] | None]:
    """Return the length, if it is known by now, and the ranges to answer with; None for all.

    Raises:
        RangeNotSatisfiable: no byte of the file lies in any of them.
    """
    if specs is not None and length is None and not reader.is_straight:
        return _await(reader, specs)
    return length, _choose(specs, length)


def _laid_out(
    ranges: tuple[ByteRange, ...] | None,
    whole: ByteRange,
    length: int | None,
    fields: Fields,
    boundary: Callable[[], str],
) -> tuple[Multipart, Fields, int | None]:
    """Return the parts of the body, *fields* as they describe it, and its size in bytes.

    One range, or the *whole* file if *ranges* is None, is a single part without a head.
    The size is None while the length is unknown.
    """
    if ranges is not None and len(ranges) > 1 and length is not None:
        body = Multipart.of(ranges, length, _content_type(fields), boundary())
        fields = (*without(fields, {"content-type"}), ("Content-Type", body.content_type))
        return body, fields, body.size_bytes
    only = ranges[0] if ranges else whole
    if ranges:
        fields = (*fields, ("Content-Range", str(ContentRange(only, length))))
    size_bytes = None if only.stop == END else only.size
    return Multipart((Part(b"", only),), b"", ""), fields, size_bytes


def _choose(
    specs: tuple[RangeSpec, ...] | None, length: int | None
) -> tuple[ByteRange, ...] | None:
    """Return the ranges to answer with, or None for the whole file.

    Overlapping and adjacent ranges are merged. Without a length nobody can say whether a
    range is satisfiable, and a server may ignore it: RFC 9110 §14.2.
    """
    if specs is None or length is None:
        return None
    satisfiable = [found for spec in specs if (found := spec.resolve(length)) is not None]
    if not satisfiable:
        raise RangeNotSatisfiable(length)
    return coalesce_ranges(satisfiable)


def _await(
    reader: Reader, specs: tuple[RangeSpec, ...]
) -> tuple[int | None, tuple[ByteRange, ...] | None]:
    """Wait for a range of a file of unknown length; return the length and range to answer with.

    A single range with an end can be satisfied once its last byte has arrived. It is worth
    waiting for, as a client that is sent the whole file instead waits for as many bytes.
    Source: RFC 9110 §14.4 for the ``*``.
    """
    first, last = specs[0].first, specs[0].last
    if len(specs) > 1 or first is None or last is None or last - first >= AWAITED_BYTES:
        return None, None
    position, stop = first, last + 1
    try:
        while (here := reader.available(position, stop)) > position:
            position = here
    except StorageError:
        return None, None  # it comes straight from the origin then, from the front
    if reader.length != END:
        return reader.length, _choose(specs, reader.length)
    return None, (ByteRange(first, stop),)


def _content_type(fields: Sequence[tuple[str, str]]) -> str:
    return next(value for name, value in fields if name.lower() == "content-type")


def _served_fields(
    reader: Reader, representation: Representation, now_s: float
) -> list[tuple[str, str]]:
    told: Fields = representation.fields
    stored = reader.content.stored
    if reader.own_fields is not None:
        told = without(reader.own_fields, {"content-length", "content-range", "content-md5"})
    elif stored is not None and not reader.is_straight:
        told = _aged(told, stored, now_s, first_hand=reader.news.is_first_hand)
        told = (*told, *reader.news.cookies)
    fields = [
        (name, value)
        for name, value in told
        if is_sendable(name, value) and name.lower() != "accept-ranges"
    ]
    if not any(name.lower() == "content-type" for name, _ in fields):
        fields.append(("Content-Type", "application/octet-stream"))
    return fields


def _aged(fields: Fields, stored: Stored, now_s: float, *, first_hand: bool) -> Fields:
    """Return *fields* with the response's age, none if it comes first-hand, and its Date.

    Source: RFC 9111 §5.1, RFC 9110 §6.6.1.
    """
    names = {name.lower() for name, _ in fields}
    if "date" not in names:
        fields = (*fields, ("Date", format_http_date(stored.received_s)))
    if first_hand and "age" not in names:
        return fields
    return with_age(fields, stored.age_s(now_s))


def _body(reader: Reader, body: Multipart, *, sendfile: bool) -> Iterator[Any]:
    """Yield heads and bytes as they arrive; raise if they stop arriving."""
    for part in body.parts:
        if part.head:
            yield part.head
        if not sendfile:
            yield from reader.pieces(*part.range)
            continue
        for span in reader.spans(*part.range):
            if isinstance(span, bytes):
                yield span
            else:
                fd = reader.content.file.fileno()
                yield FileSlice(fd, span.start, span.size, reader.instead)
    if body.end:
        yield body.end
