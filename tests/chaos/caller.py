"""A caller who knows what the answer must be: asks over HTTP, reads the stream, and says what came of it."""

from __future__ import annotations

import json
from typing import Any

import trio
from msgspec import Struct
from shoal.protocols.http.client import Client, ClientError
from shoal.protocols.http.sse import SseParser

PACE_S = 0.01
"""Seconds a word, of the upstream that the nodes share ("slow10+each")."""


class Outcome(Struct):
    """What one caller got. kind: whole, refused (an error, told cleanly), wrong (other text), lost (no end, no error).

    took: seconds in all. gap: the longest silence between two pieces, or before the first. rescued: somebody else went
    on with it. words: of the answer. error: what was told. first_s: seconds that whoever went on needed for his own
    first word, as the node that was asked has measured it.
    """

    kind: str
    took: float = 0.0
    gap: float = 0.0
    words: int = 0
    rescued: bool = False
    way: str = ""
    error: str = ""
    first_s: float = 0.0

    @property
    def extra(self) -> float:
        """Seconds beyond what the upstream takes to write the answer once."""
        return max(0.0, self.took - self.words * PACE_S)


async def ask(client: Client, rpc: str, text: str, *, temperature: float = 0.0, store: bool = False) -> Outcome:
    """Ask the echo for `text` and compare every character of its stream."""
    body: dict[str, Any] = {
        "model": "echo",
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "temperature": temperature,
    }
    headers = [("content-type", "application/json")]
    if not store:
        headers.append(("cache-control", "no-store"))
    said, parser, seen, whole = "", SseParser(), Seen(), f"ECHO<{text.strip()}>"
    start = last = trio.current_time()
    gap = 0.0
    try:
        async with client.request(
            "POST", f"{rpc}/v1/chat/completions", headers=headers, body=json.dumps(body).encode()
        ) as response:
            if response.status != 200:
                error = json.loads(await response.read(1 << 20))["error"]
                return Outcome("refused", trio.current_time() - start, error=f"{error['code']}: {error['message']}")
            async for data in response:
                for event in parser.feed(data):
                    piece = seen.take(event.data)
                    if piece:
                        now = trio.current_time()
                        gap, last = max(gap, now - last), now
                        said += piece
    except ClientError as error:
        kind = "lost" if whole.startswith(said) else "wrong"
        return Outcome(kind, trio.current_time() - start, gap, error=f"{type(error).__name__}: {error}")
    took = trio.current_time() - start
    kind = "whole" if said == whole and seen.done else "lost"
    if seen.error:
        kind = "refused" if whole.startswith(said) else "wrong"
    elif said != whole and not whole.startswith(said):
        kind = "wrong"
    ways = [attempt.get("way", "") for attempt in seen.route]
    first_s = sum((attempt.get("first_token_ms") or attempt.get("ms") or 0.0) / 1000 for attempt in seen.route[1:])
    way = next((w for w in ways if w), "")
    return Outcome(kind, took, gap, len(text.split()), any(ways), way, seen.error, first_s)


class Seen:
    """The events of one stream."""

    def __init__(self) -> None:
        self.done = False
        self.error = ""
        self.route: list[dict[str, Any]] = []

    def take(self, data: str) -> str:
        """The text in one event."""
        if data == "[DONE]":
            self.done = True
            return ""
        chunk = json.loads(data) if data else {}
        if "error" in chunk:
            self.error = f"{chunk['error']['code']}: {chunk['error']['message']}"
            return ""
        if "shoal" in chunk:
            self.route = chunk["shoal"].get("route") or []
        choices = chunk.get("choices") or [{}]
        return str(choices[0].get("delta", {}).get("content") or "")


def quantile(values: list[float], share: float) -> float:
    """The value below which that share of them lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
