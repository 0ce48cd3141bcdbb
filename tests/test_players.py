"""Programs that people play and download with, through the proxy, while files arrive."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefsm import Cache
from cachefsm.proxy import Server
from cachefsm.semantics import parse_range
from tests.support.caches import WAIT_S, OpenCache
from tests.support.clients import serve_mounted
from tests.support.faults import cut_after, hold_after
from tests.support.origin import Exchange, Origin, Resource, Shaping, content
from tests.support.threads import in_thread

SIZE = 3_000_000
HALF = SIZE // 2
RATE_BYTES_S = 4e6
WASTE = 1.02  # origin bytes per byte of a file
RUN_S = 60.0  # bounds a program that hangs


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(*command: str | Path, codes: tuple[int, ...] = (0,)) -> bytes:
    """Return what *command* prints; fails unless it ends with one of *codes*."""
    done = subprocess.run(command, capture_output=True, timeout=RUN_S, stdin=subprocess.DEVNULL)
    assert done.returncode in codes, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout


# -- players ----------------------------------------------------------------------

FFMPEG = ("ffmpeg", "-nostdin", "-v", "error")


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the same 6 MB as MP4, its index at the end, and as MKV."""
    directory = tmp_path_factory.mktemp("media")
    seconds, mp4 = "12", directory / "film.mp4"
    # Noise, so that the encoder cannot get by with less than it was given.
    run(
        *FFMPEG,
        *("-f", "lavfi", "-i", f"testsrc2=size=640x360:rate=25:duration={seconds}"),
        *("-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}"),
        *("-vf", "noise=alls=12:allf=t", "-c:v", "mpeg4", "-c:a", "aac"),
        *("-b:v", "4M", "-minrate", "4M", "-maxrate", "4M", "-bufsize", "2M", mp4),
    )
    run(*FFMPEG, "-i", mp4, "-c", "copy", directory / "film.mkv")
    return directory


@pytest.fixture
def slow_origin() -> Iterator[Origin]:
    with Origin(Shaping(rate_total=RATE_BYTES_S)) as origin:
        yield origin


@pytest.fixture
def film(media: Path, slow_origin: Origin, name: str) -> Path:
    """One of the files, which the slow origin has as well."""
    path = media / name
    slow_origin.put(f"/{name}", Resource.of(path))
    return path


@pytest.fixture
def theatre(cache: Cache, slow_origin: Origin) -> Iterator[Server]:
    with serve_mounted(cache, slow_origin) as server:
        yield server


BOTH = pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])


def frames(source: str | Path) -> bytes:
    """Return the checksum of every decoded frame."""
    return run(*FFMPEG, "-i", source, "-f", "framemd5", "-")


def assert_fetched_once(cache: Cache, origin: Origin, path: Path) -> None:
    assert cache.entry(origin.url(f"/{path.name}")).wait_complete(WAIT_S)
    assert origin.body_bytes_sent <= WASTE * path.stat().st_size


@needs("ffmpeg")
@BOTH
def test_ffmpeg_decodes_every_frame_of_an_arriving_file(cache, slow_origin, theatre, film) -> None:
    assert frames(f"{theatre.url}m/{film.name}") == frames(film)
    assert_fetched_once(cache, slow_origin, film)


