"""Download a file, watching it arrive; and read its head before the rest is here.

python examples/watch.py CACHE_DIR URL
"""

from __future__ import annotations

import sys

from cachefsm import Cache, Progress, Transition


def show(event: Transition | Progress) -> None:
    """Print what happens; called in a thread of its own, so it may take its time."""
    if isinstance(event, Progress):
        print(f"{event.downloaded_bytes} of {event.total_bytes or '?'} bytes")
    else:
        print(f"{event.source} -> {event.target}")


def main(directory: str, url: str) -> None:
    """Fetch *url* into the cache in *directory*; a second run fetches nothing."""
    with Cache(directory, max_size="20G") as cache:
        cache.subscribe(show)
        entry = cache.entry(url)
        entry.start()
        with entry.open() as stream:
            print(f"it begins with {stream.read(4).hex()}")
        entry.wait_complete()
        print(f"{entry.downloaded_bytes} bytes are here")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
