"""`RouterDeps`: caches, made objects, the remote cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from shoal import RouterDeps, generate_text, register_llm_provider
from shoal.background import BackgroundLoop
from shoal.cache.key import request_key
from shoal.providers.base import GenerateRequest
from shoal.providers.registry import forget_llm_provider

from tests.providers.fake_upstream import FakeUpstream


class Remote(dict[str, Any]):
    """A remote cache with get and set, and a list of what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.append(key)
        return super().get(key, default)

    def set(self, key: str, value: Any) -> None:
        self[key] = value


class Broken:
    def get(self, key: str) -> Any:
        raise OSError("gone")

    def set(self, key: str, value: Any) -> None:
        raise OSError("gone")


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    loop = BackgroundLoop("upstream")
    yield loop.enter(FakeUpstream()).value
    loop.close()


def deps_with(tmp_path: Path, upstream: FakeUpstream | None = None, scenario: str = "ok", **options: Any) -> RouterDeps:
    config = "[providers.local_hf]\nenabled = false\n"
    if upstream is not None:
        url = upstream.url(scenario)
        config += f'[providers.desk]\ntype = "openai_compat"\nbase_url = "{url}"\nmodels = ["stub"]\n'
    file = tmp_path / "config.toml"
    file.write_text(config)
    return RouterDeps(config=file, data_dir=tmp_path, environ={}, **options)


# -- the cache in memory


def test_what_was_set_is_got_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("shoal.deps.time.monotonic", lambda: now)
    deps = RouterDeps()
    deps.set_cached("a", 1)
    deps.set_cached("b", 2, ttl_s=10)
    assert (deps.get_cached("a"), deps.get_cached("b"), deps.get_cached("c")) == (1, 2, None)
    now = 10.5
    assert (deps.get_cached("a"), deps.get_cached("b")) == (1, None)


def test_nothing_empty_is_kept() -> None:
    remote = Remote()
    deps = RouterDeps(remote_cache=remote)
    for value in (None, ""):
        deps.set_cached("a", value)
        deps.set_cached_and_remote("a", value)
    assert deps.get_cached("a") is None
    assert remote == {}


def test_the_least_recently_used_goes_first() -> None:
    deps = RouterDeps(max_cached=2)
    deps.set_cached("a", 1)
    deps.set_cached("b", 2)
    deps.get_cached("a")
    deps.set_cached("c", 3)
    assert (deps.get_cached("a"), deps.get_cached("b"), deps.get_cached("c")) == (1, None, 3)


# -- the remote cache


def test_the_remote_cache_is_asked_once_and_told() -> None:
    remote = Remote()
    deps = RouterDeps(remote_cache=remote)
    assert deps.get_cached_or_remote("a") is None
    remote["a"] = "x"
    assert [deps.get_cached_or_remote("a") for _ in range(3)] == ["x"] * 3
    assert remote.asked == ["a", "a"]
    deps.set_cached_and_remote("b", "y")
    assert remote["b"] == deps.get_cached("b") == "y"


def test_a_remote_cache_that_fails_costs_no_answer() -> None:
    deps = RouterDeps(remote_cache=Broken())
    assert deps.get_cached_or_remote("a") is None
    deps.set_cached_and_remote("a", "x")
    assert deps.get_cached("a") == "x"


def test_something_without_get_and_set_is_no_remote_cache() -> None:
    with pytest.raises(TypeError, match="get"):
        RouterDeps(remote_cache=object())  # type: ignore[arg-type]


def test_an_answer_goes_to_the_remote_cache_under_the_requests_key_and_comes_from_there(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    remote = Remote()
    key = request_key(GenerateRequest.of("x", temperature=0, model="stub")).text
    with deps_with(tmp_path, upstream, remote_cache=remote) as deps:
        assert generate_text("x", model_name="stub", temperature=0, deps=deps) == "ECHO<x>"
    assert remote == {key: "ECHO<x>"}
    with deps_with(tmp_path, upstream, remote_cache=remote) as other:
        assert generate_text("x", model_name="stub", temperature=0, deps=other) == "ECHO<x>"
    assert len(upstream.chats) == 1


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"use_cache": False}])
def test_an_answer_that_is_not_for_caches_goes_to_none(
    tmp_path: Path, upstream: FakeUpstream, options: dict[str, Any]
) -> None:
    remote = Remote()
    with deps_with(tmp_path, upstream, remote_cache=remote) as deps:
        generate_text("x", deps=deps, **options)
    assert remote == {}
    assert remote.asked == []


@pytest.mark.parametrize("value", ["", "  ", None, 5, b"bytes"])
def test_what_is_no_answer_in_a_remote_cache_is_passed_over(
    tmp_path: Path, upstream: FakeUpstream, value: object
) -> None:
    remote = Remote()
    remote[request_key(GenerateRequest.of("x", temperature=0)).text] = value
    with deps_with(tmp_path, upstream, remote_cache=remote) as deps:
        assert generate_text("x", temperature=0, deps=deps) == "ECHO<x>"


class Own:
    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        return "mine"


def test_what_a_provider_of_this_process_says_is_not_told_to_others(tmp_path: Path) -> None:
    remote = Remote()
    register_llm_provider("own", Own)
    try:
        with deps_with(tmp_path, remote_cache=remote) as deps:
            assert generate_text("x", temperature=0, deps=deps) == "mine"
            assert generate_text("x", temperature=0, provider="own", deps=deps) == "mine"
            assert generate_text("x", temperature=0, provider_instance=Own(), deps=deps) == "mine"
    finally:
        forget_llm_provider("own")
    assert remote == {}


# -- made objects


def test_a_factory_runs_once_however_many_threads_ask() -> None:
    deps, made, together = RouterDeps(), [], threading.Barrier(8)

    def factory() -> object:
        made.append(object())
        return made[-1]

    def ask(_: int) -> object:
        together.wait(10)
        return deps.get_or_create("key", factory)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(8)))
    assert len(made) == 1
    assert all(thing is made[0] for thing in got)


def test_each_key_has_its_own_and_a_failure_is_not_kept() -> None:
    deps = RouterDeps()
    assert deps.get_or_create("a", lambda: 1) == 1
    assert deps.get_or_create("b", lambda: 2) == 2
    assert deps.get_or_create("a", lambda: 3) == 1
    with pytest.raises(ZeroDivisionError):
        deps.get_or_create("c", lambda: 1 // 0)
    assert deps.get_or_create("c", lambda: 4) == 4


def test_a_factory_that_asks_for_itself_is_told_so() -> None:
    deps = RouterDeps()
    with pytest.raises(RuntimeError, match="asks for what it is making"):
        deps.get_or_create("a", lambda: deps.get_or_create("a", lambda: 1))


def test_closing_closes_what_was_made() -> None:
    closed: list[str] = []

    class Made:
        def close(self) -> None:
            closed.append("yes")

    with RouterDeps() as deps:
        deps.get_or_create("a", Made)
        deps.get_or_create("b", object)
    assert closed == ["yes"]


def test_a_backend_manager_is_the_one_that_was_handed_in() -> None:
    mine = object()
    assert RouterDeps(backend_manager=mine).get_backend_manager() is mine
    with pytest.raises(TypeError, match="strategy"):
        RouterDeps(backend_manager=mine).get_backend_manager(strategy="round_robin")
