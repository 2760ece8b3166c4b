"""The walk: who is tried, again or instead, under which budget, and what the caller is told."""

from __future__ import annotations

import pytest
import trio
from shoal.node.routing.ask import CacheControl
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.no_answer import NoAnswer
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, ReasoningDelta, TextDelta, Usage

from .fakes_router import (
    ME,
    OTHER,
    QUESTION,
    STOP,
    Pause,
    Scripted,
    ScriptedPeer,
    Wait,
    ask,
    caching,
    fails,
    hear,
    routing,
    says,
)


async def test_the_first_candidate_answers_and_the_second_is_not_asked() -> None:
    first, second = Scripted("first", says("Co", "ld.")), Scripted("second", says("Icy."))
    async with routing(first, second) as router:
        told = await ask(router)
    assert told.text == "Cold."
    assert told.events[-1] == STOP
    assert told.outcomes == [("first", "ok")]
    assert second.calls == []


async def test_usage_comes_before_the_finish_even_when_the_provider_says_it_after() -> None:
    provider = Scripted("first", ["Cold.", STOP, Usage(3, 2)])
    async with routing(provider) as router:
        told = await ask(router)
    assert told.events[-2:] == [Usage(3, 2), STOP]


@pytest.mark.parametrize("kind", [ErrorKind.UNAVAILABLE, ErrorKind.AUTH, ErrorKind.QUOTA])
async def test_a_failure_that_will_not_pass_leads_to_the_next_candidate_at_once(kind: ErrorKind) -> None:
    first, second = Scripted("first", fails(kind)), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router)
    assert told.text == "Cold."
    assert told.outcomes == [("first", str(kind)), ("second", "ok")]
    assert len(first.calls) == 1


@pytest.mark.parametrize("kind", [ErrorKind.OVERLOADED, ErrorKind.UPSTREAM, ErrorKind.CONNECTION])
async def test_a_failure_that_may_pass_is_tried_once_more_after_a_pause(
    kind: ErrorKind, autojump_clock: trio.testing.MockClock
) -> None:
    first = Scripted("first", fails(kind), says("Cold."))
    async with routing(first) as router:
        told = await ask(router)
    assert told.text == "Cold."
    assert told.outcomes == [("first", str(kind)), ("first", "ok")]
    pause = first.called_at[1] - first.called_at[0]
    assert router.limits.retry_min_s <= pause <= router.limits.retry_max_s


async def test_a_failure_that_stays_is_tried_twice_and_then_the_next(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first", fails(ErrorKind.UPSTREAM)), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router)
    assert told.outcomes == [("first", "upstream"), ("first", "upstream"), ("second", "ok")]


@pytest.mark.parametrize("kind", [ErrorKind.BAD_REQUEST, ErrorKind.CONTENT_FILTER])
async def test_a_refused_request_is_not_taken_elsewhere(kind: ErrorKind) -> None:
    first, second = Scripted("first", fails(kind, "too rude")), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router)
    assert told.error is not None
    assert (told.error.kind, told.error.message) == (kind, "too rude")
    assert second.calls == []


async def test_a_request_too_long_goes_only_to_a_larger_context() -> None:
    small = Candidate(provider=Scripted("small", fails(ErrorKind.CONTEXT_LENGTH)), name="small", context_length=2048)
    equal = Candidate(provider=Scripted("equal", says("no")), name="equal", context_length=2048)
    unknown = Candidate(provider=Scripted("unknown", says("no")), name="unknown")
    large = Candidate(provider=Scripted("large", says("Cold.")), name="large", context_length=8192)
    async with routing(small, equal, unknown, large) as router:
        told = await ask(router)
    assert told.outcomes == [("small", "context_length"), ("large", "ok")]


async def test_a_short_rate_limit_is_waited_for_in_place(autojump_clock: trio.testing.MockClock) -> None:
    first = Scripted("first", fails(ErrorKind.RATE_LIMITED, retry_after=0.5), says("Cold."))
    second = Scripted("second", says("Icy."))
    async with routing(first, second) as router:
        told = await ask(router)
    assert told.text == "Cold."
    assert first.called_at[1] - first.called_at[0] >= 0.5


async def test_a_long_rate_limit_sends_the_request_to_the_next_candidate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first = Scripted("first", fails(ErrorKind.RATE_LIMITED, retry_after=10), says("Cold."))
    async with routing(first, Scripted("second", says("Icy."))) as router:
        told = await ask(router)
        assert told.text == "Icy."
        assert told.took == 0
        again = await ask(router, GenerateRequest.of("Another?"))
    assert again.outcomes == [("first", "skipped"), ("second", "ok")], "it asked to be left alone"


