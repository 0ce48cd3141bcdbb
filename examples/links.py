"""Download by links that expire, issued by a page: what is stored outlives its link.

    python examples/links.py CACHE_DIR PAGE

PAGE answers with the link of the moment, as one line of text.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import requests

from cachefsm import Cache, KeyRule


def main(directory: str, page: str) -> None:
    """Fetch what *page* links to; the query of the link signs it, and is no part of the key."""

    def current_link(_expired: str = "", _error: Exception | None = None) -> str:
        reply = requests.get(page, timeout=30)
        reply.raise_for_status()
        return reply.text.strip()

    url = current_link()
    host = urlsplit(url).hostname or ""
    rules = [KeyRule(host, ["sig", "expires"])]
    with Cache(directory, key_rules=rules, resolver=current_link) as cache:
        entry = cache.entry(url)
        entry.start()
        entry.wait_complete()
        print(f"{entry.downloaded_bytes} bytes of {entry.url}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
