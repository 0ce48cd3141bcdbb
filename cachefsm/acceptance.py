"""The gate on an origin's answers: which bytes may be stored, and as what.

Pure: no I/O and no clock. `read_answer` is called once per answer, after the
header section and before the first byte of the body. What it returns can be
written at `Answer.start` without further questions; everything else raises, and
nothing is recorded. There is no check here that no origin in the field has failed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from .errors import BadAnswer, NotModified, OriginStatus, RepresentationChanged, UnsatisfiedByOrigin
from .fields import (
    OWS,
    Fields,
    cookies_of,
    members_of,
    parse_digits,
    parse_http_date,
    parse_seconds,
    value_of,
    values_of,
)
from .ranges import END, ByteRange
from .representation import Representation, is_coded, storable_fields, update_fields
from .semantics import ContentRange, Validator, weak_match

__all__ = [
    "Answer",
    "Representation",
    "parse_retry_after",
    "read_answer",
    "read_length",
    "read_not_modified",
]

HTTP_1_1: Final = 11


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body may be stored from offset *start* on.

    ``stop`` is END if the body ends only when it ends. If ``close_delimited`` too,
    a cut connection looks just like that end, so it proves no complete-length
    unless *stop* is reached.
    """

    start: int
    stop: int
    representation: Representation
    close_delimited: bool


def read_answer(
    status: int,
    fields: Fields,
    *,
    asked: ByteRange,
    held: Representation | None,
    sent_if_range: bool,
    now_s: float,
    http_version: int = HTTP_1_1,
) -> Answer:
    """Return where the body belongs and what it is part of.

    *asked* is the range asked for; a stop of END leaves it open, so ``(0, END)``
    is the whole file. *held* is what the bytes will be joined with: pass None
    where they start anew, as they must if it is not joinable. *sent_if_range*
    means that If-Range carried ``held.validator.strong``. *http_version* is 10 or
    11, as in http.client; *now_s* is Unix time, for Retry-After.

    A 200 starts at 0 whatever was asked, and what to do with that is the caller's
    decision. A 206 may end before *asked* does (RFC 9110 §15.3.7), then the rest
    is to be asked for again; it may not start or end elsewhere.

    Raises:
        BadAnswer: interval, length, framing or coding cannot be trusted.
        RepresentationChanged: another version than *held*, or not provably the same.
        UnsatisfiedByOrigin: a 416.
        NotModified: a 304, which only a question with a condition is answered with.
        OriginStatus: any other status.
    """
    if status == HTTPStatus.PARTIAL_CONTENT:
        answer = _read_partial(fields, asked, http_version)
        return answer if held is None else _join(answer, held, compared=sent_if_range)
    if status == HTTPStatus.OK:
        answer = _read_whole(fields, asked, http_version)
        return answer if held is None else _join(answer, held, compared=False)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        content_range = ContentRange.parse(value_of(fields, "Content-Range"))
        raise UnsatisfiedByOrigin(content_range.complete_length if content_range else None)
    error: OriginStatus
    if status == HTTPStatus.NOT_MODIFIED:
        error = NotModified(fields)
    else:
        retry_after_s = parse_retry_after(value_of(fields, "Retry-After"), now_s=now_s)
        error = OriginStatus(status, retry_after_s=retry_after_s, fields=storable_fields(fields))
    error.cookies = cookies_of(fields)
    raise error


def _read_whole(fields: Fields, asked: ByteRange, http_version: int) -> Answer:
    framing = _read_framing(fields, http_version)
    # To bytes=0- a 200 is a proper answer; to a real part it shows that ranges are
    # not honoured, whatever Accept-Ranges says.
    wanted_all = asked == (0, END)
    return Answer(
        start=0,
        stop=END if framing.length is None else framing.length,
        representation=Representation(
            complete_length=framing.length,
            validator=Validator.from_fields(fields),
            fields=storable_fields(fields),
            accepts_ranges=wanted_all and "bytes" in members_of(fields, "Accept-Ranges"),
        ),
        close_delimited=framing.close_delimited,
    )


def _read_partial(fields: Fields, asked: ByteRange, http_version: int) -> Answer:
    framing = _read_framing(fields, http_version)
    content_range = _read_content_range(fields)
    interval = content_range.interval
    if interval is None or interval.start != asked.start or interval.stop > asked.stop:
        raise BadAnswer(f"asked for {asked}, the origin sent {content_range}")
    if framing.length not in (None, interval.size):
        raise BadAnswer(f"the origin sent {content_range} with Content-Length {framing.length}")
    if is_coded(fields):
        raise BadAnswer("the origin sent part of a coded representation; identity was asked for")
    return Answer(
        start=interval.start,
        stop=interval.stop,
        representation=Representation(
            complete_length=content_range.complete_length,
            validator=Validator.from_fields(fields),
            fields=storable_fields(fields),
            accepts_ranges=True,
        ),
        close_delimited=framing.close_delimited,
    )


