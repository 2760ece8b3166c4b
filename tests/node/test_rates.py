"""How fast models were: counted from whole answers, told steadily, kept over a restart, and used by the router."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.routing.ask import Ask
from shoal.node.routing.attempt import Attempt
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.candidates import NodeCandidates
from shoal.node.routing.rates import MAX_ENTRIES, OLD_S, Rates, kept
from shoal.node.routing.speed import Speed
from shoal.protocols.peer_id import PeerId
from shoal.providers.base import ModelInfo, Status, Usage
from shoal.providers.registry import Registry

from .fakes_router import QUESTION, Pause, Scripted, routing, says
from .fakes_router import ask as asked

STATUS = Status(ready=True, models=(ModelInfo("m"), ModelInfo("other")), default_model="m")


def attempt(first_ms: float = 100.0, ms: float = 1100.0, **more: Any) -> Attempt:
    return Attempt(**{"provider": "here", "outcome": "ok", "first_token_ms": first_ms, "ms": ms, **more})


def told(rates: Rates) -> ModelInfo:
    return rates.rated("here", STATUS).models[0]


def test_a_whole_answer_is_measured_with_its_date() -> None:
    rates = Rates(clock=lambda: 1_700_000_000.0)
    rates.answered(attempt(), "m", Usage(512, 101))
    model = told(rates)
    assert (model.decode_tps, model.prefill_tps, model.first_token_ms) == (100.0, 5120.0, 100.0)
    assert model.measured_at == 1_700_000_000
    assert rates.rated("here", STATUS).models[1] == ModelInfo("other")
    assert rates.rated("elsewhere", STATUS) is STATUS


@pytest.mark.parametrize(
    "changed", [{"outcome": "upstream"}, {"peer": "12D3KooW"}, {"way": "prefix"}, {"first_token_ms": None}]
)
def test_what_failed_or_was_made_elsewhere_or_was_no_whole_answer_does_not_count(changed: dict[str, Any]) -> None:
    rates = Rates()
    rates.answered(attempt(**changed), "m", Usage(512, 101))
    assert told(rates) == ModelInfo("m")


def test_short_answers_and_known_prompts_say_nothing_of_speed() -> None:
    rates = Rates()
    rates.answered(attempt(), "m", Usage(512, 3, 500))
    assert (told(rates).decode_tps, told(rates).prefill_tps, told(rates).first_token_ms) == (None, None, 100.0)


def test_small_changes_are_not_told_so_that_adverts_stay_as_they_are() -> None:
    now = 0.0
    rates = Rates(clock=lambda: now)
    rates.answered(attempt(), "m", Usage(512, 101))
    before = told(rates)
    for _ in range(20):
        rates.answered(attempt(ms=1150.0), "m", Usage(512, 101))
        assert told(rates) == before
    now = OLD_S + 1
    rates.answered(attempt(ms=1150.0), "m", Usage(512, 101))
    assert told(rates).decode_tps == pytest.approx(95.2, abs=0.5)
    for _ in range(20):
        rates.answered(attempt(ms=5100.0), "m", Usage(512, 101))
    assert told(rates).decode_tps == pytest.approx(20, rel=0.3)


def test_news_is_told_at_once_and_only_when_it_is_some() -> None:
    rates, news = Rates(clock=lambda: 0.0), []
    rates.on_news = lambda: news.append(told(rates).first_token_ms)
    for _ in range(5):
        rates.answered(attempt(), "m", Usage(512, 101))
    assert news == [100.0]
    rates.answered(attempt(first_ms=390.0), "m", Usage(512, 101))
    assert len(news) == 2
    own = Status(ready=True, models=(ModelInfo("m", decode_tps=7.0),))
    assert rates.rated("here", own).models[0].decode_tps == 7.0
    rates.answered(attempt(first_ms=187.0, ms=1187.0), "m", Usage(512, 101))
    assert len(news) == 2


def test_a_providers_own_figures_go_before_these() -> None:
    rates = Rates()
    rates.answered(attempt(), "m", Usage(512, 101))
    own = Status(ready=True, models=(ModelInfo("m", decode_tps=77.0),))
    assert rates.rated("here", own).models[0].decode_tps == 77.0
    assert rates.rated("here", own).models[0].first_token_ms == 100.0


def test_a_model_that_was_loaded_first_is_not_taken_for_a_slow_one() -> None:
    rates = Rates()
    for first_ms in (5000.0, 50.0, 6000.0):
        rates.answered(attempt(first_ms=first_ms), "m", Usage(512, 101))
    rate = rates.known("here", "m")
    assert rate is not None
    assert rate.first_token_ms == pytest.approx(50 + 0.03 * 5950)


def test_what_a_trial_found_counts_for_all_before() -> None:
    rates = Rates(clock=lambda: 1000.0)
    rates.answered(attempt(first_ms=5000.0), "m", Usage(512, 101))
    rates.timed("here", "m", 88.0, 40.0)
    known = told(rates)
    assert (known.decode_tps, known.first_token_ms, known.measured_at) == (88.0, 40.0, 1000.0)
    assert rates.known("nobody", "m") is None


async def test_they_outlast_a_restart_and_a_broken_file_does_not(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    async with kept(Rates(), file):
        pass
    assert not file.exists()
    rates = Rates()
    async with kept(rates, file):
        rates.answered(attempt(), "m", Usage(512, 101))
    again = Rates()
    async with kept(again, file):
        assert told(again) == told(rates)
        assert again.view()[0]["model"] == "m"
    file.write_bytes(b"{")
    async with kept(Rates(), file):
        pass


@given(st.binary(max_size=100))
def test_bytes_that_are_no_file_of_ours_are_one_error(data: bytes) -> None:
    try:
        Rates().load(data)
    except ValueError:
        return


def test_only_so_many_are_kept() -> None:
    rates = Rates()
    for at in range(MAX_ENTRIES + 10):
        rates.answered(attempt(), f"m{at}", Usage(10, 20))
    assert len(rates.view()) == MAX_ENTRIES


def test_callers_who_share_a_flight_count_once() -> None:
    rates = Rates()
    flight = SimpleNamespace(ended=True, failure=None, peer=None, cache="miss", route=[attempt()], model="m", events=[])
    for _ in range(3):
        rates.left(None, flight, None)  # type: ignore[arg-type]
    assert rates.version == 1


# -- the faster engine of this machine ------------------------------------------------------------------------


def engine(name: str, *, here: bool = True, expected_s: float | None = None, peer: str | None = None) -> Candidate:
    of = PeerId(peer) if peer is not None else None
    return Candidate(provider=Scripted(name, says("x")), name=name, here=here, expected_s=expected_s, peer=of)


def names(speed: Speed, *candidates: Candidate) -> list[str]:
    return [candidate.name for candidate in speed.ranked(candidates, 1.0, None)]


def test_an_engine_keeps_its_place_until_another_was_measured_to_be_faster() -> None:
    speed, server, local = Speed(), engine("server"), engine("local")
    assert names(speed, server, local) == ["server", "local"]
    speed.answered(server, 0.5, 100, 5.0, now=0)
    assert names(speed, server, local) == ["server", "local"]
    speed.answered(local, 0.1, 100, 1.0, now=0)
    assert names(speed, server, local) == ["local", "server"]
    assert names(speed, local, server) == ["local", "server"]


def test_what_was_known_before_counts_where_nothing_was_measured_lately() -> None:
    speed, server = Speed(), engine("server")
    speed.answered(server, 0.5, 100, 5.0, now=0)
    assert names(speed, server, engine("local", expected_s=1.0)) == ["local", "server"]
    assert names(speed, server, engine("local", expected_s=9.0)) == ["server", "local"]


def test_tokens_count_and_not_the_events_that_they_come_in() -> None:
    speed = Speed()
    many, one = engine("many", expected_s=1.0), engine("one", expected_s=2.0)
    speed.answered(many, 0.1, 10, 1.0, now=0)  # ten tokens an event: 0.1 s each
    speed.answered(one, 0.1, 100, 2.0, now=0)
    assert names(speed, one, many) == ["many", "one"]
    for _ in range(3):
        speed.failed(many, now=0)
    assert names(speed, one, many) == ["one", "many"]


def test_a_fifth_is_no_difference_and_others_keep_their_places() -> None:
    speed = Speed()
    paid, peer = engine("paid", here=False), engine("peer", here=False, peer="12D3KooWx")
    slow, fast, alike = (engine(n, expected_s=s) for n, s in (("slow", 9.0), ("fast", 1.0), ("alike", 1.1)))
    assert names(speed, alike, fast) == ["alike", "fast"]
    assert names(speed, slow, paid, fast, peer) == ["fast", "paid", "slow", "peer"]


async def test_a_router_turns_to_the_faster_engine_once_it_has_measured_both(autojump_clock: Any) -> None:
    slow = Scripted("server", [Pause(2.0), *says("one two three")])
    fast = Scripted("local", [Pause(0.1), *says("one two three")])
    places = [Candidate(provider=each, name=each.name, model="m1", here=True) for each in (slow, fast)]
    async with routing(*places) as router:
        assert (await asked(router)).provider == "server"
        router.speed.answered(places[1], 0.1, 100, 0.2, trio.current_time())
        assert [(await asked(router)).provider for _ in range(2)] == ["local", "local"]


class Engine(Scripted):
    runs_here = True

    async def probe(self) -> Status:
        return STATUS


@pytest.mark.parametrize(("order", "here"), [((), True), (("b", "a"), False)])
async def test_an_order_that_the_owner_has_set_is_kept(order: tuple[str, ...], here: bool) -> None:
    rates = Rates()
    rates.answered(attempt(provider="b"), "m", Usage(512, 101))
    registry = Registry.of(Engine("a", says("x")), Engine("b", says("x")), order=order)
    source = NodeCandidates(registry, order=order, rated=rates.rated)
    async with source.running():
        asked = Ask(request=QUESTION, deadline=trio.current_time() + 10)
        found = {candidate.name: candidate for candidate in source.candidates(QUESTION, asked)}
    assert {candidate.here for candidate in found.values()} == {here}
    assert found["a"].expected_s is None
    assert found["b"].expected_s == (pytest.approx(1.1) if here else None)
