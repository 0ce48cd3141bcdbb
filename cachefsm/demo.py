"""The demonstration's origin: a slow HTTP server with five minutes of music.

For seeing the cache at work without a network and without a file: the music is
computed when it is asked for, and sent so slowly that the cache fills before
your eyes, yet fast enough to play at once.

The music is Pachelbel's ground bass, a bar for each of its eight chords, broken
into quavers that change from round to round. Each quaver (a *slot*) depends only
on its place in the score, so any range of the file can be computed by itself.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Any

__all__ = ["SONG_BYTES", "SONG_PATH", "SONG_S", "DemoOrigin", "Pace", "song_bytes"]

_log = logging.getLogger(__name__)

# --- The score. Change anything down to `song_bytes`, and _ETAG has to change.

_ETAG = '"canon-1"'
_LAST_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"

_RATE_HZ = 44_100
_FRAME_BYTES = 4  # 16 bits, two channels
_SLOT_FRAMES = _RATE_HZ // 4
_BAR_SLOTS = 8
_SLOT_BYTES = _SLOT_FRAMES * _FRAME_BYTES

# Bass and two upper notes of each chord, as MIDI numbers: D A Bm F#m G D G A.
_CHORDS = (
    (38, 62, 66),
    (45, 61, 64),
    (47, 59, 62),
    (42, 57, 61),
    (43, 59, 62),
    (38, 57, 62),
    (43, 59, 62),
    (45, 61, 64),
)
# The notes that each chord lends to the quavers, low to high; the highest ones
# are the canon's first voice.
_LADDERS = (
    (62, 66, 69, 74, 78),
    (61, 64, 69, 73, 76),
    (59, 62, 66, 71, 74),
    (57, 61, 66, 69, 73),
    (55, 59, 62, 67, 71),
    (54, 57, 62, 66, 69),
    (55, 59, 62, 67, 71),
    (57, 61, 64, 69, 73),
)
# Steps on the ladder, a round each; None is a rest.
_PATTERNS: tuple[tuple[int | None, ...], ...] = (
    (4, None, None, None, None, None, None, None),
    (4, None, None, None, 2, None, 3, None),
    (0, None, 2, None, 3, None, 2, None),
    (4, None, 3, None, 2, None, 3, None),
    (0, 2, 3, 2, 4, 2, 3, 2),
    (4, 3, 2, 3, 0, 1, 2, 3),
    (0, 1, 2, 3, 4, 3, 2, 1),
    (4, 2, 3, 4, 2, 3, 1, 2),
    (2, None, 3, 4, None, 3, 2, None),
)
_ROUNDS = 2 * len(_PATTERNS) + 1
_BARS = _ROUNDS * len(_CHORDS) + 1  # and one that comes home
_SLOTS = _BARS * _BAR_SLOTS

SONG_PATH = "/demo.wav"
SONG_S = _SLOTS * _SLOT_FRAMES / _RATE_HZ

# Source: the RIFF WAVE header, as every player writes it; all little-endian.
_HEADER = struct.pack(
    "<4sI4s4sIHHIIHH4sI",
    *(b"RIFF", 36 + _SLOTS * _SLOT_BYTES, b"WAVE"),
    *(b"fmt ", 16, 1, 2, _RATE_HZ, _RATE_HZ * _FRAME_BYTES, _FRAME_BYTES, 16),
    *(b"data", _SLOTS * _SLOT_BYTES),
)
SONG_BYTES = len(_HEADER) + _SLOTS * _SLOT_BYTES


def song_bytes(start: int, stop: int) -> bytes:
    """Return bytes *start* to *stop*, half-open, of the WAV file; always the same ones."""
    start, stop = max(0, start), min(stop, SONG_BYTES)
    pieces = [_HEADER[start:stop]]
    position = max(start, len(_HEADER))
    while position < stop:
        slot, skip = divmod(position - len(_HEADER), _SLOT_BYTES)
        piece = _slot(*_slot_key(slot))[skip : skip + stop - position]
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)


def _slot_key(slot: int) -> tuple[int, int, int | None, int | None]:
    """Return what decides the sound of *slot*: chord, place in the bar, its note, the last one."""
    chord = slot // _BAR_SLOTS % len(_CHORDS)
    return chord, slot % _BAR_SLOTS, _note(slot), _note(slot - 1)


def _note(slot: int) -> int | None:
    bar, place = divmod(slot, _BAR_SLOTS)
    round_, chord = divmod(bar, len(_CHORDS))
    if bar < 0 or bar == _BARS - 1:
        return None
    step = _PATTERNS[round_ % len(_PATTERNS)][place]
    return None if step is None else _LADDERS[chord][step]


@lru_cache(maxsize=64)  # 2.8 MB, and every round repeats only a few
def _slot(chord: int, place: int, note: int | None, last_note: int | None) -> bytes:
    """Return the samples of one quaver: the chord, its note, and the last one dying away."""
    begin = place * _SLOT_FRAMES
    ground = _chord_wave(chord)[begin : begin + _SLOT_FRAMES]
    rising = _note_wave(note)[:_SLOT_FRAMES]
    dying = _note_wave(last_note)[_SLOT_FRAMES:]
    # Each note stays on its side while it dies, so that nothing jumps.
    near, far = (0.8, 0.5) if place % 2 else (0.5, 0.8)
    frames = array("h", bytes(_SLOT_BYTES))
    for channel, (now, before) in enumerate(((near, far), (far, near))):
        frames[channel::2] = array(
            "h",
            [int(a + now * b + before * c) for a, b, c in zip(ground, rising, dying, strict=True)],
        )
    if sys.byteorder == "big":
        frames.byteswap()
    return frames.tobytes()


@lru_cache(maxsize=len(_CHORDS))
def _chord_wave(chord: int) -> array[float]:
    """Return one bar of a chord, silent at both ends."""
    bass, *upper = _CHORDS[chord]
    frames = _BAR_SLOTS * _SLOT_FRAMES
    voices = [(_frequency(bass), 2200.0), (2 * _frequency(bass), 900.0)]
    voices += [(_frequency(note), 750.0) for note in upper]
    wave = array("d", bytes(8 * frames))
    for frequency_hz, loudness in voices:
        step = 2 * math.pi * frequency_hz / _RATE_HZ
        wave = array("d", [w + loudness * math.sin(step * i) for i, w in enumerate(wave)])
    return array("d", [w * _fade(i, frames, 4_000, 11_000) for i, w in enumerate(wave)])


@lru_cache(maxsize=32)
def _note_wave(note: int | None) -> array[float]:
    """Return two quavers of a plucked note, silent at both ends."""
    frames = 2 * _SLOT_FRAMES
    if note is None:
        return array("d", bytes(8 * frames))
    step = 2 * math.pi * _frequency(note) / _RATE_HZ
    sin, exp = math.sin, math.exp
    return array(
        "d",
        [
            (4200 * sin(step * i) + 1100 * exp(-i / 5000) * sin(2 * step * i))
            * exp(-i / 9000)
            * _fade(i, frames, 300, 6_000)
            for i in range(frames)
        ],
    )


def _frequency(note: int) -> float:
    return float(440 * 2 ** ((note - 69) / 12))


def _fade(frame: int, frames: int, in_frames: int, out_frames: int) -> float:
    """Return how open the sound is at *frame*: from 0 to 1 and back, without corners."""
    opened = min(1.0, frame / in_frames, (frames - frame) / out_frames)
    return 0.5 - 0.5 * math.cos(math.pi * opened)


# --- The server.

_CHUNK_BYTES = 16 * 1024
_IDLE_TIMEOUT_S = 30.0
_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,19})-([0-9]{0,19})|-([0-9]{1,19}))[ \t]*")


class Pace:
    """Shares a number of bytes per second among all who ask.

    Thread-safe. *clock* returns seconds, as :func:`time.monotonic`.
    """

    def __init__(
        self, bytes_per_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def wait_s(self, size_bytes: int) -> float:
        """Take a turn for *size_bytes* and return the seconds to wait before sending them."""
        if self._bytes_per_s is None:
            return 0.0
        with self._lock:
            now_s = self._clock()
            turn_s = max(now_s, self._free_at_s)
            self._free_at_s = turn_s + size_bytes / self._bytes_per_s
            return turn_s - now_s


class DemoOrigin:
    """An origin on loopback that serves :data:`SONG_PATH`, slowly.

    A context manager; :attr:`url` is its base URL. The default pace fills the
    cache in a minute and three quarters; the music itself takes five minutes,
    so a player and the fill behind it both get enough.

    *bytes_per_s* is shared by all connections; None sends as fast as it can.
    """

    def __init__(self, *, port: int = 0, bytes_per_s: float | None = 512 * 1024) -> None:
        self._server = _Server(port, Pace(bytes_per_s))
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="cachefsm-demo",
            daemon=True,
        )

    @property
    def url(self) -> str:
        """The base URL, ending in a slash."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    @property
    def song_url(self) -> str:
        """The URL of the music."""
        return self.url.removesuffix("/") + SONG_PATH

    def start(self) -> None:
        """Serve, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Cut every connection, and return when no thread and no socket is left."""
        self._server.closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> DemoOrigin:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Server(HTTPServer):
    """A thread per connection, like ``ThreadingHTTPServer``, but one that can be ended.

    That one either leaves its threads behind or waits for clients that keep an
    idle connection open.
    """

    request_queue_size = 64

    def __init__(self, port: int, pace: Pace) -> None:
        self.pace = pace
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        # Touched by the accepting thread, and by close() once that has ended.
        self._threads: list[threading.Thread] = []
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own would ask the resolver for this address's name.
        self.allow_reuse_address = True
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="cachefsm-demo-client"
        )
        thread.daemon = True
        self._threads = [*(old for old in self._threads if old.is_alive()), thread]
        with self._lock:
            self._sockets.add(request)
        thread.start()

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:
            _log.debug("client left: %s", error)
        finally:
            with self._lock:
                self._sockets.discard(request)
            self.shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for client in self._sockets:
                with suppress(OSError):  # the client was quicker
                    client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "cachefsm-demo"
    sys_version = ""
    timeout = _IDLE_TIMEOUT_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.path.partition("?")[0] != SONG_PATH:
            self._head(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
            return
        common = {
            "Accept-Ranges": "bytes",
            "ETag": _ETAG,
            "Last-Modified": _LAST_MODIFIED,
            "Cache-Control": "max-age=86400",
        }
        if self._not_modified():
            self._head(HTTPStatus.NOT_MODIFIED, common)
            return
        start, stop, status = 0, SONG_BYTES, HTTPStatus.OK
        wanted = self._wanted()
        if wanted is not None:
            start, stop = wanted
            status = HTTPStatus.PARTIAL_CONTENT
            common["Content-Range"] = f"bytes {start}-{stop - 1}/{SONG_BYTES}"
            if start >= stop:
                start, stop = 0, 0
                status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                common["Content-Range"] = f"bytes */{SONG_BYTES}"
        if start < stop:
            common["Content-Type"] = "audio/wav"
        self._head(status, common | {"Content-Length": str(stop - start)})
        if self.command == "GET":
            self._send_song(start, stop)

    def _not_modified(self) -> bool:
        """Say whether the client has this version. Source: RFC 9110 §13.2.2."""
        tags = self.headers.get("If-None-Match")
        if tags is None:
            return self.headers.get("If-Modified-Since") == _LAST_MODIFIED
        return tags.strip() == "*" or _ETAG in (
            tag.strip().removeprefix("W/") for tag in tags.split(",")
        )

    def _wanted(self) -> tuple[int, int] | None:
        """Return the range asked for, half-open and empty if unsatisfiable; None for all.

        Source: RFC 9110 §14.2: what is no single byte range may be ignored, and
        so is one whose If-Range names another version.
        """
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        validator = self.headers.get("If-Range")
        if self.command != "GET" or not match or validator not in (None, _ETAG, _LAST_MODIFIED):
            return None
        first, last, suffix = match.groups()
        if suffix is not None:
            return max(0, SONG_BYTES - int(suffix)), SONG_BYTES
        if last and int(last) < int(first):
            return None
        return int(first), min(int(last) + 1, SONG_BYTES) if last else SONG_BYTES

    def _head(self, status: HTTPStatus, fields: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_song(self, start: int, stop: int) -> None:
        for position in range(start, stop, _CHUNK_BYTES):
            chunk = song_bytes(position, min(position + _CHUNK_BYTES, stop))
            if self.server.closing.wait(self.server.pace.wait_s(len(chunk))):
                # The body is short now, so the connection must not outlive it.
                self.close_connection = True
                return
            self.wfile.write(chunk)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log to ``logging`` what the base class prints."""
        _log.debug(format, *args)
