"""One proxy process after another on the same directory: started, watched, ended, examined."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cachefsm.workers import KEPT
from tests.soak.clients import Door
from tests.soak.people import order
from tests.soak.report import Report
from tests.soak.weather import Weather
from tests.soak.world import Subject, Version, World
from tests.support.audit import StoredEntry, complaints, read_entries, unclaimed
from tests.support.caches import eventually
from tests.support.child import Child

__all__ = ["Examiner", "Life"]

AT_REST: Final = frozenset({"not_started", "paused", "complete", "failed"})
REST_S: Final = 40.0
END_S: Final = 12.0
"""Closing takes two seconds at most; the rest is the interpreter's and this machine's."""

THREADS_GROWN: Final = 4 + KEPT
"""Made at first use and kept: those that watch clients, one for events, and downloaders'."""
SOCKETS_GROWN: Final = 8
"""The same in sockets and pipes, with the idle connections to the origin."""


class Life:
    """The process while it lives."""

    def __init__(self, child: Child, report: Report, log: Path) -> None:
        self._child = child
        self._report = report
        self.log = log
        try:
            child.go()
        except AssertionError:
            report.wrong("it did not start", None, f"its log: {self.keep_log()}")
            raise
        self.address = child.line()
        self._at_first = self._resources()

    @classmethod
    @contextmanager
    def begun(
        cls, directory: Path, world: World, report: Report, log: Path, *options: str
    ) -> Iterator[Life]:
        """Start one on *directory* and leave none behind; *options* are the cache's."""
        url, program = world.origin.url("/"), "tests.soak.server"
        with log.open("ab") as stderr:
            with Child(directory, url, *options, program=program, stderr=stderr) as child:
                yield cls(child, report, log)

    # -- watching --------------------------------------------------------------

    def watch(self) -> None:
        """Note how much of the machine it takes just now, and that it lives at all."""
        if not self._child.is_alive:
            self._report.wrong("it ended by itself", None, f"its log: {self.keep_log()}")
            return
        for name, number in self._resources().items():
            self._report.peak(name, number)

    def _resources(self) -> dict[str, int]:
        process = Path(f"/proc/{self._child.pid}")
        lines = (process / "status").read_text().splitlines()
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        targets = list(_links(process / "fd"))
        return {
            "memory, KiB": int(status["VmRSS"].split()[0]),
            "threads": int(status["Threads"]),
            "open files": len(targets),
            "sockets": sum(not target.startswith("/") for target in targets),
            "deleted files": sum(target.endswith("(deleted)") for target in targets),
        }

    def come_to_rest(self, door: Door, weather: Weather) -> None:
        """Let everybody leave, then see that it lets go of all it had for them."""
        door.shut()
        weather.calm = True
        try:
            if not door.wait_until_empty(REST_S):
                self.complain("clients could not leave")
                return
            self._wait_for_rest()
        finally:
            weather.calm = False

    def _wait_for_rest(self) -> None:
        began_s = time.monotonic()
        try:
            eventually(lambda: not self._what_is_busy(), REST_S)
        except TimeoutError:
            self.complain("it does not come to rest", *self._what_is_busy())
        self._report.peak("milliseconds to rest", int(1000 * (time.monotonic() - began_s)))

    def _what_is_busy(self) -> list[str]:
        """Return what it still does or holds for people who are gone."""
        _, entries = order(self.address, "GET", "entries")
        now, first = self._resources(), self._at_first
        busy = [
            str(entry)
            for entry in entries
            if entry["state"] not in AT_REST or entry["readers"] or entry["streams"]
        ]
        for name, spare in (("threads", THREADS_GROWN), ("sockets", SOCKETS_GROWN)):
            if now[name] > first[name] + spare:
                busy.append(f"{first[name]} {name} at first, {now[name]} now")
                if name == "sockets":
                    busy += _connections(self._child.pid)
        if now["deleted files"]:
            busy.append(f"{now['deleted files']} deleted files are open")
        return busy

    def complain(self, what: str, *more: str) -> None:
        """Report a finding, and keep the log with every thread's stack at its end."""
        if self._child.is_alive:
            os.kill(self._child.pid, signal.SIGUSR1)
            with suppress(TimeoutError):
                # The main thread's stack comes last.
                eventually(lambda: "Current thread" in self.log.read_text(errors="replace"))
        self._report.wrong(what, None, *more, f"its log: {self.keep_log()}")

    def keep_log(self) -> Path:
        """Return where the log is kept when all else is cleared away."""
        fd, name = tempfile.mkstemp(prefix="cachefsm-soak-", suffix=".log")
        os.close(fd)
        return Path(shutil.copy(self.log, name))

    # -- ending ----------------------------------------------------------------

    def kill(self) -> None:
        self._report.count("kills")
        self._child.kill()

    def end(self) -> None:
        """SIGTERM; see that it obeys soon and without complaint."""
        self._report.count("terms")
        began_s = time.monotonic()
        status = self._child.terminate(END_S)
        self._report.peak("milliseconds to end", int(1000 * (time.monotonic() - began_s)))
        if status != 0:
            self._report.wrong(f"SIGTERM ended it with status {status}")


