"""`generate_text` where a node runs on the same data directory: through its RPC, with the same errors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal import (
    GenerationError,
    NotConfiguredError,
    ProviderFailedError,
    RouterDeps,
    UnknownProviderError,
    generate_text,
    get_llm_provider,
    register_llm_provider,
)
from shoal.background import BackgroundLoop
from shoal.cache.memory import Memory
from shoal.cache.tiers import AnswerCache
from shoal.node import lock, paths, state
from shoal.node.routing.candidates import NodeCandidates
from shoal.node.routing.router import Router
from shoal.node.rpc.app import Rpc
from shoal.protocols.http.server import serve
from shoal.protocols.peer_id import Identity
from shoal.providers.base import ErrorKind
from shoal.providers.registry import Registry, forget_llm_provider

from tests.node.fakes_rpc import FakeNode
from tests.providers.fake_upstream import FakeUpstream


class Running:
    """A node on a data directory, as far as its RPC goes."""

    def __init__(self, upstream: FakeUpstream, address: str, data: Path) -> None:
        self.upstream, self.address, self.data = upstream, address, data


@contextlib.asynccontextmanager
async def running_node(data: Path) -> AsyncGenerator[Running]:
    async with FakeUpstream() as upstream:
        tables: dict[str, dict[str, Any]] = {
            name: {"type": "openai_compat", "base_url": upstream.url(scenario), "models": ["stub", "missing"]}
            for name, scenario in (("desk", "ok"), ("limited", "s429date+listed"), ("locked", "s401"))
        }
        registry = Registry.build(tables, data_dir=data, environ={}, unasked=())
        identity = Identity.generate()
        cache = AnswerCache(identity.peer_id, memory=Memory(1 << 20))
        source = NodeCandidates(registry)
        router = Router(source, cache=cache, signer=identity)
        rpc = Rpc(router, node=FakeNode(), source=source, registry=registry, cache=cache)
        async with registry.running(), source.running(), router.running(), trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(serve, on_error=rpc.on_error), rpc, ("127.0.0.1", 0))
            host, port = server.addresses[0]
            with lock.hold(data), state.rpc_announced(data, f"{host}:{port}", identity.peer_id, "0"):
                yield Running(upstream, f"{host}:{port}", data)
            nursery.cancel_scope.cancel()


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("node")
    yield loop
    loop.close()


@pytest.fixture
def node(loop: BackgroundLoop, tmp_path: Path) -> Running:
    return loop.enter(running_node(tmp_path)).value


def deps_for(data: Path, environ: dict[str, str] | None = None, **options: Any) -> RouterDeps:
    file = data / "config.toml"
    file.write_text("[providers.local_hf]\nenabled = false\n")
    return RouterDeps(config=file, data_dir=data, environ=environ or {}, **options)


@pytest.fixture
def deps(tmp_path: Path) -> Iterator[RouterDeps]:
    with deps_for(tmp_path) as deps:
        yield deps


def test_the_running_node_answers(node: Running, deps: RouterDeps) -> None:
    text = generate_text("one two", system="Be brief.", provider="desk", model_name="stub", max_tokens=5, deps=deps)
    assert text == "ECHO<one two>"
    body = node.upstream.chats[0].body
    assert (body["model"], body["max_tokens"], body["messages"][0]["content"]) == ("stub", 5, "Be brief.")
    assert "timeout" not in body


def test_the_nodes_cache_is_used_unless_the_caller_says_no(node: Running, deps: RouterDeps) -> None:
    for _ in range(2):
        generate_text("x", temperature=0, provider="desk", deps=deps)
    assert len(node.upstream.chats) == 1
    generate_text("x", temperature=0, provider="desk", use_cache=False, deps=deps)
    assert len(node.upstream.chats) == 2


def test_the_environment_of_the_caller_counts(node: Running, tmp_path: Path) -> None:
    environ = {"SHOAL_LLM_PROVIDER": "desk", "SHOAL_LLM_MODEL": "stub", "SHOAL_ROUTER_RESPONSE_CACHE": "no"}
    with deps_for(tmp_path, environ) as deps:
        for _ in range(2):
            generate_text("x", temperature=0, deps=deps)
    assert [(r.scenario, r.body["model"]) for r in node.upstream.chats] == [("ok", "stub")] * 2


def test_the_three_errors_are_the_same_as_without_a_node(node: Running, deps: RouterDeps) -> None:
    with pytest.raises(UnknownProviderError, match="desc"):
        generate_text("x", provider="desc", deps=deps)
    with pytest.raises(NotConfiguredError, match="not set up here"):
        generate_text("x", provider="codex", deps=deps)
    with pytest.raises(UnknownProviderError, match="desk, limited"):
        get_llm_provider("desc", deps=deps)
    with pytest.raises(ProviderFailedError, match="refused the key"):
        get_llm_provider("locked", deps=deps)
    with pytest.raises(GenerationError, match="missing") as caught:
        generate_text("x", provider="desk", model_name="missing", deps=deps)
    assert caught.value.kind is ErrorKind.UNAVAILABLE


def test_a_provider_of_the_node_can_be_had(node: Running, deps: RouterDeps) -> None:
    assert get_llm_provider("desk", deps=deps).generate("hi") == "ECHO<hi>"
    assert get_llm_provider(deps=deps).generate("hi", temperature=0) == "ECHO<hi>"


class Own:
    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        return f"own {prompt}"


def test_what_lives_in_this_process_answers_in_this_process(node: Running, deps: RouterDeps) -> None:
    register_llm_provider("own", Own)
    try:
        assert generate_text("x", provider="own", deps=deps) == "own x"
    finally:
        forget_llm_provider("own")
    assert generate_text("x", provider_instance=Own(), deps=deps) == "own x"
    assert node.upstream.chats == []


def test_use_daemon_false_never_asks_it(node: Running, tmp_path: Path) -> None:
    with deps_for(tmp_path, use_daemon=False) as deps, pytest.raises(GenerationError, match="No provider is ready"):
        generate_text("x", deps=deps)
    assert node.upstream.chats == []


def test_use_daemon_true_wants_one(tmp_path: Path) -> None:
    with deps_for(tmp_path, use_daemon=True) as deps, pytest.raises(GenerationError, match="shoal run"):
        generate_text("x", deps=deps)


def test_a_node_that_ended_without_tidying_up_is_passed_over(tmp_path: Path) -> None:
    register_llm_provider("own", Own)
    try:
        with lock.hold(tmp_path), state.rpc_announced(tmp_path, "127.0.0.1:9", "12D3KooWGone", "0"):
            assert paths.rpc_file(tmp_path).exists()
            with deps_for(tmp_path) as deps:
                assert generate_text("x", deps=deps) == "own x"
    finally:
        forget_llm_provider("own")


def test_an_answer_of_the_node_goes_to_the_remote_cache(node: Running, tmp_path: Path) -> None:
    kept: dict[str, str] = {}

    class Remote:
        def get(self, key: str) -> str | None:
            return kept.get(key)

        def set(self, key: str, value: str) -> None:
            kept[key] = value

    with deps_for(tmp_path, remote_cache=Remote()) as deps:
        generate_text("x", temperature=0, provider="desk", deps=deps)
    assert list(kept.values()) == ["ECHO<x>"]


def test_when_to_come_back_is_told(node: Running, deps: RouterDeps) -> None:
    with pytest.raises(GenerationError) as caught:
        generate_text("x", provider="limited", timeout=5, deps=deps)  # no time to wait that long
    assert caught.value.kind is ErrorKind.RATE_LIMITED
    assert caught.value.retry_after is not None
    assert 20 < caught.value.retry_after <= 30
