"""Those who order the proxy about, through its control routes."""

from __future__ import annotations

import http.client
import json
import random
import threading
from typing import Any, Final
from urllib.parse import quote, urlsplit

from tests.soak.clients import Door
from tests.soak.report import Report
from tests.soak.world import Subject, World

__all__ = ["TOKEN", "Person", "order"]

TOKEN: Final = "soak"
PATIENCE_S: Final = 10.0
DEEDS: Final = {"start": 4, "remove": 6, "gc": 2}
ORDERS: Final = {"pause": 3, "resume": 4, "cancel": 2, "retry": 4, "pin": 1, "unpin": 1}
STATES: Final = frozenset(
    {"not_started", "initializing", "downloading", "paused", "complete", "failed"}
)


def order(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return the status and the JSON value that a control route answers."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE_S)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, f"/-/{path}", data, {"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    return response.status, json.loads(text) if text else None


class Person(threading.Thread):
    """Gives random orders until *over*, and looks whether what is shown makes sense."""

    def __init__(self, world: World, door: Door, report: Report, over: threading.Event) -> None:
        super().__init__(name="soak-person", daemon=True)
        self._world = world
        self._door = door
        self._report = report
        self._over = over
        self._dice = random.Random(f"{world.seed}/person")

    def run(self) -> None:
        while not self._over.wait(self._dice.expovariate(1 / 0.05)):
            with self._door.entered() as address:
                if address is None:
                    return
                life = self._door.life
                try:
                    self._act(address)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if self._door.life == life:
                        self._report.wrong(f"control did not answer: {error!r}")

    def _act(self, address: str) -> None:
        if self._dice.random() < 0.05:
            for entry in self._list(address):
                self._check(entry)
        subject = self._world.choose(self._dice)
        (deed,) = self._dice.choices([*DEEDS, *ORDERS], [*DEEDS.values(), *ORDERS.values()])
        if deed == "gc":
            self._tell(order(address, "POST", "gc", {"max_size": self._dice.randrange(1 << 26)}))
        elif deed == "start":
            self._start(address, subject)
        else:
            for entry in self._list(address, subject):
                self._check(entry)
                self._order(address, deed, entry["id"], subject)

    def _list(self, address: str, subject: Subject | None = None) -> list[dict[str, Any]]:
        """Return what the proxy says of all its entries, or of one."""
        url = subject and quote(self._world.origin.url(subject.path))
        status, entries = order(address, "GET", f"entries?url={url}" if url else "entries")
        if status == 200:
            return list(entries)
        if status != 404 or url is None:
            self._report.wrong(f"the list of entries is a {status}: {entries}")
        return []

    def _order(self, address: str, deed: str, entry_id: int, subject: Subject) -> None:
        if deed == "remove":
            self._remove(address, entry_id, subject)
            return
        answer = order(address, "POST", f"entries/{entry_id}/{deed}")
        subject.note(self.name, f"{deed}: {answer[0]}")
        self._tell(answer, 404, 409)

    def _start(self, address: str, subject: Subject) -> None:
        body = {
            "url": self._world.origin.url(subject.path),
            "priority": self._dice.choice(("person", "prefetch")),
        }
        answer = order(address, "POST", "entries", body)
        subject.note(self.name, f"start as {body['priority']}: {answer[0]}")
        self._tell(answer, 404, 409)

    def _remove(self, address: str, entry_id: int, subject: Subject) -> None:
        gone_before = subject.serving
        answer = order(address, "DELETE", f"entries/{entry_id}")
        subject.note(self.name, f"remove {entry_id}: {answer[0]}")
        self._tell(answer, 404)
        if answer[0] == 204:
            subject.removed(gone_before)

    def _tell(self, answer: tuple[int, Any], *also: int) -> None:
        self._report.count(f"order {answer[0]}")
        if answer[0] not in (200, 201, 204, *also):
            self._report.wrong(f"an order was answered {answer[0]}: {answer[1]}")

    def _check(self, entry: dict[str, Any]) -> None:
        subject = self._world.at(urlsplit(entry["url"]).path)
        ranges, total = entry["ranges"], entry["total_size"]
        ends = [end for run in ranges for end in run]
        held = sum(stop - start for start, stop in ranges)
        fits = (
            entry["state"] in STATES
            and ends == sorted(set(ends))
            and held == entry["downloaded_bytes"]
            and (total is None or held <= total)
            and (entry["state"] != "complete" or held == total)
        )
        if not fits:
            self._report.wrong(f"an entry that contradicts itself: {entry}", subject)
