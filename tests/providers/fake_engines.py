"""Engines that only say who they are: fakes, made after each project's own documentation and source, not recordings.

Ollama 0.12 (docs/api.md), vLLM 0.11 (entrypoints/openai/api_server.py), SGLang 0.5 (srt/entrypoints/http_server.py),
LM Studio 0.3 (REST API v0), llama.cpp's server (tools/server/README.md) and llama-cpp-python's. The two of llama.cpp
are met for real in tests/providers_real/test_llama_cpp.py; the others have not been met.

    async with fake_engine("ollama") as address: ...
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import trio
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import serve


def models(owner: str, *names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner} for name in names]}


STUDIO = {"object": "model", "type": "llm", "publisher": "qwen", "arch": "qwen2", "state": "not-loaded"}

PATHS: dict[str, dict[str, Any]] = {
    "ollama": {
        "/": "Ollama is running",
        "/api/version": {"version": "0.12.1"},
        "/api/tags": {"models": [{"name": "llama3.2:latest"}, {"name": "qwen3:8b"}, {"name": "gemma3:1b"}]},
        "/v1/models": models("library", "llama3.2:latest", "qwen3:8b", "gemma3:1b"),
    },
    "llama_cpp": {
        "/health": {"status": "ok"},
        "/props": {"build_info": "b6500-abcdef", "default_generation_settings": {}, "model_path": "m.gguf"},
        "/v1/models": models("llamacpp", "m.gguf"),
        "/api/tags": {"models": [{"name": "m.gguf"}]},
    },
    "llama_cpp_python": {
        "/openapi.json": {"openapi": "3.1.0", "info": {"title": "🦙 llama.cpp Python API", "version": "0.3.36"}},
        "/v1/models": models("me", "m.gguf"),
    },
    "vllm": {
        "/health": "",
        "/version": {"version": "0.11.0"},
        "/v1/models": models("vllm", "Qwen/Qwen3-8B"),
        "/openapi.json": {"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}},
    },
    "vllm_with_key": {"/health": "", "/version": {"version": "0.11.0"}, "/v1/models": 401},
    "sglang": {
        "/health": "",
        "/get_model_info": {"model_path": "Qwen/Qwen3-8B", "is_generation": True},
        "/get_server_info": {"version": "0.5.3", "tp_size": 1},
        "/v1/models": models("sglang", "Qwen/Qwen3-8B"),
    },
    "lm_studio": {
        "/v1/models": models("organization_owner", "qwen2.5-7b-instruct", "text-embedding-nomic"),
        "/api/v0/models": {
            "object": "list",
            "data": [
                STUDIO | {"id": "qwen2.5-7b-instruct", "state": "loaded"},
                STUDIO | {"id": "text-embedding-nomic", "type": "embeddings"},
            ],
        },
    },
    "shoal": {
        "/": "<!doctype html>\n<title>Shoal</title>",
        "/shoal/v1/status": {"peer_id": "12D3KooW", "version": "0.1.0"},
        "/v1/models": models("vllm", "Qwen/Qwen3-8B"),
    },
    "another_api": {"/v1/models": models("somebody", "gpt-4o"), "/version": {"version": "1.0"}},
    "a_web_page": {"/": "<html>hello</html>"},
}


@contextlib.asynccontextmanager
async def fake_engine(name: str, asked: list[str] | None = None, hangs: str = "") -> AsyncGenerator[str]:
    """Its address, while it listens. asked: gets the path of each request. hangs: a path that is never answered."""

    async def answer(exchange: Exchange) -> None:
        if asked is not None:
            asked.append(exchange.path)
        if exchange.path == hangs:
            await trio.sleep_forever()
        said = PATHS[name].get(exchange.path, 404)
        if isinstance(said, int):
            await exchange.respond(said, b'{"error": "no"}', [("content-type", "application/json")])
        else:
            body = said.encode() if isinstance(said, str) else msgspec.json.encode(said)
            await exchange.respond(200, body)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(functools.partial(serve, answer, listeners))
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
