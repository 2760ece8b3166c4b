"""A node in the middle of its day, made up: five peers, three providers, requests that end well and badly.

reef.py has real ones, of which the screenshots in docs/ are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import trio
from shoal.protocols.peer_id import Identity, PeerId
from shoal.providers.base import ErrorKind, Finish, ModelInfo, Provider, ProviderError, Status, Usage

from tests.node.fakes_router import Pause, Scripted, ScriptedPeer
from tests.node.fakes_rpc import Door, door

GIB = 1 << 30
ANSWER = (
    "Fish in a shoal need no leader. Each one watches a handful of neighbours, keeps its distance, matches their "
    "heading and turns when they turn. From these three rules comes a group that finds food sooner, confuses a "
    "hunter, and closes again around whatever breaks through it."
)


def _peer(seed: int, models: list[tuple[str, int, float]], **more: Any) -> dict[str, Any]:
    peer = Identity.from_seed(bytes([seed]) * 32).peer_id
    now = time.time()
    return {
        "peer": peer,
        "name": f"peer:{peer[-6:]}",
        "connected": True,
        "since": now - 4000,
        "last_good": now,
        "rtt_s": 0.0018,
        "calls": 0,
        "version": "0.1.0",
        "models": [{"name": n, "provider": "backend", "context_length": c, "decode_tps": t} for n, c, t in models],
        "providers": ["backend"],
        "hardware": {"cpu": "AMD Ryzen 9 7950X", "cores_usable": 16.0, "memory_bytes": 64 * GIB, "os": "Linux 6.8.0"},
        "limits": {},
        "load": {"running": 0, "cpu": 0.08},
        "told_at": now - 3,
        "addresses": ["/ip4/10.0.0.7/tcp/4642"],
        "problem": "",
    } | more


def peers() -> list[dict[str, Any]]:
    gpu = {"vendor": "nvidia", "name": "RTX 4090", "memory_bytes": 24 * GIB}
    big = {"vendor": "nvidia", "name": "H100 80GB", "memory_bytes": 80 * GIB}
    box = {"cpu": "Intel Core i9-14900K", "cores_usable": 32.0, "memory_bytes": 128 * GIB, "os": "Linux 6.8.0"}
    mac = {"cpu": "Apple M3 Max", "cores_usable": 14.0, "memory_bytes": 96 * GIB, "os": "Darwin 24.1.0"}
    small = {"cpu": "Raspberry Pi 5", "cores_usable": 4.0, "memory_bytes": 8 * GIB, "os": "Linux 6.6.0"}
    return [
        _peer(
            11,
            [("qwen3-30b-a3b", 32768, 96.0), ("llama-3.1-8b", 16384, 118.0)],
            rtt_s=0.0011,
            hardware=box | {"gpus": [gpu]},
            load={"running": 2, "cpu": 0.34},
        ),
        _peer(
            12,
            [("llama-3.3-70b", 65536, 61.0)],
            rtt_s=0.0242,
            hardware=box | {"gpus": [big]},
            load={"running": 1, "cpu": 0.12},
        ),
        _peer(
            13,
            [("gemma-3-27b", 32768, 28.0), ("mistral-small", 32768, 33.0), ("phi-4", 16384, 40.0)],
            rtt_s=0.0037,
            hardware=mac,
        ),
        _peer(14, [], rtt_s=0.0068, hardware=small, providers=[]),
        _peer(
            15,
            [("llama-3.1-8b", 8192, 52.0)],
            connected=False,
            rtt_s=None,
            last_good=time.time() - 1300,
            problem="the connection was closed by the peer",
            load={},
        ),
    ]


def words(text: str, pause: float) -> list[Any]:
    steps: list[Any] = []
    for word in text.split(" "):
        steps += [(" " if steps else "") + word, Pause(pause)]
    return [*steps, Usage(24, len(text.split(" "))), Finish("stop")]


def status(*models: str, **more: Any) -> Status:
    return Status(ready=True, models=tuple(ModelInfo(m, 32768) for m in models), default_model=models[0], **more)


class Reef:
    """A swarm that offers what it was given."""

    def __init__(self, offered: dict[str, Provider]) -> None:
        self._offered = offered

    def candidates_for(self, model: str | None) -> list[Provider]:
        return [self._offered[model]] if model in self._offered else []


@contextlib.asynccontextmanager
async def scene() -> AsyncGenerator[Door]:
    """The node with its RPC up; `live(node)` fills it with requests."""
    openrouter = Scripted(
        "openrouter",
        words(ANSWER, 0.012),
        [ProviderError(ErrorKind.RATE_LIMITED, "its limit is reached")],
        status=status("openai/gpt-4o-mini", "anthropic/claude-3.5-haiku", "google/gemini-2.0-flash"),
    )
    local = Scripted("local_hf", words(ANSWER, 0.03), status=status("smollm2"))
    backend = Scripted("workstation", words(ANSWER * 40, 0.02), status=status("openai/gpt-4o-mini"))
    claude = Scripted("claude_code", status=Status(ready=False, reason="not signed in; run `claude` once and sign in"))
    found = peers()
    far = ScriptedPeer(PeerId(found[0]["peer"]), words(ANSWER * 40, 0.011))
    near = ScriptedPeer(PeerId(found[1]["peer"]), words(ANSWER * 40, 0.017))
    async with door(
        openrouter, local, backend, claude, swarm=Reef({"qwen3-30b-a3b": far, "llama-3.3-70b": near})
    ) as node:
        node.node.peers = lambda: found  # type: ignore[method-assign]
        me = Identity.from_seed(bytes([10]) * 32).peer_id
        node.node.status = lambda: {  # type: ignore[method-assign]
            "version": "0.1.0",
            "peer_id": me,
            "uptime_s": 11520.0,
            "rpc": "http://127.0.0.1:8642",
            "swarm": {
                "up": True,
                "name": "reef",
                "private": False,
                "peers": 4,
                "invite": "shoal1example",
                "addresses": ["/ip4/10.0.0.5/tcp/4642"],
            },
            "hardware": {
                "cpu": "AMD Ryzen 7 5800X",
                "cores_usable": 8.0,
                "memory_bytes": 32 * GIB,
                "os": "Linux 6.8.0",
            },
            "load": {"memory_available_bytes": 21 * GIB, "load1": 1.2, "cpu_percent": 23.0},
        }
        for name, reason in (
            ("codex_cli", "codex is not installed; npm install -g @openai/codex"),
            ("copilot_cli", "copilot is not installed; npm install -g @github/copilot"),
            ("gemini_cli", "gemini is not installed; npm install -g @google/gemini-cli"),
        ):
            node.shelf.refused[name] = reason
        yield node


async def live(node: Door, nursery: trio.Nursery) -> None:
    """Some requests that have ended, and two that have not."""

    async def leave(delay: float, **body: Any) -> None:
        with trio.move_on_after(delay):
            await node.chat(**body)

    def question(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    await node.chat(model="openai/gpt-4o-mini", messages=question("why do fish swim in shoals?"))
    for _ in range(3):
        await node.chat(model="openai/gpt-4o-mini", messages=question("why do fish swim in shoals?"))
    await leave(0.4, model="smollm2", messages=question("a"))
    await node.chat(model="nobody-has-it")
    nursery.start_soon(_forever, node, "openai/gpt-4o-mini", question("b"))
    nursery.start_soon(_forever, node, "qwen3-30b-a3b", question("c"))
    nursery.start_soon(_forever, node, "llama-3.3-70b", question("d"))
    await trio.sleep(0.5)


async def _forever(node: Door, model: str, messages: list[dict[str, str]]) -> None:
    with contextlib.suppress(trio.TooSlowError):
        await node.chat(model=model, messages=messages)
