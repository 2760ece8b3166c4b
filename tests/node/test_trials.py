"""Engines of this machine that have the same model are timed once, when nobody asks for anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio
from shoal.node.routing.engines_here import compared
from shoal.node.routing.rates import Rates
from shoal.node.trials import AGAIN_S, LOOK_S, RETRY_S, TRIAL_S, Trials
from shoal.providers.base import Capabilities, ErrorKind, Finish, ModelInfo, Provider, Status, TextDelta, Usage

from .fakes_router import Pause, Scripted, Step, fails


def engine(name: str, *script: Step, models: tuple[str, ...] = ("m",), here: bool = True, **more: Any) -> Scripted:
    status = Status(ready=True, models=tuple(map(ModelInfo, models)), default_model=models[0])
    made = Scripted(name, list(script), status=status)
    made.runs_here = here
    for key, value in more.items():
        setattr(made, key, value)
    return made


def speaks(each_s: float, tokens: int = 48) -> list[Step]:
    pieces: list[Step] = [Pause(0.1)]
    for _ in range(tokens // 4):
        pieces += [TextDelta("four words of text"), Pause(4 * each_s)]
    return [*pieces, Usage(20, tokens), Finish("length", "m")]


class Source:
    """What the probes found, kept as a node keeps it."""

    def __init__(self, rates: Rates, *providers: Scripted) -> None:
        self.providers: Mapping[str, Provider] = {each.name: each for each in providers}
        self._rates, self.refreshed = rates, 0

    @property
    def statuses(self) -> dict[str, Status]:
        return {n: self._rates.rated(n, p.status) for n, p in self.providers.items() if isinstance(p, Scripted)}

    async def refresh(self) -> None:
        self.refreshed += 1


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def trials(*providers: Scripted, idle: bool = True) -> tuple[Trials, Source, Rates, Clock]:
    clock = Clock()
    rates = Rates(clock)
    source = Source(rates, *providers)
    made = Trials(source, source.providers, rates, idle=lambda: idle, after_s=20, clock=clock)
    return made, source, rates, clock


async def test_two_that_share_a_model_are_timed_by_tokens_and_with_a_date(autojump_clock: Any) -> None:
    slow, fast = engine("slow", *speaks(0.05)), engine("fast", *speaks(0.01))
    made, source, rates, clock = trials(slow, fast)
    await made.look()
    found = {row["provider"]: row for row in compared(source.providers, source.statuses, "m")}
    assert 19 < found["slow"]["decode_tps"] < 24
    assert 95 < found["fast"]["decode_tps"] < 120
    assert found["fast"]["measured_at"] == clock.now
    assert found["fast"]["expected_s"] < found["slow"]["expected_s"]
    assert source.refreshed == 1
    assert all(call.model == "m" and call.max_tokens is not None and call.max_tokens < 50 for call in fast.calls)
    calls = len(slow.calls)
    await made.look()
    assert len(slow.calls) == calls
    clock.now += AGAIN_S
    await made.look()
    assert len(slow.calls) > calls
    assert rates.known("slow", "m") is not None


async def test_nobody_is_asked_where_there_is_nothing_to_compare(autojump_clock: Any) -> None:
    vectors = ModelInfo("m", None, Capabilities(writes=False, embeds=True))
    encoder = engine("encoder", *speaks(0.01))
    encoder.status = Status(ready=True, models=(vectors,), default_model="m")
    down = engine("down", *speaks(0.01))
    down.status = Status(ready=False, reason="it is down", models=(ModelInfo("m"),))
    others = [
        engine("only", *speaks(0.01)),
        engine("else", *speaks(0.01), models=("other",)),
        engine("paid", *speaks(0.01), here=False),
        encoder,
        down,
    ]
    made, source, _, _ = trials(*others)
    await made.look()
    assert not any(each.calls for each in others)
    assert source.refreshed == 0
    assert compared(source.providers, source.statuses, "m") == []


async def test_an_engine_that_would_break_off_anothers_answer_is_left_alone(autojump_clock: Any) -> None:
    server, local = engine("server", *speaks(0.01), disturbs=True), engine("local", *speaks(0.01))
    made, *_ = trials(server, local)
    await made.look()
    assert (len(server.calls), len(local.calls)) == (0, 2)


async def test_requests_go_first(autojump_clock: Any) -> None:
    one, two = engine("one", *speaks(0.01)), engine("two", *speaks(0.01))
    made, *_ = trials(one, two, idle=False)
    await made.look()
    assert not one.calls


async def test_one_that_fails_or_hangs_or_says_nothing_is_left_for_an_hour(autojump_clock: Any) -> None:
    broken = engine("broken", *fails(ErrorKind.UPSTREAM, "no"))
    hung = engine("hung", Pause(10 * TRIAL_S))
    mute = engine("mute", Finish("stop", "m"))
    made, _, rates, clock = trials(broken, hung, mute)
    await made.look()
    counts = [len(each.calls) for each in (broken, hung, mute)]
    await made.look()
    assert [len(each.calls) for each in (broken, hung, mute)] == counts
    clock.now += RETRY_S
    await made.look()
    assert len(broken.calls) > counts[0]
    assert rates.view() == []


async def test_it_begins_after_a_while_and_never_where_it_is_switched_off(autojump_clock: Any) -> None:
    one, two = engine("one", *speaks(0.01)), engine("two", *speaks(0.01))
    made, source, rates, _ = trials(one, two)
    off = Trials(source, source.providers, rates, idle=lambda: True, after_s=0)
    await off.run()
    with trio.move_on_after(15):
        await made.run()
    assert not one.calls
    with trio.move_on_after(20 + LOOK_S):
        await made.run()
    assert one.calls
