"""The power fails at any moment: no row claims a byte that is lost, and none is served.

What a cache does to its disk is recorded, then cut off everywhere; see
`tests.support.powerloss` for what a disk may have kept by then.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState, Entry
from cachefsm.surroundings import Surroundings
from tests.support.audit import Patterned, complaints
from tests.support.caches import HASTY, UNHURRIED, WAIT_S, OpenCache
from tests.support.faults import cut_after, hold_after, trickle
from tests.support.origin import Origin, Resource
from tests.support.powerloss import (
    Commit,
    Disk,
    Recorder,
    RecordingFile,
    RefusedOnce,
    Sync,
    Write,
)

MIB = 1 << 20
FILM = MIB + 300_000  # one whole block of a checksum, and a part
SONG = 200_000
BARE = 60_000


# What the origin has and has had; the ETags are their versions' numbers.
TRUTHS = {
    "film": [Patterned(FILM), Patterned(FILM, 1)],
    "song": [Patterned(SONG), Patterned(SONG + 5000, 1)],
    "bare": [Patterned(BARE)],
}


def _truths(url: str, etag: str | None) -> list[Patterned]:
    return [v for v in TRUTHS[url.rpartition("/")[2]] if etag in (None, f'"v{v.version}"')]


# -- recording ---------------------------------------------------------------------

MakeFile = Callable[[Recorder, Path], RecordingFile]


class NeverSynced(RecordingFile):
    """Says that it is synced, and is not."""

    def flush(self) -> None:
        pass


class SyncedLate(RecordingFile):
    """Syncs what was there the last time it was told to, as if after the commit."""

    _since = 0

    def flush(self) -> None:
        since, self._since = self._since, self._recorder.moment()
        self._recorder.note(Sync(self._recorder.moment(), self._name, since))


def _record(
    directory: Path, live: Callable[[Cache], None], make_file: MakeFile = RecordingFile
) -> Recorder:
    """Run a piece of a cache's life in *directory*; return what it did to its disk."""
    recorder = Recorder(directory)
    with pytest.MonkeyPatch.context() as patch:
        # No option of a cache, as nobody else has a use for it.
        patch.setattr("cachefsm.salvage.Store", recorder.store_class())
        surroundings = partial(Surroundings, make_file=partial(make_file, recorder))
        patch.setattr("cachefsm.engine.Surroundings", surroundings)
        cache = Cache(directory, retries=HASTY, speed=UNHURRIED)
    with cache:
        live(cache)
    return recorder


def _serve(origin: Origin) -> None:
    origin.put("/film", Resource(FILM))
    origin.put("/song", Resource(SONG))
    origin.put("/bare", Resource(BARE, etag=None))
    origin.script(trickle(50_000), times=None)


def _flush(cache: Cache, entry: Entry) -> None:
    """Record what has arrived, as the cache does every second."""
    with cache.registry.lease(entry.id) as live:
        live.flush()