async def test_a_long_rate_limit_is_waited_for_when_nobody_else_can_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first = Scripted("first", fails(ErrorKind.RATE_LIMITED, retry_after=10), says("Cold."))
    async with routing(first, Scripted("second", fails(ErrorKind.AUTH))) as router:
        told = await ask(router, timeout_s=60)
    assert told.text == "Cold."
    assert 10 <= told.took < 11


async def test_a_rate_limit_beyond_the_deadline_is_told_with_its_time(autojump_clock: trio.testing.MockClock) -> None:
    first = Scripted("first", fails(ErrorKind.RATE_LIMITED, retry_after=10))
    async with routing(first) as router:
        told = await ask(router, timeout_s=5)
    assert told.error is not None
    assert told.error.kind is ErrorKind.RATE_LIMITED
    assert told.error.retry_after == 10
    assert told.took == 0, "nobody waits for what cannot come in time"
    assert len(first.calls) == 1


async def test_the_number_of_attempts_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    many = [Scripted(f"p{i}", fails(ErrorKind.CONNECTION)) for i in range(20)]
    async with routing(*many, limits=RoutingLimits(max_attempts=5)) as router:
        told = await ask(router)
    assert sum(len(p.calls) for p in many) == 5
    assert told.error is not None
    assert len(told.error.route) == 5


async def test_a_silent_candidate_is_left_after_the_first_token_limit_and_not_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first, second = Scripted("first", [Pause(1000), "late", STOP]), Scripted("second", says("Cold."))
    async with routing(first, second, limits=RoutingLimits(first_token_s=3)) as router:
        told = await ask(router)
    assert told.outcomes == [("first", "first_token_timeout"), ("second", "ok")]
    assert told.took == 3
    assert (first.cancelled, first.open) == (1, 0)


async def test_an_empty_delta_is_no_first_token(autojump_clock: trio.testing.MockClock) -> None:
    first = Scripted("first", [TextDelta(""), ReasoningDelta(""), Pause(1000), STOP])
    async with routing(first, limits=RoutingLimits(first_token_s=3)) as router:
        told = await ask(router)
    assert told.error is not None
    assert told.error.kind is ErrorKind.FIRST_TOKEN_TIMEOUT


async def test_the_idle_limit_starts_again_with_each_event(autojump_clock: trio.testing.MockClock) -> None:
    slow = Scripted("slow", [Pause(2), "a", Pause(4), "b", Pause(4), "c", STOP])
    async with routing(slow, limits=RoutingLimits(first_token_s=3, idle_s=5)) as router:
        told = await ask(router)
    assert told.text == "abc"


async def test_a_stream_that_stalls_after_text_is_interrupted(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first", ["Co", Pause(1000), "ld.", STOP]), Scripted("second", says("Icy."))
    async with routing(first, second, limits=RoutingLimits(idle_s=5)) as router:
        told = await ask(router)
    assert told.text == "Co"
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED
    assert "silent for 5 s" in told.error.message
    assert second.calls == [], "the caller has text of the first already"
    assert first.open == 0


@pytest.mark.parametrize("end", [[], fails(ErrorKind.CONNECTION, "reset"), [ValueError("a bug")]])
async def test_a_stream_that_breaks_off_after_text_is_interrupted_whatever_the_transport_said(end: list) -> None:
    async with routing(Scripted("first", ["Co", *end])) as router:
        told = await ask(router)
    assert told.text == "Co"
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED
    assert told.outcomes == [("first", "interrupted")]


async def test_a_stream_without_an_end_mark_and_without_text_is_tried_again_then_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first, second = Scripted("first", []), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router)
    assert told.outcomes == [("first", "upstream"), ("first", "upstream"), ("second", "ok")]


async def test_an_answer_with_nothing_in_it_is_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first", [STOP]), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router)
    assert told.text == "Cold."
    assert told.provider == "second"


@pytest.mark.parametrize("script", [[Finish("length")], [Usage(3, 1), STOP], [Finish("content_filter")]])
async def test_an_answer_with_nothing_on_purpose_is_an_answer(script: list) -> None:
    async with routing(Scripted("first", script)) as router:
        told = await ask(router)
    assert told.error is None
    assert told.text == ""


async def test_the_deadline_ends_an_attempt_whose_own_limits_are_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first, second = Scripted("first", [Pause(1000), STOP]), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router, timeout_s=2)
    assert told.error is not None
    assert told.error.kind is ErrorKind.DEADLINE
    assert told.took == 2
    assert second.calls == []
    assert first.open == 0


