"""Requests that show images, sounds or files: they pass by who reads text only, here and among the peers."""

from __future__ import annotations

from typing import Any

import pytest
from shoal.node.routing.ask import Ask
from shoal.node.routing.candidates import NodeCandidates
from shoal.node.routing.routes import Route, Routes, Target
from shoal.providers.base import (
    Capabilities,
    ErrorKind,
    GenerateRequest,
    ImagePart,
    ImageUrl,
    Message,
    ModelInfo,
    OtherPart,
    Provider,
    ProviderError,
    Status,
    TextPart,
)
from shoal.providers.openai_compat import Settings, build
from shoal.providers.settings import BuildContext

from .fakes_router import OTHER, Scripted, ScriptedPeer, Shelf, says

IMAGE = ImagePart(ImageUrl("data:image/png;base64,AAAA"))


def offering(name: str, model: str, *, images: bool = False, **status: Any) -> Scripted:
    info = ModelInfo(model, capabilities=Capabilities(images=images))
    return Scripted(name, says("x"), status=Status(ready=True, models=(info,), default_model=model, **status))


def showing(*parts: Any, **wish: Any) -> GenerateRequest:
    return GenerateRequest(messages=(Message("user", (TextPart("What is this?"), *(parts or (IMAGE,)))),), **wish)


def names(found: NodeCandidates, request: GenerateRequest, **how: Any) -> list[str]:
    return [candidate.name for candidate in found.candidates(request, Ask(request=request, asked=request, **how))]


@pytest.mark.parametrize("part", [IMAGE, OtherPart("input_audio"), OtherPart("file")])
async def test_what_is_no_text_goes_to_who_takes_it_wherever_he_stands(part: Any) -> None:
    found = NodeCandidates(Shelf(offering("a", "m1"), offering("b", "m2", images=True)))
    async with found.running():
        assert names(found, showing(part)) == ["b"]
        assert names(found, GenerateRequest.of("Hot?")) == ["a", "b"]
        assert names(found, showing(part, model="m1")) == []
        text = GenerateRequest(messages=(Message("user", (TextPart("Hot?"),)),))
        assert names(found, text) == ["a", "b"], "parts of text are text"


async def test_a_provider_of_any_model_that_lists_none_is_left_to_decide() -> None:
    anything = Scripted("any", says("x"), status=Status(ready=True, any_model=True))
    found = NodeCandidates(Shelf(offering("a", "m1"), anything))
    async with found.running():
        assert names(found, showing()) == ["any"]
        assert names(found, showing(model="m7")) == ["any"]


async def test_of_a_routes_targets_those_that_take_images_are_asked() -> None:
    route: Route = (Target(provider="a", model="m1"), Target(provider="b", model="m2"))
    found = NodeCandidates(Shelf(offering("a", "m1"), offering("b", "m2", images=True)), routes=Routes({"best": route}))
    async with found.running():
        assert names(found, showing(model="best")) == ["b"]
        assert names(found, GenerateRequest.of("Hot?", model="best")) == ["a", "b"]
    found = NodeCandidates(Shelf(offering("a", "m1")), routes=Routes({"best": route[:1]}))
    async with found.running():
        asked = showing(model="best")
        ask = Ask(request=asked, asked=asked)
        ask.request = found.settled(asked, ask)
        assert found.why_none(ask.request, ask).message.startswith("a: text only")


class Peers:
    def __init__(self, *, images: bool) -> None:
        self.peer = ScriptedPeer(OTHER.peer_id, says("x"))
        self.peer.takes_images = lambda model: images  # type: ignore[attr-defined]

    def candidates_for(self, model: str | None) -> list[Provider]:
        return [self.peer]


async def test_a_peer_is_shown_images_when_it_says_that_it_takes_them() -> None:
    for images in (True, False):
        found = NodeCandidates(Shelf(offering("a", "m1")), Peers(images=images))
        async with found.running():
            assert names(found, showing(), hops=1) == ([f"peer:{OTHER.peer_id[-6:]}"] if images else [])


@pytest.mark.parametrize("wish", [{}, {"model": "m1"}, {"provider": "a"}])
async def test_when_nobody_takes_images_those_who_would_answer_are_named(wish: dict[str, str]) -> None:
    found = NodeCandidates(Shelf(offering("a", "m1"), offering("far", "m3")))
    async with found.running():
        request = showing(**wish)
        ask = Ask(request=request, asked=request)
        assert found.candidates(request, ask) == []
        why = found.why_none(request, ask)
        assert (why.kind, why.code, why.param) == (ErrorKind.BAD_REQUEST, "images_not_supported", "messages")
        assert why.message.startswith("a: text only" if wish else "a, far: text only")
        unknown = showing(model="m5")
        assert found.why_none(unknown, Ask(request=unknown, asked=unknown)).code == "model_not_found"


async def test_an_upstream_of_text_says_so_itself_too_for_its_pool(tmp_path: Any) -> None:
    url, context = "http://127.0.0.1:9/v1", BuildContext(data_dir=tmp_path, environ={})
    provider = build("desk", Settings(base_url=url, models=("m1",), images=False), context)
    async with provider.running():
        with pytest.raises(ProviderError, match="images = false") as refused:
            async with provider.generate(showing(model="m1")):
                pass
        assert refused.value.kind is ErrorKind.UNSUPPORTED
