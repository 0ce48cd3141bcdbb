"""The options of ``get`` and ``prefetch``, and those that several commands share."""

from __future__ import annotations

from .keys import parse_key_rule
from .parts import parse_part
from .resolvers import command_resolver
from .settings import Parser, typed
from .units import parse_duration, parse_size
from .values import read_count, read_host, read_output, read_url

__all__ = ["add_get", "add_prefetch", "json_option", "links_options", "max_size_option"]


def add_get(command: Parser) -> None:
    """Add the options of ``get``."""
    command.description = (
        "Download into the cache, and with -o copy the file from there. What is stored is not\n"
        "transferred again; after Ctrl-C the same command goes on where it was."
    )
    command.add_argument("urls", nargs="+", type=typed(read_url), metavar="URL")
    command.add_argument(
        "-o",
        "--output",
        type=typed(read_output),
        metavar="FILE",
        help="write the file there too, once it is complete; if it is a directory, into that "
        "under the URL's own name; - is stdout, as the bytes arrive",
    )
    _downloads(command)


def add_prefetch(command: Parser) -> None:
    """Add the options of ``prefetch``."""
    command.description = (
        "Ask the running server to download when nothing more urgent is to be done, and\n"
        "return at once. Without a server: download now, and return when all is there."
    )
    command.epilog = (
        "examples:\n"
        "  cachefsm prefetch --head 8M https://media.example/one.mkv https://media.example/two.mkv\n"
        "  cachefsm prefetch --playlist --items 3 https://media.example/live/index.m3u8\n"
    )
    command.add_argument("urls", nargs="+", type=typed(read_url), metavar="URL")
    command.add_argument(
        "--head", type=typed(parse_size), metavar="SIZE", help="fetch only so much of the beginning"
    )
    command.add_argument(
        "--range",
        dest="ranges",
        action="append",
        type=typed(parse_part),
        metavar="START-STOP",
        help="fetch only that part, as 0-8M or 1G-; repeatable, also together with --head",
    )
    command.add_argument(
        "--deadline",
        type=typed(parse_duration),
        metavar="TIME",
        help="give up what has not come within that time",
    )
    command.add_argument(
        "--playlist",
        action="store_true",
        help="URL is a playlist, M3U or HLS: download its next items",
    )
    command.add_argument(
        "--items",
        type=typed(read_count),
        metavar="N",
        help="how many items of a playlist (default: 3): the first ones, or the last ones of a "
        "live playlist, or those after --after",
    )
    command.add_argument(
        "--after",
        type=typed(read_url),
        metavar="URL",
        help="the playlist's item that is being played",
    )
    command.add_argument(
        "--allow",
        action="append",
        default=[],
        type=typed(read_host),
        metavar="HOST",
        help="download a playlist's items also from this host, which has the form of serve "
        "--allow; others than the playlist's own are left out",
    )
    _downloads(command)


def _downloads(command: Parser) -> None:
    json_option(command, "a list of the entries, as list prints them")
    command.setting("--quiet", read=None, default=False, help="no progress, no result, only errors")
    command.setting("--verbose", read=None, default=False, help="say what happens, retries too")
    max_size_option(command, "evict the least recently used beyond this, if no server runs")
    links_options(command)


def links_options(command: Parser) -> None:
    """Add which URLs are one file, and what finds a fresh link to it."""
    command.setting(
        "--key-rule",
        read=parse_key_rule,
        many=True,
        default=(),
        metavar="HOST=NAME,…",
        help="URLs at this host are one file if they differ only in these query parameters, as in "
        "'cdn.example=token,X-Amz-*'; HOST as for --allow; repeatable",
    )
    command.setting(
        "--resolver",
        read=command_resolver,
        metavar="COMMAND",
        help="when a link has expired (401, 403, 410), run COMMAND URL, which prints a fresh "
        "one on one line",
    )


def json_option(command: Parser, what: str) -> None:
    """Add ``--json``, which prints *what*."""
    command.add_argument("--json", action="store_true", help=f"for scripts: {what}")


def max_size_option(command: Parser, help_: str) -> None:
    """Add ``--max-size``."""
    command.setting("--max-size", read=parse_size, metavar="SIZE", help=help_)
