"""A server that has /v1/completions and nothing else: it goes on with the alphabet of its words, token by token."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.limits import Limits
from shoal.protocols.http.server import Server, serve

WORDS = [" three", " four", " five"]
JSON = [("content-type", "application/json")]


class TextServer:
    """bodies: what was asked. refuse: (status, body) in place of an answer. cut: words after which a stream breaks.

    chats: it has chats, too. deaf: it passes over `echo`, as llama.cpp's server does.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.refuse: tuple[int, dict[str, Any]] | None = None
        self.cut: int | None = None
        self.chats = self.deaf = False
        self._server: Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.addresses[0][1]}/v1"

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[TextServer]:
        async with trio.open_nursery() as nursery:
            run = partial(serve, self._answer, ("127.0.0.1", 0), limits=Limits())
            self._server = await nursery.start(run)
            yield self
            nursery.cancel_scope.cancel()

    async def _answer(self, exchange: Exchange) -> None:
        self.paths.append(exchange.path)
        if exchange.path == "/v1/models":
            await exchange.respond(200, json.dumps({"data": [{"id": "base"}]}).encode(), JSON)
            return
        if exchange.method == "GET":
            await exchange.respond(404, b"{}", JSON)
            return
        body = json.loads(exchange.body)
        self.bodies.append(body)
        if exchange.path == "/v1/chat/completions" and self.chats:
            message = {"role": "assistant", "content": "as a chat"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await exchange.respond(200, json.dumps({"choices": [choice], "model": "base"}).encode(), JSON)
            return
        if exchange.path != "/v1/completions" or self.refuse is not None:
            status, said = self.refuse or (404, {"detail": "Not Found"})
            await exchange.respond(status, json.dumps(said).encode(), JSON)
            return
        if not body.get("stream"):
            await exchange.respond(200, json.dumps(self._whole(body)).encode(), JSON)
            return
        left = [word for word in WORDS if word not in str(body["prompt"])][: body.get("max_tokens", 99)]
        async with exchange.stream(200, [("content-type", "text/event-stream")]) as send:
            for at, word in enumerate(left):
                if at == self.cut:
                    self.cut = None
                    raise RuntimeError("cut")
                told = _told([word], [-0.5], [at * 6]) if "logprobs" in body else None
                choice = {"index": 0, "text": word, "finish_reason": None, "logprobs": told}
                await send(_event({"model": "base", "choices": [choice]}))
            end = {"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}
            await send(_event({"model": "base", "choices": [end]}))
            usage = {"prompt_tokens": 2, "completion_tokens": len(left), "total_tokens": 2 + len(left)}
            await send(_event({"model": "base", "choices": [], "usage": usage}) + b"data: [DONE]\n\n")

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        new = WORDS[: body.get("max_tokens", 99)]
        echo = body.get("echo") and not self.deaf
        tokens = (["one", " two"] if echo else []) + new
        logprobs: list[float | None] = [-0.25 * at for at in range(len(tokens))]
        if echo:
            logprobs[0] = None
        offsets = [len("".join(tokens[:at])) for at in range(len(tokens))]
        told = _told(tokens, logprobs, offsets) if "logprobs" in body else None
        choice = {"index": 0, "text": "".join(tokens), "finish_reason": "length", "logprobs": told}
        usage = {"prompt_tokens": 2, "completion_tokens": len(new), "total_tokens": 2 + len(new)}
        return {"object": "text_completion", "model": "base", "choices": [choice], "usage": usage}


def _told(tokens: list[str], logprobs: list[float | None], offsets: list[int]) -> dict[str, Any]:
    tops = [None if p is None else {token: p, " x": -9.0} for token, p in zip(tokens, logprobs, strict=True)]
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
