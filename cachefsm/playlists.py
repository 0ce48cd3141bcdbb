"""Which absolute paths a playlist names: HLS (RFC 8216) and DASH (ISO/IEC 23009-1). Pure, no I/O.

Playlists are served as the origin wrote them. Relative references in them keep
working below a mount; ``/seg/1.ts`` does not, because to the player it means the
proxy's own root. So what is read out of a playlist is only where such a path came
from, for `cachefsm.signposts` to send the player the right way.

The text is the origin's, so nothing here raises on it, follows an entity, or goes
deeper or wider than the limits below. Whatever cannot be read names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, NamedTuple
from urllib.parse import urljoin
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from .fields import Fields, value_of
from .representation import is_coded
from .urls import encoded

__all__ = ["MAX_PLAYLIST_BYTES", "PathPattern", "is_playlist", "paths_named"]

MAX_PLAYLIST_BYTES: Final = 1 << 20
"""A playlist of ten hours in segments of two seconds has half of that."""

MAX_REFERENCES: Final = 20_000
"""One every two seconds is eleven hours; a longer playlist is known by its first ones."""

_HLS: Final = frozenset(
    {
        "application/vnd.apple.mpegurl",
        "application/mpegurl",
        "application/x-mpegurl",
        "audio/mpegurl",
        "audio/x-mpegurl",
    }
)
_DASH: Final = "application/dash+xml"
# What servers say of a file whose name they do not know.
_UNTOLD: Final = frozenset({"", "application/octet-stream", "binary/octet-stream", "text/plain"})
_HLS_NAMES: Final = (".m3u8", ".m3u")
_DASH_NAME: Final = ".mpd"

_ATTRIBUTE = re.compile(r'URI="([^"]*)"')  # SERVER-URI and X-ASSET-URI as well
_HLS_VARIABLE = re.compile(r"\{\$[A-Za-z0-9_-]+\}")
_DASH_VARIABLE = re.compile(r"\$[^$]*\$")

_DEEPEST: Final = 32  # an MPD's elements nest about eight deep
_LONGEST_PATH: Final = 2048
_MOST_ELEMENTS: Final = 60_000  # a timeline of 35,000 segments fills 1 MiB
_MOST_BASES: Final = 8  # BaseURLs at one place are alternatives; real ones are two or three
_LEVELS: Final = frozenset({"MPD", "Period", "AdaptationSet", "Representation"})
_REFERRING: Final = ("media", "initialization", "index", "bitstreamSwitching", "sourceURL")


class PathPattern(NamedTuple):
    """A path that a playlist names, or the start and end of one that it has a template for.

    No query: players add to it, and signed ones change. ``end`` is None for a whole path.
    """

    start: str
    end: str | None = None

    def matches(self, path: str) -> bool:
        if self.end is None:
            return path == self.start
        fits = path.startswith(self.start) and path.endswith(self.end)
        return fits and len(path) >= len(self.start) + len(self.end)


def is_playlist(path: str, fields: Fields) -> bool:
    """Say whether what is served at *path* under *fields* is a playlist that can be read."""
    return _kind(path, fields) is not None and not is_coded(fields)


def paths_named(path: str, fields: Fields, text: bytes) -> frozenset[PathPattern]:
    """Return what the playlist *text*, served at *path* under *fields*, names by absolute path."""
    kind = _kind(path, fields)
    if kind is None or len(text) > MAX_PLAYLIST_BYTES:
        return frozenset()
    found = islice(_in_hls(text) if kind == "hls" else _in_dash(text), MAX_REFERENCES)
    return frozenset(pattern for reference in found if (pattern := _pattern(reference, kind)))


def _kind(path: str, fields: Fields) -> str | None:
    media_type = (value_of(fields, "Content-Type") or "").partition(";")[0].strip().lower()
    name = path.lower()
    if media_type in _HLS or (media_type in _UNTOLD and name.endswith(_HLS_NAMES)):
        return "hls"
    if media_type == _DASH or (media_type in _UNTOLD and name.endswith(_DASH_NAME)):
        return "dash"
    return None


def _pattern(reference: str, kind: str) -> PathPattern | None:
    """Return which paths *reference* stands for, or None if it is not an absolute one."""
    path = encoded(re.split(r"[?#]", reference.strip(), maxsplit=1)[0])
    is_absolute = path.startswith("/") and not path.startswith("//")
    if not is_absolute or len(path) > _LONGEST_PATH:
        return None
    variable = _HLS_VARIABLE if kind == "hls" else _DASH_VARIABLE
    parts = variable.split(path)
    if len(parts) == 1:
        return PathPattern(path)
    # What would be every path there is names none.
    return PathPattern(parts[0], parts[-1]) if parts[0] + parts[-1] != "/" else None


def _in_hls(text: bytes) -> Iterator[str]:
    """Yield every reference. Source: RFC 8216 §4.1, §4.2."""
    for line in text.decode("utf-8", "replace").splitlines():
        if line.startswith("#"):
            yield from _ATTRIBUTE.findall(line)
        elif line:
            yield line


def _in_dash(text: bytes) -> Iterator[str]:
    """Yield every reference, resolved as far as the document itself says."""
    root = _parsed(text)
    if root is not None and _name(root) == "MPD":
        yield from _below(root, bases=("",), inherited=())


def _below(element: Element, bases: tuple[str, ...], inherited: tuple[str, ...]) -> Iterator[str]:
    """Yield what the Representations in *element* refer to.

    What stands above one applies to it, under its own BaseURL.
    Source: ISO/IEC 23009-1 §5.3.9, §5.6.
    """
    own = [child.text or "" for child in element if _name(child) == "BaseURL"]
    if own:
        joined = (_join(base, reference.strip()) for base in bases for reference in own)
        bases = tuple(islice(joined, _MOST_BASES))
    if _name(element) == "Representation":
        yield from bases
        for reference in chain(inherited, _referred(element)):
            yield from (_join(base, _filled(reference, element)) for base in bases)
        return
    inherited += tuple(_referred(element))
    for child in element:
        if _name(child) in _LEVELS:
            yield from _below(child, bases, inherited)
        elif _name(child) in ("Location", "PatchLocation"):
            yield child.text or ""


def _referred(element: Element) -> Iterator[str]:
    """Yield what the SegmentBase, -List or -Template of *element* itself refers to."""
    for child in element:
        if _name(child).startswith("Segment"):
            attributes = (each.attrib for each in child.iter())
            yield from (has[name] for has in attributes for name in _REFERRING if name in has)


def _filled(template: str, representation: Element) -> str:
    """Return *template* with what is known of it here filled in."""
    template = template.replace("$RepresentationID$", representation.get("id", ""))
    return template.replace("$Bandwidth$", representation.get("bandwidth", ""))


def _join(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError:  # "http://[": no URL at all
        return ""


def _name(element: Element) -> str:
    """Return the element's name without its namespace, which old MPDs get wrong."""
    return element.tag.rpartition("}")[2]


class _Refused(Exception):
    """Not a document that is worth reading on."""


def _parsed(text: bytes) -> Element | None:
    """Return the document's root, or None where it has a DTD, is too big, or is no XML."""
    builder = TreeBuilder()
    depth = count = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > _DEEPEST or count > _MOST_ELEMENTS:
            raise _Refused
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise _Refused  # a DTD is where entities come from, and no MPD has one

    parser = expat.ParserCreate(namespace_separator="}")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text, True)
        return builder.close()
    except (expat.ExpatError, _Refused, ValueError, AssertionError, LookupError):
        # LookupError: an encoding that nobody knows; AssertionError: TreeBuilder's own.
        return None
