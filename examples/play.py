"""Play a file while it downloads, with the next ones' beginnings fetched meanwhile.

    python examples/play.py CACHE_DIR URL [NEXT_URL…]

Plays with mpv where that is installed, or else prints the address for any player.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from cachefsm import Cache


def main(directory: str, url: str, *following: str) -> None:
    """Serve *url* to a player on this machine, from the cache in *directory*."""
    with Cache(directory, max_size="20G") as cache, cache.serve() as server:
        cache.prefetch(following, head="8M", deadline="10m")
        entry = cache.entry(url)
        entry.wait_playable(timeout=30)
        address = server.url_for(url)
        player = shutil.which("mpv")
        if player is not None:
            subprocess.run([player, "--really-quiet", address], check=False)
        else:
            input(f"play {address}, and press Enter when it is over ")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
