"""The soak's own machinery: it knows right from wrong, and a few seconds of it find nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache
from tests.soak.clients import MOUNT, Client, Door
from tests.soak.judge import Asked, Judgement, Span, Wrong
from tests.soak.lives import Examiner
from tests.soak.report import Report
from tests.soak.run import Options, soak
from tests.soak.world import REFUSAL, Kind, Subject, World
from tests.support.caches import WAIT_S
from tests.support.origin import Origin

SIZE = 1000
FILM = Kind("film", SIZE)
BARE = Kind("bare", SIZE, etag=None)
Fields = list[tuple[str, str]]


def _subject(kind: Kind = FILM) -> Subject:
    """Return one whose origin has version 1 now, and had version 0."""
    subject = Subject(kind.name, kind, seed=1)
    subject.change(SIZE + 100)
    return subject


def _bytes(subject: Subject, number: int, start: int = 0, stop: int = 1 << 20) -> bytes:
    return subject.allowed(0.0)[number].read(start, stop)


def _labels(subject: Subject, number: int, length: int | None = None) -> Fields:
    version = subject.allowed(0.0)[number]
    fields = [] if version.etag is None else [("ETag", version.etag)]
    return [*fields, ("Content-Length", str(version.size if length is None else length))]


def _judge(asked: Asked, status: int, fields: Fields, body: bytes, *, whole: bool = True) -> None:
    judgement = Judgement(asked, status, fields)
    for start in range(0, len(body), 300):
        judgement.take(body[start : start + 300])
    if whole:
        judgement.end()


def _asked(subject: Subject, **how: Any) -> Asked:
    return Asked(subject, time.monotonic(), **how)


# -- what is right -----------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", [FILM, BARE])
def test_all_of_any_version_that_the_origin_had_is_right(kind: Kind, number: int) -> None:
    subject = _subject(kind)
    _judge(_asked(subject), 200, _labels(subject, number), _bytes(subject, number))


@pytest.mark.parametrize(
    ("span", "start", "stop"),
    [
        (Span(0, None), 0, SIZE),
        (Span(10, 19), 10, 20),
        (Span(990, 5000), 990, SIZE),
        (Span(None, 7), SIZE - 7, SIZE),
        (Span(None, 5000), 0, SIZE),
    ],
)
def test_the_part_that_was_asked_for_is_right(span: Span, start: int, stop: int) -> None:
    subject = _subject()
    told = ("Content-Range", f"bytes {start}-{stop - 1}/{SIZE}")
    fields = [*_labels(subject, 0, stop - start), told]
    _judge(_asked(subject, span=span), 206, fields, _bytes(subject, 0, start, stop))


def test_what_came_before_a_cut_is_right() -> None:
    subject = _subject()
    _judge(_asked(subject), 200, _labels(subject, 0), _bytes(subject, 0, 0, 400), whole=False)


@pytest.mark.parametrize(
    ("how", "status", "fields", "body"),
    [
        ({}, 502, [("Content-Length", "5")], b"gone\n"),
        ({"span": Span(SIZE + 100, None)}, 416, [("Content-Range", "bytes */1100")], b"outside\n"),
        ({"if_none_match": '"film-1"'}, 304, [("ETag", '"film-1"')], b""),
        ({"if_match": '"film-1"'}, 412, [("ETag", '"film-0"')], b""),
        ({"method": "HEAD"}, 200, [("ETag", '"film-0"'), ("Content-Length", "1000")], b""),
    ],
    ids=["error", "unsatisfied", "unmodified", "failed precondition", "head"],
)
def test_an_answer_without_content_is_right(
    how: dict[str, Any], status: int, fields: Fields, body: bytes
) -> None:
    _judge(_asked(_subject(), **how), status, fields, body)


def test_where_the_origin_broke_off_is_an_end_if_nothing_else_tells_it() -> None:
    subject = _subject(Kind("closing", SIZE, etag=None, framing="close"))
    judgement = Judgement(_asked(subject), 200, [], sent_bodies=lambda: {400})
    judgement.take(_bytes(subject, 0, 0, 400))
    judgement.end()


# -- what is wrong -----------------------------------------------------------------


def _flipped(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


def test_one_wrong_byte_is_found_and_explained() -> None:
    subject = _subject()
    data = _flipped(_bytes(subject, 0))
    with pytest.raises(Wrong, match="right up to 700;"):
        _judge(_asked(subject), 200, _labels(subject, 0), data)


def test_bytes_of_one_version_under_the_label_of_another_are_wrong() -> None:
    subject = _subject()
    with pytest.raises(Wrong, match="wrong bytes"):
        _judge(_asked(subject), 200, _labels(subject, 0), _bytes(subject, 1, 0, SIZE))


def test_two_versions_in_one_body_are_wrong() -> None:
    subject = _subject(BARE)
    mixed = _bytes(subject, 0, 0, 500) + _bytes(subject, 1, 500, SIZE)
    with pytest.raises(Wrong, match="wrong bytes"):
        _judge(_asked(subject), 200, _labels(subject, 0), mixed)


@pytest.mark.parametrize("kind", [FILM, BARE])
def test_a_body_that_ends_early_and_says_that_it_is_whole_is_wrong(kind: Kind) -> None:
    subject = _subject(kind)
    labels = [field for field in _labels(subject, 0) if field[0] == "ETag"]
    with pytest.raises(Wrong, match="the body ended at 999"):
        _judge(_asked(subject), 200, labels, _bytes(subject, 0, 0, 999))


def test_a_version_older_than_one_that_was_shown_before_is_wrong() -> None:
    subject = _subject()
    subject.shown(1, time.monotonic())
    with pytest.raises(Wrong, match="no version that is allowed"):
        Judgement(_asked(subject), 200, [("ETag", '"film-0"'), ("Content-Length", "1000")])


def test_a_version_that_was_gone_when_the_entry_was_removed_is_wrong(origin: Origin) -> None:
    subject = _subject()
    subject.put(origin)
    subject.removed(subject.serving)
    with pytest.raises(Wrong, match="no version that is allowed"):
        Judgement(_asked(subject), 200, [("ETag", '"film-0"'), ("Content-Length", "1000")])


_ETAG = ("ETag", '"film-0"')


@pytest.mark.parametrize(
    ("how", "status", "fields"),
    [
        ({}, 200, [_ETAG, ("Content-Length", "999")]),
        ({}, 200, [("ETag", '"film-7"'), ("Content-Length", "1000")]),
        ({}, 200, [("Content-Length", "1000")]),
        ({}, 200, [_ETAG, _ETAG, ("Content-Length", "1000")]),
        ({}, 206, [_ETAG, ("Content-Range", "bytes 0-9/1000"), ("Content-Length", "10")]),
        ({"span": Span(0, 9)}, 206, [_ETAG, ("Content-Length", "10")]),
        (
            {"span": Span(0, 9)},
            206,
            [_ETAG, ("Content-Range", "bytes 0-8/1000"), ("Content-Length", "9")],
        ),
        (
            {"span": Span(0, 9)},
            206,
            [_ETAG, ("Content-Range", "bytes 0-9/1100"), ("Content-Length", "10")],
        ),
        (
            {"span": Span(0, 9), "if_range": '"film-1"'},
            206,
            [_ETAG, ("Content-Range", "bytes 0-9/1000"), ("Content-Length", "10")],
        ),
        ({"span": Span(0, 9)}, 416, [("Content-Range", "bytes */1000")]),
        ({"span": Span(SIZE, None)}, 416, [("Content-Range", "bytes */777")]),
        ({"if_none_match": '"film-1"'}, 304, [_ETAG]),
        ({}, 412, [_ETAG]),
        ({}, 501, []),
    ],
)
def test_a_head_that_contradicts_the_truth_or_the_question_is_wrong(
    how: dict[str, Any], status: int, fields: Fields
) -> None:
    with pytest.raises(Wrong):
        Judgement(_asked(_subject(), **how), status, fields)


@pytest.mark.parametrize("text", [b"", b"two\nlines\n", b"no end of line", b"\n"])
def test_an_error_that_is_not_one_line_is_wrong(text: bytes) -> None:
    with pytest.raises(Wrong, match="not one plain line"):
        _judge(_asked(_subject()), 502, [("Content-Length", str(len(text)))], text)


def test_a_500_is_the_origins_or_wrong() -> None:
    _judge(_asked(_subject()), 500, [("Content-Length", str(len(REFUSAL)))], REFUSAL)
    own = b"an internal error; see the log\n"
    with pytest.raises(Wrong, match="the proxy's own"):
        _judge(_asked(_subject()), 500, [("Content-Length", str(len(own)))], own)


def test_a_body_to_head_is_wrong() -> None:
    subject = _subject()
    with pytest.raises(Wrong, match="a body where there is none"):
        _judge(_asked(subject, method="HEAD"), 200, _labels(subject, 0), b"!")


# -- those who look ----------------------------------------------------------------


def _world(origin: Origin) -> tuple[World, Subject]:
    world = World(origin, seed=1, kinds=[FILM])
    return world, world.subjects[0]


@pytest.mark.parametrize("spoil", [bytes, _flipped], ids=["right", "wrong"])
def test_a_client_reports_a_proxy_that_serves_something_wrong(
    origin: Origin, spoil: Callable[[bytes], bytes]
) -> None:
    world, film = _world(origin)
    lying = origin.find(film.path)
    assert lying is not None
    read = film.current.read
    origin.put(MOUNT + film.path, replace(lying, content=lambda *span: spoil(read(*span))))
    report = Report(seed=1)
    client = Client(1, world, Door(), report, report.over)
    assert client.has_whole(origin.url("/"), film) is (spoil is bytes)
    assert bool(report.findings) is (spoil is not bytes)
    assert report.over.is_set() is (spoil is not bytes)


@pytest.fixture
def left(origin: Origin, tmp_path: Path) -> Path:
    """A cache directory that holds a film, closed."""
    _, film = _world(origin)
    with Cache(tmp_path / "cache") as cache:
        assert cache.entry(origin.url(film.path)).wait_complete(WAIT_S)
    return tmp_path / "cache"


def _findings(origin: Origin, left: Path, log: str = "") -> str:
    report, file = Report(seed=1), left.parent / "log"
    file.write_text(log)
    world = World(origin, seed=1, kinds=[FILM])
    Examiner(left, world, report).examine(file, killed=True)
    return "\n".join(report.findings)


def test_what_a_process_left_is_right_if_it_is(origin: Origin, left: Path) -> None:
    assert _findings(origin, left, "all is well\n") == ""


def test_a_wrong_byte_in_a_file_is_found(origin: Origin, left: Path) -> None:
    (file,) = (left / "content").glob("*/*")
    file.write_bytes(_flipped(file.read_bytes()))
    assert "other bytes in 0-1000" in _findings(origin, left)


def test_an_error_in_the_log_is_found(origin: Origin, left: Path) -> None:
    log = "2026-11-22 19:43:21,479 ERROR cachefsm.loop a round failed\n"
    assert "a round failed" in _findings(origin, left, log)


def test_a_few_seconds_find_nothing() -> None:
    big = ("film", "strong", "dated", "both", "shelf")
    report, totals = soak(Options(seconds=3.0, seed=1, clients=4, without=big))
    assert report.findings == []
    assert report.counts["requests"] > 0
    assert report.counts["bytes served"] > 0
    assert report.counts["kills"] + report.counts["terms"] > 1
    assert "wrong: 0" in totals