def _live(cache: Cache, origin: Origin) -> None:
    """Do everything that writes: seeks, versions, restarts, orders, removal."""
    film, song, bare = (cache.entry(origin.url(f"/{name}")) for name in TRUTHS)
    # Parts in no order.
    with _never_finished(origin, "/film", 150_000):
        assert film.wait_for(900_000, 1_000_000, WAIT_S)
        _flush(cache, film)
        assert film.wait_for(10_000, 60_000, WAIT_S)
        film.pause()
    # Another version at half way.
    with _never_finished(origin, "/song", SONG // 2):
        assert song.wait_for(0, SONG // 2, WAIT_S)
        _flush(cache, song)
        song.pause()
    origin.put("/song", Resource(SONG + 5000, version=1))
    song.resume()
    assert song.wait_complete(WAIT_S)
    # What cannot be joined begins again.
    origin.script(cut_after(BARE // 2), path="/bare")
    assert bare.wait_complete(WAIT_S)
    film.resume()
    assert film.wait_complete(WAIT_S)
    # Gone, and back with other bytes.
    film.remove()
    origin.put("/film", Resource(FILM, version=1))
    film = cache.entry(origin.url("/film"))
    with _never_finished(origin, "/film", 600_000):
        assert film.wait_for(0, 500_000, WAIT_S)
        film.cancel()
    film.retry()
    assert film.wait_complete(WAIT_S)


@contextmanager
def _never_finished(origin: Origin, path: str, answer_bytes: int) -> Iterator[None]:
    """Let every answer stop after that much: nothing is complete before it was ordered about."""
    hold = origin.script(hold_after(answer_bytes), path=path, times=None)
    yield
    hold.release()


@dataclass(frozen=True)
class Life:
    """A cache's life, and the origin of what it holds."""

    origin: Origin
    recorder: Recorder


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    with Origin() as origin:
        _serve(origin)
        directory = tmp_path_factory.mktemp("life") / "cache"
        with closing(_record(directory, partial(_live, origin=origin))) as recorder:
            yield Life(origin, recorder)


# -- what is recorded --------------------------------------------------------------


def _losses(recorder: Recorder) -> Iterator[tuple[int, list[Commit]]]:
    """Yield every moment at which something has become certain, and the commits before it."""
    commits: list[Commit] = []
    for event in recorder.events:
        if isinstance(event, Commit):
            commits.append(event)
        if commits and not isinstance(event, Write):
            yield event.at + 1, commits[:]


def _untruths(recorder: Recorder) -> Iterator[str]:
    """Yield what is wrong with what is certainly left, whenever the power fails."""
    directory = recorder.directory
    for until, commits in _losses(recorder):
        left = Disk.after(recorder.events, until, commits[-1])
        for disk in map(left.as_of, commits):
            for entry in disk.entries(directory):
                truths = _truths(entry.url, entry.etag)
                for what in complaints(entry, truths, disk.reader(directory)):
                    yield f"{what}: {entry}"


@pytest.mark.fault(
    "process",
    "the power fails",
    client="a cut",
    kept="what was synced and recorded, but for the last commits",
    next_reader="the right bytes: what was lost is fetched again",
)
def test_no_row_claims_a_byte_that_a_power_loss_takes(life: Life) -> None:
    assert {type(event) for event in life.recorder.events} == {Write, Sync, Commit}
    assert list(_untruths(life.recorder)) == []


@pytest.mark.parametrize("make_file", [NeverSynced, SyncedLate])
def test_the_replay_notices_rows_that_are_written_before_the_sync(
    origin: Origin, tmp_path: Path, make_file: MakeFile
) -> None:
    _serve(origin)
    live = partial(_live, origin=origin)
    with closing(_record(tmp_path / "cache", live, make_file)) as recorder:
        assert any("the file has" in what for what in _untruths(recorder))


@pytest.mark.fault("disk", "it takes bytes and fails to sync them")
def test_bytes_whose_sync_was_refused_are_not_recorded_after_the_next_sync(
    origin: Origin, tmp_path: Path
) -> None:
    _serve(origin)

    def live(cache: Cache) -> None:
        song = cache.entry(origin.url("/song"))
        song.start()
        assert song.wait_complete(WAIT_S)

    with closing(_record(tmp_path / "cache", live, RefusedOnce)) as recorder:
        assert list(_untruths(recorder)) == []


# -- what is served ----------------------------------------------------------------


@pytest.mark.fault("process", "the power fails")
@pytest.mark.parametrize("seed", range(20))
def test_nothing_wrong_is_served_after_a_power_loss(
    life: Life, open_cache: OpenCache, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    until, commits = dice.choice(list(_losses(life.recorder)))
    # Often the last one: then the most is claimed.
    commit = dice.choice((commits[-1], dice.choice(commits)))
    luck = dice.choice((0.0, 0.5, 1.0))
    disk = Disk.after(life.recorder.events, until, commit, lambda: dice.random() < luck)
    disk.write_to(tmp_path / "left")
    _assert_nothing_wrong_is_served(open_cache)


@pytest.mark.fault("process", "the power fails")
@pytest.mark.parametrize("seed", range(5))
def test_files_whose_names_a_power_loss_took_are_noticed(
    life: Life, open_cache: OpenCache, tmp_path: Path, seed: int
) -> None:
    # The directory that they were made in was never synced.
    dice = random.Random(seed)
    until, commits = dice.choice(list(_losses(life.recorder))[-20:])
    disk = Disk.after(life.recorder.events, until, commits[-1])
    lost = dice.sample(sorted(disk.files), k=dice.randint(1, len(disk.files)))
    disk.files = {name: data for name, data in disk.files.items() if name not in lost}
    disk.write_to(tmp_path / "left")
    _assert_nothing_wrong_is_served(open_cache)


def _assert_nothing_wrong_is_served(open_cache: OpenCache) -> None:
    """Look at all that ``left`` holds, first as it is, then with what is fetched again."""
    cache = open_cache("left", start=False)  # nobody fetches anything
    for entry in cache.entries():
        _assert_what_is_here_is_right(cache, entry)
    cache.close()
    cache = open_cache("left")
    for entry in cache.entries():
        _assert_all_of_it_comes(cache, entry)


def _assert_what_is_here_is_right(cache: Cache, entry: Entry) -> None:
    with closing(cache.open_reader(entry.id)) as reader:
        for start, stop in entry.ranges:
            (truth,) = _truths(entry.url, reader.representation().validator.etag)
            assert b"".join(reader.pieces(start, stop)) == truth.read(start, stop)


def _assert_all_of_it_comes(cache: Cache, entry: Entry) -> None:
    if entry.state is DownloadState.PAUSED:
        entry.resume()
    elif entry.state is DownloadState.FAILED:
        entry.retry()
    assert entry.wait_complete(WAIT_S)
    with closing(cache.open_reader(entry.id)) as reader:
        (truth,) = _truths(entry.url, reader.representation().validator.etag)
        assert b"".join(reader.pieces(0, truth.size + 1)) == truth.read(0, truth.size)


@pytest.mark.fault("process", "the power fails")
def test_what_was_found_damaged_is_not_believed_again_after_a_power_loss(
    origin: Origin, open_cache: OpenCache, tmp_path: Path
) -> None:
    # The database's log was not synced, so the row is as before; the file is not.
    _serve(origin)
    cache = open_cache()
    assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
    cache.close()
    (file,) = (cache.directory / "content").glob("*/*")
    with file.open("r+b") as opened:
        opened.truncate(400_000)
    cache = open_cache(fill="requested", read_ahead=0)
    film = cache.entry(origin.url("/film"))
    assert film.wait_for(FILM - 1000, FILM, WAIT_S)
    _flush(cache, film)
    assert not film.has(400_000, FILM - 1000)
    left = tmp_path / "left"
    shutil.copytree(cache.directory, left, ignore=shutil.ignore_patterns("*-wal", "*-shm", "lock"))
    cache.close()
    _assert_nothing_wrong_is_served(open_cache)
