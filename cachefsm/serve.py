"""``serve``: the proxy as a program, from the first line it prints to its clean end."""

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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from .access import AllowList, Mount, parse_mount
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
        level = _level(options)
        stack.enter_context(
            logging_to(
                logging.StreamHandler(),
                level,
                timed=True,
                debug=options.debug,
                # The proxy has said it already, and how the cache answered.
                floors={"cachefsm.server": logging.WARNING} if level > logging.DEBUG else {},
            )
        )
        mounts: list[Mount] = list(options.mount)
        demo = stack.enter_context(_demo_origin()) if options.demo else None
        if demo is not None:
            mounts.append(parse_mount(f"/demo={demo.url}"))
        try:
            mounts, rules = furnish(
                mounts,
                fresh=options.fresh,
                offline=options.offline,
                pass_methods=options.pass_methods,
                hand_on_redirects=options.hand_on_redirects,
                headers=options.header,
            )
        except UsageError as error:
            options.fail(str(error))
        allowed = AllowList(options.allow)
        for mount in mounts:
            allowed.add(mount.base, by_url=False)
        cache = stack.enter_context(_open_cache(options, allowed, mounts))
        for url in cache.queued_urls():
            # Whoever asked for it named its origin.
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
        _print_lines(
            # The last is a number, which works whatever the others call this machine.
            *(f"  for other machines: http://{_bracketed(a)}:{port}/" for a in addresses[-1:]),
            *([f"  control needs this token: {token}"] if public and not options.token else []),
            *(
                _demo_hints(options, server.url, demo, cache.entry(demo.song_url).id)
                if demo is not None
                else _hints(options, server.url, mounts)
            ),
        )
        number = signal.sigwait(ends)
        _log.info("%s: closing", signal.Signals(number).name)
    return 0


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Keep *signals* for ``sigwait``: no handler runs at a moment that nobody chose.

    Threads that are started in the block inherit it. A second signal while the
    first one's work is being done is forgotten.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        while signal.sigpending() & signals:
            signal.sigwait(signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _level(options: argparse.Namespace) -> int:
    if options.verbose or options.debug:
        return logging.DEBUG
    return logging.WARNING if options.quiet else logging.INFO


def _open_cache(options: argparse.Namespace, allowed: AllowList, mounts: list[Mount]) -> Cache:
    """Open the cache; wait a little for a command that has it just now."""
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
    """Return how many connections the options allow."""
    per_entry, per_host = options.connections, options.connections_per_host
    # Whoever allows one host so many will not want fewer in all.
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
    try:
        print("\n".join(lines), flush=True)
    except OSError:
        pass  # nobody reads it; the proxy is of use all the same


def _hints(options: argparse.Namespace, address: str, mounts: list[Mount]) -> Iterator[str]:
    """Yield what is where, and what may be done with it."""
    for mount in mounts:
        yield f"  {address}{mount.name[1:]}/ is {redact(str(mount.base))}"
    for pattern in options.allow:
        yield f"  {address}https/HOST/… is https://HOST/…, where HOST is {pattern}"
    if not mounts and not options.allow:
        yield "  no origin is mounted or allowed: add --mount /name=https://origin/base/"
    if _is_loopback(options.host):  # elsewhere the page wants a token, which browsers don't send
        yield f"  what it holds, in a browser: {address}-/"
    yield f"  what it holds: {_call(options, 'list')}"


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
    """Return how another terminal gives *command* to this program for this cache."""
    script = Path(sys.executable).with_name("cachefsm")
    found = shutil.which("cachefsm")
    if found is not None and Path(found).resolve() == script.resolve():
        program = "cachefsm"
    elif script.exists():
        program = shlex.quote(_short(script))
    else:
        program = f"{shlex.quote(_short(Path(sys.executable)))} -m cachefsm"
    # The environment of that terminal is not known: only what holds without one.
    elsewhere = options.cache_dir.absolute() != default_cache_dir({}).absolute()
    suffix = f" --cache-dir {shlex.quote(str(options.cache_dir))}" if elsewhere else ""
    return f"{program} {command}{suffix}"


def _short(path: Path) -> str:
    """Return *path* from here, if it lies below; the other terminal is likely here too."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
