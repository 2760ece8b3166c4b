"""`shoal cache pin|forget|export|import`, `shoal receipt` and `shoal verify FILE`, against a node's real RPC."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from shoal.cache.canonical import canonical_bytes
from shoal.cache.car import header, read_all, section
from shoal.cache.cid import DAG_CBOR, cid_of, cid_text
from shoal.cache.key import request_key
from shoal.cache.record import SignedRecord, sign
from shoal.cache.store import Store
from shoal.node import lock, state
from shoal.node.commands.cache_files import since_ms
from shoal.node.commands.exit_codes import ExitCode
from shoal.node.commands.failures import CommandError
from shoal.providers.base import GenerateRequest

from .fake_node import shoal
from .fakes_router import ME
from .fakes_rpc import Door, door

LONG = "The sea was calm. " * 20_000
PROMPT = "What is the opposite of hot?"


class Seaside:
    """A node with a disk, found by commands as any other is."""

    def __init__(self, rpc: Door, data: Path) -> None:
        self.rpc, self.data = rpc, data

    async def shoal(self, *arguments: str, stdin: bytes = b"") -> CompletedProcess[bytes]:
        return await shoal(*arguments, "--data-dir", str(self.data), stdin=stdin)

    async def told(self, *arguments: str) -> Any:
        done = await self.shoal(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def remember(self, prompt: str = PROMPT, content: str = "Cold.", **options: Any) -> SignedRecord:
        request = GenerateRequest.of(prompt, **options)
        key = request_key(request)
        signed = sign(ME, key, request, provider="p", model="m1", content=content, finish="stop", link_text=True)
        self.rpc.cache.remember(signed)
        return signed


@asynccontextmanager
async def seaside(data: Path) -> AsyncGenerator[Seaside]:
    data.mkdir()
    async with Store(data / "answers.sqlite").running() as store, door() as rpc:
        rpc.cache.store = store
        with lock.hold(data), state.rpc_announced(data, f"127.0.0.1:{rpc.port}", ME.peer_id, "0"):
            yield Seaside(rpc, data)


async def test_an_answer_is_pinned_unpinned_and_forgotten_by_its_question(tmp_path: Path) -> None:
    async with seaside(tmp_path / "n") as node:
        signed = node.remember()
        node.remember(temperature=0.0)
        node.remember("something else")
        assert (await node.shoal("cache", "pin", signed.cid_text)).stdout == b"1 answer pinned\n"
        assert (await node.shoal("cache", "unpin", signed.cid_text)).stdout == b"1 answer no longer pinned\n"
        done = await node.shoal("cache", "forget", "--prompt", PROMPT)
        assert done.stdout.startswith(b"2 answers forgotten here\n")
        assert b"cannot be taken back" in done.stdout
        again = await node.shoal("cache", "forget", "--prompt", "-", stdin=PROMPT.encode())
        assert again.returncode == ExitCode.NO_ANSWER
        for arguments in (["forget"], ["forget", signed.cid_text, "--prompt", "x"], ["pin", "../status"]):
            assert (await node.shoal("cache", *arguments)).returncode == ExitCode.USAGE


async def test_an_export_is_imported_elsewhere_and_once_only(tmp_path: Path) -> None:
    file = tmp_path / "answers.car"
    async with seaside(tmp_path / "a") as node:
        made = [node.remember(str(n), LONG if n in (3, 7) else f"answer {n} " * 50) for n in range(40)]
        told = await node.told("cache", "export", str(file))
        assert told["answers"] == 40
        assert (await node.told("cache", "export", "--model", "m2", str(tmp_path / "none.car")))["answers"] == 0
        assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []
    roots, _ = read_all(file.read_bytes())
    assert cid_text(roots[0]) == told["root"]
    async with seaside(tmp_path / "b") as node:
        first = await node.told("cache", "import", str(file))
        assert (first["imported"], first["known"], first["refused"]) == (40, 0, {})
        again = await node.told("cache", "import", str(file))
        assert (again["imported"], again["known"]) == (0, 40)
        for signed in made:
            assert await node.rpc.cache.block(signed.cid) == signed.block
    async with seaside(tmp_path / "c") as node:  # as Kubo would have written it: a record, then what it links
        _, blocks = read_all(file.read_bytes())
        (tmp_path / "back.car").write_bytes(header(roots) + b"".join(section(*one) for one in reversed(blocks)))
        told = await node.told("cache", "import", "--private", str(tmp_path / "back.car"))
        assert (told["imported"], told["refused"]) == (40, {})
        assert all(node.rpc.cache.public_block(signed.cid) is None for signed in made)


async def test_a_damaged_file_is_refused_before_anything_is_taken_in(tmp_path: Path) -> None:
    async with seaside(tmp_path / "n") as node:
        signed = node.remember()
        file = tmp_path / "x.car"
        whole = header([signed.cid]) + section(signed.cid, signed.block)
        for data in (b"nothing of the kind", whole[:-1], whole[:-1] + b"x"):
            file.write_bytes(data)
            done = await node.shoal("cache", "import", str(file))
            assert done.returncode == ExitCode.REFUSED
            assert done.stderr.count(b"\n") == 1
        forged = signed.block.replace(b"Cold.", b"Warm.")
        file.write_bytes(header([signed.cid]) + section(cid_of(DAG_CBOR, forged), forged))
        done = await node.shoal("cache", "import", str(file))
        assert (done.returncode, b"1 refused: content" in done.stdout) == (ExitCode.REFUSED, True)


@pytest.mark.parametrize("content", ["Cold.", LONG])
async def test_a_receipt_is_verified_without_a_node(tmp_path: Path, content: str) -> None:
    file = tmp_path / "answer.receipt"
    async with seaside(tmp_path / "n") as node:
        signed = node.remember(content=content)
        await node.rpc.cache.store.flush()  # type: ignore[union-attr]
        told = await node.told("receipt", signed.cid_text, "--prompt", PROMPT, "-o", str(file))
        assert (told["cid"], told["question"]) == (signed.cid_text, True)
        wrong = await node.shoal("receipt", signed.cid_text, "--prompt", "Why?", "-o", str(tmp_path / "no"))
        assert wrong.returncode == ExitCode.REFUSED
        assert b"not the question" in wrong.stderr
        piped = await node.shoal("receipt", cid_text(signed.record.request))  # by the request's CID, without the text
        assert piped.returncode == 0
    done = await shoal("verify", str(file), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["cid"]) == (0, True, signed.cid_text)
    assert (found["node"], found["content"]) == (ME.peer_id, content)
    assert found["messages"] == [{"role": "user", "content": PROMPT}]
    assert all(
        step["ok"] for step in found["steps"] if step["name"] in ("block hash", "request", "content", "signature")
    )
    people = await shoal("verify", str(file))
    assert b"verified\n" in people.stdout
    assert PROMPT.encode() in people.stdout
    short = await shoal("verify", "-", stdin=piped.stdout)
    assert short.returncode == 0
    assert (await shoal("verify", str(file), "--cid", cid_text(signed.record.request))).returncode == ExitCode.REFUSED


async def test_a_forged_receipt_is_refused(tmp_path: Path) -> None:
    request = GenerateRequest.of(PROMPT)
    signed = sign(ME, request_key(request), request, provider="p", model=None, content="Cold.", finish="stop")
    forged = signed.block.replace(b"Cold.", b"Warm.")
    file = tmp_path / "x.receipt"
    file.write_bytes(header([cid_of(DAG_CBOR, forged)]) + section(cid_of(DAG_CBOR, forged), forged))
    done = await shoal("verify", str(file))
    assert done.returncode == ExitCode.REFUSED
    assert b"BAD  signature" in done.stdout
    other = canonical_bytes(GenerateRequest.of("Another question"))
    file.write_bytes(header([signed.cid]) + section(signed.cid, signed.block) + section(cid_of(DAG_CBOR, other), other))
    found = json.loads((await shoal("verify", str(file), "--json")).stdout)
    assert found["ok"]
    assert "messages" not in found  # a question that the record does not answer is not shown as its question
    for data in (header([]), header([signed.cid]), b"\x3aeroots"):
        file.write_bytes(data)
        assert (await shoal("verify", str(file))).returncode == ExitCode.REFUSED


def test_since_is_a_date_or_an_age() -> None:
    assert since_ms(None) == 0
    assert since_ms("2026-01-01") == since_ms("2026-01-01T00:00+00:00") == 1_767_225_600_000
    assert since_ms("2d", now=1_767_225_600) == 1_767_225_600_000 - 2 * 86_400_000
    for text in ("yesterday", "7y", "-1d", ""):
        with pytest.raises(CommandError, match="7d"):
            since_ms(text)
