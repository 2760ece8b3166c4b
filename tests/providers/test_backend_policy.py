"""The policy of the backend manager, for every strategy: pure, so hypothesis may try what it likes."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.providers.backend_manager.policy import (
    DOWN_MAX_S,
    STRATEGIES,
    STRIKES,
    TRIALS,
    Breaker,
    Chooser,
    Pace,
    Seen,
    Strategy,
)
from shoal.providers.base import POLICY, ErrorKind, ProviderError

DOWN = ProviderError(ErrorKind.CONNECTION, "it is not there")
seen = st.builds(
    Seen,
    name=st.text("abcdefgh", min_size=1, max_size=3),
    weight=st.floats(0.01, 100),
    mine=st.integers(0, 50),
    others=st.integers(0, 50),
    width=st.integers(1, 32),
    expected_s=st.none() | st.floats(0.001, 1000),
    failing=st.floats(0, 1),
    tried=st.integers(0, 10),
)
pools = st.lists(seen, min_size=1, max_size=8, unique_by=lambda each: each.name)


def chooser(strategy: Strategy, seed: int = 0, **more: Any) -> Chooser:
    return Chooser(strategy, random_=random.Random(seed), **more)


def measured(name: str, expected_s: float | None, **more: Any) -> Seen:
    return Seen(name=name, expected_s=expected_s, tried=TRIALS, **more)


# -- the order


@given(pools=st.lists(pools, min_size=1, max_size=10), strategy=st.sampled_from(STRATEGIES), seed=st.integers())
def test_every_backend_stands_in_every_order_once(pools: list[list[Seen]], strategy: Strategy, seed: int) -> None:
    choose = chooser(strategy, seed)
    for backends in pools:
        ordered = choose.order(backends)
        assert sorted(each.name for each in ordered) == sorted(each.name for each in backends)


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_round_robin_gives_each_exactly_its_share_of_a_round(weights: list[int]) -> None:
    backends = [Seen(name=f"b{i}", weight=weight) for i, weight in enumerate(weights)]
    choose = chooser("round_robin")
    chosen = Counter(choose.order(backends)[0].name for _ in range(sum(weights)))
    assert chosen == {f"b{i}": weight for i, weight in enumerate(weights)}


@given(backends=pools)
def test_least_loaded_chooses_nobody_who_is_busier_than_another(backends: list[Seen]) -> None:
    chosen = chooser("least_loaded").order(backends)[0]
    assert chosen.load == min(each.load for each in backends)


def test_least_loaded_does_not_always_choose_the_first_of_the_idle() -> None:
    choose, backends = chooser("least_loaded"), [Seen(name=name) for name in "abc"]
    chosen = Counter(choose.order(backends)[0].name for _ in range(30))
    assert chosen == {"a": 10, "b": 10, "c": 10}


def test_least_loaded_counts_what_others_have_running_there_and_the_weight() -> None:
    backends = [Seen(name="a", others=4), Seen(name="b", mine=3), Seen(name="c", mine=4, weight=2)]
    assert [each.name for each in chooser("least_loaded").order(backends)] == ["c", "b", "a"]


@given(others=st.lists(st.floats(0.5, 10), min_size=1, max_size=5), seed=st.integers())
def test_best_performance_never_starves_a_new_backend(others: list[float], seed: int) -> None:
    backends = [measured(f"b{i}", seconds) for i, seconds in enumerate(others)]
    ordered = chooser("best_performance", seed).order([*backends, Seen(name="new")])
    assert ordered[0].name == "new"


def test_but_it_tries_a_new_one_with_one_request_at_a_time() -> None:
    backends = [measured("old", 1.0), Seen(name="new", mine=1)]
    assert chooser("best_performance", explore=0).order(backends)[0].name == "old"


def test_best_performance_explores_by_its_share_and_mostly_takes_the_best() -> None:
    choose = chooser("best_performance", 7, explore=0.1)
    backends = [measured("fast", 1.0), measured("slow", 3.0), measured("slower", 4.0)]
    chosen = Counter(choose.order(backends)[0].name for _ in range(2000))
    assert 0.87 < chosen["fast"] / 2000 < 0.93
    assert min(chosen["slow"], chosen["slower"]) > 50


@given(
    answers=st.lists(st.floats(0.01, 5), min_size=1, max_size=20),
    failures=st.integers(1, 50),
    now=st.floats(0, 1e6),
)
def test_who_fails_fast_never_looks_faster_than_before(answers: list[float], failures: int, now: float) -> None:
    pace = Pace()
    for seconds in answers:
        pace.answered(now, first_token_s=seconds, tokens=10, seconds=1.0)
    before = pace.expected_s(now)
    for _ in range(failures):
        pace.failed(now)
    after = pace.expected_s(now)
    assert before is not None
    assert after is not None
    assert after > before
    assert pace.failing(now) <= 1.0


def test_a_backend_that_only_ever_failed_comes_after_one_that_answers_slowly() -> None:
    bad, slow = Pace(), Pace()
    for _ in range(3):
        bad.failed(0.0)
        slow.answered(0.0, first_token_s=4.0, tokens=20, seconds=4.0)
    backends = [
        Seen(name=name, expected_s=pace.expected_s(0.0), failing=pace.failing(0.0), tried=pace.attempts)
        for name, pace in (("bad", bad), ("slow", slow))
    ]
    assert chooser("best_performance", explore=0).order(backends)[0].name == "slow"


def test_failures_are_forgotten_with_time() -> None:
    pace = Pace()
    pace.failed(0.0)
    assert pace.failing(60.0) == pytest.approx(pace.failing(0.0) / 2)
    assert pace.failing(3600.0) < 1e-6


# -- health

acts = st.lists(
    st.tuples(
        st.sampled_from(["ok", "fail", "left", "check ok", "check bad", "check slow"]),
        st.sampled_from([kind for kind in ErrorKind if kind is not ErrorKind.CANCELLED]),
        st.floats(0, 100),
    ),
    max_size=60,
)


@given(acts=acts)
def test_whatever_happens_a_backend_comes_back_and_only_one_trial_runs(
    acts: list[tuple[str, ErrorKind, float]],
) -> None:
    breaker, now = Breaker(), 0.0
    for act, kind, pause in acts:
        now += pause
        if act.startswith("check"):
            fault = "" if act == "check ok" else "it is not well"
            breaker.checked(now, fault, hard=act == "check bad", again_s=10.0)
        elif breaker.allows(now):
            trial = breaker.began(now)
            assert not (trial and breaker.allows(now)), "a second request beside the trial"
            if act == "ok":
                breaker.answered(trial=trial)
                assert breaker.state(now) == "up" or not trial
            elif act == "fail":
                breaker.failed(ProviderError(kind, "no", retry_after=5.0), now, trial=trial)
            else:
                breaker.left(trial=trial)
        assert breaker.wait_s(now) <= DOWN_MAX_S * 2
    assert breaker.allows(now + DOWN_MAX_S * 2), "nobody is down for ever"


@given(hours=st.floats(0, 1e7))
def test_an_idle_backend_stays_up(hours: float) -> None:
    assert Breaker().state(hours) == "up"


def test_failures_in_a_row_take_it_down_and_a_trial_brings_it_back() -> None:
    breaker = Breaker()
    for _ in range(STRIKES - 1):
        breaker.failed(DOWN, 0.0, trial=breaker.began(0.0))
    assert breaker.state(0.0) == "up"
    breaker.failed(DOWN, 0.0, trial=breaker.began(0.0))
    assert (breaker.state(0.0), breaker.reason) == ("down", "it is not there")
    assert breaker.state(2.0) == "half_open"
    breaker.answered(trial=breaker.began(2.0))
    assert (breaker.state(2.0), breaker.reason) == ("up", "")


def test_a_failed_trial_doubles_the_time_until_the_next() -> None:
    breaker, now, waits = Breaker(), 0.0, []
    for _ in range(STRIKES):
        breaker.failed(DOWN, now, trial=False)
    for _ in range(7):
        waits.append(breaker.wait_s(now))
        now += breaker.wait_s(now)
        breaker.failed(DOWN, now, trial=breaker.began(now))
    assert waits == [2, 4, 8, 16, 32, 60, 60]


def test_successes_between_failures_keep_it_up() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(DOWN, 0.0, trial=False)
        breaker.answered(trial=False)
    assert breaker.state(0.0) == "up"


@pytest.mark.parametrize("kind", [kind for kind in ErrorKind if not POLICY[kind].breaker])
def test_a_failure_that_is_the_requests_own_counts_against_nobody(kind: ErrorKind) -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(ProviderError(kind, "no"), 0.0, trial=False)
    assert breaker.state(0.0) == "up"


def test_a_rate_limit_rests_it_for_as_long_as_it_asked() -> None:
    breaker = Breaker()
    breaker.failed(ProviderError(ErrorKind.RATE_LIMITED, "slow down", retry_after=17), 0.0, trial=False)
    assert breaker.wait_s(0.0) == 17
    assert breaker.state(17.0) == "half_open"


def test_a_refused_key_rests_it_at_once() -> None:
    breaker = Breaker()
    breaker.failed(ProviderError(ErrorKind.AUTH, "the key is refused"), 0.0, trial=False)
    assert breaker.state(0.0) == "down"


def test_a_check_takes_it_down_and_the_next_good_one_puts_it_on_trial() -> None:
    breaker = Breaker()
    breaker.checked(0.0, "it is still loading its model", again_s=10)
    assert (breaker.state(0.0), breaker.reason) == ("down", "it is still loading its model")
    breaker.checked(1.0)
    assert breaker.state(1.0) == "half_open"
    breaker.answered(trial=breaker.began(1.0))
    assert breaker.state(1.0) == "up"


def test_one_slow_check_of_a_busy_server_takes_nobody_down_but_two_do() -> None:
    breaker = Breaker()
    breaker.checked(0.0, "it did not answer", hard=False)
    assert breaker.state(0.0) == "up"
    breaker.checked(1.0, "it did not answer", hard=False)
    assert breaker.state(1.0) == "down"


def test_a_good_check_does_not_excuse_failed_requests() -> None:
    breaker = Breaker()
    for _ in range(STRIKES):
        breaker.failed(DOWN, 0.0, trial=False)
    breaker.checked(0.5)
    assert breaker.state(0.5) == "down"
