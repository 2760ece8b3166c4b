"""Going on at a peer, between two nodes: what its advert says, what it is sent, and who it says is at work."""

from __future__ import annotations

from msgspec.structs import replace
from shoal.node.swarm.advert import OfferedModel
from shoal.providers.base import Capabilities, Finish, GenerateRequest, ModelInfo, TextDelta

from .fakes_swarm import offering, swarm_of, until

REQUEST = GenerateRequest.of("What is the opposite of hot?", model="tiny", temperature=0.0)


async def test_a_peer_continues_when_one_of_its_providers_for_the_model_does(autojump_clock) -> None:
    async with swarm_of(2) as (one, two):
        (provider,) = one.swarm.candidates_for("tiny")
        assert provider.info("tiny") == ModelInfo("tiny", context_length=2048)
        assert provider.info("other") is None
        assert provider.info(None) is None
        able = OfferedModel("local_hf", ModelInfo("tiny", 4096, Capabilities(continues=True)))
        two.content = replace(offering(), models=(*offering().models, able))
        two.swarm.changed()
        await until(lambda: provider.info("tiny").capabilities.continues)
        assert provider.info("tiny").context_length == 4096


async def test_the_text_so_far_travels_with_the_request(autojump_clock) -> None:
    async with swarm_of(2) as (one, two):
        two.words = ("ld.", Finish("stop", "tiny"))
        (provider,) = one.swarm.candidates_for("tiny")
        asked = {"deadline_s": 60.0, "hops": 0, "seen": frozenset()}
        async with provider.generate_for(replace(REQUEST, prefix="Co"), **asked) as answer:
            assert [event async for event in answer] == [TextDelta("ld."), Finish("stop", "tiny")]
        assert two.asked[0][0].prefix == "Co"


async def test_who_is_at_work_is_known_with_the_first_word(autojump_clock) -> None:
    async with swarm_of(2) as (one, two):
        two.words = ("Co", 5, "ld.", Finish("stop", "tiny"))
        (provider,) = one.swarm.candidates_for("tiny")
        async with provider.generate(REQUEST) as answer:
            assert answer.accepted is None
            assert await anext(answer) == TextDelta("Co")
            assert answer.accepted == {"provider": "fake", "model": "tiny"}
            assert answer.result is None