async def test_the_deadline_ends_a_stream_that_runs_too_long(autojump_clock: trio.testing.MockClock) -> None:
    endless = Scripted("endless", [s for _ in range(1000) for s in ("x", Pause(1))])
    async with routing(endless) as router:
        told = await ask(router, timeout_s=10.5)
    assert told.error is not None
    assert told.error.kind is ErrorKind.DEADLINE
    assert len(told.text) == 11


async def test_leaving_an_answer_cancels_the_work() -> None:
    never = trio.Event()
    provider = Scripted("first", ["Co", Wait(never)])
    async with routing(provider) as router:
        async with router.answer(router.ask(QUESTION)) as answer:
            assert await answer.more() == [TextDelta("Co")]
            assert provider.open == 1
        assert (provider.open, provider.cancelled) == (0, 1)
        assert router.in_flight == 0


async def test_a_cancelled_caller_cancels_the_work() -> None:
    never = trio.Event()
    provider = Scripted("first", ["Co", Wait(never)])
    async with routing(provider) as router:
        with trio.CancelScope() as scope:
            async with router.answer(router.ask(QUESTION)) as answer:
                await answer.more()
                scope.cancel()
                await answer.more()
        assert provider.open == 0


async def test_a_provider_that_raises_from_its_own_nursery_is_a_failed_attempt() -> None:
    error = ExceptionGroup("tasks", [ExceptionGroup("inner", fails(ErrorKind.AUTH, "no key"))])  # type: ignore[list-item]
    async with routing(Scripted("first", [error]), Scripted("second", says("Cold."))) as router:
        told = await ask(router)
    assert told.outcomes == [("first", "auth"), ("second", "ok")]


async def test_the_fault_of_a_plug_in_costs_one_attempt_and_its_words_stay_out_of_the_error(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with routing(Scripted("first", [ValueError("the prompt was: hunter2")])) as router:
        told = await ask(router)
    assert told.error is not None
    assert "ValueError" in told.error.message
    assert "hunter2" not in told.error.message + caplog.text


async def test_without_fallback_only_the_first_candidate_is_tried() -> None:
    first, second = Scripted("first", fails(ErrorKind.AUTH, "no key")), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router, allow_fallback=False)
    assert told.error is not None
    assert told.error.message == "no key"
    assert second.calls == []


async def test_a_pinned_provider_is_never_swapped() -> None:
    first, second = Scripted("first", fails(ErrorKind.UNAVAILABLE)), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        told = await ask(router, GenerateRequest.of("Hot?", provider="first"))
        alias = await ask(router, GenerateRequest.of("Hot?", provider="alias"))
    assert told.error is not None
    assert alias.error is not None
    assert len(first.calls) == 2
    assert second.calls == []


async def test_nobody_at_all_is_looked_for_again_and_then_said() -> None:
    async with routing() as router:
        told = await ask(router)
        assert router._source.refreshed == 1  # type: ignore[attr-defined]
    assert told.error is not None
    assert told.error.code == "model_not_found"


async def test_the_message_names_everyone_who_was_tried() -> None:
    async with routing(
        Scripted("first", fails(ErrorKind.AUTH, "no key")), Scripted("second", fails(ErrorKind.QUOTA, "empty"))
    ) as router:
        told = await ask(router)
    assert told.error is not None
    assert "first: auth (no key)" in told.error.message
    assert "second: quota (empty)" in told.error.message


