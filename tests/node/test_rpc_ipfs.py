"""The trustless gateway, and what the owner does with the cache over the RPC."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cbrrr
import pytest
from shoal.cache.car import header, read_all, section
from shoal.cache.cid import DAG_CBOR, RAW, cid_of, cid_text, parse_cid
from shoal.cache.key import request_key
from shoal.cache.record import sign
from shoal.cache.store import Store
from shoal.cache.tiers import AnswerCache
from shoal.providers.base import GenerateRequest

from .fakes_router import ME, OTHER, QUESTION, Scripted, says
from .fakes_rpc import Door, door

LONG = "The sea was calm. " * 20_000
CAR = "application/vnd.ipld.car"


@asynccontextmanager
async def a_door_with_a_disk(path: Path, *providers: Any) -> AsyncGenerator[Door]:
    async with Store(path).running() as store, door(*providers) as rpc:
        rpc.cache.store = store
        yield rpc


def remember(cache: AnswerCache, prompt: str = "q", content: str = "Cold.", **options: Any) -> Any:
    request = GenerateRequest.of(prompt, **options)
    signed = sign(
        ME, request_key(request), request, provider="first", model="m1", content=content, finish="stop", link_text=True
    )
    cache.remember(signed)
    return signed


async def test_a_block_is_given_raw_with_what_a_client_needs_to_check_and_keep_it() -> None:
    async with door() as rpc:
        signed = remember(rpc.cache)
        path = f"/ipfs/{signed.cid_text}"
        reply = await rpc.ask("GET", path + "?format=raw")
        accepted = await rpc.ask("GET", path, headers={"accept": "application/vnd.ipld.raw"})
        known = await rpc.ask("GET", path + "?format=raw", headers={"if-none-match": reply.headers["etag"]})
        head = await rpc.ask("HEAD", path + "?format=raw")
        text = await rpc.ask("GET", f"/ipfs/{cid_text(signed.record.text_cid)}?format=raw")
    assert (reply.status, reply.body) == (200, signed.block)
    assert reply.headers["content-type"] == "application/vnd.ipld.raw"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in reply.headers["cache-control"]
    assert reply.headers["x-ipfs-path"] == path
    assert accepted.body == signed.block
    assert (known.status, known.body) == (304, b"")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(signed.block)))
    assert text.body == b"Cold."


async def test_a_dag_is_given_as_a_car_that_verifies_with_its_links_depth_first(tmp_path: Path) -> None:
    async with a_door_with_a_disk(tmp_path / "a.db") as rpc:
        signed = remember(rpc.cache, content=LONG)
        assert rpc.cache.store is not None
        await rpc.cache.store.flush()
        reply = await rpc.ask("GET", f"/ipfs/{signed.cid_text}?format=car")
        alone = await rpc.ask("GET", f"/ipfs/{signed.cid_text}?format=car&dag-scope=block")
    roots, blocks = read_all(reply.body)
    assert reply.headers["content-type"] == f"{CAR}; version=1; order=dfs; dups=n"
    assert roots == [signed.cid]
    assert blocks == [(signed.cid, signed.block), (signed.extra_cid, signed.extra)]
    assert read_all(alone.body) == ([signed.cid], [(signed.cid, signed.block)])


async def test_a_car_that_cannot_be_whole_is_cut_and_not_ended() -> None:
    missing = cid_of(RAW, b"nowhere")
    block = bytes(cbrrr.encode_dag_cbor({"link": cbrrr.CID(missing)}))
    async with door() as rpc:
        rpc.node.blocks[cid_text(cid_of(DAG_CBOR, block))] = block
        async with await rpc.open() as stream:
            path = f"/ipfs/{cid_text(cid_of(DAG_CBOR, block))}?format=car"
            await stream.send_all(rpc.head("GET", path, {}, b""))
            data = b""
            try:
                while piece := await stream.receive_some(65536):
                    data += piece
            except Exception:
                data += b"cut"
    assert not data.endswith(b"0\r\n\r\n")


async def test_what_is_not_here_comes_from_a_peer_unless_the_client_says_only_if_cached() -> None:
    block = b"a peer's block"
    text = cid_text(cid_of(RAW, block))
    async with door() as rpc:
        rpc.node.blocks[text] = block
        assert (await rpc.ask("GET", f"/ipfs/{text}?format=raw")).body == block
        local = await rpc.ask("GET", f"/ipfs/{text}?format=raw", headers={"cache-control": "only-if-cached"})
        nowhere = await rpc.ask("GET", f"/ipfs/{cid_text(cid_of(RAW, b'?'))}?format=raw")
    assert (local.status, nowhere.status) == (412, 404)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ipfs/bafkqaaa?format=raw", 200),
        ("/ipfs/nonsense?format=raw", 400),
        ("/ipfs/{cid}", 406),
        ("/ipfs/{cid}?format=tar", 406),
        ("/ipfs/{cid}/content?format=raw", 400),
        ("/ipfs/{cid}?format=car&dag-scope=half", 400),
        ("/ipfs/{cid}?format=car&car-version=2", 400),
        ("/ipfs/QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n?format=raw", 400),
    ],
)
async def test_what_the_gateway_does_not_do_is_said(path: str, status: int) -> None:
    async with door() as rpc:
        signed = remember(rpc.cache)
        assert (await rpc.ask("GET", path.format(cid=signed.cid_text))).status == status


# -- keeping and forgetting --------------------------------------------------------------------------------------


async def test_an_answer_is_pinned_and_unpinned_by_its_cid_or_its_requests(tmp_path: Path) -> None:
    async with a_door_with_a_disk(tmp_path / "a.db") as rpc:
        signed = remember(rpc.cache)
        for name in (signed.cid_text, cid_text(signed.record.request), signed.record.request[-32:].hex()):
            for pinned in (True, False):
                reply = await rpc.ask("POST", "/shoal/v1/cache/pin", {"cid": name, "pinned": pinned})
                assert reply.json == {"answers": 1, "pinned": pinned}
                (row,) = (await rpc.ask("GET", "/shoal/v1/cache?list=5")).json["answers"]
                assert row["pinned"] is pinned
        for body in ({}, {"cid": "nonsense"}, {"cid": signed.cid_text, "pinned": 3}):
            assert (await rpc.ask("POST", "/shoal/v1/cache/pin", body)).status == 400
        absent = await rpc.ask("POST", "/shoal/v1/cache/pin", {"cid": cid_text(cid_of(RAW, b"?"))})
        assert absent.status == 404


async def test_an_answer_is_forgotten_and_what_cannot_be_taken_back_is_said(tmp_path: Path) -> None:
    async with a_door_with_a_disk(tmp_path / "a.db") as rpc:
        signed = remember(rpc.cache)
        reply = await rpc.ask("POST", "/shoal/v1/cache/forget", {"cid": signed.cid_text})
        assert (reply.json["records"], reply.json["shared"]) == (1, 1)
        assert "cannot be taken back" in " ".join(reply.json["notes"])
        for cid in (signed.cid_text, cid_text(signed.record.text_cid)):
            assert (await rpc.ask("GET", f"/ipfs/{cid}?format=raw")).status == 404
        assert (await rpc.ask("POST", "/shoal/v1/cache/forget", {"cid": signed.cid_text})).status == 404


async def test_an_answer_is_forgotten_by_its_question(tmp_path: Path) -> None:
    async with a_door_with_a_disk(tmp_path / "a.db", Scripted("first", says("Cold.", model="m1"))) as rpc:
        await rpc.chat(temperature=0)
        await rpc.chat()
        await rpc.chat(max_tokens=5)
        question = {"messages": [{"role": "user", "content": "What is the opposite of hot?"}]}
        exact = await rpc.ask("POST", "/shoal/v1/cache/forget", {"request": {**question, "max_tokens": 5}})
        assert exact.json["records"] == 1
        near = await rpc.ask("POST", "/shoal/v1/cache/forget", {"request": question, "near": True})
        assert near.json["records"] == 2
        assert (await rpc.ask("GET", "/shoal/v1/cache?list=5")).json == {"answers": []}
        assert (await rpc.ask("POST", "/shoal/v1/cache/forget", {"request": {"messages": 5}})).status == 400


# -- files -------------------------------------------------------------------------------------------------------


async def test_an_export_is_one_dag_and_an_import_takes_each_answer_once(tmp_path: Path) -> None:
    async with a_door_with_a_disk(tmp_path / "a.db") as rpc:
        made = [remember(rpc.cache, str(n), "Cold." if n else LONG) for n in range(5)]
        reply = await rpc.ask("GET", "/shoal/v1/cache/export")
        assert reply.headers["x-shoal-answers"] == "5"
        later = await rpc.ask("GET", f"/shoal/v1/cache/export?since={int(time.time() * 1000) + 1000}")
        assert later.headers["x-shoal-answers"] == "0"
        other = await rpc.ask("GET", "/shoal/v1/cache/export?model=m2")
        assert other.headers["x-shoal-answers"] == "0"
        assert (await rpc.ask("GET", "/shoal/v1/cache/export?since=yesterday")).status == 400
    (root,), blocks = read_all(reply.body)
    assert blocks[0][0] == root
    assert {cid for cid, _ in blocks[1:]} == {cid for signed in made for cid, _ in signed.blocks}
    async with a_door_with_a_disk(tmp_path / "b.db") as rpc:
        first = await rpc.ask("POST", "/shoal/v1/cache/import", reply.body)
        assert first.json == {"imported": 5, "known": 0, "other": 2, "refused": {}}
        again = await rpc.ask("POST", "/shoal/v1/cache/import", reply.body)
        assert again.json == {"imported": 0, "known": 5, "other": 3, "refused": {}}
        for signed in made:
            assert (await rpc.ask("GET", f"/shoal/v1/cache/{signed.cid_text}")).json["content"] == signed.record.content


async def test_what_does_not_hold_is_refused_by_an_import_and_counted(tmp_path: Path) -> None:
    key = request_key(QUESTION)
    good = sign(OTHER, key, QUESTION, provider="p", model=None, content="Cold.", finish="stop")
    form = cbrrr.decode_dag_cbor(good.block)
    forged = bytes(cbrrr.encode_dag_cbor({**form, "content": "Warm."}))
    long = sign(OTHER, key, QUESTION, provider="p", model=None, content=LONG, finish="stop")
    body = header([good.cid])
    for block in (good.block, forged, long.block):  # the long one's content is not in the file
        body += section(cid_of(DAG_CBOR, block), block)
    async with a_door_with_a_disk(tmp_path / "a.db") as rpc:
        reply = await rpc.ask("POST", "/shoal/v1/cache/import", body)
        assert reply.json == {"imported": 1, "known": 0, "other": 0, "refused": {"signature": 1, "content": 1}}
        broken = await rpc.ask("POST", "/shoal/v1/cache/import", body[:-1] + b"x")
        assert broken.status == 400
        assert parse_cid(good.cid_text) == good.cid


async def test_a_request_says_how_far_its_answer_may_go(tmp_path: Path) -> None:
    async with a_door_with_a_disk(tmp_path / "a.db", Scripted("first", says("Cold.", model="m1"))) as rpc:
        cids = {}
        for word in ("none", "swarm", "ipfs"):
            question = {"messages": [{"role": "user", "content": word}]}
            reply = await rpc.ask("POST", "/v1/chat/completions", question, {"x-shoal-publish": word})
            cids[word] = parse_cid(reply.json["shoal"]["cid"])
        assert {word: rpc.cache.public_block(cid) is not None for word, cid in cids.items()} == {
            "none": False,
            "swarm": True,
            "ipfs": True,
        }
        wrong = await rpc.chat({"x-shoal-publish": "everywhere"})
        assert (wrong.status, wrong.error["param"]) == (400, "x-shoal-publish")
