"""What people see of entries, and where get -o puts files."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.display import (
    BLOCKS,
    PLAIN,
    file_name,
    format_eta,
    format_percent,
    format_stats,
    range_bar,
    shades,
    show_entry,
    show_list,
)
from cachefsm.errors import StorageError, UsageError
from cachefsm.output import STDOUT, check_output, outputs_for, replaced
from cachefsm.progress import CHECKING, LINE_EVERY_S, REDRAW_S, LogAboveBar, Progress, progress_line

MIB = 1 << 20


def facts(**changes: Any) -> dict[str, Any]:
    """A download under way, as ``/-/entries`` describes it."""
    return {
        "id": 7,
        "url": "https://example.org/films/film.mkv?…",
        "state": "downloading",
        "reason": None,
        "since": 0.0,
        "total_size": 8 * MIB,
        "downloaded_bytes": 3 * MIB,
        "ranges": [[0, 2 * MIB], [6 * MIB, 7 * MIB]],
        "playable": False,
        "rate_bytes_s": MIB,
        "readers": 1,
        "asked_by": ["reader"],
        "pinned": False,
        "created_at": 0.0,
        "last_accessed_at": 0.0,
        "access_count": 2,
        "content_type": "video/x-matroska",
        **changes,
    }


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


# -- pictures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "total", "picture"),
    [
        ([], 80, "........"),
        ([], None, "........"),
        ([], 0, "########"),
        ([(0, 80)], 80, "########"),
        ([(0, 20), (60, 70)], 80, "##....#."),
        ([(0, 1)], 80, "-......."),
        ([(0, 79)], 80, "#######+"),
        ([(5, 75)], 80, "=######="),
        ([(0, 1), (79, 80)], 80, "-......-"),
        ([(0, 40)], None, "####...."),
        ([(0, 1)], 3, "###....."),
        ([(0, 1), (2, 3), (4, 5), (9, 11)], 80, "=-......"),
    ],
)
def test_a_bar_shows_where_the_bytes_are(
    ranges: list[tuple[int, int]], total: int | None, picture: str
) -> None:
    assert range_bar(ranges, total, 8, PLAIN) == picture


@given(
    st.lists(st.integers(0, 1000), unique=True, max_size=20),
    st.integers(1, 1000),
    st.integers(1, 90),
)
def test_a_bar_never_claims_what_is_not_there(cuts: list[int], total: int, width: int) -> None:
    cuts = sorted(cut for cut in cuts if cut <= total)
    runs = list(zip(cuts[::2], cuts[1::2], strict=False))
    bar = range_bar(runs, total, width)
    assert len(bar) == width
    stored = {offset for start, stop in runs for offset in range(start, stop)}
    for index, mark in enumerate(bar):
        part = range(
            index * total // width, max((index + 1) * total // width, index * total // width + 1)
        )
        there = stored.intersection(part)
        assert (mark == BLOCKS[0]) == (not there)
        assert (mark == BLOCKS[-1]) == (len(there) == len(part))


def test_percent_is_100_only_when_all_is_there() -> None:
    assert format_percent(facts(downloaded_bytes=999_999, total_size=1_000_000)) == "99%"
    assert format_percent(facts(downloaded_bytes=0, total_size=0)) == "100%"
    assert format_percent(facts(total_size=None)) == "-"


def test_times_left_are_short() -> None:
    assert [format_eta(s) for s in (0, 38.4, 60, 3723, 1e9)] == [
        "0:00",
        "0:38",
        "1:00",
        "1:02:03",
        "",
    ]


def test_a_list_cuts_urls_and_nothing_else() -> None:
    entries = [facts(), facts(id=123, state="not_started", total_size=None, pinned=True)]
    whole = show_list(entries, None)
    assert whole == [
        " ID  STATE                 HERE   SIZE  URL",
        "  7  downloading            37%  8 MiB  https://example.org/films/film.mkv?…",
        "123  not started, pinned  3 MiB      ?  https://example.org/films/film.mkv?…",
    ]
    cut = show_list(entries, 70)
    assert max(map(len, cut)) == 70
    assert [line[:41] for line in cut] == [line[:41] for line in whole]
    assert cut[1].startswith("  7  downloading            37%  8 MiB  https://ex")
    assert cut[1].endswith("film.mkv?…")


def test_an_entry_is_shown_with_its_picture() -> None:
    shown = "\n".join(show_entry(facts(), 61, PLAIN))
    assert f"\n{'':11}############........................######......\n" in shown
    assert "bytes 0-2097151, 6291456-7340031" in shown
    assert "3 MiB of 8 MiB, 37%" in shown
    many = show_entry(facts(ranges=[[n, n + 1] for n in range(0, 20, 2)]), 80, PLAIN)
    assert "bytes 0-0, 2-2, 4-4, 6-6, and 6 more" in many[5]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a/film.mkv?x=/y", "film.mkv"),
        ("https://h/a%20b.mkv", "a b.mkv"),
        ("https://h/..%2f..%2fetc%2fpasswd", ".._.._etc_passwd"),
        ("https://h/%2e%2e", "h"),
        ("https://h/", "h"),
        ("https://h", "h"),
        ("https://h/a%0a%1b[31m", "a__[31m"),
        ("https://h/" + "x" * 300, "x" * 200),
        ("https://h/%ff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_file_names_are_safe_to_create(url: str, name: str) -> None:
    assert file_name(url) == name


def test_what_happens_now_is_told_if_it_does() -> None:
    stats = {
        "directory": "/c",
        "server": None,
        "entries": 0,
        "states": {},
        "bytes_stored": 0,
        "bytes_pinned": 0,
        "max_size": None,
        "bytes_free": None,
        "bytes_from_origin": 0,
        "readers": 1,
        "streams": 2,
    }
    assert format_stats(stats)[-1] == "now        1 reader, 2 connections to origins"
    assert not any("now" in line for line in format_stats({**stats, "readers": 0, "streams": 0}))


# -- progress ----------------------------------------------------------------------


def test_a_progress_line_fits_and_says_how_long_it_takes() -> None:
    assert progress_line(facts(), 100, PLAIN) == (
        "film.mkv  ##########....................#####.....   37%       3 MiB of 8 MiB"
        "       1 MiB/s   0:05"
    )
    for width in range(20, 140):
        assert len(progress_line(facts(), width, PLAIN)) <= width
    unknown = progress_line(facts(total_size=None), 100, PLAIN)
    assert "3 MiB so far" in unknown
    paused = progress_line(facts(state="paused", reason="person", rate_bytes_s=0), 120, PLAIN)
    assert paused.endswith("paused (by a person)")


def test_a_look_at_stored_bytes_has_a_rate_and_an_end_too() -> None:
    line = progress_line(facts(state=CHECKING, ranges=[[0, 3 * MIB]]), 100, PLAIN)
    assert line.startswith("film.mkv  ###############....")
    assert line.endswith("37%       3 MiB of 8 MiB       1 MiB/s   0:05")


def test_a_terminal_gets_a_bar_that_is_redrawn_and_taken_away() -> None:
    terminal, now = Terminal(), [0.0]
    with Progress(terminal, clock=lambda: now[0]) as progress:
        progress.update(facts())
        progress.update(facts())  # too soon
        now[0] += REDRAW_S
        progress.update(facts())
        record = logging.LogRecord("x", logging.WARNING, "", 0, "it %s", ("rains",), None)
        LogAboveBar(progress).emit(record)
        now[0] += REDRAW_S
        progress.update(facts())
    pieces = terminal.getvalue().split("\r")
    assert pieces[0] == ""
    assert [piece[:8] for piece in pieces[1:3]] == ["film.mkv"] * 2
    assert pieces[3] == "\x1b[Kit rains\n"
    assert pieces[-1] == "\x1b[K"


def test_a_file_gets_a_line_now_and_then() -> None:
    log, now = io.StringIO(), [0.0]
    with Progress(log, clock=lambda: now[0]) as progress:
        progress.update(facts())
        assert log.getvalue() == ""
        now[0] += LINE_EVERY_S
        progress.update(facts())
        progress.update(facts())
    assert log.getvalue().count("\n") == 1
    assert "\r" not in log.getvalue()
    assert "37%" in log.getvalue()


def test_marks_are_those_that_the_stream_can_encode() -> None:
    for encoding, marks in (("utf-8", BLOCKS), ("ascii", PLAIN), ("latin-1", PLAIN)):
        assert shades(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) == marks


# -- files -------------------------------------------------------------------------


def test_outputs(tmp_path: Path) -> None:
    one, two = "http://h/a", "http://h/b/a"
    assert outputs_for([one, two], None) == [None, None]
    assert outputs_for([one], "-") == [STDOUT]
    assert outputs_for([one], str(tmp_path / "x")) == [tmp_path / "x"]
    assert outputs_for([one], str(tmp_path)) == [tmp_path / "a"]
    for urls, output in (
        ([one, two], "-"),
        ([one, two], str(tmp_path)),
        ([one, two], str(tmp_path / "x")),
        ([one], f"{tmp_path}/x/"),
    ):
        with pytest.raises(UsageError):
            outputs_for(urls, output)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "film"
    path.write_bytes(b"old")

    def give_up() -> None:
        with replaced(path) as write:
            write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert path.read_bytes() == b"old"
    with replaced(path) as write:
        write(b"new")
        write(b"er")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_pointing_and_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    with replaced(link) as write:
        write(b"x")
    assert link.is_symlink()
    assert target.read_bytes() == b"x"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with replaced(pipe) as write:
            write(b"x")
        assert os.read(reader, 9) == b"x"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_known_before_and_told_after(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "x"):
        with pytest.raises(StorageError, match=f"cannot write {path}"):
            check_output(path)
    check_output(tmp_path / "x")
    check_output(Path("/dev/null"))
    with pytest.raises(StorageError, match="No space left"), replaced(Path("/dev/full")) as write:
        write(b"x")
