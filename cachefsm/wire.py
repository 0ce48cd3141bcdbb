"""HTTP/1 heads: a request's bytes in, a response's bytes out. Pure, no I/O.

The parser accepts exactly what RFC 9112's grammar allows of a client and
nothing that two readers could take differently: whatever is doubtful is a
``BadRequest`` and the end of the connection. ``http.server`` is not used
because it takes bare LF, folded lines, spaces before the colon, HTTP/0.9 and
conflicting framing, each of which has been a request-smuggling bug somewhere,
and because ``email.parser`` costs more time than the rest of a request.

Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from .errors import CacheError

__all__ = [
    "BadRequest",
    "RequestHead",
    "ResponseHead",
    "check_response",
    "check_text",
    "parse_head",
    "parse_request_line",
    "plain_answer",
]

# Far above any real client (browsers send about 20); bounds the dict per request.
MAX_FIELDS = 100
# "VERSION-CONTROL" and "UPDATEREDIRECTREF" are the longest registered methods.
MAX_METHOD_BYTES = 32
# Names are remembered between requests (see _environ_key), so they are bounded too.
MAX_NAME_BYTES = 256

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD_NAME = re.compile(_TOKEN)
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://")
# A reg-name may hold more by RFC 3986, but no DNS name does, and a comma or "@"
# in Host has only ever meant mischief.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::[0-9]{0,5})?")
# 18 digits fit a signed 64-bit offset.
_LENGTH = re.compile(r"[0-9]{1,18}")
_STATUS = re.compile(r"[2-9][0-9][0-9](?: [\t -~\x80-\xff]*)?")
# RFC 9110 §5.6.3. Not str.strip()'s, which would take NEL and no-break spaces too.
_OWS = " \t"
# What may stand in a line: everything but control characters, TAB excepted.
_TEXT = bytes(c for c in range(256) if c == 9 or (c >= 32 and c != 127))
# A response's framing is the server's to choose, so an application may not name these.
_SERVERS_OWN = frozenset({"keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})


class BadRequest(CacheError):
    """A request that is refused with ``status_hint``, after which the connection closes.

    The message is one line for the client; it never repeats the client's bytes.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status_hint = status


class RequestHead(NamedTuple):
    """A request's head that has passed every check.

    ``fields`` is keyed as in a WSGI environ (``HTTP_RANGE``, ``CONTENT_TYPE``);
    ``target`` is the request target exactly as it came; ``body_bytes`` is the
    length of the body, 0 for none, None for a chunked one.
    """

    method: str
    target: str
    minor: int
    fields: dict[str, str]
    body_bytes: int | None
    keep_alive: bool
    expects_continue: bool


def check_text(text: bytes | bytearray) -> None:
    """Return when every control character in *text* is TAB or half of a CRLF.

    Raises:
        BadRequest: 400; a bare CR or LF, NUL or another control character.
    Source: RFC 9112 §2.2, RFC 9110 §5.5.
    """
    # Two passes in C: if the CRLF pairs account for all controls, none is stray.
    if len(text.translate(None, _TEXT)) != 2 * text.count(b"\r\n"):
        raise BadRequest(400, "a stray control character or bare line end")


