"""The commands on the pages do what the pages say: each marked block is run, as it stands, against a real node.

```sh run         run by bash, in the page's order and one folder, with a node that is up
```sh start       runs until it says that it is ready; then it is ended by SIGINT, and must end well
```sh elsewhere   not run: needs another machine, root or a long download
```python run     run by Python

Only the port differs: 8642 may be somebody's. The model `smollm2` is an upstream that echoes, so that a page takes
seconds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.fixtures import in_thread, start
from tests.e2e.node_process import SHOAL, NodeProcess
from tests.providers.fake_upstream import FakeUpstream

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "127.0.0.1:8642"


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    mark: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```([a-z]+)(?: ([a-z]+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text[: found.start()].count("\n") + 1, found[1], found[2] or "", found[3])


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.mark in ("run", "start")]


def test_every_shell_block_says_whether_it_is_run() -> None:
    unmarked = [
        f"{block.page.name}:{block.line}"
        for page in PAGES
        for block in blocks(page)
        if block.language == "sh"
        and block.mark not in ("run", "start", "elsewhere")
    ]  # fmt: skip
    assert not unmarked
    for page in PAGES:
        prose = re.sub(r"^```[a-z].*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        hidden = re.findall(r"^ *(?:shoal|make|pip|curl|ipfs|python -m) .*$", prose, re.MULTILINE)
        assert not [line for line in hidden if line.startswith("    ") or f"```\n{line}" in prose], page.name
    assert sum(len(runnable(page)) for page in PAGES) > 15


def test_every_link_between_pages_leads_somewhere() -> None:
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src(?:set)?=\"([^\"]+)\"", page.read_text()):
            name = target[0] or target[1]
            if not (page.parent / name).exists():
                lost.append(f"{page.name}: {name}")
    assert not lost


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def test_every_link_into_a_page_finds_its_heading() -> None:
    lost = []
    for page in PAGES:
        for name, anchor in re.findall(r"\]\(([^)#: ]*)#([^)]+)\)", page.read_text()):
            there = (page.parent / name).resolve() if name else page
            if there in PAGES and anchor not in headings(there):
                lost.append(f"{page.name}: {name}#{anchor}")
    assert not lost


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


def environment(home: Path, data: Path) -> dict[str, str]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("SHOAL_", "XDG_", "OPENROUTER_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return keep | {"HOME": str(home), "SHOAL_DATA_DIR": str(data), "PATH": path, "NO_COLOR": "1"}


def run(block: Block, node: NodeProcess, home: Path) -> None:
    text = block.text.replace(ADDRESS, node.rpc.removeprefix("http://"))
    command = ["bash", "-euo", "pipefail", "-c", text] if block.language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command,
        cwd=home,
        env=environment(home, node.data_dir),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    where = f"{block.page.name}:{block.line}"
    assert done.returncode == 0, f"{where}: {done.stderr}{done.stdout}"
    assert "Traceback" not in done.stderr, where


def begin_and_end(block: Block, home: Path, config: Path) -> None:
    """`shoal run` as the page has it, with the port and provider of the test."""
    assert block.text.split()[:2] == ["shoal", "run"], block
    environ = environment(home, home / "own") | {"SHOAL_RPC_LISTEN": "127.0.0.1:0", "SHOAL_CONFIG": str(config)}
    process = subprocess.Popen(
        [SHOAL, *block.text.split()[1:]],
        cwd=home, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = []
        deadline = time.monotonic() + 30
        for line in process.stdout:
            said.append(line)
            if line.startswith("ready") or time.monotonic() > deadline:
                break
        assert said[-1] == "ready; Ctrl-C ends it\n", said
        assert any(line.startswith("  dashboard") for line in said)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def together() -> list[list[Path]]:
    """Pages by the node that they share: those with a command or two need none of their own."""
    told = {page: len(runnable(page)) for page in PAGES}
    return [
        *([page] for page, number in told.items() if number > 2),
        [p for p, number in told.items() if 0 < number <= 2],
    ]


@pytest.mark.parametrize("pages", together(), ids=lambda pages: "+".join(page.stem for page in pages))
async def test_the_commands_of_the_page_work(pages: list[Path], tmp_path: Path, upstream: FakeUpstream) -> None:
    config = (
        f'[providers.local_hf]\nenabled = false\n[providers.fast]\ntype = "openai_compat"\n'
        f'base_url = "{upstream.url()}"\nmodels = ["smollm2"]\ndefault_model = "smollm2"\n'
    )
    home = tmp_path / "home"
    home.mkdir()
    with await start(tmp_path / "node", config=config) as node:
        for block in (block for page in pages for block in runnable(page)):
            if block.mark == "start":
                await in_thread(begin_and_end, block, home, node.data_dir / "node.toml")
            else:
                await in_thread(run, block, node, home)
