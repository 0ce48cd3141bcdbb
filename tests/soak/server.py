"""The program under test: a cache and its proxy, hasty enough for a soak of minutes.

Speaks as `tests.support.child` does: waits for a line, says ``open`` and where it
listens, and ends on SIGTERM. Further arguments are options of the cache, such as
``fill=finish``. SIGUSR1 writes every thread's stack to stderr.
"""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
from typing import Any

from cachefsm import Cache
from cachefsm.origin import OriginOptions
from cachefsm.retries import RetryPolicy
from tests.soak.clients import MOUNT
from tests.soak.people import TOKEN

__all__ = ["main"]

RETRIES = RetryPolicy(
    base_s=0.05,
    cap_s=0.5,
    first_attempts=4,
    attempts=8,
    exhausted_s=0.3,
    permanent_s=0.5,
    cancelled_s=0.5,
    longest_retry_after_s=1.0,
)


def main() -> None:
    directory, origin, *more = sys.argv[1:]
    options: dict[str, Any] = dict(option.split("=", 1) for option in more)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Before there are threads to inherit it: SIGTERM is fetched below, and only there.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.stdin.readline()
    cache = Cache(
        directory,
        max_size="64M",
        grace=1.0,
        first_byte_timeout=4.0,
        stall_timeout=4.0,
        retries=RETRIES,
        origin=OriginOptions(connect_timeout_s=2.0, read_timeout_s=1.5),
        **options,
    )
    with cache, cache.serve(mounts=[f"{MOUNT}={origin}"], token=TOKEN) as server:
        print("open", flush=True)
        print(server.url, flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