async def test_a_peer_gets_what_is_left_of_the_budget_and_one_hop_less(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = Scripted("slow", [Pause(3), STOP], fails(ErrorKind.AUTH))
    peer = ScriptedPeer(OTHER.peer_id, says("Cold."))
    async with routing(slow, peer, limits=RoutingLimits(first_token_s=2)) as router:
        told = await ask(router, timeout_s=10)
    assert told.text == "Cold."
    assert (told.provider, told.peer) == (peer.name, OTHER.peer_id)
    assert peer.budgets == [(8.0, 0, frozenset({ME.peer_id}))]


async def test_a_pin_of_a_peer_is_not_sent_along() -> None:
    peer = ScriptedPeer(OTHER.peer_id, says("Cold."))
    async with routing(peer) as router:
        await ask(router, GenerateRequest.of("Hot?", provider=peer.name))
    assert peer.calls[0].provider is None


async def test_a_request_that_has_passed_this_node_is_refused() -> None:
    async with routing(Scripted("first", says("Cold."))) as router:
        question = router.answer_for_peer(QUESTION, OTHER.peer_id, 10, hops=1, seen=[ME.peer_id])
        with pytest.raises(NoAnswer) as caught:
            async with question:
                pass
    assert caught.value.code == "loop"


async def test_an_answer_for_a_peer_ends_with_who_gave_it_and_the_record_without_its_text() -> None:
    async with (
        caching() as cache,
        routing(Scripted("first", says("Cold.", model="m1")), cache=cache) as router,
        router.answer_for_peer(QUESTION, OTHER.peer_id, 10) as answer,
    ):
        assert [e async for e in answer] == [TextDelta("Cold."), Finish("stop", "m1")]
        result = answer.result()
    assert (result["provider"], result["model"], result["cache"], result["peer"]) == ("first", "m1", "miss", None)
    assert isinstance(result["record"], bytes)
    assert b"Cold." not in result["record"]


async def test_a_full_node_refuses_with_a_hint_to_come_back() -> None:
    never = trio.Event()
    provider = Scripted("first", ["x", Wait(never)])
    async with (
        routing(provider, limits=RoutingLimits(max_in_flight=1)) as router,
        router.answer(router.ask(QUESTION)) as answer,
    ):
        await answer.more()
        told = await ask(router, GenerateRequest.of("Another?"))
    assert told.error is not None
    assert (told.error.kind, told.error.code) == (ErrorKind.OVERLOADED, "node_full")
    assert told.error.retry_after is not None


async def test_readers_of_a_stopping_router_are_told() -> None:
    never = trio.Event()
    told = []

    async def listen() -> None:
        told.append(await hear(router, router.ask(QUESTION)))

    async with trio.open_nursery() as nursery, routing(Scripted("first", [Wait(never)])) as router:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
    assert told[0].error is not None
    assert told[0].error.kind is ErrorKind.CANCELLED


async def test_a_reader_that_does_not_read_stops_the_provider_after_a_bounded_number_of_events() -> None:
    provider = Scripted("first", [*["x"] * 1000, STOP])
    async with (
        routing(provider, limits=RoutingLimits(read_ahead_events=10)) as router,
        router.answer(router.ask(QUESTION)) as answer,
    ):
        await trio.testing.wait_all_tasks_blocked()
        assert len(answer.flight.events) == 10
        assert len([e async for e in answer]) == 1001


async def test_waiting_with_a_limit_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        routing(Scripted("first", [Pause(5), "Cold.", STOP])) as router,
        router.answer(router.ask(QUESTION)) as answer,
    ):
        with pytest.raises(TimeoutError):
            await answer.more(within=2)
        assert [e async for e in answer] == [TextDelta("Cold."), STOP]


async def test_the_route_says_how_long_each_attempt_took(autojump_clock: trio.testing.MockClock) -> None:
    first = Scripted("first", [Pause(2), *fails(ErrorKind.AUTH)])
    async with routing(first, Scripted("second", [Pause(1), "x", Pause(1), STOP])) as router:
        told = await ask(router)
        note = router.notes[-1]
    assert [(a.ms, a.first_token_ms) for a in told.route] == [(2000, None), (2000, 1000)]
    assert (note.outcome, note.provider, note.ms) == ("ok", "second", 4000)


async def test_no_store_bypasses_the_cache() -> None:
    async with caching() as cache, routing(Scripted("first", says("Cold.")), cache=cache) as router:
        told = await ask(router, cache_control=CacheControl(no_store=True))
        assert (told.cache, told.cid) == ("bypass", None)
        assert cache.stats()["remembered"] == 0


async def test_a_provider_that_is_slow_to_clean_up_does_not_hold_back_the_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Stubborn(Scripted):
        async def _play(self, script):  # type: ignore[no-untyped-def, override]
            try:
                await trio.sleep_forever()
                yield STOP
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(50)

    async with routing(Stubborn("first", [])) as router:
        told = await ask(router, timeout_s=2)
    assert told.error is not None
    assert (told.error.kind, told.took) == (ErrorKind.DEADLINE, 2)


async def test_the_model_of_a_peer_that_offers_one_is_known_with_the_first_event() -> None:
    peer = ScriptedPeer(OTHER.peer_id, says("Cold."))
    async with routing(peer) as router, router.answer(router.ask(QUESTION)) as answer:
        await answer.more()
        assert answer.model == "m1"


async def test_a_provider_that_writes_without_end_is_stopped() -> None:
    endless = Scripted("first", ["x" * 1000] * 1000)
    async with routing(endless, limits=RoutingLimits(max_answer_bytes=50_000)) as router:
        told = await ask(router)
    assert told.error is not None
    assert told.error.kind is ErrorKind.INTERRUPTED
    assert len(told.text) < 60_000
    assert endless.open == 0


async def test_only_what_was_answered_counts_as_an_answer() -> None:
    async with routing(Scripted("first", fails(ErrorKind.CONTENT_FILTER), says("Cold."))) as router:
        refused = await ask(router)
        assert refused.error is not None
        assert not router.counts
        assert (await ask(router)).error is None
        assert sum(router.counts.values()) == 1
