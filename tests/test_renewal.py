"""Links that expire: what a resolver is asked, and what a fresh link has to prove."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cachefsm import ByteRange, Cache, DownloadState, Entry
from cachefsm.errors import CacheError, OriginStatus, UsageError
from cachefsm.linked import RENEWALS
from cachefsm.renewal import SAMPLE_BYTES, SAMPLES
from cachefsm.resolvers import command_resolver
from cachefsm.scheduler import Limits
from cachefsm.terms import Terms
from tests.support.caches import WAIT_S, OpenCache, eventually, fetch, rows
from tests.support.faults import hold_before_headers, status
from tests.support.origin import Origin, Request, Resource, content, pattern
from tests.support.threads import in_thread

MIB = 1 << 20
SIZE = 8 * MIB
HALF = SIZE // 2

Resolve = Callable[[str, OriginStatus], "str | None"]


class Links:
    """Signed links to one file: only the latest is good; issues another on demand."""

    def __init__(self, origin: Origin, path: str = "/film") -> None:
        self._origin = origin
        self._path = path
        self.asked: list[tuple[str, int]] = []
        self.good = 1
        origin.script(status(403), path=path, when=self._is_bad, times=None)

    @property
    def url(self) -> str:
        return self._origin.url(f"{self._path}?sig={self.good}")

    def expire(self) -> None:
        self.good += 1

    def resolve(self, url: str, error: OriginStatus) -> str | None:
        self.asked.append((url, error.status))
        return self.url

    def _is_bad(self, request: Request) -> bool:
        return not request.target.endswith(f"?sig={self.good}")


class Slow:
    """Resolves as *links* does, once it may go on."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self.asking, self.go_on = threading.Event(), threading.Event()

    def __call__(self, url: str, error: OriginStatus) -> str | None:
        self.asking.set()
        assert self.go_on.wait(WAIT_S)
        return self._links.resolve(url, error)


@pytest.fixture
def links(origin: Origin) -> Links:
    origin.put("/film", Resource(SIZE))
    return Links(origin)


def opened(open_cache: OpenCache, resolver: Resolve, **options: Any) -> Cache:
    return open_cache(resolver=resolver, **{"fill": "requested", "grace": 0, **options})


def half_stored(cache: Cache, url: str) -> Entry:
    """Return the entry of *url*, of which the first half is here, and nothing is on its way."""
    entry = cache.entry(url)
    assert fetch(cache, entry, 0, HALF) == content(0, HALF)
    eventually(lambda: entry.state is DownloadState.PAUSED)
    return entry


def validated(cache: Cache, entry: Entry) -> int | None:
    """Return the length that the origin confirms, asked for that alone."""
    demanding = Terms(request_fields=(("cache-control", "no-cache"),), since_s=time.monotonic())
    with closing(cache.open_reader(entry.id, terms=demanding)) as reader:
        length = reader.representation(0, 1).complete_length
        assert reader.news.forwarded == "request"
    return length


def row(cache: Cache) -> tuple[str, str]:
    ((key, url),) = rows(cache.directory, "SELECT key, url FROM cache_entries")
    return key, url


def test_a_download_goes_on_with_the_fresh_link(
    open_cache: OpenCache, origin: Origin, links: Links
) -> None:
    cache = opened(open_cache, links.resolve)
    old = links.url
    film = half_stored(cache, old)
    links.expire()
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert links.asked == [(old, 403)]
    assert row(cache) == (old, links.url)
    sent = origin.body_bytes_sent
    assert sent <= SIZE + SAMPLE_BYTES  # nothing that was stored came again, but for the proof
    assert cache.entry(old).id == film.id
    assert len(cache.entries()) == 1


def test_the_fresh_link_is_used_after_a_restart(open_cache: OpenCache, links: Links) -> None:
    cache = opened(open_cache, links.resolve)
    old = links.url
    film = half_stored(cache, old)
    links.expire()
    assert film.wait_for(HALF, HALF + 1, WAIT_S)
    cache.close()
    cache = opened(open_cache, links.resolve)
    assert fetch(cache, cache.entry(old)) == content(0, SIZE)
    assert len(links.asked) == 1


