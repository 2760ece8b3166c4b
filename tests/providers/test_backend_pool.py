"""The backend manager against several servers on loopback: choice, retry, checks, recovery."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from shoal.providers import backend_manager
from shoal.providers.backend_manager import BackendPool
from shoal.providers.base import (
    Dropped,
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    ImagePart,
    ImageUrl,
    Message,
    Provider,
    ProviderError,
    TextDelta,
    TextPart,
    Via,
)
from shoal.providers.environment import VariableError
from shoal.providers.faults import SettingsError
from shoal.providers.settings import BuildContext

from tests.providers.fake_upstream import FakeUpstream

ASK = GenerateRequest.of("one two three four", model="stub")
REPLY = "ECHO<one two three four>"


def pool_of(urls: dict[str, Any], environ: dict[str, str] | None = None, **keys: Any) -> BackendPool:
    """urls: backend -> its base URL, or all of its keys."""
    backends = {name: url if isinstance(url, dict) else {"base_url": url} for name, url in urls.items()}
    settings = msgspec.convert({"backends": backends, **keys}, backend_manager.Settings)
    pool = backend_manager.build("backend_manager", settings, BuildContext(Path("unused"), environ or {}))
    assert isinstance(pool, BackendPool)
    return pool


@asynccontextmanager
async def upstreams(count: int) -> AsyncGenerator[list[FakeUpstream]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeUpstream()) for _ in range(count)]


@pytest.fixture
async def two() -> AsyncGenerator[list[FakeUpstream]]:
    async with upstreams(2) as pair:
        yield pair


async def collect(provider: Provider, request: GenerateRequest = ASK) -> list[Event]:
    with trio.fail_after(10):
        async with provider.generate(request) as events:
            return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def row(pool: BackendPool, name: str) -> dict[str, Any]:
    return next(each for each in pool.facts()["backends"] if each["name"] == name)


async def until_state(pool: BackendPool, name: str, state: str) -> None:
    with trio.fail_after(10):
        while row(pool, name)["state"] != state:
            await trio.sleep(0.01)


# -- the choice


async def test_the_backend_that_answers_is_named_before_its_first_word(two: list[FakeUpstream]) -> None:
    bad, good = two
    pool = pool_of({"bad": bad.url("s500+listed"), "good": good.url()}, strategy="round_robin")
    async with pool.running():
        answers = [await collect(pool) for _ in range(4)]
    for events in answers:
        assert [event for event in events if isinstance(event, Via)] == [Via("good")]
        assert isinstance(events[0], Via)


async def test_round_robin_gives_each_its_weight(two: list[FakeUpstream]) -> None:
    urls = {"big": {"base_url": two[0].url(), "weight": 2}, "small": two[1].url()}
    pool = pool_of(urls, strategy="round_robin")
    async with pool.running():
        for _ in range(9):
            assert text_of(await collect(pool)) == REPLY
    assert [len(each.chats) for each in two] == [6, 3]


async def test_least_loaded_goes_to_the_backend_that_does_less(two: list[FakeUpstream]) -> None:
    pool = pool_of({"a": two[0].url("hold"), "b": two[1].url("hold")}, strategy="least_loaded")
    async with pool.running(), trio.open_nursery() as nursery:
        for count in range(1, 7):
            nursery.start_soon(collect, pool)
            with trio.fail_after(5):
                while sum(len(each.chats) for each in two) < count:
                    await trio.sleep(0.005)
        assert [len(each.chats) for each in two] == [3, 3]
        assert [each["running"] for each in pool.facts()["backends"]] == [3, 3]
        for each in two:
            each.release()


async def test_least_loaded_counts_the_queue_that_vllm_tells(two: list[FakeUpstream]) -> None:
    pool = pool_of({"full": two[0].url("vllm+busy7"), "free": two[1].url("vllm")}, strategy="least_loaded")
    async with pool.running():
        for _ in range(4):
            await collect(pool)
        assert (row(pool, "full")["others"], row(pool, "full")["kind"]) == (8, "vllm")
    assert [len(each.chats) for each in two] == [0, 4]


async def test_best_performance_learns_who_is_faster_and_still_tries_both(two: list[FakeUpstream]) -> None:
    urls = {"slow": two[0].url("slow20"), "fast": two[1].url()}
    pool = pool_of(urls, strategy="best_performance", explore=0)
    async with pool.running():
        for _ in range(12):
            await collect(pool)
        facts = {name: row(pool, name) for name in ("slow", "fast")}
    assert [len(each.chats) for each in two] == [2, 10]
    assert facts["slow"]["first_token_ms"] > facts["fast"]["first_token_ms"]
    assert facts["slow"]["tokens_per_s"] < 60


async def test_who_fails_fast_does_not_win_by_it(two: list[FakeUpstream]) -> None:
    urls = {"bad": two[0].url("s500+listed"), "good": two[1].url("slow5")}
    pool = pool_of(urls, strategy="best_performance", explore=0)
    async with pool.running():
        for _ in range(10):
            assert text_of(await collect(pool)) == REPLY
    assert len(two[0].chats) <= 3
    assert len(two[1].chats) == 10


# -- failures


@pytest.mark.parametrize(
    "scenario",
    ["s401", "s402", "s403", "s404", "s429ra", "s500", "s503", "s529", "drop", "garbage", "empty", "err200", "errsse"],
)
async def test_another_backend_is_asked_while_no_text_was_given(two: list[FakeUpstream], scenario: str) -> None:
    pool = pool_of({"bad": two[0].url(f"{scenario}+listed"), "good": two[1].url()}, strategy="round_robin")
    async with pool.running():
        for _ in range(2):
            assert text_of(await collect(pool)) == REPLY
    # A kept connection that ends without a byte is taken for a stale one: the HTTP client asks once more.
    assert len(two[0].chats) == (2 if scenario == "drop" else 1)
    assert len(two[1].chats) == 2


async def test_a_backend_that_hangs_is_left_for_another(two: list[FakeUpstream]) -> None:
    urls = {"bad": two[0].url("hang"), "good": two[1].url()}
    pool = pool_of(urls, strategy="round_robin", first_token_s=0.2)
    async with pool.running():
        assert text_of(await collect(pool)) == REPLY
        assert row(pool, "bad")["failures"] == 1
    await two[0].until(idle=True)


@pytest.mark.parametrize(("scenario", "kind"), [("cut", "interrupted"), ("errmid", "interrupted")])
async def test_after_text_the_failure_is_the_callers_to_see(two: list[FakeUpstream], scenario: str, kind: str) -> None:
    pool = pool_of({"bad": two[0].url(scenario)}, strategy="round_robin")
    async with pool.running():
        seen: list[Event] = []
        with pytest.raises(ProviderError) as caught:  # noqa: PT012
            async with pool.generate(ASK) as events:
                async for event in events:
                    seen.append(event)
        assert text_of(seen) == "ECHO<one two "
        assert (caught.value.kind, caught.value.message.partition(":")[0]) == (kind, "bad")
        assert (row(pool, "bad")["failures"], row(pool, "bad")["running"]) == (1, 0)


@pytest.mark.parametrize(
    ("scenario", "kind"), [("s400", ErrorKind.BAD_REQUEST), ("s400filter", ErrorKind.CONTENT_FILTER)]
)
async def test_what_is_wrong_with_the_request_is_said_once(
    two: list[FakeUpstream], scenario: str, kind: ErrorKind
) -> None:
    pool = pool_of({"a": two[0].url(f"{scenario}+listed"), "b": two[1].url(f"{scenario}+listed")})
    async with pool.running():
        with pytest.raises(ProviderError) as caught:
            await collect(pool)
        assert caught.value.kind is kind
        assert sum(len(each.chats) for each in two) == 1
        assert [each["state"] for each in pool.facts()["backends"]] == ["up", "up"]


async def test_a_conversation_that_is_too_long_goes_to_a_larger_context_only(two: list[FakeUpstream]) -> None:
    urls = {
        "small": {"base_url": two[0].url("s400ctx+llamacpp+listed"), "models": ["stub"], "context_length": 2048},
        "large": {"base_url": two[1].url("vllm"), "weight": 0.01},
    }
    pool = pool_of(urls, strategy="round_robin")
    async with pool.running():
        assert text_of(await collect(pool)) == REPLY
    assert [len(each.chats) for each in two] == [1, 1]


async def test_a_request_with_tools_is_not_moved_once_it_may_have_run(two: list[FakeUpstream]) -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    request = msgspec.structs.replace(ASK, tools=tools)
    for scenario, chats in (("s500", 0), ("s503", 1)):
        pool = pool_of({"bad": two[0].url(f"{scenario}+listed"), "good": two[1].url()}, strategy="round_robin")
        before = len(two[1].chats)
        async with pool.running():
            if chats:
                await collect(pool, request)
            else:
                with pytest.raises(ProviderError):
                    await collect(pool, request)
        assert len(two[1].chats) - before == chats, scenario


async def test_when_all_fail_every_reason_is_told_and_the_soonest_retry(two: list[FakeUpstream]) -> None:
    pool = pool_of({"a": two[0].url("s429ra+listed"), "b": two[1].url("s500+listed")}, strategy="round_robin")
    async with pool.running():
        with pytest.raises(ProviderError) as caught:
            await collect(pool)
    error = caught.value
    assert "a: the upstream's rate limit is reached" in error.message
    assert "b: the upstream failed" in error.message
    assert error.retry_after == 1


async def test_a_caller_who_leaves_ends_the_work_and_frees_the_place(two: list[FakeUpstream]) -> None:
    pool = pool_of({"a": two[0].url("stall")})
    async with pool.running():
        async with pool.generate(ASK) as events:
            await anext(events)
        await two[0].until(disconnects=1, idle=True)
        assert (row(pool, "a")["running"], row(pool, "a")["failures"], pool.facts()["running"]) == (0, 0, 0)


async def test_a_backend_that_was_left_silent_for_long_is_counted_as_failed(
    two: list[FakeUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.providers.backend_manager.pool.SILENT_S", 0.05)
    pool = pool_of({"a": two[0].url("stall")})
    async with pool.running():
        with trio.move_on_after(0.3):
            await collect(pool)
        assert row(pool, "a")["failures"] == 1


async def test_options_that_a_backend_lacks_are_told(two: list[FakeUpstream]) -> None:
    pool = pool_of({"a": {"base_url": two[0].url(), "lacks": ["temperature"]}})
    async with pool.running():
        events = await collect(pool, msgspec.structs.replace(ASK, temperature=0.0))
    assert Dropped(("temperature",)) in events
    assert "temperature" not in two[0].chats[0].body
    assert isinstance(events[-1], Finish)


# -- who is up


async def test_each_kind_of_server_is_known_by_what_it_says_itself() -> None:
    async with upstreams(4) as four:
        scenarios = {"v": "vllm", "o": "ollama", "l": "llamacpp", "p": "ok"}
        pool = pool_of({name: four[i].url(trait) for i, (name, trait) in enumerate(scenarios.items())})
        async with pool.running():
            status = await pool.probe()
            kinds = {name: row(pool, name)["kind"] for name in scenarios}
            assert row(pool, "v")["version"] == "0.99.0-stub"
            assert row(pool, "o")["version"] == "0.12.1"
        asked = [{request.path for request in each.requests} for each in four]
    assert kinds == {"v": "vllm", "o": "ollama", "l": "llama_cpp", "p": "openai"}
    assert {"/health", "/v1/models", "/metrics", "/version"} <= asked[0]
    assert {"/api/tags", "/api/version"} <= asked[1]
    assert {"/health", "/v1/models"} <= asked[2]
    assert {m.name: m.context_length for m in status.models}["tiny:1b"] is None
    assert {m.name for m in status.models} == {"stub", "stub-2", "echo", "stub:latest", "tiny:1b"}
    assert (status.version, status.default_model) == ("4 of 4 backends up", "stub")
    assert not any(each.chats for each in four), "a check spends no request"


async def test_ollama_takes_a_model_by_its_name_without_latest(two: list[FakeUpstream]) -> None:
    pool = pool_of({"o": two[0].url("ollama")})
    async with pool.running():
        await collect(pool)
    assert two[0].chats[0].body["model"] == "stub:latest"


async def test_a_server_that_still_loads_gets_no_request_and_says_why(two: list[FakeUpstream]) -> None:
    pool = pool_of({"loading": two[0].url("llamacpp+loading"), "good": two[1].url()}, strategy="round_robin")
    async with pool.running():
        await pool.probe()
        for _ in range(3):
            await collect(pool)
        assert row(pool, "loading")["state"] == "down"
        assert "loading its model" in row(pool, "loading")["reason"]
    assert not two[0].chats


async def serve(port: int, *, task_status: trio.TaskStatus[tuple[FakeUpstream, trio.CancelScope]]) -> None:
    """An upstream that a test can end, and start again on its port."""
    with trio.CancelScope() as scope:
        async with FakeUpstream(port=port) as upstream:
            task_status.started((upstream, scope))
            await trio.sleep_forever()


async def test_a_backend_that_goes_and_comes_back_is_noticed_both_times_and_tried_before_it_is_trusted() -> None:
    async with trio.open_nursery() as servers, upstreams(1) as [other]:
        goes, scope = await servers.start(serve, 0)
        urls = {"a": {"base_url": goes.url(), "check_s": 0.05}, "b": other.url()}
        pool = pool_of(urls, strategy="round_robin")
        async with pool.running():
            await pool.probe()
            scope.cancel()
            await until_state(pool, "a", "down")
            for _ in range(3):
                assert text_of(await collect(pool)) == REPLY
            assert (await pool.probe()).version == "1 of 2 backends up"
            back, _ = await servers.start(serve, goes.port)
            await until_state(pool, "a", "half_open")
            with trio.fail_after(5):
                while row(pool, "a")["state"] != "up":
                    await collect(pool)
            assert back.chats
        servers.cancel_scope.cancel()


async def test_an_idle_pool_stays_up_as_long_as_nobody_asks(two: list[FakeUpstream]) -> None:
    pool = pool_of({"a": {"base_url": two[0].url(), "check_s": 0.05}})
    async with pool.running():
        await two[0].until(count=8)
        assert (row(pool, "a")["state"], (await pool.probe()).ready) == ("up", True)


async def test_when_all_are_down_the_reasons_are_told_and_nobody_is_asked(two: list[FakeUpstream]) -> None:
    pool = pool_of({"a": two[0].url("s401"), "b": two[1].url("llamacpp+loading")})
    async with pool.running():
        status = await pool.probe()
        with pytest.raises(ProviderError) as caught:
            await collect(pool)
    assert not status.ready
    for said in (status.reason, caught.value.message):
        assert "a: the upstream refused the key" in said
        assert "b: it is still loading its model" in said
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert not any(each.chats for each in two)


async def test_only_backends_that_have_the_model_are_asked(two: list[FakeUpstream]) -> None:
    urls = {"a": {"base_url": two[0].url(), "models": ["only-here"]}, "b": two[1].url()}
    pool = pool_of(urls, strategy="round_robin")
    async with pool.running():
        for _ in range(3):
            await collect(pool, msgspec.structs.replace(ASK, model="only-here"))
        with pytest.raises(ProviderError, match="has the model"):
            await collect(pool, msgspec.structs.replace(ASK, model="nonesuch"))
    assert [len(each.chats) for each in two] == [3, 0]


async def test_an_alias_is_one_name_for_what_servers_call_differently(two: list[FakeUpstream]) -> None:
    urls = {
        "a": {"base_url": two[0].url(), "models": ["/srv/models/small"], "aliases": {"small": "/srv/models/small"}},
        "b": {"base_url": two[1].url(), "models": ["small"]},
    }
    pool = pool_of(urls, strategy="round_robin")
    async with pool.running():
        status = await pool.probe()
        for _ in range(2):
            await collect(pool, msgspec.structs.replace(ASK, model="small"))
    assert (status.default_model, {m.name for m in status.models}) == ("small", {"small", "/srv/models/small"})
    assert [each.chats[0].body["model"] for each in two] == ["/srv/models/small", "small"]


async def test_a_full_backend_is_passed_over_and_a_full_pool_says_so(two: list[FakeUpstream]) -> None:
    urls = {
        name: {"base_url": each.url("hold"), "max_concurrent": 1, "max_queue": 0}
        for name, each in zip("ab", two, strict=True)
    }
    pool = pool_of(urls, strategy="round_robin")
    async with pool.running(), trio.open_nursery() as nursery:
        for count in (1, 2):
            nursery.start_soon(collect, pool)
            with trio.fail_after(5):
                while sum(len(each.chats) for each in two) < count:
                    await trio.sleep(0.005)
        with pytest.raises(ProviderError) as caught:
            await collect(pool)
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert [len(each.chats) for each in two] == [1, 1]
        for each in two:
            each.release()


# -- configuration


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"backends": {}}, "backends is empty; add a table"),
        ({"backends": {"a": {"base_url": "ftp://x"}}}, "backends.a.base_url is not an http"),
        ({"backends": {"a": {"base_url": "http://x", "share": True}}}, "backends.a.share is the pool's"),
        ({"backends": {"a": {"base_url": "http://x", "enabled": False}}}, "all switched off"),
        ({"backends": {"a": {"base_url": "http://x", "max_concurrent": 0}}}, "backends.a.max_concurrent"),
    ],
)
def test_what_cannot_be_used_names_the_key(keys: dict[str, Any], words: str) -> None:
    settings = msgspec.convert(keys, backend_manager.Settings)
    with pytest.raises(SettingsError, match=words.replace(".", r"\.")):
        backend_manager.build("backend_manager", settings, BuildContext(Path("unused"), {}))


@pytest.mark.parametrize(
    ("environ", "strategy"),
    [
        ({}, "least_loaded"),
        ({"SHOAL_LLM_LOAD_BALANCING": "best_performance"}, "best_performance"),
        ({"IPFS_ACCELERATE_PY_LLM_LOAD_BALANCING": "round_robin"}, "round_robin"),
    ],
)
async def test_the_environment_chooses_the_strategy(environ: dict[str, str], strategy: str) -> None:
    assert pool_of({"a": "http://127.0.0.1:1/v1"}, environ).facts()["strategy"] == strategy


def test_an_unknown_strategy_in_the_environment_names_the_variable() -> None:
    with pytest.raises(VariableError, match=r"SHOAL_LLM_LOAD_BALANCING.*round_robin or"):
        pool_of({"a": "http://127.0.0.1:1/v1"}, {"SHOAL_LLM_LOAD_BALANCING": "fastest"})


async def test_of_backends_with_one_model_those_that_take_images_are_shown_them(two: list[FakeUpstream]) -> None:
    blind = {"base_url": two[0].url("ok"), "images": False}
    shown = Message("user", (TextPart("one two"), ImagePart(ImageUrl("data:image/png;base64,AAAA"))))
    request = GenerateRequest(messages=(shown,), model="stub")
    pool = pool_of({"blind": blind, "seeing": two[1].url("ok")})
    async with pool.running():
        assert all(model.capabilities.images for model in (await pool.probe()).models)
        for _ in range(4):
            assert text_of(await collect(pool, request))
        assert (len(two[0].chats), len(two[1].chats)) == (0, 4)
        for _ in range(4):
            await collect(pool)
        assert row(pool, "blind")["state"] == "up"
        assert two[0].chats
    pool = pool_of({"blind": blind})
    async with pool.running():
        assert not any(model.capabilities.images for model in (await pool.probe()).models)
