"""The options of how origins are asked: over how many connections, and how fast."""

from __future__ import annotations

from typing import Final

from .getting import json_option
from .settings import Parser, typed
from .units import parse_size
from .values import one_of, read_count, read_entry

__all__ = ["RATES", "add_explain", "add_limits", "connection_options", "rate_options"]

RATES: Final = {
    "rate": "from all origins together",
    "rate_per_host": "from each origin",
    "background_rate": "for bytes that no reader waits for",
}
"""What may be limited, in bytes per second, as JSON names it."""


def _flag(rate: str) -> str:
    return f"--limit-{rate.replace('_', '-')}"


def connection_options(command: Parser) -> None:
    """Add how many connections there may be, and what becomes of those no longer needed."""
    command.setting(
        "--connections",
        read=read_count,
        default=6,
        metavar="N",
        help="the most connections for one file, as far as they make it faster (default: 6)",
    )
    command.setting(
        "--connections-per-host",
        read=read_count,
        default=8,
        metavar="N",
        help="the most to one origin, for all its files together (default: 8)",
    )
    command.setting(
        "--abandoned",
        read=one_of("stop", "nearly", "finish"),
        default="stop",
        metavar="HOW",
        help="what becomes of a request whose bytes nobody wants any more: it ends (stop, the "
        "default), goes on if a tenth of it is left or less (nearly), or in any case (finish)",
    )


def rate_options(command: Parser) -> None:
    """Add the limits on bytes per second."""
    for rate, what in RATES.items():
        command.setting(
            _flag(rate),
            read=parse_size,
            default=0,
            metavar="SIZE",
            help=f"the most per second {what}, as 5M (default: 0, no limit)",
        )


def add_limits(command: Parser) -> None:
    """Add the options of ``limits``."""
    command.description = (
        "Show or change a running server's limits on bytes per second. Bytes that readers wait\n"
        "for may use all of a limit; downloads in the background have what that leaves."
    )
    command.epilog = "example:\n  cachefsm limits --limit-rate 5M --limit-background-rate 500K\n"
    for rate, what in RATES.items():
        command.add_argument(
            _flag(rate),
            type=typed(parse_size),
            metavar="SIZE",
            help=f"the most per second {what}; 0 for no limit",
        )
    json_option(command, f"one object with {', '.join(RATES)}, in bytes, 0 for no limit")


def add_explain(command: Parser) -> None:
    """Add the options of ``explain``."""
    command.description = (
        "Say whether one byte of an entry is stored; if not, what will bring it and when, or why\n"
        "nobody fetches it. Also say of the entry's readers whether they will have to wait."
    )
    command.add_argument("entry", type=typed(read_entry), metavar="ID|URL")
    command.add_argument(
        "offset", type=typed(parse_size), metavar="OFFSET", help="which byte, as 1048576 or 1M"
    )
    json_option(
        command,
        "one object with offset, status, why, stream, in_s, retry_at, wanted_by, readers",
    )
