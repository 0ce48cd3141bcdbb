"""Other people's programs in tests: whether they are here, and running them to their end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["FFMPEG", "needs", "run"]

RUN_S = 60.0  # bounds a program that hangs

FFMPEG = ("ffmpeg", "-nostdin", "-v", "error")


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where one of *programs* is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(*command: str | Path, codes: tuple[int, ...] = (0,)) -> bytes:
    """Return what *command* prints; fails unless it ends with one of *codes*."""
    done = subprocess.run(command, capture_output=True, timeout=RUN_S, stdin=subprocess.DEVNULL)
    assert done.returncode in codes, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout
