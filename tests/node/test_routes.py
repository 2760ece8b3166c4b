"""Routes: a model name that callers use, who stands behind it in which order, and what is kept of the answer."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from shoal.node.config import ConfigError
from shoal.node.config_file import load_config
from shoal.node.provider_tables import build_registry, check_routes
from shoal.node.routing.ask import Ask
from shoal.node.routing.candidates import NodeCandidates
from shoal.node.routing.router import Router
from shoal.node.routing.routes import Routes, Target, drawn
from shoal.providers.base import Completion, ErrorKind, GenerateRequest, ModelInfo, Provider, Status

from .fakes_router import ME, OTHER, Pause, Scripted, ScriptedPeer, Shelf, Step, Told, ask, caching, fails, says


def to(provider: str, model: str | None = None, **more: Any) -> Target:
    return Target(provider=provider, model=model, **more)


def offering(name: str, *models: str, script: list[Step] | None = None, any_model: bool = False) -> Scripted:
    infos = tuple(ModelInfo(m, 4096) for m in models)
    status = Status(ready=True, models=infos, default_model=models[0] if models else None, any_model=any_model)
    return Scripted(name, script or says("Cold."), status=status)


class OnePeer:
    def __init__(self, *models: str) -> None:
        self.provider = ScriptedPeer(OTHER.peer_id, says("Cold."))
        self._models = models

    def candidates_for(self, model: str | None) -> list[Provider]:
        return [self.provider] if model is None or model in self._models else []


# -- finding one -------------------------------------------------------------------------------------------------------


def test_a_name_goes_before_a_pattern_and_the_closer_pattern_before_the_wider() -> None:
    routes = Routes({
        "*": [to("any")], "gpt-*": [to("gpt")], "gpt-4*": [to("four")], "gpt-4o": [to("exact")],
        "default": [to("none")],
    })  # fmt: skip
    found = {m: route[0].provider for m in ("gpt-4o", "gpt-4.1", "gpt-5", "qwen", None) if (route := routes.find(m))}
    assert found == {"gpt-4o": "exact", "gpt-4.1": "four", "gpt-5": "gpt", "qwen": "any", None: "none"}


def test_a_name_without_a_route_has_none() -> None:
    routes = Routes({"fast": [to("a")]})
    assert routes.find("slow") is None
    assert routes.find(None) is None
    assert routes.find("FAST") is None, "model names keep their case"
    assert not Routes().any


def test_without_weights_the_order_is_as_written() -> None:
    route = (to("a"), to("b"))
    assert drawn(route, random.Random(1)) is route


def test_with_weights_the_first_is_drawn_in_proportion_and_a_weight_of_0_comes_last() -> None:
    route, dice = (to("a", weight=3), to("b"), to("spare", weight=0)), random.Random(1)
    orders = [[target.provider for target in drawn(route, dice)] for _ in range(4000)]
    first = Counter(order[0] for order in orders)
    assert 0.72 < first["a"] / 4000 < 0.78
    assert all(order[-1] == "spare" for order in orders)


def test_options_are_for_callers_who_do_not_set_them() -> None:
    target = to("a", "m", options={"temperature": 0.2, "stop": ["\n"], "max_tokens": 5, "min_p": 0.1, "top_k": 3})
    request = target.request_of(GenerateRequest.of("Hot?", temperature=0.0, extra={"top_k": 40}))
    assert (request.model, request.temperature, request.stop, request.max_tokens) == ("m", 0.0, ("\n",), 5)
    assert request.extra == {"top_k": 40, "min_p": 0.1}


# -- the candidates ----------------------------------------------------------------------------------------------------


async def candidates(routes: dict[str, list[Target]], *providers: Scripted, caller: str = "local", **wish: Any) -> Any:
    shelf = Shelf(*providers, share=[p.name for p in providers])
    source = NodeCandidates(shelf, OnePeer("m9"), routes=Routes(routes))
    async with source.running():
        asked = GenerateRequest.of("Hot?", **wish)
        question = Ask(request=asked, asked=asked, caller=caller)
        question.request = source.settled(asked, question)
        return question.request, source.candidates(question.request, question)


async def test_a_route_lists_its_targets_in_order_each_with_its_own_model() -> None:
    request, found = await candidates(
        {"fast": [to("b", "m2", context_length=99), to("a", "m1"), to("peers", "m9")]},
        offering("a", "m1"), offering("b", "m2"), model="fast",
    )  # fmt: skip
    assert request.model == "m2", "the key is that of the first target"
    assert [(c.name, c.model) for c in found] == [("b", "m2"), ("a", "m1"), (f"peer:{OTHER.peer_id[-6:]}", "m9")]
    assert [c.request_of(request).model for c in found] == ["m2", "m1", "m9"]
    assert found[0].context_length == 99


async def test_of_a_routes_targets_each_gets_bare_text_in_the_form_that_he_can_do() -> None:
    chats, completes = offering("a", "m1"), offering("b", "m2")
    completes.completes = True
    wish: Any = {"model": "fast", "completion": Completion("Hot?")}
    request, found = await candidates({"fast": [to("b", "m2"), to("a", "m1")]}, chats, completes, **wish)
    assert (request.model, request.completion) == ("m2", Completion("Hot?"))
    asked = [c.request_of(request) for c in found]
    assert [(each.model, each.completion) for each in asked] == [("m2", Completion("Hot?")), ("m1", None)]

    request, found = await candidates({"fast": [to("a", "m1"), to("b", "m2")]}, chats, completes, **wish)
    assert (request.model, request.completion) == ("m1", None), "the key is that of what the first target is asked"
    asked = [c.request_of(request) for c in found]
    assert [(each.model, each.completion) for each in asked] == [("m1", None), ("m2", Completion("Hot?"))]


async def test_a_pin_takes_the_targets_of_that_provider_only() -> None:
    providers = offering("a", "m1"), offering("b", "m2")
    _, found = await candidates({"fast": [to("b", "m2"), to("a", "m1")]}, *providers, model="fast", provider="a")
    assert [(c.name, c.model) for c in found] == [("a", "m1")]
    _, found = await candidates({"m1": [to("b", "m2")]}, *providers, model="m1", provider="a")
    assert [(c.name, c.model) for c in found] == [("a", "m1")], "a pin that the route does not know goes its own way"


async def test_a_pattern_without_a_model_asks_for_the_name_that_was_used() -> None:
    request, found = await candidates({"gpt-*": [to("any")]}, offering("any", any_model=True), model="gpt-5")
    assert (request.model, found[0].model) == ("gpt-5", "gpt-5")


async def test_the_default_route_is_for_requests_without_a_model() -> None:
    providers = offering("a", "m1"), offering("b", "m2")
    _, found = await candidates({"default": [to("b")]}, *providers)
    assert [(c.name, c.model) for c in found] == [("b", "m2")]
    _, found = await candidates({"default": [to("b")]}, *providers, model="m1")
    assert [c.name for c in found] == ["a"]


async def test_routes_are_for_callers_of_this_machine() -> None:
    _, found = await candidates({"m1": [to("b", "m2")]}, offering("a", "m1"), offering("b", "m2"),
                                model="m1", caller=OTHER.peer_id)  # fmt: skip
    assert [(c.name, c.model) for c in found] == [("a", "m1")]


async def test_the_names_of_routes_are_listed_among_the_models() -> None:
    routes = Routes({"fast": [to("a", "m1", context_length=99)], "dead": [to("none")], "x-*": [to("a")]})
    source = NodeCandidates(Shelf(offering("a", "m1")), routes=routes)
    async with source.running():
        models = source.models()
    assert set(models) == {"m1", "fast"}
    assert models["fast"][0].context_length == 99


# -- what is kept ------------------------------------------------------------------------------------------------------


async def answers(
    routes: dict[str, list[Target]], providers: tuple[Scripted, ...], *requests: GenerateRequest
) -> list[Told]:
    source = NodeCandidates(Shelf(*providers), routes=Routes(routes))
    async with caching() as cache, source.running():
        router = Router(source, cache=cache, signer=ME)
        async with router.running():
            return [await ask(router, request) for request in requests]


def sure(model: str, **more: Any) -> GenerateRequest:
    return GenerateRequest.of("Hot?", model=model, temperature=0.0, **more)


async def test_a_route_and_the_model_behind_it_share_their_answers() -> None:
    first = offering("a", "m1", script=says("Cold.", model="m1"))
    told = await answers({"fast": [to("a", "m1")]}, (first,), sure("fast"), sure("fast"), sure("m1"))
    assert [t.cache for t in told] == ["miss", "memory", "memory"]
    assert len(first.calls) == 1
    assert told[0].model == "m1"


async def test_the_answer_of_a_fallback_is_kept_under_its_own_model_and_never_under_the_firsts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first = offering("a", "m1", script=fails(ErrorKind.UNAVAILABLE))
    second = offering("b", "m2", script=says("Icy.", model="m2"))
    told = await answers(
        {"fast": [to("a", "m1"), to("b", "m2")]}, (first, second), sure("fast"), sure("m2"), sure("fast")
    )
    assert [t.text for t in told] == ["Icy."] * 3
    assert [t.cache for t in told] == ["miss", "memory", "miss"]
    assert [t.model for t in told] == ["m2"] * 3


async def test_who_asks_for_the_model_itself_does_not_share_a_generation_that_may_fall_back() -> None:
    first = offering("a", "m1", script=[Pause(0.05), *fails(ErrorKind.UNAVAILABLE)])
    second = offering("b", "m2", script=says("Icy.", model="m2"))
    source = NodeCandidates(Shelf(first, second), routes=Routes({"fast": [to("a", "m1"), to("b", "m2")]}))
    told: dict[str, Told] = {}
    async with caching() as cache, source.running():
        router = Router(source, cache=cache, signer=ME)
        async with router.running(), trio.open_nursery() as nursery:

            async def one(model: str) -> None:
                told[model] = await ask(router, sure(model))

            nursery.start_soon(one, "fast")
            nursery.start_soon(one, "m1")
    assert told["fast"].text == "Icy."
    assert told["m1"].error is not None, "a pin is a pin"


# -- the file ----------------------------------------------------------------------------------------------------------

DESK = '[providers.desk]\ntype = "openai_compat"\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["m1"]\n'


def checked(folder: Path, text: str) -> dict[str, Any]:
    file = folder / "node.toml"
    file.write_text(text)
    loaded = load_config(file, data_dir=folder, environ={})
    check_routes(loaded, build_registry(loaded, {}))
    return msgspec.to_builtins(loaded.config.routes)


def test_routes_are_read_from_the_file(tmp_path: Path) -> None:
    text = DESK + '[routes]\nfast = [{ provider = "desk", model = "m1", weight = 2, options = { seed = 1 } }]\n'
    target = {"provider": "desk", "model": "m1", "weight": 2.0, "options": {"seed": 1}}
    assert checked(tmp_path, text) == {"fast": (target,)}


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ('fast = [{ provider = "dsk" }]', ("routes.fast", "never", "'dsk'", "desk")),
        ('fast = [{ provider = "desk", model = "m7" }]', ("routes.fast", "never", "'m7'", "m1")),
        ('fast = [{ provider = "openrouter" }]', ("routes.fast", "OPENROUTER_API_KEY")),
        ('fast = [{ provider = "peers" }]\n[router]\nforward = false', ("routes.fast", "router.forward")),
        ("fast = []", ("routes.fast", "no target")),
        ('fast = [{ provider = "desk", wieght = 1 }]', ("routes.fast[0].wieght", "weight")),
        ('fast = [{ provider = "desk", weight = -1 }]', ("routes.fast[0].weight", "at least 0")),
        ('fast = [{ provider = "desk", options = { model = "x" } }]', ("routes.fast[0].options", "model")),
        ('fast = [{ provider = "desk", options = { temperature = "hot" } }]', ("options", "temperature")),
        ('ok = [{ provider = "desk" }]\nfast = "desk"', ("routes.fast", "list")),
    ],
)
def test_a_route_that_can_never_be_served_is_one_line_with_the_reason(
    tmp_path: Path, routes: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, f"{DESK}[routes]\n{routes}\n")
    message = str(caught.value)
    assert all(word in message for word in (*words, "node.toml")), message
    assert "\n" not in message


def test_a_route_with_one_target_that_can_be_served_is_in_order(tmp_path: Path) -> None:
    checked(tmp_path, f'{DESK}[routes]\nfast = [{{ provider = "openrouter" }}, {{ provider = "desk" }}]\n')
