"""The command line's grammar: commands, options, and their twins in the environment.

Imports nothing that takes time, so that ``--help`` and a mistyped option answer
at once. Settings have twins in the environment; what says what a single call
should do (``-o``, ``--json``, …) has none.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from . import __version__
from .access import parse_mount
from .getting import add_get, add_prefetch, json_option, links_options, max_size_option
from .pacing import add_explain, add_limits, connection_options, rate_options
from .pages import parse_page
from .rules import parse_fresh, parse_header, parse_which
from .settings import Parser, typed
from .units import parse_duration, parse_size
from .values import (
    default_cache_dir,
    one_of,
    read_directory,
    read_entry,
    read_host,
    read_host_name,
    read_port,
    read_token,
)

__all__ = ["COMMANDS", "ORDERS", "default_cache_dir", "parse_arguments"]

ORDERS: Final = {
    "pause": "hold downloads until somebody resumes them",
    "resume": "go on with paused downloads",
    "cancel": "give downloads up, keeping what is stored",
    "retry": "try failed downloads again",
    "pin": "keep entries from eviction",
    "unpin": "let entries be evicted again",
    "remove": "forget entries and delete their bytes",
}
"""The commands that do one thing to each entry named; and what."""

COMMANDS: Final = {
    "serve": "run the proxy",
    "get": "download through the cache",
    "prefetch": "have downloads made in the background",
    "list": "show all entries",
    "show": "show one entry and which of its bytes are here",
    **ORDERS,
    "verify": "compare what is stored with its checksums",
    "explain": "say when a byte will come, or why not",
    "limits": "show or change limits on bytes per second",
    "stats": "show how much there is, and in which states",
    "gc": "make room, and remove files that belong to nothing",
    "diagram": "draw the lifecycle of a download",
}

_EPILOG: Final = """\
`cachefsm COMMAND --help` tells more. To see it at work: cachefsm serve --demo

Commands act on a running server's cache and on an idle one alike; the server is
found through the cache directory. Sizes read 500M, 1.5GiB, 20G; durations 500ms,
90s, 30d. Options in [BRACKETS] can be set in the environment under that name,
lists separated by white space; the command line wins.

