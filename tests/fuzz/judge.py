"""What came back on one connection, held against what may. Pure: no sockets.

Of an answer with a film's ETag every byte is compared with that film. What was asked
for need not be known for that, so it holds for requests that nobody can make sense of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.fuzz.films import Film, film_of
from tests.fuzz.grammar import Wish

__all__ = ["Answer", "Wrong", "judge", "parse_answers"]

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [ -~]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~\x80-\xff]*)")
_RANGE: Final = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)")
_BOUNDARY: Final = re.compile(r"multipart/byteranges; boundary=([0-9A-Za-z'_-]+)")
_REFUSALS: Final = frozenset({404, 409, 429, 502, 503, 504})
"""What a request that is right may be told instead of its bytes: orders given by other
cases pause, cancel and remove what it asks for."""


class Wrong(Exception):
    """The proxy has done what it never may."""


@dataclass(frozen=True)
class Answer:
    """One answer; *is_whole* says that all of the announced body came."""

    status: int
    fields: dict[str, str]
    body: bytes
    is_whole: bool

    @property
    def closes(self) -> bool:
        return "close" in self.fields.get("connection", "")


def judge(received: bytes, wishes: Sequence[Wish] | None) -> list[Answer]:
    """Return the answers in *received* to what was asked; *wishes* if that is known.

    Raises:
        Wrong: they are not what they may be.
    """
    if b"Traceback" in received:
        raise Wrong("a traceback was sent")
    answers = parse_answers(received, None if wishes is None else [w.method for w in wishes])
    for answer in answers:
        if answer.status == 500:
            raise Wrong("500 is nobody's fault but the proxy's")
        _check_bytes(answer)
    if wishes is not None:
        finals = [answer for answer in answers if answer.status >= 200]
        for wish, answer in zip(wishes, finals, strict=False):
            _check_wish(wish, answer)
        is_cut = bool(finals) and (finals[-1].closes or not finals[-1].is_whole)
        if len(finals) < len(wishes) and not is_cut:
            raise Wrong(f"{len(finals)} answers to {len(wishes)} requests")
    return answers


# -- one connection's bytes ---------------------------------------------------------


def parse_answers(received: bytes, methods: Sequence[str] | None) -> list[Answer]:
    """Return the answers in *received*; without *methods* a HEAD shows itself by what follows.

    Raises:
        Wrong: it is no HTTP, or something follows an answer that was to be the last.
    """
    answers: list[Answer] = []
    rest = received
    while rest:
        if answers and answers[-1].closes and answers[-1].status >= 200:
            raise Wrong(f"{len(rest)} bytes follow the last answer: {rest[:80]!r}")
        head, end, rest = rest.partition(b"\r\n\r\n")
        if not end:
            raise Wrong(f"a head that does not end: {head[:80]!r}")
        status, fields = _parse_head(head)
        finals = sum(answer.status >= 200 for answer in answers)
        method = None if methods is None else methods[finals] if finals < len(methods) else "?"
        if method == "?":
            raise Wrong("more answers than requests")
        body, rest, is_whole = _take_body(status, fields, rest, method)
        answers.append(Answer(status, fields, body, is_whole))
    return answers


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise Wrong(f"not a status line: {first[:80]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None:
            raise Wrong(f"not a header field: {line[:80]!r}")
        name, value = found[1].decode().lower(), found[2].decode("latin-1")
        if name in fields and name in ("content-length", "transfer-encoding", "content-range"):
            raise Wrong(f"{name} came twice")
        fields[name] = value
    if "content-length" in fields and "transfer-encoding" in fields:
        raise Wrong("both Content-Length and Transfer-Encoding")
    return int(match[1]), fields


def _take_body(
    status: int, fields: dict[str, str], rest: bytes, method: str | None
) -> tuple[bytes, bytes, bool]:
    """Return the body, what follows it, and whether it is whole. Source: RFC 9112 §6.3."""
    if status < 200 or status in (204, 304) or method == "HEAD":
        return b"", rest, True
    if method is None and (not rest or rest.startswith(b"HTTP/1.1 ")):
        return b"", rest, True  # it must have been a HEAD; or was cut before its first byte
    if "transfer-encoding" in fields:
        return _take_chunks(rest)
    if "content-length" not in fields:
        return rest, b"", True
    length = int(fields["content-length"])
    return rest[:length], rest[length:], len(rest) >= length


def _take_chunks(rest: bytes) -> tuple[bytes, bytes, bool]:
    body = bytearray()
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return bytes(body), b"", False
        if not re.fullmatch(rb"[0-9a-f]+", line):
            raise Wrong(f"not the size of a chunk: {line[:40]!r}")
        size = int(line, 16)
        body += rest[:size]
        if len(rest) < size + 2:
            return bytes(body), b"", False
        if rest[size : size + 2] != b"\r\n":
            raise Wrong("a chunk is longer than it says")
        rest = rest[size + 2 :]
        if size == 0:
            return bytes(body), rest, True


# -- the bytes of films -------------------------------------------------------------


def _check_bytes(answer: Answer) -> None:
    film = film_of(answer.fields.get("etag"))
    if answer.status == 206 and film is None:
        raise Wrong("a part of nothing that the origin has")
    if film is None or answer.status not in (200, 206):
        return
    boundary = _BOUNDARY.fullmatch(answer.fields.get("content-type", ""))
    if answer.status == 206 and boundary:
        _check_parts(film, answer, boundary[1].encode())
        return
    start, stop = 0, film.size
    if answer.status == 206:
        start, stop = _span(film, answer.fields.get("content-range", ""))
    _check_span(film, start, stop, answer.body, is_whole=answer.is_whole and bool(answer.body))


def _check_parts(film: Film, answer: Answer, boundary: bytes) -> None:
    if not answer.is_whole or not answer.body:
        return
    first, *parts = answer.body.split(b"--" + boundary)
    if first.strip(b"\r\n") or len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise Wrong("the parts are not set apart by their boundary")
    for part in parts[:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-range: *([^\r\n]*)", head)
        start, stop = _span(film, found[1].decode() if found else "")
        _check_span(film, start, stop, body[:-2], is_whole=True)


def _span(film: Film, content_range: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(content_range)
    # Until all of it has come, nobody knows how long a film without a length is.
    totals = {str(film.size)} if film.framing is None else {str(film.size), "*"}
    if match is None or match[3] not in totals:
        raise Wrong(f"not a range of {film.size} bytes: {content_range!r}")
    return int(match[1]), int(match[2]) + 1


def _check_span(film: Film, start: int, stop: int, body: bytes, *, is_whole: bool) -> None:
    expected = film.read(start, stop)
    if not start < stop <= film.size and (start, stop) != (0, film.size):
        raise Wrong(f"{start}-{stop} is no part of {film.size} bytes")
    if (is_whole and body != expected) or not expected.startswith(body):
        raise Wrong(f"wrong bytes of {film.path} from {start} to {stop}: {body[:20]!r}")


# -- what was asked for -------------------------------------------------------------


def _check_wish(wish: Wish, answer: Answer) -> None:
    if answer.status in _REFUSALS:
        return
    film = wish.film
    if answer.status == 416:
        if wish.span is None or wish.span.resolve(film.size) is not None:
            raise Wrong(f"{wish} cannot be satisfied?")
        return
    if answer.status not in (200, 206) or film_of(answer.fields.get("etag")) != film:
        raise Wrong(f"{answer.status} with {answer.fields} to {wish}")
    if wish.method == "HEAD" or not answer.is_whole:
        return
    span = (0, film.size)
    if answer.status == 206:
        if wish.span is None:
            raise Wrong(f"a part to {wish}")
        span = wish.span.resolve(film.size) or (-1, -1)
    elif wish.span is not None and film.framing is None:
        raise Wrong(f"all of it to {wish}")
    if answer.body != film.read(*span):
        raise Wrong(f"{len(answer.body)} bytes to {wish}")
