"""What the owner lends to peers: limits, hours, the pause, and the accounts of what they have had."""

from __future__ import annotations

import datetime
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from shoal.node.config import ConfigError
from shoal.node.config_file import load_config
from shoal.node.swarm.rules import ShareLimits, ShareRule
from shoal.node.swarm.sharing import Sharing
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, Provider, ProviderError, Status, TextDelta, Usage

from .fakes_swarm import IDENTITIES

YOU, OTHER = (identity.peer_id for identity in IDENTITIES[:2])
REQUEST = GenerateRequest.of("What is the opposite of hot?")
NOON = datetime.datetime(2026, 6, 1, 12, 0).timestamp()


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Slow(Provider):
    """Answers with 10 tokens once `go` is set."""

    name = "slow"

    def __init__(self) -> None:
        self.go = trio.Event()
        self.go.set()

    async def probe(self) -> Status:
        return Status(ready=True)

    @asynccontextmanager
    async def generate(self, request):
        async def events():
            await self.go.wait()
            yield TextDelta("cold")
            yield Usage(4, 6)
            yield Finish("stop")

        yield events()


@pytest.fixture
def clock():
    return Clock()


async def use(sharing: Sharing, provider: Provider, *, model: str | None = None, peer=YOU) -> None:
    lent = sharing.lend("slow", provider, model, peer)
    assert lent is not None
    async with lent.generate(REQUEST) as events:
        assert len([event async for event in events]) == 3


def refused(sharing: Sharing, model: str | None = None, peer=YOU) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        sharing.check({"slow": model}, peer)
    assert sharing.lend("slow", Slow(), model, peer) is None
    return caught.value


async def test_without_a_rule_everything_that_is_shared_is_lent(clock):
    sharing = Sharing(clock=clock)
    for _ in range(100):
        await use(sharing, Slow())
    sharing.check({"slow": None}, YOU)


async def test_requests_a_minute_are_those_of_all_peers_together(clock):
    sharing = Sharing({"slow": ShareRule(requests_per_minute=2)}, clock=clock)
    await use(sharing, Slow())
    clock.now += 20
    await use(sharing, Slow(), peer=OTHER)
    error = refused(sharing)
    assert error.kind is ErrorKind.RATE_LIMITED
    assert error.retry_after == pytest.approx(40)
    clock.now += 41
    await use(sharing, Slow())


async def test_tokens_a_day_begin_anew_at_midnight_and_hold_over_a_restart(clock, tmp_path):
    rules = {"slow": ShareRule(tokens_per_day=15)}
    sharing = Sharing(rules, clock=clock, path=tmp_path / "sharing.json")
    await use(sharing, Slow())
    await use(sharing, Slow())
    assert refused(sharing).kind is ErrorKind.QUOTA
    sharing.close()
    sharing = Sharing(rules, clock=clock, path=tmp_path / "sharing.json")
    error = refused(sharing)
    assert error.retry_after == pytest.approx(12 * 3600)
    clock.now += error.retry_after + 1
    await use(sharing, Slow())
    assert (tmp_path / "sharing.json").stat().st_mode & 0o777 == 0o600


async def test_no_more_run_at_once_than_the_owner_allows(clock):
    sharing, provider = Sharing({"slow": ShareRule(concurrent=1)}, clock=clock), Slow()
    provider.go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, sharing, provider)
        await trio.testing.wait_all_tasks_blocked()
        assert refused(sharing, peer=OTHER).kind is ErrorKind.OVERLOADED
        provider.go.set()
    await use(sharing, provider, peer=OTHER)


async def test_a_models_limits_count_beside_the_providers(clock):
    rule = ShareRule(requests_per_minute=3, models={"big": ShareLimits(requests_per_minute=1)})
    sharing = Sharing({"slow": rule}, clock=clock)
    await use(sharing, Slow(), model="big")
    refused(sharing, "big")
    await use(sharing, Slow(), model="small")
    await use(sharing, Slow(), model="small")
    refused(sharing, "small")


