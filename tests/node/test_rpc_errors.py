"""What the RPC refuses, and that each refusal is OpenAI's error JSON."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shoal.node.rpc.chat_request import read_call
from shoal.node.rpc.errors import KINDS, ApiError, render
from shoal.node.rpc.messages_request import read_messages
from shoal.node.rpc.responses_request import read_response
from shoal.protocols.http.limits import Limits
from shoal.providers.base import ErrorKind

from .fakes_router import Scripted, fails, says
from .fakes_rpc import door

USER = {"role": "user", "content": "Hot?"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hot?"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "Hot?"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": 5}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [USER], "model": 5}, "model"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens"),
        ({"messages": [USER], "max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"messages": [USER], "temperature": 3}, "temperature"),
        ({"messages": [USER], "top_p": -1}, "top_p"),
        ({"messages": [USER], "stop": [1]}, "stop[0]"),
        ({"messages": [USER], "stop": ["x", ""]}, "stop"),
        ({"messages": [USER], "seed": 2**70}, "seed"),
        ({"messages": [USER], "n": 0}, "n"),
        ({"messages": [USER], "stream": "yes"}, "stream"),
        ({"messages": [USER], "stream_options": []}, "stream_options"),
        ({"messages": [USER], "tools": [{"function": {}}]}, "tools[0].type"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"messages": [USER], "response_format": {}}, "response_format.type"),
        ({"messages": [USER], "timeout": 0}, "timeout"),
        ({"messages": [USER], "timeout": 5e-324}, "timeout"),
        ({"messages": [USER], "fallback": "no"}, "fallback"),
    ],
)
def test_ill_typed_input_is_a_400_that_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_call(json.dumps(body).encode(), {})
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message or "stop" in param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":"\\ud800"}', b"[" * 100_000])
def test_what_is_no_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_call(body, {})
    assert caught.value.status == 400


@given(st.binary(max_size=300))
def test_no_body_at_all_is_more_than_a_400(body: bytes) -> None:
    with pytest.raises(ApiError):
        read_call(body, {})


_known = st.sampled_from(
    ["type", "role", "content", "text", "name", "function", "call_id", "output", "input", "format"]
)
_words = st.sampled_from(["user", "assistant", "message", "function", "text", "input_text", "json_schema", "tool_use"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | _known, inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(
    [
        *("messages", "model", "stop", "tools", "stream", "stream_options", "provider", "n", "extra", "input"),
        *("max_tokens", "tool_choice", "text", "reasoning", "instructions", "output_config", "stop_sequences"),
        "system",
    ]
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_fields, _json))
def test_any_json_in_any_field_is_taken_or_refused_with_400(body: dict[str, Any]) -> None:
    for read in (read_call, read_messages, read_response):
        with contextlib.suppress(ApiError):  # anything else fails the test
            read(json.dumps(body).encode(), {})


def test_what_the_caller_wrote_is_not_in_the_error() -> None:
    body = {"messages": [{"role": "hunter2", "content": "x"}]}
    with pytest.raises(ApiError) as caught:
        read_call(json.dumps(body).encode(), {})
    assert "hunter2" not in caught.value.message


def test_nulls_are_the_same_as_absent_also_in_what_clients_send_back() -> None:
    echoed = {"role": "assistant", "content": "x", "tool_calls": None, "refusal": None, "audio": None, "name": None}
    body = {"messages": [USER, echoed], "stop": None, "temperature": None, "logit_bias": None, "stream_options": None}
    call = read_call(json.dumps(body).encode(), {})
    assert call.request.messages[1].content == "x"
    assert call.request.extra == {}


def test_fields_that_are_not_typed_go_along_as_extra() -> None:
    body = {"messages": [USER], "top_k": 5, "user": "me", "provider": {"order": ["x"]}}
    request = read_call(json.dumps(body).encode(), {}).request
    assert request.extra == {"top_k": 5, "user": "me", "provider": {"order": ["x"]}}
    assert request.provider is None


def test_the_newer_name_of_max_tokens_wins() -> None:
    body = {"messages": [USER], "max_tokens": 5, "max_completion_tokens": 7}
    assert read_call(json.dumps(body).encode(), {}).request.max_tokens == 7


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "9" * 30, "٣"])
def test_a_timeout_header_must_be_milliseconds(value: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_call(json.dumps({"messages": [USER]}).encode(), {"x-shoal-timeout-ms": value})
    assert caught.value.param == "x-shoal-timeout-ms"


def test_every_kind_of_failure_has_a_status_and_every_status_is_an_error() -> None:
    assert set(KINDS) == set(ErrorKind)
    assert all(400 <= face.status < 600 for face in KINDS.values())


def test_an_unexpected_exception_tells_nothing_of_its_words(caplog: pytest.LogCaptureFixture) -> None:
    status, _, body = render(ValueError("the prompt was hunter2"))
    assert status == 500
    assert b"hunter2" not in body
    assert "hunter2" not in caplog.text


# -- over HTTP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/chat/completions", 405, "OPTIONS, POST"),
        ("DELETE", "/v1/models", 405, "GET, HEAD, OPTIONS"),
        ("POST", "/v1/models/m1", 405, "GET, HEAD, OPTIONS"),
        ("GET", "/shoal/v1/join", 405, "OPTIONS, POST"),
        ("GET", "/nowhere", 404, None),
        ("GET", "/v1/models/", 404, None),
    ],
)
async def test_what_is_not_there_is_a_clean_error(method: str, path: str, status: int, allow: str | None) -> None:
    async with door() as rpc:
        reply = await rpc.ask(method, path)
    assert reply.status == status
    assert reply.error["message"]
    assert reply.headers.get("allow") == allow


async def test_options_says_what_is_allowed_and_nothing_about_other_origins() -> None:
    async with door() as rpc:
        reply = await rpc.ask("OPTIONS", "/v1/chat/completions")
    assert (reply.status, reply.headers["allow"], reply.body) == (204, "OPTIONS, POST", b"")
    assert not any(name.startswith("access-control") for name in reply.headers)


async def test_head_is_get_without_the_body() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        reply = await rpc.ask("HEAD", "/v1/models")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) > 0


async def test_a_body_over_the_limit_is_413() -> None:
    async with door(limits=Limits(max_body_bytes=1000)) as rpc:
        reply = await rpc.chat(messages=[{"role": "user", "content": "x" * 2000}])
    assert (reply.status, reply.error["type"]) == (413, "invalid_request_error")


async def test_garbage_on_the_port_is_a_400_in_json() -> None:
    async with door() as rpc:
        reply = await rpc.ask("GET", "/v1/models", headers={"host": "127.0.0.1\r\nbad header line"})
    assert reply.status == 400
    assert reply.error["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_wrong_content_type_from_a_program_is_tolerated(kind: str) -> None:
    async with door(Scripted("first", says("Cold."))) as rpc:
        assert (await rpc.chat({"content-type": kind})).status == 200


# -- web pages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "192.168.1.5", "[::2]", "x:y"]
)
async def test_a_name_that_somebody_points_at_loopback_is_refused(host: str) -> None:
    """DNS rebinding: the page's own name arrives in Host."""
    provider = Scripted("first", says("Cold."))
    async with door(provider) as rpc:
        assert (await rpc.chat({"host": host})).status == 403
        assert (await rpc.ask("GET", "/shoal/v1/status", headers={"host": host})).status == 403
    assert provider.calls == []


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8642", "localhost.", "node.lan"]
)
async def test_loopback_and_the_owners_names_are_let_in(host: str) -> None:
    async with door(hosts=("node.lan",)) as rpc:
        assert (await rpc.ask("GET", "/healthz", headers={"host": host})).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
