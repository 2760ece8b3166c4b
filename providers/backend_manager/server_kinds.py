"""How a kind of server says that it is well, which models it has and how busy it is. Pure: what to ask, what it says.

vLLM: /health, /version, /metrics (https://docs.vllm.ai/en/latest/usage/metrics.html); Ollama: /api/version, /api/tags
(https://github.com/ollama/ollama/blob/main/docs/api.md); llama.cpp: /health, 503 while it loads, and /metrics with
--metrics (tools/server/README.md); SGLang: /health, /get_server_info, and /metrics with --enable-metrics
(docs.sglang.ai, native APIs and production metrics); any other, LM Studio among them: GET /models. All cost nothing.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from typing import Literal

import msgspec
from msgspec import Struct

Kind = Literal["auto", "vllm", "ollama", "llama_cpp", "llama_cpp_python", "sglang", "lm_studio", "openai"]

HEALTH: dict[str, str] = {
    "vllm": "/health",
    "llama_cpp": "/health",
    "llama_cpp_python": "/openapi.json",  # this server breaks off the answer it streams when /v1/models is asked
    "sglang": "/health",
    "ollama": "/api/version",
}
"""Kind -> the path, from the server's root, that answers 200 when it is well. Others are asked for their models."""
METRICS: dict[str, str] = {"vllm": "/metrics", "llama_cpp": "/metrics", "sglang": "/metrics"}
VERSION: dict[str, str] = {
    "vllm": "/version",
    "ollama": "/api/version",
    "llama_cpp": "/props",
    "sglang": "/get_server_info",
}
TAGS = "/api/tags"

_RUNNING = {
    "vllm": ("vllm:num_requests_running",),
    "llama_cpp": ("llamacpp:requests_processing",),
    "sglang": ("sglang:num_running_reqs",),
}
_WAITING = {
    "vllm": ("vllm:num_requests_waiting",),
    "llama_cpp": ("llamacpp:requests_deferred",),
    "sglang": ("sglang:num_queue_reqs",),
}


class Busy(Struct, frozen=True):
    """Requests in a server, of all its clients, as it counts them."""

    running: int
    waiting: int


def root_of(base_url: str) -> str:
    """Where the server itself is: the base URL without /v1."""
    base = base_url.rstrip("/")
    return base.removesuffix("/v1")


def on_this_machine(base_url: str) -> bool:
    """Whether the server is on loopback."""
    try:
        host = urllib.parse.urlsplit(base_url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Owned(Struct):
    owned_by: str | None = None


class _Models(Struct):
    data: list[_Owned] | None = None


def kind_of(models: bytes) -> Kind | None:
    """The kind of server by the owner that it writes into its list of models; None when that does not tell."""
    try:
        owners = {model.owned_by for model in msgspec.json.decode(models, type=_Models).data or ()}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    kinds: dict[str, Kind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama_cpp"}
    return next((kind for owner, kind in kinds.items() if owner in owners), None)


class _Version(Struct):
    version: str = ""
    build_info: str = ""
    """llama.cpp's name for it."""


def version_of(body: bytes) -> str | None:
    """The version in `{"version": "0.12.1"}`; None when it is something else."""
    try:
        told = msgspec.json.decode(body, type=_Version)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    version = told.version or told.build_info
    return version if 0 < len(version) <= 40 and version.isprintable() else None


class _Tag(Struct):
    name: str


class _Tags(Struct):
    models: list[_Tag] | None = None


def tags_of(body: bytes) -> tuple[str, ...]:
    """The names in Ollama's /api/tags. Raises ValueError."""
    try:
        return tuple(tag.name for tag in msgspec.json.decode(body, type=_Tags).models or ())
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("the list of installed models is not in Ollama's shape") from None


_SAMPLE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{[^}]*\})?\s+([0-9.eE+-]+)", re.MULTILINE)


def busy_of(kind: str, metrics: str) -> Busy | None:
    """The gauges of a server's /metrics (Prometheus text), added up over its engines; None when they are not there."""
    totals: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        try:
            totals[name] = totals.get(name, 0.0) + float(value)
        except ValueError:
            continue
    running = [totals[name] for name in _RUNNING.get(kind, ()) if name in totals]
    waiting = [totals[name] for name in _WAITING.get(kind, ()) if name in totals]
    if not running and not waiting:
        return None
    return Busy(_count(sum(running)), _count(sum(waiting)))


def _count(value: float) -> int:
    return int(value) if 0 <= value < 1e9 else 0
