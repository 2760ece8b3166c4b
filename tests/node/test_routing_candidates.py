"""Who is a candidate, in which order, and what is said when nobody is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
from shoal.node.routing.ask import Ask
from shoal.node.routing.candidates import NodeCandidates
from shoal.protocols.peer_id import Identity, PeerId
from shoal.providers.base import GenerateRequest, ModelInfo, Provider, Status

from .fakes_router import OTHER, Scripted, ScriptedPeer, Shelf, says

THIRD = Identity.from_seed(bytes([3]) * 32).peer_id


def offering(name: str, *models: str, **status: Any) -> Scripted:
    infos = tuple(ModelInfo(m, 4096) for m in models)
    default = models[0] if models else None
    return Scripted(name, says("x"), status=Status(ready=True, models=infos, default_model=default, **status))


def unready(name: str, reason: str, *models: str) -> Scripted:
    return Scripted(name, says("x"), status=Status(ready=False, reason=reason, models=tuple(map(ModelInfo, models))))


class SomePeers:
    """A swarm of two peers that offer m9."""

    def __init__(self) -> None:
        self.providers = [ScriptedPeer(OTHER.peer_id, says("x")), ScriptedPeer(THIRD, says("x"))]

    def candidates_for(self, model: str | None) -> list[Provider]:
        return list(self.providers) if model in (None, "m9") else []


@contextlib.asynccontextmanager
async def source(*providers: Provider, share: tuple[str, ...] = (), **options: Any) -> AsyncGenerator[NodeCandidates]:
    found = NodeCandidates(Shelf(*providers, share=share), **options)
    async with found.running():
        yield found


def names(
    found: NodeCandidates, caller: str = "local", hops: int = 1, seen: tuple[PeerId, ...] = (), **wish: Any
) -> list[str]:
    asked = GenerateRequest.of("Hot?", **wish)
    ask = Ask(request=asked, asked=asked, caller=caller, hops=hops, seen=frozenset(seen))
    ask.request = request = found.settled(asked, ask)
    return [c.name if c.model is None else f"{c.name}/{c.model}" for c in found.candidates(request, ask)]


FIRST_PEER, SECOND_PEER = f"peer:{OTHER.peer_id[-6:]}", f"peer:{THIRD[-6:]}"


async def test_without_a_wish_the_ready_providers_come_in_order_and_then_the_peers() -> None:
    async with source(offering("a", "m1"), unready("b", "no key"), offering("c", "m2"), swarm=SomePeers()) as found:
        assert names(found) == ["a/m1", "c/m2", FIRST_PEER, SECOND_PEER]


async def test_a_named_model_goes_to_who_offers_it_here_and_then_in_the_swarm() -> None:
    async with source(
        offering("a", "m1"), offering("b", "m9"), offering("any", any_model=True), swarm=SomePeers()
    ) as found:
        assert names(found, model="m9") == ["b/m9", "any/m9", f"{FIRST_PEER}/m9", f"{SECOND_PEER}/m9"]


async def test_peers_come_where_the_configured_order_has_them() -> None:
    async with source(offering("a", "m1"), offering("b", "m1"), swarm=SomePeers(), order=("b", "peers")) as found:
        assert names(found) == ["b/m1", FIRST_PEER, SECOND_PEER, "a/m1"]


async def test_a_pinned_provider_is_the_only_candidate_by_any_of_its_names() -> None:
    async with source(offering("local_hf", "m1"), offering("b", "m1"), swarm=SomePeers()) as found:
        for pin in ("local_hf", "HF", "huggingface", " Local-HF "):
            assert names(found, provider=pin) == ["local_hf/m1"]
        request = GenerateRequest.of("Hot?", provider="HF")
        assert found.settled(request, Ask(request=request)).provider == "local_hf"


async def test_a_pinned_provider_without_the_model_is_no_candidate() -> None:
    async with source(offering("a", "m1"), offering("b", "m2")) as found:
        assert names(found, provider="a", model="m2") == []


async def test_peers_can_be_pinned_all_or_one() -> None:
    async with source(offering("a", "m1"), swarm=SomePeers()) as found:
        assert names(found, provider="peers") == [FIRST_PEER, SECOND_PEER]
        assert names(found, provider="swarm") == [FIRST_PEER, SECOND_PEER]
        assert names(found, provider=THIRD) == [SECOND_PEER]
        assert names(found, provider=SECOND_PEER) == [SECOND_PEER]


async def test_a_peer_may_use_shared_providers_only() -> None:
    async with source(offering("a", "m1"), offering("b", "m1"), share=("b",), swarm=SomePeers()) as found:
        assert names(found, caller=OTHER.peer_id, hops=0) == ["b/m1"]
        assert names(found, caller=OTHER.peer_id, hops=0, provider="a") == []


async def test_a_forwarded_request_goes_on_only_while_hops_are_left_and_never_back() -> None:
    async with source(offering("a", "m1"), swarm=SomePeers()) as found:
        assert names(found, caller=OTHER.peer_id, hops=1, seen=(OTHER.peer_id,)) == [SECOND_PEER]
        assert names(found, caller=OTHER.peer_id, hops=1, seen=(OTHER.peer_id, THIRD)) == []


async def test_without_forwarding_peers_are_no_candidates() -> None:
    async with source(offering("a", "m1"), swarm=SomePeers(), forward=False) as found:
        assert names(found) == ["a/m1"]


async def test_the_configured_provider_and_model_count_where_the_caller_names_none() -> None:
    async with source(offering("a", "m1"), offering("b", "m1", "m2"), provider="b", model="m2") as found:
        assert names(found) == ["b/m2"]
        assert names(found, provider="a", model="m1") == ["a/m1"]


async def test_a_candidate_knows_the_context_length_of_its_model() -> None:
    async with source(offering("a", "m1")) as found:
        request = GenerateRequest.of("Hot?")
        assert found.candidates(request, Ask(request=request))[0].context_length == 4096


async def test_a_provider_registered_a_moment_ago_may_be_tried_before_its_first_probe() -> None:
    registry = Shelf(offering("a", "m1"))
    found = NodeCandidates(registry)
    async with found.running():
        registry.providers["late"] = offering("late", "m5")
        assert names(found) == ["a/m1", "late"]
        assert names(found, model="m5") == []
        await found.refresh()
        assert names(found, model="m5") == [], "a round of probes was just now"


async def test_a_node_that_has_just_come_up_waits_for_its_peers(autojump_clock: trio.testing.MockClock) -> None:
    peers, told = SomePeers(), trio.Event()
    peers.providers, there = [], peers.providers
    asked = GenerateRequest.of("Hot?", model="m9")
    ask = Ask(request=asked, asked=asked)

    async def comes_up() -> None:
        await trio.sleep(0.3)
        peers.providers = there
        told.set()

    async with source(swarm=peers, gathering=lambda: not told.is_set()) as found, trio.open_nursery() as nursery:
        nursery.start_soon(comes_up)
        await found.refresh(asked, ask)
        assert len(found.candidates(asked, ask)) == 2


async def test_it_does_not_wait_for_ever_or_for_peers_that_it_may_not_ask(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked = GenerateRequest.of("Hot?", model="unknown")
    async with source(swarm=SomePeers(), gathering=lambda: True) as found:
        start = trio.current_time()
        await found.refresh(asked, Ask(request=asked, asked=asked, hops=0))
        assert trio.current_time() - start < 0.1
        await found.refresh(asked, Ask(request=asked, asked=asked))
        assert 1.0 < trio.current_time() - start < 3.5
        why = found.why_none(asked, Ask(request=asked, asked=asked))
        assert (why.code, why.retry_after) == ("gathering", 1.0)
        assert found.why_none(asked, Ask(request=asked, asked=asked, hops=0)).code == "model_not_found"


async def test_a_refresh_finds_what_has_come_up(autojump_clock: trio.testing.MockClock) -> None:
    provider = unready("a", "no server")
    async with source(provider) as found:
        assert names(found) == []
        provider.status = Status(ready=True, models=(ModelInfo("m1"),), default_model="m1")
        await trio.sleep(2)
        await found.refresh()
        assert names(found) == ["a/m1"]
        probes = provider.probes
        for _ in range(10):
            await found.refresh()
        assert provider.probes == probes, "requests that nobody can answer must not cause a storm of probes"


async def test_a_hanging_probe_holds_up_the_start_only_briefly_and_the_others_not_at_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Hanging(Scripted):
        async def probe(self) -> Status:
            await trio.sleep_forever()
            raise AssertionError

    start = trio.current_time()
    async with source(offering("a", "m1"), Hanging("b", says("x"))) as found:
        assert trio.current_time() - start < 2
        assert names(found) == ["a/m1", "b"]
        await trio.sleep(10)
        assert names(found) == ["a/m1"]
        assert "did not answer" in found.statuses["b"].reason


async def test_a_probe_that_raises_is_a_reason_without_its_words() -> None:
    class Broken(Scripted):
        async def probe(self) -> Status:
            raise ValueError("key sk-123")

    async with source(Broken("b", says("x"))) as found:
        assert found.statuses["b"] == Status(ready=False, reason="its probe failed with ValueError")


async def test_changes_are_announced(autojump_clock: trio.testing.MockClock) -> None:
    changes: list[float] = []
    provider = unready("a", "no server")
    async with source(provider, on_change=lambda: changes.append(trio.current_time())):
        assert len(changes) == 1
        await trio.sleep(40)
        assert len(changes) == 1
        provider.status = Status(ready=True)
        await trio.sleep(20)
        assert len(changes) == 2


# -- nobody ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "code", "words"),
    [
        ({"model": "m7"}, "model_not_found", "'m7'"),
        ({"model": "m3"}, None, "no key"),
        ({"provider": "nobody"}, "provider_not_found", "'nobody'"),
        ({"provider": "b"}, "provider_unavailable", "no key"),
        ({"provider": "a", "model": "m3"}, "model_not_found", "it offers: m1"),
        ({"provider": "off"}, "provider_unavailable", "switched off"),
        ({"provider": "peers"}, "provider_unavailable", "peer"),
    ],
)
async def test_the_reason_names_what_is_missing(wish: dict[str, str], code: str | None, words: str) -> None:
    registry = Shelf(offering("a", "m1"), unready("b", "no key", "m3"))
    registry.refused["off"] = "switched off; set enabled = true in [providers.off]"
    found = NodeCandidates(registry)
    async with found.running():
        request = GenerateRequest.of("Hot?", **wish)
        reason = found.why_none(request, Ask(request=request))
    assert reason.code == code
    assert words in reason.message


async def test_when_nobody_is_ready_every_reason_is_told() -> None:
    async with source(unready("a", "no key"), unready("b", "no server")) as found:
        request = GenerateRequest.of("Hot?")
        reason = found.why_none(request, Ask(request=request))
    assert (reason.code, "a: no key; b: no server" in reason.message) == ("no_provider", True)
