"""Who may ask the node from where: tokens beyond loopback, and web pages only where their origin was named.

That pages of other sites are refused (Host, Origin, Sec-Fetch-Site) is in test_rpc_errors.py.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import trio
from shoal.node.tokens import TokenBook, Tokens
from shoal.providers.base import ModelInfo, Status, Usage

from .fakes_router import STOP, Scripted, Wait, says
from .fakes_rpc import door

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "Hot?"}]}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
def book(tmp_path: Path) -> TokenBook:
    return TokenBook(tmp_path)


def cold() -> Scripted:
    return Scripted("first", says("Cold.", usage=Usage(7, 2)))


async def test_from_outside_only_a_token_opens_the_door(book: TokenBook) -> None:
    _, secret = book.new("ci")
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        for path in ("/v1/models", "/shoal/v1/status", "/metrics", "/shoal/v1/events", "/nowhere"):
            reply = await rpc.ask("GET", path)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), path
            assert reply.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Basic x"}, bearer("none"), bearer(secret + "x"), bearer("shoal_")):
            assert (await rpc.ask("POST", CHAT, BODY, headers)).status == 401
        assert (await rpc.ask("POST", CHAT, BODY, bearer(secret))).status == 200
        assert (await rpc.ask("POST", CHAT, BODY, {"x-api-key": secret})).status == 200
        assert (await rpc.ask("GET", "/healthz")).status == 200, "a balancer needs no token"


async def test_a_token_may_come_by_any_name_of_the_node(book: TokenBook) -> None:
    _, secret = book.new("ci")
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        reply = await rpc.ask("POST", CHAT, BODY, {**bearer(secret), "host": "node.example"})
    assert reply.status == 200


async def test_anthropics_clients_get_anthropics_401(book: TokenBook) -> None:
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        reply = await rpc.ask("POST", "/v1/messages", {})
    assert (reply.status, reply.json["error"]["type"]) == (401, "authentication_error")


async def test_on_loopback_any_key_will_do_but_a_token_that_is_not_good_is_told(book: TokenBook) -> None:
    async with door(cold(), tokens=Tokens(book)) as rpc:
        assert (await rpc.ask("POST", CHAT, BODY)).status == 200
        assert (await rpc.ask("POST", CHAT, BODY, bearer("sk-whatever"))).status == 200
        assert (await rpc.ask("POST", CHAT, BODY, bearer("shoal_gone"))).status == 401


async def test_a_token_for_one_model_asks_no_other(book: TokenBook) -> None:
    _, secret = book.new("ci", models=("m2",))
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        for path, body in (
            (CHAT, BODY),
            (CHAT, {**BODY, "model": "auto"}),
            (CHAT, {**BODY, "stream": True}),
            (CHAT, {**BODY, "n": 2}),
            ("/v1/completions", {"model": "m1", "prompt": "x"}),
            ("/v1/responses", {"model": "m1", "input": "x"}),
            ("/v1/messages", {**BODY, "max_tokens": 5}),
            ("/v1/embeddings", {"model": "m1", "input": "x"}),
        ):
            reply = await rpc.ask("POST", path, body, bearer(secret))
            assert reply.status == 403, path
        assert (await rpc.ask("POST", CHAT, {**BODY, "model": "m2"}, bearer(secret))).status == 404, "it may ask"


async def test_a_model_that_is_refused_is_not_told_from_the_cache_either(book: TokenBook) -> None:
    _, secret = book.new("ci", models=("m2",))
    async with door(cold(), tokens=Tokens(book)) as rpc:
        assert (await rpc.ask("POST", CHAT, BODY)).status == 200
        assert (await rpc.ask("POST", CHAT, BODY)).headers["x-shoal-cache"] == "memory"
        assert (await rpc.ask("POST", CHAT, BODY, bearer(secret))).status == 403


async def test_requests_beyond_a_tokens_rate_wait(book: TokenBook) -> None:
    _, secret = book.new("ci", rpm=2)
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        found = [await rpc.ask("POST", CHAT, BODY, bearer(secret)) for _ in range(3)]
        assert [reply.status for reply in found] == [200, 200, 429]
        assert found[2].error["type"] == "rate_limit_error"
        assert 1 <= int(found[2].headers["retry-after"]) <= 30
        assert (await rpc.ask("GET", "/v1/models", b"", bearer(secret))).status == 200, "looking costs nothing"


async def test_what_a_token_used_is_counted(book: TokenBook) -> None:
    token, secret = book.new("ci", models=("m1",))
    tokens = Tokens(book)
    async with door(cold(), tokens=tokens, outside=True) as rpc:
        await rpc.ask("POST", CHAT, {**BODY, "temperature": 1}, bearer(secret))
        await rpc.ask("POST", CHAT, {**BODY, "temperature": 1, "stream": True}, bearer(secret))
        await rpc.ask("POST", CHAT, {**BODY, "n": 2}, bearer(secret))
        await rpc.ask("POST", CHAT, {**BODY, "model": "m2"}, bearer(secret))
    used = tokens.usage[token.id]
    assert (used.requests, used.refused) == (4, 1)
    assert (used.prompt_tokens, used.completion_tokens) == (21, 8)


async def test_only_an_admins_token_changes_the_node(book: TokenBook) -> None:
    _, asker = book.new("asker")
    _, admin = book.new("admin", admin=True)
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        refused = await rpc.ask("POST", "/shoal/v1/join", {"invite": "x"}, bearer(asker))
        assert (refused.status, refused.error["code"]) == (403, "admin_only")
        assert (await rpc.ask("GET", "/shoal/v1/status", b"", bearer(asker))).status == 200
        assert (await rpc.ask("POST", "/shoal/v1/join", {"invite": "x"}, bearer(admin))).status == 200
        assert rpc.node.joined == ["x"]


async def test_only_an_admins_token_takes_all_answers_away(book: TokenBook) -> None:
    _, asker = book.new("asker", models=("m1",))
    _, admin = book.new("admin", admin=True)
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        for method in ("GET", "HEAD"):
            assert (await rpc.ask(method, "/shoal/v1/cache/export", b"", bearer(asker))).status == 403
        assert (await rpc.ask("GET", "/shoal/v1/cache/export", b"", bearer(admin))).status == 404, "it has no disk"


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_the_feed_of_a_token_that_is_good_no_more_ends(book: TokenBook, how: str) -> None:
    _, kept = book.new("kept")
    _, secret = book.new("ci", expires=time.time() + 1 if how == "expired" else None)
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc, await rpc.open() as other:
        await other.send_all(rpc.head("GET", "/shoal/v1/events", bearer(kept), b""))
        async with await rpc.open() as feed:
            await feed.send_all(rpc.head("GET", "/shoal/v1/events", bearer(secret), b""))
            data = await feed.receive_some(65536)
            if how == "revoked":
                book.revoke("ci")
            with trio.fail_after(4):
                while not data.endswith(b"\r\n0\r\n\r\n"):
                    piece = await feed.receive_some(65536)
                    assert piece, "it ends as a whole answer does"
                    data += piece
        again = await rpc.ask("GET", "/shoal/v1/events", b"", bearer(secret))
        assert (again.status, rpc.rpc.telemetry.feed.listeners) == (401, 1), "the other goes on"


async def test_a_token_in_the_address_is_none(book: TokenBook) -> None:
    _, secret = book.new("ci")
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        for query in (f"token={secret}", f"api_key={secret}", f"key={secret}", f"access_token={secret}"):
            assert (await rpc.ask("POST", f"{CHAT}?{query}", BODY)).status == 401, "addresses end up in logs"


async def test_openais_client_sends_its_token_as_the_key(book: TokenBook) -> None:
    _, secret = book.new("ci")

    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:

        def work(key: str) -> Any:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{rpc.port}/v1", api_key=key, max_retries=0) as client:
                return client.chat.completions.create(model="m1", messages=BODY["messages"])

        assert (await trio.to_thread.run_sync(work, secret)).choices[0].message.content == "Cold."
        with pytest.raises(openai.AuthenticationError):
            await trio.to_thread.run_sync(work, "sk-none")


# -- web pages ---------------------------------------------------------------------------------------------------

SITE = "https://chat.example"


async def test_no_page_may_ask_until_its_origin_is_named() -> None:
    async with door(cold()) as rpc:
        reply = await rpc.ask("POST", CHAT, BODY, {"origin": SITE})
        ahead = await rpc.ask("OPTIONS", CHAT, b"", {"origin": SITE, "access-control-request-method": "POST"})
    assert (reply.status, ahead.status) == (403, 403)
    assert "access-control-allow-origin" not in {**reply.headers, **ahead.headers}


async def test_a_page_of_a_named_origin_asks_and_reads_answers_and_errors(book: TokenBook) -> None:
    async with door(cold(), origins=(SITE,)) as rpc:
        ahead = await rpc.ask(
            "OPTIONS",
            CHAT,
            b"",
            {
                "origin": SITE,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type",
                "sec-fetch-site": "cross-site",
            },
        )
        asked = {"origin": SITE, "sec-fetch-site": "cross-site"}
        answer = await rpc.ask("POST", CHAT, BODY, asked)
        stream = await rpc.ask("POST", CHAT, {**BODY, "stream": True}, asked)
        error = await rpc.ask("POST", CHAT, b"{", asked)
        other = await rpc.ask("POST", CHAT, BODY, {"origin": "https://chat.example.evil"})
        plain = await rpc.ask("POST", CHAT, BODY)
    assert ahead.status == 204
    assert ahead.headers["access-control-allow-headers"] == "authorization, content-type"
    assert (answer.status, stream.status, error.status, other.status) == (200, 200, 400, 403)
    for reply in (ahead, answer, stream, error):
        assert reply.headers["access-control-allow-origin"] == SITE
        assert reply.headers["vary"] == "origin"
    for reply in (other, plain):
        assert "access-control-allow-origin" not in reply.headers


async def test_a_named_origin_still_needs_a_token_from_outside(book: TokenBook) -> None:
    async with door(cold(), origins=(SITE,), tokens=Tokens(book), outside=True) as rpc:
        ahead = await rpc.ask("OPTIONS", CHAT, b"", {"origin": SITE, "access-control-request-method": "POST"})
        reply = await rpc.ask("POST", CHAT, BODY, {"origin": SITE})
    assert ahead.status == 204, "a browser asks ahead without a key"
    assert reply.status == 401
    assert reply.headers["access-control-allow-origin"] == SITE


async def test_a_pattern_stands_for_models_and_fallbacks_are_models_too(book: TokenBook) -> None:
    _, secret = book.new("ci", models=("cheap/*", "m1"))
    status = Status(ready=True, models=(ModelInfo("m1"),), default_model="m1", any_model=True)
    provider = Scripted("first", says("Cold."), status=status)
    async with door(provider, tokens=Tokens(book), outside=True) as rpc:
        for model, status in (("cheap/a", 200), ("m1", 200), ("dear/a", 403), ("auto", 403), ("cheap", 403)):
            assert (await rpc.chat(bearer(secret), model=model)).status == status, model
        for fallbacks in (["dear/a"], ["cheap/a", "dear/a"], [None]):
            reply = await rpc.chat(bearer(secret), model="m1", models=fallbacks)
            assert (reply.status, reply.error["code"]) == (403, "model_refused")
        assert (await rpc.chat(bearer(secret), model="m1", models=["cheap/a"])).status == 200


async def test_of_two_keys_the_one_that_can_be_a_token_counts(book: TokenBook) -> None:
    _, secret = book.new("ci")
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        for headers in ({**bearer("sk-other"), "x-api-key": secret}, {**bearer(secret), "x-api-key": "sk-other"}):
            assert (await rpc.ask("POST", CHAT, BODY, headers)).status == 200
        once = rpc.head("POST", CHAT, bearer(secret), b"{}")
        twice = once.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer x\r\n\r\n")
        stream = await rpc.open()
        await stream.send_all(twice)
        assert b"400 Bad Request" in await stream.receive_some(4096)


async def test_counting_tokens_is_no_request_of_the_rate(book: TokenBook) -> None:
    _, secret = book.new("ci", rpm=1)
    body = {"model": "m1", "messages": [{"role": "user", "content": "Hot?"}]}
    async with door(cold(), tokens=Tokens(book), outside=True) as rpc:
        for _ in range(3):
            assert (await rpc.ask("POST", "/v1/messages/count_tokens", body, bearer(secret))).status == 200
        assert (await rpc.ask("POST", CHAT, BODY, bearer(secret))).status == 200
        assert (await rpc.ask("POST", CHAT, BODY, bearer(secret))).status == 429


async def test_a_page_of_the_internet_that_was_named_may_ask_this_machine() -> None:
    asked = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    async with door(cold(), origins=("https://chat.example",)) as rpc:
        reply = await rpc.ask("OPTIONS", CHAT, b"", asked)
        other = await rpc.ask("OPTIONS", CHAT, b"", {**asked, "origin": "https://evil.example"})
    assert reply.headers["access-control-allow-private-network"] == "true"
    assert other.status == 403
    assert "access-control-allow-private-network" not in other.headers


async def test_a_token_that_is_revoked_asks_no_more_and_an_answer_that_has_begun_is_told_to_its_end(
    book: TokenBook,
) -> None:
    _, secret = book.new("ci")
    gate = trio.Event()
    provider = Scripted("first", ["Co", Wait(gate), "ld.", STOP])
    async with door(provider, tokens=Tokens(book), outside=True) as rpc, await rpc.open() as stream:
        body = json.dumps({**BODY, "stream": True}).encode()
        await stream.send_all(rpc.head("POST", CHAT, bearer(secret), body))
        data = b""
        while b'"Co"' not in data:
            data += await stream.receive_some(65536)
        book.revoke("ci")
        assert (await rpc.ask("POST", CHAT, BODY, bearer(secret))).status == 401
        gate.set()
        while piece := await stream.receive_some(65536):
            data += piece
    assert b"[DONE]" in data
