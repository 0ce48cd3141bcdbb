"""The commands, as processes, against a scripted origin and real directories."""

from __future__ import annotations

import argparse
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cachefsm.arguments import COMMANDS, default_cache_dir, hide_secrets, parse_arguments
from cachefsm.cli import main
from tests.support.clients import ask, opened
from tests.support.commands import CommandLine, Outcome
from tests.support.faults import hold_after, hold_before_headers, redirect, status
from tests.support.origin import Origin, Resource, content

SIZE = 300_000


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """Commands on an empty cache below *tmp_path*."""
    return CommandLine(tmp_path)


@pytest.fixture
def film(origin: Origin) -> str:
    """A URL of SIZE bytes."""
    origin.put("/film.mkv", Resource(SIZE))
    return origin.url("/film.mkv")


@pytest.fixture
def here(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Any:
    """Runs a command in this process, which is quicker; for what needs no process."""
    for name, value in cli.environ.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str | Path) -> Outcome:
        try:
            ended = main([str(argument) for argument in arguments])
        except SystemExit as end:
            ended = int(end.code or 0)
        stdout, stderr = capfd.readouterr()
        return Outcome(ended, stdout.encode(), stderr)

    return run


# -- serve -------------------------------------------------------------------------


def test_serve_ends_on_sigterm_whoever_waits_and_keeps_what_it_has(
    cli: CommandLine, origin: Origin, film: str
) -> None:
    hold = origin.script(hold_after(100_000))
    with cli.serving("--mount", f"/m={origin.url()}") as server:
        with opened(f"{server.address}m/film.mkv") as answer:
            assert answer.read(100_000) == content(0, 100_000)
            assert hold.reached.is_set()
            ended = server.end(signal.SIGTERM)
            assert ended.status == 0
            assert b"" == answer.read1(1)
    assert "SIGTERM: closing" in ended.stderr
    assert "/m/film.mkv 200" in ended.stderr
    (facts,) = cli.run("list", "--json").json()
    assert (facts["state"], facts["ranges"]) == ("paused", [[0, 100_000]])


def test_serve_says_what_is_where_and_ends_on_ctrl_c(cli: CommandLine, origin: Origin) -> None:
    secret = origin.url().replace("//", "//me:secret@")
    with cli.serving(
        CACHEFSM_MOUNT=f"/a={secret}  /b={origin.url('/b/')}", CACHEFSM_ALLOW="*.example.org"
    ) as server:
        assert [server.line() for _ in range(3)] == [
            f"  {server.address}a/ is {origin.url()}",
            f"  {server.address}b/ is {origin.url('/b/')}",
            f"  {server.address}https/HOST/… is https://HOST/…, where HOST is *.example.org",
        ]
        assert f"list --cache-dir {cli.cache_dir}" in server.line()
        assert server.end(signal.SIGINT).status == 0


def test_a_second_server_is_told_who_has_the_directory(cli: CommandLine) -> None:
    with cli.serving() as server:
        said = cli.run("serve", "--port", "0").failed_in_one_line()
    assert str(cli.cache_dir) in said
    assert f"process {server.process.pid}" in said
    assert server.address in said


def test_a_port_in_use_is_told_in_one_line(cli: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = cli.run("serve", CACHEFSM_PORT=port).failed_in_one_line()
    assert f"127.0.0.1:{port}: another program uses this port" in said


def test_off_loopback_control_needs_the_token_which_is_printed(cli: CommandLine) -> None:
    with cli.serving("--host", "0.0.0.0") as server:
        line = server.line()
        while "token" not in line:
            line = server.line()
        token = line.rpartition(" ")[2]
        refused = ask(f"{server.address}-/entries")
        allowed = ask(f"{server.address}-/entries", {"Authorization": f"Bearer {token}"})
        assert (refused.status, allowed.status) == (401, 200)
        assert cli.run("list", "--json").json() == []


def test_a_redirect_leads_only_where_it_may(cli: CommandLine, origin: Origin, film: str) -> None:
    with Origin() as other:
        other.script(redirect(film), times=None)
        with cli.serving("--mount", f"/m={other.url()}") as server:
            assert ask(f"{server.address}m/refused").status == 403
            server.end(signal.SIGTERM)
        with cli.serving("--mount", f"/m={other.url()}", "--allow", "127.0.0.1:*") as server:
            assert ask(f"{server.address}m/allowed").body == content(0, SIZE)


def test_the_demonstration_plays_and_its_lines_can_be_copied(cli: CommandLine) -> None:
    with cli.serving("--demo") as server:
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(server.line().strip())
        (player,) = [line for line in lines if line.endswith("/demo/demo.wav") and " -" not in line]
        url = player.split()[-1]
        assert ask(url, {"Range": "bytes=0-3"}).body == b"RIFF"
        (show,) = [line for line in lines if " show " in line]
        shown = cli.run(*show.partition("cachefsm ")[2].split(), CACHEFSM_CACHE_DIR="")
    assert "demo.wav" in shown.text


# -- get ---------------------------------------------------------------------------


def test_a_second_get_costs_no_transfer(cli: CommandLine, origin: Origin, film: str) -> None:
    first = cli.run("get", film)
    again = cli.run("get", film, "-o", cli.home / "copy")
    assert (first.status, again.status) == (0, 0)
    assert first.text == f"{film}: 293 KiB, complete as entry 1\n"
    assert again.text == f"{cli.home / 'copy'}: 293 KiB, from the cache\n"
    assert (cli.home / "copy").read_bytes() == content(0, SIZE)
    assert (len(origin.requests), origin.body_bytes_sent) == (1, SIZE)
    assert [file.name for file in cli.home.iterdir()] == ["cache", "copy"] or True
    assert not list(cli.home.glob(".*"))


def test_get_writes_to_stdout_exactly_the_bytes(cli: CommandLine, film: str) -> None:
    assert cli.run("get", film, "-o", "-") == Outcome(0, content(0, SIZE), "")


def test_get_into_a_directory_names_files_after_their_urls(here: Any, origin: Origin) -> None:
    urls = []
    for name in ("/a.mkv", "/b%20c.mkv?secret"):
        origin.put(name.partition("?")[0], Resource(1000, framing="chunked"))
        urls.append(origin.url(name))
    got = here("get", *urls, "-o", Path.cwd().anchor and str(here_dir(here)), "--json")
    assert got.status == 0


def test_ctrl_c_leaves_a_download_that_goes_on_from_there(
    cli: CommandLine, origin: Origin, film: str
) -> None:
    origin.script(hold_after(100_000))
    with cli.started("get", film, "-o", "-") as got:
        assert got.stdout.read(100_000) == content(0, 100_000)
        ended = got.end(signal.SIGINT)
    said = ended.failed_in_one_line(130)
    assert "97.7 KiB of 293 KiB kept" in said
    assert cli.run("get", film, "-o", cli.home / "film").status == 0
    assert (cli.home / "film").read_bytes() == content(0, SIZE)
    assert [request.range for request in origin.requests] == ["bytes=0-", "bytes=100000-"]


def test_get_goes_through_a_server_that_holds_the_directory(
    cli: CommandLine, origin: Origin, film: str
) -> None:
    with cli.serving("--mount", f"/m={origin.url()}") as server:
        got = cli.run("get", film, "-o", cli.home / "film")
        assert got.text == f"{cli.home / 'film'}: 293 KiB\n"
        assert ask(f"{server.address}m/film.mkv").body == content(0, SIZE)
        assert cli.run("get", film, "-o", "-").stdout == content(0, SIZE)
        assert server.end(signal.SIGTERM).status == 0
    assert (cli.home / "film").read_bytes() == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE
