"""What the end-to-end tests share: configurations, clients in threads, and waiting for what a node says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import openai
import trio

from tests.e2e.node_process import NodeProcess

NO_MODEL = "[providers.local_hf]\nenabled = false\n"


def fast(base_url: str, *, share: bool = False) -> str:
    """A configuration whose one provider is the upstream at that address."""
    return (
        f'{NO_MODEL}[providers.fast]\ntype = "openai_compat"\nbase_url = "{base_url}"\nmodels = ["echo"]\n'
        f"share = {str(share).lower()}\n"
    )


async def start(folder: Path, *args: str, config: str) -> NodeProcess:
    return await trio.to_thread.run_sync(partial(NodeProcess, folder, *args, config=config))


async def in_thread(call: Any, *args: Any, **options: Any) -> Any:
    return await trio.to_thread.run_sync(partial(call, *args, **options))


def client(node: NodeProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{node.rpc}/v1", api_key="unused", max_retries=0, timeout=30)


def question(text: str = "one two three", **options: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], "temperature": 0, **options}


async def until(node: NodeProcess, command: tuple[str, ...], holds: Callable[[Any], bool], within: float = 10) -> Any:
    """What `shoal COMMAND --json` says as soon as it `holds`."""
    with trio.fail_after(within):
        while not holds(said := json.loads((await in_thread(node.shoal, *command, "--json")).stdout)):
            await trio.sleep(0.05)
    return said


async def until_a_peer_offers(node: NodeProcess, model: str, within: float = 10) -> None:
    def offered(said: Any) -> bool:
        return any(m["name"] == model for peer in said["peers"] for m in peer["models"])

    await until(node, ("peers",), offered, within)
