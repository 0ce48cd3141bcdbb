"""Stored bytes that rot, get lost or belong to nobody: found, dropped, fetched again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cachefsm import ByteRange, Cache, DownloadState, Entry
from cachefsm.errors import StorageError
from cachefsm.integrity import BLOCK_BYTES
from cachefsm.models import Store
from cachefsm.origin import OriginClient
from cachefsm.reader import Reader, ReaderOptions, VerifyReads
from cachefsm.verify import Scrubber
from tests.support.caches import WAIT_S, OpenCache, eventually, fetch, recorded
from tests.support.clients import ask, serve_mounted
from tests.support.damage import flip, replace, truncate
from tests.support.databases import aborting
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource, content

MIB = BLOCK_BYTES
SIZE = 8 * MIB + 1000  # the last block is a short one
ROTTEN = (3 * MIB + 5, 8 * MIB + 7)
DAMAGED = (ByteRange(3 * MIB, 4 * MIB), ByteRange(8 * MIB, SIZE))
SOUND = [ByteRange(0, 3 * MIB), ByteRange(4 * MIB, 8 * MIB)]


@pytest.fixture
def url(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


@pytest.fixture
def cache(open_cache: OpenCache) -> Cache:
    """A cache that fetches nothing again on behalf of those who have left."""
    return open_cache(grace=0)


def _complete(cache: Cache, url: str) -> Entry:
    film = cache.entry(url)
    assert film.wait_complete(WAIT_S)
    return film


def _file(cache: Cache) -> Path:
    return recorded(cache.directory).file


def _asked(origin: Origin) -> list[str]:
    """Return the ranges that were asked for after the first question, in order of offset."""
    ranges = [request.range or "" for request in origin.requests[1:]]
    return sorted(ranges, key=lambda text: int(text.removeprefix("bytes=").partition("-")[0]))


def _questions(*ranges: ByteRange) -> list[str]:
    """Return how *ranges* are asked for."""
    return [f"bytes={start}-{stop - 1}" for start, stop in ranges]


# -- on order ----------------------------------------------------------------------


def test_sound_content_is_found_sound(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    found = film.verify()
    assert (found.checked_bytes, found.unchecked_bytes, found.damaged) == (SIZE, 0, ())
    assert (found.entry_id, found.url) == (film.id, film.url)
    assert film.state is DownloadState.COMPLETE


def test_an_entry_that_holds_nothing_is_sound(cache: Cache, url: str) -> None:
    found = cache.entry(url).verify()
    assert (found.checked_bytes, found.unchecked_bytes, found.damaged) == (0, 0, ())


def test_progress_grows_to_the_total(open_cache: OpenCache, origin: Origin) -> None:
    size = 20 * MIB + 1
    origin.put("/film", Resource(size))
    cache = open_cache(fill="requested")
    film = cache.entry(origin.url("/film"))
    for start, stop in [(MIB // 2, 4 * MIB), (6 * MIB, size)]:
        fetch(cache, film, start, stop)
    total = sum(run.size for run in film.ranges)
    looks: list[tuple[int, int]] = []
    film.verify(lambda done, total: looks.append((done, total)))
    assert len(looks) > 2
    assert all(before[0] < after[0] for before, after in pairwise(looks))
    assert {look[1] for look in looks} == {total}
    assert looks[-1][0] == total


@pytest.mark.fault(
    "file",
    "bytes have flipped, and somebody verifies or scrubs",
    client="notices nothing",
    kept="all sound blocks",
    next_reader="the right bytes: damaged blocks are fetched again",
)
def test_flipped_bytes_of_a_complete_file_cost_their_blocks_and_nothing_else(
    cache: Cache, origin: Origin, url: str
) -> None:
    film = _complete(cache, url)
    flip(_file(cache), ROTTEN)
    found = film.verify()
    assert found.damaged == DAMAGED
    assert found.damaged_bytes == MIB + 1000
    assert film.ranges == SOUND
    assert film.state is not DownloadState.COMPLETE
    film.start()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    assert _asked(origin) == _questions(*DAMAGED)
    assert film.verify().damaged == ()


@pytest.mark.fault("file", "bytes have flipped, and somebody verifies or scrubs")
def test_flipped_bytes_of_a_half_complete_file_cost_their_blocks_and_nothing_else(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    half = ByteRange(MIB // 2, 5 * MIB + MIB // 2)  # neither end is a block's
    cache = open_cache(fill="requested", read_ahead=0)
    fetch(cache, cache.entry(url), *half)
    cache.close()  # which records, and computes checksums
    flip(_file(cache), ROTTEN[:1])
    cache = open_cache(fill="requested", read_ahead=0)
    film = cache.entry(url)
    found = film.verify()
    assert found.damaged == DAMAGED[:1]
    assert (found.checked_bytes, found.unchecked_bytes) == (4 * MIB, MIB)
    left = [ByteRange(half.start, 3 * MIB), ByteRange(4 * MIB, half.stop)]
    assert film.ranges == left
    film.start()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    missing = [ByteRange(0, half.start), DAMAGED[0], ByteRange(half.stop, SIZE)]
    assert _asked(origin) == _questions(*missing)


def test_a_block_of_which_a_part_is_missing_is_said_to_be_unchecked(
    open_cache: OpenCache, url: str
) -> None:
    cache = open_cache(fill="requested", read_ahead=0)
    fetch(cache, cache.entry(url), 1000, 2 * MIB + 1000)
    cache.close()
    found = open_cache(fill="requested").entry(url).verify()
    assert (found.checked_bytes, found.unchecked_bytes) == (MIB, MIB)


def test_damage_that_is_found_bit_by_bit_is_dropped_bit_by_bit(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    file = _file(cache)
    for offset, block in zip(ROTTEN, DAMAGED, strict=True):
        flip(file, [offset])
        assert film.verify().damaged == (block,)
    assert film.ranges == SOUND
    truncate(file, 0)
    assert film.verify().damaged == tuple(SOUND)
    assert film.ranges == []
    assert fetch(cache, film) == content(0, SIZE)


def test_a_look_that_is_broken_off_has_dropped_what_it_had_found(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    flip(_file(cache), ROTTEN)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film.verify(stop)
    assert not film.has(*DAMAGED[0])


def test_a_look_while_the_rest_arrives_harms_neither(
    cache: Cache, origin: Origin, url: str
) -> None:
    hold = origin.script(hold_after(5 * MIB))
    film = cache.entry(url)
    film.start()
    assert film.wait_for(0, 5 * MIB, WAIT_S)
    assert film.verify().damaged == ()
    hold.release()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    assert len(origin.requests) == 1


def test_what_changes_at_the_origin_during_a_look_is_no_damage(
    cache: Cache, origin: Origin, url: str
) -> None:
    film = _complete(cache, url)
    with cache.registry.lease(film.id) as live:
        found = film.verify(
            lambda done, total: live.invalidate("changed") if done < total else None
        )
    assert (found.damaged, found.checked_bytes) == ((), SIZE)
    assert film.ranges == []


@pytest.mark.fault(
    "file",
    "damage is found and the database refuses to drop it",
    client="the right bytes, straight from the origin",
    kept="everything; the damage stays known",
    next_reader="the same, until the database takes it",
)
def test_damage_that_cannot_be_written_down_stays_found(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache(verify_reads="always")
    film = _complete(cache, url)
    flip(_file(cache), ROTTEN)
    with aborting(cache.directory / "cache.sqlite3", "BEFORE UPDATE ON cache_entries"):
        with pytest.raises(StorageError):
            film.verify()
        # Twice: what was damaged for the first one must be so for the second, too.
        for _ in range(2):
            assert fetch(cache, film) == content(0, SIZE)
    assert film.verify().damaged == DAMAGED


# -- files that are shorter, gone, or others ---------------------------------------


def _unlink(file: Path) -> None:
    file.unlink()


def _cut_in_a_block(file: Path) -> None:
    truncate(file, 5 * MIB + 1)


def _empty(file: Path) -> None:
    truncate(file, 0)


_LEFT = {_unlink: 0, replace: 0, _empty: 0, _cut_in_a_block: 5 * MIB + 1}
_by_name = pytest.mark.parametrize("harm", _LEFT, ids=lambda harm: harm.__name__.strip("_"))


@pytest.mark.fault(
    "file",
    "it is gone, emptied, cut off or replaced while the cache runs",
    client="the right bytes; a cut for who was reading there, where the origin cannot help",
    kept="the part that is still there",
    next_reader="the right bytes: what is lost is fetched again",
)
@_by_name
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_what_a_file_cannot_hold_any_more_is_dropped_and_fetched_again(
    open_cache: OpenCache, origin: Origin, url: str, harm: Callable[[Path], None], restart: bool
) -> None:
    cache, left = open_cache(grace=0), _LEFT[harm]
    film = _complete(cache, url)
    if restart:
        cache.close()
    harm(recorded(cache.directory).file)
    if restart:
        cache = open_cache(start=False)  # or the look at the start would be quicker
        film = cache.entry(url)
    found = film.verify()
    assert found.damaged_bytes == SIZE - left
    assert film.ranges == ([ByteRange(0, left)] if left else [])
    if restart:
        cache.close()
        cache = open_cache(grace=0)
        film = cache.entry(url)
    film.start()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film) == content(0, SIZE)
    assert recorded(cache.directory).stored() == [(0, content(0, SIZE))]
    if left:
        assert _asked(origin) == _questions(ByteRange(left, SIZE))


@pytest.mark.fault(
    "file",
    "damage is found where answers cannot be joined",
    client="the right bytes; a cut in mid-body",
    kept="nothing",
    next_reader="the right bytes: the whole file is fetched again",
)
def test_without_a_strong_validator_damage_costs_the_whole_file(
    cache: Cache, origin: Origin, url: str
) -> None:
    origin.put("/film", Resource(SIZE, etag='W/"v0"'))
    film = _complete(cache, url)
    old = _file(cache)
    flip(old, ROTTEN)
    assert film.verify().damaged == DAMAGED
    assert film.ranges == []
    assert not old.exists()
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)


def test_what_is_left_of_a_damaged_file_can_be_evicted(open_cache: OpenCache, url: str) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    flip(_file(cache), ROTTEN)
    cache = open_cache()
    film = cache.entry(url)
    film.verify()
    assert cache.collect(max_size=0)["bytes_stored"] == 0
    assert film.ranges == []


def test_a_persons_pause_outlives_damage(open_cache: OpenCache, origin: Origin, url: str) -> None:
    cache = open_cache(first_byte_timeout="50ms", stall_timeout="50ms")
    origin.script(hold_after(5 * MIB))
    film = cache.entry(url)
    film.start()
    assert film.wait_for(0, 5 * MIB, WAIT_S)
    film.pause()
    eventually(lambda: recorded(cache.directory).bytes_present == 5 * MIB)
    flip(_file(cache), ROTTEN[:1])
    assert film.verify().damaged == DAMAGED[:1]
    assert (film.state, film.reason) == (DownloadState.PAUSED, "person")
    assert not film.wait_for(*DAMAGED[0], timeout=0.05)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("etag", ['"v0"', None], ids=["a part is kept", "all of it goes"])
def test_damage_under_a_persons_pause_is_one_write_or_none(
    open_cache: OpenCache, origin: Origin, etag: str | None
) -> None:
    origin.put("/film", Resource(SIZE, etag=etag, last_modified=None))
    cache = open_cache()
    origin.script(hold_after(5 * MIB))
    film = cache.entry(origin.url("/film"))
    film.start()
    assert film.wait_for(0, 5 * MIB, WAIT_S)
    film.pause()
    eventually(lambda: recorded(cache.directory).bytes_present == 5 * MIB)
    before = recorded(cache.directory)
    flip(_file(cache), ROTTEN[:1])
    last_move = "BEFORE UPDATE ON cache_entries WHEN NEW.state = 'paused'"
    with aborting(cache.directory / "cache.sqlite3", last_move):
        with pytest.raises(StorageError):
            film.verify()
        # What a kill would leave behind.
        assert recorded(cache.directory) == before
        assert film.downloaded_bytes == 5 * MIB
        assert (film.state, film.reason) == (DownloadState.PAUSED, "person")
    assert film.verify().damaged == DAMAGED[:1]
    assert (film.state, film.reason) == (DownloadState.PAUSED, "person")
    assert recorded(cache.directory).state == DownloadState.PAUSED


# -- checksums last ----------------------------------------------------------------


def test_checksums_survive_a_restart(open_cache: OpenCache, url: str) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    flip(_file(cache), ROTTEN)
    assert open_cache().entry(url).verify().damaged == DAMAGED


def test_what_is_left_of_a_damaged_file_keeps_its_checksums(
    open_cache: OpenCache, url: str
) -> None:
    cache = open_cache()
    film = _complete(cache, url)
    file = _file(cache)
    flip(file, ROTTEN)
    film.verify()
    cache.close()
    flip(file, [0])
    found = open_cache(fill="requested").entry(url).verify()
    assert found.damaged == (ByteRange(0, MIB),)
    assert found.unchecked_bytes == 0


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_file_has_all_its_checksums_however_its_length_was_told(
    open_cache: OpenCache, origin: Origin, framing: Any
) -> None:
    origin.put("/film", Resource(SIZE, framing=framing))
    # So that bytes are recorded before the end, and with it the length, is known.
    hold = origin.script(hold_after(SIZE))
    cache = open_cache()
    film = cache.entry(origin.url("/film"))
    film.start()
    assert film.wait_for(0, SIZE - 1, WAIT_S)
    eventually(lambda: recorded(cache.directory).bytes_present == SIZE)
    hold.release()
    assert film.wait_complete(WAIT_S)
    cache.close()
    found = open_cache().entry(origin.url("/film")).verify()
    assert (found.checked_bytes, found.unchecked_bytes, found.damaged) == (SIZE, 0, ())


# -- files and rows that belong to nobody ------------------------------------------


def _strangers(file: Path) -> list[Path]:
    """Put files beside *file* that the cache has not named."""
    names = ["README", f"{file.name}.part", "0" * 32, f"{'0' * 32}-0000000g", ".hidden"]
    strangers = [file.with_name(name) for name in names]
    strangers.append(file.parent.parent / f"{'0' * 32}-00000000")  # not where ours are
    for path in strangers:
        path.write_bytes(b"somebody else's")
    return strangers


def _orphan(file: Path) -> Path:
    orphan = file.with_name(f"{'0' * 32}-00000000")
    orphan.write_bytes(b"nobody's")
    return orphan


@pytest.mark.fault("file", "a file of ours belongs to no row")
def test_files_without_rows_are_removed_on_order_and_no_others(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    file = _file(cache)
    orphan, strangers = _orphan(file), _strangers(file)
    assert cache.remove_orphans() == 1
    assert cache.remove_orphans() == 0
    assert not orphan.exists()
    assert all(stranger.exists() for stranger in strangers)
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.fault(
    "file",
    "a file of ours belongs to no row",
    client="notices nothing",
    kept="it is deleted at the start; files of other names are not",
    next_reader="notices nothing",
)
def test_files_without_rows_are_removed_at_the_start_and_no_others(
    open_cache: OpenCache, url: str
) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    file = _file(cache)
    orphan, strangers = _orphan(file), _strangers(file)
    cache = open_cache()
    eventually(lambda: not orphan.exists())
    assert all(stranger.exists() for stranger in strangers)
    assert fetch(cache, cache.entry(url)) == content(0, SIZE)


@pytest.mark.fault("file", "it is gone or cut off when the cache starts")
@pytest.mark.parametrize("harm", [_unlink, _cut_in_a_block], ids=["gone", "shorter"])
def test_rows_without_their_file_are_noticed_at_the_start_without_anybody_reading(
    open_cache: OpenCache, url: str, harm: Callable[[Path], None]
) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    harm(_file(cache))
    cache = open_cache()
    left = _LEFT[harm]
    eventually(lambda: recorded(cache.directory).bytes_present == left)
    assert cache.stats()["bytes_stored"] == left


# -- while reading -----------------------------------------------------------------


@contextmanager
def _reader(cache: Cache, film: Entry, dice: float, verify: VerifyReads) -> Iterator[Reader]:
    """A reader whose dice always fall the same."""
    options = ReaderOptions(
        first_byte_timeout_s=WAIT_S, stall_timeout_s=WAIT_S, verify_reads=verify, dice=lambda: dice
    )
    entry, client = cache.registry.acquire(film.id), OriginClient()
    with closing(client):
        reader = Reader(entry, options, client, on_close=lambda: cache.registry.release(entry))
        with closing(reader):
            yield reader


@pytest.mark.fault(
    "file",
    "bytes have flipped, and the read is verified",
    client="the right bytes, after the block was fetched again",
    kept="all sound blocks",
    next_reader="the right bytes",
)
@pytest.mark.parametrize("verify", [VerifyReads.ALWAYS, VerifyReads.SAMPLE])
def test_a_flipped_byte_that_is_looked_at_is_fetched_again_before_anybody_gets_it(
    cache: Cache, origin: Origin, url: str, verify: VerifyReads
) -> None:
    film = _complete(cache, url)
    flip(_file(cache), ROTTEN)
    with _reader(cache, film, 0.0, verify) as reader:
        assert b"".join(reader.pieces(0, SIZE)) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert _asked(origin) == _questions(*DAMAGED)


@pytest.mark.fault(
    "file",
    "bytes have flipped, and the read is not verified",
    client="the flipped bytes",
    kept="everything",
    next_reader="the flipped bytes, until the block is looked at",
)
def test_a_flipped_byte_that_nobody_looks_at_is_served(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    flip(_file(cache), ROTTEN)
    # Documented: "never" trusts the disk, and "sample" does so fifteen times in sixteen.
    for dice, verify in [(0.0, VerifyReads.NEVER), (0.99, VerifyReads.SAMPLE)]:
        with _reader(cache, film, dice, verify) as reader:
            assert b"".join(reader.pieces(0, SIZE)) != content(0, SIZE)


def test_one_block_in_sixteen_is_looked_at_however_small_the_reads(cache: Cache, url: str) -> None:
    film = _complete(cache, url)
    throws: list[float] = []

    def dice() -> float:
        throws.append(1 / 16)
        return throws[-1]

    entry, client = cache.registry.acquire(film.id), OriginClient()
    options = ReaderOptions(verify_reads=VerifyReads.SAMPLE, dice=dice)
    with closing(Reader(entry, options, client, on_close=client.close)) as reader:
        for position in range(0, 2 * MIB, MIB // 8):
            reader.read(position, MIB // 8)
    cache.registry.release(entry)
    assert len(throws) == 2


def test_small_reads_are_looked_at_as_well(open_cache: OpenCache, url: str) -> None:
    cache = open_cache(verify_reads="always")
    film = _complete(cache, url)
    flip(_file(cache), ROTTEN)
    with film.open() as stream:
        for offset in ROTTEN:
            stream.seek(offset - 10)
            assert stream.read(100) == content(offset - 10, offset + 90)


@pytest.mark.fault("file", "bytes have flipped, and the read is verified")
@pytest.mark.parametrize("resource", [Resource(1000), Resource(SIZE, etag=None)])
def test_a_flipped_byte_of_what_is_lost_as_a_whole_reaches_no_client(
    open_cache: OpenCache, origin: Origin, resource: Resource
) -> None:
    """A file of one block, and one whose answers cannot be joined."""
    origin.put("/film", resource)
    cache = open_cache(verify_reads="always")
    film = _complete(cache, origin.url("/film"))
    flip(_file(cache), [7])
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, resource.size or 0)
    assert film.wait_complete(WAIT_S)
    assert recorded(cache.directory).stored() == [(0, content(0, resource.size or 0))]


@pytest.mark.fault("file", "bytes have flipped, and the read is verified")
def test_a_flipped_byte_reaches_no_client_of_the_proxy(
    open_cache: OpenCache, origin: Origin, url: str
) -> None:
    cache = open_cache(verify_reads="always")
    _complete(cache, url)
    flip(_file(cache), ROTTEN)
    with serve_mounted(cache, origin) as proxy:
        for first, stop in [(3 * MIB + 4, 3 * MIB + 10), (0, SIZE)]:
            reply = ask(f"{proxy.url}m/film", {"Range": f"bytes={first}-{stop - 1}"})
            assert (reply.status, reply.body) == (206, content(first, stop))
    assert origin.body_bytes_sent == SIZE + sum(block.size for block in DAMAGED)


@pytest.mark.fault("file", "bytes have flipped, and the read is verified")
def test_a_reader_that_is_there_already_gets_no_flipped_byte(
    open_cache: OpenCache, url: str
) -> None:
    cache = open_cache(verify_reads="always")
    film = _complete(cache, url)
    with closing(cache.open_reader(film.id)) as reader:
        pieces = reader.pieces(0, SIZE)
        data = next(pieces)
        flip(_file(cache), ROTTEN[1:])
        data += b"".join(pieces)
    assert data == content(0, SIZE)


# -- all the time ------------------------------------------------------------------


@contextmanager
def _scrubber(cache: Cache, rate_bytes_s: float = 1.0) -> Iterator[Scrubber]:
    """A scrubber without a thread: the test makes every step."""
    with closing(Store.open(cache.directory / "cache.sqlite3")) as store:
        yield Scrubber(cache.registry, store, cache.directory / "content", rate_bytes_s)


@pytest.fixture
def idle(open_cache: OpenCache, url: str) -> Cache:
    """A cache that fetches nothing, with one complete film."""
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    return open_cache(start=False)


@pytest.mark.fault("file", "bytes have flipped, and somebody verifies or scrubs")
def test_scrubbing_finds_a_flipped_byte_within_a_look_at_everything(
    idle: Cache, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    film = idle.entry(url)
    flip(_file(idle), ROTTEN)
    with _scrubber(idle) as scrubber:
        for _ in range(9):  # a block each
            assert scrubber.step() is not None
    assert film.ranges == SOUND
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == [f"{film.url}: the stored bytes are damaged"] * 2


def test_scrubbing_begins_again_and_finds_what_has_rotted_since(idle: Cache, url: str) -> None:
    film = idle.entry(url)
    with _scrubber(idle) as scrubber:
        for _ in range(10):  # the last one finds that there is no more
            scrubber.step()
        flip(_file(idle), [0])
        scrubber.step()
    assert not film.has(0, 1)


def test_without_a_rate_only_the_directory_is_looked_at(idle: Cache, url: str) -> None:
    film = idle.entry(url)
    file = _file(idle)
    orphan = _orphan(file)
    flip(file, ROTTEN)
    with _scrubber(idle, rate_bytes_s=0.0) as scrubber:
        assert scrubber.step() is None
        assert scrubber.step() is None
    assert not orphan.exists()
    assert film.state is DownloadState.COMPLETE


def test_what_is_being_scrubbed_can_be_evicted_and_removed(
    idle: Cache, origin: Origin, url: str
) -> None:
    film = idle.entry(url)
    with _scrubber(idle) as scrubber:
        scrubber.step()
        assert idle.collect(max_size=0)["bytes_stored"] == 0
        assert scrubber.step() is not None
        film.remove()
        assert scrubber.step() is not None


def test_an_entry_that_cannot_be_checked_keeps_no_other_from_it(
    open_cache: OpenCache, origin: Origin, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    origin.put("/other", Resource(SIZE))
    cache = open_cache()
    films = [_complete(cache, url), _complete(cache, origin.url("/other"))]
    cache.close()
    files = [cache.directory / "content" / name for name in _names(cache)]
    cache = open_cache(start=False)
    truncate(files[0], MIB)
    files[1].unlink()
    database = cache.directory / "cache.sqlite3"
    with aborting(database, f"BEFORE UPDATE ON cache_entries WHEN NEW.id = {films[0].id}"):
        with _scrubber(cache) as scrubber:
            scrubber.step()
    assert cache.find(films[1].id).ranges == []
    assert "cannot be checked" in caplog.text


def _names(cache: Cache) -> list[str]:
    with closing(Store.open(cache.directory / "cache.sqlite3")) as store:
        return [record.content_file for record in store.entries()]


def test_rot_is_found_in_the_background(open_cache: OpenCache, url: str) -> None:
    cache = open_cache()
    _complete(cache, url)
    cache.close()
    flip(_file(cache), ROTTEN)
    film = open_cache(scrub_rate="1G").entry(url)
    eventually(lambda: film.ranges == SOUND)
