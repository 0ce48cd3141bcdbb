"""The commands, as people run them, against a scripted origin and real directories."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from cachefsm import Cache
from cachefsm.arguments import COMMANDS, default_cache_dir, parse_arguments
from cachefsm.cli import main
from cachefsm.dirlock import DirectoryLock, Holder
from cachefsm.reader import Reader
from cachefsm.scheduler import Limits
from cachefsm.serve import limits_from
from cachefsm.settings import hide_secrets
from cachefsm.storage import content_name
from cachefsm.units import format_size
from tests.support.caches import eventually, recorded
from tests.support.clients import ask, opened
from tests.support.commands import CommandLine, Outcome
from tests.support.damage import flip, truncate
from tests.support.faults import (
    cut_after,
    hold_after,
    hold_before_headers,
    redirect,
    stall_after,
    status,
)
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

SIZE = 300_000  # 293 KiB

Run = Callable[..., Outcome]


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
) -> Run:
    """Runs a command in this process: ten times as quick, where signals don't matter."""
    for name in ("HOME", "XDG_CACHE_HOME", "CACHEFSM_CACHE_DIR"):
        monkeypatch.setenv(name, cli.environ[name])

    def run(*arguments: str | int | Path) -> Outcome:
        try:
            ended = main([str(argument) for argument in arguments])
        except SystemExit as end:
            ended = int(end.code or 0)
        stdout, stderr = capfd.readouterr()
        return Outcome(ended, stdout.encode(), stderr)

    return run


# -- serve -------------------------------------------------------------------------


