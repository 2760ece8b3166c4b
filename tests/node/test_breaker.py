"""Breakers: who fails is left alone, one probe finds out whether it still does, and who recovers is used at once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.routing.breaker import FAILURES, FIRST_S, MAX_S, Breaker, State
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.health import EARLY_S, Health
from shoal.node.routing.health_file import kept
from shoal.providers.base import ErrorKind, GenerateRequest, ProviderError

from .fakes_router import OTHER, STOP, Pause, Scripted, ScriptedPeer, Wait, ask, fails, routing, says

A1 = Candidate(provider=Scripted("a", says("x")), name="a", model="m1")
A2 = Candidate(provider=A1.provider, name="a", model="m2")
DOWN = ProviderError(ErrorKind.UPSTREAM, "it fails")
DICE = random.Random(1)


def fail(health: Health, candidate: Candidate = A1, times: int = FAILURES, now: float = 100, **error: object) -> None:
    for _ in range(times):
        health.failed(candidate, ProviderError(**{"kind": DOWN.kind, "message": "it fails", **error}), now)  # type: ignore[arg-type]


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    health = Health(jitter=DICE)
    fail(health, times=FAILURES - 1)
    assert health.blocked(A1, 100) is None
    fail(health, times=1)
    assert health.blocked(A1, 100) is not None
    assert health.blocked(A2, 100) is None, "another model of the provider is well"


def test_an_answer_in_between_starts_the_count_again() -> None:
    health = Health(jitter=DICE)
    fail(health, times=FAILURES - 1)
    health.answered(A1)
    fail(health, times=FAILURES - 1)
    assert health.blocked(A1, 100) is None


@pytest.mark.parametrize("kind", [ErrorKind.AUTH, ErrorKind.QUOTA])
def test_a_refused_key_or_a_spent_quota_shuts_the_whole_provider_at_once(kind: ErrorKind) -> None:
    health = Health(jitter=DICE)
    fail(health, times=1, kind=kind)
    assert health.blocked(A1, 100) is not None
    assert health.blocked(A2, 100) is not None


def test_a_dead_connection_counts_against_every_model() -> None:
    health = Health(jitter=DICE)
    fail(health, kind=ErrorKind.CONNECTION)
    assert health.blocked(A2, 100) is not None


@pytest.mark.parametrize("kind", [ErrorKind.UNAVAILABLE, ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_LENGTH])
def test_what_is_no_sign_of_a_fault_opens_nothing(kind: ErrorKind) -> None:
    health = Health(jitter=DICE)
    fail(health, times=100, kind=kind)
    assert health.blocked(A1, 100) is None


def test_a_full_queue_is_load_and_no_fault() -> None:
    health = Health(jitter=DICE)
    fail(health, times=100, kind=ErrorKind.OVERLOADED)
    assert health.blocked(A1, 100) is None
    fail(health, kind=ErrorKind.OVERLOADED, status=503)
    assert health.blocked(A1, 100) is not None, "an upstream that says so for itself is one to spare"


def test_half_open_lets_one_through_and_its_first_word_opens_the_door() -> None:
    health = Health(jitter=DICE)
    fail(health)
    later = 100 + FIRST_S
    assert health.blocked(A1, later) is None
    health.began(A1, later)
    assert health.blocked(A1, later) is not None, "one probe, not a crowd"
    health.spoke(A1)
    assert health.blocked(A1, later) is None
    fail(health, times=1, now=later)
    assert health.blocked(A1, later) is not None, "on probation until an answer is whole"


def test_a_probe_whose_caller_left_makes_room_for_the_next() -> None:
    health = Health(jitter=DICE)
    fail(health)
    health.began(A1, 102)
    health.let_go(A1)
    assert health.blocked(A1, 102) is None


def test_a_probe_that_fails_shuts_it_for_longer_up_to_a_limit() -> None:
    health, now, pauses = Health(jitter=random.Random(2)), 100.0, []
    fail(health, now=now)
    for _ in range(10):
        block = health.blocked(A1, now)
        assert block is not None
        pauses.append(block.until - now)
        now = block.until
        health.began(A1, now)
        fail(health, times=1, now=now)
    assert pauses[0] <= FIRST_S < pauses[2]
    assert max(pauses) <= MAX_S


def test_failures_of_requests_that_began_before_do_not_lengthen_it() -> None:
    health = Health(jitter=random.Random(3))
    fail(health, times=50)
    block = health.blocked(A1, 100)
    assert block is not None
    assert block.until <= 100 + FIRST_S


def test_when_nobody_else_is_left_it_lets_one_in_early() -> None:
    health = Health(jitter=DICE)
    fail(health)
    fail(health, times=1, now=102)
    assert health.blocked(A1, 102 + EARLY_S) is not None
    assert health.blocked(A1, 102 + EARLY_S, last_resort=True) is None
    assert health.blocked(A1, 102.1, last_resort=True) is not None


@given(st.lists(st.tuples(st.sampled_from(["fail", "answer", "speak", "begin", "leave"]), st.floats(0, 20))))
def test_whatever_happens_it_is_open_only_for_a_bounded_time(steps: list[tuple[str, float]]) -> None:
    breaker, now, jitter = Breaker(), 0.0, random.Random(4)
    for what, passes in steps:
        now += passes
        if what == "fail":
            breaker.failed(ErrorKind.UPSTREAM, "", now, jitter)
        elif what == "speak":
            breaker.spoke()
        elif what == "begin":
            breaker.began(now)
        else:
            breaker.let_go()
        assert breaker.until <= now + MAX_S
        if breaker.failures < FAILURES:
            assert breaker.state(now) is State.CLOSED


# -- over a restart ----------------------------------------------------------------------------------------------------


def test_what_was_known_is_known_after_a_restart_on_another_clock() -> None:
    health = Health(jitter=DICE)
    fail(health, now=100)
    health.failed(A2, ProviderError(ErrorKind.RATE_LIMITED, "slow down", retry_after=60), 100)
    again = Health(jitter=DICE)
    again.load(health.dump(100, 1_000_000.0), 7, 1_000_000.5)
    assert again.blocked(A1, 7) is not None
    assert again.blocked(A1, 7 + FIRST_S) is None
    assert again.blocked(A2, 7 + 59) is not None
    assert again.blocked(A2, 7 + 60) is None
    assert {row["state"] for row in again.view(7)} == {"open", "paused"}


def test_a_refused_key_is_tried_again_after_a_restart() -> None:
    health = Health(jitter=DICE)
    fail(health, kind=ErrorKind.AUTH)
    again = Health()
    again.load(health.dump(100, 1000), 0, 1000)
    assert again.blocked(A1, 0) is None


@given(st.binary())
def test_a_broken_file_is_a_value_error_or_nothing(data: bytes) -> None:
    health = Health()
    try:
        health.load(data, 0, 0)
    except ValueError:
        assert health.view(0) == []


async def test_the_file_is_written_after_a_change_and_read_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    health = Health()
    async with kept(health, path):
        assert not path.exists()
        fail(health, now=trio.current_time())
    again = Health()
    async with kept(again, path):
        assert [row["provider"] for row in again.view(trio.current_time())] == ["a"]
    path.write_bytes(b"\xff not json")
    async with kept(Health(), path):
        pass


# -- in the router -----------------------------------------------------------------------------------------------------


def question(n: int) -> GenerateRequest:
    return GenerateRequest.of(f"Question {n}?")


async def test_a_flapping_upstream_is_spared_while_it_is_down_and_used_within_seconds_of_its_recovery(
    autojump_clock: trio.testing.MockClock,
) -> None:
    down = fails(ErrorKind.UPSTREAM)
    first, second = Scripted("first", down), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        for n in range(300):  # a minute of requests
            told = await ask(router, question(n))
            assert told.provider == "second"
            await trio.sleep(0.2)
        assert len(first.calls) < 30, "a probe now and then"
        first.scripts = [says("Cold.")]
        recovered = trio.current_time()
        while (await ask(router, question(n))).provider != "first":
            n += 1
            await trio.sleep(0.2)
        assert trio.current_time() - recovered <= MAX_S + 1


async def test_a_crowd_does_not_rush_in_when_it_half_opens(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Scripted("first", fails(ErrorKind.UPSTREAM)), Scripted("second", says("Cold."))
    async with routing(first, second) as router:
        for n in range(3):
            await ask(router, question(n))
        await trio.sleep(FIRST_S)
        first.scripts, first.calls = [[Pause(0.3), *fails(ErrorKind.UPSTREAM)]], []
        async with trio.open_nursery() as nursery:
            for n in range(50):
                nursery.start_soon(ask, router, question(n))
        assert len(first.calls) == 1


async def test_the_only_provider_is_tried_again_soon_even_with_an_open_breaker(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first = Scripted("first", fails(ErrorKind.AUTH, "no key"), says("Cold."))
    async with routing(first) as router:
        assert (await ask(router)).error is not None
        told = await ask(router)
    assert (told.text, told.error) == ("Cold.", None)
    assert EARLY_S <= told.took < 2


async def test_callers_of_the_only_provider_wait_for_the_probe_and_are_then_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first = Scripted("first", fails(ErrorKind.AUTH, "no key"), [Pause(0.2), "Cold.", STOP])
    async with routing(first) as router:
        await ask(router)
        told = []

        async def one(n: int) -> None:
            told.append(await ask(router, question(n)))

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(one, n)
    assert [t.text for t in told] == ["Cold."] * 20


async def test_a_dead_only_provider_is_a_prompt_error_and_is_not_hammered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first = Scripted("first", fails(ErrorKind.UPSTREAM, "down"))
    async with routing(first) as router:
        start = trio.current_time()
        for n in range(50):
            told = await ask(router, question(n))
            assert told.error is not None
            assert told.took < 4
        assert len(first.calls) <= (trio.current_time() - start) / EARLY_S + 8


async def test_a_cancelled_probe_does_not_keep_the_breaker_busy() -> None:
    never = trio.Event()
    first = Scripted("first", fails(ErrorKind.AUTH), [Wait(never)])
    async with routing(first) as router:
        await ask(router)
        first.scripts = [[Wait(never)]]
        with trio.move_on_after(0.9):
            await ask(router)
        assert len(first.calls) == 2
        first.scripts = [says("Cold.")]
        assert (await ask(router)).text == "Cold."


async def test_a_peer_has_a_breaker_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    bad = ScriptedPeer(OTHER.peer_id, fails(ErrorKind.UPSTREAM))
    good = Scripted("good", says("Cold."))
    async with routing(bad, good) as router:
        for n in range(10):
            assert (await ask(router, question(n))).text == "Cold."
        (row,) = router.health.view(trio.current_time())
    assert (row["peer"], row["state"]) == (OTHER.peer_id, "open")
    assert len(bad.calls) <= 4
