"""What the test origin is asked and what it answers. Pure: no sockets, no threads of its own."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from tests.support.origin import Exchange

Fields = list[tuple[str, str]]

PIECE_BYTES = 1 << 20  # one send: 1 MiB moves 3.3 GB/s to one client, 64 KiB 1.8
ENDLESS = sys.maxsize  # the `stop` of a representation that never ends

_CYCLE = 251  # a prime: no power of two hides a misplaced byte
_BLOCK = memoryview(bytes(range(_CYCLE)) * (PIECE_BYTES // _CYCLE + 2))


class Content(Protocol):
    """The bytes of one representation; half-open offsets."""

    def __call__(self, start: int, stop: int, /) -> bytes | memoryview: ...


def pattern(version: int = 0) -> Content:
    """Return content whose byte at offset i is ``(i + version) % 251``."""

    def read(start: int, stop: int, /) -> bytes | memoryview:
        phase = (start + version) % _CYCLE
        length = max(0, stop - start)
        if length <= PIECE_BYTES:
            return _BLOCK[phase : phase + length]
        return (bytes(_BLOCK[:_CYCLE]) * (length // _CYCLE + 2))[phase : phase + length]

    return read


def content(start: int, stop: int) -> bytes:
    """Return the bytes that an unchanged `Resource` serves from *start* to *stop* (half-open)."""
    return bytes(pattern()(start, stop))


def file_content(path: Path) -> Content:
    """Return content read from the file at *path*, opened anew for every piece."""

    def read(start: int, stop: int, /) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) != stop - start:
            raise EOFError(f"{path}: asked {start}-{stop}, got {len(data)} bytes")
        return data

    return read


@dataclass(eq=False)
class Request:
    """One request as it came over the wire, and how far its answer got.

    The counters are read and written under the origin's condition, and the origin sends
    under it too: whoever has received a byte finds it counted.
    """

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    changed: threading.Condition = field(repr=False)
    _sent: int = 0
    _due: int | None = None
    _ended: bool = False

    @property
    def path(self) -> str:
        """The target without its query; still percent-encoded."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """Return the first value of the field *name*, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def range(self) -> str | None:
        return self.header("Range")

    @property
    def keep_alive(self) -> bool:
        return self.version == "HTTP/1.1" and (self.header("Connection") or "").lower() != "close"

    @property
    def body_bytes_sent(self) -> int:
        """Bytes of the answer's body that the socket took; no heads, no chunk framing."""
        with self.changed:
            return self._sent

    @property
    def finished(self) -> bool:
        """The socket took the whole answer. Never true once it was cut, reset or left."""
        with self.changed:
            return self._sent == self._due

    @property
    def ended(self) -> bool:
        """The exchange is over, finished or not."""
        with self.changed:
            return self._ended

    def count(self, sent_bytes: int) -> None:
        with self.changed:
            self._sent += sent_bytes
            self.changed.notify_all()

    def promise(self, body_bytes: int) -> None:
        """Say how many body bytes make the answer finished."""
        with self.changed:
            self._due = body_bytes
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self._ended = True
            self.changed.notify_all()


Action = Callable[["Exchange"], None]


@dataclass
class Answer:
    """What is about to be sent; a script may edit every part of it.

    The header fields decide the framing: without ``Content-Length`` or ``chunked`` the body
    ends with the connection.
    """

    status: int
    headers: Fields
    content: Content = field(default_factory=pattern)
    start: int = 0
    stop: int = 0
    before_head: list[Action] = field(default_factory=list)
    milestones: list[tuple[int, Action]] = field(default_factory=list)
    piece_bytes: int = PIECE_BYTES
    pause_s: float = 0.0

    @classmethod
    def fixed(cls, status: int, headers: Fields | None = None, body: bytes = b"") -> Answer:
        """Return a complete small answer, as for an error."""
        answer = cls(status, [("Date", formatdate(usegmt=True)), *(headers or [])])
        if answer.may_have_body:
            answer.headers.append(("Content-Length", str(len(body))))
            answer.content, answer.stop = _bytes_content(body), len(body)
        return answer

    @property
    def may_have_body(self) -> bool:
        return self.status >= 200 and self.status not in (204, 304)

    @property
    def length(self) -> int:
        return self.stop - self.start

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def drop(self, *names: str) -> None:
        gone = {name.lower() for name in names}
        self.headers = [pair for pair in self.headers if pair[0].lower() not in gone]

    def at(self, body_bytes: int, action: Action) -> None:
        """Run *action* once *body_bytes* of the body are sent; never, if it is shorter."""
        self.milestones.append((body_bytes, action))

    def become(self, other: Answer) -> None:
        """Take status, fields and body from *other*; keep what shall happen when."""
        self.status, self.headers = other.status, other.headers
        self.content, self.start, self.stop = other.content, other.start, other.stop


