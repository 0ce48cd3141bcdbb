"""The lifecycle's pictures, drawn from the machine itself.

Mermaid and the table come from python-statemachine and need nothing else. The
pictures need Graphviz' ``dot``: the engine's own DOT renderer wants pydot, names
its nodes after memory addresses and stacks 22 arrows; this one lays the happy
path on a straight line, joins arrows that run side by side, and gives the same
text every time. That text's SHA-256 is put into each picture, so that whether a
committed picture is current can be told without Graphviz, and in spite of its
versions drawing differently.
"""

from __future__ import annotations

import hashlib
import html
import inspect
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from statemachine import StateMachine

from .errors import CacheError
from .lifecycle import DownloadLifecycle

__all__ = ["GRAPHVIZ_HINT", "graphviz_installed", "stale_diagrams", "write_diagrams"]

GRAPHVIZ_HINT = (
    "No pictures, only text: install Graphviz for lifecycle.svg and lifecycle.png"
    " (apt-get install graphviz, brew install graphviz)."
)

Machine = type[StateMachine]

# The drawing, in inches; y grows upwards. A state that is missing here (somebody
# has just added it) is put in a row below, white.
_PLACES = {
    "not_started": (0.0, 0.0),
    "initializing": (2.9, 0.0),
    "downloading": (7.3, 0.0),
    "complete": (11.0, 0.0),
    "paused": (5.3, -1.7),
    "failed": (5.3, -3.6),
}
_SPARE_ROW_Y = -4.8
# Fill and line: grey at rest, blue at work, then the colours of traffic lights.
_COLOURS = {
    "not_started": ("#f6f8fa", "#6e7781"),
    "initializing": ("#ddf4ff", "#0969da"),
    "downloading": ("#ddf4ff", "#0969da"),
    "paused": ("#fff8c5", "#bf8700"),
    "complete": ("#dafbe1", "#1a7f37"),
    "failed": ("#ffebe9", "#cf222e"),
}
_SPARE_COLOURS = ("#ffffff", "#24292f")
_HAPPY_PATH = frozenset({"initialize", "begin", "finish"})
# How far a label lies from the middle of its arrow, which bends to pass there.
_BENDS = {
    ("not_started", "failed"): (-1.1, -0.85),
    ("initializing", "complete"): (0.55, 0.95),
    ("initializing", "failed"): (0.0, -0.4),
    ("failed", "initializing"): (-1.3, -0.6),
    ("initializing", "paused"): (0.85, 0.4),
    ("paused", "initializing"): (0.3, -0.22),
    ("downloading", "paused"): (0.0, 0.15),
    ("downloading", "failed"): (0.75, -0.3),
}


def write_diagrams(directory: Path, machine: Machine = DownloadLifecycle) -> list[Path]:
    """Draw *machine* into *directory* and return the files written.

    ``lifecycle.mmd`` and ``lifecycle.md`` always; ``lifecycle.svg`` and
    ``lifecycle.png`` where Graphviz is installed, for which see
    :data:`GRAPHVIZ_HINT`.

    Raises:
        CacheError: Graphviz failed, or the directory can't be written.
    """
    files = _texts(machine)
    if graphviz_installed():
        files |= _pictures(_dot(machine))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
    except OSError as error:
        raise CacheError(f"cannot write the diagrams to {directory}: {error.strerror}") from error
    return [directory / name for name in files]


def stale_diagrams(directory: Path, machine: Machine = DownloadLifecycle) -> list[str]:
    """Return a line for each file in *directory* that is missing or shows another machine."""
    stale = []
    digest = _digest(_dot(machine)).encode()
    expected = _texts(machine) | {"lifecycle.svg": digest, "lifecycle.png": digest}
    for name, content in expected.items():
        path = directory / name
        try:
            found = path.read_bytes()
        except OSError as error:
            stale.append(f"{path}: {error.strerror or error}")
            continue
        current = found == content if name in _TEXTS else content in found
        if not current:
            stale.append(f"{path}: no longer shows the lifecycle in the code")
    return stale


def graphviz_installed() -> bool:
    """Say whether pictures can be drawn here."""
    return shutil.which("dot") is not None


_TEXTS = frozenset({"lifecycle.mmd", "lifecycle.md"})


def _texts(machine: Machine) -> dict[str, bytes]:
    mermaid = f"{machine:mermaid}".strip() + "\n"
    table = f"{machine:md}".strip() + "\n"
    names = dict.fromkeys(guard for move in _moves(machine) for guard in move.guards)
    guards = "".join(f"- `{name}`: {_first_line(getattr(machine, name))}\n" for name in names)
    page = (
        "# The lifecycle of a download\n\n"
        "Written by `make diagrams` from the machine in `cachefsm/lifecycle.py`.\n\n"
        f"```mermaid\n{mermaid}```\n\n"
        f"{table}\n"
        "A guard refuses the event while it doesn't hold:\n\n"
        f"{guards}\n"
        "Any other event in any other state is refused, and changes nothing.\n"
    )
    return {"lifecycle.mmd": mermaid.encode(), "lifecycle.md": page.encode()}


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


# --- DOT


@dataclass(frozen=True)
class _Move:
    source: str
    target: str
    event: str
    guards: tuple[str, ...]


def _moves(machine: Machine) -> list[_Move]:
    return [
        _Move(
            transition.source.id,
            transition.target.id,
            str(transition.event),
            tuple(str(guard) for guard in transition.cond),
        )
        for state in machine.states
        for transition in state.transitions
    ]


