"""Let a program that uses ``requests`` read through the cache, by mounting an adapter.

python examples/session.py CACHE_DIR URL
"""

from __future__ import annotations

import sys

import requests

from cachefsm import Cache
from cachefsm.requests_adapter import CacheAdapter


def main(directory: str, url: str) -> None:
    """Get *url* twice and then its last ten bytes; print how the cache answered each."""
    with Cache(directory) as cache, requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, CacheAdapter(cache))
        for headers in ({}, {}, {"Range": "bytes=-10"}):
            reply = session.get(url, headers=headers, timeout=30)
            reply.raise_for_status()
            how = reply.headers.get("Cache-Status", "past the cache")
            print(f"{reply.status_code}, {len(reply.content)} bytes: {how}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
