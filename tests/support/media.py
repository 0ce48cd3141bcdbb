"""Films to play, made by ffmpeg: files of several formats, and the same in segments."""

from __future__ import annotations

from pathlib import Path

from tests.support.origin import Origin, Resource
from tests.support.programs import FFMPEG, run

__all__ = ["SECONDS", "frames", "make_dash", "make_film", "make_hls", "make_webm", "put_directory"]

SECONDS = 12

_TYPES = {
    ".m3u8": "application/vnd.apple.mpegurl",
    ".mpd": "application/dash+xml",
    ".m4s": "video/iso.segment",
    ".ts": "video/mp2t",
}
# Noise, so that the encoder cannot get by with less than it was given.
_NOISE = "noise=alls=12:allf=t"
_TONE = ("-f", "lavfi", "-i", f"sine=frequency=440:duration={SECONDS}")


def make_film(path: Path) -> None:
    """Make 6 MB of MP4 whose index is at its end."""
    run(
        *FFMPEG,
        *("-f", "lavfi", "-i", f"testsrc2=size=640x360:rate=25:duration={SECONDS}", *_TONE),
        *("-vf", _NOISE, "-c:v", "mpeg4", "-c:a", "aac"),
        *("-b:v", "4M", "-minrate", "4M", "-maxrate", "4M", "-bufsize", "2M", path),
    )


def make_webm(path: Path) -> None:
    """Make 3 MB of WebM whose luma is 16 at first and grows by 15 each second."""
    run(
        *FFMPEG,
        *("-f", "lavfi", "-i", f"color=gray:size=320x180:rate=25:duration={SECONDS}", *_TONE),
        *("-vf", f"geq=lum='16+T*15':cb=128:cr=128,{_NOISE}", "-g", "25"),
        *("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"),
        *("-b:v", "2M", "-minrate", "2M", "-maxrate", "2M", "-bufsize", "1M", path),
    )


def make_hls(film: Path, directory: Path) -> None:
    """Make ``seg/0.ts`` to ``seg/5.ts``; ``hls/list.m3u8`` and ``hls/absolute.m3u8`` name them."""
    for name in ("seg", "hls"):
        (directory / name).mkdir()
    playlist = directory / "hls" / "absolute.m3u8"
    run(
        *(*FFMPEG, "-i", film, "-c:v", "libx264", "-preset", "ultrafast", "-g", "50"),
        *("-b:v", "2M", "-pix_fmt", "yuv420p", "-c:a", "copy"),
        *("-f", "hls", "-hls_time", "2", "-hls_playlist_type", "vod"),
        *("-hls_segment_filename", directory / "seg" / "%d.ts", "-hls_base_url", "/seg/"),
        playlist,
    )
    relative = playlist.read_text().replace("\n/seg/", "\n../seg/")
    (directory / "hls" / "list.m3u8").write_text(relative)


def make_dash(film: Path, directory: Path) -> None:
    """Make ``dash/…``, with templates that count from the root in ``dash/absolute.mpd``."""
    (directory / "dash").mkdir()
    manifest = directory / "dash" / "list.mpd"
    run(*FFMPEG, "-i", film, "-c", "copy", "-f", "dash", "-seg_duration", "2", manifest)
    text = manifest.read_text()
    for attribute in ("media", "initialization"):
        text = text.replace(f' {attribute}="', f' {attribute}="/dash/')
    manifest.with_name("absolute.mpd").write_text(text)


def put_directory(origin: Origin, directory: Path) -> None:
    """Have *origin* serve all files below *directory*."""
    for path in directory.rglob("*"):
        if path.is_file():
            content_type = _TYPES.get(path.suffix, "application/octet-stream")
            where = f"/{path.relative_to(directory)}"
            origin.put(where, Resource.of(path, content_type=content_type))


def frames(source: str | Path) -> bytes:
    """Return the checksum of every decoded frame."""
    return run(*FFMPEG, "-i", source, "-f", "framemd5", "-")