def _dot(machine: Machine) -> str:
    """Return the drawing in the DOT language, the same text for the same machine."""
    return "\n".join([f"digraph {machine.__name__} {{", *_dot_lines(machine), "}", ""])


def _dot_lines(machine: Machine) -> Iterator[str]:
    font = 'fontname="Helvetica,Arial,sans-serif"'
    yield "layout=neato; splines=line; pad=0.15; bgcolor=white;"
    yield f"node [shape=plaintext, fontsize=15, {font},"
    yield '  width=0, height=0, margin="0.05,0.03"];'
    yield 'edge [color="#57606a", arrowsize=0.9];'
    places = dict(_PLACES)
    for state in machine.states:
        x, y = places.setdefault(state.id, (1.8 * len(places) - 10.8, _SPARE_ROW_Y))
        fill, line = _COLOURS.get(state.id, _SPARE_COLOURS)
        yield f'{state.id} [label="{state.name}", pos="{x:g},{y:g}!",'
        yield f'  shape=box, style="rounded,filled", fillcolor="{fill}", color="{line}",'
        yield "  penwidth=1.8, fontsize=18, width=1.7, height=0.62,"
        yield f"  peripheries={1 + state.final}];"
        if state.initial:
            yield f'start [label="", pos="{x - 1.15:g},{y:g}!", shape=circle, fixedsize=true,'
            yield '  width=0.17, style=filled, fillcolor="#24292f"];'
            yield f"start -> {state.id};"

    moves = _moves(machine)
    everywhere = _from_every_other_state(machine, moves)
    for event, target in everywhere:
        x, y = places[target]
        yield f'any_{event} [label="every other state", pos="{x:g},{y + 1.15:g}!",'
        yield '  fontcolor="#57606a"];'
        yield from _arrow(f"any_{event}", target, [event], (), (x, y + 0.72), "style=dashed")

    joined: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for move in moves:
        if (move.event, move.target) not in everywhere:
            joined.setdefault((move.source, move.target, move.guards), []).append(move.event)
    for (source, target, guards), events in joined.items():
        (from_x, from_y), (to_x, to_y) = places[source], places[target]
        bend_x, bend_y = _BENDS.get((source, target), (0.0, 0.0))
        middle = (from_x + to_x) / 2 + bend_x, (from_y + to_y) / 2 + bend_y
        happy = not _HAPPY_PATH.isdisjoint(events) and from_y == middle[1]
        style = 'penwidth=2.4, color="#24292f"' if happy else ""
        yield from _arrow(source, target, events, guards, middle, style)


def _from_every_other_state(machine: Machine, moves: list[_Move]) -> list[tuple[str, str]]:
    """Return the events, with their target, that one arrow from anywhere can stand for."""
    sources: dict[tuple[str, str], set[str]] = {}
    for move in moves:
        if not move.guards:
            sources.setdefault((move.event, move.target), set()).add(move.source)
    states = {state.id for state in machine.states}
    return [key for key, found in sources.items() if len(found) > 2 and found == states - {key[1]}]


def _arrow(
    source: str,
    target: str,
    events: list[str],
    guards: tuple[str, ...],
    middle: tuple[float, float],
    style: str,
) -> Iterator[str]:
    """Yield an arrow in two halves with its label as the node between them.

    Graphviz would put a label of its own beside the arrow, where other arrows
    cross it.
    """
    label = html.escape(", ".join(events))
    if guards:
        words = html.escape(", ".join(guards).replace("_", " "))
        label += f'<br/><font point-size="11" color="#57606a">[{words}]</font>'
    name = f"{source}_{target}_{'_'.join(events)}"
    x, y = middle
    yield f'{name} [label=<{label}>, pos="{x:g},{y:g}!"];'
    yield f"{source} -> {name} [arrowhead=none, {style}];"
    yield f"{name} -> {target} [{style}];"


# --- Pictures


def _digest(dot: str) -> str:
    return f"lifecycle-sha256:{hashlib.sha256(dot.encode()).hexdigest()}"


def _pictures(dot: str) -> dict[str, bytes]:
    digest = _digest(dot)
    declaration, line_end, rest = _run_dot(dot, "-Tsvg").partition(b"\n")
    svg = declaration + line_end + f"<!-- {digest} -->\n".encode() + rest
    return {
        "lifecycle.svg": svg,
        "lifecycle.png": _with_text(_run_dot(dot, "-Tpng", "-Gdpi=144"), digest),
    }


def _run_dot(dot: str, *options: str) -> bytes:
    try:
        ended = subprocess.run(  # noqa: S603 (the text is ours)
            ["dot", *options],  # noqa: S607 (wherever it is installed)
            input=dot.encode(),
            capture_output=True,
            timeout=60,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() or f"status {error.returncode}"
        raise CacheError(f"dot {' '.join(options)} failed: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CacheError(f"dot {' '.join(options)} failed: {error}") from error
    return ended.stdout


def _with_text(png: bytes, text: str) -> bytes:
    """Return *png* with a ``tEXt`` chunk after its first. Source: PNG, §11.3.4.3."""
    chunk = b"tEXt" + b"Source\0" + text.encode("latin-1")
    framed = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    first_chunk_end = 8 + 12 + int.from_bytes(png[8:12], "big")
    return png[:first_chunk_end] + framed + png[first_chunk_end:]
