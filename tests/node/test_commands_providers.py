"""`shoal providers` and `shoal providers test`: what the node knows, as people read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shoal.node.commands.exit_codes import ExitCode
from shoal.protocols.http.exchange import Exchange

from .fake_node import DONE, WHO, FakeNode, chunk, fake_node, shoal

PATH = "GET /shoal/v1/providers"
CHAT = "POST /v1/chat/completions"
ROUTE = [{"provider": "openrouter", "outcome": "ok", "ms": 520.0, "first_token_ms": 420.0, "dropped": ["seed"]}]
USAGE = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18, "cost": 0.00014}


@pytest.fixture
async def node(tmp_path: Path):
    async with fake_node(tmp_path) as node:
        yield node


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "ready": True, "share": False, "models": [], "reason": "", **more}


def streamed(*pieces: bytes):
    async def answer(exchange: Exchange) -> None:
        async with exchange.stream(200, WHO) as send:
            for piece in pieces:
                await send(piece)

    return answer


async def lines_of(node: FakeNode, *arguments: str) -> list[str]:
    done = await node.shoal("providers", *arguments)
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.decode().splitlines()]


async def test_load_credit_and_version_are_shown_and_long_lists_are_cut(node: FakeNode) -> None:
    facts = {"running": 2, "waiting": 3, "max_concurrent": 8, "credit": {"limit": 10, "limit_remaining": 8.5}}
    models = [{"name": f"m{i}"} for i in range(400)]
    node.answers[PATH] = {"providers": [row("openrouter", facts=facts, models=models, version="v1")]}
    lines = await lines_of(node)
    assert lines[0] == "provider ready shared load models about reason"
    assert lines[1] == "openrouter ready no 2/8 +3 m0, m1, m2, m3, 396 more v1, $8.50 of $10.00 left"


async def test_a_pools_backends_have_a_table_of_their_own(node: FakeNode) -> None:
    up = {"name": "big", "kind": "vllm", "version": "0.12", "state": "up", "weight": 2.0, "running": 1, "waiting": 0}
    up |= {"max_concurrent": 8, "others": 4, "first_token_ms": 81.5, "tokens_per_s": 40.25, "answers": 9, "failures": 1}
    down = {"name": "small", "kind": "ollama", "state": "half_open", "reason": "it cannot be reached", "models": ["x"]}
    facts = {"running": 1, "waiting": 0, "max_concurrent": 256, "strategy": "least_loaded", "backends": [up, down]}
    node.answers[PATH] = {"providers": [row("backend_manager", facts=facts, version="1 of 2 backends up")]}
    lines = await lines_of(node)
    assert lines[1] == "backend_manager ready no 1/256 1 of 2 backends up, least_loaded"
    assert lines[3] == "big vllm 0.12 up 2 1/8 4 82 ms 40.2 9 1"
    assert lines[4] == "small ollama half-open 1 0 0 0 x it cannot be reached"


async def test_a_test_shows_first_token_speed_usage_and_what_was_left_out(node: FakeNode) -> None:
    end = chunk(usage=USAGE, shoal={"provider": "openrouter", "route": ROUTE})
    node.answers[CHAT] = streamed(chunk("rea"), chunk("dy"), chunk(finish="stop"), end, DONE)
    lines = await lines_of(node, "test", "openrouter")
    said = dict(line.split(" ", 1) for line in lines)
    assert said["first"] == "token 420 ms"
    assert said["whole"] == "answer 520 ms"
    assert said["speed"] == "50.0 tokens/s"
    assert said["usage"] == "12 + 6 tokens, $0.000140"
    assert said["left"] == "out seed"
    assert said["said"] == "ready"
    ((_, headers, body),) = node.asked
    sent = json.loads(body)
    assert (sent["provider"], sent["fallback"], sent["max_tokens"]) == ("openrouter", False, 64)
    assert headers["cache-control"] == "no-store"


async def test_a_test_as_json_has_the_figures_in_milliseconds(node: FakeNode) -> None:
    end = chunk(usage=USAGE, shoal={"provider": "openrouter", "route": ROUTE})
    node.answers[CHAT] = streamed(chunk("ready"), chunk(finish="stop"), end, DONE)
    for arguments in (("test", "openrouter", "--json"), ("--json", "test", "openrouter")):
        done = await node.shoal("providers", *arguments)
        found = json.loads(done.stdout)
        assert (found["first_token_ms"], found["ms"], found["tokens_per_s"]) == (420.0, 520.0, 50.0)
        assert (found["usage"], found["dropped"], found["answer"]) == (USAGE, ["seed"], "ready")


async def test_a_provider_that_cannot_answer_ends_the_test_with_its_reason(node: FakeNode) -> None:
    async def refuse(exchange: Exchange) -> None:
        message = "The provider gemini_cli is not ready: gemini: not signed in; set GEMINI_API_KEY or run `gemini`"
        await exchange.respond(503, json.dumps({"error": {"message": message, "type": "x"}}).encode())

    node.answers[CHAT] = refuse
    done = await node.shoal("providers", "test", "gemini_cli")
    assert done.returncode == ExitCode.NO_ANSWER
    assert b"set GEMINI_API_KEY" in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("arguments", [(), ("--json",)])
async def test_login_files_a_key_and_says_what_to_configure(monkeypatch: Any, arguments: tuple[str, ...]) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    done = await shoal("providers", "login", "OpenRouter", *arguments, stdin=b"sk-planted\n")
    assert done.returncode == 0, done.stderr
    assert b"shoal/openrouter" in done.stdout
    assert b"sk-planted" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        (b"sk-planted\n", ExitCode.REFUSED, b"the keyring takes no key (NoKeyringError)"),
        (b"\n", ExitCode.USAGE, b"that is no key"),
        (b"two words\n", ExitCode.USAGE, b"that is no key"),
    ],
)
async def test_login_that_cannot_file_a_key_says_why_and_repeats_nothing(
    monkeypatch: Any, key: bytes, code: ExitCode, words: bytes
) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    done = await shoal("providers", "login", "openrouter", stdin=key)
    assert (done.returncode, done.stdout) == (code, b"")
    assert words in done.stderr
    assert key.strip() not in done.stderr or not key.strip()