def test_a_link_may_have_expired_before_anything_is_stored(
    open_cache: OpenCache, links: Links
) -> None:
    cache = opened(open_cache, links.resolve)
    film = cache.entry(links.url)
    links.expire()
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.parametrize("code", [401, 403, 410])
def test_that_is_what_expired_links_are_answered(
    open_cache: OpenCache, origin: Origin, code: int
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(status(code), path="/film", when=lambda request: "sig=1" in request.target)
    cache = opened(open_cache, lambda _url, _error: origin.url("/film?sig=2"))
    assert fetch(cache, cache.entry(origin.url("/film?sig=1")), 0, 10) == content(0, 10)


def test_another_status_is_no_question_of_links(open_cache: OpenCache, origin: Origin) -> None:
    cache = opened(open_cache, lambda _url, _error: pytest.fail("asked"))
    with pytest.raises(CacheError, match="404"):
        fetch(cache, cache.entry(origin.url("/missing")))


def test_many_readers_have_the_link_renewed_once(open_cache: OpenCache, links: Links) -> None:
    slowly = Slow(links)
    cache = opened(open_cache, slowly)
    film = half_stored(cache, links.url)
    links.expire()
    starts = range(HALF, SIZE, MIB)
    found: dict[int, bytes] = {}

    def read(start: int) -> None:
        found[start] = fetch(cache, film, start, start + MIB)

    readers = [threading.Thread(target=read, args=(start,)) for start in starts]
    for reader in readers:
        reader.start()
    eventually(lambda: film.describe()["readers"] == len(readers))
    slowly.go_on.set()
    for reader in readers:
        reader.join(WAIT_S)
    assert found == {start: content(start, start + MIB) for start in starts}
    assert len(links.asked) == 1


def test_what_the_old_link_is_still_answered_renews_nothing(
    open_cache: OpenCache, origin: Origin, links: Links
) -> None:
    cache = opened(open_cache, links.resolve)
    film = half_stored(cache, links.url)
    links.expire()
    old = [origin.script(hold_before_headers(), nth=nth, path="/film") for nth in (1, 2)]
    readers = [in_thread(fetch, cache, film, start, start + MIB) for start in (HALF, 6 * MIB)]
    for hold in old:
        assert hold.reached.wait(WAIT_S)
    old[0].release()
    origin.wait_until(lambda: any("sig=2" in request.target for request in origin.requests))
    old[1].release()
    assert [reader.result(WAIT_S) for reader in readers] == [
        content(start, start + MIB) for start in (HALF, 6 * MIB)
    ]
    assert len(links.asked) == 1


def test_a_question_and_a_reader_share_a_renewal(
    open_cache: OpenCache, origin: Origin, links: Links
) -> None:
    slowly = Slow(links)
    cache = opened(open_cache, slowly)
    film = half_stored(cache, links.url)
    links.expire()
    holds = [origin.script(hold_before_headers(), nth=nth, path="/film") for nth in (1, 2)]
    reader = in_thread(fetch, cache, film, HALF, SIZE)
    assert holds[0].reached.wait(WAIT_S)
    question = in_thread(validated, cache, film)
    assert holds[1].reached.wait(WAIT_S)
    for hold in reversed(holds):  # the question's first: it is no claim on bytes
        hold.release()
    assert slowly.asking.wait(WAIT_S)
    origin.wait_until(lambda: all(request.ended for request in origin.requests))
    slowly.go_on.set()
    assert question.result(WAIT_S) == SIZE
    assert reader.result(WAIT_S) == content(HALF, SIZE)
    assert len(links.asked) == 1


def test_links_may_expire_any_number_of_times(open_cache: OpenCache, links: Links) -> None:
    cache = opened(open_cache, links.resolve)
    film = cache.entry(links.url)
    times = RENEWALS + 2
    for start in range(0, times * MIB, MIB):
        links.expire()
        assert fetch(cache, film, start, start + MIB) == content(start, start + MIB)
    assert len(links.asked) == times


def test_a_slow_resolver_holds_up_no_other_entry_and_no_connection(
    open_cache: OpenCache, origin: Origin, links: Links
) -> None:
    slowly = Slow(links)
    cache = opened(open_cache, slowly, limits=Limits(per_entry=1, per_host=1, total=1))
    film = cache.entry(links.url)
    links.expire()
    film.start()
    assert slowly.asking.wait(WAIT_S)
    origin.put("/other", Resource(MIB))
    assert fetch(cache, cache.entry(origin.url("/other"))) == content(0, MIB)
    assert film.describe()["streams"] == []
    assert film.explain(MIB - 1)["status"] == "renewing"
    slowly.go_on.set()
    assert film.wait_complete(WAIT_S)


@pytest.mark.parametrize(
    ("resolve", "told"),
    [
        (lambda _url, _error: None, "the resolver knows no other"),
        (lambda url, _error: url, "the resolver knows only the same"),
        (lambda _url, _error: "ftp://example.test/film", "is not an http:// or https:// URL"),
    ],
)
def test_without_a_fresh_link_the_origins_answer_stands(
    open_cache: OpenCache,
    links: Links,
    caplog: pytest.LogCaptureFixture,
    resolve: Resolve,
    told: str,
) -> None:
    cache = opened(open_cache, resolve)
    film = half_stored(cache, links.url)
    links.expire()
    with pytest.raises(OriginStatus, match="403"):
        film.wait_for(HALF, SIZE, WAIT_S)
    assert film.state is DownloadState.FAILED
    assert film.ranges == [ByteRange(0, HALF)]
    (line,) = [record.message for record in caplog.records if "not renewed" in record.message]
    assert told in line
    assert "\n" not in line


def test_a_resolver_that_raises_is_told_in_one_line_without_secrets(
    open_cache: OpenCache, links: Links, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cachefsm")

    def broken(url: str, _error: OriginStatus) -> str | None:
        raise KeyError(f"no page\nfor {url}")

    cache = opened(open_cache, broken)
    film = cache.entry(links.url)
    links.expire()
    with pytest.raises(OriginStatus):
        film.wait_for(0, 1, WAIT_S)
    (line,) = [record.message for record in caplog.records if "not renewed" in record.message]
    assert "no page" in line
    assert "sig=" not in caplog.text


def test_links_that_are_useless_again_and_again_end_in_a_failure(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.script(status(403), times=None)
    count = 0

    def another(_url: str, _error: OriginStatus) -> str | None:
        nonlocal count
        count += 1
        return origin.url(f"/film?sig={count}")

    cache = opened(open_cache, another)
    film = cache.entry(origin.url("/film?sig=0"))
    with pytest.raises(OriginStatus, match="403"):
        film.wait_for(0, 1, WAIT_S)
    assert count == RENEWALS


def test_a_question_about_a_whole_file_has_the_link_renewed_too(
    open_cache: OpenCache, links: Links
) -> None:
    cache = opened(open_cache, links.resolve)
    film = cache.entry(links.url)
    assert film.wait_complete(WAIT_S)
    links.expire()
    assert validated(cache, film) == SIZE
    assert len(links.asked) == 1


def test_closing_does_not_wait_for_a_resolver(open_cache: OpenCache, links: Links) -> None:
    asking, go_on = threading.Event(), threading.Event()

    def slowly(_url: str, _error: OriginStatus) -> str | None:
        asking.set()
        assert go_on.wait(WAIT_S)
        return None

    cache = opened(open_cache, slowly)
    film = cache.entry(links.url)
    links.expire()
    film.start()
    assert asking.wait(WAIT_S)
    cache.close()
    go_on.set()
    cache = open_cache(start=False)
    assert cache.entries()[0].state is not DownloadState.FAILED


# -- whether it is the same file ---------------------------------------------------


def elsewhere(origin: Origin, resource: Resource) -> Resolve:
    """Return a resolver that leads to another file, which is *resource*."""
    origin.put("/elsewhere", resource)
    return lambda _url, _error: origin.url("/elsewhere?sig=2")


def proofs(origin: Origin) -> list[str]:
    """Return which ranges were asked for there that had been stored before."""
    asked = [request.range or "" for request in origin.requests if request.path == "/elsewhere"]
    return [range_ for range_ in asked if int(range_[6:].split("-")[0]) < HALF]


def test_a_server_with_another_etag_for_the_same_file_is_believed_after_a_sample(
    open_cache: OpenCache, origin: Origin, links: Links
) -> None:
    cache = opened(open_cache, elsewhere(origin, Resource(SIZE, etag='"other-server"')))
    film = half_stored(cache, links.url)
    links.expire()
    assert fetch(cache, film) == content(0, SIZE)
    assert film.wait_complete(WAIT_S)
    assert film.describe()["generation"] == 0
    told = rows(cache.directory, "SELECT etag, url FROM cache_entries")
    assert told == [('"other-server"', origin.url("/elsewhere?sig=2"))]
    assert len(proofs(origin)) == SAMPLES + 1  # the first: by its validator, then by its bytes


def test_one_connection_proves_the_link_for_all_readers(
    open_cache: OpenCache, origin: Origin, links: Links
) -> None:
    cache = opened(open_cache, elsewhere(origin, Resource(SIZE, etag='"other"')))
    film = half_stored(cache, links.url)
    links.expire()
    hold = origin.script(hold_before_headers(), path="/elsewhere")
    starts = range(HALF, SIZE, MIB)
    readers = [in_thread(fetch, cache, film, start, start + MIB) for start in starts]
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: film.describe()["readers"] == len(readers))
    hold.release()
    for start, reader in zip(starts, readers, strict=True):
        assert reader.result(WAIT_S) == content(start, start + MIB)
    assert film.describe()["generation"] == 0
    assert len(proofs(origin)) == SAMPLES + 1


@pytest.mark.parametrize(
    "other",
    [
        Resource(SIZE, etag='"other"', version=1),
        Resource(SIZE - 1, etag='"other"'),
        Resource(HALF // 2, etag='"other"'),
        Resource(SIZE, etag='W/"weak"'),
        Resource(SIZE, etag=None),
        Resource(SIZE, etag='"other"', accepts_ranges=False),
        Resource(SIZE, etag='"other"', framing="chunked"),
    ],
    ids=["other bytes", "shorter", "much shorter", "weak", "without", "no ranges", "no length"],
)
def test_a_link_that_proves_nothing_begins_the_file_again(
    open_cache: OpenCache, origin: Origin, links: Links, other: Resource
) -> None:
    cache = opened(open_cache, elsewhere(origin, other))
    film = half_stored(cache, links.url)
    links.expire()
    film.start()
    eventually(lambda: film.state is DownloadState.COMPLETE)
    assert fetch(cache, film) == bytes(pattern(other.version)(0, other.size or 0))
    assert film.describe()["generation"] == 1


def test_bytes_that_differ_where_a_sample_was_taken_are_noticed(
    open_cache: OpenCache, origin: Origin, links: Links
) -> None:
    last = HALF - 1

    def one_byte_differs(start: int, stop: int) -> bytes:
        data = bytearray(content(start, stop))
        if start <= last < stop:
            data[last - start] ^= 1
        return bytes(data)

    other = Resource(SIZE, etag='"other"', content=one_byte_differs)
    cache = opened(open_cache, elsewhere(origin, other))
    film = half_stored(cache, links.url)
    links.expire()
    assert film.wait_complete(WAIT_S)
    assert fetch(cache, film, last, last + 1) == one_byte_differs(last, last + 1)


def test_credentials_are_not_taken_to_another_origin(
    open_cache: OpenCache, origin: Origin, links: Links, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = (("Authorization", "Bearer mine"),)
    with Origin() as other:
        other.put("/film", Resource(SIZE))
        cache = opened(open_cache, lambda _url, _error: other.url("/film"))
        entry_id = cache.find_variant(links.url, Terms(secrets=secrets))
        links.expire()
        with pytest.raises(OriginStatus):
            with closing(cache.open_reader(entry_id, terms=Terms(secrets=secrets))) as reader:
                reader.representation()
        assert other.requests == []
    assert "the credentials are not for" in caplog.text


# -- a command as the resolver -----------------------------------------------------


SCRIPT = "import sys; print(sys.argv[1].replace('sig=1', 'sig=2')); print('more')"


def command(script: str, tmp_path: Path) -> str:
    (tmp_path / "resolver.py").write_text(script)
    return f"'{sys.executable}' '{tmp_path / 'resolver.py'}'"


def test_a_command_gives_the_fresh_link(
    open_cache: OpenCache, links: Links, tmp_path: Path
) -> None:
    cache = opened(open_cache, command_resolver(command(SCRIPT, tmp_path)))
    film = half_stored(cache, links.url)
    links.expire()
    assert fetch(cache, film) == content(0, SIZE)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("", "knows no other"),
        ("import sys; sys.exit('first\\nno such page')", "no such page"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
def test_a_command_that_fails_says_why(
    open_cache: OpenCache,
    links: Links,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    script: str,
    told: str,
) -> None:
    cache = opened(open_cache, command_resolver(command(script, tmp_path)))
    film = cache.entry(links.url)
    links.expire()
    with pytest.raises(OriginStatus):
        film.wait_for(0, 1, WAIT_S)
    assert told in caplog.text


def test_what_is_no_command_is_refused(tmp_path: Path) -> None:
    for text in ("", "'", "  ", "/nonexistent"):
        with pytest.raises(UsageError):
            command_resolver(text)
    command = tmp_path / "command"
    command.touch(mode=0o755)
    resolve = command_resolver(str(command))
    command.unlink()
    with pytest.raises(UsageError, match="cannot be run"):
        resolve("http://example.test/", OriginStatus(403))
