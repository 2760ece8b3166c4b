"""Six real nodes in one swarm, asked by real clients; only their models are a fake upstream, so that it takes seconds.

python -m tests.browser.reef FOLDER        writes the screenshots that docs/ shows
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import trio

from tests.browser.chromium import Browser, chromium
from tests.e2e.fixtures import NO_MODEL, client, in_thread, start, until
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

SWARM = '[swarm]\nname = "reef"\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
LENT = "[share.workstation]\nrequests_per_minute = 60\ntokens_per_day = 200000\n"
ASIDE = "".join(f"[providers.{name}]\nenabled = false\n" for name in ("codex_cli", "gemini_cli"))

PICTURES = (
    ("dashboard-light", 1600, 1000, False),
    ("dashboard-dark", 1600, 1000, True),
    ("dashboard-phone", 400, 860, False),
    ("dashboard-phone-dark", 400, 860, True),
)


def provider(name: str, url: str, *models: str, share: bool = True) -> str:
    listed = ", ".join(f'"{model}"' for model in models)
    kind = f'type = "openai_compat"\nbase_url = "{url}"\nmodels = [{listed}]\n'
    return f"[providers.{name}]\n{kind}share = {str(share).lower()}\n"


class Reef:
    """node: the one whose page is shown. nodes: the others; the last of them is gone."""

    def __init__(self, node: NodeProcess, nodes: list[NodeProcess]) -> None:
        self.node, self.nodes = node, nodes

    async def live(self, nursery: trio.Nursery) -> None:
        """Some requests that have ended, and three that have not; a peer has asked this node, too."""
        await self.ask(self.node, "gpt-4o-mini", "why do fish swim in shoals?")
        for _ in range(3):
            await self.ask(self.node, "gpt-4o-mini", "why do fish swim in shoals?")
        with contextlib.suppress(openai.APIStatusError):
            await self.ask(self.node, "nobody-has-it", "anything")
        for number in range(2):
            await self.ask(self.nodes[3], "gpt-4o-mini", f"what is a school, number {number}?")
        for model in ("gemma-3-27b", "qwen3-30b-a3b", "llama-3.3-70b"):
            nursery.start_soon(self._read, model)
        await until(self.node, ("peers",), lambda said: sum(peer["calls"] for peer in said["peers"]) >= 3)

    async def ask(self, node: NodeProcess, model: str, text: str) -> Any:
        messages = [{"role": "user", "content": text}]
        return await in_thread(client(node).chat.completions.create, model=model, messages=messages, temperature=0)

    async def _read(self, model: str) -> None:
        def read() -> None:
            messages: Any = [{"role": "user", "content": "tell me a long story"}]
            with contextlib.suppress(openai.OpenAIError):
                for _ in client(self.node).chat.completions.create(model=model, messages=messages, stream=True):
                    pass

        await trio.to_thread.run_sync(read, abandon_on_cancel=True)


@contextlib.asynccontextmanager
async def reef(folder: Path) -> AsyncGenerator[Reef]:
    """The swarm, once everybody knows what the others offer."""
    async with FakeUpstream() as upstream, contextlib.AsyncExitStack() as stack:
        slow = [upstream.url(f"words8000+slow{ms}") for ms in (11, 17, 30)]
        here = provider("cloud", upstream.url("s429+listed"), "gpt-4o-mini", "claude-3.5-haiku", share=False)
        here += provider("workstation", upstream.url("words60+slow3"), "gpt-4o-mini", "smollm2")
        node = await start(folder / "node", config=NO_MODEL + here + ASIDE + SWARM + LENT)
        stack.enter_context(node)
        nodes: list[NodeProcess] = []
        for number, offers in enumerate(
            (
                provider("backend", slow[0], "qwen3-30b-a3b", "llama-3.1-8b"),
                provider("backend", slow[1], "llama-3.3-70b"),
                provider("backend", slow[2], "gemma-3-27b", "mistral-small", "phi-4"),
                "",
                provider("backend", slow[1], "llama-3.1-8b"),
            )
        ):
            config = NO_MODEL + offers + SWARM
            nodes.append(await start(folder / str(number), "--join", node.invite, config=config))
            stack.enter_context(nodes[-1])
        await until(node, ("peers",), lambda said: sum(bool(peer["models"]) for peer in said["peers"]) == 4, 30)
        nodes[-1].kill()
        await until(node, ("peers",), lambda said: sum(peer["connected"] for peer in said["peers"]) == 4, 30)
        yield Reef(node, nodes)


async def pictures(browser: Browser, found: Reef, folder: Path, settled_s: float = 2.5) -> list[str]:
    """Takes them all, and gives what the page complained of. settled_s: of this time its figures are made."""
    folder.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    for name, width, height, dark in PICTURES:
        page = await browser.open(f"{found.node.rpc}/", width=width, height=height, dark=dark)
        await page.size(width, height, dark=dark, calm=True)
        await page.until("document.querySelectorAll('.request').length > 4")
        await page.until("document.querySelectorAll('#graph .edge.busy').length === 3")
        if width > 1000:
            await page.run("document.querySelectorAll('.row')[1].click()")
        whole = await page.run("document.documentElement.scrollHeight")
        await page.size(width, whole, dark=dark, calm=True)
        await trio.sleep(settled_s)
        await page.screenshot(folder / f"{name}.png", whole=False)
        complaints += page.console
    return complaints


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        async with reef(Path(place)) as found, chromium() as browser, trio.open_nursery() as nursery:
            await found.live(nursery)
            print(await pictures(browser, found, folder, 12) or f"written to {folder}")
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
