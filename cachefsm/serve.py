"""The command ``serve``: runs the proxy, from its first line of output to its clean end."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import secrets
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from .access import AllowList, Mount, Rules, parse_mount
from .addresses import AddressGuard
from .arguments import default_cache_dir
from .backend import PATIENCE_S
from .cache import Cache
from .descriptors import raise_descriptors
from .dirlock import DirectoryLock
from .errors import CacheBusy, UsageError
from .logs import logging_to
from .origin import OriginOptions
from .proxy import Server
from .rules import furnish
from .scheduler import Limits
from .urls import redact

if TYPE_CHECKING:
    from .demo import DemoOrigin

__all__ = ["limits_from", "serve"]

_log = logging.getLogger(__name__)

DEMO_PORT: Final = 48_733
"""Where the demonstration's origin listens if it can: its URL is what the cache goes
by, and the second demonstration should find what the first one stored."""

_PLAYERS: Final = ("mpv", "vlc", "ffplay")


def serve(options: argparse.Namespace) -> int:
    """Run the proxy until a signal ends it."""
    ends = {signal.SIGTERM, signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        ends.add(signal.SIGHUP)
    raise_descriptors()
    with ExitStack() as stack:
        stack.enter_context(_blocked(ends))
        stack.enter_context(_logging(options))
        demo = stack.enter_context(_demo_origin()) if options.demo else None
        try:
            mounts, rules = _mounts(options, demo)
        except UsageError as error:
            options.fail(str(error))
        allowed = AllowList(options.allow)
        for mount in mounts:
            allowed.add(mount.base, by_url=False)
        cache = stack.enter_context(_open_cache(options, allowed, mounts))
        for url in cache.queued_urls():
            # Somebody was allowed to name its origin when this was queued.
            allowed.add(url, by_url=False)
        public = not _is_loopback(options.host)
        token = options.token or secrets.token_urlsafe()
        addresses = _own_addresses(options.host)
        server = stack.enter_context(
            Server(
                cache,
                options.host,
                options.port,
                mounts=mounts,
                allow=allowed,
                hosts=[*options.host_name, *addresses],
                pages=options.page,
                token=token,
                require_token=public,
                rules=rules,
            )
        )
        cache.restore_queue()
        _print_lines(f"cachefsm serving at {server.url}")
        port = urlsplit(server.url).port
        # The last is a number, which works whatever the others call this machine.
        for address in addresses[-1:]:
            _print_lines(f"  for other machines: http://{_bracketed(address)}:{port}/")
        if public and not options.token:
            _print_lines(f"  control needs this token: {token}")
        if demo is None:
            _print_lines(*_hints(options, server.url, mounts))
        else:
            entry_id = cache.entry(demo.song_url).id
            _print_lines(*_demo_hints(options, server.url, demo, entry_id))
        number = signal.sigwait(ends)
        _log.info("%s: closing", signal.Signals(number).name)
    return 0


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Block *signals*, so that ``sigwait`` receives them and no handler interrupts anything.

    Threads that are started meanwhile inherit this. A second signal that comes during the
    orderly end is ignored.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        while signal.sigpending() & signals:
            signal.sigwait(signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _logging(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Return what has the log written to stderr, in as much detail as the options say."""
    if options.verbose or options.debug:
        level = logging.DEBUG
    else:
        level = logging.WARNING if options.quiet else logging.INFO
    return logging_to(
        logging.StreamHandler(),
        level,
        timed=True,
        debug=options.debug,
        # The proxy logs each request as well, and how the cache answered it.
        floors={"cachefsm.server": logging.WARNING} if level > logging.DEBUG else {},
    )


def _mounts(options: argparse.Namespace, demo: DemoOrigin | None) -> tuple[list[Mount], Rules]:
    """Return the mounts with their rules, and the rules for origins that clients name.

    Raises:
        UsageError: the options contradict one another.
    """
    mounts: list[Mount] = list(options.mount)
    if demo is not None:
        mounts.append(parse_mount(f"/demo={demo.url}"))
    return furnish(
        mounts,
        fresh=options.fresh,
        offline=options.offline,
        pass_methods=options.pass_methods,
        hand_on_redirects=options.hand_on_redirects,
        headers=options.header,
    )