def _read_content_range(fields: Fields) -> ContentRange:
    media_type = (value_of(fields, "Content-Type") or "").lower()
    if media_type.startswith("multipart/byteranges"):
        raise BadAnswer("asked for one range, the origin sent multipart/byteranges")
    text = value_of(fields, "Content-Range")
    content_range = ContentRange.parse(text)
    if content_range is None:
        raise BadAnswer(f"the origin sent a 206 with Content-Range {text!r:.80}")
    return content_range


def _join(answer: Answer, held: Representation, *, compared: bool) -> Answer:
    """Check that the answer is of the version *held*, and return it as part of that.

    Equal strong validators always show it. But a 206 to If-Range need not repeat
    them (RFC 9110 §15.3.7): the origin has then *compared* the strong
    validator itself, and would have sent a 200 had it not matched. So what such a
    206 does say must agree, and what it leaves out is kept. That holds for nothing
    else: a 200 is how an origin says that If-Range did not match, and without
    If-Range a bare 206 may be of any version.
    """
    new = answer.representation
    _check_length(answer, held)
    is_same = held.validator.same_version(new.validator) or (
        compared
        and held.validator.strong is not None
        and not held.validator.contradicts(new.validator)
    )
    if not is_same or is_coded(held.fields) or is_coded(new.fields):
        raise RepresentationChanged("the origin's answer is not provably of the stored version")
    return replace(answer, representation=_merge(held, new))


def _check_length(answer: Answer, held: Representation) -> None:
    known, told = held.complete_length, answer.representation.complete_length
    if known is None:
        return
    # A 206 of unknown total can still give itself away by running past the end.
    past_the_end = answer.stop != END and answer.stop > known
    if told not in (None, known) or past_the_end:
        raise RepresentationChanged(
            f"{known} bytes are stored as the complete length, the origin sent "
            f"{ByteRange(answer.start, answer.stop)} of {'*' if told is None else told}"
        )


def _merge(held: Representation, new: Representation) -> Representation:
    """Return *held* with what *new* adds; the known validator stays."""
    return Representation(
        complete_length=(
            new.complete_length if held.complete_length is None else held.complete_length
        ),
        validator=held.validator,
        fields=update_fields(held.fields, new.fields),
        accepts_ranges=new.accepts_ranges,
    )


def read_not_modified(fields: Fields, *, held: Representation) -> Representation:
    """Return *held* with its fields freshened by a 304.

    The validators compare weakly, as nothing is joined.

    Raises:
        RepresentationChanged: the 304 is about another version.
    Source: RFC 9111 §4.3.4.
    """
    told = Validator.from_fields(fields)
    if held.validator.contradicts(told) and not weak_match(held.validator.etag, told.etag):
        raise RepresentationChanged("the origin answered 304 for a version that is not stored")
    return replace(held, fields=update_fields(held.fields, fields))


def parse_retry_after(text: str | None, *, now_s: float) -> float | None:
    """Return in how many seconds to ask again, or None if the origin does not say.

    Source: RFC 9110 §10.2.3.
    """
    delay_s = parse_seconds(text)
    if delay_s is not None:
        return float(delay_s)
    moment_s = parse_http_date(text)
    return None if moment_s is None else max(0.0, moment_s - now_s)


@dataclass(frozen=True, slots=True)
class _Framing:
    """How the end of a body is found; ``length`` in bytes, or None."""

    length: int | None
    close_delimited: bool


def _read_framing(fields: Fields, http_version: int) -> _Framing:
    """Return how the body is delimited, trusting only what is unmistakable.

    Raises:
        BadAnswer: the framing is faulty.
    Source: RFC 9112 §6.1, §6.3.
    """
    # Not stripped: http.client compares the raw value, and reads "chunked " or
    # "gzip, chunked" as no coding at all, leaving chunk sizes in the body.
    codings = [value for name, value in fields if name.lower() == "transfer-encoding"]
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"] or http_version < HTTP_1_1:
            raise BadAnswer(f"the origin sent Transfer-Encoding {', '.join(codings)!r:.80}")
        # Chunked overrides Content-Length, which is then not even looked at.
        return _Framing(None, close_delimited=False)
    length = _read_content_length(fields)
    return _Framing(length, close_delimited=length is None)


def read_length(method: str, status: int, fields: Fields, http_version: int) -> int | None:
    """Return how long the body of any answer is, None if only its end will tell.

    Raises:
        BadAnswer: the framing is faulty.
    Source: RFC 9112 §6.3.
    """
    if method == "HEAD" or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return _read_content_length(fields)
    return _read_framing(fields, http_version).length


def _read_content_length(fields: Fields) -> int | None:
    values = values_of(fields, "Content-Length")
    if not values:
        return None
    # "5, 5" is what proxies make of a repeated field, and harmless if all agree.
    lengths = {parse_digits(part.strip(OWS)) for text in values for part in text.split(",")}
    length = lengths.pop()
    if lengths or length is None or length >= END:
        raise BadAnswer(f"the origin sent Content-Length {', '.join(values)!r:.80}")
    return length
