"""Orders for parts of files, some of them until a deadline."""

from __future__ import annotations

import pytest

from cachefsm import ByteRange, Cache, DownloadState
from cachefsm.errors import UsageError
from cachefsm.parts import parse_part, wanted_parts
from cachefsm.ranges import END
from cachefsm.scheduler import Limits
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually, fetch, rows
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource, content

MIB = 1 << 20
SIZE = 16 * MIB
HEAD = 2 * MIB
QUEUE = "SELECT start, stop FROM cache_download_queue WHERE asked_by = 'prefetch' ORDER BY start"


@pytest.fixture
def film(origin: Origin) -> str:
    return put(origin, "/film")


def put(origin: Origin, path: str) -> str:
    origin.put(path, Resource(SIZE))
    return origin.url(path)


def is_at_rest(cache: Cache, url: str, reason: str) -> bool:
    entry = cache.entry(url)
    return (entry.state, entry.reason) == (DownloadState.PAUSED, reason)


def test_the_heads_of_several_files_are_fetched_and_no_more(cache: Cache, origin: Origin) -> None:
    urls = [put(origin, path) for path in ("/one", "/two", "/three")]
    entries = cache.prefetch(urls, head="2M")
    assert [entry.url for entry in entries] == urls
    eventually(lambda: all(is_at_rest(cache, url, "idle") for url in urls))
    assert [entry.ranges for entry in entries] == [[ByteRange(0, HEAD)]] * 3
    assert {request.range for request in origin.requests} == {f"bytes=0-{HEAD - 1}"}
    assert rows(cache.directory, QUEUE) == []


def test_without_parts_the_whole_is_fetched(cache: Cache, film: str) -> None:
    (entry,) = cache.prefetch([film])
    eventually(lambda: entry.state is DownloadState.COMPLETE)


def test_several_parts_of_a_file_are_fetched(cache: Cache, film: str, origin: Origin) -> None:
    (entry,) = cache.prefetch([film], head=MIB, ranges=[(SIZE - MIB, None), (8 * MIB, 9 * MIB)])
    eventually(lambda: is_at_rest(cache, film, "idle"))
    parts = [(0, MIB), (8 * MIB, 9 * MIB), (SIZE - MIB, SIZE)]
    assert entry.ranges == [ByteRange(*part) for part in parts]
    assert origin.body_bytes_sent == 3 * MIB  # before anybody reads: the rest comes with that
    assert fetch(cache, entry, *parts[1]) == content(*parts[1])


def test_all_parts_are_still_wanted_after_a_restart(
    open_cache: OpenCache, film: str, origin: Origin
) -> None:
    cache = open_cache(start=False)
    cache.prefetch([film], ranges=[(0, MIB), (MIB, 2 * MIB), (4 * MIB, 5 * MIB)])
    assert rows(cache.directory, QUEUE) == [(0, 2 * MIB), (4 * MIB, 5 * MIB)]
    cache.close()
    cache = open_cache()
    eventually(lambda: is_at_rest(cache, film, "idle"))
    assert cache.entry(film).ranges == [ByteRange(0, 2 * MIB), ByteRange(4 * MIB, 5 * MIB)]


def test_a_later_order_takes_the_place_of_an_earlier_one(open_cache: OpenCache, film: str) -> None:
    cache = open_cache(start=False)
    cache.prefetch([film])
    cache.prefetch([film], ranges=[(0, MIB), (8 * MIB, 9 * MIB)])
    cache.prefetch([film], head="2M")
    assert rows(cache.directory, QUEUE) == [(0, HEAD)]
    assert len(cache.queued_urls()) == 1
    assert cache.entry(film).describe()["asked_by"] == ["prefetch"]


def test_what_is_there_already_is_not_queued(cache: Cache, film: str, origin: Origin) -> None:
    cache.prefetch([film], head="2M")
    eventually(lambda: is_at_rest(cache, film, "idle"))
    moves = []
    cache.subscribe(moves.append)
    cache.prefetch([film], head="1M")
    assert rows(cache.directory, QUEUE) == []
    assert cache.entry(film).describe()["asked_by"] == []
    assert moves == []
    assert len(origin.requests) == 1


def test_an_order_that_is_not_met_by_its_deadline_is_given_up(
    cache: Cache, film: str, origin: Origin
) -> None:
    hold = origin.script(hold_after(MIB))
    (entry,) = cache.prefetch([film], deadline="200ms")
    eventually(lambda: is_at_rest(cache, film, "deadline"))
    assert rows(cache.directory, QUEUE) == []
    origin.wait_until(lambda: origin.open_connections == 0)  # nobody wants it any more
    assert entry.downloaded_bytes <= MIB
    hold.release()  # for it may be that nobody has come so far in the time
    assert fetch(cache, entry, 0, SIZE) == content(0, SIZE)  # a reader goes on from there


def test_orders_behind_many_others_say_so_and_come_in_turn(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(per_host=1))
    hold = origin.script(hold_after(MIB), path="/0")
    first, *others = cache.prefetch([put(origin, f"/{number}") for number in range(8)])
    assert hold.reached.wait(WAIT_S)
    assert {other.explain(0)["status"] for other in others} <= {"waiting", "unsettled"}
    eventually(lambda: {other.explain(0)["status"] for other in others} == {"waiting"})
    full = "all connections that this origin may have for it are in use"
    assert others[-1].explain(0)["why"] == full
    others[-1].start()  # a person's goes before a prefetch's
    hold.release()
    assert all(entry.wait_complete(WAIT_S) for entry in (first, *others))
    whole = [request.path for request in origin.requests if request.range == "bytes=0-"]
    assert whole == [f"/{number}" for number in (0, 7, 1, 2, 3, 4, 5, 6)]


