"""The walk as a pure machine: whatever fails how, attempts are bounded, spaced, and none is in vain."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.health import Health
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.walk import Walk
from shoal.providers.base import POLICY, ErrorKind, ProviderError

from .fakes_router import OTHER, Scripted, says

LIMITS = RoutingLimits()
HERE = Scripted("here", says("x"))
DEADLINE = 120.0

kinds = st.sampled_from([kind for kind in ErrorKind if kind is not ErrorKind.CANCELLED])
failures = st.lists(
    st.tuples(kinds, st.one_of(st.none(), st.floats(0.0, 40.0)), st.booleans(), st.floats(0.0, 3.0)), max_size=60
)


def made(count: int, peers: int) -> list[Candidate]:
    return [
        Candidate(
            provider=HERE,
            name=f"c{i}",
            model="m1",
            peer=OTHER.peer_id if i < peers else None,
            context_length=(i + 1) * 1000 if i % 3 else None,
        )
        for i in range(count)
    ]


@given(failures, st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
@settings(max_examples=300)
def test_whatever_fails_the_walk_ends_and_asks_nobody_too_often(
    script: list[tuple[ErrorKind, float | None, bool, float]], count: int, peers: int, seed: int
) -> None:
    dice = random.Random(seed)
    health = Health(jitter=dice)
    walk = Walk(made(count, peers), health=health, limits=LIMITS, jitter=dice)
    tries, last_try = Counter[str](), dict[str, float]()
    now, begun, silent = 0.0, False, set[str]()
    outcomes = iter(script)
    while (step := walk.step(now, DEADLINE)) is not None:
        assert step.at < DEADLINE
        assert step.at - now <= LIMITS.retry_after_max_s, "nobody waits longer than that"
        if step.at > now:
            now = step.at
            if (block := health.blocked(step.candidate, now, last_resort=True)) is not None:
                walk.held(step, block, now)
                continue
        name = step.candidate.name
        assert name not in silent, "a silent one is not tried twice"
        if name in last_try:
            assert now - last_try[name] >= LIMITS.retry_min_s, "a second try is not at once"
        tries[name] += 1
        assert tries[name] <= 2
        health.began(step.candidate, now)
        kind, retry_after, adds, took = next(outcomes, (ErrorKind.UPSTREAM, None, False, 0.0))
        now += took
        last_try[name] = now
        if adds:
            begun = True
            kind = ErrorKind.INTERRUPTED
        if kind in (ErrorKind.FIRST_TOKEN_TIMEOUT, ErrorKind.IDLE_TIMEOUT):
            silent.add(name)
        error = ProviderError(kind, "it fails", retry_after=retry_after)
        health.failed(step.candidate, error, now)
        walk.failed(step, error, now, begun=begun, added=adds)
        taken = begun and kind is ErrorKind.BAD_REQUEST  # somebody has taken the request and begun to answer it
        if POLICY[kind].next == "no" and step.candidate.peer is None and not taken:
            assert walk.step(now, DEADLINE) is None, "what is refused here is not taken elsewhere"
    assert walk.tries <= LIMITS.max_attempts
    assert walk.error is not None


@given(st.integers(0, 99))
def test_without_fallback_nobody_else_is_asked_whatever_happens(seed: int) -> None:
    dice = random.Random(seed)
    walk = Walk(made(5, 0), health=Health(), limits=LIMITS, allow_fallback=False, jitter=dice)
    asked = set()
    now = 0.0
    while (step := walk.step(now, DEADLINE)) is not None:
        asked.add(step.candidate.name)
        now = step.at
        kind = dice.choice([ErrorKind.UPSTREAM, ErrorKind.AUTH, ErrorKind.INTERRUPTED, ErrorKind.RATE_LIMITED])
        walk.failed(step, ProviderError(kind, "", retry_after=dice.choice((None, 0.5, 5.0))), now)
        walk.offer(made(9, 0))
        assert walk.rival(now) is None
    assert asked == {"c0"}


def test_once_the_caller_has_text_the_others_go_before_a_second_try() -> None:
    walk = Walk(made(3, 0), health=Health(), limits=LIMITS)
    order = []
    for _ in range(3):
        step = walk.step(0.0, DEADLINE)
        assert step is not None
        order.append((step.candidate.name, step.at))
        walk.failed(step, ProviderError(ErrorKind.CONNECTION, "lost"), 0.0, begun=True)
    assert order == [("c0", 0.0), ("c1", 0.0), ("c2", 0.0)]


def test_a_peer_whose_connection_is_lost_is_not_called_again_before_the_others() -> None:
    walk = Walk(made(2, 1), health=Health(), limits=LIMITS)
    first = walk.step(0.0, DEADLINE)
    assert first is not None
    walk.failed(first, ProviderError(ErrorKind.CONNECTION, "lost"), 0.0)
    second = walk.step(0.0, DEADLINE)
    assert second is not None
    assert (second.candidate.name, second.at) == ("c1", 0.0)
