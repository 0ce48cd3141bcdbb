"""``cachefsm.m3u``: what a playlist plays next."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.access import AllowList
from cachefsm.errors import UsageError
from cachefsm.m3u import MAX_PLAYLIST_BYTES, Item, parse_m3u, read_text, upcoming
from cachefsm.ranges import ByteRange
from cachefsm.urls import OriginUrl, parse_url

BASE = "https://media.example/live/index.m3u8?token=1"

PLAIN = """#EXTM3U
#EXTINF:123,A title
first.mp3
  /second.mp3
https://elsewhere.example/third.mp3

#EXTINF:5,
rtsp://media.example/fourth
C:\\fifth.mp3
"""

VOD = """#EXTM3U
#EXT-X-TARGETDURATION:4
#EXT-X-KEY:METHOD=AES-128,URI="key"
#EXT-X-MAP:URI="init.mp4",BYTERANGE="720@0"
#EXTINF:4,
#EXT-X-BYTERANGE:1000@720
all.mp4
#EXTINF:4,
#EXT-X-BYTERANGE:500
all.mp4
#EXT-X-DISCONTINUITY
#EXT-X-MAP:URI="other-init.mp4"
#EXTINF:4,
seg/3.m4s?part=3
#EXTINF:4,
seg/4.m4s
#EXT-X-ENDLIST
"""

LIVE = """#EXTM3U
#EXT-X-TARGETDURATION:4
#EXT-X-MEDIA-SEQUENCE:100
""" + "".join(f"#EXTINF:4,\nseg-{number}.ts\n" for number in range(100, 106))

MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",URI="audio.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=800000,AUDIO="a"
low/index.m3u8
#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1,URI="iframes.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=3000000
high/index.m3u8
"""


def url(text: str) -> OriginUrl:
    return parse_url(text)


def items_of(text: str) -> list[str]:
    return [str(item.url) for item in parse_m3u(text, url(BASE)).items]


def served(**texts: str) -> dict[str, str]:
    return {f"https://media.example/live/{name}": text for name, text in texts.items()}


def following(text: str, count: int, after: str | None = None) -> list[str]:
    found = upcoming(url(BASE), count, lambda _url: text, after=url(after) if after else None)
    return list(found.parts)


def test_references_are_resolved_and_what_cannot_be_fetched_is_left_out() -> None:
    assert items_of(PLAIN) == [
        "https://media.example/live/first.mp3",
        "https://media.example/second.mp3",
        "https://elsewhere.example/third.mp3",
    ]


def test_names_written_as_they_are_are_asked_for_as_a_url_has_them() -> None:
    assert items_of("#EXTM3U\nvid\u00e9o 1.mp4\n100%25.mp4\n") == [
        "https://media.example/live/vid%C3%A9o%201.mp4",
        "https://media.example/live/100%25.mp4",
    ]


def test_parts_of_a_file_follow_each_other() -> None:
    init = Item(url("https://media.example/live/init.mp4"), ByteRange(0, 720))
    other = Item(url("https://media.example/live/other-init.mp4"))
    every = url("https://media.example/live/all.mp4")
    assert parse_m3u(VOD, url(BASE)).items == (
        Item(every, ByteRange(720, 1720), init),
        Item(every, ByteRange(1720, 2220), init),
        Item(url("https://media.example/live/seg/3.m4s?part=3"), None, other),
        Item(url("https://media.example/live/seg/4.m4s"), None, other),
    )


def test_what_is_asked_for_next_is_grouped_by_url_with_what_it_needs_first() -> None:
    found = upcoming(url(BASE), 3, lambda _url: VOD)
    assert list(found.parts.items()) == [
        ("https://media.example/live/init.mp4", [(0, 720)]),
        ("https://media.example/live/all.mp4", [(720, 1720), (1720, 2220)]),
        ("https://media.example/live/other-init.mp4", None),
        ("https://media.example/live/seg/3.m4s?part=3", None),
    ]
    assert found.refused == ()


