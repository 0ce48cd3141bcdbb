"""Requests to send: most are nearly right, and then something happens to their bytes.

Everything comes from the dice that are handed in, so a seed and a number make a case again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.fuzz.films import FILMS, Film
from tests.soak.judge import Span

__all__ = ["Case", "Wish", "make_case"]


LONGEST_BYTES: Final = 128 << 10
"""What a client may send before it reads: the sockets' buffers hold it."""


@dataclass(frozen=True)
class Wish:
    """A request that is right, and so has an answer that is known beforehand."""

    film: Film
    method: str = "GET"
    span: Span | None = None


@dataclass(frozen=True)
class Case:
    """What one connection carries.

    ``wishes`` are what it asks for if it is all right, else None. ``ends`` says that the
    client ends its side after the last byte; one that does not waits for the server to.
    ``stays`` is False for a client that leaves without reading.
    """

    pieces: tuple[bytes, ...]
    wishes: tuple[Wish, ...] | None
    ends: bool = False
    stays: bool = True

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def make_case(dice: random.Random, host: str) -> Case:
    """Return the next case; *host* is the ``Host`` by which the proxy is known."""
    if dice.random() < 0.3:
        return _right_case(dice, host)
    requests = [_request(dice, host) for _ in range(dice.choice((1, 1, 1, 2, 3)))]
    data = b"".join(requests)
    for _ in range(dice.choice((0, 0, 0, 1, 1, 2, 4, 16))):
        data = dice.choice(_MUTATIONS)(dice, data)[:LONGEST_BYTES]
    return Case(_pieces(dice, data), None, ends=True, stays=dice.random() < 0.95)


# -- what is right ------------------------------------------------------------------


def _right_case(dice: random.Random, host: str) -> Case:
    wishes = tuple(_wish(dice) for _ in range(dice.choice((1, 1, 2, 4))))
    requests = []
    for wish in wishes:
        lines = [f"{wish.method} /m{wish.film.path} HTTP/1.1", f"Host: {host}"]
        if wish.span is not None:
            lines.append(f"Range: {wish.span}")
        if wish is wishes[-1]:
            lines.append("Connection: close")
        requests.append("\r\n".join([*lines, "", ""]).encode())
    return Case(_pieces(dice, b"".join(requests)), wishes)


def _wish(dice: random.Random) -> Wish:
    film = dice.choice(FILMS)
    first = dice.randrange(film.size + 2)
    span = dice.choice(
        (
            None,
            Span(first, None),
            Span(first, first + dice.randrange(100_000)),
            Span(None, 1 + dice.randrange(film.size + 2)),
        )
    )
    return Wish(film, dice.choice(("GET", "GET", "GET", "HEAD")), span)


# -- what is nearly right -----------------------------------------------------------