def test_serve_ends_on_sigterm_whoever_waits_and_keeps_what_it_has(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    origin.script(hold_after(100_000))
    with cli.serving("--mount", f"/m={origin.url()}") as server:
        with opened(f"{server.address}m/film.mkv") as answer:
            assert answer.read(100_000) == content(0, 100_000)
            ended = server.end(signal.SIGTERM)
    assert ended.status == 0
    assert "GET /m/film.mkv 200 " in ended.stderr
    assert "begin initializing -> downloading" in ended.stderr
    assert "SIGTERM: closing" in ended.stderr
    (facts,) = here("list", "--json").json()
    assert (facts["state"], facts["ranges"]) == ("paused", [[0, 100_000]])


def test_serve_says_what_is_where_without_secrets_and_ends_on_ctrl_c(
    cli: CommandLine, origin: Origin
) -> None:
    secret = origin.url().replace("//", "//me:secret@")
    with cli.serving(
        CACHEFSM_MOUNT=f"/a={secret}  /b={origin.url('/b/')}", CACHEFSM_ALLOW="*.example.org"
    ) as server:
        assert [server.line() for _ in range(3)] == [
            f"  {server.address}a/ is {origin.url()}",
            f"  {server.address}b/ is {origin.url('/b/')}",
            f"  {server.address}https/HOST/… is https://HOST/…, where HOST is *.example.org",
        ]
        assert server.line() == f"  see what is stored, in a browser: {server.address}-/"
        assert server.line().endswith(f"cachefsm list --cache-dir {cli.cache_dir}")
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


def test_off_loopback_control_needs_the_token_which_is_printed(cli: CommandLine, here: Run) -> None:
    with cli.serving("--host", "0.0.0.0") as server:
        while "token" not in (line := server.line()):
            assert line
        bearer = {"Authorization": f"Bearer {line.rpartition(' ')[2]}"}
        assert server.line() == (
            "  no origin is mounted or allowed: add --mount /name=https://origin/base/"
        )
        page = f"{server.address}-/"
        assert (
            server.line()
            == f"  see what is stored, in a browser: {page} (its password is the token)"
        )
        assert ask(f"{page}entries").status == 401
        assert ask(f"{page}entries", bearer).status == 200
        assert here("list", "--json").json() == []


def test_a_redirect_leads_only_where_it_may(cli: CommandLine, origin: Origin, film: str) -> None:
    with Origin() as other:
        other.script(redirect(film), times=None)
        with cli.serving("--mount", f"/m={other.url()}") as server:
            assert ask(f"{server.address}m/refused").status == 403
            assert not origin.requests
            server.end(signal.SIGTERM)
        with cli.serving("--mount", f"/m={other.url()}", "--allow", "127.0.0.1:*") as server:
            assert ask(f"{server.address}m/allowed").body == content(0, SIZE)


def test_a_server_takes_up_what_a_person_asked_for_though_no_mount_names_it(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    origin.script(hold_after(1000))
    _leave_paused(cli, film)
    with cli.serving():
        assert here("get", film).status == 0
    assert [request.range for request in origin.requests] == ["bytes=0-", "bytes=1000-299999"]


@pytest.mark.parametrize("look", ["never", "always"])
def test_a_server_looks_at_what_it_serves_as_it_is_told(
    cli: CommandLine, here: Run, origin: Origin, film: str, look: str
) -> None:
    here("get", film)
    flip(recorded(cli.cache_dir).file, [5])
    with cli.serving("--mount", f"/m={origin.url()}", "--verify-reads", look) as server:
        served = ask(f"{server.address}m/film.mkv").body
    assert (served == content(0, SIZE)) == (look == "always")
    assert len(origin.requests) == (2 if look == "always" else 1)


def test_a_server_looks_for_damage_in_the_background_if_it_is_told(
    cli: CommandLine, here: Run, film: str
) -> None:
    here("get", film)
    flip(recorded(cli.cache_dir).file, [5])
    with cli.serving(CACHEFSM_SCRUB_RATE="1G"):
        eventually(lambda: here("show", 1, "--json").json()["ranges"] == [])


def test_a_server_makes_as_many_connections_as_it_is_told() -> None:
    options = parse_arguments(["serve", "--connections", "2", "--connections-per-host=40"], {})
    limits = limits_from(options)
    assert (limits.per_entry, limits.per_host, limits.total) == (2, 40, 40)
    limits = limits_from(parse_arguments(["serve"], {}))
    assert limits == Limits()


def test_the_demonstration_plays_and_its_lines_can_be_copied(cli: CommandLine, here: Run) -> None:
    with cli.serving("--demo") as server:
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(server.line().strip())
        song = next(line.split()[-1] for line in lines if line.endswith("/demo/demo.wav"))
        assert ask(song, {"Range": "bytes=0-3"}).body == b"RIFF"
        show = next(line.split("cachefsm ")[1] for line in lines if " show " in line)
        assert "/demo.wav" in here(*show.split()).text


# -- get and prefetch --------------------------------------------------------------


def test_a_second_get_costs_no_transfer(here: Run, origin: Origin, film: str) -> None:
    first = here("get", film)
    again = here("get", film)
    assert first == Outcome(0, f"{film}: 293 KiB, complete as entry 1\n".encode(), "")
    assert again == Outcome(0, f"{film}: 293 KiB, already complete as entry 1\n".encode(), "")
    assert (len(origin.requests), origin.body_bytes_sent) == (1, SIZE)


def test_get_writes_the_exact_bytes_and_nothing_else(
    cli: CommandLine, here: Run, film: str
) -> None:
    file = cli.home / "out.mkv"
    file.write_bytes(b"what was there before")
    got = here("get", film, "-o", file)
    assert got == Outcome(0, f"{file}: 293 KiB\n".encode(), "")
    assert file.read_bytes() == content(0, SIZE)
    assert sorted(path.name for path in cli.home.iterdir()) == ["cache", "out.mkv"]
    assert cli.run("get", film, "-o", "-") == Outcome(0, content(0, SIZE), "")
    assert here("get", film, "-o", "/dev/null").status == 0
    assert Path("/dev/null").is_char_device()


def test_get_names_files_in_a_directory_after_their_urls(
    cli: CommandLine, here: Run, origin: Origin
) -> None:
    origin.put("/a.mkv", Resource(1000, framing="chunked"))
    origin.put("/d/b%20c.mkv", Resource(2000))
    got = here("get", origin.url("/a.mkv"), origin.url("/d/b%20c.mkv?sig=secret"), "-o", cli.home)
    assert got.text == f"{cli.home}/a.mkv: 1000 B\n{cli.home}/b c.mkv: 2 KiB\n"
    assert (cli.home / "a.mkv").read_bytes() == content(0, 1000)
    assert (cli.home / "b c.mkv").read_bytes() == content(0, 2000)


def test_one_url_that_fails_does_not_stop_the_others(here: Run, origin: Origin, film: str) -> None:
    got = here("get", origin.url("/gone?sig=secret"), film, "--json")
    said = got.failed_in_one_line()
    assert said == f"cachefsm: {origin.url('/gone?…')}: the origin answered 404\n"
    assert [facts["url"] for facts in got.json()] == [film]


def test_ctrl_c_leaves_a_download_that_goes_on_from_there(
    cli: CommandLine, origin: Origin, film: str
) -> None:
    origin.script(hold_after(100_000))
    with cli.started("get", film, "-o", "-") as got:
        assert got.stdout.read(100_000) == content(0, 100_000)
        ended = got.end(signal.SIGINT)
    said = ended.failed_in_one_line(130)
    assert "97.7 KiB of 293 KiB kept as entry 1" in said
    assert cli.run("get", film, "-o", cli.home / "film").status == 0
    assert (cli.home / "film").read_bytes() == content(0, SIZE)
    assert [request.range for request in origin.requests] == ["bytes=0-", "bytes=100000-299999"]


def test_get_goes_through_a_server_that_holds_the_directory(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    with cli.serving("--mount", f"/m={origin.url()}") as server:
        file = cli.home / "film"
        assert here("get", film, "-o", file).text == f"{file}: 293 KiB\n"
        assert file.read_bytes() == content(0, SIZE)
        assert ask(f"{server.address}m/film.mkv").body == content(0, SIZE)
        assert cli.run("get", film, "-o", "-").stdout == content(0, SIZE)
        missing = here("get", origin.url("/gone"), "-o", file).failed_in_one_line()
        assert missing == f"cachefsm: {origin.url('/gone')}: the origin answered 404\n"
        assert server.end(signal.SIGTERM).status == 0
    assert file.read_bytes() == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE


def test_a_get_goes_on_alone_when_the_one_that_held_the_directory_ends(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    origin.put("/other", Resource(SIZE))
    holds = [origin.script(hold_after(1000), path=path) for path in ("/film.mkv", "/other")]
    with cli.started("get", film) as first:
        assert holds[0].reached.wait(10)
        with cli.started("get", origin.url("/other"), "-o", cli.home / "other") as second:
            assert holds[1].reached.wait(10)
            assert len(here("list", "--json").json()) == 2
            holds[0].release()
            assert first.wait().status == 0
            assert second.wait().status == 0
    assert (cli.home / "other").read_bytes() == content(0, SIZE)


def test_a_get_goes_on_alone_when_the_one_that_held_the_directory_ends_before_the_order(
    cli: CommandLine, here: Run, film: str
) -> None:
    cli.cache_dir.mkdir(parents=True)
    lock = DirectoryLock(cli.cache_dir)
    with socket.create_server(("127.0.0.1", 0)) as dying:
        host, port = dying.getsockname()
        lock.announce(Holder(1, f"http://{host}:{port}/", "token"))

        def end() -> None:
            for answer in (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b""):
                connection, _ = dying.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    if not answer:
                        lock.release()

        ending = in_thread(end)
        got = here("get", film)
        ending.result(10)
    assert (got.status, got.stderr) == (0, "")


def test_get_asks_a_server_that_does_not_answer_as_long_as_every_command_does(
    cli: CommandLine, here: Run, film: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefsm.backend.PATIENCE_S", 0.0)
    cli.cache_dir.mkdir(parents=True)
    asked = 0
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        host, port = silent.getsockname()
        lock = DirectoryLock(cli.cache_dir)
        lock.announce(Holder(1, f"http://{host}:{port}/", "token"))

        def refuse() -> None:
            nonlocal asked
            with suppress(OSError):  # the end of the test
                while True:
                    silent.accept()[0].close()
                    asked += 1

        refusing = in_thread(refuse)
        got = here("get", film)
        silent.shutdown(socket.SHUT_RDWR)
        refusing.result(10)
    lock.release()
    assert got.status == 1
    assert got.stderr == f"cachefsm: the server at http://{host}:{port}/ (process 1) has ended\n"
    assert asked == 1


def test_prefetch_returns_at_once_where_a_server_goes_on_with_it(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    hold = origin.script(hold_before_headers())
    with cli.serving() as server:
        assert here("prefetch", film).text == f"{film}: queued as entry 1\n"
        assert hold.reached.wait(10)
        hold.release()
        assert here("get", film).status == 0
        assert server.end(signal.SIGTERM).status == 0
    assert len(origin.requests) == 1
    assert here("prefetch", film).text == f"{film}: 293 KiB, already complete as entry 1\n"


def test_prefetch_fetches_the_parts_that_are_named(
    here: Run, held: str, origin: Origin, film: str
) -> None:
    said = here("prefetch", film, "--head", "100K", "--range", "200K-210K", "--deadline", "1h")
    assert said.status == 0
    if held == "idle":
        assert said.text == f"{film}: 110 KiB of 293 KiB, stored as entry 1\n"
    else:
        assert said.text == f"{film}: queued as entry 1\n"
    wanted = [[0, 102_400], [204_800, 215_040]]
    eventually(lambda: here("show", film, "--json").json()["ranges"] == wanted)
    eventually(lambda: here("show", film, "--json").json()["asked_by"] == [])
    said = here("prefetch", film, "--head", "100K")
    assert said.text == f"{film}: 110 KiB of 293 KiB, already stored as entry 1\n"
    assert origin.body_bytes_sent == 112_640


def test_prefetch_gives_up_at_its_deadline(here: Run, origin: Origin, film: str) -> None:
    origin.script(stall_after(100_000))
    said = here("prefetch", film, "--deadline", "500ms").failed_in_one_line()
    assert said.startswith(f"cachefsm: {film}: not all of it came within the deadline")
    (facts,) = here("list", "--json").json()
    assert (facts["state"], facts["reason"]) == ("paused", "deadline")
    assert "an order was not met in time" in here("show", 1).text


def test_prefetch_gives_up_what_the_cache_may_not_hold(
    here: Run, origin: Origin, film: str
) -> None:
    origin.script(stall_after(0))
    said = here("prefetch", film, "--max-size", "100K").failed_in_one_line()
    assert said.startswith(f"cachefsm: {film}: it is larger than the cache may be")
    assert "the cache may not hold so much" in here("show", 1).text


def test_prefetch_reads_a_playlist_and_fetches_what_comes_next(
    here: Run, held: str, origin: Origin
) -> None:
    items = "".join(f"#EXTINF:4,\nseg-{number}.ts\n" for number in range(5))
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n{items}#EXT-X-ENDLIST\n"
    origin.put("/vod/index.m3u8", Resource.of(text.encode()))
    urls = [origin.url(f"/vod/seg-{number}.ts") for number in range(5)]
    for number in range(5):
        origin.put(f"/vod/seg-{number}.ts", Resource(1000 + number))
    playlist = origin.url("/vod/index.m3u8")
    here("prefetch", "--playlist", playlist, "--items", 2, "--after", urls[1])
    eventually(lambda: [here("show", url, "--json").status for url in urls[2:4]] == [0, 0])
    eventually(
        lambda: all(here("show", url, "--json").json()["state"] == "complete" for url in urls[2:4])
    )
    assert {request.path for request in origin.requests} == {
        "/vod/index.m3u8",
        "/vod/seg-2.ts",
        "/vod/seg-3.ts",
    }


def test_items_of_other_origins_are_left_out_unless_allowed(here: Run, origin: Origin) -> None:
    with Origin() as other:
        other.put("/seg.ts", Resource(1000))
        text = f"#EXTM3U\n#EXTINF:4,\n{other.url('/seg.ts?sig=secret')}\n"
        origin.put("/index.m3u8", Resource.of(text.encode()))
        playlist = origin.url("/index.m3u8")
        said = here("prefetch", "--playlist", playlist).failed_in_one_line()
        there = other.url().rstrip("/")
        assert said == (
            f"cachefsm: {playlist}: items at {there} are left out; --allow lets them in\n"
        )
        allowed = here("prefetch", "--playlist", playlist, "--allow", "127.0.0.1:*")
        assert allowed.text == f"{other.url('/seg.ts')}?…: 1000 B, complete as entry 2\n"


def test_prefetch_of_a_page_says_that_it_is_no_playlist(here: Run, film: str) -> None:
    said = here("prefetch", "--playlist", film).failed_in_one_line()
    assert said == f"cachefsm: {film}: that is no M3U playlist\n"
    assert here("prefetch", "--playlist", "--head", "8M", film).status == 2
    assert here("prefetch", "--range", "8M", film).status == 2


def test_a_command_renews_an_expired_link(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    origin.script(status(403), when=lambda request: "sig=2" not in request.target, times=None)
    script = cli.home / "fresh.py"
    script.write_text("import sys; print(sys.argv[1].replace('sig=1', 'sig=2'))")
    resolver = f"'{sys.executable}' '{script}'"
    said = here("get", f"{film}?sig=1", "--resolver", resolver)
    assert said.text == f"{film}?…: 293 KiB, complete as entry 1\n"
    # The key stays: what is stored is found by the old link.
    assert here("show", f"{film}?sig=1", "--json").json()["state"] == "complete"


def test_a_server_renews_links_and_leaves_tokens_out_of_keys(
    cli: CommandLine, here: Run, origin: Origin
) -> None:
    fresh = (("Cache-Control", "max-age=60"),)
    origin.put("/film", Resource(SIZE, headers=fresh))
    script = cli.home / "fresh.py"
    script.write_text(f"print('{origin.url('/film?sig=new')}')")
    origin.script(status(410), when=lambda request: "sig=old" in request.target, times=None)
    with cli.serving(
        *("--mount", f"/m={origin.url()}", "--key-rule", "127.0.0.1=sig"),
        CACHEFSM_RESOLVER=f"'{sys.executable}' '{script}'",
    ) as server:
        for sig in ("old", "other"):
            assert ask(f"{server.address}m/film?sig={sig}").body == content(0, SIZE)
        assert len(here("list", "--json").json()) == 1
        said = server.end(signal.SIGTERM).stderr
    assert "the link is renewed" in said
    assert "sig=" not in said
    assert here("get", "--key-rule", "nonsense", "http://example.test/").status == 2


def test_a_file_is_not_touched_by_a_download_that_fails(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    origin.script(cut_after(1000))
    origin.script(status(410), nth=2, times=None)
    file = cli.home / "film"
    file.write_bytes(b"old")
    said = here("get", film, "-o", file).failed_in_one_line()
    assert said == f"cachefsm: {film}: the origin answered 410; 1000 B are kept\n"
    assert file.read_bytes() == b"old"


# -- orders ------------------------------------------------------------------------


@pytest.fixture(params=["idle", "served"])
def held(request: pytest.FixtureRequest, cli: CommandLine) -> Iterator[str]:
    """Who has the cache: nobody, or a server."""
    if request.param == "idle":
        yield "idle"
        return
    with cli.serving():
        yield "served"


def test_orders_do_the_same_whoever_has_the_cache(
    cli: CommandLine, here: Run, held: str, origin: Origin, film: str
) -> None:
    here("get", film)
    assert here("pin", 1).text == f"entry 1 is pinned: {film}\n"
    assert here("show", film, "--json").json()["pinned"] is True
    assert here("unpin", film).text == f"entry 1 is not pinned: {film}\n"
    for order in ("pause", "resume", "cancel", "retry"):
        said = here(order, 1).failed_in_one_line()
        assert said == f"cachefsm: entry 1: cannot {order} an entry that is complete\n"
    assert here("remove", 1).text == f"entry 1 is removed: {film}\n"
    assert here("remove", 1).failed_in_one_line() == "cachefsm: there is no entry 1\n"
    said = here("pause", f"{film}?sig=secret").failed_in_one_line()
    assert said == f"cachefsm: there is no entry for {film}?…\n"
    assert here("list", "--json").json() == []


def test_an_order_that_cannot_be_says_which_can(
    cli: CommandLine, here: Run, held: str, origin: Origin, film: str
) -> None:
    origin.script(status(404), times=None)
    here("get", film).failed_in_one_line()
    said = here("resume", film).failed_in_one_line()
    assert said == f"cachefsm: {film}: cannot resume an entry that is failed; retry it\n"
    said = here("cancel", film).failed_in_one_line()
    why = "failed (the origin answered 404) already"
    assert said == f"cachefsm: {film}: cannot cancel an entry that is {why}\n"


def test_orders_move_a_download_that_a_server_makes(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    hold = origin.script(hold_after(1000), times=None)
    with cli.serving():
        here("prefetch", film)
        assert hold.reached.wait(10)
        assert here("pause", film).text == f"entry 1 is paused (by a person): {film}\n"
        said = here("pause", film).failed_in_one_line()
        assert said == f"cachefsm: {film}: cannot pause an entry that is paused already\n"
        assert here("resume", 1).text == f"entry 1 goes on: {film}\n"
        assert here("cancel", 1).text == f"entry 1 is failed (cancelled): {film}\n"
        said = here("cancel", 1).failed_in_one_line()
        assert (
            said == "cachefsm: entry 1: cannot cancel an entry that is failed (cancelled) already\n"
        )
        assert here("retry", 1).text == f"entry 1 goes on: {film}\n"
        hold.release()
        assert here("get", film).status == 0


def test_orders_on_an_idle_cache_are_for_the_next_server(
    cli: CommandLine, here: Run, origin: Origin, film: str
) -> None:
    origin.script(hold_after(1000))
    _leave_paused(cli, film)
    assert here("cancel", 1).text == f"entry 1 is failed (cancelled): {film}\n"
    assert here("retry", 1).text == f"entry 1 goes on when the cache is served: {film}\n"
    (facts,) = here("cancel", 1, "--json").json()
    assert facts["state"] == "failed"
    both = here("retry", 1, 2, "--json")
    assert both.failed_in_one_line() == "cachefsm: there is no entry 2\n"
    assert [facts["id"] for facts in both.json()] == [1]
    with cli.serving():
        origin.wait_for_requests(2)
        assert here("get", film).status == 0


def test_looking_is_the_same_whoever_has_the_cache(
    here: Run, held: str, origin: Origin, film: str
) -> None:
    here("get", film, origin.url("/gone?sig=secret"))
    assert here("list").text == (
        "ID  STATE     HERE     SIZE  URL\n"
        f" 1  complete  100%  293 KiB  {film}\n"
        f" 2  failed     0 B        ?  {origin.url('/gone')}?…\n"
    )
    listed = here("list", "--json").json()
    shown = here("show", 2, "--json").json()
    assert listed[1] == shown
    assert {"id", "url", "state", "reason", "total_size", "downloaded_bytes", "ranges"} < {*shown}
    assert "the origin answered 404" in here("show", 2).text
    stats = here("stats", "--json").json()
    assert (stats["entries"], stats["bytes_stored"]) == (2, SIZE)
    assert stats["states"] == {"complete": 1, "failed": 1}
    assert (stats["server"] is None) == (held == "idle")
    assert "2: 1 complete, 1 failed" in here("stats").text


def test_gc_makes_room_and_removes_what_belongs_to_nothing(
    cli: CommandLine, here: Run, held: str, origin: Origin, film: str
) -> None:
    origin.put("/pinned", Resource(SIZE))
    here("get", film, origin.url("/pinned"))
    here("pin", 2)
    orphan = cli.cache_dir / "content" / content_name("a key that no entry has")
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x")
    freed = here("gc", "--json").json()
    assert (freed["evicted_bytes"], freed["orphan_files"]) == (0, 1)
    assert not orphan.exists()
    assert here("gc", "--max-size", "400K").text == (
        "evicted 293 KiB, removed 0 files without an entry (0 B); 293 KiB stored\n"
    )
    states = [facts["state"] for facts in here("list", "--json").json()]
    assert states == ["not_started", "complete"]


# -- verify ------------------------------------------------------------------------

MIB = 1 << 20
LONG = 3 * MIB + 1000
ROTTEN = [MIB + 5, 3 * MIB + 7]
DAMAGED = [[MIB, 2 * MIB], [3 * MIB, LONG]]


@pytest.fixture
def song(origin: Origin) -> str:
    """A URL of LONG bytes."""
    origin.put("/song.flac", Resource(LONG))
    return origin.url("/song.flac")


def test_verify_says_that_all_is_sound(here: Run, held: str, film: str, song: str) -> None:
    here("get", film, song)
    size = format_size(SIZE + LONG)
    assert here("verify").text == f"checked {size} of 2 entries, no damage\n"
    assert here("verify", 2, "--quiet") == Outcome(0, b"", "")
    found = here("verify", song, "--json").json()
    assert found == {
        "entries": [
            {
                "id": 2,
                "url": song,
                "checked_bytes": LONG,
                "unchecked_bytes": 0,
                "damaged_bytes": 0,
                "damaged": [],
                "repaired": None,
            }
        ],
        "checked_bytes": LONG,
        "unchecked_bytes": 0,
        "damaged_bytes": 0,
        "orphan_files": 0,
        "orphan_bytes": 0,
    }


def test_verify_drops_what_is_damaged_and_says_what_it_was(
    cli: CommandLine, here: Run, held: str, origin: Origin, song: str
) -> None:
    here("get", song)
    flip(recorded(cli.cache_dir).file, ROTTEN)
    found = here("verify", "--quiet")
    assert (found.status, found.stderr) == (1, "")
    assert found.text == (
        f"entry 1: 1 MiB damaged, bytes 1048576-2097151, 3145728-3146727: {song}\n"
        "checked 3 MiB of 1 entry, 1 MiB damaged in 1 entry\n"
    )
    assert here("show", 1, "--json").json()["ranges"] == [[0, MIB], [2 * MIB, 3 * MIB]]
    assert here("verify").text == "checked 2 MiB of 1 entry, no damage\n"
    repaired = here("verify", "--repair", "--json").json()["entries"]
    assert [(each["damaged"], each["repaired"]) for each in repaired] == [([], True)]
    _got_again(cli, here, origin, song)


def test_verify_repairs_by_fetching_what_is_damaged_and_nothing_else(
    cli: CommandLine,
    here: Run,
    held: str,
    origin: Origin,
    song: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cachefsm.check.WINDOW_BYTES", MIB)
    here("get", song)
    flip(recorded(cli.cache_dir).file, ROTTEN)
    found = here("verify", "--repair", "--json")
    assert (found.status, found.stderr) == (0, "")
    (entry,) = found.json()["entries"]
    assert (entry["checked_bytes"], entry["damaged"], entry["repaired"]) == (LONG, DAMAGED, True)
    assert here("verify").text == "checked 3 MiB of 1 entry, no damage\n"
    _got_again(cli, here, origin, song)


def _got_again(cli: CommandLine, here: Run, origin: Origin, song: str) -> None:
    """Assert that the song is whole, and that two damaged blocks were fetched for that."""
    assert here("get", song, "-o", cli.home / "song").status == 0
    assert (cli.home / "song").read_bytes() == content(0, LONG)
    asked = sorted(request.range or "" for request in origin.requests[1:])
    assert asked == [f"bytes={start}-{stop - 1}" for start, stop in DAMAGED]


def test_verify_repairs_a_file_that_was_cut_off_or_deleted(
    cli: CommandLine, here: Run, held: str, origin: Origin, song: str
) -> None:
    here("get", song)
    for spoil in (lambda file: truncate(file, 2 * MIB), Path.unlink):
        spoil(recorded(cli.cache_dir).file)
        found = here("verify", 1, "--repair")
        assert (found.status, found.stderr) == (0, "")
        assert found.text.endswith("damaged in 1 entry, 1 entry repaired\n")
        assert here("get", song, "-o", cli.home / "song").status == 0
        assert (cli.home / "song").read_bytes() == content(0, LONG)
    assert [request.range for request in origin.requests[1:]] == [
        f"bytes={2 * MIB}-{LONG - 1}",
        "bytes=0-",
    ]


def test_verify_repairs_no_more_of_a_file_than_was_there(
    cli: CommandLine, here: Run, origin: Origin, song: str
) -> None:
    options = {"fill": "requested", "read_ahead": MIB // 4}
    with Cache(cli.cache_dir, **options) as cache, cache.entry(song).open() as stream:
        stream.read(2 * MIB)
    stored = here("show", 1, "--json").json()["ranges"]
    assert stored[0][1] < LONG
    flip(recorded(cli.cache_dir).file, [5])
    assert here("verify", "--repair").status == 0
    facts = here("show", 1, "--json").json()
    assert (facts["state"], facts["ranges"]) == ("paused", stored)
    assert origin.requests[-1].range == f"bytes=0-{MIB - 1}"


def test_verify_tells_what_could_not_be_repaired(
    cli: CommandLine, here: Run, held: str, origin: Origin, song: str
) -> None:
    here("get", song)
    flip(recorded(cli.cache_dir).file, ROTTEN)
    origin.script(status(410), times=None)
    found = here("verify", "--repair", "--json")
    said = found.failed_in_one_line()
    assert said == "cachefsm: entry 1: the origin answered 410\n"
    (entry,) = found.json()["entries"]
    assert (entry["damaged"], entry["repaired"]) == (DAMAGED, False)


def test_verify_of_what_is_not_there_is_a_failure(here: Run, held: str, film: str) -> None:
    here("get", film)
    found = here("verify", 7, 1)
    assert found.failed_in_one_line() == "cachefsm: there is no entry 7\n"
    assert found.text == "checked 293 KiB of 1 entry, no damage\n"


def test_verify_says_how_much_has_no_checksum(cli: CommandLine, here: Run, song: str) -> None:
    with Cache(cli.cache_dir, fill="requested") as cache, closing(_reader(cache, song)) as reader:
        assert b"".join(reader.pieces(1000, MIB + 1000)) == content(1000, MIB + 1000)
    assert here("verify").text == ("checked 0 B of 1 entry, no damage, 1 MiB without a checksum\n")


def test_repairing_everything_deletes_files_that_belong_to_no_entry(
    cli: CommandLine, here: Run, film: str
) -> None:
    here("get", film)
    orphan = cli.cache_dir / "content" / content_name("a key that no entry has")
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x" * 5000)
    for arguments in (["verify"], ["verify", "--repair", "1"]):
        assert here(*arguments).text == "checked 293 KiB of 1 entry, no damage\n"
        assert orphan.exists()
    assert "no damage, removed 1 file without an entry (" in here("verify", "--repair").text
    assert not orphan.exists()


# -- where there is nothing --------------------------------------------------------


def test_looking_where_there_never_was_a_cache_makes_none(cli: CommandLine, here: Run) -> None:
    assert here("list").text == f"no entries in {cli.cache_dir}\n"
    assert here("list", "--json").json() == []
    assert here("stats", "--json").json()["entries"] == 0
    assert here("gc", "--json").json()["bytes_stored"] == 0
    assert here("verify", "--repair").text == "checked 0 B of 0 entries, no damage\n"
    said = here("show", 1).failed_in_one_line()
    assert said == f"cachefsm: there is no cache in {cli.cache_dir}\n"
    assert not cli.cache_dir.exists()


def test_diagram_draws_and_checks(cli: CommandLine, here: Run) -> None:
    drawn = here("diagram", "--output", cli.home / "d").text.splitlines()
    assert str(cli.home / "d" / "lifecycle.mmd") in drawn
    (cli.home / "d" / "lifecycle.mmd").write_text("something else")
    checked = here("diagram", "--check", "--output", cli.home / "d")
    assert checked.status == 1
    assert "lifecycle.mmd" in checked.stderr


# -- failures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frob"],
        ["get"],
        ["get", "nope"],
        ["get", "ftp://example.org/"],
        ["get", "http://example.org/", "--max-size", "3Q"],
        ["get", "http://example.org/", "http://example.org/2", "-o", "-"],
        ["get", "http://example.org/a/x", "http://example.org/b/x", "-o", "/"],
        ["get", "http://example.org/", "-o", "-", "--json"],
        ["list", "http://me:secret@example.org/?sig=secret"],
        ["http://me:secret@example.org/?sig=secret"],
        ["show"],
        ["pause", "film"],
        ["serve", "--mount", "films"],
        ["serve", "--mount", "/a=http://me:secret@example.org/?sig=secret"],
        ["serve", "--port", "99999"],
        ["serve", "--fill", "up"],
        ["serve", "--grace", "soon"],
        ["serve", "--durability", "maybe"],
        ["serve", "--verify-reads", "twice"],
        ["serve", "--scrub-rate", "slow"],
        ["serve", "--connections", "0"],
        ["serve", "--connections-per-host", "many"],
        ["verify", "film"],
        ["serve", "--allow", "a b"],
        ["list", "--cache-dir", ""],
        ["get", "http://a.test/", "-o", ""],
        ["prefetch", "--items", "2", "http://a.test/"],
        ["prefetch", "--after", "http://a.test/1", "http://a.test/"],
        ["prefetch", "--allow", "b.test", "http://a.test/"],
        ["serve", "--host-name", ""],
        ["serve", "--host-name", "http://media.test/"],
        ["serve", "--host-name", "media.test:8080"],
        ["serve", "--token", ""],
        ["serve", "--token", "se same"],
        ["serve", "--token", "\u4e2d"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(here: Run, arguments: list[str]) -> None:
    outcome = here(*arguments)
    if arguments:
        outcome.failed_in_one_line(2)
        assert "--help)" in outcome.stderr
    assert outcome.status == 2
    assert not outcome.stdout
    assert "secret" not in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["serve", "--mount", "/a=http://a.test/", "--mount", "/a=http://b.test/"],
            "/a is mounted twice",
        ),
        (["serve", "--allow", "http://me:secret@a.test/"], "leave out the scheme and the path"),
        (["serve", "--resolver", "no-such-command --fast"], "'no-such-command' is no command"),
        (["get", "http://me:secret@h:99999/"], "its port is no number up to 65535"),
        (["get", "http://[::1/"], "its host is none"),
    ],
)
def test_wrong_usage_is_told_by_what_is_wrong(here: Run, arguments: list[str], words: str) -> None:
    said = here(*arguments).failed_in_one_line(2)
    assert words in said
    assert "secret" not in said


def test_a_cache_directory_that_is_a_file_is_said_to_be_one(cli: CommandLine) -> None:
    cli.cache_dir.write_bytes(b"")
    for command in (["serve"], ["list"], ["get", "http://origin.test/"]):
        said = cli.run(*command).failed_in_one_line()
        assert "no directory" in said
        assert str(cli.cache_dir) in said


def test_a_verification_of_nothing_finds_nothing_sound(here: Run, film: str) -> None:
    here("get", film)
    outcome = here("verify", "55")
    assert outcome.failed_in_one_line() == "cachefsm: there is no entry 55\n"
    assert not outcome.stdout


def test_an_origin_that_is_down_is_one_line(here: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/film"
        said = here("get", url).failed_in_one_line()
    assert said.startswith(f"cachefsm: {url}: ")
    assert "Connection refused" in said


def test_places_that_cannot_be_used_are_one_line(cli: CommandLine, here: Run, film: str) -> None:
    file = cli.home / "file"
    file.write_text("not a directory")
    for place in (file, file / "below"):
        for command in (["get", film], ["list"], ["serve", "--port", "0"]):
            outcome = here(*command, "--cache-dir", place)
            if command == ["list"] and place != file:
                continue  # nothing there: an empty list
            assert str(file) in outcome.failed_in_one_line()
    said = here("get", film, "-o", file / "below").failed_in_one_line()
    assert said == f"cachefsm: cannot write {file}/below: {file} is no directory\n"
    (cli.cache_dir / "cache.sqlite3").mkdir(parents=True)
    here("list").failed_in_one_line()


def test_a_damaged_database_is_told_and_no_failure(cli: CommandLine, here: Run) -> None:
    cli.cache_dir.mkdir()
    (cli.cache_dir / "cache.sqlite3").write_bytes(b"rubbish" * 1000)
    listed = here("list", "--json")
    assert (listed.status, listed.json()) == (0, [])
    assert listed.stderr.startswith("cachefsm: warning: the database was damaged")


def test_a_reader_that_has_seen_enough_is_no_failure(
    cli: CommandLine, here: Run, film: str
) -> None:
    here("get", film)
    with cli.started("list") as listing:
        listing.stdout.close()
        ended = listing.wait()
    assert (ended.status, ended.stderr) == (128 + signal.SIGPIPE, "")


def test_what_nobody_foresaw_is_one_line_too_unless_debug(
    here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise ZeroDivisionError("http://me:secret@example.org/?sig=secret")

    monkeypatch.setattr("cachefsm.orders.list_entries", surprise)
    said = here("list").failed_in_one_line()
    assert said == (
        "cachefsm: an internal error: ZeroDivisionError: http://example.org/?…; "
        "--debug shows where\n"
    )
    assert "in surprise" in here("list", "--debug").stderr


# -- the grammar -------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(here: Run, command: str) -> None:
    text = here(command, "--help").text
    assert f"usage: cachefsm {command}" in text
    assert "--debug" in text


def test_the_module_runs_and_tells_its_version(cli: CommandLine) -> None:
    assert cli.run("--version").text == "cachefsm 0.1.0\n"


def test_the_environment_sets_what_the_command_line_leaves_open() -> None:
    environ = {
        "CACHEFSM_PORT": "81",
        "CACHEFSM_MOUNT": "/a=http://a.example/ /b=http://b.example/x",
        "CACHEFSM_ALLOW": "a.example  *.b.example",
        "CACHEFSM_MAX_SIZE": "20G",
        "CACHEFSM_GRACE": "1m",
        "CACHEFSM_QUIET": "yes",
        "CACHEFSM_VERBOSE": "0",
        "CACHEFSM_HOST": "",
    }
    options = parse_arguments(["serve"], environ)
    assert (options.host, options.port, options.max_size) == ("127.0.0.1", 81, 20 << 30)
    assert [mount.name for mount in options.mount] == ["/a", "/b"]
    assert options.allow == ["a.example", "*.b.example"]
    assert (options.grace, options.quiet, options.verbose) == (60.0, True, False)
    options = parse_arguments(
        ["serve", "--port=82", "--allow=c.example", "--mount", "/c=http://c.example/"], environ
    )
    assert (options.port, options.allow) == (82, ["c.example"])
    assert [mount.name for mount in options.mount] == ["/c"]


def test_the_cache_directory_may_stand_on_either_side(tmp_path: Path) -> None:
    for arguments in (["--cache-dir", str(tmp_path), "list"], ["list", f"--cache-dir={tmp_path}"]):
        assert parse_arguments(arguments, {}).cache_dir == tmp_path
    environ = {"CACHEFSM_CACHE_DIR": "/elsewhere"}
    assert parse_arguments(["list"], environ).cache_dir == Path("/elsewhere")


def test_the_default_cache_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/cachefsm")
    assert default_cache_dir({"XDG_CACHE_HOME": "relative"}) == Path("/home/me/.cache/cachefsm")


def test_secrets_are_hidden_in_any_text() -> None:
    text = "cannot get 'https://me:pw@h/a?sig=1' or http://h/b#x, sorry"
    assert hide_secrets(text) == "cannot get 'https://h/a?…' or http://h/b, sorry"


def _reader(cache: Cache, url: str) -> Reader:
    return cache.open_reader(cache.entry(url).id)


def _leave_paused(cli: CommandLine, url: str) -> None:
    """Leave an entry of 1000 bytes that a person wants and that a closing cache has paused."""
    with Cache(cli.cache_dir) as cache:
        entry = cache.entry(url)
        entry.start()
        assert entry.wait_for(0, 1000, timeout=10)
