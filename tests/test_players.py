"""Programs that people play films with, through the proxy, while the films arrive."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefsm import Cache
from cachefsm.proxy import Server
from cachefsm.semantics import parse_range
from tests.support.caches import WAIT_S
from tests.support.clients import serve_mounted
from tests.support.faults import Hold, hold_after
from tests.support.media import frames, make_dash, make_film, make_hls, make_webm, put_directory
from tests.support.origin import Origin, Resource, Shaping
from tests.support.programs import FFMPEG, needs, run
from tests.support.threads import in_thread

RATE_BYTES_S = 4e6
WASTE = 1.02  # origin bytes per byte of a file


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the same film as MP4, its index at the end, as MKV, and in segments."""
    directory = tmp_path_factory.mktemp("media")
    mp4 = directory / "film.mp4"
    make_film(mp4)
    run(*FFMPEG, "-i", mp4, "-c", "copy", directory / "film.mkv")
    make_hls(mp4, directory)
    make_dash(mp4, directory)
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


def assert_fetched_once(cache: Cache, origin: Origin, path: Path) -> None:
    assert cache.entry(origin.url(f"/{path.name}")).wait_complete(WAIT_S)
    assert origin.body_bytes_sent <= WASTE * path.stat().st_size


def frames_before(source: str, hold: Hold) -> bytes:
    """Return the checksums of all frames, some of which came before *hold* was released."""
    command = [*FFMPEG, "-i", source, "-f", "framemd5", "-flush_packets", "1", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as player:
        assert player.stdout is not None
        lines = []
        while not lines or lines[-1].startswith(b"#"):
            lines.append(player.stdout.readline())
        assert hold.reached.wait(WAIT_S)
        hold.release()
        lines += player.stdout.readlines()
    return b"".join(lines)


# -- ffmpeg and mpv ---------------------------------------------------------------


@needs("ffmpeg")
@BOTH
def test_ffmpeg_decodes_every_frame_of_an_arriving_file(cache, slow_origin, theatre, film) -> None:
    assert frames(f"{theatre.url}m/{film.name}") == frames(film)
    assert_fetched_once(cache, slow_origin, film)


@needs("ffmpeg")
@pytest.mark.parametrize("name", ["film.mkv"])
def test_ffmpeg_decodes_frames_before_the_rest_is_here(slow_origin, theatre, film) -> None:
    hold = slow_origin.script(hold_after(film.stat().st_size // 2))
    assert frames_before(f"{theatre.url}m/{film.name}", hold) == frames(film)


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


# A null output without the clock: it plays as fast as bytes come.
MPV = ("mpv", "--no-config", "--vo=null", "--ao=null", "--ao-null-untimed", "--untimed")


@needs("ffmpeg", "mpv")
@BOTH
def test_mpv_plays_from_the_middle_of_a_cold_file(cache, slow_origin, theatre, film) -> None:
    url = f"{theatre.url}m/{film.name}"
    assert b"(End of file)" in run(*MPV, "--start=50%", url)
    size = film.stat().st_size
    asked = [parse_range(request.range) or () for request in slow_origin.requests]
    starts = [spec.first for specs in asked for spec in specs if spec.first is not None]
    assert any(0.3 * size < start < 0.7 * size for start in starts)
    assert_fetched_once(cache, slow_origin, film)


# -- GStreamer --------------------------------------------------------------------

GST = ("gst-launch-1.0", "--quiet")


@needs("ffmpeg", "gst-launch-1.0")
@pytest.mark.parametrize("name", ["film.mkv"])
def test_gstreamer_reads_every_byte_of_an_arriving_file(
    cache, slow_origin, theatre, film, tmp_path
) -> None:
    got = tmp_path / "got"
    source = ("souphttpsrc", f"location={theatre.url}m/{film.name}")
    run(*GST, *source, "!", "filesink", f"location={got}")
    assert got.read_bytes() == film.read_bytes()
    assert_fetched_once(cache, slow_origin, film)


@needs("ffmpeg", "gst-launch-1.0")
@pytest.mark.parametrize("name", ["film.mp4"])
def test_gstreamer_finds_an_index_at_the_end_of_a_file_that_has_just_begun(
    slow_origin, theatre, film, tmp_path
) -> None:
    hold = slow_origin.script(hold_after(1 << 20))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    demux = ("!", "qtdemux", "name=streams", "streams.video_0", "!", "filesink")
    source = ("souphttpsrc", f"location={theatre.url}m/{film.name}")
    demuxing = in_thread(run, *GST, *source, *demux, f"location={theirs}")
    first, second, *_ = slow_origin.wait_for_requests(2)
    assert not first.finished
    asked = parse_range(second.range)
    assert asked is not None
    assert asked[0].first is not None
    assert asked[0].first > 0.9 * film.stat().st_size
    hold.release()
    demuxing.result(WAIT_S)
    run(*GST, "filesrc", f"location={film}", *demux, f"location={ours}")
    assert theirs.read_bytes() == ours.read_bytes()


@needs("ffmpeg", "gst-launch-1.0")
def test_gstreamers_playbin_plays_an_arriving_file(cache, slow_origin, theatre, tmp_path) -> None:
    film = tmp_path / "film.webm"
    make_webm(film)
    slow_origin.put("/film.webm", Resource.of(film, content_type="video/webm"))
    hold = slow_origin.script(hold_after(film.stat().st_size // 2))
    sinks = [f"{kind}-sink=fakesink sync=false" for kind in ("video", "audio")]
    playing = in_thread(run, *GST, "playbin", f"uri={theatre.url}m/film.webm", *sinks)
    assert hold.reached.wait(WAIT_S)
    assert not playing.done()
    hold.release()
    playing.result(WAIT_S)
    assert_fetched_once(cache, slow_origin, film)


# -- playlists --------------------------------------------------------------------


@pytest.fixture
def channel(cache: Cache, media: Path, slow_origin: Origin) -> Iterator[Server]:
    """A proxy before an origin that has the film in segments, which clients may also name."""
    put_directory(slow_origin, media)
    allow = [f"{slow_origin.host}:{slow_origin.port}"]
    with serve_mounted(cache, slow_origin, allow=allow) as server:
        yield server


PLAYLISTS = pytest.mark.parametrize(
    "playlist", ["hls/list.m3u8", "hls/absolute.m3u8", "dash/list.mpd", "dash/absolute.mpd"]
)


@needs("ffmpeg")
@PLAYLISTS
def test_ffmpeg_decodes_every_frame_of_a_playlist(slow_origin, channel, media, playlist) -> None:
    route = "m"
    if "absolute" in playlist:
        route = f"http/{slow_origin.host}:{slow_origin.port}"
    expected = frames(media / playlist.replace("absolute", "list"))
    for _ in range(2):  # from the origin, then from the files
        assert frames(f"{channel.url}{route}/{playlist}") == expected
    fetched = [request.path for request in slow_origin.requests]
    segments = [path for path in fetched if not path.endswith(playlist)]  # which may grow
    assert len(segments) == len(set(segments)) > 5


@needs("ffmpeg")
def test_ffmpeg_decodes_frames_before_the_last_segment_is_here(slow_origin, channel, media) -> None:
    last = media / "seg" / "5.ts"
    hold = slow_origin.script(hold_after(last.stat().st_size // 2), path="/seg/5.ts")
    found = frames_before(f"{channel.url}m/hls/absolute.m3u8", hold)
    assert found == frames(media / "hls" / "list.m3u8")


@needs("ffmpeg", "mpv")
@PLAYLISTS
def test_mpv_plays_a_playlist_from_the_middle(slow_origin, channel, playlist: str) -> None:
    url = f"{channel.url}m/{playlist}"
    assert b"(End of file)" in run(*MPV, "--start=50%", url)
    fetched = [request.path for request in slow_origin.requests]
    segments = [path for path in fetched if not path.endswith(playlist)]  # which may grow
    assert len(segments) == len(set(segments))
    assert {"/seg/5.ts", "/dash/chunk-stream0-00005.m4s"} & set(fetched)


def has_elements(*names: str) -> bool:
    inspect = shutil.which("gst-inspect-1.0")
    return inspect is not None and all(
        subprocess.run([inspect, "--exists", name]).returncode == 0 for name in names
    )


@needs("ffmpeg", "gst-launch-1.0")
@PLAYLISTS
def test_gstreamer_gets_every_byte_of_a_playlists_video(
    cache, origin, media, tmp_path, playlist: str
) -> None:
    is_hls = playlist.startswith("hls/")
    if not has_elements(*(("hlsdemux2", "tsdemux") if is_hls else ("dashdemux2", "qtdemux"))):
        pytest.skip("GStreamer is without the plugins for it")
    put_directory(origin, media)

    def video(base: str) -> bytes:
        got = tmp_path / "got"
        source = ("urisourcebin", f"uri={base}{playlist}", "parse-streams=true")
        wanted = "video/x-h264" if is_hls else "video/mpeg"
        run(*GST, *source, "!", wanted, "!", "filesink", f"location={got}")
        return got.read_bytes()

    expected = video(origin.url("/"))
    asked_directly = len(origin.requests)
    with serve_mounted(cache, origin) as server:
        assert video(f"{server.url}m/") == expected
    fetched = [request.path for request in origin.requests[asked_directly:]]
    segments = [path for path in fetched if not path.endswith(playlist)]
    assert len(segments) == len(set(segments)) > 5
