"""What docs/embedding.md and examples/ show is run, against a scripted origin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.faults import status
from tests.support.origin import Answer, Exchange, Origin, Request, Resource

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "embedding.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SIZE = 3_000_000
FRESH = (("Cache-Control", "max-age=60"),)

# As its entry point does where cachefsm is installed.
REGISTER = (
    "import fsspec; fsspec.register_implementation("
    "'cachefsm', 'cachefsm.fsspec_filesystem.CacheFileSystem', clobber=True)\n"
)


@pytest.fixture
def site(origin: Origin) -> Origin:
    """An origin that has what the examples ask for."""
    origin.put("/film.mkv", Resource(SIZE, headers=FRESH))
    origin.put("/table.csv", Resource.of(b"name,size\nfilm,3\nsong,4.5\n"))
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:4"]
    for number in range(4):
        lines += ["#EXTINF:4,", f"{number}.ts"]
        origin.put(f"/live/{number}.ts", Resource(1000))
    origin.put("/live/index.m3u8", Resource.of("\n".join(lines).encode()))
    return origin


def run(*arguments: str, home: Path, text: str | None = None) -> str:
    environ = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        input=text,
        cwd=home,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def example(name: str, *arguments: str, home: Path, text: str | None = None) -> str:
    path = str(ROOT / "examples" / f"{name}.py")
    return run(path, str(home / "cache"), *arguments, home=home, text=text)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_what_the_document_shows_runs(block: str, site: Origin, tmp_path: Path) -> None:
    code = block.replace("https://example.org/", site.url()).replace(
        'KeyRule("example.org"', f'KeyRule("{site.host}"'
    )
    prefix = REGISTER if "fsspec" in code else ""
    run("-", home=tmp_path, text=prefix + code)


def test_the_document_leads_to_every_example_and_nowhere_else() -> None:
    examples = {f"../examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXT)}
    assert links == {*examples, "interface.md"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda it: it.stem)
def test_an_example_says_how_it_is_called(path: Path) -> None:
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"python examples/{path.name} CACHE_DIR " in done.stderr
    assert "Traceback" not in done.stderr


def test_watch(site: Origin, tmp_path: Path) -> None:
    first = example("watch", site.url("/film.mkv"), home=tmp_path)
    assert "initializing -> downloading" in first
    assert "it begins with 00010203" in first
    assert f"{SIZE} bytes are here" in first
    example("watch", site.url("/film.mkv"), home=tmp_path)
    assert site.body_bytes_sent == SIZE


def test_play(site: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without mpv
    site.put("/next.mkv", Resource(SIZE))
    urls = [site.url("/film.mkv"), site.url("/next.mkv")]
    said = example("play", *urls, home=tmp_path, text="\n")
    assert re.match(rf"play http://127\.0\.0\.1:\d+/http/{site.host}:{site.port}/film\.mkv", said)


def test_table(site: Origin, tmp_path: Path) -> None:
    assert example("table", site.url("/table.csv"), "size", home=tmp_path) == "7.5\n"


def test_session(site: Origin, tmp_path: Path) -> None:
    said = example("session", site.url("/film.mkv"), home=tmp_path).splitlines()
    assert said[0].startswith(f"200, {SIZE} bytes: cachefsm; fwd=miss")
    assert said[1].startswith(f"200, {SIZE} bytes: cachefsm; hit")
    assert said[2].startswith("206, 10 bytes: cachefsm; hit")


def test_links(site: Origin, tmp_path: Path) -> None:
    issued = 0

    def issue(exchange: Exchange) -> None:
        nonlocal issued
        issued += 1
        link = site.url(f"/film.mkv?sig={issued}").encode()
        exchange.answer = Answer.fixed(200, [("Content-Type", "text/plain")], link)

    def has_expired(request: Request) -> bool:
        return "sig=1" in request.target

    site.script(issue, path="/page", times=None)
    site.script(status(403), path="/film.mkv", when=has_expired, times=None)
    said = example("links", site.url("/page"), home=tmp_path)
    assert said == f"{SIZE} bytes of {site.url('/film.mkv')}?…\n"
    assert issued == 2
