"""One answer of the proxy, held against what it may be. Pure: no sockets, no clock of its own.

It may be wholly of one version that is allowed, with that version's labels and exact
lengths; or an error that says so in one line; or be cut visibly, if what came before
the cut is right. Anything else is `Wrong`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.soak.world import REFUSAL, Subject, Version

__all__ = ["Asked", "Judgement", "Span", "Wrong"]

ERRORS: Final = frozenset({404, 410, 429, 500, 502, 503, 504})
"""What the weather can make the proxy say; a 500 only in the origin's own words."""

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)")
_UNSATISFIED: Final = re.compile(r"bytes \*/([0-9]+)")
_SHOWN_BYTES: Final = 24


class Wrong(Exception):
    """The proxy has done what it never may."""


@dataclass(frozen=True)
class Span:
    """A range as asked for: inclusive, open where *last* is None, a suffix where *first* is."""

    first: int | None
    last: int | None

    def __str__(self) -> str:
        first, last = ("" if end is None else end for end in (self.first, self.last))
        return f"bytes={first}-{last}"

    def resolve(self, size: int) -> tuple[int, int] | None:
        """Return the half-open offsets in *size* bytes, or None if there are none."""
        if self.first is None:
            start, stop = max(0, size - (self.last or 0)), size
        else:
            start, stop = self.first, size if self.last is None else min(size, self.last + 1)
        return (start, stop) if start < stop else None


@dataclass(frozen=True)
class Asked:
    """One request; *at_s* is a moment before it was sent."""

    subject: Subject
    at_s: float
    method: str = "GET"
    span: Span | None = None
    if_range: str | None = None
    if_match: str | None = None
    if_none_match: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        conditions = {
            "Range": None if self.span is None else str(self.span),
            "If-Range": self.if_range,
            "If-Match": self.if_match,
            "If-None-Match": self.if_none_match,
        }
        return {name: value for name, value in conditions.items() if value is not None}

    def __str__(self) -> str:
        conditions = ", ".join(f"{name}: {value}" for name, value in self.fields.items())
        return f"{self.method} {self.subject.path} {conditions}".strip()


Whence = Callable[[bytes], str]


