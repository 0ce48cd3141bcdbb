"""The demonstration's origin: the same music for every range, served by the book."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import threading
import wave
from array import array
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, IncompleteRead

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefsm.demo import SONG_BYTES, SONG_PATH, SONG_S, DemoOrigin, Pace, song_bytes

_SLOT_BYTES = 44_100
_HEADER_BYTES = 44


@pytest.fixture(scope="module")
def origin() -> Iterator[DemoOrigin]:
    with DemoOrigin(bytes_per_s=None) as running:
        yield running


@pytest.fixture
def client(origin: DemoOrigin) -> Iterator[HTTPConnection]:
    connection = _connect(origin)
    yield connection
    connection.close()


def _connect(origin: DemoOrigin) -> HTTPConnection:
    host = origin.url.removeprefix("http://").removesuffix("/")
    return HTTPConnection(host, timeout=30)


def _ask(
    client: HTTPConnection, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    client.request(method, SONG_PATH, headers=headers or {})
    response = client.getresponse()
    return response.status, dict(response.getheaders()), response.read()


# --- The music


def test_it_is_a_wav_file_of_five_minutes() -> None:
    start = song_bytes(0, _HEADER_BYTES + _SLOT_BYTES)
    with wave.open(io.BytesIO(start)) as song:
        assert (song.getnchannels(), song.getsampwidth(), song.getframerate()) == (2, 2, 44_100)
        assert song.getnframes() / 44_100 == SONG_S
        assert song.getnframes() * 4 + _HEADER_BYTES == SONG_BYTES
    assert 290 < SONG_S < 310


@settings(max_examples=30, deadline=None)
@given(st.integers(0, SONG_BYTES), st.integers(0, 60_000), st.integers(0, 60_000))
def test_a_range_does_not_depend_on_how_it_is_cut(start: int, cut: int, rest: int) -> None:
    whole = song_bytes(start, start + cut + rest)
    assert whole == song_bytes(start, start + cut) + song_bytes(start + cut, start + cut + rest)
    assert len(whole) == min(cut + rest, SONG_BYTES - start)


def test_a_range_outside_is_empty() -> None:
    assert song_bytes(SONG_BYTES, SONG_BYTES + 10) == song_bytes(5, 5) == song_bytes(-9, 0) == b""


def test_other_bytes_have_another_etag(client: HTTPConnection) -> None:
    # Caches trust the ETag beyond one run. If this fails, change both.
    digest = hashlib.sha256(song_bytes(0, 3 * _SLOT_BYTES))
    for slot in range(5, 1224, 37):
        digest.update(song_bytes(slot * _SLOT_BYTES, (slot + 1) * _SLOT_BYTES))
    _, headers, _ = _ask(client, {"Range": "bytes=0-0"})
    assert (headers["ETag"], digest.hexdigest()) == (
        '"canon-1"',
        "3cbed12dcf84bc0b972683079853057059113eb008fb9f6cd2a30b2f1be0e7aa",
    )


def test_it_is_neither_loud_nor_silent_and_has_no_clicks() -> None:
    two_bars = 16 * _SLOT_BYTES
    start = _HEADER_BYTES + 4 * 64 * _SLOT_BYTES  # the round with a note in every slot
    samples = array("h", song_bytes(start, start + two_bars))
    assert 0.15 < max(map(abs, samples)) / 2**15 < 0.26  # about -12 dBFS
    for channel in (samples[0::2], samples[1::2]):
        bends = [
            abs(after - 2 * here + before)
            for before, here, after in zip(channel, channel[1:], channel[2:], strict=False)
        ]
        joints = [bends[frame - 1] for frame in range(11_025, len(bends), 11_025)]
        assert max(joints) <= max(bends) < 100


def test_it_begins_and_ends_in_silence() -> None:
    first = array("h", song_bytes(_HEADER_BYTES, _HEADER_BYTES + 8))
    last = array("h", song_bytes(SONG_BYTES - 8, SONG_BYTES))
    assert [*first, *last] == [0] * 8


# --- HTTP


def test_the_whole_is_served_with_validators(client: HTTPConnection) -> None:
    client.request("GET", SONG_PATH)
    with client.getresponse() as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == str(SONG_BYTES)
        assert response.headers["Content-Type"] == "audio/wav"
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["ETag"].startswith('"')
        assert response.headers["Last-Modified"].endswith("GMT")
        assert response.read(100_000) == song_bytes(0, 100_000)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        (f"bytes={SONG_BYTES - 10}-", SONG_BYTES - 10, SONG_BYTES),
        (f"bytes={SONG_BYTES - 10}-{SONG_BYTES + 10}", SONG_BYTES - 10, SONG_BYTES),
        ("bytes=-7", SONG_BYTES - 7, SONG_BYTES),
    ],
)
def test_a_range_is_served_exactly(
    client: HTTPConnection, asked: str, start: int, stop: int
) -> None:
    status, headers, body = _ask(client, {"Range": asked})
    assert (status, body) == (206, song_bytes(start, stop))
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SONG_BYTES}"
    assert headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", [f"bytes={SONG_BYTES}-", f"bytes={10**18}-", "bytes=-0"])
def test_a_range_past_the_end_is_416(client: HTTPConnection, asked: str) -> None:
    status, headers, body = _ask(client, {"Range": asked})
    assert (status, headers["Content-Range"], body) == (416, f"bytes */{SONG_BYTES}", b"")


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,4-5", "bytes=x-", "lines=0-1", "bytes="])
def test_what_is_no_single_byte_range_is_ignored(origin: DemoOrigin, asked: str) -> None:
    with closing(_connect(origin)) as client:
        client.request("GET", SONG_PATH, headers={"Range": asked})
        with client.getresponse() as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(SONG_BYTES))


def test_if_range_decides_between_the_part_and_the_whole(origin: DemoOrigin) -> None:
    with closing(_connect(origin)) as client:
        _, known, _ = _ask(client, method="HEAD")
        for validator in (known["ETag"], known["Last-Modified"]):
            status, _, body = _ask(client, {"Range": "bytes=0-3", "If-Range": validator})
            assert (status, body) == (206, b"RIFF")
        client.request("GET", SONG_PATH, headers={"Range": "bytes=0-3", "If-Range": '"other"'})
        with client.getresponse() as response:
            assert response.status == 200


def test_head_says_what_get_would_and_ignores_range(client: HTTPConnection) -> None:
    status, headers, body = _ask(client, {"Range": "bytes=0-3"}, method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(SONG_BYTES), b"")


def test_a_client_that_has_it_is_told_so(client: HTTPConnection) -> None:
    _, known, _ = _ask(client, method="HEAD")
    weak = f'"x", W/{known["ETag"]}'
    for name, value in (
        ("If-None-Match", known["ETag"]),
        ("If-None-Match", weak),
        ("If-Modified-Since", known["Last-Modified"]),
    ):
        status, headers, _ = _ask(client, {name: value, "Range": "bytes=0-3"})
        assert (status, headers["ETag"]) == (304, known["ETag"])
    status, _, _ = _ask(client, {"If-None-Match": '"x"', "Range": "bytes=0-3"})
    assert status == 206


def test_anything_else_is_not_found(client: HTTPConnection) -> None:
    client.request("GET", "/other.wav")
    response = client.getresponse()
    assert (response.status, response.read()) == (404, b"")


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffprobe is not installed")
def test_ffprobe_accepts_it(origin: DemoOrigin) -> None:
    command = ["ffprobe", "-v", "error", "-show_format", "-show_streams", "-of", "json"]
    probed = subprocess.run(
        [*command, origin.song_url], check=True, capture_output=True, timeout=60
    )
    found = json.loads(probed.stdout)
    assert probed.stderr == b""
    assert found["streams"][0]["codec_name"] == "pcm_s16le"
    assert float(found["format"]["duration"]) == SONG_S


# --- Pace and end


def test_the_pace_is_shared_by_all_who_ask() -> None:
    now_s = 100.0
    pace = Pace(1000, clock=lambda: now_s)
    assert [pace.wait_s(500), pace.wait_s(500), pace.wait_s(1000)] == [0, 0.5, 1]
    now_s = 101.5
    assert [pace.wait_s(1), pace.wait_s(1)] == [0.5, pytest.approx(0.501)]


def test_an_idle_pace_saves_nothing_up() -> None:
    now_s = 100.0
    pace = Pace(1000, clock=lambda: now_s)
    now_s = 900.0
    assert [pace.wait_s(1000), pace.wait_s(1000)] == [0, 1]


def test_without_a_pace_nobody_waits() -> None:
    assert [Pace(None).wait_s(10**12) for _ in range(3)] == [0, 0, 0]


def test_close_cuts_streams_and_idle_connections_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    origin = DemoOrigin(bytes_per_s=1)  # the second chunk would come in hours
    origin.start()
    with closing(_connect(origin)) as idle, closing(_connect(origin)) as streaming:
        assert _ask(idle, method="HEAD")[0] == 200
        streaming.request("GET", SONG_PATH)
        response = streaming.getresponse()
        assert response.read(4) == b"RIFF"
        origin.close()
        # Threads of the module's other origin may end meanwhile; none may be new.
        assert set(threading.enumerate()) <= before
        with pytest.raises(IncompleteRead):
            response.read()


def test_an_origin_that_never_started_can_be_closed_twice() -> None:
    origin = DemoOrigin()
    origin.close()
    origin.close()
