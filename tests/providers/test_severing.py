"""A generation that is cut short from outside: whatever it waits for ends at once, and nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
import pytest
import trio
import trio.testing
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.no_answer import NoAnswer
from shoal.node.routing.router import Router
from shoal.providers.base import ErrorKind, GenerateRequest, ProviderError
from shoal.providers.openai_compat import OpenAiCompat
from shoal.providers.severable import Severable

from tests.node.fakes_router import routing
from tests.providers.fake_upstream import FakeUpstream
from tests.providers.test_openai_compat import desk, provider_at

ASK = GenerateRequest.of("one two three four", model="stub", temperature=1.0)
SOON_S = 5.0


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


async def severed(provider: object, request: GenerateRequest = ASK) -> ProviderError:
    """The failure of a generation that is severed when it waits."""
    assert isinstance(provider, OpenAiCompat)
    opened = provider.generate(request)
    assert isinstance(opened, Severable)
    failure: list[ProviderError] = []

    async def read() -> None:
        try:
            async with opened as events:
                async for _ in events:
                    pass
        except ProviderError as error:
            failure.append(error)

    with trio.fail_after(SOON_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.2)
            opened.sever()
    assert provider.gate.in_flight == 0
    return failure[0]


@pytest.mark.parametrize("scenario", ["hang", "stall"])
async def test_it_ends_before_the_answer_and_in_its_midst(upstream: FakeUpstream, scenario: str) -> None:
    async with desk(upstream, scenario) as provider:
        await severed(provider)
        with trio.fail_after(SOON_S):
            while not upstream.disconnects:
                await trio.testing.wait_all_tasks_blocked(0.01)


async def test_it_ends_in_the_queue(upstream: FakeUpstream) -> None:
    async with desk(upstream, "hang", max_concurrent=1) as provider, trio.open_nursery() as nursery:

        async def hold() -> None:
            async with provider.generate(ASK):
                pass

        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert isinstance(provider, OpenAiCompat)
        opened = provider.generate(ASK)
        assert isinstance(opened, Severable)

        async def wait() -> None:
            with pytest.raises(ProviderError, match="not asked in time"):
                await opened.__aenter__()

        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                assert provider.gate.waiting == 1
                opened.sever()
        assert (provider.gate.in_flight, provider.gate.waiting) == (1, 0)
        nursery.cancel_scope.cancel()


async def test_it_ends_while_a_model_is_looked_up() -> None:
    nameless = msgspec.structs.replace(ASK, model=None)
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with silent:
        provider = provider_at(f"http://127.0.0.1:{silent.socket.getsockname()[1]}/v1", probe_timeout_s=60)
        async with provider.running():
            failure = await severed(provider, nameless)
            assert failure.kind is ErrorKind.CANCELLED


async def test_one_that_has_ended_keeps_its_connection(upstream: FakeUpstream) -> None:
    async with desk(upstream) as provider:
        assert isinstance(provider, OpenAiCompat)
        opened = provider.generate(ASK)
        assert isinstance(opened, Severable)
        async with opened as events:
            assert [event async for event in events]
        opened.sever()
        async with provider.generate(ASK) as events:
            assert [event async for event in events]
        assert upstream.disconnects == 0


async def whole(router: Router, **how: float) -> tuple[str, NoAnswer | None]:
    ask = router.ask(ASK, whole=True, **how)
    try:
        async with router.answer(ask) as answer:
            return "".join([getattr(event, "text", "") for event in await answer.more()]), None
    except NoAnswer as error:
        return "", error


@pytest.mark.parametrize(("scenario", "outcome"), [("hang", "first_token_timeout"), ("stall", "interrupted")])
async def test_a_limit_of_the_router_leads_to_the_next_candidate(
    upstream: FakeUpstream, scenario: str, outcome: str
) -> None:
    limits = RoutingLimits(first_token_s=0.2, idle_s=0.2)
    async with desk(upstream, scenario) as slow, desk(upstream) as good, routing(slow, good, limits=limits) as router:
        with trio.fail_after(SOON_S):
            text, error = await whole(router)
        assert (text, error) == ("ECHO<one two three four>", None)
        assert [attempt.outcome for attempt in router.notes[-1].attempts] == [outcome, "ok"]


async def test_the_callers_deadline_ends_it(upstream: FakeUpstream) -> None:
    async with desk(upstream, "hang") as slow, routing(slow) as router:
        with trio.fail_after(SOON_S):
            _, error = await whole(router, timeout_s=0.2)
        assert error is not None
        assert error.kind is ErrorKind.DEADLINE
        assert router.in_flight == 0


async def test_a_router_that_stops_ends_it(upstream: FakeUpstream) -> None:
    async with desk(upstream, "hang") as slow:
        failures: list[NoAnswer | None] = []

        async def call(router: Router) -> None:
            failures.append((await whole(router))[1])

        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery, routing(slow) as router:
                nursery.start_soon(call, router)
                await trio.testing.wait_all_tasks_blocked(0.2)
        assert failures[0] is not None
        assert failures[0].kind is ErrorKind.CANCELLED
