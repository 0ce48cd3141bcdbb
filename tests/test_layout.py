"""Who may know of whom: the imports of cachefsm, read without importing anything.

A new module is a word in `LAYERS`; an import that breaks a rule is either a mistake
or a decision to be made here, in sight.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parents[1] / "cachefsm"

# A module imports from the lines above its own and never from its own or below.
LAYERS: Final = """
    __init__ errors ranges states trouble clientwatch demo logs
    descriptors tokens
    tables picture buckets meters
    prepared
    database draft parallel throttle explain mishaps
    raw
    fields urls units integrity models quota readahead storage dirlock waiting transport wire
    metrics spread parts loop workers addresses
    semantics freshness pages lifecycle access settings client clientsocket display scheduler
    resolvers values representation
    preconditions multipart sanity web answer rules diagrams
    playlists salvage
    acceptance terms credentials m3u keys dashboard
    getting
    pacing
    arguments
    bodies content records server output progress forwarding negative flusher
    origin origins demands retries signposts recall
    claims routes
    surroundings
    moving downloader straight
    stored
    linked
    renewal
    facts events
    asking
    filling
    entry eventstream
    registry settling conductor unstored
    reader
    verify cachefile catalogue overview readers restart policies playlist_items
    handle doubts upkeep
    engine
    cache
    control serving relay fsspec_filesystem
    proxy
    backend requests_adapter
    serve get orders tuning
    check
    cli
    __main__
"""

# What looks the other way does so when it is called: the front door, which names what
# embedders use, and Cache.serve, a convenience that they expect on it.
UPWARDS: Final = {
    ("cache", "proxy"),
    *(("__init__", name) for name in LAYERS.split()),
}

# Who may import what is not ours and not Python's.
FOREIGN: Final = {
    "fsspec": {"fsspec_filesystem"},
    "peewee": {"tables", "prepared", "database", "raw", "models"},
    "statemachine": {"lifecycle", "diagrams"},
    "requests": {"bodies", "mishaps", "origin", "transport", "requests_adapter"},
    "urllib3": {"mishaps", "origin", "transport", "requests_adapter"},
    "werkzeug": {"server", "control"},
}

# SQLite is a thing of `database`; `salvage` reads what that cannot open any more.
DATABASE: Final = {"database", "salvage"}

# Two halves that meet in `proxy`: what speaks HTTP to clients knows nothing of caching,
# and what caches knows nothing of clients.
SERVING: Final = {
    "answer",
    "clientsocket",
    "clientwatch",
    "descriptors",
    "metrics",
    "server",
    "wire",
}
CACHING: Final = {
    "cache",
    "engine",
    "catalogue",
    "upkeep",
    "registry",
    "entry",
    "moving",
    "stored",
    "reader",
    "settling",
    "downloader",
    "origin",
}

IO: Final = {
    "fcntl",
    "mmap",
    "os",
    "pathlib",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    *FOREIGN,
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imported(module: str) -> Iterator[tuple[bool, str]]:
    """Yield whether it is ours, and its name, of everything that *module* imports anywhere."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((False, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield False, (node.module or "").partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            # "from . import name": a module, or something that __init__ defines.
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((True, name if name in MODULES else "__init__") for name in names)


def ours(module: str) -> set[str]:
    return {name for own, name in imported(module) if own}


def others(module: str) -> set[str]:
    return {name for own, name in imported(module) if not own}


MODULES: Final = sorted(path.stem for path in PACKAGE.glob("*.py"))
LAYER_OF: Final = {
    module: number
    for number, line in enumerate(LAYERS.strip().splitlines())
    for module in line.split()
}


def test_every_module_has_its_one_place() -> None:
    assert sorted(LAYERS.split()) == MODULES
    assert [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards_only(module: str) -> None:
    wrong = {
        name
        for name in ours(module)
        if LAYER_OF[name] >= LAYER_OF[module] and (module, name) not in UPWARDS
    }
    assert wrong == set()


def test_what_looks_the_other_way_does_so_when_called() -> None:
    for module, name in UPWARDS:
        at_import = [node.module for node in tree(module).body if isinstance(node, ast.ImportFrom)]
        assert name not in at_import


@pytest.mark.parametrize("module", MODULES)
def test_a_dependency_is_met_where_it_is_translated(module: str) -> None:
    foreign = others(module) - sys.stdlib_module_names - {"_typeshed"}
    assert foreign == {name for name in foreign if module in FOREIGN[name]}


def test_only_the_database_module_speaks_to_sqlite() -> None:
    assert {module for module in MODULES if "sqlite3" in others(module)} == DATABASE


@pytest.mark.parametrize("module", sorted(SERVING))
def test_what_serves_clients_knows_nothing_of_caching(module: str) -> None:
    assert ours(module) <= SERVING | {"errors", "states", "__init__"}


@pytest.mark.parametrize("module", sorted(CACHING))
def test_what_caches_knows_nothing_of_clients(module: str) -> None:
    assert ours(module) & (SERVING | {"web", "control"}) == set()


@pytest.mark.parametrize("module", MODULES)
def test_who_claims_to_be_pure_imports_nothing_that_is_not(module: str) -> None:
    words = ast.get_docstring(tree(module)) or ""
    if re.search(r"\bPure\b|\bno I/O\b", words, re.IGNORECASE):
        assert others(module) & IO == set()
    if "no clock" in words:
        assert "time" not in others(module)
    if re.search(r"\bno locks\b", words, re.IGNORECASE):
        assert "threading" not in others(module)


def test_the_planner_and_the_arithmetic_do_claim_it() -> None:
    pure = {
        "ranges",
        "picture",
        "draft",
        "quota",
        "scheduler",
        "semantics",
        "acceptance",
        "preconditions",
        "freshness",
        "terms",
        "forwarding",
        "rules",
        "playlists",
        "signposts",
    }
    for module in pure:
        words = ast.get_docstring(tree(module)) or ""
        assert re.search(r"\bPure\b|\bno I/O\b", words, re.IGNORECASE), module