def _connections(pid: int) -> Iterator[str]:
    """Yield the TCP connections of a process, as the kernel has them: ports and state."""
    held = {target for target in _links(Path(f"/proc/{pid}/fd")) if target.startswith("socket:")}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = words = line.split()
        if f"socket:[{words[9]}]" in held:
            ports = " to ".join(str(int(end.rpartition(":")[2], 16)) for end in (local, remote))
            yield f"{ports}, {_TCP_STATES.get(state, state)}, bytes waiting {queues}"


_TCP_STATES: Final = {"01": "established", "08": "close wait", "0A": "listening"}


def _links(directory: Path) -> Iterator[str]:
    for link in directory.iterdir():
        try:
            yield str(link.readlink())
        except FileNotFoundError:
            pass  # closed meanwhile


class Examiner:
    """Holds what each ended process left in *directory* against the truth, and may damage it."""

    def __init__(self, directory: Path, world: World, report: Report) -> None:
        self._directory = directory
        self._world = world
        self._report = report
        self._seen: dict[int, StoredEntry] = {}
        self._harmed: set[tuple[Path, int]] = set()  # files and their entries' generations
        self._unclaimed: dict[Path, int] = {}

    def examine(self, log: Path, *, killed: bool) -> None:
        """Look at every row, every recorded byte and the log, and report what is wrong."""
        lost = 0
        for entry in read_entries(self._directory):
            for what in self._look_at(entry):
                self._report.wrong(f"{what}: {entry}", self._subject(entry))
            self._seen[entry.id] = entry
            # Never recorded, yet counted once: it stays in the file until fetched again.
            held = unclaimed(entry)
            lost += max(0, held - self._unclaimed.get(entry.file, 0))
            self._unclaimed[entry.file] = held
        if killed:
            self._report.lost_bytes.append(lost)
        else:
            self._look_for_orphans(log)
        lines = log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if "Traceback" in line or " ERROR " in line or " CRITICAL " in line:
                self._report.wrong("it logged an error", None, *lines[number : number + 40])
                return

    def harm(self, dice: random.Random) -> None:
        """Truncate or delete an entry's file; the next process must notice before it serves it."""
        held = [entry for entry in read_entries(self._directory) if entry.chunks]
        if not held:
            return
        entry = dice.choice(held)
        self._harmed.add((entry.file, entry.generation))
        kept = dice.choice((None, 0, dice.randrange(entry.chunks[-1].stop)))
        if kept is None:
            entry.file.unlink(missing_ok=True)  # harmed before, and not looked at since
        elif entry.file.exists():
            os.truncate(entry.file, kept)
        self._report.count("files harmed")
        self._subject(entry).note("somebody", f"leaves {kept} bytes of {entry.file.name}")

    def _look_for_orphans(self, log: Path) -> None:
        """A kill may leave files that no entry owns; whoever ends in order may not."""
        owned = {entry.file for entry in read_entries(self._directory)}
        began_s = log.stat().st_ctime
        for file in (self._directory / "content").glob("*/*"):
            if file not in owned and file.stat().st_mtime > began_s:
                self._report.wrong(f"{file} is nobody's")

    def _subject(self, entry: StoredEntry) -> Subject:
        return self._world.at(urlsplit(entry.url).path)

    def _look_at(self, entry: StoredEntry) -> Iterator[str]:
        truths = self._truths(entry)
        if not truths:
            yield "of no version that is allowed"
        if (entry.file, entry.generation) not in self._harmed:  # else nobody has looked yet
            yield from complaints(entry, truths)
        before = self._seen.get(entry.id)
        if before is not None and before.url != entry.url:
            yield f"its id was another's: {before}"
        elif before is not None and before.generation > entry.generation:
            yield f"back from generation {before.generation}"

    def _truths(self, entry: StoredEntry) -> list[Version]:
        subject, length = self._subject(entry), entry.complete_length
        truths = [
            version
            for version in subject.allowed(time.monotonic())
            if entry.etag in (None, version.etag)
            and entry.last_modified in (None, version.last_modified)
        ]
        if subject.kind.framing == "close" and length in self._world.sent_bodies(subject):
            # Where the origin broke off is an end, as far as a proxy can know.
            truths = [replace(v, size=length) for v in truths if v.size >= (length or 0)]
        return truths
