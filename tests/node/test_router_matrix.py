"""Everything an upstream can do wrong, over real connections, with one fallback: the whole answer or the right error.

A row: what the first upstream does, what the route then says of it, and the caller's text or error. How often the
first one was called is checked for each, and so is that nothing is left of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.router import Router
from shoal.providers import openai_compat
from shoal.providers.base import ErrorKind, GenerateRequest, Provider
from shoal.providers.settings import BuildContext

from tests.providers.fake_upstream import FakeUpstream

from .fakes_router import ask, routing

WORDS = "one two three four five"
REPLY = f"ECHO<{WORDS}>"
QUESTION = GenerateRequest.of(WORDS, model="stub", temperature=0.0)
HASTY = RoutingLimits(first_token_s=0.4, idle_s=0.4, patience_s=0.2, retry_min_s=0.01, retry_max_s=0.03)


class Row(NamedTuple):
    """What the first upstream does, and what becomes of it: outcomes in the route; the error, where it ends in one."""

    scenario: str
    outcomes: Sequence[str]
    error: ErrorKind | None = None
    way: str = ""


TWICE_UPSTREAM, TWICE_LOST = ("upstream", "upstream", "ok"), ("connection", "connection", "ok")
ROWS = [
    Row("refused", TWICE_LOST),
    Row("drop", TWICE_LOST),
    Row("garbage", TWICE_UPSTREAM),
    Row("hang", ("first_token_timeout", "ok")),
    Row("slow900", ("first_token_timeout", "ok")),
    Row("s429", ("rate_limited", "ok")),
    Row("s429ra", ("rate_limited", "ok")),
    Row("s429date", ("rate_limited", "ok")),
    Row("flaky2", ("rate_limited", "ok")),
    Row("s401", ("auth", "ok")),
    Row("s402", ("quota", "ok")),
    Row("s403", ("auth", "ok")),
    Row("s404", ("unavailable", "ok")),
    Row("s400model", ("unavailable", "ok")),
    Row("s500", TWICE_UPSTREAM),
    Row("s502", TWICE_UPSTREAM),
    Row("s503", ("overloaded", "overloaded", "ok")),
    Row("s529", ("overloaded", "overloaded", "ok")),
    Row("err200", TWICE_UPSTREAM),
    Row("errsse", TWICE_UPSTREAM),
    Row("empty", TWICE_UPSTREAM),
    Row("s400ctx", ("context_length", "ok")),
    Row("s400", ("bad_request",), ErrorKind.BAD_REQUEST),
    Row("s400filter", ("content_filter",), ErrorKind.CONTENT_FILTER),
    Row("cut+each", ("interrupted", "ok"), way="replay"),
    Row("reset+each", ("interrupted", "ok"), way="replay"),
    Row("stall", ("interrupted", "ok"), way="replay"),
    Row("malformed+each", ("interrupted", "ok"), way="replay"),
    Row("errmid+each", ("interrupted", "ok"), way="replay"),
    Row("nofinish", ("interrupted", "ok"), way="replay"),
    Row("nodone", ("ok",)),
    Row("json", ("ok",)),
    Row("filter", ("ok",)),
    Row("ok", ("ok",)),
]
ONCE = {"hang", "slow900", "stall", "s400ctx", "s400", "s400filter", "s401", "s402", "s403", "s404"}


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


@contextlib.asynccontextmanager
async def two(
    upstream: FakeUpstream, scenario: str, second: str = "ok", *, larger: bool = True, **keys: Any
) -> AsyncGenerator[Router]:
    """A router over two upstreams; the second has the larger context unless told otherwise."""
    base = "http://127.0.0.1:1/v1" if scenario == "refused" else upstream.url(scenario)
    first, other = provider("first", base), provider("second", upstream.url(f"{second}+each"), **keys)
    candidates = [
        Candidate(provider=first, name="first", model="stub", context_length=8192),
        Candidate(
            provider=other,
            name="second",
            model="stub",
            context_length=16384 if larger else 8192,
            continues=bool(keys.get("continues")),
        ),
    ]
    async with first.running(), other.running(), routing(*candidates, limits=HASTY) as router:
        yield router


def provider(name: str, base_url: str, **keys: Any) -> Provider:
    settings = msgspec.convert({"base_url": base_url, "models": ["stub"], **keys}, openai_compat.Settings)
    return openai_compat.build(name, settings, BuildContext(Path("unused"), {}))


def calls(upstream: FakeUpstream, scenario: str) -> int:
    return sum(chat.scenario == scenario for chat in upstream.chats)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.scenario)
async def test_whatever_the_first_upstream_does_the_caller_gets_the_whole_answer_or_the_right_error(
    row: Row, upstream: FakeUpstream
) -> None:
    async with two(upstream, row.scenario) as router:
        with trio.fail_after(5):
            told = await ask(router, QUESTION)
        assert [outcome for _, outcome in told.outcomes] == list(row.outcomes)
        assert (told.error.kind if told.error else None) == row.error
        assert told.text == ("" if row.error else REPLY)
        assert told.route[-1].way == row.way
        if row.error is None:
            assert told.model == "stub"
        assert calls(upstream, row.scenario) <= (1 if row.scenario in ONCE else 2)
        assert router.in_flight == 0
        await upstream.until(idle=True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.way], ids=lambda row: row.scenario)
async def test_a_broken_stream_goes_on_by_prefix_at_an_upstream_that_continues(
    row: Row, upstream: FakeUpstream
) -> None:
    async with two(upstream, row.scenario, continues=True) as router:
        with trio.fail_after(5):
            told = await ask(router, msgspec.structs.replace(QUESTION, temperature=0.7, max_tokens=20))
        assert (told.text, told.error) == (REPLY, None)
        assert told.route[-1].way == "prefix"
        body = next(chat.body for chat in upstream.chats if chat.scenario == "ok+each")
        final = body["messages"][-1]
        assert final["role"] == "assistant"
        assert REPLY.startswith(final["content"])
        assert body["max_tokens"] == 20 - len(final["content"]) // 4, "what is left of it, as nearly as can be told"


async def test_an_upstream_that_rejects_a_prefilled_turn_replays_instead_and_is_not_asked_for_it_again(
    upstream: FakeUpstream,
) -> None:
    async with two(upstream, "cut+each", "noprefill", continues=True) as router:
        first = await ask(router, QUESTION)
        again = await ask(router, msgspec.structs.replace(QUESTION, seed=1))
        assert [(told.text, told.error) for told in (first, again)] == [(REPLY, None)] * 2
        roles = [chat.body["messages"][-1]["role"] for chat in upstream.chats if "noprefill" in chat.scenario]
        assert roles == ["assistant", "user", "user"]


async def test_a_request_that_cannot_fit_is_not_sent_to_a_context_of_the_same_size(upstream: FakeUpstream) -> None:
    async with two(upstream, "s400ctx", larger=False) as router:
        told = await ask(router, QUESTION)
        assert told.error is not None
        assert told.error.kind is ErrorKind.CONTEXT_LENGTH
        assert len(upstream.chats) == 1


async def test_a_content_refusal_is_passed_on_with_its_reason(upstream: FakeUpstream) -> None:
    async with two(upstream, "s400filter") as router:
        told = await ask(router, QUESTION)
        assert told.error is not None
        assert "content filter" in told.error.message


@pytest.mark.parametrize("row", [row for row in ROWS if row.outcomes != ("ok",)], ids=lambda row: row.scenario)
async def test_without_any_fallback_it_is_an_error_that_names_the_fault(row: Row, upstream: FakeUpstream) -> None:
    async with two(upstream, row.scenario) as router:
        router._source.listed.pop()  # type: ignore[attr-defined]
        with trio.fail_after(8):
            told = await ask(router, QUESTION, timeout_s=1.5)
        assert told.error is not None
        assert str(told.error.kind) == row.outcomes[0]
        assert REPLY.startswith(told.text)
