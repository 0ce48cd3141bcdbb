"""What people see of entries: tables, pictures of what is here, sizes and times. Pure.

*Facts* are an entry's description, as ``/-/entries`` and ``--json`` give it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, TextIO
from urllib.parse import unquote, urlsplit

from .units import format_size

__all__ = [
    "file_name",
    "format_count",
    "format_eta",
    "format_percent",
    "format_state",
    "format_stats",
    "format_stored",
    "range_bar",
    "shades",
    "show_entry",
    "show_list",
    "spell_ranges",
]

BLOCKS: Final = "·░▒▓█"
PLAIN: Final = ".-=+#"
"""From nothing to all of it; for terminals that can and that cannot."""

_URL_AT_LEAST: Final = 24


def shades(stream: TextIO) -> str:
    """Return the marks for :func:`range_bar` that *stream* can encode."""
    try:
        BLOCKS.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return BLOCKS


def range_bar(
    ranges: Iterable[Sequence[int]], total: int | None, width: int, marks: str = BLOCKS
) -> str:
    """Return *width* characters that show where in ``[0, total)`` the *ranges* lie.

    Each stands for an equal part of the file. The last mark means all of the
    part, the first none of it; neither is shown for "nearly". Of a file of
    unknown length, the last stored byte is taken for the middle.
    """
    runs = [(start, stop) for start, stop in ranges]
    length = total if total is not None else 2 * max((stop for _, stop in runs), default=0)
    if not length:
        return marks[-1 if total == 0 else 0] * width
    cells = []
    first = 0  # the runs before it end before the cell
    for index in range(width):
        start, stop = index * length // width, (index + 1) * length // width
        stop = max(stop, start + 1)
        while first < len(runs) and runs[first][1] <= start:
            first += 1
        here = 0
        for begin, end in runs[first:]:
            if begin >= stop:
                break
            here += min(end, stop) - max(begin, start)
        size = stop - start
        inner = 1 + here * (len(marks) - 2) // size
        cells.append(marks[0 if here == 0 else -1 if here >= size else inner])
    return "".join(cells)


def format_percent(facts: dict[str, Any]) -> str:
    """Return how much is here, as ``36%``; never 100% before all is; ``-`` if unknown."""
    stored, total = facts["downloaded_bytes"], facts["total_size"]
    if total is None:
        return "-"
    return f"{stored * 100 // total}%" if total else "100%"


def format_stored(facts: dict[str, Any]) -> str:
    """Return ``18.4 MiB of 50.5 MiB``, or the one size where there is only one."""
    stored, total = facts["downloaded_bytes"], facts["total_size"]
    if total is None:
        return f"{format_size(stored)} so far" if stored else "nothing yet"
    if stored == total:
        return format_size(total)
    return f"{format_size(stored)} of {format_size(total)}"


def format_state(facts: dict[str, Any]) -> str:
    """Return the state in words, with the reason where it says something."""
    state = facts["state"].replace("_", " ")
    reason = _REASONS.get(facts["reason"], facts["reason"])
    return f"{state} ({reason})" if reason else state


_REASONS: Final = {
    "person": "by a person",
    "idle": "nobody is reading",
    "deadline": "an order was not met in time",
    "too large": "the cache may not hold so much",
    "shutdown": "the cache was closed",
    "recovered": "the cache was not closed properly",
}


def format_count(count: int, one: str, many: str = "") -> str:
    """Return ``1 file`` or ``2 files``."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def format_eta(left_s: float) -> str:
    """Return ``0:38`` or ``1:02:03``; nothing for more than four days."""
    if not 0 <= left_s < 100 * 3600:
        return ""
    minutes, seconds = divmod(round(left_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def file_name(url: str) -> str:
    """Return the last part of the URL's path as a file name, safe to create."""
    parts = urlsplit(url)
    name = unquote(parts.path.rsplit("/", 1)[-1], errors="replace")
    # What comes from outside can hold anything, once decoded; ours is one visible name.
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name).strip()
    name = name.encode()[:200].decode(errors="ignore")
    return name if name.strip(".") else parts.hostname or "download"


# -- tables ------------------------------------------------------------------------


def show_list(entries: list[dict[str, Any]], width: int | None) -> list[str]:
    """Return a table, a line per entry; URLs are cut to fit *width*, unless it is None."""
    rows = [("ID", "STATE", "HERE", "SIZE", "URL")]
    for facts in entries:
        total = facts["total_size"]
        rows.append(
            (
                str(facts["id"]),
                facts["state"].replace("_", " ") + (", pinned" if facts["pinned"] else ""),
                format_percent(facts) if total is not None else format_size(_stored(facts)),
                "?" if total is None else format_size(total),
                facts["url"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    room = None if width is None else max(_URL_AT_LEAST, width - sum(widths) - 8)
    return [
        f"{id_:>{widths[0]}}  {state:<{widths[1]}}  {here:>{widths[2]}}  {size:>{widths[3]}}  "
        f"{_fit(url, room)}"
        for id_, state, here, size, url in rows
    ]


def show_entry(facts: dict[str, Any], width: int, marks: str) -> list[str]:
    """Return one entry's facts, with a picture of what is here."""
    bar = range_bar(facts["ranges"], facts["total_size"], min(72, max(10, width - 13)), marks)
    percent = format_percent(facts)
    lines = [
        ("entry", f"{facts['id']}{', pinned' if facts['pinned'] else ''}"),
        ("url", facts["url"]),
        ("state", f"{format_state(facts)}, since {_local(facts['since'])}"),
        ("here", format_stored(facts) + (f", {percent}" if percent != "-" else "")),
        ("", bar),
        ("", spell_ranges(facts["ranges"])),
        ("rate", f"{format_size(facts['rate_bytes_s'])}/s" if facts["rate_bytes_s"] else ""),
        ("type", facts["content_type"] or ""),
        ("playable", "yes" if facts["playable"] else "not yet"),
        ("wanted by", ", ".join(facts["asked_by"])),
        ("readers", str(facts["readers"]) if facts["readers"] else ""),
        ("created", _local(facts["created_at"])),
        ("last read", _last_read(facts)),
    ]
    return [f"{label:<10} {text}" for label, text in lines if text]


def format_stats(stats: dict[str, Any]) -> list[str]:
    """Return a cache's numbers for people."""
    states = [f"{count} {name.replace('_', ' ')}" for name, count in stats["states"].items()]
    limit, free, pinned = stats["max_size"], stats["bytes_free"], stats["bytes_pinned"]
    used = f" of {format_size(limit)} allowed" if limit is not None else ", no limit"
    lines = [
        ("directory", stats["directory"]),
        ("server", stats["server"] or "none running"),
        ("entries", f"{stats['entries']}" + (f": {', '.join(states)}" if states else "")),
        ("stored", format_size(stats["bytes_stored"]) + used),
        ("pinned", format_size(pinned) if pinned else ""),
        ("disk", f"{format_size(free)} free" if free is not None else ""),
        ("now", _activity(stats)),
    ]
    return [f"{label:<10} {text}" for label, text in lines if text]


def _activity(stats: dict[str, Any]) -> str:
    readers, streams = stats["readers"], stats["streams"]
    told = [
        format_count(readers, "reader") if readers else "",
        f"{format_count(streams, 'connection')} to origins" if streams else "",
    ]
    return ", ".join(filter(None, told))


def _stored(facts: dict[str, Any]) -> int:
    return int(facts["downloaded_bytes"])


def _fit(text: str, room: int | None) -> str:
    """Cut the middle out: a URL's ends tell most."""
    if room is None or len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[-tail:]}"


def spell_ranges(ranges: Sequence[Sequence[int]]) -> str:
    """Return ``bytes 0-999, 2000-2999``, as they are written in HTTP; the first few."""
    shown = [f"{start}-{stop - 1}" for start, stop in ranges[:4]]
    if len(ranges) > len(shown):
        shown.append(f"and {len(ranges) - len(shown)} more")
    return f"bytes {', '.join(shown)}" if shown else ""


def _last_read(facts: dict[str, Any]) -> str:
    count = facts["access_count"]
    if not count:
        return "never"
    return f"{_local(facts['last_accessed_at'])}, {count} time{'s' if count > 1 else ''} in all"


def _local(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
