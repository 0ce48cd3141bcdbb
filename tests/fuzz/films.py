"""What the fuzzed proxy's origin has, and how a byte of it is known again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from tests.support.messages import Resource, pattern
from tests.support.origin import Origin

__all__ = ["FILMS", "Film", "film_of", "put_films"]


@dataclass(frozen=True)
class Film:
    """One file of the origin; ``number`` is in its name, its ETag and its bytes."""

    number: int
    size: int
    framing: Literal["chunked", "close"] | None = None

    @property
    def path(self) -> str:
        return f"/film{self.number}.mkv"

    @property
    def etag(self) -> str:
        return f'"film-{self.number}"'

    @property
    def resource(self) -> Resource:
        return Resource(
            self.size,
            etag=self.etag,
            content_type="video/x-matroska",
            version=self.number,
            framing=self.framing,
        )

    def read(self, start: int, stop: int) -> bytes:
        return bytes(pattern(self.number)(start, min(stop, self.size)))


class Playlist(Film):
    """Names the films by absolute path."""

    @property
    def path(self) -> str:
        return "/list.m3u8"

    @property
    def resource(self) -> Resource:
        text = self.read(0, self.size)
        return Resource.of(text, etag=self.etag, content_type="application/vnd.apple.mpegurl")

    def read(self, start: int, stop: int) -> bytes:
        return _LIST[start:stop]


_FILMS: Final = (
    Film(0, 0),
    Film(1, 1),
    Film(2, 1000),
    Film(3, 65_536),
    Film(4, 300_000),
    Film(5, 2_000_003),
    Film(6, 50_000, "chunked"),
    Film(7, 50_000, "close"),
)
_LIST: Final = "".join(["#EXTM3U\n", *(f"{film.path}\n" for film in _FILMS)]).encode()

FILMS: Final = (*_FILMS, Playlist(len(_FILMS), len(_LIST)))

_ETAG: Final = re.compile(r'"film-([0-9]+)"')


def film_of(etag: str | None) -> Film | None:
    """Return the film that an answer with *etag* shows, if it is one."""
    match = _ETAG.fullmatch(etag or "")
    return FILMS[int(match[1])] if match and int(match[1]) < len(FILMS) else None


def put_films(origin: Origin) -> None:
    """Have *origin* serve them all."""
    for film in FILMS:
        origin.put(film.path, film.resource)
