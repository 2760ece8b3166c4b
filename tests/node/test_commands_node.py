"""The commands that look into a running node, and those that do without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shoal.cache.key import request_key
from shoal.cache.record import sign
from shoal.node import state
from shoal.node.commands.exit_codes import ExitCode
from shoal.node.swarm.invite import Invite
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.peer_id import Identity
from shoal.providers.base import GenerateRequest

from .fake_node import FakeNode, fake_node, shoal

ME = Identity.from_seed(bytes(32))
REQUEST = GenerateRequest.of("What is the opposite of hot?", temperature=0.0)
SIGNED = sign(ME, request_key(REQUEST), REQUEST, provider="local_hf", model="smollm2", content="Cold.", finish="stop")
INVITE = Invite(swarm="home", addrs=(f"/ip4/192.0.2.7/tcp/4642/p2p/{ME.peer_id}",)).text


@pytest.fixture
async def node(tmp_path: Path):
    async with fake_node(tmp_path) as node:
        yield node


async def test_providers_shows_who_is_ready_and_why_others_are_not(node: FakeNode) -> None:
    ready = {"name": "local_hf", "ready": True, "share": True, "models": [{"name": "smollm2"}], "reason": ""}
    other = {"name": "openrouter", "ready": False, "share": False, "models": [], "reason": "no key; set [x]"}
    node.answers["GET /shoal/v1/providers"] = {"providers": [ready, other]}
    lines = (await node.shoal("providers")).stdout.decode().splitlines()
    assert lines[1].split() == ["local_hf", "ready", "yes", "smollm2"]
    assert lines[2].split(maxsplit=3) == ["openrouter", "no", "no", "no key; set [x]"]
    assert json.loads((await node.shoal("providers", "--json")).stdout)["providers"] == [ready, other]


async def test_peers_shows_whole_ids_and_why_one_is_away(node: FakeNode) -> None:
    here = {"peer": ME.peer_id, "connected": True, "rtt_s": 0.012, "models": [{"name": "smollm2"}]}
    away = {"peer": ME.peer_id, "connected": False, "problem": "no answer within 20 s", "models": []}
    node.answers["GET /shoal/v1/peers"] = {"peers": [here | {"hardware": {"cpu": "Example 9000"}}, away]}
    lines = (await node.shoal("peers")).stdout.decode().splitlines()
    assert lines[1].split() == [ME.peer_id, "connected", "12", "ms", "smollm2", "Example", "9000"]
    assert lines[2].split(maxsplit=2) == [ME.peer_id, "away", "no answer within 20 s"]


async def test_no_peers_says_how_to_get_some(node: FakeNode) -> None:
    node.answers["GET /shoal/v1/peers"] = {"peers": []}
    assert b"run `shoal join INVITE`" in (await node.shoal("peers")).stdout


async def test_status_shows_a_private_swarms_invite_to_its_owner(node: FakeNode, tmp_path: Path) -> None:
    node.answers["GET /shoal/v1/status"] = {"version": "1", "swarm": {"name": "home", "private": True, "invite": ""}}
    found = state._read(tmp_path / "rpc.json", state.RpcState)
    assert found is not None
    state._write(tmp_path / "rpc.json", state.RpcState(**{**_fields(found), "invite": INVITE}))
    assert f"invite     {INVITE}\n".encode() in (await node.shoal("status")).stdout
    assert json.loads((await node.shoal("status", "--json")).stdout)["swarm"]["invite"] == INVITE


def _fields(found: state.RpcState) -> dict[str, object]:
    return {name: getattr(found, name) for name in found.__struct_fields__}


# -- joining ---------------------------------------------------------------------------------------------------


async def test_join_asks_the_running_node(node: FakeNode) -> None:
    node.answers["POST /shoal/v1/join"] = {"swarm": "home", "moving": False}
    done = await node.shoal("join", INVITE)
    assert done.stdout == b"joined the swarm 'home'; see `shoal peers`\n"
    assert json.loads(node.asked[0][2]) == {"invite": INVITE}


async def test_a_join_that_fails_is_the_nodes_own_words(node: FakeNode) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.respond(400, b'{"error": {"message": "no node of the invite could be reached"}}')

    node.answers["POST /shoal/v1/join"] = refuse
    done = await node.shoal("join", INVITE)
    assert done.returncode == ExitCode.NO_ANSWER
    assert done.stderr == b"shoal: no node of the invite could be reached\n"


async def test_a_damaged_invite_is_wrong_usage_and_not_repeated(node: FakeNode) -> None:
    done = await node.shoal("join", INVITE[:-3])
    assert done.returncode == ExitCode.USAGE
    assert b"incomplete or has a typing error" in done.stderr
    assert INVITE[:-3].encode() not in done.stderr
    assert not node.asked


async def test_without_a_node_the_invite_is_kept_for_the_next_start(tmp_path: Path) -> None:
    done = await shoal("join", INVITE, "--data-dir", str(tmp_path / "d"))
    assert done.returncode == 0
    assert b"the next `shoal run` joins the swarm 'home'" in done.stdout
    remembered = state.remembered_swarm(tmp_path / "d")
    assert remembered is not None
    assert remembered.invite == INVITE
    assert (await shoal("join", "--forget", "--data-dir", str(tmp_path / "d"))).returncode == 0
    assert state.remembered_swarm(tmp_path / "d") is None


# -- the cache and its records ---------------------------------------------------------------------------------


async def test_cache_get_prints_the_answer_its_record_or_its_block(node: FakeNode, tmp_path: Path) -> None:
    async def block(exchange: Exchange) -> None:
        await exchange.respond(200, SIGNED.block)

    path = f"/shoal/v1/cache/{SIGNED.cid_text}"
    node.answers[f"GET {path}"] = {"cid": SIGNED.cid_text, "content": "Cold."}
    node.answers[f"GET {path}?format=raw"] = block
    assert (await node.shoal("cache", "get", SIGNED.cid_text)).stdout == b"Cold.\n"
    assert json.loads((await node.shoal("cache", "get", SIGNED.cid_text, "--json")).stdout)["content"] == "Cold."
    assert (await node.shoal("cache", "get", "--raw", SIGNED.cid_text)).stdout == SIGNED.block
    await node.shoal("cache", "get", "--raw", SIGNED.cid_text, "-o", str(tmp_path / "a.cbor"))
    assert (tmp_path / "a.cbor").read_bytes() == SIGNED.block


async def test_cache_get_of_what_is_not_there_is_exit_status_1(node: FakeNode) -> None:
    assert (await node.shoal("cache", "get", SIGNED.cid_text)).returncode == ExitCode.NO_ANSWER


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "bafy?format=raw", "short"])
async def test_what_is_no_cid_is_not_asked_for(node: FakeNode, text: str) -> None:
    assert (await node.shoal("cache", "get", text)).returncode == ExitCode.USAGE
    assert not node.asked


async def test_cache_list_and_stats_are_tables(node: FakeNode) -> None:
    row = {"cid": SIGNED.cid_text, "model": "smollm2", "provider": "local_hf", "bytes": 852, "node": ME.peer_id}
    node.answers["GET /shoal/v1/cache?list=7"] = {"answers": [row]}
    node.answers["GET /shoal/v1/cache"] = {"mode": "cid", "disk": {"bytes": 2048}, "publisher": None}
    listed = (await node.shoal("cache", "list", "--limit", "7")).stdout.decode()
    assert listed.splitlines()[1].split() == [SIGNED.cid_text, "smollm2", "local_hf", "852", ME.peer_id]
    assert "disk      0 answers, 2.0 KiB of" in (await node.shoal("cache", "stats")).stdout.decode()


async def test_verify_asks_the_node_about_a_cid(node: FakeNode) -> None:
    step = {"name": "signature", "ok": True, "sentence": f"made by {ME.peer_id}"}
    node.answers[f"GET /shoal/v1/verify/{SIGNED.cid_text}"] = {"ok": True, "steps": [step]}
    done = await node.shoal("verify", SIGNED.cid_text)
    assert (done.returncode, done.stdout) == (0, f"ok   signature: made by {ME.peer_id}\nverified\n".encode())


async def test_verify_checks_a_file_without_a_node(tmp_path: Path) -> None:
    file = tmp_path / "answer.cbor"
    file.write_bytes(SIGNED.block)
    good = await shoal("verify", str(file), "--cid", SIGNED.cid_text)
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, b"verified")
    assert (await shoal("verify", "-", stdin=SIGNED.block)).returncode == 0
    bits = bytearray(SIGNED.block)
    bits[SIGNED.block.index(b"Cold.")] ^= 1
    file.write_bytes(bits)
    bad = await shoal("verify", str(file))
    assert bad.returncode == ExitCode.REFUSED
    assert b"BAD  signature" in bad.stdout
    assert b"refused" in bad.stdout
    assert json.loads((await shoal("verify", str(file), "--json")).stdout)["ok"] is False


async def test_verify_of_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"\xa0" * 1000):
        (tmp_path / "x").write_bytes(content)
        done = await shoal("verify", str(tmp_path / "x"))
        assert done.returncode == ExitCode.REFUSED


async def test_verify_of_neither_cid_nor_file_says_so(tmp_path: Path) -> None:
    done = await shoal("verify", str(tmp_path / "none.cbor"), "--data-dir", str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert b"is neither a CID nor a file" in done.stderr


# -- models ----------------------------------------------------------------------------------------------------


async def test_models_list_names_what_can_be_added(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SHOAL_MODELS_DIR", str(tmp_path / "models"))
    done = await shoal("models", "list", "--data-dir", str(tmp_path))
    assert b"run `shoal models add smollm2`" in done.stdout
    found = json.loads((await shoal("models", "list", "--json", "--data-dir", str(tmp_path))).stdout)
    assert found["models_dir"] == str(tmp_path / "models")
    assert not any(model["installed"] for model in found["models"])


async def test_adding_a_model_that_nobody_knows_is_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SHOAL_MODELS_DIR", str(tmp_path / "models"))
    done = await shoal("models", "add", "nobody-knows-it", "--data-dir", str(tmp_path))
    assert done.returncode == ExitCode.NO_ANSWER
    assert done.stderr.count(b"\n") == 1
