"""``make bench``: what a client waits for, through each program and straight from the origin.

For every measurement a shaped origin and one contender are started anew, each as a
process of its own. Every figure is a median of several rounds, the contenders taking
turns within each, because machines drift; the ratios to a direct client are what to
quote. Programs that are not installed are left out.

    python -m benchmarks [SCENARIO…] [--rounds N] [--contender NAME] [--size SIZE] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.support.origin import parse_bytes

from .contenders import CONTENDERS, DIRECT, Contender
from .http import timed_get
from .origin import run_origin
from .scenarios import SCENARIOS, Figures, Scenario

_WIDTH: Final = 40

Results = dict[str, list[Figures]]
"""By contender, the figures of each round."""


def measure(scenario: Scenario, contender: Contender, size_bytes: int) -> Figures:
    """Measure one contender once."""
    with (
        TemporaryDirectory() as directory,
        run_origin("--size", str(size_bytes), *scenario.origin) as origin,
        contender.run(origin.url, Path(directory)) as subject,
    ):
        if not contender.only_downloads:
            # What a program does at its first request of all is not the question.
            timed_get(subject.file(0))
        try:
            return scenario.measure(subject, origin, size_bytes)
        finally:
            subject.close()


def run(scenario: Scenario, contenders: Iterable[Contender], rounds: int, size: int) -> Results:
    """Measure all contenders, turn by turn."""
    taking_part = [c for c in contenders if scenario.only_downloads or not c.only_downloads]
    results: Results = {contender.name: [] for contender in taking_part}
    for number in range(rounds):
        for contender in taking_part:
            note = f"{scenario.title}: {contender.name}, round {number + 1} of {rounds}"
            print(f"\r\033[K{note}", end="", file=sys.stderr, flush=True)
            results[contender.name].append(measure(scenario, contender, size))
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    return results


def summarise(results: Results) -> dict[str, dict[str, Any]]:
    """Return, by contender and figure, median, least, greatest, and ratio to direct's median."""
    medians = {
        name: {
            figure: median(values)
            for figure in rounds[0]
            if (values := [f for r in rounds if (f := r[figure]) is not None])
        }
        for name, rounds in results.items()
    }
    return {
        name: {
            figure: {
                "median": value,
                "values": [r[figure] for r in results[name]],
                "ratio": value / base if (base := medians[DIRECT].get(figure)) else None,
            }
            for figure, value in figures.items()
        }
        for name, figures in medians.items()
    }


def table(title: str, summary: dict[str, dict[str, Any]]) -> str:
    """Return one scenario's figures as text: median, ratio, least to greatest."""
    figures = list(dict.fromkeys(figure for row in summary.values() for figure in row))
    heads = "".join(f"{figure:>{_WIDTH}}" for figure in figures)
    lines = [title, f"  {'':<12}{heads}"]
    for name, row in summary.items():
        cells = "".join(f"{_cell(row.get(figure)):>{_WIDTH}}" for figure in figures)
        lines.append(f"  {name:<12}{cells}")
    return "\n".join(lines)


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    least, greatest = min(figure["values"]), max(figure["values"])
    ratio = "" if figure["ratio"] is None else f" ×{figure['ratio']:.2f}"
    return f"{figure['median']:.2f}{ratio} ({least:.2f} to {greatest:.2f})"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [contender.name for contender in CONTENDERS if contender.name != DIRECT]
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, help="default: 3 to 5, by scenario")
    parser.add_argument("--contender", action="append", choices=names, help="default: all")
    parser.add_argument("--size", type=parse_bytes, help="of the file; default: by scenario")
    parser.add_argument("--json", action="store_true", help="all figures, for scripts")
    options = parser.parse_args()
    unknown = set(options.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    wanted = {DIRECT, *(options.contender or names)}
    contenders = [c for c in CONTENDERS if c.name in wanted and c.is_installed()]
    summaries = {}
    for name in options.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        rounds, size = options.rounds or scenario.rounds, options.size or scenario.size_bytes
        summaries[name] = summarise(run(scenario, contenders, rounds, size))
        if not options.json:
            print(table(f"{name}: {scenario.title}", summaries[name]), end="\n\n", flush=True)
    if options.json:
        print(json.dumps(summaries, indent=2))


if __name__ == "__main__":
    main()
