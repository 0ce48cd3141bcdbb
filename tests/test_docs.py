"""docs/interface.md and the code say the same: neither names what the other lacks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cachefsm
from cachefsm import Cache, CacheError, DownloadState, Entry
from cachefsm.arguments import COMMANDS
from cachefsm.cli import main
from cachefsm.lifecycle import DownloadLifecycle
from cachefsm.models import (
    CacheChunk,
    CacheDownloadQueue,
    CacheEntry,
    CacheOrigin,
    CacheUnsynced,
)
from cachefsm.proxy import Server
from tests.support.caches import OpenCache
from tests.support.clients import ask
from tests.support.origin import Origin, Resource

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """Return what stands below *heading*, up to the next heading of any rank."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, heading
    # What looks like a heading inside code is a comment.
    return found[1]


def rows(heading: str, column: int = 0) -> list[str]:
    """Return the cells of one column of the tables below *heading*, without their heads."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = {index for index, line in enumerate(lines) if set(line) <= set("|- ")}
    return [
        row[column] for index, row in enumerate(cells) if not {index, index + 1} & heads and row
    ]


def names(cells: list[str]) -> list[str]:
    """Return the names in code marks, without their arguments."""
    return [name for cell in cells for name in re.findall(r"`([\w.-]+)(?:\([^`]*\))?`", cell)]


def _public(kind: type) -> set[str]:
    """Return the names of the public methods and properties of *kind*."""
    members = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
    return {
        name
        for name, member in members.items()
        if callable(getattr(kind, name)) or isinstance(member, property)
    }


def test_every_command_is_there() -> None:
    assert names(rows("The command line")[: len(COMMANDS)]) == list(COMMANDS)


def test_every_public_method_is_there() -> None:
    assert set(names(rows("`Cache`"))) == _public(Cache)
    assert set(names(rows("`Entry`"))) == _public(Entry) | {"id", "url"}


def test_every_state_and_event_is_there() -> None:
    states = re.findall(r"`(\w+)`", section("The lifecycle").strip().split("\n\n")[0])
    assert states == [state.value for state in DownloadState]
    events = {event.id for event in DownloadLifecycle.events}
    assert set(names(rows("The lifecycle"))) == events


def test_every_setting_and_its_twin_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    twins: set[str] = set()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        twins |= set(re.findall(r"\[(CACHEFSM_\w+)\]", capsys.readouterr().out))
    heading = "Options that the environment sets too"
    options, documented = names(rows(heading)), names(rows(heading, 1))
    assert set(documented) == twins
    assert [f"CACHEFSM_{option[2:].replace('-', '_').upper()}" for option in options] == documented


def test_every_option_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    offered: set[str] = set()
    for command in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        _, _, options = capsys.readouterr().out.partition("options:")
        offered |= set(re.findall(r"^  (?:-\w.*, )?(--[\w-]+)", options, re.MULTILINE))
    documented = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", TEXT))
    assert documented == offered - {"--help"}


def test_every_field_of_the_json_is_there(open_cache: OpenCache) -> None:
    cache = open_cache(start=False)
    entry = cache.entry("http://example.test/film")
    assert names(rows("An entry as JSON")) == list(entry.describe())
    assert names(rows("The numbers as JSON")) == list(cache.stats())
    told = set(names([section("The command line")]))
    assert told >= {*entry.verify().describe(), *cache.collect()}


@pytest.mark.parametrize(
    "table", [CacheEntry, CacheChunk, CacheDownloadQueue, CacheUnsynced, CacheOrigin]
)
def test_every_column_is_there(table: type[CacheEntry]) -> None:
    columns = [field.column_name for field in table._meta.sorted_fields]
    assert names(rows(f"`{table._meta.table_name}`")) == columns


@pytest.fixture
def proxy(open_cache: OpenCache, origin: Origin) -> Iterator[Server]:
    """A proxy with one entry that is being asked for, mounted at /m."""
    origin.put("/film", Resource(1000))
    with open_cache().serve(mounts=[f"/m={origin.url()}"], allow=["127.0.0.1:*"]) as server:
        ask(f"{server.url}m/film")
        yield server


def test_every_route_is_there(proxy: Server, origin: Origin) -> None:
    places = {
        "<mount>/<path>": "m/film",
        "http/<host>/<path>": f"http/{origin.host}:{origin.port}/film",
        "<id>": "1",
    }
    routes = [cell.strip("`").split(" /") for cell in rows("HTTP")]
    assert len(routes) > 10
    routes.sort(key=lambda route: route[0] == "DELETE")
    for method, path in routes:
        for name, value in places.items():
            path = path.replace(name, value)
        if path == "-/events":
            method = "HEAD"  # it has no end
        reply = ask(f"{proxy.url}{path}", method=method)
        assert reply.status in (200, 204, 400, 409), (method, path, reply.text)
        if reply.status == 400:
            assert reply.json()["error"] == "the request body has no 'url'"


def test_every_metric_is_there(proxy: Server) -> None:
    text = ask(f"{proxy.url}-/metrics").text
    told = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) | {"cachefsm_max_bytes"}
    assert set(re.findall(r"`(cachefsm_\w+)`", section("Metrics"))) == told


def test_the_example_runs(
    origin: Origin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin.put("/film.mkv", Resource(3_000_000))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert found
    example = found[1].replace("https://example.org/film.mkv", origin.url("/film.mkv"))
    example += "    assert len(head) == 65536 and entry.state == 'complete'\n"
    exec(compile(example, "interface.md", "exec"), {})
    assert "callback failed" not in caplog.text


@pytest.mark.parametrize("page", ["http.md", "security.md"])
def test_every_numbered_line_has_tests_that_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = {int(number) for number in re.findall(r"^\| ([0-9]+) \|", text, re.MULTILINE)}
    proofs = dict(re.findall(r"^([0-9]+)\. ((?:.+\n)+?)(?=[0-9]+\. |\n)", text, re.MULTILINE))
    assert lines == set(map(int, proofs)) == set(range(1, len(lines) + 1))
    for number, proof in proofs.items():
        named = re.findall(r"(test_\w+\.py)|`(test_\w+)`", proof)
        assert any(test for _, test in named), number
        for module, test in named:
            if module:
                source = (ROOT / "tests" / module).read_text(encoding="utf-8")
            else:
                assert f"def {test}(" in source, f"{number}: {test}"


def test_the_design_names_modules_that_exist() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text)) - {"code", "hypothesis", "sendfile"}
    modules = {path.stem for path in (ROOT / "cachefsm").glob("*.py")}
    assert named - modules == {"on_transition"}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    assert targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


def test_what_is_offered_for_import_is_explained() -> None:
    offered = [getattr(cachefsm, name) for name in cachefsm.__all__ if name != "__version__"]
    assert [kind.__name__ for kind in offered if not inspect.getdoc(kind)] == []
    assert issubclass(CacheError, Exception)
