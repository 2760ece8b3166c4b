"""`get_backend_manager`, and OpenRouter's routing object beside our pin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shoal import NotConfiguredError, RouterDeps, generate_text

from tests.providers.fake_upstream import FakeUpstream


def test_the_configured_pool_answers_by_its_backends(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream
) -> None:
    config = "[providers.backend_manager]\nstrategy = 'round_robin'\n" + "".join(
        f"[providers.backend_manager.backends.{name}]\nbase_url = '{upstream.url(name)}'\n" for name in ("one", "two")
    )
    deps = make_deps(config)
    manager = deps.get_backend_manager()
    assert [manager.generate(f"q{i}", model_name="stub") for i in range(4)] == [f"ECHO<q{i}>" for i in range(4)]
    assert [chat.scenario for chat in upstream.chats] == ["one", "two", "one", "two"]
    assert deps.get_backend_manager() is manager


def test_options_make_a_pool_of_ones_own_and_the_same_options_the_same_pool(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream
) -> None:
    deps = make_deps("")
    options = {"strategy": "round_robin", "backends": {name: {"base_url": upstream.url(name)} for name in ("a", "b")}}
    manager = deps.get_backend_manager(**options)
    for i in range(4):
        assert manager.generate(f"p{i}") == f"ECHO<p{i}>"
    assert sorted(chat.scenario for chat in upstream.chats) == ["a", "a", "b", "b"]
    assert deps.get_backend_manager(**options) is manager
    assert deps.get_backend_manager(**{**options, "strategy": "least_loaded"}) is not manager


def test_without_backends_it_says_what_to_configure(make_deps: Callable[..., RouterDeps]) -> None:
    deps = make_deps("")
    with pytest.raises(NotConfiguredError, match=r"\[providers.backend_manager.backends.NAME\]"):
        deps.get_backend_manager()
    with pytest.raises(NotConfiguredError, match="no backend is configured"):
        deps.get_backend_manager(strategy="round_robin")


def test_an_unknown_option_or_strategy_is_an_error(make_deps: Callable[..., RouterDeps]) -> None:
    deps = make_deps("")
    backends = {"a": {"base_url": "http://127.0.0.1:1/v1"}}
    with pytest.raises(TypeError, match="no option 'purpose'"):
        deps.get_backend_manager(purpose="x", backends=backends)
    with pytest.raises(ValueError, match="strategy"):
        deps.get_backend_manager(strategy="fastest", backends=backends)


def test_openrouters_routing_object_goes_along_with_a_pin(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream
) -> None:
    config = f"[providers.openrouter]\nbase_url = '{upstream.url('or', '/api/v1')}'\n"
    deps = make_deps(config, environ={"OPENROUTER_API_KEY": "sk-or-x"})
    order = {"order": ["x"], "allow_fallbacks": False}
    assert generate_text("hi", provider="openrouter", extra={"provider": order}, deps=deps) == "ECHO<hi>"
    assert upstream.chats[0].body["provider"] == order
