"""OpenRouter's manners, on a faithful upstream on loopback."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from shoal.node.rpc.chat_request import read_call
from shoal.providers import openrouter
from shoal.providers.base import ErrorKind, Event, Finish, GenerateRequest, Provider, ProviderError, TextDelta, Usage
from shoal.providers.faults import SettingsError
from shoal.providers.settings import BuildContext

from tests.providers.fake_upstream import FakeUpstream

KEY = "sk-or-v1-planted"


@asynccontextmanager
async def router(
    upstream: FakeUpstream, scenario: str = "or", *, key_ttl_s: float = 60.0, **environ: str
) -> AsyncGenerator[Provider]:
    environ = {
        "OPENROUTER_API_KEY": KEY,
        "SHOAL_OPENROUTER_BASE_URL": upstream.url(scenario, "/api/v1"),
        **environ,
    }
    settings = openrouter.Settings(key_ttl_s=key_ttl_s)
    provider = openrouter.build("openrouter", settings, BuildContext(Path("unused"), environ))
    async with provider.running():
        yield provider


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


async def collect(provider: Provider, **options: Any) -> list[Event]:
    with trio.fail_after(10):
        async with provider.generate(GenerateRequest.of("one two three four", **options)) as events:
            return [event async for event in events]


async def test_comments_are_skipped_and_the_cost_is_counted(upstream: FakeUpstream) -> None:
    async with router(upstream) as provider:
        events = await collect(provider)
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "ECHO<one two three four>"
    about = {"answer": {"provider": "Stub"}, "usage": {"is_byok": False}}
    assert events[-2:] == [Usage(4, 4, 0, 3, 0.00014), Finish("stop", "openai/gpt-4o-mini", about)]


async def test_its_own_fields_pass_through_unchanged(upstream: FakeUpstream) -> None:
    own = {"models": ["a/b", "c/d"], "provider": {"order": ["x"]}, "route": "fallback", "transforms": ["middle-out"]}
    async with router(upstream) as provider:
        await collect(provider, extra=own)
    body = upstream.chats[0].body
    assert {name: body[name] for name in own} == own


async def test_the_headers_name_the_site_and_carry_the_key(upstream: FakeUpstream) -> None:
    about = {"OPENROUTER_HTTP_REFERER": "https://shoal.example", "OPENROUTER_APP_TITLE": "Shoal"}
    async with router(upstream, **about) as provider:
        await collect(provider)
    headers = upstream.chats[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["http-referer"] == "https://shoal.example"
    assert headers["x-title"] == headers["x-openrouter-title"] == "Shoal"


@pytest.mark.parametrize(
    ("environ", "model"),
    [
        ({}, "openai/gpt-4o-mini"),
        ({"IPFS_ACCELERATE_PY_OPENROUTER_MODEL": "old/one"}, "old/one"),
        ({"IPFS_ACCELERATE_PY_OPENROUTER_MODEL": "old/one", "SHOAL_OPENROUTER_MODEL": "new/one"}, "new/one"),
        ({"OPENROUTER_MODEL": "not/read"}, "openai/gpt-4o-mini"),
    ],
)
async def test_the_model_comes_from_the_environment_ours_first(
    upstream: FakeUpstream, environ: dict[str, str], model: str
) -> None:
    async with router(upstream, **environ) as provider:
        await collect(provider)
    assert upstream.chats[0].body["model"] == model


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"IPFS_ACCELERATE_PY_OPENROUTER_API_KEY": "old"}, "old"),
        ({"IPFS_ACCELERATE_PY_OPENROUTER_API_KEY": "old", "SHOAL_OPENROUTER_API_KEY": "ours"}, "ours"),
        ({"SHOAL_OPENROUTER_API_KEY": "  "}, KEY),
    ],
)
async def test_the_key_comes_from_the_environment_ours_first(
    upstream: FakeUpstream, environ: dict[str, str], key: str
) -> None:
    async with router(upstream, **environ) as provider:
        await collect(provider)
    assert upstream.chats[0].headers["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize(
    ("scenario", "kind", "retry_after"),
    [
        ("s401", ErrorKind.AUTH, None),
        ("s402", ErrorKind.QUOTA, None),
        ("s402busy", ErrorKind.RATE_LIMITED, 2),
        ("s403", ErrorKind.AUTH, None),
        ("s404", ErrorKind.UNAVAILABLE, None),
        ("s429ra", ErrorKind.RATE_LIMITED, 1),
        ("s502", ErrorKind.UPSTREAM, None),
        ("s503", ErrorKind.OVERLOADED, None),
        ("err200", ErrorKind.UPSTREAM, None),
        ("errmid", ErrorKind.INTERRUPTED, None),
    ],
)
async def test_its_errors_have_their_kinds_a_busy_402_among_them(
    upstream: FakeUpstream, scenario: str, kind: ErrorKind, retry_after: float | None
) -> None:
    async with router(upstream, scenario) as provider:
        with pytest.raises(ProviderError) as caught:
            await collect(provider)
    assert (caught.value.kind, caught.value.retry_after) == (kind, retry_after)
    assert KEY not in str(caught.value)


async def test_the_catalogue_is_the_list_of_models_and_the_default_is_offered(upstream: FakeUpstream) -> None:
    async with router(upstream) as provider:
        status = await provider.probe()
    assert status.ready
    assert [m.name for m in status.models] == ["stub", "stub-2", "echo", "openai/gpt-4o-mini"]
    assert status.default_model == "openai/gpt-4o-mini"


async def test_the_keys_state_is_learned_without_spending_and_shows_nothing_of_the_key(upstream: FakeUpstream) -> None:
    async with router(upstream) as provider:
        assert (await provider.probe()).ready
        facts = provider.facts()
        await provider.probe()
    assert facts["credit"] == {
        "limit": 10.0,
        "limit_remaining": 8.5,
        "usage": 1.5,
        "usage_daily": 0.25,
        "is_free_tier": False,
    }
    assert [request.path for request in upstream.requests] == ["/api/v1/models", "/api/v1/key"]


async def test_a_key_whose_limit_is_spent_is_not_ready_and_says_where_to_raise_it(upstream: FakeUpstream) -> None:
    async with router(upstream, "or+keyspent") as provider:
        status = await provider.probe()
    assert (status.ready, status.reason.partition(";")[0]) == (False, "the key's credit limit is spent")


async def test_a_key_that_is_topped_up_is_ready_again_without_a_probe_waiting_for_it(upstream: FakeUpstream) -> None:
    async with router(upstream, "or+keyspent", key_ttl_s=0.01) as provider:
        assert not (await provider.probe()).ready
        upstream.alter("or+keyspent", "or")
        with trio.fail_after(5):
            while not (await provider.probe()).ready:
                await trio.sleep(0.01)
        assert provider.facts()["credit"]["limit_remaining"] == 8.5


@pytest.mark.parametrize("scenario", ["nokey404", "nokeyjson"])
async def test_a_key_whose_state_cannot_be_learned_is_believed(upstream: FakeUpstream, scenario: str) -> None:
    async with router(upstream, f"or+{scenario}") as provider:
        assert (await provider.probe()).ready
        assert "credit" not in provider.facts()


async def test_its_routing_object_and_our_pin_are_different_things() -> None:
    body = b'{"model": "a/b", "messages": [{"role": "user", "content": "x"}], "provider": %s}'
    pinned = read_call(body % b'"openrouter"', {}).request
    assert (pinned.provider, pinned.extra) == ("openrouter", {})
    theirs = read_call(body % b'{"order": ["x"], "allow_fallbacks": false}', {"x-shoal-provider": "openrouter"}).request
    assert (theirs.provider, theirs.extra) == ("openrouter", {"provider": {"order": ["x"], "allow_fallbacks": False}})


async def test_a_retry_after_that_is_a_date_is_seconds_from_now(upstream: FakeUpstream) -> None:
    async with router(upstream, "s429date") as provider:
        with pytest.raises(ProviderError) as caught:
            await collect(provider)
    assert caught.value.retry_after == pytest.approx(30, abs=2)


async def test_without_a_key_it_says_where_to_put_one_and_asks_nobody(upstream: FakeUpstream) -> None:
    async with router(upstream, OPENROUTER_API_KEY="") as provider:
        status = await provider.probe()
    assert status.reason == "no key; set OPENROUTER_API_KEY"
    assert upstream.count == 0


def test_a_title_that_no_header_can_carry_is_refused() -> None:
    context = BuildContext(Path("unused"), {"OPENROUTER_APP_TITLE": "Fischschwarm für alle"})
    with pytest.raises(SettingsError, match="printable ASCII"):
        openrouter.build("openrouter", openrouter.Settings(), context)


def test_its_settings_are_those_of_any_compatible_server_and_two_more() -> None:
    keys = {field.name for field in msgspec.structs.fields(openrouter.Settings)}
    assert {"http_referer", "app_title", "api_key_file", "share", "max_concurrent"} <= keys
    assert "api_key" not in keys