async def test_a_page_of_another_origin_cannot_post(origin: str, kind: str) -> None:
    """CSRF: a form's POST as text/plain needs no permission from the server, but carries Origin."""
    provider = Scripted("first", says("Cold."))
    async with door(provider) as rpc:
        reply = await rpc.chat({"origin": origin, "content-type": kind})
        assert (reply.status, reply.error["code"]) == (403, "origin_refused")
        assert (await rpc.ask("POST", "/shoal/v1/join", {"invite": "x"}, {"origin": origin})).status == 403
        assert rpc.node.joined == []
    assert provider.calls == []


async def test_a_page_of_another_site_cannot_even_load_an_image_from_here() -> None:
    async with door() as rpc:
        assert (await rpc.ask("GET", "/shoal/v1/status", headers={"sec-fetch-site": "cross-site"})).status == 403
        assert (await rpc.ask("GET", "/shoal/v1/status", headers={"sec-fetch-site": "none"})).status == 200


async def test_a_page_of_the_nodes_own_origin_is_let_in() -> None:
    async with door(Scripted("first", says("Cold."))) as rpc:
        own = {"origin": f"http://127.0.0.1:{rpc.port}", "sec-fetch-site": "same-origin"}
        assert (await rpc.chat(own)).status == 200


async def test_a_refusal_that_has_a_name_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with door(Scripted("first", fails(ErrorKind.BAD_REQUEST, "no"))) as rpc:
        assert (await rpc.chat()).status == 400
        assert (await rpc.chat(model="nobody")).status == 404
        assert (await rpc.ask("POST", "/v1/chat/completions", b"{")).status == 400
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate, gzip"])
async def test_a_compressed_body_is_refused_as_such(coding: str) -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        reply = await rpc.chat({"content-encoding": coding})
        message = await rpc.ask("POST", "/v1/messages", b"\x1f\x8b", {"content-encoding": coding})
        assert (await rpc.chat({"content-encoding": "identity"})).status == 200
    assert (reply.status, reply.error["code"]) == (415, "unsupported_encoding")
    assert reply.headers["accept-encoding"] == "identity"
    assert message.json["error"]["type"] == "invalid_request_error"


async def test_the_whole_server_may_be_asked_what_it_allows() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        reply = await rpc.ask("OPTIONS", "*")
    assert (reply.status, reply.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, POST")
