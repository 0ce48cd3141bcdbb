"""Options that name a mount become the rules of each mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefsm.access import Rules, parse_mount
from cachefsm.arguments import parse_arguments
from cachefsm.errors import UsageError
from cachefsm.rules import EVERY_MOUNT, furnish, parse_fresh, parse_header, parse_which
from tests.support.clients import ask
from tests.support.commands import CommandLine
from tests.support.faults import redirect, status
from tests.support.origin import Origin, Resource, content

A, B = parse_mount("/a=http://origin.test/a/"), parse_mount("/b=http://origin.test/b/")
SECRET = "sesame"

# -- reading -----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "yes", "TRUE", "on"])
def test_a_plain_yes_is_every_mount(text: str) -> None:
    assert parse_which(text) == EVERY_MOUNT
    assert parse_which("/films") == "/films"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("/films=30d", ("/films", 30 * 86400.0)),
        ("90s", (EVERY_MOUNT, 90.0)),
        ("/a=0", ("/a", 0.0)),
    ],
)
def test_a_lifetime_is_a_mounts_or_everyones(text: str, read: tuple[str, float]) -> None:
    assert parse_fresh(text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("/a: Authorization: Bearer x:y=z", ("/a", ("Authorization", "Bearer x:y=z"))),
        ("/a:X-Key:1", ("/a", ("X-Key", "1"))),
        (" /a : X-Empty: ", ("/a", ("X-Empty", ""))),
    ],
)
def test_a_field_of_a_mount_is_read(text: str, read: tuple[str, tuple[str, str]]) -> None:
    assert parse_header(text) == read


@pytest.mark.parametrize(
    "text",
    [f"/a Authorization {SECRET}", f"/a: {SECRET}", f"/a: X Y: {SECRET}", f"/a: X-A: {SECRET}\r\nB",
     f"/a: X-A: {SECRET}\u00e9", f"/a: Host: {SECRET}", f"/a: Range: {SECRET}",
     f"/a: Connection: {SECRET}", f"/a: Via: {SECRET}", f"nowhere: X-A: {SECRET}", ""],
)  # fmt: skip
def test_what_is_no_field_to_set_is_refused_without_telling_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_header(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["", "films", "/-", "/http", "maybe"])
def test_what_names_no_mount_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_which(text)


# -- putting together ----------------------------------------------------------------


def test_without_options_every_mount_follows_its_origin() -> None:
    mounts, rules = furnish([A, B])
    assert [mount.rules for mount in mounts] == [Rules(), Rules()]
    assert rules == Rules()


def test_what_names_a_mount_is_for_that_one_alone() -> None:
    (first, second), rules = furnish(
        [A, B],
        fresh=[("/a", 60.0)],
        offline=["/b"],
        pass_methods=["/a"],
        hand_on_redirects=["/b"],
        headers=[("/a", ("X-A", "1")), ("/a", ("X-B", "2"))],
    )
    assert first.rules == Rules(fresh_s=60.0, passes=True, fields=(("X-A", "1"), ("X-B", "2")))
    assert second.rules == Rules(offline=True, hands_on=True)
    assert rules == Rules()


def test_what_names_none_is_for_all_and_yields_to_what_names_one() -> None:
    (first, second), rules = furnish([A, B], fresh=[("/a", 60.0), (EVERY_MOUNT, 9.0)])
    assert (first.rules.fresh_s, second.rules.fresh_s, rules.fresh_s) == (60.0, 9.0, 9.0)


def test_methods_are_passed_to_mounts_only() -> None:
    (first,), rules = furnish([A], pass_methods=[EVERY_MOUNT], offline=[EVERY_MOUNT])
    assert (first.rules.passes, rules.passes) == (True, False)
    assert rules.offline


@pytest.mark.parametrize(
    "options",
    [{"fresh": [("/c", 1.0)]}, {"offline": ["/c"]}, {"pass_methods": ["/c"]},
     {"hand_on_redirects": ["/c"]}, {"headers": [("/c", ("X-A", SECRET))]}],
)  # fmt: skip
def test_an_option_for_what_is_not_mounted_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="/c, which is not mounted") as caught:
        furnish([A, B], **options)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


def test_the_fields_of_a_mount_are_shown_to_nobody() -> None:
    (mount,), _ = furnish([A], headers=[("/a", ("Authorization", SECRET))])
    assert SECRET not in repr(mount)


# -- on the command line ---------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def test_serve_gives_each_mount_its_rules(command: CommandLine, origin: Origin) -> None:
    origin.put("/film", Resource(1000, headers=(("Cache-Control", "no-cache"),)))
    origin.script(status(201, body=b"done"), when=lambda request: request.method == "POST")
    origin.script(redirect("/film"), path="/moved", times=None)
    mounts = [f"--mount=/{name}={origin.url()}" for name in ("plain", "rules")]
    options = ["--fresh=/rules=1h", "--pass-methods=/rules", "--hand-on-redirects=/rules"]
    field = f"--header=/rules: X-Api-Key: {SECRET}"
    with command.serving(*mounts, *options, field) as server:
        for _ in range(2):
            assert ask(f"{server.address}rules/film").body == content(0, 1000)
        assert [request.header("X-Api-Key") for request in origin.requests] == [SECRET]
        assert ask(f"{server.address}plain/film").status == 200
        assert origin.requests[-1].header("X-Api-Key") is None
        assert ask(f"{server.address}rules/film", method="POST").status == 201
        assert ask(f"{server.address}plain/film", method="POST").status == 405
        assert ask(f"{server.address}rules/moved")["Location"] == "/rules/film"
        assert ask(f"{server.address}plain/moved").body == content(0, 1000)
        shown = ask(f"{server.address}-/entries").text + ask(f"{server.address}-/metrics").text
        assert SECRET not in shown
        server.process.terminate()
        assert SECRET not in server.wait().stderr


@pytest.mark.parametrize("option", ["--offline", "--pass-methods", "--hand-on-redirects"])
def test_an_option_without_a_mount_is_for_every_mount(option: str) -> None:
    name = option[2:].replace("-", "_")
    alone = parse_arguments(["serve", option, "--mount=/a=http://origin.test/"], {})
    twin = parse_arguments(["serve"], {f"CACHEFSM_{name.upper()}": "1"})
    assert [getattr(options, name) for options in (alone, twin)] == [[EVERY_MOUNT]] * 2
    off = parse_arguments(["serve"], {f"CACHEFSM_{name.upper()}": "0"})
    assert getattr(off, name) == []


def test_the_environment_gives_rules_too(command: CommandLine, origin: Origin) -> None:
    origin.put("/film", Resource(1000))
    environ = {
        "CACHEFSM_MOUNT": f"/m={origin.url()} /n={origin.url()}",
        "CACHEFSM_OFFLINE": "/n",
        "CACHEFSM_HEADER": f"/m: X-Api-Key: {SECRET}\n/m: X-Kind: a film",
    }
    with command.serving(**environ) as server:
        assert ask(f"{server.address}n/film").status == 504
        assert ask(f"{server.address}m/film").status == 200
    (request,) = origin.requests
    assert [request.header(name) for name in ("X-Api-Key", "X-Kind")] == [SECRET, "a film"]


@pytest.mark.parametrize(
    "option", ["--fresh=/c=1h", "--offline=/c", "--header=/c: X-A: 1", "--header=/a: Host: x",
               "--fresh=soon", "--pass-methods=films"],
)  # fmt: skip
def test_a_rule_that_makes_no_sense_is_said_in_one_line(command: CommandLine, option: str) -> None:
    outcome = command.run("serve", "--mount=/a=http://origin.test/", option)
    outcome.failed_in_one_line(2)
