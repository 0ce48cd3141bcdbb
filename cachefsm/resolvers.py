"""Resolvers, which give a fresh link for one that has expired: functions, or commands.

They are called by `cachefsm.renewal`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from typing import Final

from .errors import OriginStatus, UsageError

__all__ = ["Resolver", "command_resolver"]

COMMAND_TIMEOUT_S: Final = 60.0

Resolver = Callable[[str, OriginStatus], "str | None"]
"""Called with the full URL that has expired and the origin's answer to it; returns a fresh
URL, or None if there is none. It may raise, and may take its time."""


def command_resolver(command: str) -> Resolver:
    """Return a resolver that runs *command* with the URL as its last argument.

    The fresh URL is the first line that it prints. If it prints none, or exits with a
    status other than 0, there is none; then its last line on stderr goes to the log.

    Raises:
        UsageError: *command* is empty, or names no program that can be run.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the resolver cannot be read: {error}") from error
    if not words:
        raise UsageError("a resolver is a command")
    if shutil.which(words[0]) is None:
        raise UsageError(f"the resolver {words[0]!r} is no command that can be run here")

    def resolve(url: str, _error: OriginStatus) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - the person's own command
                [*words, url],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"the resolver took more than {error.timeout:g} s") from error
        except OSError as error:
            raise UsageError(f"the resolver cannot be run: {error.strerror}") from error
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            raise UsageError(f"the resolver failed: {said[0]}")
        lines = done.stdout.split("\n", 1)
        return lines[0].strip() or None

    return resolve
