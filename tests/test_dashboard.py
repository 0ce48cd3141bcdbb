"""The page at /-/ shows what there is, lets a person order it about, and runs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache, DownloadState
from cachefsm.dashboard import MOST_ROWS, page
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually
from tests.support.chromium import Chromium
from tests.support.clients import ask, serve_mounted
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource
from tests.support.programs import needs

MIB = 1 << 20
STATS: dict[str, Any] = {"bytes_stored": 3 * MIB, "bytes_free": 1 << 30, "streams": 0, "entries": 1}
BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    with serve_mounted(cache, origin) as server:
        yield server


def facts(number: int = 1, **others: Any) -> dict[str, Any]:
    """Return an entry's description, as far as the page needs it."""
    return {
        "id": number,
        "url": "http://origin.test/film.mkv",
        "state": "downloading",
        "reason": None,
        "total_size": 10 * MIB,
        "downloaded_bytes": 3 * MIB,
        "ranges": [[0, 2 * MIB], [5 * MIB, 6 * MIB]],
        "rate_bytes_s": 0,
        "readers": 0,
        "pinned": False,
        "last_accessed_at": float(number),
        **others,
    }


def buttons(text: str) -> list[str]:
    return re.findall(r'data-post="/-/entries/1/(\w+)"', text)


def test_a_browser_is_given_a_page_and_others_a_table(proxy: Server, cache: Cache) -> None:
    cache.entry("http://origin.test/film.mkv")
    shown = ask(f"{proxy.url}-/", BROWSER)
    assert shown["Content-Type"] == "text/html; charset=utf-8"
    assert shown["Cache-Control"] == "no-store"
    table = ask(f"{proxy.url}-/")
    assert table["Content-Type"] == "text/plain; charset=utf-8"
    assert re.search(r"1  not started +0 B +\?  http://origin.test/film.mkv", table.text)


def test_the_page_says_how_much_is_here_and_where() -> None:
    text = page([facts(rate_bytes_s=MIB, readers=2)], STATS)
    assert "1 entry · 3 MiB stored · 1 GiB free" in text
    assert "30% of 10 MiB" in text
    assert "1 MiB/s · 2 readers" in text
    drawn = re.findall(r'<rect class="s(\d)" x="(\d+)" width="(\d+)"', text)
    assert drawn == [("4", "0", "50"), ("4", "125", "25")]


def test_what_is_not_known_or_not_there_is_said_to_be_so() -> None:
    unknown = facts(total_size=None, downloaded_bytes=0, ranges=[])
    assert "nothing yet" in page([unknown], STATS)
    assert "Nothing has been asked for yet." in page([], {**STATS, "entries": 0})


@pytest.mark.parametrize(
    ("state", "pinned", "orders"),
    [
        ("not_started", False, ["pin"]),
        ("initializing", False, ["pause", "cancel", "pin"]),
        ("downloading", True, ["pause", "cancel", "unpin"]),
        ("paused", False, ["resume", "cancel", "pin"]),
        ("complete", False, ["pin"]),
        ("failed", False, ["retry", "pin"]),
    ],
)
def test_only_what_can_be_done_has_a_button(state: str, pinned: bool, orders: list[str]) -> None:
    assert buttons(page([facts(state=state, pinned=pinned)], STATS)) == orders


def test_why_an_entry_has_failed_is_said_whole() -> None:
    text = page([facts(state="failed", reason="it broke (Connection refused)")], STATS)
    assert "<small>it broke (Connection refused)</small>" in text


def test_what_others_have_named_is_text_and_never_markup() -> None:
    hostile = "http://origin.test/'\"><script>alert(1)</script>&"
    text = page([facts(state="failed", url=hostile, reason="<b>")], STATS)
    assert text.count("<script") == 1
    assert "<b>" not in re.sub(r"<b>failed</b>", "", text)


def test_what_moves_comes_first() -> None:
    still = [facts(number, state="complete") for number in range(2, 5)]
    text = page([*still, facts(1)], STATS)
    assert text.index('<tr class="downloading') < text.index('<tr class="complete')


def test_of_thousands_those_used_last_are_shown_and_whatever_moves(
    open_cache: OpenCache, origin: Origin
) -> None:
    clock = Clock()
    cache = open_cache(clock=clock)
    origin.put("/film", Resource(MIB))
    hold = origin.script(hold_after(MIB // 2))
    cache.entry(origin.url("/film")).start()
    assert hold.reached.wait(WAIT_S)
    for number in range(MOST_ROWS + 50):
        clock.now_s += 1
        cache.entry(f"http://origin.test/{number:03}")
    with serve_mounted(cache, origin) as proxy:
        text = ask(f"{proxy.url}-/", BROWSER).text
    hold.release()
    assert text.count("<tr class=") == MOST_ROWS + 1
    assert "/film" in text
    assert "/050<" in text
    assert "/049<" not in text
    assert "and 50 used before them" in text


def test_the_page_runs_its_own_script_only_and_no_page_frames_it(proxy: Server) -> None:
    policy = ask(f"{proxy.url}-/", BROWSER)["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@needs("chromium", "bash")
def test_a_button_pauses_a_download_and_the_page_shows_it(
    proxy: Server, cache: Cache, origin: Origin, tmp_path: Path
) -> None:
    origin.put("/film", Resource(MIB))
    hold = origin.script(hold_after(MIB // 2))
    entry = cache.entry(origin.url("/film"))
    entry.start()
    assert hold.reached.wait(WAIT_S)
    with Chromium.started(tmp_path / "profile") as browser:
        with browser.page(f"{proxy.url}-/") as shown:
            assert shown.evaluate("document.title") == "cachefsm"
            press = "document.querySelector('[data-post$=\"/pause\"]').click()"
            shown.evaluate(press)
            eventually(lambda: entry.state is DownloadState.PAUSED)
            state = "document.querySelector('tr.paused b')?.textContent"
            eventually(lambda: shown.evaluate(state) == "paused")
            # Its style has been let through, too.
            colour = "getComputedStyle(document.querySelector('tr.paused b')).color"
            assert shown.evaluate(colour) == "rgb(185, 137, 0)"
    hold.release()
