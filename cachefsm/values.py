"""What values look like on the command line; each reads one, or raises UsageError."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .access import AllowList
from .errors import UsageError
from .urls import parse_url

__all__ = [
    "default_cache_dir",
    "one_of",
    "read_count",
    "read_directory",
    "read_entry",
    "read_host",
    "read_host_name",
    "read_output",
    "read_port",
    "read_token",
    "read_url",
]


_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*")
_TOKEN = re.compile(r"[!-~]+")


def read_url(text: str) -> str:
    """Return the URL, in the spelling that entries are found by."""
    return str(parse_url(text))


def read_entry(text: str) -> int | str:
    """Return an entry's id, or its URL."""
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    if "//" not in text:
        raise UsageError(f"{text!r} is neither an entry's id nor a URL")
    return read_url(text)


def read_port(text: str) -> int:
    """Return the number of a port."""
    if text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536:
        return int(text)
    raise UsageError(f"{text!r} is no port; they go from 0 (any free one) to 65535")


def read_host(text: str) -> str:
    """Return a pattern for hosts, once it is known to be one."""
    AllowList([text])
    return text


def read_host_name(text: str) -> str:
    """Return a name or an address that a proxy is known by: a Host field without its port."""
    if not _HOST_NAME.fullmatch(text):
        raise UsageError(f"{text!r} is no host's name: leave out scheme, port and path")
    return text


def read_token(text: str) -> str:
    """Return a token that any client can send; a refusal does not tell it."""
    if not _TOKEN.fullmatch(text):
        raise UsageError("a token has letters, digits and signs of ASCII, and no spaces")
    return text


def read_output(text: str) -> str:
    """Return the name of a file to write."""
    if not text:
        raise UsageError("a file has a name")  # as a directory has
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """Return what reads one of *choices*."""

    def read(text: str) -> str:
        if text in choices:
            return text
        raise UsageError(f"{text!r} is none of {', '.join(choices)}")

    return read


def read_count(text: str) -> int:
    """Return a number from 1 to 9999."""
    if text.isascii() and text.isdigit() and 0 < len(text) < 5 and int(text):
        return int(text)
    raise UsageError(f"{text!r} is no number from 1 to 9999")


def read_directory(text: str) -> Path:
    """Return the path of a directory."""
    if not text:
        # Path("") would be the current directory: an unset variable in a script.
        raise UsageError("a directory has a name")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text!r} names a user that there isn't") from error


def default_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the cache lives unless somebody says otherwise.

    Source: the XDG Base Directory specification, which ignores relative paths.
    """
    base = environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base, "cachefsm")
    try:
        return Path.home() / ".cache" / "cachefsm"
    except RuntimeError:
        return Path("~/.cache/cachefsm")  # no home: whoever opens the cache hears of it