Exit status: 0, 1 if something failed, 2 if it was called wrongly, 130 if Ctrl-C
ended it. A failure is one line on stderr.
"""


def parse_arguments(
    arguments: list[str] | None = None, environ: Mapping[str, str] = os.environ
) -> argparse.Namespace:
    """Return the parsed options; ``command`` is one of :data:`COMMANDS`.

    Exits with status 2 and one line on stderr if they make no sense. ``fail(message)`` of
    the result does the same, for mistakes that are found later.
    """
    parser, subparsers = _grammar()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.exit(2, parser.format_help())
    command = subparsers[options.command]
    command.settle(options, environ)
    options.fail = command.error
    return options


# -- the grammar -------------------------------------------------------------------


def _grammar() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="cachefsm",
        description="A progressive-download cache for media, with an HTTP proxy in front.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"cachefsm {__version__}")
    # Accepted before the command, too; shown in the commands' help only.
    hidden = argparse.SUPPRESS
    parser.add_argument("--cache-dir", type=typed(read_directory), help=hidden, default=hidden)
    parser.add_argument("--debug", action="store_true", help=hidden, default=hidden)
    adding = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    subparsers: dict[str, Parser] = {}
    for name, help_ in COMMANDS.items():
        command = adding.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
        if name != "diagram":
            command.setting(
                "--cache-dir",
                read=read_directory,
                default=default_cache_dir,
                metavar="DIR",
                help="where the cache lives (default: ~/.cache/cachefsm)",
            )
        _FILL_IN.get(name, _order)(command)
        command.setting("--debug", read=None, default=False, help="log everything, show tracebacks")
        subparsers[name] = command
    return parser, subparsers


def _serve(command: Parser) -> None:
    command.description = (
        "Run the proxy until SIGTERM or Ctrl-C. It fetches from the origins that are\n"
        "mounted or allowed, and from no others. The first line on stdout is its address;\n"
        "the log goes to stderr."
    )
    command.epilog = (
        "examples:\n"
        "  cachefsm serve --demo\n"
        "  cachefsm serve --mount /films=https://media.example/films/ --max-size 20G\n"
        "  cachefsm serve --allow '*.example.org' --cache-dir /var/cache/films --port 8090\n"
    )
    _address(command)
    _origins(command)
    _clients(command)
    max_size_option(command, "evict the least recently used beyond this (default: no limit)")
    links_options(command)
    _filling(command)
    _careful(command)
    command.setting(
        "--verbose", read=None, default=False, help="log details, and requests below /-/ too"
    )
    command.setting("--quiet", read=None, default=False, help="log only warnings")
    command.add_argument(
        "--demo", action="store_true", help="mount a slow origin with five minutes of music"
    )


def _address(command: Parser) -> None:
    """Add where the proxy listens."""
    command.setting(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1); on any but loopback, "
        "whoever can reach it can read what is mounted, and control needs the token",
    )
    command.setting(
        "--port",
        read=read_port,
        default=8080,
        metavar="N",
        help="port to listen on (default: 8080); 0 takes a free one",
    )


def _origins(command: Parser) -> None:
    """Add which origins can be reached, and by which rules."""
    setting = command.setting
    setting(
        "--mount",
        read=parse_mount,
        many=True,
        default=(),
        metavar="/NAME=URL",
        help="serve what is below the origin's URL under /NAME/; repeatable",
    )
    setting(
        "--allow",
        read=read_host,
        many=True,
        default=(),
        metavar="HOST",
        help="let clients ask for URLs at this host, as /https/HOST/path, and redirects lead "
        "there; HOST, HOST:PORT, '*.SUFFIX', or '*' for all but this machine and private "
        "networks; repeatable",
    )
    _rules(command)
    setting(
        "--private",
        read=read_host,
        many=True,
        default=(),
        metavar="HOST",
        help="let the name of this host, or '*.SUFFIX', lead to addresses of private networks; "
        "others may not, but for localhost and for addresses that are written out; repeatable",
    )


def _clients(command: Parser) -> None:
    """Add what clients may do, and which name and token they use."""
    setting = command.setting
    setting(
        "--host-name",
        read=read_host_name,
        many=True,
        default=(),
        metavar="NAME",
        help="a further name by which clients may address this proxy; repeatable",
    )
    setting(
        "--page",
        read=parse_page,
        many=True,
        default=(),
        metavar="ORIGIN",
        help="let the web pages of this origin, as http://HOST:PORT, show and read what is "
        "served here; null is for pages from files, * for all; repeatable",
    )
    setting(
        "--token",
        read=read_token,
        help="the secret that control needs off loopback (default: a new one, printed)",
    )


def _filling(command: Parser) -> None:
    """Add how much is fetched for readers, and how long they wait."""
    setting = command.setting
    setting(
        "--fill",
        read=one_of("rest", "finish", "requested"),
        default="rest",
        metavar="HOW",
        help="what to fetch of a file that somebody reads: all of it, for as long as somebody "
        "does and for the grace (rest, the default); all of it in any case (finish); no more "
        "than is read, and read ahead (requested)",
    )
    setting(
        "--grace",
        read=parse_duration,
        default=10.0,
        metavar="TIME",
        help="how long a download outlives its last reader (default: 10s)",
    )
    setting(
        "--read-ahead",
        read=parse_size,
        default=8 << 20,
        metavar="SIZE",
        help="how far past a reader to fetch at most (default: 8M; 0: all that it asks for)",
    )
    setting(
        "--first-byte-timeout",
        read=parse_duration,
        default=30.0,
        metavar="TIME",
        help="how long a client waits for its first byte (default: 30s)",
    )
    setting(
        "--stall-timeout",
        read=parse_duration,
        default=30.0,
        metavar="TIME",
        help="how long a client waits for every further byte (default: 30s)",
    )


def _rules(command: Parser) -> None:
    """Add the rules that single mounts can have."""
    setting = command.setting
    setting(
        "--fresh",
        read=parse_fresh,
        many=True,
        default=(),
        metavar="/NAME=TIME",
        help="treat what is stored of this mount as fresh for so long, whatever its origin "
        "says; TIME alone: of all mounts; repeatable",
    )
    for flag, help_ in (
        ("--offline", "never ask this mount's origin: serve what is stored, or a 504"),
        ("--pass-methods", "pass methods other than GET and HEAD to this mount's origin, uncached"),
        (
            "--hand-on-redirects",
            "let clients follow this mount's redirects, rewritten to lead through the proxy",
        ),
    ):
        setting(
            flag,
            read=parse_which,
            many=True,
            default=(),
            metavar="/NAME",
            nargs="?",
            const="yes",  # which argparse has read like any other value
            help=f"{help_}; without a name: all mounts; repeatable",
        )
    setting(
        "--header",
        read=parse_header,
        many=True,
        separator="\n",
        default=(),
        metavar="'/NAME: FIELD: VALUE'",
        help="send this field to the mount's origin, in place of the client's; clients never "
        "see it; repeatable (in the environment, one a line)",
    )


def _careful(command: Parser) -> None:
    """Add the options that trade speed for safety, or for sparing origins."""
    setting = command.setting
    setting(
        "--durability",
        read=one_of("power", "process"),
        default="power",
        metavar="HOW",
        help="what recorded bytes survive: a loss of power (power, the default), or only the "
        "death of this process (process), which saves the disk a sync every second",
    )
    setting(
        "--verify-reads",
        read=one_of("never", "sample", "always"),
        default="sample",
        metavar="HOW",
        help="which stored blocks are compared with their checksums before they are served: "
        "none (never), some (sample, the default), all (always)",
    )
    setting(
        "--scrub-rate",
        read=parse_size,
        default=0,
        metavar="SIZE",
        help="how much to verify per second in the background, over and over (default: 0, nothing)",
    )
    connection_options(command)
    rate_options(command)


def _list(command: Parser) -> None:
    json_option(
        command,
        "a list of objects with id, url, state, reason, since, total_size (null while unknown), "
        "downloaded_bytes, ranges ([start, stop) pairs), rate_bytes_s, readers, pinned, …",
    )


def _show(command: Parser) -> None:
    command.add_argument("entry", type=typed(read_entry), metavar="ID|URL")
    json_option(command, "one object, as in list")


def _order(command: Parser) -> None:
    command.add_argument("entries", nargs="+", type=typed(read_entry), metavar="ID|URL")
    json_option(command, "a list of the entries it was done to, as list prints them")


def _verify(command: Parser) -> None:
    command.description = (
        "Compare the stored bytes of the entries named, or of all, with the checksums that\n"
        "they had when they were received. Damaged bytes are dropped, and nobody is served\n"
        "them: they are fetched again when somebody wants them, or at once with --repair."
    )
    command.epilog = (
        "A block, 1 MiB, is damaged or sound as a whole; one of which a part is missing has no\n"
        "checksum. Exit status: 1 if damage was found that is not repaired."
    )
    command.add_argument("entries", nargs="*", type=typed(read_entry), metavar="ID|URL")
    command.add_argument(
        "--repair",
        action="store_true",
        help="fetch damaged bytes again, what an earlier look dropped too; and, if no entry is "
        "named, delete files that belong to none",
    )
    json_option(
        command,
        "one object with entries (a list of objects with id, url, checked_bytes, unchecked_bytes, "
        "damaged_bytes, damaged ([start, stop) pairs), repaired (null if sound)), checked_bytes, "
        "unchecked_bytes, damaged_bytes, orphan_files, orphan_bytes",
    )
    command.setting(
        "--quiet", read=None, default=False, help="no progress, and no result if all is sound"
    )


def _stats(command: Parser) -> None:
    json_option(
        command,
        "one object with directory, server (null if idle), entries, states (a number for each), "
        "bytes_stored, bytes_pinned, max_size (null if unlimited), bytes_free on the disk, "
        "bytes_from_origin since the start, streams, readers",
    )
    max_size_option(command, "the limit to show, if no server runs")


def _gc(command: Parser) -> None:
    command.description = (
        "Evict the least recently used entries until no more than --max-size is stored, and\n"
        "remove content files that belong to no entry. Pinned entries, and those in use, stay."
    )
    max_size_option(command, "default: the running server's; without either, nothing is evicted")
    json_option(command, "one object with evicted_bytes, orphan_files, orphan_bytes, bytes_stored")


def _diagram(command: Parser) -> None:
    command.add_argument(
        "--output",
        type=typed(read_directory),
        default=Path("diagrams"),
        metavar="DIR",
        help="default: diagrams",
    )
    command.add_argument(
        "--check", action="store_true", help="write nothing; fail if DIR is out of date"
    )


_FILL_IN: Final[dict[str, Callable[[Parser], None]]] = {
    "serve": _serve,
    "get": add_get,
    "prefetch": add_prefetch,
    "list": _list,
    "show": _show,
    "verify": _verify,
    "explain": add_explain,
    "limits": add_limits,
    "stats": _stats,
    "gc": _gc,
    "diagram": _diagram,
}