@needs("ffmpeg")
@pytest.mark.parametrize("name", ["film.mkv"])
def test_ffmpeg_decodes_frames_before_the_rest_is_here(slow_origin, theatre, film) -> None:
    hold = slow_origin.script(hold_after(film.stat().st_size // 2))
    url = f"{theatre.url}m/{film.name}"
    command = [*FFMPEG, "-i", url, "-f", "framemd5", "-flush_packets", "1", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as player:
        assert player.stdout is not None
        lines = []
        while not lines or lines[-1].startswith(b"#"):
            lines.append(player.stdout.readline())
        assert hold.reached.wait(WAIT_S)
        assert not slow_origin.requests[0].finished
        hold.release()
        lines += player.stdout.readlines()
    assert b"".join(lines) == frames(film)


@needs("ffmpeg", "ffprobe")
@pytest.mark.parametrize("name", ["film.mp4"])
def test_ffprobe_finds_an_index_at_the_end_of_a_file_that_has_just_begun(
    slow_origin, theatre, film
) -> None:
    slow_origin.script(hold_after(1 << 20))
    probe = ("ffprobe", "-v", "error", "-show_streams", "-of", "flat")
    assert run(*probe, f"{theatre.url}m/{film.name}") == run(*probe, film)
    first, second, *_ = slow_origin.requests
    assert not first.finished
    assert first.range == "bytes=0-"
    assert second.range != "bytes=0-"


@needs("ffmpeg", "mpv")
@BOTH
def test_mpv_plays_from_the_middle_of_a_cold_file(cache, slow_origin, theatre, film) -> None:
    # A null output without the clock: it plays as fast as bytes come.
    outputs = ("--vo=null", "--ao=null", "--ao-null-untimed", "--untimed")
    url = f"{theatre.url}m/{film.name}"
    assert b"(End of file)" in run("mpv", "--no-config", *outputs, "--start=50%", url)
    size = film.stat().st_size
    asked = [parse_range(request.range) or () for request in slow_origin.requests]
    starts = [spec.first for specs in asked for spec in specs if spec.first is not None]
    assert any(0.3 * size < start < 0.7 * size for start in starts)
    assert_fetched_once(cache, slow_origin, film)


# -- downloaders ------------------------------------------------------------------


@pytest.fixture
def url(cache: Cache, origin: Origin) -> Iterator[str]:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin) as server:
        yield f"{server.url}m/film"


CURL = ("curl", "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*")
WGET = ("wget", "--no-config", "--quiet", "--no-proxy", "--tries=1")


@needs("curl")
def test_curl_gets_a_range_while_the_rest_is_held(origin, url) -> None:
    hold = origin.script(hold_after(HALF))
    assert run(*CURL, "--range", "1000-1999", url) == content(1000, 2000)
    assert run(*CURL, "--range", f"{HALF - 10}-{HALF - 1}", url) == content(HALF - 10, HALF)
    assert hold.reached.wait(WAIT_S)
    assert not origin.requests[0].finished


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((*CURL, "--output"), marks=needs("curl"), id="curl"),
        pytest.param((*CURL, "--http1.0", "--output"), marks=needs("curl"), id="curl 1.0"),
        pytest.param((*CURL, "--continue-at", "-", "--output"), marks=needs("curl"), id="curl -C"),
        pytest.param((*WGET, "--output-document"), marks=needs("wget"), id="wget"),
        pytest.param((*WGET, "--continue", "--output-document"), marks=needs("wget"), id="wget -c"),
    ],
)
def test_a_download_of_an_arriving_file_is_whole(origin, url, tmp_path, command) -> None:
    hold = origin.script(hold_after(HALF))
    target = tmp_path / "film"
    if "--continue" in command or "--continue-at" in command:
        target.write_bytes(content(0, 1_000_000))
    download = in_thread(run, *command, target, url)
    assert hold.reached.wait(WAIT_S)
    assert not download.done()
    hold.release()
    download.result(WAIT_S)
    assert target.read_bytes() == content(0, SIZE)
    assert origin.body_bytes_sent <= SIZE  # what a resumed one did not ask for may be on its way


@needs("curl")
@pytest.mark.parametrize("framing", [None, "chunked"])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_curl_knows_that_a_body_was_cut(origin, url, framing, version: str) -> None:
    origin.put("/film", Resource(SIZE, framing=framing, accepts_ranges=framing is None))
    origin.script(cut_after(HALF))
    origin.script(Exchange.reset, nth=2, times=None)
    # 18 is "partial file", 56 "failure with receiving".
    got = run(*CURL, version, url, codes=(18, 56))
    assert content(0, HALF).startswith(got)


@needs("curl", "wget")
def test_downloaders_resume_what_was_cut(origin, open_cache: OpenCache, tmp_path: Path) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(cut_after(HALF))
    origin.script(Exchange.reset, nth=2, times=3)
    target = tmp_path / "film"
    with serve_mounted(open_cache(), origin) as proxy:
        url = f"{proxy.url}m/film"
        run(*CURL, "--output", target, url, codes=(18,))
        assert target.read_bytes() == content(0, HALF)
        run(*CURL, "--request", "POST", f"{proxy.url}-/entries/1/retry")
        run(*WGET, "--continue", "--output-document", target, url)
    assert target.read_bytes() == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE
