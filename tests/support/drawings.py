"""Plans as drawings, one character per byte.

``D`` is present; ``w`` is wanted; a stream is ``>`` at its next byte and ``=`` on the
rest of its claim, with ``-`` for what it could also bring because it asked for it; ``N``
begins a claim that the plan opens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cachefsm.ranges import RangeSet
from cachefsm.scheduler import Action, EntryView, Limits, Open, Priority, StreamView, Want, plan

__all__ = ["LIMITS", "NEAR", "drawn", "drawn_stream", "planned"]

NEAR = 3
OPENED = 100
LIMITS = Limits(per_entry=4, per_host=6, total=16, near_bytes=NEAR, near_s=0.25)


def drawn_range(drawing: str, marks: str) -> tuple[int, int]:
    """Return from the first of *marks* in *drawing* to behind the last."""
    places = [place for place, mark in enumerate(drawing) if mark in marks]
    return places[0], places[-1] + 1


def drawn_stream(number: int, drawing: str, rate_bytes_s: float = 0.0) -> StreamView:
    position, stop = drawn_range(drawing, ">=")
    return StreamView(number, position, stop, drawn_range(drawing, ">=-")[1], rate_bytes_s)


def drawn(
    present: str, *streams: str, more: dict[str, Any] | None = None, **wants: str
) -> EntryView:
    """Return the view of an entry; *wants* are drawings by the name of their priority.

    *more* are further fields of the view.
    """
    return EntryView(
        id=1,
        host="http://origin.test",
        present=RangeSet((i, i + 1) for i, mark in enumerate(present) if mark == "D"),
        wants=tuple(
            Want(*drawn_range(drawing, "w"), Priority[name.upper()])
            for name, drawing in wants.items()
        ),
        streams=tuple(drawn_stream(number, drawing) for number, drawing in enumerate(streams)),
        length=len(present),
        **(more or {}),
    )


def carried_out(view: EntryView, actions: list[Action]) -> EntryView:
    """Return *view* as it is after *actions*; what they open has an id from OPENED on."""
    streams = {stream.id: stream for stream in view.streams}
    for action in actions:
        if isinstance(action, Open):
            number = OPENED + len(streams)
            streams[number] = StreamView(
                number, action.start, action.stop, action.stop, extra=action.extra
            )
        else:
            stream = streams.pop(action.stream_id)
            if action.stop > stream.position:
                streams[stream.id] = replace(stream, stop=action.stop)
    return replace(view, streams=tuple(streams.values()))


def planned(view: EntryView, limits: Limits = LIMITS) -> list[str]:
    """Return the drawings of the claims as they are once the plan is carried out.

    In two rounds, as what is given up has to be gone before another one begins.
    """
    for _ in range(2):
        view = carried_out(view, plan([view], limits))
    assert plan([view], limits) == []
    return [
        (
            "." * stream.position
            + (">" if stream.id < OPENED else "N")
            + "=" * (stream.stop - stream.position - 1)
        ).ljust(view.length, ".")
        for stream in sorted(view.streams, key=lambda stream: stream.position)
    ]