@dataclass(frozen=True)
class Resource:
    """What one path serves.

    Args:
        size: complete length in bytes; None never ends.
        etag: as on the wire, strong or ``W/"…"``; ``{version}`` is filled in.
        last_modified: an HTTP-date as on the wire.
        accepts_ranges: True serves them, False says ``none``, "lie" says ``bytes`` and sends 200.
        framing: "chunked" and "close" do not tell the length; default: "length" where known.
        content: the bytes; default: `pattern` of *version*.

    Source: RFC 9110 §13.2.2 (order of preconditions), §14.1.2 and §14.2 (ranges).
    """

    size: int | None = 1_000_000
    etag: str | None = '"v{version}"'
    last_modified: str | None = None
    content_type: str = "application/octet-stream"
    headers: tuple[tuple[str, str], ...] = ()
    accepts_ranges: bool | Literal["lie"] = True
    framing: Literal["length", "chunked", "close"] | None = None
    version: int = 0
    content: Content | None = None

    @classmethod
    def of(cls, data: bytes | Path, **fields: Any) -> Resource:
        """Return a resource that serves *data*, or the file it names."""
        if isinstance(data, Path):
            return cls(data.stat().st_size, content=file_content(data), **fields)
        return cls(len(data), content=_bytes_content(data), **fields)

    def answer(self, request: Request) -> Answer:
        """Return the correct answer to *request*."""
        if request.method not in ("GET", "HEAD"):
            return Answer.fixed(405, [("Allow", "GET, HEAD")])
        if (status := self._precondition(request)) is not None:
            return Answer.fixed(status, self._kept_fields())
        fields: Fields = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", self.content_type),
            ("Accept-Ranges", "bytes" if self.accepts_ranges else "none"),
            *self._kept_fields(),
        ]
        stop = ENDLESS if self.size is None else self.size
        answer = Answer(200, fields, self.content or pattern(self.version), 0, stop)
        framing = self.framing or ("chunked" if self.size is None else "length")
        wanted = self._wanted(request)
        if wanted is not None:
            if not wanted:
                unsatisfied = ("Content-Range", f"bytes */{self.size}")
                return Answer.fixed(416, [unsatisfied, *self._kept_fields()])
            told = self.size if framing == "length" else "*"
            span = f"bytes {wanted.start}-{wanted.stop - 1}/{told}"
            answer.status, answer.start, answer.stop = 206, wanted.start, wanted.stop
            answer.headers.append(("Content-Range", span))
        if framing == "length":
            answer.headers.append(("Content-Length", str(answer.length)))
        elif framing == "chunked" and request.version == "HTTP/1.1":
            answer.headers.append(("Transfer-Encoding", "chunked"))
        return answer

    def _etag(self) -> str | None:
        return self.etag and self.etag.replace("{version}", str(self.version))

    def _kept_fields(self) -> Fields:
        """Return the fields that a 304 repeats."""
        validators = [("ETag", self._etag()), ("Last-Modified", self.last_modified)]
        return [(name, value) for name, value in validators if value] + list(self.headers)

    def _precondition(self, request: Request) -> int | None:
        """Return the status to answer instead of the representation, or None."""
        etag = self._etag()
        if (listed := request.header("If-Match")) is not None:
            same = listed == "*" or (not _is_weak(etag) and etag in _ETAG.findall(listed))
            if not same:
                return 412
        if (listed := request.header("If-None-Match")) is not None:
            opaque = [tag.removeprefix("W/") for tag in _ETAG.findall(listed)]
            same = listed == "*" or (etag is not None and etag.removeprefix("W/") in opaque)
            return 304 if same else None
        since = _date(request.header("If-Modified-Since"))
        modified = _date(self.last_modified)
        return 304 if since and modified and modified <= since else None

    def _wanted(self, request: Request) -> range | None:
        """Return the offsets to send, empty when unsatisfiable; None for everything."""
        match = _RANGE.fullmatch(request.range or "")
        if match is None or self.size is None or request.method != "GET":
            return None
        condition = request.header("If-Range")
        if self.accepts_ranges is not True or not self._unchanged_since(condition):
            return None
        first, last = match.groups()
        if not first:
            return range(max(0, self.size - int(last)), self.size) if last else None
        if last and int(last) < int(first):
            return None
        return range(int(first), min(int(last) + 1, self.size) if last else self.size)

    def _unchanged_since(self, condition: str | None) -> bool:
        """Compare an If-Range value: strongly, or as the exact date (RFC 9110 §13.1.5)."""
        if condition is None:
            return True
        if _ETAG.fullmatch(condition):
            return not _is_weak(condition) and condition == self._etag()
        return condition == self.last_modified


_ETAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)


def _is_weak(etag: str | None) -> bool:
    return etag is not None and etag.startswith("W/")


def _date(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text) if text else None
    except ValueError:
        return None


def _bytes_content(data: bytes) -> Content:
    view = memoryview(data)
    return lambda start, stop: view[start:stop]
