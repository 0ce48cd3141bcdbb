"""The options of what downloads, ``get`` and ``prefetch``, and those that others share."""

from __future__ import annotations

from .keys import parse_key_rule
from .parts import parse_part
from .resolvers import command_resolver
from .settings import Parser, typed
from .units import parse_duration, parse_size
from .values import read_count, read_host, read_url

__all__ = ["add_get", "add_prefetch", "json_option", "links_options", "max_size_option"]


def add_get(command: Parser) -> None:
    """Add the options of ``get``."""
    command.description = (
        "Download into the cache, and from there into a file where one is named. What is\n"
        "stored is not transferred again; after Ctrl-C the same command goes on."
    )
    command.add_argument("urls", nargs="+", type=typed(read_url), metavar="URL")
    command.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write it there too, once it is complete; into a directory under the URL's own "
        "name; - is stdout, as the bytes arrive",
    )
    _downloads(command)


def add_prefetch(command: Parser) -> None:
    """Add the options of ``prefetch``."""
    command.description = (
        "Ask the running server to download, behind what people and players wait for, and\n"
        "return at once. Without a server: download now, and return when all is there."
    )
    command.epilog = (
        "examples:\n"
        "  cachefsm prefetch --head 8M https://media.example/one.mkv https://media.example/two.mkv\n"
        "  cachefsm prefetch --playlist --items 3 https://media.example/live/index.m3u8\n"
    )
    command.add_argument("urls", nargs="+", type=typed(read_url), metavar="URL")
    command.add_argument(
        "--head", type=typed(parse_size), metavar="SIZE", help="only so much of the beginning"
    )
    command.add_argument(
        "--range",
        dest="ranges",
        action="append",
        type=typed(parse_part),
        metavar="START-STOP",
        help="only that part, as 0-8M or 1G-; repeatable, and beside --head",
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
        help="URL is a playlist, M3U or HLS: download what comes next in it",
    )
    command.add_argument(
        "--items",
        type=typed(read_count),
        default=3,
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
        help="take a playlist's items from this host as well as from its own; as serve --allow",
    )
    _downloads(command)


def _downloads(command: Parser) -> None:
    json_option(command, "a list of the entries, as list prints them")
    command.setting("--quiet", read=None, default=False, help="no progress, no result, only errors")
    command.setting("--verbose", read=None, default=False, help="say what happens, retries too")
    max_size_option(command, "evict the least recently used beyond this, if no server runs")
    links_options(command)


def links_options(command: Parser) -> None:
    """Add what says which URLs are one file, and who knows its latest link."""
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
        help="run COMMAND URL for a fresh link when a file's has expired (401, 403, 410); it "
        "prints that in one line",
    )


def json_option(command: Parser, what: str) -> None:
    """Add ``--json``, which prints *what*."""
    command.add_argument("--json", action="store_true", help=f"for scripts: {what}")


def max_size_option(command: Parser, help_: str) -> None:
    """Add ``--max-size``."""
    command.setting("--max-size", read=parse_size, metavar="SIZE", help=help_)
