"""`/openapi.json` describes what is there, and nothing else. (`make clients` also runs schemathesis against it.)"""

from __future__ import annotations

from typing import Any

import msgspec
from shoal.node.rpc.openapi import OPERATIONS, ChatCompletion, Response, TextCompletion, document
from shoal.node.rpc.openapi import AnthropicMessage as Whole
from shoal.providers.base import Usage

from .fakes_router import Scripted, says
from .fakes_rpc import door


async def test_every_path_and_method_is_described_and_nothing_more() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        served = {
            path + ("*" if path.endswith("/") and path != "/" else ""): methods
            for path, methods in rpc.rpc.paths.items()
        }
        reply = await rpc.ask("GET", "/openapi.json")
    described: dict[str, set[str]] = {}
    for path, methods in reply.json["paths"].items():
        plain = path.partition("{")[0] + ("*" if "{" in path else "")
        described.setdefault(plain, set()).update(method.upper() for method in methods)
    assert described == served
    written = {operation.path.partition("{")[0] for operation in OPERATIONS}
    assert written >= {path.rstrip("*") for path in served}, "a guess is not enough"
    bodyless = {path for path, about in reply.json["paths"].items() if "requestBody" not in about.get("post", about)}
    assert {path for path in bodyless if "post" in reply.json["paths"][path]} == {"/shoal/v1/resume"}


async def test_what_the_description_says_of_queries_is_what_the_node_holds_to() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        described = (await rpc.ask("GET", "/openapi.json")).json["paths"]
        listed = described["/shoal/v1/cache"]["get"]["parameters"][0]["schema"]
        for text, status in (("1", 200), (str(listed["maximum"]), 200), (str(listed["maximum"] + 1), 400), ("0", 400)):
            assert (await rpc.ask("GET", f"/shoal/v1/cache?list={text}")).status == status, text
        for text in ("0000019999999999999999999", "-1", "x", "%D9%A1", ""):
            assert (await rpc.ask("GET", f"/shoal/v1/cache?list={text}")).status in (200, 400), text
        paused = described["/shoal/v1/pause"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert paused.endswith("/Pause")


def test_every_reference_leads_somewhere() -> None:
    found = document({})

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set[str]()
            return own.union(*(references(v) for v in value.values()))
        return set().union(*(references(v) for v in value)) if isinstance(value, list) else set()

    names = {reference.removeprefix("#/components/schemas/") for reference in references(found)}
    assert names
    assert names <= found["components"]["schemas"].keys()


def test_a_chats_body_is_described_by_what_checks_it() -> None:
    schemas = document({})["components"]["schemas"]
    assert schemas["ChatBody"]["required"] == ["messages"]
    assert "temperature" in schemas["ChatBody"]["properties"]


async def test_answers_are_as_described() -> None:
    async with door(Scripted("first", says("Cold.", usage=Usage(7, 2)))) as rpc:
        asked = {"model": "m1", "messages": [{"role": "user", "content": "Hot?"}], "max_tokens": 9}
        for path, body, kind in (
            ("/v1/chat/completions", asked, ChatCompletion),
            ("/v1/messages", asked, Whole),
            ("/v1/completions", {"model": "m1", "prompt": "x"}, TextCompletion),
            ("/v1/responses", {"model": "m1", "input": "x"}, Response),
        ):
            for _ in range(2):  # made, and out of the cache
                msgspec.json.decode((await rpc.ask("POST", path, body)).body, type=kind)
    assert {operation.path for operation in OPERATIONS if operation.streams} > {"/v1/messages"}