def parse_request_line(line: bytes, max_target_bytes: int) -> tuple[str, str, int]:
    """Return method, request target and HTTP/1's minor version.

    Only origin-form is taken (and ``*`` for OPTIONS). Absolute-form is answered
    421 whatever its authority: this is a reverse proxy by paths, and an
    application that sees one spelling of a target cannot confuse two.

    Raises:
        BadRequest: 400, 414, 421, 501 or 505.
    Source: RFC 9112 §3, RFC 9110 §15.5.20.
    """
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if len(line) > max_target_bytes:
            raise BadRequest(414, "the request line is too long")
        raise BadRequest(400, "malformed request line")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise BadRequest(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if len(method) > MAX_METHOD_BYTES:
        raise BadRequest(501, "no such method")
    if method == b"CONNECT":
        raise BadRequest(501, "CONNECT is not implemented")
    if len(target) > max_target_bytes:
        raise BadRequest(414, f"the request target is longer than {max_target_bytes} bytes")
    if target[:1] != b"/":
        if _SCHEME.match(target):
            raise BadRequest(421, "absolute-form targets are not served; this is no open proxy")
        if target != b"*" or method != b"OPTIONS":
            raise BadRequest(400, "the request target must start with /")
    elif b"#" in target:
        # urlsplit and friends would cut here, so two readers would see two targets.
        raise BadRequest(400, "a request target has no fragment")
    return method.decode("ascii"), target.decode("ascii"), int(minor)


def parse_head(
    head: bytes, *, max_target_bytes: int = 16384, max_header_bytes: int = 32768
) -> RequestHead:
    """Return the request whose head is *head*, without its closing empty line.

    Repeated fields are joined with ``, `` (Cookie with ``; ``). Names with an
    underscore are dropped, because in an environ they would pass for dashes.

    Raises:
        BadRequest: 400, 414, 421, 431, 501 or 505.
    Source: RFC 9112 §2-§6, §9.3; RFC 9110 §5.3, §7.2; RFC 6265bis §5.8 for Cookie.
    """
    check_text(head)
    line, _, rest = head.partition(b"\r\n")
    method, target, minor = parse_request_line(line, max_target_bytes)
    if len(rest) > max_header_bytes:
        raise BadRequest(431, f"the header is longer than {max_header_bytes} bytes")
    fields = _parse_fields(rest)

    host = fields.get("HTTP_HOST")
    if host is None:
        if minor == 1:
            raise BadRequest(400, "HTTP/1.1 needs a Host field")
    elif not _HOST.fullmatch(host):
        raise BadRequest(400, "malformed Host field")

    options = fields.get("HTTP_CONNECTION", "").lower()
    if options:
        words = {word.strip(_OWS) for word in options.split(",")}
        keep_alive = "close" not in words and (minor == 1 or "keep-alive" in words)
    else:
        keep_alive = minor == 1
    # HTTP/1.0 clients cannot take an interim answer, RFC 9110 §10.1.1.
    expects = minor == 1 and fields.get("HTTP_EXPECT", "").lower() == "100-continue"
    body_bytes = _body_bytes(fields, minor)
    return RequestHead(method, target, minor, fields, body_bytes, keep_alive, expects)


def _parse_fields(rest: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    if not rest:
        return fields
    lines = rest.split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise BadRequest(431, f"more than {MAX_FIELDS} header fields")
    for line in lines:
        name, colon, value = line.partition(b":")
        if len(name) > MAX_NAME_BYTES:
            raise BadRequest(431, "a header field's name is too long")
        # A folded line starts with a space and so has no valid name either.
        key = _environ_key(name) if colon else None
        if key is None:
            raise BadRequest(400, "malformed header field")
        if not key:
            continue
        text = value.decode("latin-1").strip(_OWS)
        if key in fields:
            # Two Hosts or Content-Lengths thereby become a malformed one, even when equal.
            separator = "; " if key == "HTTP_COOKIE" else ", "
            text = f"{fields[key]}{separator}{text}"
        fields[key] = text
    return fields


@lru_cache(maxsize=512)
def _environ_key(name: bytes) -> str | None:
    """The environ key of a field, "" for one to drop, None for a malformed name."""
    if not _FIELD_NAME.fullmatch(name):
        return None
    if b"_" in name:
        return ""
    key = name.decode("ascii").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def _body_bytes(fields: dict[str, str], minor: int) -> int | None:
    """The body's length, None when chunked. Source: RFC 9112 §6.1, §6.3."""
    coding = fields.get("HTTP_TRANSFER_ENCODING")
    length = fields.get("CONTENT_LENGTH")
    if coding is not None:
        if length is not None or minor == 0:
            raise BadRequest(400, "Transfer-Encoding with Content-Length or in HTTP/1.0")
        codings = [word.strip(_OWS) for word in coding.lower().split(",")]
        if codings == ["chunked"]:
            return None
        if codings[-1] == "chunked" and codings.count("chunked") == 1:
            raise BadRequest(501, "the only transfer coding understood is chunked")
        raise BadRequest(400, "Transfer-Encoding leaves the body's length unclear")
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise BadRequest(400, "malformed Content-Length")
    return int(length)


class ResponseHead(NamedTuple):
    """A checked response head; ``render`` makes its bytes once the framing is known.

    ``content_length`` is what the application promised, in bytes, or None;
    ``close`` says that it asked for the connection to close.
    """

    code: int
    text: bytes
    content_length: int | None
    close: bool

    def render(self, framing: bytes) -> bytes:
        """Return the whole head; *framing* is zero or more lines, each ended by CRLF."""
        return b"HTTP/1.1 %b%b\r\n" % (self.text, framing)


def check_response(status: str, headers: Iterable[tuple[str, str]]) -> ResponseHead:
    """Return the head for what an application gave to ``start_response``.

    Date and Server are added where missing: a cache passes on the origin's.
    Content-Length and Connection are taken out and kept as facts.

    Raises:
        ValueError: a status, name or value that would not be one line of HTTP,
            a malformed or repeated Content-Length, or a field of framing.
    Source: RFC 9110 §5, §6.6.1, §8.6; PEP 3333.
    """
    if not _STATUS.fullmatch(status):
        raise ValueError(f"not a status line: {status!r}")
    content_length: int | None = None
    close = False
    lines = [status]
    missing = {"date", "server"}
    for name, value in headers:
        key = _response_key(name)
        if key == "content-length":
            if content_length is not None or not _LENGTH.fullmatch(value):
                raise ValueError(f"malformed or repeated Content-Length: {value!r}")
            content_length = int(value)
        elif key == "connection":
            close = close or "close" in value.lower()
        elif key in _SERVERS_OWN:
            raise ValueError(f"{name} is not the application's to set")
        else:
            missing.discard(key)
            lines.append(f"{name}: {value}")
    if missing:
        if "date" in missing:
            lines.append(f"Date: {_http_date(int(time.time()))}")
        if "server" in missing:
            lines.append("Server: cachefsm")
    lines.append("")
    text = "\r\n".join(lines).encode("latin-1")  # UnicodeEncodeError is a ValueError
    # One check for all lines: the only controls are the line ends made here.
    if text.translate(None, _TEXT) != b"\r\n" * (len(lines) - 1):
        raise ValueError("a header field holds a control character")
    return ResponseHead(int(status[:3]), text, content_length, close)


@lru_cache(maxsize=512)
def _response_key(name: str) -> str:
    """The lower-case name of a response field. Raises ValueError."""
    if not name.isascii() or not _FIELD_NAME.fullmatch(name.encode()):
        raise ValueError(f"not a header field name: {name!r}")
    if len(name) > MAX_NAME_BYTES:
        raise ValueError("a header field's name is too long")
    return name.lower()


@lru_cache(maxsize=4)
def _http_date(second: int) -> str:
    # Formatting takes longer than parsing a whole request; it changes once a second.
    return formatdate(second, usegmt=True)


def plain_answer(
    status: int, message: str = "", *, headers: Iterable[tuple[str, str]] = (), body: bool = True
) -> bytes:
    """Return a whole one-line answer that closes the connection.

    *body* is False for the answer to a HEAD. 414 and 501 may be stored by
    caches unless told otherwise, hence ``no-store``.
    """
    phrase = HTTPStatus(status).phrase
    line = f"{status} {phrase}: {message}\n" if message else f"{status} {phrase}\n"
    text = line.encode("utf-8", "replace")
    fields = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
    head = check_response(f"{status} {phrase}", [*fields, *headers])
    framing = b"Content-Length: %d\r\nConnection: close\r\n" % len(text)
    return head.render(framing) + (text if body else b"")