def test_an_order_that_never_came_to_its_turn_is_given_up(
    open_cache: OpenCache, film: str, origin: Origin
) -> None:
    cache = open_cache(limits=Limits(total=1))
    hold = origin.script(hold_after(MIB), path="/other")
    other = cache.entry(put(origin, "/other"))
    other.start()
    assert hold.reached.wait(WAIT_S)
    cache.prefetch([film], deadline="20ms")
    eventually(lambda: is_at_rest(cache, film, "deadline"))
    hold.release()
    assert other.wait_complete(WAIT_S)
    assert {request.path for request in origin.requests} == {"/other"}


def test_a_deadline_that_was_met_says_nothing(cache: Cache, film: str) -> None:
    cache.prefetch([film], head="2M", deadline="1h")
    eventually(lambda: is_at_rest(cache, film, "idle"))


def test_a_new_wish_outlives_a_deadline(cache: Cache, film: str, origin: Origin) -> None:
    hold = origin.script(hold_after(MIB))
    (entry,) = cache.prefetch([film], deadline="200ms")
    entry.start()
    eventually(lambda: entry.describe()["asked_by"] == ["person"])
    hold.release()
    assert entry.wait_complete(WAIT_S)


def test_a_deadline_goes_on_while_no_process_runs(open_cache: OpenCache, film: str) -> None:
    clock = Clock()
    cache = open_cache(start=False, clock=clock)
    cache.prefetch([film], deadline="1h")
    cache.close()
    clock.now_s += 3601
    cache = open_cache(clock=clock)
    eventually(lambda: is_at_rest(cache, film, "deadline"))
    assert rows(cache.directory, QUEUE) == []


def test_nothing_is_queued_if_one_url_is_none(cache: Cache, film: str) -> None:
    with pytest.raises(UsageError):
        cache.prefetch([film, "ftp://example.test/film"])
    assert rows(cache.directory, QUEUE) == []


@pytest.mark.parametrize(
    ("head", "ranges", "found"),
    [
        (None, None, [(0, END)]),
        ("8M", None, [(0, 8 * MIB)]),
        (None, [(5, None)], [(5, END)]),
        (10, [(5, 20)], [(5, 20), (0, 10)]),
    ],
)
def test_parts_are_what_is_named(
    head: str | int | None,
    ranges: list[tuple[int, int | None]] | None,
    found: list[tuple[int, int]],
) -> None:
    assert wanted_parts(head, ranges) == found


@pytest.mark.parametrize(
    ("head", "ranges"),
    [(0, None), ("x", None), (None, []), (None, [(5, 5)]), (None, [(-1, 5)]), (1, [(9, 3)])],
)
def test_parts_without_a_byte_are_refused(
    head: str | int | None, ranges: list[tuple[int, int | None]] | None
) -> None:
    with pytest.raises(UsageError):
        wanted_parts(head, ranges)


def test_parts_are_written_as_sizes() -> None:
    assert parse_part("0-8M") == (0, 8 * MIB)
    assert parse_part("1G-") == (1 << 30, None)
    for text in ("8M", "-8M", "8M-1M", "a-b", ""):
        with pytest.raises(UsageError):
            parse_part(text)


# -- playlists ---------------------------------------------------------------------


def test_a_playlists_next_items_are_fetched(cache: Cache, origin: Origin) -> None:
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:4"]
    for number in range(5):
        origin.put(f"/live/{number}.ts", Resource(1000, version=number))
        lines += ["#EXTINF:4,", f"{number}.ts"]
    origin.put("/live/index.m3u8", Resource.of("\n".join(lines).encode()))
    playlist = origin.url("/live/index.m3u8")
    entries = cache.prefetch_playlist(playlist, 2, after=origin.url("/live/1.ts"), deadline="1h")
    assert [entry.url for entry in entries] == [origin.url(f"/live/{n}.ts") for n in (2, 3)]
    for entry in entries:
        eventually(lambda entry=entry: entry.state is DownloadState.COMPLETE)
    assert fetch(cache, entries[0]) == content(2, 1002)


def test_parts_of_a_playlists_file_are_fetched(cache: Cache, film: str, origin: Origin) -> None:
    text = "#EXTM3U\n#EXT-X-BYTERANGE:1000@0\nfilm\n#EXT-X-BYTERANGE:1000@5000\nfilm\n"
    origin.put("/index.m3u8", Resource.of(text.encode()))
    (entry,) = cache.prefetch_playlist(origin.url("/index.m3u8"))
    eventually(lambda: is_at_rest(cache, film, "idle"))
    assert entry.ranges == [ByteRange(0, 1000), ByteRange(5000, 6000)]


def test_a_playlist_reaches_no_other_origin_unasked(
    cache: Cache, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    with Origin() as other:
        text = f"#EXTM3U\n{other.url('/item?sig=secret')}\n"
        origin.put("/index.m3u8", Resource.of(text.encode()))
        assert cache.prefetch_playlist(origin.url("/index.m3u8")) == []
        assert other.url().rstrip("/") in caplog.text
        assert "secret" not in caplog.text
        assert other.requests == []
        other.put("/item", Resource(10))
        (entry,) = cache.prefetch_playlist(origin.url("/index.m3u8"), allow=["127.0.0.1:*"])
        assert entry.wait_complete(WAIT_S)


def test_one_url_where_several_are_meant_is_said_to_be_one(cache: Cache, film: str) -> None:
    with pytest.raises(UsageError, match="takes a list of URLs"):
        cache.prefetch(film)
    assert cache.entries() == []