@pytest.mark.parametrize(
    ("hours", "at", "lent"),
    [
        (("09:00-17:00",), 12, True),
        (("09:00-17:00",), 17, False),
        (("22:00-06:00",), 23, True),
        (("22:00-06:00",), 5, True),
        (("22:00-06:00",), 12, False),
        (("00:00-24:00",), 12, True),
        (("01:00-02:00", "11:00-13:00"), 12, True),
    ],
)
async def test_the_hours_of_the_day_are_local_and_may_pass_midnight(clock, hours, at, lent):
    clock.now = datetime.datetime(2026, 6, 1, at, 0).timestamp()
    sharing = Sharing({"slow": ShareRule(hours=hours)}, clock=clock)
    assert sharing.lends("slow") is lent
    assert (sharing.refusal("slow", None, YOU) is None) is lent


async def test_only_the_peers_that_are_named_get_anything(clock):
    sharing = Sharing({"slow": ShareRule(peers=(OTHER,))}, clock=clock)
    assert refused(sharing).kind is ErrorKind.AUTH
    await use(sharing, Slow(), peer=OTHER)
    assert sharing.told("slow") == {}  # which ones is nobody's business


async def test_a_pause_takes_everything_away_and_holds_over_a_restart(clock, tmp_path):
    changes = []
    sharing = Sharing(clock=clock, path=tmp_path / "sharing.json", on_change=lambda: changes.append(1))
    sharing.pause(None)
    assert refused(sharing).kind is ErrorKind.UNAVAILABLE
    assert not sharing.lends("slow")
    sharing = Sharing(clock=clock, path=tmp_path / "sharing.json")
    assert sharing.paused
    sharing.resume()
    assert sharing.lends("slow")
    sharing.pause(60)
    assert refused(sharing).retry_after == pytest.approx(60)
    clock.now += 61
    assert sharing.lends("slow")
    assert changes


async def test_a_pause_that_is_over_is_told_to_the_peers(autojump_clock, clock):
    changes = []
    sharing = Sharing(clock=lambda: clock.now + trio.current_time(), on_change=lambda: changes.append(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sharing.run)
        sharing.pause(60)
        await trio.sleep(50)
        assert len(changes) == 1
        await trio.sleep(40)
        assert len(changes) == 2
        nursery.cancel_scope.cancel()


async def test_what_each_peer_has_had_is_counted(clock):
    sharing = Sharing(clock=clock)
    for _ in range(3):
        await use(sharing, Slow())
    assert sharing.consumed(YOU) == {
        "requests": 3,
        "prompt_tokens": 12,
        "completion_tokens": 18,
        "first": NOON,
        "last": NOON,
    }
    assert sharing.consumed(OTHER) is None


async def test_a_damaged_file_costs_the_accounts_and_nothing_else(clock, tmp_path):
    (tmp_path / "sharing.json").write_text("{")
    sharing = Sharing(clock=clock, path=tmp_path / "sharing.json")
    await use(sharing, Slow())


def test_rules_come_from_the_configuration(tmp_path):
    file = tmp_path / "shoal.toml"
    file.write_text(
        '[share.local_hf]\nrequests_per_minute = 30\nhours = ["22:00-06:00"]\n'
        "[share.local_hf.models.smollm2]\ntokens_per_day = 100000\n"
    )
    rule = load_config(file, environ={}).config.share["local_hf"]
    assert rule.requests_per_minute == 30
    assert rule.models["smollm2"].tokens_per_day == 100_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[share.x]\nhours = ["late"]\n', ("share.x.hours[0]", "22:00-06:00")),
        ('[share.x]\npeers = ["bob"]\n', ("share.x.peers[0]", "shoal peers")),
        ("[share.x]\nrequests_per_minut = 5\n", ("requests_per_minute",)),
        ("[share.x]\nconcurrent = -1\n", ("share", "at least 0")),
        ('[share.x.models.y]\nhours = ["25:00-26:00"]\n', ("share.x.models.y.hours[0]",)),
    ],
)
def test_a_rule_that_is_wrong_is_one_line_with_the_key_and_the_remedy(tmp_path, text, words):
    file = tmp_path / "shoal.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ={})
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
