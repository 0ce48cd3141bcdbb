"""What HLS and DASH playlists name by absolute path, and that players find it through the proxy."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm import Cache
from cachefsm.access import AllowList
from cachefsm.playlists import MAX_PLAYLIST_BYTES, PathPattern, is_playlist, paths_named
from cachefsm.proxy import Server
from cachefsm.signposts import (
    MAX_BYTES,
    MAX_BYTES_EACH,
    MAX_PLAYLISTS,
    MAX_TEMPLATES_EACH,
    Place,
    Signposts,
)
from cachefsm.urls import parse_url
from tests.support.caches import WAIT_S, OpenCache
from tests.support.clients import Reply, ask, serve_mounted
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource, content

HLS = "application/vnd.apple.mpegurl"
DASH = "application/dash+xml"


def named(text: str | bytes, media_type: str = HLS) -> set[PathPattern]:
    data = text.encode() if isinstance(text, str) else text
    return set(paths_named("/list", [("Content-Type", media_type)], data))


def exactly(*paths: str) -> set[PathPattern]:
    return {PathPattern(path) for path in paths}


# -- HLS --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["/vid\u00e9o/1 a.ts", "<MPD><Period><AdaptationSet><Representation>"
     "<BaseURL>/vid\u00e9o/1 a.ts</BaseURL></Representation></AdaptationSet></Period></MPD>"],
)  # fmt: skip
def test_names_written_as_they_are_are_named_as_players_ask_for_them(text: str) -> None:
    media_type = DASH if text.startswith("<") else HLS
    assert named(text, media_type) == exactly("/vid%C3%A9o/1%20a.ts")


def test_hls_lines_and_attributes_that_are_absolute_paths_are_named() -> None:
    text = (
        "#EXTM3U\n"
        '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="x",URI="/audio/en.m3u8"\n'
        '#EXT-X-KEY:METHOD=AES-128,URI="/keys/1?token=x",IV=0x1\r\n'
        '#EXT-X-MAP:URI="/seg/init.mp4",BYTERANGE="718@0"\n'
        '#EXT-X-PART:DURATION=0.3,URI="/seg/9.1.m4s"\n'
        '#EXT-X-CONTENT-STEERING:SERVER-URI="/steering"\n'
        "#EXTINF:4,a title, with commas\n"
        "/seg/1.ts?sig=a%2fb#x\n"
        "  /seg/2.ts  \n"
        "\n"
        "# /not/named\n"
    )
    assert named(text) == exactly(
        "/audio/en.m3u8",
        "/keys/1",
        "/seg/init.mp4",
        "/seg/9.1.m4s",
        "/steering",
        "/seg/1.ts",
        "/seg/2.ts",
    )


@pytest.mark.parametrize(
    "reference",
    [
        *("seg/1.ts", "../1.ts", "./1.ts", "?x=/a", "#/a", "", " ", "{$base}/1.ts"),
        *("http://other.test/1.ts", "//other.test/1.ts", "data:,/x"),
    ],
)
def test_hls_references_that_are_no_absolute_path_are_not_named(reference: str) -> None:
    assert named(f'#EXTM3U\n#EXT-X-MAP:URI="{reference}"\n{reference}\n') == set()


def test_an_hls_variable_stands_for_anything() -> None:
    assert named("/a/{$x}/b/{$y}.ts") == {PathPattern("/a/", ".ts")}


# -- DASH -------------------------------------------------------------------------


def mpd(inside: str) -> str:
    return f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">{inside}</MPD>'


def representation(inside: str, before: str = "") -> str:
    return mpd(
        f"<Period><AdaptationSet>{before}"
        f'<Representation id="v1" bandwidth="500">{inside}</Representation>'
        "</AdaptationSet></Period>"
    )


@pytest.mark.parametrize(
    ("inside", "patterns"),
    [
        ("<BaseURL>/film.mp4</BaseURL><SegmentBase/>", exactly("/film.mp4")),
        (
            '<SegmentBase><Initialization sourceURL="/i.mp4"/>'
            '<RepresentationIndex sourceURL="/x.mp4"/></SegmentBase>',
            exactly("/i.mp4", "/x.mp4"),
        ),
        (
            '<SegmentList><SegmentURL media="/s/1.m4s" index="/s/1.i"/>'
            '<SegmentURL media="2.m4s"/></SegmentList>',
            exactly("/s/1.m4s", "/s/1.i"),
        ),
        (
            '<SegmentTemplate media="/s/$RepresentationID$/$Number%05d$.m4s"'
            ' initialization="/s/$RepresentationID$-$Bandwidth$.mp4"/>',
            {PathPattern("/s/v1/", ".m4s"), PathPattern("/s/v1-500.mp4")},
        ),
        (
            '<SegmentTemplate media="/s/$Number$/$Time$.m4s?x=$Number$"/>',
            {PathPattern("/s/", ".m4s")},
        ),
        # Every path there is, is none.
        ('<SegmentTemplate media="/$Number$"/>', set()),
        ('<SegmentTemplate media="/$Number$.m4s"/>', {PathPattern("/", ".m4s")}),
        ('<SegmentTemplate media="s/$Number$.m4s"/>', set()),
        ("<BaseURL>http://other.test/x/</BaseURL>", set()),
    ],
)
def test_a_dash_representation_names_its_segments(inside: str, patterns: set[PathPattern]) -> None:
    assert named(representation(inside), DASH) == patterns


@pytest.mark.parametrize(
    ("base", "patterns"),
    [
        ("<BaseURL>/v/</BaseURL>", {PathPattern("/v/"), PathPattern("/v/s/", ".m4s")}),
        ("<BaseURL>v/</BaseURL>", set()),
        ("<BaseURL>http://other.test/v/</BaseURL>", set()),
        (
            "<BaseURL>/v/</BaseURL><BaseURL>\n/w/x\n</BaseURL>",
            {
                *exactly("/v/", "/w/x"),
                *(PathPattern("/v/s/", ".m4s"), PathPattern("/w/s/", ".m4s")),
            },
        ),
        ("<BaseURL>http://[</BaseURL>", set()),
    ],
)
@pytest.mark.parametrize("place", ["above", "inside"])
def test_a_dash_template_counts_from_the_base_url(base: str, patterns, place: str) -> None:
    template = '<SegmentTemplate media="s/$Number$.m4s"/>'
    if place == "above":
        text = representation("", before=base + template)
    else:
        text = representation(base, before=template)
    assert named(text, DASH) == patterns


def test_a_dash_manifest_may_say_where_it_is() -> None:
    assert named(mpd("<Location>/live/now.mpd</Location>"), DASH) == exactly("/live/now.mpd")


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE MPD [<!ENTITY a "/x">]>' + mpd("<Location>&a;</Location>").partition("?>")[2],
        '<!DOCTYPE MPD SYSTEM "file:///etc/passwd">' + mpd("<Location>/x</Location>")[21:],
        mpd("<Location>/x</Location>")[:-1],
        mpd("<Location>/x</Location>") + "<more/>",
        mpd("<Period>" * 40 + "<Location>/x</Location>" + "</Period>" * 40),
        mpd("<a/>" * 70_000 + "<Location>/x</Location>"),
        mpd("<Location>/x</Location>").replace("1.0", '1.0" encoding="klingon'),
        "<smil><Location>/x</Location></smil>",
        "",
    ],
    ids=["entity", "dtd", "cut", "two roots", "deep", "wide", "encoding", "not an MPD", "empty"],
)
def test_a_dash_manifest_that_is_not_one_names_nothing(text: str) -> None:
    assert named(text, DASH) == set()


# -- what is read -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "media_type", "is_one"),
    [
        ("/x", "application/vnd.apple.mpegurl", True),
        ("/x", "Audio/MPEGurl; charset=utf-8", True),
        ("/x", "application/dash+xml", True),
        ("/x.M3U8", "text/plain", True),
        ("/x.m3u8", "application/octet-stream", True),
        ("/x.mpd", "", True),
        ("/x.m3u8", "video/mp2t", False),
        ("/x.ts", "text/plain", False),
        ("/x", "application/xml", False),
    ],
)
def test_a_playlist_is_known_by_its_type_or_where_that_says_nothing_its_name(
    path: str, media_type: str, is_one: bool
) -> None:
    fields = [("Content-Type", media_type)]
    assert is_playlist(path, fields) is is_one
    assert is_playlist(path, [*fields, ("Content-Encoding", "gzip")]) is False


def test_a_playlist_that_is_too_long_names_nothing() -> None:
    assert named(b"/a\n".ljust(MAX_PLAYLIST_BYTES, b"#")) == exactly("/a")
    assert named(b"/a\n".ljust(MAX_PLAYLIST_BYTES + 1, b"#")) == set()


_WORDS = st.sampled_from(
    [
        *("#EXTM3U\n", "#EXT-X-KEY:", 'URI="', '"', "\n", "/", "//", "$", "{$", "}", "http://["),
        *("<MPD>", "</MPD>", "<Period>", "<Representation>", "<BaseURL>", "&a;", "<!DOCTYPE a>"),
        *("<SegmentTemplate media='", "'/>", "<![CDATA[", "]]>", "\0", "\ufeff", "%2e%2e"),
    ]
)


@given(st.lists(_WORDS | st.text(max_size=4), max_size=30).map("".join) | st.binary(max_size=99))
def test_nothing_that_an_origin_sends_raises(text: str | bytes) -> None:
    for media_type in (HLS, DASH):
        for pattern in named(text, media_type):
            assert pattern.start.startswith("/")
            assert not pattern.start.startswith("//")


@pytest.mark.parametrize(
    ("text", "media_type"),
    [
        (b"A-" * (MAX_PLAYLIST_BYTES // 2), HLS),
        (b'#URI="' * (MAX_PLAYLIST_BYTES // 6), HLS),
        (b"$" * MAX_PLAYLIST_BYTES, HLS),
        (b"/{$" * (MAX_PLAYLIST_BYTES // 3), HLS),
        (b"\n/" * (MAX_PLAYLIST_BYTES // 2), HLS),
        (
            mpd(
                f"<Period>{'<BaseURL>a/</BaseURL>' * 9}<SegmentList>"
                + "<SegmentURL media='b'/>" * 20_000
                + f"</SegmentList><AdaptationSet>{'<Representation/>' * 20_000}"
                + "</AdaptationSet></Period>"
            ).encode(),
            DASH,
        ),
    ],
    ids=["dashes", "quotes", "dollars", "variables", "lines", "products"],
)
def test_no_playlist_takes_long_to_read(text: bytes, media_type: str) -> None:
    begun_s = time.process_time()
    assert len(named(text, media_type)) <= 1
    # Squared lengths would take hours, so this needs no precision.
    assert time.process_time() - begun_s < 20


# -- what is remembered -----------------------------------------------------------


def place(name: str, base: str | None = None) -> Place:
    return Place(f"/{name}", parse_url(base or f"http://{name}.test/"))


def lead(signposts: Signposts, target: str) -> str | None:
    return signposts.lead(target, referer="", host="localhost")


def test_playlists_are_forgotten_once_there_are_many() -> None:
    signposts = Signposts(AllowList())
    for number in range(MAX_PLAYLISTS + 1):
        signposts.learn(f"/{number}.m3u8", place("m"), exactly(f"/{number}.ts"))
        assert lead(signposts, "/0.ts") == "/m/0.ts"
    assert lead(signposts, "/1.ts") is None  # nobody has used it for the longest time
    assert lead(signposts, "/2.ts") == "/m/2.ts"


def test_what_is_remembered_is_bounded_in_each_playlist_and_in_all() -> None:
    signposts = Signposts(AllowList())
    for number in range(40):
        paths = [f"/{number}/{segment}/{'x' * 500}" for segment in range(1000)]
        signposts.learn("/live.m3u8", place("m"), exactly(*paths))
        signposts.learn(f"/{number}.m3u8", place("m"), exactly(*paths))
        assert lead(signposts, paths[0]) == f"/m{paths[0]}"
    sizes = [named.size_bytes for named in signposts._playlists.values()]
    assert max(sizes) <= MAX_BYTES_EACH
    assert MAX_BYTES / 2 < sum(sizes) <= MAX_BYTES
    assert lead(signposts, f"/0/0/{'x' * 500}") is None


def test_templates_are_bounded() -> None:
    signposts = Signposts(AllowList())
    for number in range(2 * MAX_TEMPLATES_EACH):
        signposts.learn("/list", place("m"), [PathPattern(f"/{number}/", ".ts")])
    assert lead(signposts, f"/{number}/1.ts") == f"/m/{number}/1.ts"
    assert lead(signposts, "/0/1.ts") is None


def test_what_a_live_playlist_has_just_left_behind_is_still_known() -> None:
    signposts = Signposts(AllowList())
    signposts.learn("/live.m3u8", place("m"), exactly("/1.ts", "/2.ts"))
    signposts.learn("/live.m3u8", place("m"), exactly("/2.ts", "/3.ts"))
    assert [lead(signposts, f"/{n}.ts") for n in (1, 2, 3, 4)] == [
        *("/m/1.ts", "/m/2.ts", "/m/3.ts"),
        None,
    ]


@pytest.mark.parametrize("length", [19, None])
def test_what_is_named_is_known_before_the_client_has_it_all(length: int | None) -> None:
    signposts = Signposts(AllowList())
    pieces = iter([b"#EXTM3U\n", b"/1.ts", b"\n/2.ts"])
    fields = [("Content-Type", HLS)]
    reading = signposts.reading("/list", place("m"), fields, pieces, length)
    assert [next(reading), next(reading)] == [b"#EXTM3U\n", b"/1.ts"]
    assert lead(signposts, "/1.ts") is None
    assert next(reading) == b"\n/2.ts"
    if length is None:
        assert next(reading, None) is None
    assert lead(signposts, "/2.ts") == "/m/2.ts"


# -- through the proxy ------------------------------------------------------------

SEGMENT = 50_000


def put_hls(origin: Origin, *lines: str, path: str = "/live/list.m3u8") -> bytes:
    text = "\n".join(["#EXTM3U", *lines, ""]).encode()
    origin.put(path, Resource.of(text, content_type=HLS))
    return text


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    origin.put("/seg/1.ts", Resource(SEGMENT))
    with serve_mounted(cache, origin) as server:
        yield server


def follow(proxy: Server, target: str, **fields: str) -> Reply:
    """Ask as a player does: where it is sent, it goes."""
    reply = ask(proxy.url + target[1:], fields)
    if reply.status == 307:
        location = reply["Location"]
        assert location is not None
        return ask(proxy.url + location[1:], fields)
    return reply


def test_what_a_playlist_names_is_found_at_the_root(origin, proxy) -> None:
    text = put_hls(origin, "/seg/1.ts?sig=a%2Fb")
    assert ask(f"{proxy.url}m/live/list.m3u8").body == text
    reply = ask(f"{proxy.url}seg/1.ts?sig=a%2Fb")
    assert (reply.status, reply["Location"]) == (307, "/m/seg/1.ts?sig=a%2Fb")
    assert reply["Cache-Control"] == "no-store"
    part = follow(proxy, "/seg/1.ts?sig=a%2Fb", Range="bytes=10-19")
    assert (part.status, part.body) == (206, content(10, 20))
    assert origin.requests[-1].target == "/seg/1.ts?sig=a%2Fb"


def test_what_no_playlist_named_is_found_nowhere(origin, proxy) -> None:
    put_hls(origin, "/seg/1.ts")
    assert ask(f"{proxy.url}seg/1.ts").status == 404  # not served yet
    ask(f"{proxy.url}m/live/list.m3u8", method="HEAD")
    assert ask(f"{proxy.url}seg/1.ts").status == 404
    ask(f"{proxy.url}m/live/list.m3u8", {"Range": "bytes=0-9"})
    assert ask(f"{proxy.url}seg/1.ts").status == 404
    ask(f"{proxy.url}m/live/list.m3u8")
    assert ask(f"{proxy.url}seg/2.ts").status == 404
    assert ask(f"{proxy.url}seg/1.ts", method="POST").status == 404
    assert {request.path for request in origin.requests} == {"/live/list.m3u8"}


@pytest.mark.parametrize("fields", [{}, {"Range": "bytes=0-"}])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_playlist_is_read_however_it_comes(origin, proxy, framing, fields) -> None:
    text = b"#EXTM3U\n/seg/1.ts\n"
    origin.put("/list", Resource.of(text, content_type=HLS, framing=framing))
    for _ in range(2):  # from the origin, then from the file
        assert ask(f"{proxy.url}m/list", fields).body == text
        assert follow(proxy, "/seg/1.ts").body == content(0, SEGMENT)


def test_a_segment_can_be_asked_for_as_soon_as_the_playlist_is_there(origin, proxy) -> None:
    """The connection of the playlist has not ended yet, and need not."""
    text = put_hls(origin, "/seg/1.ts")
    hold = origin.script(hold_after(SEGMENT // 2), path="/seg/1.ts")
    assert ask(f"{proxy.url}m/live/list.m3u8").body == text
    assert ask(f"{proxy.url}seg/1.ts").status == 307
    hold.release()


def test_a_playlist_in_a_playlist_is_followed(origin, proxy) -> None:
    put_hls(origin, "/low/list.m3u8", path="/main.m3u8")
    put_hls(origin, "/seg/1.ts", path="/low/list.m3u8")
    follow(proxy, "/m/main.m3u8")
    assert follow(proxy, "/low/list.m3u8").status == 200
    assert follow(proxy, "/seg/1.ts").body == content(0, SEGMENT)


def test_a_manifest_leads_to_its_segments(origin, proxy) -> None:
    text = representation('<SegmentTemplate media="/seg/$Number$.ts"/>').encode()
    origin.put("/film.mpd", Resource.of(text, content_type=DASH))
    assert ask(f"{proxy.url}m/film.mpd").body == text
    assert follow(proxy, "/seg/1.ts").body == content(0, SEGMENT)
    assert ask(f"{proxy.url}seg/1.mp4").status == 404


def test_a_mounts_name_wins_over_what_playlists_name(origin, proxy) -> None:
    put_hls(origin, "/m/seg/1.ts", "/-/health", "/http/seg/1.ts")
    ask(f"{proxy.url}m/live/list.m3u8")
    assert ask(f"{proxy.url}m/seg/1.ts").body == content(0, SEGMENT)
    assert ask(f"{proxy.url}-/health").json() == {"status": "ok"}
    assert ask(f"{proxy.url}http/seg/1.ts").status == 403


@pytest.fixture
def other() -> Iterator[Origin]:
    with Origin() as second:
        second.put("/seg/1.ts", Resource(SEGMENT, version=9))
        yield second


def test_an_origin_that_clients_name_is_led_back_to_by_its_url(cache, origin, other) -> None:
    put_hls(other, "/seg/1.ts")
    where = f"http/{other.host}:{other.port}"
    with serve_mounted(cache, origin, allow=[f"{other.host}:{other.port}"]) as proxy:
        ask(f"{proxy.url}{where}/live/list.m3u8")
        assert ask(f"{proxy.url}seg/1.ts")["Location"] == f"/{where}/seg/1.ts"


def test_what_two_origins_name_is_ambiguous_unless_the_referer_tells(cache, origin, other) -> None:
    put_hls(origin, "/seg/1.ts")
    put_hls(other, "/seg/1.ts")
    mounts = [f"/a={origin.url()}", f"/b={other.url()}"]
    with cache.serve(mounts=mounts) as proxy:
        ask(f"{proxy.url}a/live/list.m3u8")
        assert ask(f"{proxy.url}seg/1.ts")["Location"] == "/a/seg/1.ts"
        ask(f"{proxy.url}b/live/list.m3u8")
        reply = ask(f"{proxy.url}seg/1.ts")
        assert reply.status == 404
        assert reply.text == "playlists of several origins name this path; ask below /a/, /b/\n"
        for name in ("a", "b"):
            page = {"Referer": f"{proxy.url}{name}/live/list.m3u8"}
            assert ask(f"{proxy.url}seg/1.ts", page)["Location"] == f"/{name}/seg/1.ts"
        for page in ("http://evil.test/a/x", f"{proxy.url}nothing/x", "http://[", "a/"):
            assert ask(f"{proxy.url}seg/1.ts", {"Referer": page}).status == 404


def test_two_routes_to_one_origin_are_not_ambiguous(cache, origin) -> None:
    put_hls(origin, "/seg/1.ts")
    with cache.serve(mounts=[f"/a={origin.url()}", f"/b={origin.url()}"]) as proxy:
        for name in ("a", "b", "a"):
            ask(f"{proxy.url}{name}/live/list.m3u8")
            assert ask(f"{proxy.url}seg/1.ts")["Location"] == f"/{name}/seg/1.ts"


def test_a_mount_of_a_part_is_not_widened_by_what_its_playlists_name(cache, origin) -> None:
    origin.put("/live/seg/1.ts", Resource(SEGMENT))
    put_hls(origin, "/secret.ts", "/live/seg/1.ts")
    with serve_mounted(cache, origin, "/live/") as proxy:
        ask(f"{proxy.url}m/list.m3u8")
        assert ask(f"{proxy.url}live/seg/1.ts")["Location"] == "/m/seg/1.ts"
        assert ask(f"{proxy.url}secret.ts").status == 404
    with serve_mounted(cache, origin, "/live/", allow=["127.0.0.1:*"]) as proxy:
        ask(f"{proxy.url}m/list.m3u8")
        where = f"/http/{origin.host}:{origin.port}/secret.ts"
        assert ask(f"{proxy.url}secret.ts")["Location"] == where


@pytest.mark.parametrize("route", ["m", "http/{host}"])
@pytest.mark.parametrize("kind", ["hls", "dash", "hls by its name"])
def test_what_a_playlist_named_is_known_after_a_restart(
    open_cache: OpenCache, origin, route: str, kind: str
) -> None:
    """A player that goes on has no reason to ask for the playlist again."""
    origin.put("/seg/1.ts", Resource(SEGMENT))
    if kind == "dash":
        text = representation('<SegmentTemplate media="/seg/$Number$.ts"/>').encode()
        origin.put("/live/list", Resource.of(text, content_type=DASH))
    else:
        put_hls(origin, "/seg/1.ts", path="/live/list")
    name = "live/list"
    if kind == "hls by its name":
        name = "live/list.M3U8"
        text = b"#EXTM3U\n/seg/1.ts\n"
        origin.put(f"/{name}", Resource.of(text, content_type="text/plain"))
    route = route.format(host=f"{origin.host}:{origin.port}")
    allow = [f"{origin.host}:{origin.port}"] if route != "m" else []
    options = {"allow": allow} if allow else {"mounts": [f"/m={origin.url()}"]}
    with open_cache() as cache, cache.serve(**options) as proxy:
        ask(f"{proxy.url}{route}/{name}")
        assert cache.entry(origin.url(f"/{name}")).wait_complete(WAIT_S)
    asked = len(origin.requests)
    with open_cache() as cache, cache.serve(**options) as proxy:
        reply = ask(f"{proxy.url}seg/1.ts?x=1")
        assert (reply.status, reply["Location"]) == (307, f"/{route}/seg/1.ts?x=1")
        assert ask(f"{proxy.url}seg/2.mp4").status == 404
    assert len(origin.requests) == asked


def test_what_two_origins_name_is_ambiguous_after_a_restart_too(
    open_cache: OpenCache, origin, other
) -> None:
    put_hls(origin, "/seg/1.ts")
    put_hls(other, "/seg/1.ts")
    mounts = [f"/a={origin.url()}", f"/b={other.url()}"]
    with open_cache() as cache, cache.serve(mounts=mounts) as proxy:
        ask(f"{proxy.url}b/live/list.m3u8")
        assert cache.entry(other.url("/live/list.m3u8")).wait_complete(WAIT_S)
    with open_cache() as cache, cache.serve(mounts=mounts) as proxy:
        ask(f"{proxy.url}a/live/list.m3u8")
        assert ask(f"{proxy.url}seg/1.ts").status == 404
        page = {"Referer": f"{proxy.url}b/live/list.m3u8"}
        assert ask(f"{proxy.url}seg/1.ts", page)["Location"] == "/b/seg/1.ts"


def test_what_is_gone_or_mounted_no_more_leads_nowhere_after_a_restart(
    open_cache: OpenCache, origin
) -> None:
    put_hls(origin, "/seg/1.ts")
    put_hls(origin, "/seg/2.ts", path="/other.m3u8")
    mounts = [f"/m={origin.url()}"]
    with open_cache() as cache, cache.serve(mounts=mounts) as proxy:
        for name in ("live/list.m3u8", "other.m3u8"):
            ask(f"{proxy.url}m/{name}")
            assert cache.entry(origin.url(f"/{name}")).wait_complete(WAIT_S)
    files = [path for path in (cache.directory / "content").rglob("*") if path.is_file()]
    next(path for path in files if b"/seg/2.ts" in path.read_bytes()).unlink()
    with open_cache() as cache, cache.serve(mounts=mounts) as proxy:
        assert ask(f"{proxy.url}seg/1.ts").status == 307
        assert ask(f"{proxy.url}seg/2.ts").status == 404
    with open_cache() as cache, cache.serve(mounts=[f"/n={origin.url('/seg/')}"]) as proxy:
        assert ask(f"{proxy.url}seg/1.ts").status == 404


@pytest.mark.parametrize("target", ["/../seg/1.ts", "/%2e%2e/1.ts", "/seg/..%2f1.ts"])
def test_no_playlist_leads_upwards(origin, proxy, target: str) -> None:
    put_hls(origin, target)
    ask(f"{proxy.url}m/live/list.m3u8")
    assert ask(proxy.url + target[1:]).status == 400
