"""The commands that look at entries and order them about, and what they print."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from typing import Any

from .backend import open_backend
from .display import format_count, format_state, format_stats, shades, show_entry, show_list
from .errors import CacheError, IllegalMove
from .units import format_size
from .urls import redact

__all__ = ["collect", "diagram", "list_entries", "order", "show", "stats"]


def list_entries(options: argparse.Namespace) -> int:
    """Print all entries."""
    with open_backend(options.cache_dir) as backend:
        entries = backend.entries()
    if options.json:
        _print_json(entries)
    elif entries:
        # Cut only what would wrap: what goes into a pipe or a file stays whole.
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(show_list(entries, width)))
    else:
        print(f"no entries in {options.cache_dir}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print one entry."""
    with open_backend(options.cache_dir) as backend:
        facts = backend.find(options.entry)
    if options.json:
        _print_json(facts)
    else:
        width = shutil.get_terminal_size().columns
        print("\n".join(show_entry(facts, width, shades(sys.stdout))))
    return 0


def order(options: argparse.Namespace) -> int:
    """Do what the command's name says to each entry; say what became of it."""
    done, failures = [], 0
    with open_backend(options.cache_dir) as backend:
        for which in options.entries:
            try:
                facts = backend.order(options.command, which)
            except CacheError as error:
                failures += 1
                name = ""
                if isinstance(error, IllegalMove):  # which does not know whose move it was
                    name = f"entry {which}: " if isinstance(which, int) else f"{redact(which)}: "
                print(f"cachefsm: {name}{error}", file=sys.stderr)
            else:
                done.append(facts)
                if not options.json:
                    print(_outcome(options.command, facts, served=backend.address is not None))
    if options.json:
        _print_json(done)
    return 1 if failures else 0


def _outcome(command: str, facts: dict[str, Any], *, served: bool) -> str:
    entry = f"entry {facts['id']}"
    if command == "remove":
        return f"{entry} is removed: {facts['url']}"
    if command in ("pin", "unpin"):
        return f"{entry} is {'pinned' if facts['pinned'] else 'not pinned'}: {facts['url']}"
    if command in ("resume", "retry"):
        return f"{entry} goes on{'' if served else ' when the cache is served'}: {facts['url']}"
    return f"{entry} is {format_state(facts)}: {facts['url']}"


def stats(options: argparse.Namespace) -> int:
    """Print how much there is."""
    with open_backend(options.cache_dir) as backend:
        found = backend.stats()
        if backend.address is None:
            found["max_size"] = options.max_size
    if options.json:
        _print_json(found)
    else:
        print("\n".join(format_stats(found)))
    return 0


def collect(options: argparse.Namespace) -> int:
    """Make room, and remove what no entry owns."""
    with open_backend(options.cache_dir) as backend:
        freed = backend.collect(options.max_size)
    if options.json:
        _print_json(freed)
        return 0
    orphans = format_count(freed["orphan_files"], "file")
    print(
        f"evicted {format_size(freed['evicted_bytes'])}, removed {orphans} without an entry "
        f"({format_size(freed['orphan_bytes'])}); {format_size(freed['bytes_stored'])} stored"
    )
    return 0


def diagram(options: argparse.Namespace) -> int:
    """Draw the lifecycle, or say what is out of date."""
    from .diagrams import GRAPHVIZ_HINT, graphviz_installed, stale_diagrams, write_diagrams

    if options.check:
        stale = stale_diagrams(options.output)
        for line in stale:
            print(f"cachefsm: {line}", file=sys.stderr)
        return 1 if stale else 0
    for path in write_diagrams(options.output):
        print(path)
    if not graphviz_installed():
        print(GRAPHVIZ_HINT, file=sys.stderr)
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
