"""Translates the targets of the proxy's requests into origins' URLs, and back.

``/mount/rest`` is below the mount's base, ``/http/host/rest`` and ``/https/…`` name the
URL itself. Whether a client may ask for that URL is decided here, too. In the other
direction, a URL is translated only into targets that a client may ask for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .access import AllowList, Mount, check_path
from .errors import CacheError, UsageError
from .fields import Fields
from .signposts import Place
from .urls import OriginUrl, parse_url, resolve

__all__ = ["NotAllowed", "NotFound", "Routes"]

_SCHEMES: Final = ("http", "https")


class NotFound(CacheError):
    """There is nothing at that path."""

    status_hint = 404


class NotAllowed(CacheError):
    """That origin may not be asked for here."""

    status_hint = 403


class Routes:
    """The mounts of one proxy, and the origins that clients may name."""

    def __init__(self, mounts: Iterable[Mount], allowed: AllowList) -> None:
        self._mounts = {mount.name: mount for mount in mounts}
        self._allowed = allowed

    def find(self, target: str) -> tuple[Mount | None, OriginUrl]:
        """Return the mount that *target* is below, None if it names a URL itself, and the URL.

        Raises:
            NotFound: nothing is mounted there.
            NotAllowed: clients may not name that origin.
            UsageError: *target* could not be passed on, as its path climbs, say.
        """
        check_path(target)
        name, slash, rest = target[1:].partition("/")
        if not slash:
            name = name.partition("?")[0]
        mount = self._mounts.get(f"/{name}")
        if mount is not None and slash:
            return mount, parse_url(str(mount.url(rest)))
        if name in _SCHEMES and slash:
            url = parse_url(f"{name}://{rest}")
            if url.userinfo is not None:
                raise UsageError("a URL asked for here cannot hold credentials")
            if self._allowed.names(url):
                return None, url
            raise NotAllowed(
                f"{url.origin} is not allowed here; name it with --allow {url.authority}"
            )
        known = ", ".join(f"{mount}/" for mount in sorted(self._mounts)) or "none"
        raise NotFound(f"nothing is mounted at /{name}; mounts: {known}")

    def place(self, path: str) -> Place | None:
        """Return the place that *path* is below, relative to which a playlist there is read.

        None if *path* leads nowhere.
        """
        name, _, rest = path[1:].partition("/")
        mount = self._mounts.get(f"/{name}")
        if mount is not None:
            return Place(mount.name, mount.base)
        if name in _SCHEMES:
            root = parse_url(f"{name}://{rest}")._replace(target="/")
            return Place(f"/{name}/{root.authority}", root)
        return None

    def places_of(self, url: OriginUrl) -> list[Place]:
        """Return the places below which a playlist of that URL may be served."""
        places = [
            Place(mount.name, mount.base)
            for mount in self._mounts.values()
            if mount.path_of(url) and mount.base.userinfo == url.userinfo
        ]
        if url.userinfo is None and self._allowed.names(url):
            places.append(Place(f"/{url.scheme}/{url.authority}", url._replace(target="/")))
        return places

    def path_for(self, url: OriginUrl) -> str:
        """Return the target that *url* is served under; clients may name its origin now."""
        path = self._path_of(url)
        if path is None:
            self._allowed.add(url, by_url=True)
        return path or _by_url(url)

    def leading_here(
        self, path: str, url: OriginUrl, fields: Fields
    ) -> tuple[tuple[str, str], ...]:
        """Return *fields* of a redirect from *url*, rewritten to lead through this proxy.

        It stays as it is if clients may not ask for its destination here. *path* is the
        target by which a client asked for *url*.
        """
        return tuple(
            (name, self._rewrite(path, url, value) if name.lower() == "location" else value)
            for name, value in fields
        )

    def _rewrite(self, asked: str, url: OriginUrl, location: str) -> str:
        try:
            target = resolve(url, location, "latin-1")
        except UsageError:
            return location  # no business of ours, as are other schemes
        path = self._path_of(target, asked[: asked.find("/", 1)])
        if path is None and self._allowed.names(target):
            path = _by_url(target)
        _, mark, fragment = location.partition("#")
        return location if path is None else f"{path}{mark}{fragment}"

    def _path_of(self, url: OriginUrl, rather: str = "") -> str | None:
        """Return the target under which a mount serves *url*, None if no mount does.

        If several do, the mount called *rather* is preferred.
        """
        mounts = sorted(self._mounts.values(), key=lambda mount: mount.name != rather)
        return next(filter(None, (mount.path_of(url) for mount in mounts)), None)


def _by_url(url: OriginUrl) -> str:
    return f"/{url.scheme}/{url.authority}{url.target}"
