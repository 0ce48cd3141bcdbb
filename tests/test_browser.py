"""Chromium plays and seeks in a film that is still arriving, as people have it do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S
from tests.support.chromium import Chromium, Page
from tests.support.clients import serve_mounted
from tests.support.faults import Hold, hold_after
from tests.support.media import SECONDS, make_film, make_hls, make_webm, put_directory
from tests.support.origin import Origin, Resource, Shaping
from tests.support.programs import needs

pytestmark = needs("chromium", "ffmpeg", "bash")

RATE_BYTES_S = 2e6
HLS = "application/vnd.apple.mpegurl"
WASTE = 1.02  # origin bytes per byte of the film


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WebM that grows brighter as it goes, and so shows at which time it is."""
    path = tmp_path_factory.mktemp("media") / "film.webm"
    make_webm(path)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium.started(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def slow_origin(film: Path) -> Iterator[Origin]:
    with Origin(Shaping(rate_total=RATE_BYTES_S)) as origin:
        origin.put("/film.webm", Resource.of(film, content_type="video/webm"))
        yield origin


@pytest.fixture
def hold(slow_origin: Origin, film: Path) -> Hold:
    """Keeps the film from arriving whole."""
    return slow_origin.script(hold_after(film.stat().st_size // 2))


@pytest.fixture
def proxy(cache: Cache, slow_origin: Origin, hold: Hold) -> Iterator[Server]:
    with serve_mounted(cache, slow_origin) as server:
        yield server


@pytest.fixture
def neighbour() -> Iterator[Origin]:
    """Another server of this machine, whose page shows the film."""
    with Origin() as server:
        yield server


def with_video(page: Page, script: str) -> Any:
    """Return what *script*, the body of an async function, returns with ``video`` in hand."""
    return page.evaluate(
        "(async () => { const video = document.querySelector('video');"
        "const heard = name => new Promise((done, failed) => {"
        "  video.addEventListener(name, done, {once: true});"
        "  video.addEventListener('error', () => failed(video.error.message), {once: true}); });"
        f"{script} }})()"
    )


def play(page: Page) -> tuple[float, float]:
    """Play a little; return the film's length, and how far it has been buffered, in seconds."""
    length, buffered = with_video(
        page,
        "video.muted = true; await video.play();"
        "while (video.currentTime < 0.3) await heard('timeupdate');"
        "return [video.duration, video.buffered.end(0)];",
    )
    return length, buffered


def seek(page: Page, time_s: float) -> None:
    with_video(
        page,
        "video.pause(); const there = heard('seeked');"
        f"video.currentTime = {time_s}; await there;"
        "while (video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) await heard('canplay');",
    )


def brightness(page: Page) -> float:
    """Return the mean of the shown picture, 0 to 255."""
    return float(
        with_video(
            page,
            "const picture = new OffscreenCanvas(16, 16).getContext('2d');"
            "picture.drawImage(video, 0, 0, 16, 16);"
            "const reds = picture.getImageData(0, 0, 16, 16).data.filter((_, at) => at % 4 == 0);"
            "return reds.reduce((sum, red) => sum + red) / reds.length;",
        )
    )


def fetched_digest(page: Page) -> bytes:
    """Return the SHA-256 of what the page gets when it asks for its own address."""
    numbers = page.evaluate(
        "fetch(location).then(answer => answer.arrayBuffer())"
        ".then(body => crypto.subtle.digest('SHA-256', body))"
        ".then(digest => Array.from(new Uint8Array(digest)))"
    )
    return bytes(numbers)


def brightness_at(time_s: float) -> float:
    return time_s * 15 * 255 / 219  # of BT.601's 16 to 235


def assert_sought_ahead(origin: Origin, film: Path) -> None:
    first, *later = origin.requests
    assert not first.finished
    size = film.stat().st_size
    starts = [int((request.range or "bytes=0-")[6:].partition("-")[0]) for request in later]
    assert any(0.6 * size < start < 0.85 * size for start in starts), starts


def test_it_plays_and_seeks_in_a_film_that_is_opened_by_its_address(
    chromium, proxy, slow_origin, hold, cache, film
) -> None:
    with chromium.page(f"{proxy.url}m/film.webm") as page:
        length_s, buffered_s = play(page)
        assert length_s == pytest.approx(SECONDS, abs=0.1)
        assert buffered_s < 0.6 * SECONDS  # half of it is held back
        seek(page, 0.8 * SECONDS)
        assert brightness(page) == pytest.approx(brightness_at(0.8 * SECONDS), abs=8)
        assert_sought_ahead(slow_origin, film)
        seek(page, 1.0)
        assert brightness(page) == pytest.approx(brightness_at(1.0), abs=8)
        hold.release()
        assert cache.entry(slow_origin.url("/film.webm")).wait_complete(WAIT_S)
        assert fetched_digest(page) == hashlib.sha256(film.read_bytes()).digest()
    assert slow_origin.body_bytes_sent <= WASTE * film.stat().st_size


def test_it_plays_and_seeks_in_the_page_of_another_server_of_this_machine(
    chromium, proxy, slow_origin, neighbour, film
) -> None:
    html = f"<!doctype html><video src={json.dumps(proxy.url + 'm/film.webm')}></video>"
    neighbour.put("/", Resource.of(html.encode(), content_type="text/html"))
    with chromium.page(neighbour.url()) as page:
        length_s, buffered_s = play(page)
        assert length_s == pytest.approx(SECONDS, abs=0.1)
        assert buffered_s < 0.6 * SECONDS  # half of it is held back
        seek(page, 0.8 * SECONDS)
        assert_sought_ahead(slow_origin, film)


def test_it_plays_a_playlist_of_absolute_paths(chromium, cache, tmp_path) -> None:
    film = tmp_path / "film.mp4"
    make_film(film)
    make_hls(film, tmp_path)
    with Origin() as origin, serve_mounted(cache, origin) as proxy:
        put_directory(origin, tmp_path)
        with chromium.page(f"{proxy.url}m/hls/absolute.m3u8") as page:
            if not page.evaluate(f"document.createElement('video').canPlayType({HLS!r})"):
                pytest.skip("this Chromium plays no HLS")
            length_s, _ = play(page)
            assert length_s == pytest.approx(SECONDS, abs=0.1)
            seek(page, 0.9 * SECONDS)
    assert "/seg/5.ts" in {request.path for request in origin.requests}