@dataclass
class Judgement:
    """Follows one answer from its head to its end; every method may raise `Wrong`.

    Args:
        sent_bodies: how much the origin has sent in its answers. A body that ends with
            its connection says no more about its end, so where an answer without
            length broke off is an end, as far as a proxy can know.
        whence: explains bytes that are wrong.
    """

    asked: Asked
    status: int
    fields: Sequence[tuple[str, str]]
    sent_bodies: Callable[[], set[int]] = set
    whence: Whence = lambda data: "?"
    candidates: list[Version] = field(init=False)
    position: int = field(init=False, default=0)
    stop: int | None = field(init=False, default=None)
    is_whole: bool = field(init=False, default=False)
    _text: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        self._single = self._single_fields()
        self.candidates = self.asked.subject.allowed(self.asked.at_s)
        length = self._single.get("content-length")
        self._length = None if length is None else int(length)
        rule = {200: self._whole, 206: self._part, 304: self._not_modified}.get(self.status)
        if rule is not None:
            rule()
        elif self.status == 416:
            self._unsatisfied()
        elif self.status == 412:
            self._failed_precondition()
        elif self.status not in ERRORS:
            raise Wrong(f"an unexpected status: {self._head()}")
        if not self.is_error and not self.candidates:
            raise Wrong(f"no version that is allowed has these labels: {self._head()}")
        self._start = self.position

    @property
    def is_error(self) -> bool:
        """Whether the answer holds no part of the representation."""
        return self.status not in (200, 206, 304)

    def take(self, data: bytes) -> None:
        """Judge the next bytes of the body."""
        if self.is_error:
            self._text += data
            return
        if self.asked.method == "HEAD" or self.status == 304:
            raise Wrong(f"a body where there is none: {self._head()}")
        start, self.position = self.position, self.position + len(data)
        right = [v for v in self.candidates if v.read(start, self.position) == data]
        if not right:
            raise Wrong(self._explain(start, data))
        self.candidates = right

    def end(self) -> None:
        """Judge the whole answer, whose framing says that it is all."""
        if self.is_error:
            self._one_line()
            return
        self.is_whole = self.status == 200 and self.asked.method == "GET"
        if self.asked.method == "HEAD" or self.status == 304 or self.stop is not None:
            return  # the length was checked with the head
        ends = [v for v in self.candidates if v.size == self.position]
        if not ends and self.asked.subject.kind.framing == "close":
            ends = self.candidates if self.position in self.sent_bodies() else []
        if not ends:
            sizes = sorted({version.size for version in self.candidates})
            raise Wrong(f"the body ended at {self.position} of {sizes}: {self._head()}")
        self.candidates = ends

    def version(self) -> Version | None:
        """Return the version that was served, if that can be told."""
        labelled = self.candidates and (self.candidates[0].etag or self.candidates[0].last_modified)
        told = self.position - self._start > _SHOWN_BYTES or bool(labelled)
        return self.candidates[0] if not self.is_error and told else None

    # -- heads -----------------------------------------------------------------

    def _whole(self) -> None:
        self._labelled()
        if self._length is not None:
            self._sized(self._length)
            self.stop = self._length

    def _part(self) -> None:
        span, text = self.asked.span, self._single.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        if span is None or self.asked.method != "GET" or match is None:
            raise Wrong(f"a 206 that was not asked for, or says nothing: {self._head()}")
        first, last = int(match[1]), int(match[2])
        self._labelled()
        if match[3] == "*":
            # Nobody knew the length: then only what was asked for to the letter is right.
            size = last + 1 if (span.first, span.last) == (first, last) else 0
        else:
            size = int(match[3])
            self._sized(size)
        condition = self.asked.if_range
        self.candidates = [
            version
            for version in self.candidates
            if condition in (None, version.etag, version.last_modified)
        ]
        if span.resolve(size) != (first, last + 1) or self._length != last + 1 - first:
            raise Wrong(f"another part than asked for: {self._head()}")
        self.position, self.stop = first, last + 1

    def _not_modified(self) -> None:
        self._labelled()
        wanted = (self.asked.if_none_match or "").removeprefix("W/")
        self.candidates = [
            version
            for version in self.candidates
            if wanted and (version.etag or "").removeprefix("W/") == wanted
        ]

    def _unsatisfied(self) -> None:
        match = _UNSATISFIED.fullmatch(self._single.get("content-range", ""))
        size = int(match[1]) if match else -1
        sizes = {version.size for version in self.candidates}
        if self.asked.subject.kind.framing == "close":
            sizes |= self.sent_bodies()
        if self.asked.span is None or size not in sizes or self.asked.span.resolve(size):
            raise Wrong(f"a 416 to what could be satisfied: {self._head()}")

    def _failed_precondition(self) -> None:
        wanted = self.asked.if_match
        holds = [v for v in self.candidates if v.size and v.etag == wanted]
        # A weak tag never matches, RFC 9110 §13.1.1.
        if wanted is None or (holds == self.candidates and not wanted.startswith("W/")):
            raise Wrong(f"a 412 to what was not asked, or holds: {self._head()}")

    def _labelled(self) -> None:
        labels = self._single.get("etag"), self._single.get("last-modified")
        self.candidates = [
            version
            for version in self.candidates
            if (version.etag, version.last_modified) == labels
            # An empty file may be known from a 416 alone, which tells nothing else.
            or (version.size == 0 and labels == (None, None))
        ]

    def _sized(self, size: int) -> None:
        ends = [version for version in self.candidates if version.size == size]
        if not ends and self.asked.subject.kind.framing == "close" and size in self.sent_bodies():
            return
        self.candidates = ends

    def _single_fields(self) -> Mapping[str, str]:
        single: dict[str, str] = {}
        for name, value in self.fields:
            key = name.lower()
            if key in single and key in ("etag", "content-length", "content-range"):
                raise Wrong(f"{name} came twice: {self._head()}")
            single[key] = value
        return single

    # -- words -----------------------------------------------------------------

    def _one_line(self) -> None:
        if self.asked.method == "HEAD" or self.status == 412:
            return
        text = self._text
        if not text.strip() or text.count(b"\n") != 1 or not text.endswith(b"\n"):
            raise Wrong(f"an error that is not one plain line, {text[:200]!r}: {self._head()}")
        if self.status == 500 and text != REFUSAL:
            raise Wrong(f"an error of the proxy's own, {text[:200]!r}: {self._head()}")
        if self._length not in (None, len(text)):
            raise Wrong(f"{len(text)} bytes of error instead of as many as said: {self._head()}")

    def _head(self) -> str:
        fields = "; ".join(f"{name}: {value}" for name, value in self.fields)
        return f"{self.asked} -> {self.status} [{fields}]"

    def _explain(self, start: int, data: bytes) -> str:
        lines = [f"wrong bytes in {start}-{self.position}: {self._head()}"]
        for version in self.candidates[-3:]:
            expected = version.read(start, self.position)
            at = next(
                (i for i, pair in enumerate(zip(data, expected, strict=False)) if len({*pair}) > 1),
                min(len(data), len(expected)),
            )
            found = data[at : at + _SHOWN_BYTES]
            lines.append(
                f"  as {version} it is right up to {start + at}; "
                f"then come {found.hex(' ')} ({self.whence(found)})"
            )
        return "\n".join(lines)
