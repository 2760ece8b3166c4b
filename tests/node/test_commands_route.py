"""`shoal route last` as people and programs read it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from .fake_node import FakeNode, fake_node

NOTE = {
    "at": 1.0,
    "ms": 1234.0,
    "caller": "local",
    "asked_model": "fast",
    "provider": "openrouter",
    "model": "m2",
    "peer": None,
    "cache": "miss",
    "cid": None,
    "outcome": "ok",
    "attempts": [
        {"provider": "desk", "model": "m1", "outcome": "interrupted", "ms": 900.0, "first_token_ms": 80.0,
         "reason": "desk broke off: the upstream closed the connection"},
        {"provider": "openrouter", "model": "m2", "outcome": "ok", "ms": 300.0, "first_token_ms": 100.0,
         "way": "prefix"},
    ],
}  # fmt: skip


@pytest.fixture
async def node(tmp_path: Path):
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/route/last"] = NOTE
        yield node


async def test_the_last_route_says_who_was_tried_why_each_was_left_and_how_long_it_took(node: FakeNode) -> None:
    said = (await node.shoal("route", "last")).stdout.decode()
    assert "openrouter with m2" in said
    rows = [line.split() for line in said.splitlines() if line.split()[:1] in (["desk"], ["openrouter"])]
    assert rows[0][:7] == ["desk", "m1", "interrupted", "80", "ms", "900", "ms"]
    assert "broke off" in " ".join(rows[0])
    assert rows[1][:8] == ["openrouter", "m2", "ok", "100", "ms", "300", "ms", "prefix"]


async def test_as_json_it_is_the_nodes_own_note(node: FakeNode) -> None:
    assert json.loads((await node.shoal("route", "last", "--json")).stdout) == NOTE


async def test_it_says_which_engine_of_this_machine_is_asked_first_and_why(node: FakeNode) -> None:
    measured = {"decode_tps": 40.0, "first_token_ms": 50.0, "measured_at": time.time() - 7200}
    node.answers["GET /shoal/v1/route/last"] = NOTE | {
        "engines": [
            {"provider": "backend_manager", "model": "m", "expected_s": 2.55, **measured},
            {"provider": "local_hf", "model": "m", "decode_tps": 107.0, "expected_s": 0.95},
            {"provider": "third", "model": "m"},
        ]
    }
    lines = (await node.shoal("route", "last")).stdout.decode().splitlines()
    [slow] = [line for line in lines if "backend_manager/m" in line]
    assert "engine here" in slow
    assert "40 tokens/s, first token 50 ms, 2h00m ago; slower, so asked after the others" in slow
    assert any(line.strip() == "local_hf/m: 107 tokens/s" for line in lines)
    assert any(line.strip() == "third/m: not measured yet" for line in lines)