def _open_cache(options: argparse.Namespace, allowed: AllowList, mounts: list[Mount]) -> Cache:
    """Open the cache; if a command is using it at the moment, wait a little for its end."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Cache(
                options.cache_dir,
                max_size=options.max_size,
                fill=options.fill,
                grace=options.grace,
                read_ahead=options.read_ahead,
                first_byte_timeout=options.first_byte_timeout,
                stall_timeout=options.stall_timeout,
                durability=options.durability,
                verify_reads=options.verify_reads,
                scrub_rate=options.scrub_rate,
                limits=limits_from(options),
                abandoned=options.abandoned,
                limit_rate=options.limit_rate,
                limit_rate_per_host=options.limit_rate_per_host,
                limit_background_rate=options.limit_background_rate,
                # Asked at every redirect too, so that none leads to where it may not.
                origin=OriginOptions(
                    may_visit=allowed.__contains__, may_connect=AddressGuard(options.private)
                ),
                # So that downloads with a mount's fields go on without a client.
                secrets=[mount.rules.fields for mount in mounts],
                key_rules=options.key_rule,
                resolver=options.resolver,
                restore=False,
            )
        except CacheBusy:
            holder = DirectoryLock.holder(options.cache_dir)
            if time.monotonic() >= deadline_s or (holder is not None and holder.address):
                raise
            time.sleep(0.02)


def limits_from(options: argparse.Namespace) -> Limits:
    """Return the limits on connections that the options set."""
    per_entry, per_host = options.connections, options.connections_per_host
    # Whoever allows one host more than the default total wants no less in all.
    return Limits(
        per_entry=per_entry, per_host=per_host, total=max(Limits.total, per_entry, per_host)
    )


def _demo_origin() -> DemoOrigin:
    from .demo import DemoOrigin

    try:
        return DemoOrigin(port=DEMO_PORT)
    except OSError:
        return DemoOrigin()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _own_addresses(host: str) -> list[str]:
    """Return the addresses under which others reach a server that listens on all of them."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - read, not bound
        return []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Connecting a datagram socket sends nothing; it makes the kernel choose a route.
    # Source of the address: RFC 5737 and RFC 3849, for documentation.
    target = "2001:db8::1" if ":" in host else "192.0.2.1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return [socket.gethostname(), probe.getsockname()[0]]
    except OSError:
        return [socket.gethostname()]


# -- what is printed ---------------------------------------------------------------


def _print_lines(*lines: str) -> None:
    with suppress(OSError):  # nobody reads it; the proxy is of use all the same
        print("\n".join(lines), flush=True)


def _hints(options: argparse.Namespace, address: str, mounts: list[Mount]) -> Iterator[str]:
    """Yield lines that say what is served under which address, and how to look at the cache."""
    for mount in mounts:
        yield f"  {address}{mount.name[1:]}/ is {redact(str(mount.base))}"
    for pattern in options.allow:
        yield f"  {address}https/HOST/… is https://HOST/…, where HOST is {pattern}"
    if not mounts and not options.allow:
        yield "  no origin is mounted or allowed: add --mount /name=https://origin/base/"
    password = "" if _is_loopback(options.host) else " (its password is the token)"
    yield f"  see what is stored, in a browser: {address}-/{password}"
    yield f"  see what is stored, in a terminal: {_call(options, 'list')}"


def _demo_hints(
    options: argparse.Namespace, address: str, demo: DemoOrigin, entry_id: int
) -> Iterator[str]:
    """Yield lines to copy into another terminal."""
    song = f"{address}demo{demo.song_url.removeprefix(demo.url.rstrip('/'))}"
    player = next((name for name in _PLAYERS if shutil.which(name)), _PLAYERS[0])
    lines = (
        ("listen, and jump about (a browser plays it too)", f"{player} {song}"),
        ("see which parts are here", _call(options, f"show {entry_id}")),
        (
            "get a piece from the middle, before the rest",
            f"curl -s -r 40000000-40000999 -o /dev/null -D - {song}",
        ),
        ("get the whole of it", _call(options, f"get {demo.song_url} -o /tmp/demo.wav")),
        ("watch it in a browser", f"{address}-/"),
        ("list all entries", _call(options, "list")),
        ("the same as JSON", f"curl -s {address}-/entries"),
    )
    yield ""
    yield "Five minutes of music, from an origin that is slow on purpose. In another terminal:"
    for what, line in lines:
        yield f"\n  # {what}\n  {line}"
    yield ""
    yield "Ctrl-C ends it. What is stored stays: start it again and see."
    yield ""


def _call(options: argparse.Namespace, command: str) -> str:
    """Return the shell command that runs *command* on this cache from another terminal."""
    script = Path(sys.executable).with_name("cachefsm")
    found = shutil.which("cachefsm")
    if found is not None and Path(found).resolve() == script.resolve():
        program = "cachefsm"
    elif script.exists():
        program = shlex.quote(_short(script))
    else:
        program = f"{shlex.quote(_short(Path(sys.executable)))} -m cachefsm"
    # That terminal's environment is not known, so a directory set there must be spelled out.
    elsewhere = options.cache_dir.absolute() != default_cache_dir({}).absolute()
    suffix = f" --cache-dir {shlex.quote(str(options.cache_dir))}" if elsewhere else ""
    return f"{program} {command}{suffix}"


def _short(path: Path) -> str:
    """Return *path* relative to this directory, in which the other terminal likely is, too."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
