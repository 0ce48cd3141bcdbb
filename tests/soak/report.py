"""What is counted, what is said while it runs, and what is printed when something is wrong."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from tests.soak.world import Subject

__all__ = ["Report"]

MIB: Final = 1 << 20


@dataclass
class Report:
    """Counts and findings; thread-safe. ``over`` is set by the first finding."""

    seed: int
    over: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    lost_bytes: list[int] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _started_s: float = field(default_factory=time.monotonic)

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def peak(self, what: str, number: int) -> None:
        """Note *number*, of which the highest is reported."""
        with self._lock:
            self.highest[what] = max(number, self.highest.get(what, 0))

    def wrong(self, what: str, subject: Subject | None = None, *more: str) -> None:
        """Note a finding with all that may explain it, and end the soak."""
        history = subject.history if subject is not None else []
        about = "" if subject is None else f"{subject.name}: "
        with self._lock:
            self.findings.append("\n".join([f"WRONG {about}{what}", *history, *more]))
            self.over.set()

    def progress(self) -> None:
        with self._lock:
            counts, highest = self.counts.copy(), self.highest.copy()
            seconds = time.monotonic() - self._started_s
        errors = sum(number for name, number in counts.items() if _is_error(name))
        print(
            f"{seconds:5.0f} s: {counts['requests']} requests, "
            f"{counts['bytes served'] / MIB:.0f} MiB served, {counts['cuts']} cuts, "
            f"{errors} errors, {counts['kills']} kills, {counts['terms']} ends, "
            f"{len(self.findings)} wrong; {highest.get('memory, KiB', 0) >> 10} MiB of memory",
            flush=True,
        )

    def totals(self, faults: Counter[str]) -> str:
        """Return the closing lines."""
        counts, lost = self.counts, sorted(self.lost_bytes)
        lines = [f"seed {self.seed}, {time.monotonic() - self._started_s:.0f} s"]
        lines += [f"  {name}: {number}" for name, number in sorted(counts.items())]
        lines.append("  at the origin: " + ", ".join(f"{n} {k}" for k, n in sorted(faults.items())))
        if lost:
            lines.append(
                f"  fetched for nothing per kill: {sum(lost) / len(lost) / MIB:.2f} MiB on "
                f"average, {lost[-1] / MIB:.2f} MiB at worst"
            )
        lines += [f"  most {name}: {number}" for name, number in sorted(self.highest.items())]
        lines.append(f"  wrong: {len(self.findings)}")
        return "\n".join(lines)

    def print_findings(self) -> None:
        for finding in self.findings:
            print(f"\n{finding}\nseed {self.seed}", file=sys.stderr, flush=True)


def _is_error(name: str) -> bool:
    return name.startswith("status ") and name[7] in "45"
