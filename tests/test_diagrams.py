"""The lifecycle's pictures: stable text, and a check that notices what is stale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from statemachine import State, StateMachine

from cachefsm import diagrams
from cachefsm.diagrams import graphviz_installed, stale_diagrams, write_diagrams
from cachefsm.errors import CacheError
from cachefsm.lifecycle import DownloadLifecycle

needs_graphviz = pytest.mark.skipif(not graphviz_installed(), reason="Graphviz is not installed")


class Switch(StateMachine):
    """Another machine, for the check to notice."""

    off = State("Off", initial=True)
    on = State("On")
    burnt = State("Burnt", final=True)

    press = off.to(on, cond="has_current") | on.to(off)
    burn = on.to(burnt)

    def has_current(self) -> bool:
        """The bill is paid.

        More about it.
        """
        return True


@pytest.fixture
def without_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def test_without_graphviz_the_text_alone_is_written(tmp_path: Path, without_graphviz: None) -> None:
    written = write_diagrams(tmp_path / "new" / "diagrams")
    assert [path.name for path in written] == ["lifecycle.mmd", "lifecycle.md"]
    assert all(path.is_file() for path in written)


def test_the_page_shows_the_diagram_the_table_and_what_guards_mean(tmp_path: Path) -> None:
    write_diagrams(tmp_path, Switch)
    page = (tmp_path / "lifecycle.md").read_text()
    assert f"```mermaid\n{(tmp_path / 'lifecycle.mmd').read_text()}```\n" in page
    assert "| Off   | Press | has_current | On     |" in page
    assert "- `has_current`: The bill is paid.\n" in page


def test_another_process_writes_the_same_text() -> None:
    script = (
        "import cachefsm.diagrams as d; from cachefsm.lifecycle import DownloadLifecycle as M;"
        "print(d._texts(M), d._dot(M))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(diagrams.__file__).parents[1],
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


def test_the_drawing_shows_every_state_and_every_move() -> None:
    dot = diagrams._dot(DownloadLifecycle)
    for state in DownloadLifecycle.states:
        assert f'{state.id} [label="{state.name}"' in dot
        for transition in state.transitions:
            arrows = [line for line in dot.splitlines() if f" -> {transition.target.id} [" in line]
            assert any(transition.event in line.split(" -> ")[0] for line in arrows)


def test_every_state_of_the_lifecycle_has_its_place_and_every_bend_its_arrow() -> None:
    states = {state.id for state in DownloadLifecycle.states}
    arrows = {(move.source, move.target) for move in diagrams._moves(DownloadLifecycle)}
    assert set(diagrams._PLACES) == set(diagrams._COLOURS) == states
    assert set(diagrams._BENDS) <= arrows


def test_one_arrow_stands_for_an_event_that_every_other_state_has() -> None:
    dot = diagrams._dot(DownloadLifecycle)
    assert dot.count("<invalidate>") == dot.count("every other state") == 1


def test_a_state_nobody_has_placed_is_drawn_all_the_same() -> None:
    dot = diagrams._dot(Switch)
    assert dot.count("pos=") == 3 + 1 + 3  # states, start, labels
    assert "peripheries=2" in dot


def test_files_that_are_missing_are_stale(tmp_path: Path) -> None:
    assert [line.partition(":")[0] for line in stale_diagrams(tmp_path)] == [
        str(tmp_path / f"lifecycle.{suffix}") for suffix in ("mmd", "md", "svg", "png")
    ]


def test_text_that_was_edited_is_stale(tmp_path: Path, without_graphviz: None) -> None:
    for path in write_diagrams(tmp_path):
        path.write_bytes(path.read_bytes() + b"\n")
    assert [line for line in stale_diagrams(tmp_path) if "no longer shows" in line] == [
        f"{tmp_path / 'lifecycle.mmd'}: no longer shows the lifecycle in the code",
        f"{tmp_path / 'lifecycle.md'}: no longer shows the lifecycle in the code",
    ]


@needs_graphviz
def test_what_was_just_drawn_is_current_with_and_without_graphviz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in write_diagrams(tmp_path)]
    assert names == ["lifecycle.mmd", "lifecycle.md", "lifecycle.svg", "lifecycle.png"]
    assert stale_diagrams(tmp_path) == []
    monkeypatch.setenv("PATH", "")
    assert stale_diagrams(tmp_path) == []


@needs_graphviz
def test_another_machine_makes_every_file_stale(tmp_path: Path) -> None:
    write_diagrams(tmp_path, Switch)
    assert len(stale_diagrams(tmp_path)) == 4


@needs_graphviz
def test_the_png_is_still_well_formed_with_its_hash(tmp_path: Path) -> None:
    write_diagrams(tmp_path)
    png = (tmp_path / "lifecycle.png").read_bytes()
    kinds, position = [], 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        chunk = png[position + 4 : position + 8 + length]
        crc = int.from_bytes(png[position + 8 + length : position + 12 + length], "big")
        assert zlib.crc32(chunk) == crc
        kinds.append(chunk[:4])
        position += 12 + length
    assert (kinds[0], kinds[1], kinds[-1]) == (b"IHDR", b"tEXt", b"IEND")


@pytest.mark.skipif(not shutil.which("sh"), reason="needs a POSIX shell")
def test_a_failing_graphviz_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "dot"
    fake.write_text("#!/bin/sh\ncat >/dev/null; echo 'no plugin for svg' >&2; exit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CacheError, match="dot -Tsvg failed: no plugin for svg"):
        write_diagrams(tmp_path / "diagrams")


def test_a_directory_that_cannot_be_written_is_one_clear_error(
    tmp_path: Path, without_graphviz: None
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(CacheError, match=r"cannot write the diagrams to .*: \w"):
        write_diagrams(in_the_way)