_METHODS: Final = (
    *("GET",) * 10,
    *("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", ""),
)
_HOSTS: Final = ("{host}", "localhost", "127.0.0.1", "[::1]", "evil.test", "", "a, b", "x@{host}")
_VERSIONS: Final = (*("HTTP/1.1",) * 12, "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "")
_ORDERS: Final = ("pause", "resume", "cancel", "retry", "pin", "unpin", "start", "verify", "x")
_CONDITIONS: Final = ("If-Match", "If-None-Match", "If-Range", "If-Modified-Since")


def _request(dice: random.Random, host: str) -> bytes:
    lines = [f"{dice.choice(_METHODS)} {_target(dice)} {dice.choice(_VERSIONS)}"]
    lines.append(f"Host: {host if dice.random() < 0.8 else dice.choice(_HOSTS).format(host=host)}")
    lines += [_field(dice) for _ in range(dice.choice((0, 1, 2, 3, 8)))]
    body = b""
    if dice.random() < 0.25:
        field, body = _body(dice)
        lines.append(field)
    if dice.random() < 0.3:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def _target(dice: random.Random) -> str:
    film = dice.choice(FILMS)
    number = dice.choice((*range(1, 12), 0, 99, -1, 10**20))
    return dice.choice(
        (
            *(f"/m{film.path}",) * 5,
            *(f"/p{film.path}",) * 3,
            *(film.path, f"/m{film.path}?a=%2e%2e&b={dice.random()}"),
            *("/", "/m", "/m/", "//m/x", "*", "", "/http/", "/https/evil.test/", "/http/x:y/"),
            f"/m/{_text(dice)}",
            f"/m/{dice.choice(('..', '%2e%2e', '%252e.', '..%2f', '%c0%ae.', '..;'))}/x",
            f"http://evil.test{film.path}",
            f"/http/127.0.0.1:1{film.path}",
            f"/-/{dice.choice(('', 'entries', 'stats', 'metrics', 'health', 'gc', 'x'))}",
            f"/-/entries?after={number}&limit={dice.choice((0, 1, number))}",
            f"/-/entries/{number}",
            f"/-/entries/{number}/content",
            f"/-/entries/{number}/{dice.choice(_ORDERS)}",
        )
    )


def _field(dice: random.Random) -> str:
    return dice.choice(
        (
            *(f"Range: {_range(dice)}",) * 4,
            f"{dice.choice(_CONDITIONS)}: {_condition(dice)}",
            f"Connection: {dice.choice(('close', 'keep-alive', 'Range', 'close, X', ',', 'TE'))}",
            f"Content-Length: {dice.choice((0, 5, -1, '+5', '5, 5', '0x5', 10**19, ''))}",
            f"Transfer-Encoding: {dice.choice(('chunked', 'gzip, chunked', 'x', 'identity'))}",
            f"Expect: {dice.choice(('100-continue', 'x'))}",
            f"Origin: {dice.choice(('null', 'http://evil.test', 'http://localhost'))}",
            f"Sec-Fetch-Site: {dice.choice(('none', 'same-origin', 'cross-site', 'x'))}",
            f"Referer: http://{dice.choice(('localhost', '127.0.0.1', '['))}/m/list.m3u8",
            f"Authorization: {dice.choice(('Bearer x', 'Basic eDp5', _text(dice)))}",
            f"Cache-Control: {dice.choice(('no-cache', 'only-if-cached', 'max-age=x'))}",
            f"Accept-Encoding: {dice.choice(('gzip', 'identity;q=0', '*'))}",
            f"Upgrade: {dice.choice(('h2c', 'websocket'))}",
            f"{_text(dice)}: {_text(dice)}",
        )
    )


def _range(dice: random.Random) -> str:
    numbers = (0, 1, 999, 1000, 65_535, 299_999, 10**12, 10**30, "")
    specs = [
        f"{dice.choice(numbers)}-{dice.choice(numbers)}" for _ in range(dice.choice((1, 2, 5)))
    ]
    if dice.random() < 0.1:
        specs *= dice.choice((10, 64, 200))
    unit = dice.choice(("bytes", "bytes", "bytes", "Bytes", "seconds", "", "bytes "))
    return f"{unit}={dice.choice((',', ', ', ',,'))}".replace("=,", "=") + ",".join(specs)


def _condition(dice: random.Random) -> str:
    film = dice.choice(FILMS)
    return dice.choice(
        (
            film.etag,
            f"W/{film.etag}",
            "*",
            f'"x", {film.etag}',
            '"',
            "Sun, 06 Nov 1994 08:49:37 GMT",
        )
    )


def _body(dice: random.Random) -> tuple[str, bytes]:
    content = dice.choice(
        (
            b"",
            b"hello",
            b"[" * 1000,
            b"GET /m/film2.mkv HTTP/1.1\r\nHost: localhost\r\n\r\n",
            json.dumps({"url": "http://evil.test/x", "priority": "person"}).encode(),
            json.dumps({"start": 5, "stop": 3, "max_size": -1}).encode(),
        )
    )
    if dice.random() < 0.6:
        length = len(content) + dice.choice((0, 0, 0, 1, -1, 10**6))
        return f"Content-Length: {length}", content
    size = dice.choice((f"{len(content):x}", f"{len(content):X};a=b", "0", "5 ", "-1", "f" * 16))
    chunks = size.encode() + b"\r\n" + content + b"\r\n" if content else b""
    return "Transfer-Encoding: chunked", chunks + dice.choice(
        (b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"")
    )


def _text(dice: random.Random) -> str:
    alphabet = "abcXYZ019-_.~%/:;=?#[]@!$&'()*+, \t\"\\<>^`{|}\x00\x0b\x7f\x85\xa0\xe9\xff"
    return "".join(dice.choices(alphabet, k=dice.choice((0, 1, 3, 8, 40))))


# -- what happens to it -------------------------------------------------------------

_TOKENS: Final = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b"/",
        b"..",
        b"%",
        b"%0d%0a",
    ),
    *(
        b"HTTP/1.1",
        b"GET / HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"Content-Length: 3\r\n",
        b"\xff",
        b"\x85",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Range: bytes=0-0\r\n", b"0\r\n\r\n", b"bytes=", b"-"),
    *(b"9" * 30, b"A" * 300, b"A" * 20_000, b"X: y\r\n" * 120, b"/" * 5000, b"%2e" * 2000),
)


def _flip(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data) or 1)
    return (
        data[:at]
        + bytes(byte ^ 1 << dice.randrange(8) for byte in data[at : at + 1])
        + data[at + 1 :]
    )


def _insert(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice(_TOKENS) + data[at:]


def _delete(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 2, 10, 100)) :]


def _repeat(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data) + 1)
    stop = at + dice.choice((1, 4, 30))
    return data[:stop] + data[at:stop] * dice.choice((1, 2, 50)) + data[stop:]


def _swap_lines(dice: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    dice.shuffle(lines)
    return b"\r\n".join(lines)


def _noise(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.randbytes(dice.choice((1, 3, 20))) + data[at:]


_MUTATIONS: Final[Sequence[Callable[[random.Random, bytes], bytes]]] = (
    *(_flip, _insert, _insert, _delete, _repeat, _swap_lines, _noise),
)


def _pieces(dice: random.Random, data: bytes) -> tuple[bytes, ...]:
    """Cut *data* into what is sent at once."""
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 0, 1, 3, 9))))
    return tuple(
        data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)
    )
