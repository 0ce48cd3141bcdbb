"""Content that was never synced, after the machine went down: nothing lost is served.

Another boot is one of another id in the database; what the disk lost reads as noughts,
as the ends of files do that a power loss took.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache, DownloadState, Entry
from cachefsm.doubts import WRITTEN_BACK_S
from tests.support.caches import HASTY, WAIT_S, Clock, OpenCache, fetch, recorded, rows
from tests.support.damage import flip
from tests.support.databases import execute
from tests.support.origin import Origin, Resource, content

MIB = 1 << 20
SIZE = 4 * MIB + 1000

pytestmark = pytest.mark.skipif(
    not Path("/proc/sys/kernel/random/boot_id").exists(),
    reason="this system does not tell one boot from the next",
)


@pytest.fixture
def url(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_quick(open_cache: OpenCache, clock: Clock) -> OpenCache:
    """Opens caches that do not sync, and serve what they have without a look."""

    def open_one(name: str = "cache", **options: Any) -> Cache:
        quick = {"durability": "process", "verify_reads": "never", "clock": clock}
        return open_cache(name, **{**quick, **options})

    return open_one


def _lose(directory: Path, start: int, stop: int) -> None:
    """Let the disk have lost what was written there."""
    file = recorded(directory).file
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(bytes(stop - start))


def _reboot(directory: Path) -> None:
    execute(directory / "cache.sqlite3", "UPDATE cache_unsynced SET boot_id = 'another'")


def _noted(directory: Path) -> list[tuple[Any, ...]]:
    return rows(directory, "SELECT since FROM cache_unsynced")


def _complete(cache: Cache, url: str) -> Entry:
    entry = cache.entry(url)
    assert entry.wait_complete(WAIT_S)
    return entry


@pytest.mark.fault(
    "process",
    "the power fails, and content was not synced (`--durability process`)",
    client="a cut",
    kept="every block that has its checksum when the cache is opened in the next boot",
    next_reader="the right bytes: what was lost is fetched again",
)
def test_what_the_disk_lost_is_dropped_in_the_next_boot(
    open_quick: OpenCache, origin: Origin, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    _lose(cache.directory, MIB + 10, 2 * MIB)
    _reboot(cache.directory)
    cache = open_quick(start=False)
    film = cache.entry(url)
    assert [tuple(run) for run in film.ranges] == [(0, MIB), (2 * MIB, SIZE)]
    cache.close()
    cache = open_quick()
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
    (line,) = [line for line in caplog.messages if "has been down" in line]
    assert f"{MIB} bytes" in line
    assert origin.body_bytes_sent == SIZE + MIB


@pytest.mark.fault(
    "process", "the power fails, and content was not synced (`--durability process`)"
)
def test_what_has_no_checksum_is_not_believed_in_the_next_boot(
    open_quick: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_quick(fill="requested", read_ahead=0)
    fetch(cache, cache.entry(url), 1000, 2 * MIB + 1000)
    cache.close()
    _lose(cache.directory, 1000, 2000)
    _reboot(cache.directory)
    cache = open_quick(fill="requested", read_ahead=0)
    film = cache.entry(url)
    assert [tuple(run) for run in film.ranges] == [(MIB, 2 * MIB)]
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.fault(
    "process", "the power fails, and content was not synced (`--durability process`)"
)
def test_what_is_whole_stays_complete_and_costs_the_origin_nothing(
    open_quick: OpenCache, origin: Origin, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    _reboot(cache.directory)
    asked = len(origin.requests)
    with caplog.at_level(logging.WARNING, "cachefsm.doubts"):
        cache = open_quick()
    film = cache.entry(url)
    assert film.state is DownloadState.COMPLETE
    assert fetch(cache, film) == content(0, SIZE)
    assert len(origin.requests) == asked
    assert [record for record in caplog.records if record.name == "cachefsm.doubts"] == []


def test_where_answers_cannot_be_joined_damage_costs_the_whole_file(
    open_quick: OpenCache, origin: Origin, url: str
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    _lose(cache.directory, 0, 1000)
    _reboot(cache.directory)
    cache = open_quick(start=False)
    assert cache.entry(url).ranges == []
    cache.close()
    cache = open_quick()
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)


def test_in_the_same_boot_nothing_is_looked_at(open_quick: OpenCache, url: str) -> None:
    """The system still has what it was given, whatever became of the process."""
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    flip(recorded(cache.directory).file, [10])
    cache = open_quick()
    assert cache.entry(url).state is DownloadState.COMPLETE


def test_what_is_synced_is_not_looked_at(open_quick: OpenCache, url: str) -> None:
    cache = open_quick(durability="power")
    _complete(cache, url)
    cache.close()
    assert _noted(cache.directory) == []


def test_who_syncs_now_still_checks_what_was_not(open_quick: OpenCache, url: str) -> None:
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    _lose(cache.directory, 0, MIB)
    _reboot(cache.directory)
    cache = open_quick(durability="power", start=False)
    assert cache.entry(url).downloaded_bytes == SIZE - MIB
    assert _noted(cache.directory) == []


def test_what_was_written_long_before_the_end_is_not_looked_at(
    open_quick: OpenCache, url: str, clock: Clock
) -> None:
    cache = open_quick()
    _complete(cache, url)
    clock.now_s += WRITTEN_BACK_S + 1
    cache.close()
    flip(recorded(cache.directory).file, [10])
    _reboot(cache.directory)
    cache = open_quick()
    assert cache.entry(url).state is DownloadState.COMPLETE


def test_what_a_killed_process_wrote_is_all_looked_at(
    open_quick: OpenCache, url: str, clock: Clock, tmp_path: Path
) -> None:
    """One that was killed did not say when it ended."""
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    execute(tmp_path / "cache" / "cache.sqlite3", "UPDATE cache_unsynced SET since = 0")
    clock.now_s += WRITTEN_BACK_S + 1
    _lose(cache.directory, 0, MIB)
    _reboot(cache.directory)
    cache = open_quick(start=False)
    assert cache.entry(url).downloaded_bytes == SIZE - MIB


def test_the_boot_and_the_time_are_noted_before_anything_is_stored(
    open_quick: OpenCache, clock: Clock
) -> None:
    cache = open_quick()
    assert _noted(cache.directory) == [(clock.now_s,)]
    clock.now_s += 1000
    cache.close()
    assert _noted(cache.directory) == [(clock.now_s - WRITTEN_BACK_S,)]


def test_syncing_for_long_enough_leaves_no_doubt(open_quick: OpenCache, clock: Clock) -> None:
    open_quick().close()
    cache = open_quick(durability="power")
    cache.close()
    assert len(_noted(cache.directory)) == 1
    cache = open_quick(durability="power")
    clock.now_s += WRITTEN_BACK_S + 1
    cache.close()
    assert _noted(cache.directory) == []


def test_the_check_is_made_once(
    open_quick: OpenCache, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    _reboot(cache.directory)
    with caplog.at_level(logging.INFO, "cachefsm.doubts"):
        for _ in range(3):
            open_quick().close()
    assert len([line for line in caplog.messages if "has been down" in line]) == 1


@pytest.mark.parametrize("garbage", ["since = 'long ago'", "since = 9e999", "boot_id = X'FF'"])
def test_a_note_that_makes_no_sense_puts_everything_in_doubt(
    open_quick: OpenCache, url: str, garbage: str
) -> None:
    cache = open_quick()
    _complete(cache, url)
    cache.close()
    _lose(cache.directory, 0, MIB)
    execute(cache.directory / "cache.sqlite3", f"UPDATE cache_unsynced SET {garbage}")
    cache = open_quick(start=False)
    assert cache.entry(url).downloaded_bytes == SIZE - MIB


def test_a_download_under_way_goes_on_after_the_check(
    open_quick: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_quick(retries=HASTY)
    film = cache.entry(url)
    film.start()
    assert film.wait_for(0, 2 * MIB, WAIT_S)
    cache.close()
    held = recorded(cache.directory).chunks
    _lose(cache.directory, 0, held[0].stop)
    _reboot(cache.directory)
    cache = open_quick()
    assert cache.entry(url).wait_complete(WAIT_S)
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)
