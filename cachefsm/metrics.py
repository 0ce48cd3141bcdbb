"""What a cache and its server have done, in Prometheus' text form; written by hand.

No URL and no host is a label: there could be any number of them, and not everybody who
may read the numbers should learn what is watched.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from . import __version__
from .states import DownloadState

__all__ = ["CONTENT_TYPE", "Traffic", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Traffic:
    """What a server has answered since it started; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[int] = Counter()
        self._sent_bytes = 0

    def count(self, status: int, sent_bytes: int = 0) -> None:
        """Count one answer and the bytes of its body that went out."""
        with self._lock:
            self._answers[status] += 1
            self._sent_bytes += sent_bytes

    @property
    def answers(self) -> dict[int, int]:
        """How many answers each status had."""
        with self._lock:
            return dict(self._answers)

    @property
    def sent_bytes(self) -> int:
        """How many bytes of bodies went out."""
        with self._lock:
            return self._sent_bytes


def render(stats: Mapping[str, Any], traffic: Traffic | None) -> str:
    """Return the text for ``Cache.stats()``, and for a server's traffic where it is counted."""
    lines = list(_of_cache(stats))
    if traffic is not None:
        lines += _of_server(traffic)
    return "".join(f"{line}\n" for line in lines)


def _of_cache(stats: Mapping[str, Any]) -> Iterator[str]:
    states = {f'{{state="{state}"}}': stats["states"].get(state, 0) for state in _STATES}
    version = {f'{{version="{__version__}"}}': 1}
    yield from _family("build_info", "gauge", "Always 1; the label is the version.", version)
    yield from _family("entries", "gauge", "Entries, by the state of their download.", states)
    for name, key, help_ in _GAUGES:
        if stats[key] is not None:
            yield from _family(name, "gauge", help_, {"": stats[key]})
    yield from _family(
        "origin_received_bytes_total",
        "counter",
        "Bytes of content that came from origins since the process started.",
        {"": stats["bytes_from_origin"]},
    )


_STATES: Final = [state.value for state in DownloadState]

_GAUGES: Final = (
    ("stored_bytes", "bytes_stored", "Bytes of content that are stored."),
    ("pinned_bytes", "bytes_pinned", "Bytes of content in pinned entries, which are not evicted."),
    ("max_bytes", "max_size", "The limit on stored bytes; absent if there is none."),
    ("disk_free_bytes", "bytes_free", "Bytes free where the cache lives."),
    ("streams", "streams", "Connections to origins that bring content now."),
    ("readers", "readers", "Readers of entries now, including the proxy's."),
)
"""Name, key of ``Cache.stats()``, help."""


def _of_server(traffic: Traffic) -> Iterator[str]:
    answers = {f'{{status="{code}"}}': count for code, count in sorted(traffic.answers.items())}
    yield from _family("responses_total", "counter", "Answers that have ended, by status.", answers)
    yield from _family(
        "client_sent_bytes_total",
        "counter",
        "Bytes of bodies sent to clients, counted when an answer ends.",
        {"": traffic.sent_bytes},
    )


def _family(name: str, kind: str, help_: str, samples: Mapping[str, int]) -> Iterator[str]:
    yield f"# HELP cachefsm_{name} {help_}"
    yield f"# TYPE cachefsm_{name} {kind}"
    for labels, value in samples.items():
        yield f"cachefsm_{name}{labels} {value}"
