"""Who lives in the lab: relays, a node that answers, a node that asks, and what is asked of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import openai
import trio

from tests.e2e.fixtures import NO_MODEL
from tests.nat.lab import PORT, PUBLIC, Lab, LabNode

NO_MDNS = "[swarm]\nmdns = false\n"
EVERYWHERE = ("--listen", f"/ip4/0.0.0.0/tcp/{PORT}")


def config(base_url: str = "", *, swarm: str = "", relay: str = "", continues: bool = False) -> str:
    """swarm, relay: lines of these sections. base_url: of an upstream that is shared; "": there is no provider."""
    fast = (
        f'[providers.fast]\ntype = "openai_compat"\nbase_url = "{base_url}"\nmodels = ["echo"]\nshare = true\n'
        f"continues = {str(continues).lower()}\n"
    )
    return f"{NO_MODEL}{NO_MDNS}{swarm}\n[relay]\n{relay}\n{fast if base_url else ''}"


async def a_relay(lab: Lab, name: str = "relay", *joins: LabNode, swarm: str = "", limits: str = "") -> LabNode:
    """A public node that relays for the swarm; `folder` is its own, so that it comes back as the same."""
    listen = ("--listen", f"/ip4/{PUBLIC[name]}/tcp/{PORT}")
    join = [arg for other in joins for arg in ("--join", other.invite)]
    return await lab.node(name, *listen, *join, config=config(swarm=swarm, relay=f"serve = true\n{limits}"))


async def until(holds: Callable[[], Any], within: float, what: str) -> Any:
    """What `holds` says as soon as it is true."""
    began = time.monotonic()
    while not (said := await holds()):
        assert time.monotonic() - began < within, f"not within {within} s: {what}"
        await trio.sleep(0.05)
    return said


async def get(node: LabNode, path: str) -> Any:
    """What the node's RPC answers."""
    from urllib.request import urlopen

    def ask() -> Any:
        with urlopen(f"{node.rpc}{path}", timeout=10) as answer:
            return json.load(answer)

    return await node.do(ask)


async def peer_of(node: LabNode, other: LabNode) -> dict[str, Any]:
    """What a node says of another one; empty when it knows nothing."""
    for peer in (await get(node, "/shoal/v1/peers"))["peers"]:
        if peer["peer"] == other.peer_id:
            return dict(peer)
    return {}


async def places(node: LabNode) -> set[str]:
    """The relays behind which a node has a place."""
    told = (await get(node, "/shoal/v1/status"))["swarm"]["relays"]
    return {place["relay"] for place in told.get("places", ())}


async def until_placed(node: LabNode, *relays: LabNode, within: float = 10) -> None:
    wanted = {relay.peer_id for relay in relays}

    async def placed() -> bool:
        return await places(node) >= wanted

    await until(placed, within, f"{node.name} has a place behind {len(wanted)} relays")


async def until_knows(node: LabNode, other: LabNode, *, via: str | None = None, within: float = 10) -> None:
    """`node` is connected to `other` (over `via`: "direct" or "relayed") and has its advert."""

    async def knows() -> bool:
        peer = await peer_of(node, other)
        return bool(peer.get("connected")) and bool(peer.get("version")) and via in (None, peer.get("via"))

    await until(knows, within, f"{node.name} is connected to {other.name} ({via})")


def client(node: LabNode) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{node.rpc}/v1", api_key="unused", max_retries=0, timeout=30)


class Stream:
    """One streamed answer, read in a thread: its text, when each piece came, and how it ended."""

    def __init__(self, node: LabNode, text: str, **options: Any) -> None:
        self.text, self.error, self.times = "", "", list[float]()
        self.began = self.took = 0.0
        self._node, self._question, self._options = node, text, options

    def read(self) -> None:
        self.began = time.monotonic()
        asked = [{"role": "user", "content": self._question}]
        options = {"temperature": 0, **self._options}
        try:
            for chunk in client(self._node).chat.completions.create(
                model="echo",
                messages=asked,
                stream=True,
                **options,  # type: ignore[arg-type]
            ):
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    self.text += piece
                    self.times.append(time.monotonic())
            self.took = time.monotonic() - self.began
        except openai.APIError as error:
            self.error = f"{type(error).__name__}: {error} {error.__cause__!r}"

    async def run(self) -> None:
        await self._node.do(self.read)

    @property
    def gap(self) -> float:
        """The longest wait between two pieces, in seconds."""
        return max((after - before for before, after in zip(self.times, self.times[1:], strict=False)), default=0.0)


async def ask(node: LabNode, text: str, **options: Any) -> Stream:
    stream = Stream(node, text, **options)
    await stream.run()
    return stream


async def post(node: LabNode, path: str, body: Any) -> Any:
    """What the node's RPC answers."""
    from urllib.request import Request, urlopen

    request = Request(f"{node.rpc}{path}", json.dumps(body).encode(), {"content-type": "application/json"})

    def ask() -> Any:
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    return await node.do(ask)
