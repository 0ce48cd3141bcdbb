"""``make bench`` runs: every scenario with a small file, and every contender that is here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600  # bounds a failing test


def bench(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--rounds", "1", "--size", "1M"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    return done.stdout


def test_every_scenario_has_figures_of_the_cache_and_of_a_direct_client() -> None:
    found = json.loads(bench("--contender", "cachefsm", "--json"))
    assert list(found) == list(SCENARIOS)
    for scenario in found.values():
        assert list(scenario) == ["direct", "cachefsm"]
        for figure in scenario["cachefsm"].values():
            assert len(figure["values"]) == 1
            assert figure["median"] >= 0
    # What the origin counts, and so what the ratios are made of.
    sent = found["crowd"]["direct"]["origin bytes per byte"]
    assert sent == {"median": 10.0, "values": [10.0], "ratio": 1.0}


@pytest.mark.parametrize(
    ("contender", "program"),
    [("nginx-slice", "nginx"), ("rclone", "rclone"), ("aria2c", "aria2c")],
)
def test_an_installed_program_takes_part(contender: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    title, _heads, direct, other = bench("fill", "--contender", contender).strip().splitlines()
    assert title.startswith("fill: ")
    assert direct.split()[0] == "direct"
    assert other.split()[0] == contender
