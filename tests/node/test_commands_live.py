"""`shoal top`, `shoal status --watch` and `shoal chat` against a node whose answers a test writes down."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from shoal.node.commands.chat_command import Conversation
from shoal.node.commands.top_screen import screen
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.sse import encode_event

from .fake_node import DONE, SHOAL, WHO, FakeNode, chunk, fake_node, shoal

EVIL = "m\x1b]0;owned\x07\x1b[31m[bold]x[/bold]\u202e"


def sections(model: str = "smollm2") -> dict[str, Any]:
    row = {
        "id": 1, "at": 1.7e9, "state": "live", "model": model, "provider": "fast", "peer": None, "caller": "local",
        "cache": "miss", "cid": None, "ms": 1500.0, "first_token_ms": 20.0, "tokens": 40, "tokens_per_s": 27.0,
        "route": [
            {"provider": "slow", "outcome": "rate_limited", "ms": 2.0, "reason": ""},
            {"provider": "fast", "outcome": "live", "ms": 0.0, "reason": ""},
        ],
    }  # fmt: skip
    peer = {"peer": "12D3KooWabcdef", "connected": True, "models": [{"name": model}], "hardware": {"cores_usable": 8}}
    known = {"id": 3, "cache": "memory", "state": "ok", "ms": 0.0, "times": 4}
    hits = {"memory": 3, "disk": 0, "swarm": 0, "ipfs": 0}
    tier = {"answers": 2, "bytes": 2048, "max_bytes": 1 << 20}
    return {
        "node": {"version": "0", "uptime_s": 75, "swarm": {"name": "reef"}},
        "requests": {
            "live": 1, "in_flight": 1, "by_cache": {"memory": 3, "miss": 9}, "tokens_per_s": 27.0,
            "finished": {"ok": 4, "unavailable": 8},
            "requests": [row, row | {"id": 2, "state": "cancelled"}, row | known],
        },
        "peers": {"peers": [peer, peer | {"peer": "away", "connected": False, "problem": "no route"}]},
        "providers": {"providers": [
            {"name": "fast", "configured": True, "ready": True, "models": [{"name": model}], "waits": []},
            {"name": "slow", "configured": True, "ready": False, "reason": "no key", "models": []},
            {"name": "unset", "configured": False, "ready": False, "reason": "not installed"},
        ]},
        "cache": {"enabled": True, "hits": hits, "misses": 1, "refused": {}, "memory": tier, "disk": None},
    }  # fmt: skip


def feed(found: dict[str, Any]) -> Any:
    async def handler(exchange: Exchange) -> None:
        async with exchange.stream(200, [("content-type", "text/event-stream")]) as send:
            for name, body in found.items():
                await send(encode_event(json.dumps(body).encode(), name))
            await trio.sleep_forever()

    return handler


def drawn(found: dict[str, Any], width: int = 100, height: int = 30) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(found, width, height))
    return capture.get().splitlines()


# -- top -------------------------------------------------------------------------------------------------------


async def test_top_prints_the_state_once_when_nobody_watches(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/events"] = feed(sections())
        done = await node.shoal("top")
        as_json = await node.shoal("top", "--json")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert re.search(r"2 peers|1 peer", text)
    assert "slow rate limited → fast" in text
    assert "from memory, by fast" in text
    assert "75% cached" in text
    assert "unset" not in text
    assert json.loads(as_json.stdout)["requests"]["live"] == 1


def test_a_peers_words_cannot_steer_the_terminal() -> None:
    text = "\n".join(drawn(sections(EVIL)))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x[/bold]" in text


def test_the_screen_fits_its_terminal_however_much_there_is() -> None:
    found = sections()
    found["requests"]["requests"] *= 30
    found["peers"]["peers"] *= 50
    found["providers"]["providers"] *= 20
    for width, height in ((60, 24), (80, 24), (120, 40), (200, 60)):
        lines = drawn(found, width, height)
        assert len(lines) <= height
        assert max(len(line) for line in lines) <= width


def test_nothing_yet_is_said_in_words() -> None:
    found = sections()
    found["requests"] |= {"requests": [], "by_cache": {}}
    found["peers"]["peers"], found["providers"]["providers"] = [], []
    found["cache"] = {"enabled": False}
    text = "\n".join(drawn(found))
    assert "nothing asked yet" in text
    assert "shoal status" in text


async def test_top_without_a_node_says_how_to_start_one(tmp_path: Path) -> None:
    done = await shoal("top", "--data-dir", str(tmp_path))
    assert done.returncode == 4
    assert b"shoal run" in done.stderr


# -- status --watch --------------------------------------------------------------------------------------------


async def test_status_is_shown_again_and_again_until_it_is_interrupted(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/status"] = {"version": "0", "swarm": {}}
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                lambda task_status: trio.run_process(
                    [SHOAL, "status", "--watch", "--json", "--every", "0.1", "--data-dir", str(tmp_path)],
                    capture_stdout=True, capture_stderr=True, check=False, task_status=task_status,
                )
            )  # fmt: skip
            with trio.fail_after(20):
                while len(node.asked) < 3:
                    await trio.sleep(0.02)
            process.send_signal(signal.SIGINT)
            with trio.fail_after(10):
                await process.wait()
    assert process.returncode == 0


# -- chat ------------------------------------------------------------------------------------------------------


def talking(node: FakeNode, *answers: str) -> None:
    left = list(answers)

    async def handler(exchange: Exchange) -> None:
        async with exchange.stream(200, WHO) as send:
            await send(chunk(left.pop(0)))
            await send(chunk(finish="stop"))
            await send(DONE)

    node.answers["POST /v1/chat/completions"] = handler


async def test_each_turn_is_asked_with_those_before(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        talking(node, "Cold.", "Dry.")
        done = await node.shoal("chat", "--system", "Be brief.", stdin=b"opposite of hot?\n\nand of wet?\n")
        bodies = [json.loads(body) for _, _, body in node.asked]
    assert (done.returncode, done.stdout) == (0, b"Cold.\nDry.\n")
    assert [m["content"] for m in bodies[1]["messages"]] == ["Be brief.", "opposite of hot?", "Cold.", "and of wet?"]
    assert [m["role"] for m in bodies[1]["messages"]] == ["system", "user", "assistant", "user"]


async def test_commands_change_the_conversation_and_are_not_asked(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    async with fake_node(tmp_path) as node:
        talking(node, "Cold.", "Dry.", "Blue.")
        lines = [
            "hot?",
            "/undo",
            "/model m2",
            "wet?",
            f"/save {saved}",
            "/new",
            "/frob",
            "sky\\",
            "colour?",
            "/quit",
            "x",
        ]
        done = await node.shoal("chat", stdin="\n".join(lines).encode())
        bodies = [json.loads(body) for _, _, body in node.asked]
    assert done.returncode == 0
    assert [[m["content"] for m in body["messages"]] for body in bodies] == [["hot?"], ["wet?"], ["sky\ncolour?"]]
    assert [body.get("model") for body in bodies] == [None, "m2", "m2"]
    assert [turn["content"] for turn in json.loads(saved.read_text())] == ["wet?", "Dry."]
    assert b"/frob is no command" in done.stderr


async def test_a_failure_ends_a_script_with_its_status(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        done = await node.shoal("chat", stdin=b"hot?\nwet?\n")
    assert done.returncode == 1
    assert len(node.asked) == 1
    assert b"There is nothing here." in done.stderr


def test_a_turn_can_be_taken_back() -> None:
    talk = Conversation("m", None, {"temperature": None, "max_tokens": 5})
    talk.add("a", "b")
    assert talk.undo()
    assert not talk.undo()
    body = talk.body("c")
    assert body["messages"] == [{"role": "user", "content": "c"}]
    assert (body["model"], body["max_tokens"]) == ("m", 5)
    assert "temperature" not in body
