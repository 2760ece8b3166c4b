"""`generate_text` in a process without a node: routes, pins, caches, and the faults of the system before."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import shoal
import trio
from shoal import (
    GenerationError,
    NotConfiguredError,
    ProviderFailedError,
    RouterDeps,
    UnknownProviderError,
    clear_llm_router_caches,
    generate_text,
    get_default_router_deps,
    get_llm_provider,
    register_llm_provider,
    set_default_router_deps,
)
from shoal.background import BackgroundLoop
from shoal.providers.base import ErrorKind, ProviderError

from tests.providers.fake_upstream import FakeUpstream

QUIET = "[providers.local_hf]\nenabled = false\n"


def desk(upstream: FakeUpstream, scenario: str = "ok", name: str = "desk") -> str:
    url = upstream.url(scenario)
    return f'[providers.{name}]\ntype = "openai_compat"\nbase_url = "{url}"\nmodels = ["stub", "stub-2"]\n'


class Parrot:
    """Says what it was asked, and remembers."""

    def __init__(self, word: str = "squawk") -> None:
        self.word = word
        self.calls: list[tuple[str, str | None, dict[str, Any]]] = []

    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        self.calls.append((prompt, model_name, kwargs))
        return f"{self.word} {prompt}"


# -- asking


def test_a_registered_provider_answers(deps: RouterDeps) -> None:
    register_llm_provider("Parrot", Parrot)
    assert generate_text("hello", provider="pArRoT", deps=deps) == "squawk hello"
    assert generate_text("hello again", deps=deps) == "squawk hello again"


def test_a_configured_back_end_answers(make_deps: Callable[..., RouterDeps], upstream: FakeUpstream) -> None:
    deps = make_deps(desk(upstream))
    assert generate_text("one two", model_name="stub-2", system="Be brief.", max_tokens=9, deps=deps) == "ECHO<one two>"
    body = upstream.chats[0].body
    assert (body["model"], body["max_tokens"]) == ("stub-2", 9)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_every_option_arrives(deps: RouterDeps) -> None:
    parrot = Parrot()
    options = {"temperature": 0.0, "top_p": 0.5, "stop": "END", "seed": 3, "top_k": 4, "extra": {"grammar": "x"}}
    generate_text("hi", model_name="m", provider_instance=parrot, deps=deps, max_new_tokens=5, **options)
    expected = {"temperature": 0.0, "top_p": 0.5, "stop": ["END"], "seed": 3, "top_k": 4, "grammar": "x"}
    assert parrot.calls == [("hi", "m", expected | {"max_tokens": 5})]


def test_messages_are_the_conversation_before_the_prompt(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream
) -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    deps = make_deps(desk(upstream))
    assert generate_text("c", messages=history, deps=deps) == "ECHO<c>"
    assert generate_text(None, messages=[{"role": "user", "content": "alone"}], deps=deps) == "ECHO<alone>"
    assert [m["content"] for m in upstream.chats[0].body["messages"]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_tokns": 5}, TypeError, "'max_tokns'.*did you mean max_tokens"),
        ({"tools": []}, TypeError, "'tools'"),
        ({"stream": True}, TypeError, "'stream'"),
        ({"max_tokens": "many"}, ValueError, "max_tokens"),
        ({"temperature": 9}, ValueError, "temperature"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"use_cache": "yes"}, TypeError, "use_cache"),
        ({"messages": "hi"}, TypeError, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, ValueError, "messages"),
        ({"extra": {"seed": 5}}, ValueError, "'seed'"),
        ({"extra": {"x": object()}}, TypeError, "cannot be sent"),
        ({"max_tokens": 1, "max_new_tokens": 1}, ValueError, "same option"),
        ({"model_name": 5}, TypeError, "model_name"),
        ({"provider": "a", "provider_instance": Parrot()}, TypeError, "not both"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_named(
    deps: RouterDeps, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        generate_text("hi", deps=deps, **arguments)


@pytest.mark.parametrize("prompt", [None, 5, b"bytes"])
def test_a_prompt_that_is_no_text_is_an_error_and_never_becomes_text(deps: RouterDeps, prompt: Any) -> None:
    with pytest.raises(TypeError):
        generate_text(prompt, deps=deps)


# -- three errors


def test_unknown_not_configured_and_failed_are_three_errors(make_deps: Callable[..., RouterDeps]) -> None:
    deps = make_deps('[providers.desk]\ntype = "openai_compat"\nbase_url = "http://127.0.0.1:9/v1"\n')
    for use in (
        lambda name: get_llm_provider(name, deps=deps),
        lambda name: generate_text("x", provider=name, deps=deps),
    ):
        with pytest.raises(UnknownProviderError, match=r"no provider 'dekc'.*did you mean desk"):
            use("dekc")
        with pytest.raises(NotConfiguredError, match="codex_cli: codex is not on PATH"):
            use("codex")
        with pytest.raises(NotConfiguredError, match="set OPENROUTER_API_KEY"):
            use("openrouter")
    with pytest.raises(ProviderFailedError, match="cannot be reached"):
        get_llm_provider("desk", deps=deps)
    with pytest.raises(GenerationError, match="cannot be reached"):
        generate_text("x", provider="desk", deps=deps)


def test_a_factory_that_fails_is_a_failed_provider(deps: RouterDeps) -> None:
    def factory() -> Parrot:
        raise ImportError("no feathers")

    register_llm_provider("parrot", factory)
    with pytest.raises(ProviderFailedError, match="no feathers"):
        get_llm_provider("parrot", deps=deps)


def test_without_any_provider_the_reasons_are_given(deps: RouterDeps) -> None:
    with pytest.raises(GenerationError) as caught:
        generate_text("x", deps=deps)
    assert caught.value.kind is ErrorKind.UNAVAILABLE


# -- the faults of the system before


def test_an_empty_answer_is_a_failure_and_is_not_kept(deps: RouterDeps) -> None:
    answers = ["", "", "text"]  # the router asks a second time
    register_llm_provider("mute", lambda: _Says(answers))
    with pytest.raises(GenerationError, match="finished with no text"):
        generate_text("x", provider="mute", temperature=0, deps=deps)
    assert generate_text("x", provider="mute", temperature=0, deps=deps) == "text"


class _Says:
    def __init__(self, answers: list[str]) -> None:
        self.answers = answers

    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        return self.answers.pop(0)


def test_a_pinned_model_is_never_swapped(make_deps: Callable[..., RouterDeps], upstream: FakeUpstream) -> None:
    deps = make_deps(desk(upstream))
    with pytest.raises(GenerationError, match="other"):
        generate_text("x", model_name="other", deps=deps)
    assert upstream.chats == []


def test_a_pinned_provider_is_never_swapped(make_deps: Callable[..., RouterDeps], upstream: FakeUpstream) -> None:
    deps = make_deps(desk(upstream, "err200", "bad") + desk(upstream, "ok", "good"))
    with pytest.raises(GenerationError) as caught:
        generate_text("x", provider="bad", deps=deps)
    assert {attempt.provider for attempt in caught.value.route} == {"bad"}


def test_the_chain_is_walked_and_each_attempt_has_its_reason(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream
) -> None:
    config = desk(upstream, "s401+listed", "first") + desk(upstream, "empty", "second")
    assert generate_text("x", deps=make_deps(config + desk(upstream, "ok", "third"))) == "ECHO<x>"
    with pytest.raises(GenerationError) as caught:
        generate_text("x", deps=make_deps(config))
    outcomes = [(attempt.provider, attempt.outcome) for attempt in caught.value.route]
    assert outcomes == [("first", "auth"), ("second", "upstream"), ("second", "upstream")]
    assert "finished with no text" in caught.value.route[-1].reason


def test_a_mode_that_cannot_be_honoured_is_an_error(make_deps: Callable[..., RouterDeps]) -> None:
    register_llm_provider("parrot", Parrot)
    deps = make_deps(environ={"IPFS_ACCELERATE_PY_ROUTER_CACHE_KEY": "md5"})
    with pytest.raises(Exception, match="ROUTER_CACHE_KEY"):
        generate_text("x", deps=deps)


def test_a_boolean_that_is_none_is_an_error_that_names_the_variable(make_deps: Callable[..., RouterDeps]) -> None:
    deps = make_deps(environ={"SHOAL_ROUTER_RESPONSE_CACHE": "perhaps"})
    with pytest.raises(Exception, match="SHOAL_ROUTER_RESPONSE_CACHE"):
        generate_text("x", deps=deps)


def test_identical_calls_in_flight_are_one_call_of_the_provider(deps: RouterDeps) -> None:
    go, calls = threading.Event(), threading.Semaphore(0)

    class Slow:
        count = 0

        def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
            Slow.count += 1
            calls.release()
            go.wait(10)
            return "once"

    register_llm_provider("slow", Slow)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(generate_text, "x", temperature=0, deps=deps) for _ in range(8)]
        assert calls.acquire(timeout=5)
        go.set()
        assert {future.result(timeout=10) for future in futures} == {"once"}
    assert Slow.count == 1


def test_an_answer_is_kept_and_use_cache_false_neither_asks_nor_keeps(deps: RouterDeps) -> None:
    parrot = Parrot()
    register_llm_provider("parrot", lambda: parrot)
    for _ in range(2):
        generate_text("x", temperature=0, use_cache=False, deps=deps)
    assert len(parrot.calls) == 2
    for _ in range(3):
        generate_text("x", temperature=0, deps=deps)
    assert len(parrot.calls) == 3
    generate_text("x", temperature=0, use_cache=False, deps=deps)
    assert len(parrot.calls) == 4


def test_a_sampled_answer_is_not_kept(deps: RouterDeps) -> None:
    parrot = Parrot()
    register_llm_provider("parrot", lambda: parrot)
    for _ in range(2):
        generate_text("x", temperature=0.7, deps=deps)
    assert len(parrot.calls) == 2


def test_the_response_cache_can_be_switched_off_by_the_environment(make_deps: Callable[..., RouterDeps]) -> None:
    parrot = Parrot()
    register_llm_provider("parrot", lambda: parrot)
    deps = make_deps(environ={"SHOAL_ROUTER_RESPONSE_CACHE": "off"})
    for _ in range(2):
        generate_text("x", temperature=0, deps=deps)
    assert len(parrot.calls) == 2


def test_two_instances_do_not_share_answers_and_one_keeps_its_own(deps: RouterDeps) -> None:
    first, second = Parrot("one"), Parrot("two")
    for _ in range(2):
        assert generate_text("x", temperature=0, provider_instance=first, deps=deps) == "one x"
        assert generate_text("x", temperature=0, provider_instance=second, deps=deps) == "two x"
    assert (len(first.calls), len(second.calls)) == (1, 1)


def test_a_provider_that_is_registered_anew_answers_at_once(deps: RouterDeps) -> None:
    register_llm_provider("parrot", lambda: Parrot("old"))
    assert generate_text("x", provider="parrot", temperature=0, deps=deps) == "old x"
    register_llm_provider("parrot", lambda: Parrot("new"))
    assert generate_text("x", provider="parrot", temperature=0, deps=deps) == "new x"
    assert generate_text("x", temperature=0, deps=deps) == "new x"


# -- instances


def test_an_instance_may_be_asynchronous_or_yield(deps: RouterDeps) -> None:
    class Later:
        async def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> AsyncIterator[str]:
            await trio.sleep(0)
            yield prompt
            yield "!"

    assert generate_text("hi", provider_instance=Later(), deps=deps) == "hi!"  # type: ignore[arg-type]


def test_an_instance_that_cannot_generate_is_a_type_error(deps: RouterDeps) -> None:
    with pytest.raises(TypeError, match="has no generate"):
        generate_text("hi", provider_instance=object(), deps=deps)  # type: ignore[arg-type]


def test_an_instances_failure_keeps_its_kind(deps: RouterDeps) -> None:
    class Spent:
        def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
            raise ProviderError(ErrorKind.QUOTA, "spent", retry_after=5)

    with pytest.raises(GenerationError) as caught:
        generate_text("hi", provider_instance=Spent(), deps=deps)
    assert caught.value.kind is ErrorKind.QUOTA


# -- limits


def test_the_timeout_ends_a_call(deps: RouterDeps) -> None:
    class Never:
        async def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
            await trio.sleep_forever()
            raise AssertionError

    with pytest.raises(GenerationError) as caught:
        generate_text("x", provider_instance=Never(), timeout=0.05, deps=deps)  # type: ignore[arg-type]
    assert caught.value.kind is ErrorKind.DEADLINE


# -- the environment


def test_provider_and_model_come_from_the_environment_ours_first(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream
) -> None:
    environ = {
        "IPFS_ACCELERATE_PY_LLM_PROVIDER": "first",
        "SHOAL_LLM_PROVIDER": "second",
        "IPFS_ACCELERATE_PY_LLM_MODEL": "stub-2",
    }
    config = desk(upstream, "ok", "first") + desk(upstream, "each", "second")
    assert generate_text("x", deps=make_deps(config, environ)) == "ECHO<x>"
    assert [(r.scenario, r.body["model"]) for r in upstream.chats] == [("each", "stub-2")]


# -- providers


def test_get_llm_provider_gives_what_the_factory_made(deps: RouterDeps) -> None:
    parrot = Parrot()
    register_llm_provider("parrot", lambda: parrot)
    assert get_llm_provider("parrot", deps=deps) is parrot


def test_get_llm_provider_gives_one_that_asks_through_the_router(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream
) -> None:
    deps = make_deps(desk(upstream))
    provider = get_llm_provider("Desk", deps=deps)
    assert isinstance(provider, shoal.LLMProvider)
    assert provider.generate("one two", model_name="stub-2") == "ECHO<one two>"
    assert get_llm_provider("desk", deps=deps) is provider
    assert get_llm_provider("desk", deps=deps, use_cache=False) is not provider
    assert get_llm_provider(deps=deps).generate("x") == "ECHO<x>"


def test_no_provider_at_all_is_not_configured(deps: RouterDeps) -> None:
    with pytest.raises(NotConfiguredError, match="no provider can be used"):
        get_llm_provider(deps=deps)


# -- caches and life


def test_clearing_forgets_answers_providers_and_configuration(
    make_deps: Callable[..., RouterDeps], tmp_path: Path, upstream: FakeUpstream
) -> None:
    deps = make_deps(desk(upstream, "ok"))
    assert generate_text("x", temperature=0, deps=deps) == "ECHO<x>"
    deps.set_cached("key", "value")
    provider = get_llm_provider("desk", deps=deps)
    (tmp_path / "config0.toml").write_text(QUIET + desk(upstream, "words2"))
    assert generate_text("x", temperature=0, deps=deps) == "ECHO<x>"
    clear_llm_router_caches()
    assert generate_text("x", temperature=0, deps=deps) == "word0 word1 "
    assert deps.get_cached("key") is None
    assert get_llm_provider("desk", deps=deps) is not provider


def test_clearing_does_not_end_a_call_under_way(
    make_deps: Callable[..., RouterDeps], upstream: FakeUpstream, upstream_loop: BackgroundLoop
) -> None:
    deps = make_deps(desk(upstream, "hold"))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(generate_text, "one two three", deps=deps)
        upstream_loop.call(partial(upstream.until, count=2))  # the list of models, and the question
        clear_llm_router_caches()
        upstream_loop.call(_release, upstream)
        assert future.result(timeout=10) == "ECHO<one two three>"


async def _release(upstream: FakeUpstream) -> None:
    upstream.release()


def test_the_default_can_be_set_and_is_used(deps: RouterDeps) -> None:
    register_llm_provider("parrot", Parrot)
    before = get_default_router_deps()
    set_default_router_deps(deps)
    try:
        assert get_default_router_deps() is deps
        assert generate_text("x") == "squawk x"
    finally:
        set_default_router_deps(before)
    with pytest.raises(TypeError):
        set_default_router_deps("deps")  # type: ignore[arg-type]