def test_the_next_items_are_those_after_the_one_that_is_played() -> None:
    base = "https://media.example/live/"
    assert following(LIVE, 2, f"{base}seg-102.ts") == [f"{base}seg-103.ts", f"{base}seg-104.ts"]
    assert following(LIVE, 2, f"{base}seg-105.ts") == []
    with pytest.raises(UsageError, match="not in the playlist"):
        following(LIVE, 2, f"{base}seg-1.ts")


def test_a_live_playlist_is_played_from_its_end() -> None:
    assert parse_m3u(LIVE, url(BASE)).live
    assert not parse_m3u(LIVE + "#EXT-X-ENDLIST\n", url(BASE)).live
    base = "https://media.example/live/"
    assert following(LIVE, 2) == [f"{base}seg-104.ts", f"{base}seg-105.ts"]
    assert following(LIVE + "#EXT-X-ENDLIST", 1) == [f"{base}seg-100.ts"]


def test_of_a_master_playlist_the_first_variant_is_played() -> None:
    variants = [str(variant) for variant in parse_m3u(MASTER, url(BASE)).variants]
    assert variants == [f"https://media.example/live/{name}/index.m3u8" for name in ("low", "high")]
    texts = {BASE: MASTER, variants[0]: LIVE}
    found = upcoming(url(BASE), 1, lambda asked: texts[str(asked)])
    assert list(found.parts) == ["https://media.example/live/low/seg-105.ts"]


def test_a_master_of_masters_plays_nothing() -> None:
    assert following(MASTER, 3) == []


def test_items_of_other_origins_have_to_be_allowed() -> None:
    found = upcoming(url(BASE), 9, lambda _url: PLAIN)
    assert len(found.parts) == 2
    assert found.refused == ("https://elsewhere.example",)
    found = upcoming(url(BASE), 9, lambda _url: PLAIN, allowed=AllowList(["*.example"]))
    assert len(found.parts) == 3
    master = MASTER.replace("low/", "http://127.0.0.1:9200/")
    found = upcoming(url(BASE), 9, lambda _url: master)
    assert (found.parts, found.refused) == ({}, ("http://127.0.0.1:9200",))


@pytest.mark.parametrize("text", ["", "<html>\n<p>no\n", "first.mp3\n"])
def test_what_is_no_playlist_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no M3U playlist"):
        parse_m3u(text, url("https://media.example/page"))


def test_a_playlist_without_its_header_is_known_by_its_name() -> None:
    base = url("https://media.example/list.M3U?x=1")
    assert len(parse_m3u("first.mp3\r\nsecond.mp3\r\n", base).items) == 2
    assert len(parse_m3u("\ufeff#EXTM3U\nfirst.mp3", url("https://media.example/a")).items) == 1


def test_no_more_is_read_than_a_playlist_may_have() -> None:
    assert read_text(io.BytesIO(b"#EXTM3U\n\xff")) == "#EXTM3U\n\ufffd"
    assert len(read_text(io.BytesIO(b"x" * MAX_PLAYLIST_BYTES))) == MAX_PLAYLIST_BYTES
    with pytest.raises(UsageError, match="too long"):
        read_text(io.BytesIO(b"x" * (MAX_PLAYLIST_BYTES + 1)))


LINES = st.one_of(
    st.text(max_size=30),
    st.sampled_from([*PLAIN.splitlines(), *VOD.splitlines(), *MASTER.splitlines()]),
    st.from_regex(r'#EXT-X-(BYTERANGE|MAP|STREAM-INF):[0-9@,URI="a]{0,20}', fullmatch=True),
    st.from_regex(r"[a-z:/\[\]?#%.@]{0,20}", fullmatch=True),
)


@given(st.lists(LINES, max_size=30), st.integers(1, 5))
def test_whatever_an_origin_writes_is_a_playlist_or_refused(lines: list[str], count: int) -> None:
    text = "\n".join(["#EXTM3U", *lines])
    playlist = parse_m3u(text, url(BASE))
    for item in playlist.items:
        assert item.part is None or item.part.size > 0
    found = upcoming(url(BASE), count, lambda _url: text)
    assert len(found.parts) <= 2 * count
