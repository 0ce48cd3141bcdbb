"""The page that a person sees at ``/-/``: what there is, how far it is, and buttons. Pure.

It needs no other file: one document with its style and its script, which asks for the page
anew every second and puts the table in place of the old one. Whatever an origin or a client
has named is text in it, never markup; and no other page can frame it and have its buttons
pressed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from typing import Any, Final

from .display import format_count, format_percent, format_state, format_stored, range_bar
from .units import format_size

__all__ = ["FIELDS", "MOST_ROWS", "page"]

MOST_ROWS: Final = 200
"""How many entries are shown: a browser lays out thousands each second only with trouble."""

_PARTS: Final = 250
"""Into how many parts a file's picture is divided."""

_SHADES: Final = "01234"
"""From none of a part to all of it, as in :func:`cachefsm.display.range_bar`."""

_ORDERS: Final = {
    "initializing": ("pause", "cancel"),
    "downloading": ("pause", "cancel"),
    "paused": ("resume", "cancel"),
    "failed": ("retry",),
}

# What moves is looked for first, then what might.
_RANKS: Final = ("downloading", "initializing", "failed", "paused", "not_started", "complete")

_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
p { margin: .2rem 0 1.5rem; opacity: .75; }
table { border-collapse: collapse; width: 100%; }
th { font-weight: 600; text-align: left; opacity: .75; }
th, td { border-bottom: 1px solid #8884; padding: .4rem .6rem; vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number { text-align: right; white-space: nowrap; }
svg { background: #8883; border-radius: 3px; display: block; height: .6rem; margin-top: .3rem;
  width: 100%; }
rect { fill: #2a7de1; }
.complete rect { fill: #1a7f37; }
.failed rect { fill: #c6232c; }
.paused rect { fill: #b98900; }
.s1 { opacity: .35; } .s2 { opacity: .55; } .s3 { opacity: .75; }
b { font-weight: 600; white-space: nowrap; }
.complete b { color: #1a7f37; } .failed b { color: #c6232c; } .paused b { color: #b98900; }
.downloading b, .initializing b { color: #2a7de1; }
small { display: block; opacity: .75; }
td.orders { white-space: nowrap; }
button { font: inherit; font-size: .85rem; margin: 0 .2rem .2rem 0; }
@media (max-width: 45rem) {
  table, tbody { display: block; }
  tr { border-bottom: 1px solid #8884; display: flex; flex-wrap: wrap;
    justify-content: space-between; }
  td { border: 0; box-sizing: border-box; }
  td:first-child { flex: 1 0 100%; }
  td.orders { flex: 1 0 100%; }
  th { display: none; }
}
"""

_SCRIPT: Final = """
const main = document.querySelector("main"), said = document.querySelector("output");
async function show() {
  try {
    const reply = await fetch(location, {headers: {Accept: "text/html"}});
    const text = await reply.text();
    const found = new DOMParser().parseFromString(text, "text/html").querySelector("main");
    if (found && found.innerHTML !== main.innerHTML) main.innerHTML = found.innerHTML;
    document.body.style.opacity = 1;
  } catch { document.body.style.opacity = .4; }  // the proxy is away
}
main.addEventListener("click", async (event) => {
  const target = event.target.dataset.post;
  if (!target) return;
  const reply = await fetch(target, {method: "POST"});
  said.textContent = reply.ok ? "" : (await reply.json()).error;
  show();
});
setInterval(() => document.hidden || show(), 1000);
"""


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


FIELDS: Final = (
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src {_hash_of(_STYLE)}; script-src {_hash_of(_SCRIPT)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
)
"""The page's own script and style run, and nothing else; and no page shows it in a frame."""


def page(entries: Iterable[dict[str, Any]], stats: dict[str, Any]) -> str:
    """Return the document; *entries* and *stats* are what ``/-/entries`` and ``/-/stats`` tell.

    Of more entries than can be shown, those that were used last.
    """
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>cachefsm</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{_STYLE}</style></head><body><h1>cachefsm</h1><main>",
            *_main(sorted(entries, key=_order), stats),
            f"</main><output></output><script>{_SCRIPT}</script></body></html>",
            "",
        )
    )


def _order(facts: dict[str, Any]) -> tuple[int, float]:
    return _RANKS.index(facts["state"]), -facts["last_accessed_at"]


def _main(entries: list[dict[str, Any]], stats: dict[str, Any]) -> Iterator[str]:
    count = stats["entries"]
    told = [format_count(count, "entry", "entries")]
    told.append(f"{format_size(stats['bytes_stored'])} stored")
    told.append(f"{format_size(stats['bytes_free'])} free")
    if stats["streams"]:
        told.append(f"{format_count(stats['streams'], 'connection')} to origins")
    yield f"<p>{' · '.join(told)}</p>"
    if not entries:
        yield "<p>Nothing has been asked for yet.</p>"
        return
    yield "<table><tr><th>File</th><th>State</th><th></th><th></th></tr>"
    yield from map(_row, entries)
    yield "</table>"
    if count > len(entries):
        yield f"<p>and {count - len(entries)} used before them: cachefsm list shows all</p>"


def _row(facts: dict[str, Any]) -> str:
    state, _, why = format_state(facts).removesuffix(")").partition(" (")
    total, rate = facts["total_size"], facts["rate_bytes_s"]
    known = total is not None
    here = f"{format_percent(facts)} of {format_size(total)}" if known else format_stored(facts)
    notes = (
        f"{format_size(rate)}/s" if rate else "",
        format_count(facts["readers"], "reader") if facts["readers"] else "",
        "pinned" if facts["pinned"] else "",
    )
    orders = (*_ORDERS.get(facts["state"], ()), "unpin" if facts["pinned"] else "pin")
    buttons = "".join(
        f'<button data-post="/-/entries/{facts["id"]}/{order}">{order}</button>' for order in orders
    )
    return (
        f'<tr class="{facts["state"]}"><td>{escape(facts["url"])}{_picture(facts)}</td>'
        f"<td><b>{escape(state)}</b><small>{escape(why)}</small></td>"
        f'<td class="number">{here}<small>{" · ".join(filter(None, notes))}</small></td>'
        f'<td class="orders">{buttons}</td></tr>'
    )


def _picture(facts: dict[str, Any]) -> str:
    """Return a drawing of which parts of a file are here."""
    shades = range_bar(facts["ranges"], facts["total_size"], _PARTS, _SHADES)
    rects, start = [], 0
    for shade, run in groupby(shades):
        width = len(list(run))
        if shade != _SHADES[0]:
            rects.append(f'<rect class="s{shade}" x="{start}" width="{width}" height="1"/>')
        start += width
    return (
        f'<svg viewBox="0 0 {_PARTS} 1" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(rects)}</svg>"
    )
