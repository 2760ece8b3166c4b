"""Publishing to a real daemon over its RPC (js-ipfs: the one with Kubo's RPC that npm can install), and CARs."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
import requests
import trio
from shoal.cache.archive import export, plan_export
from shoal.cache.batch import links
from shoal.cache.cid import cid_text, parse_cid
from shoal.cache.kubo import KuboPublisher, PublisherStats
from shoal.cache.memory import Memory
from shoal.cache.record import SignedRecord
from shoal.cache.store import Store
from shoal.cache.tiers import AnswerCache

from tests.cache.answers import ALICE, LONG, answer, ask
from tests.e2e.fixtures import client, fast, in_thread, question, start
from tests.interop.ipfs_processes import CAR_PYTHON, JsIpfs, a_jsipfs
from tests.providers.fake_upstream import FakeUpstream

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning"),  # see cache/kubo_rpc.py
]


@contextlib.asynccontextmanager
async def publishing(directory: pathlib.Path, daemon: JsIpfs) -> AsyncIterator[AnswerCache]:
    store = Store(directory / "answers.sqlite")
    publisher = KuboPublisher(daemon.address, store, first_retry_s=0.1, timeout_s=10, linger_s=0.3)
    async with AnswerCache(ALICE.peer_id, memory=Memory(1 << 20), store=store, publisher=publisher).running() as cache:
        yield cache


def stats(cache: AnswerCache) -> PublisherStats:
    assert cache.publisher is not None
    return cache.publisher.stats()


async def until(condition: Callable[[], bool], within: float = 60) -> None:
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.02)


def made(number: int) -> list[SignedRecord]:
    return [answer(ask(str(n)), content=LONG if n == 3 else f"Answer {n}.", link_text=True) for n in range(number)]


async def test_a_batch_is_put_pinned_under_one_root_and_shown_by_the_gateway(tmp_path: pathlib.Path) -> None:
    async with a_jsipfs(tmp_path) as daemon, publishing(tmp_path, daemon) as cache:
        signed = made(20)
        cache.remember(signed[0])
        began = trio.current_time()
        for one in signed[1:]:
            cache.remember(one)
        await until(lambda: stats(cache).published == 20)
        print(f"20 answers published to js-ipfs in {(trio.current_time() - began):.1f} s, {stats(cache)}")
        for one in signed:
            for cid, block in one.blocks:
                assert await daemon.call("block/get", arg=cid_text(cid)) == block
        pins = await daemon.pins()
        roots = [cid for cid, kind in pins.items() if kind == "recursive" and cid.startswith("bafyr")]
        assert len(roots) == stats(cache).roots <= 2
        held = [link for root in roots for link in links(await daemon.call("block/get", arg=root)) or [parse_cid(root)]]
        assert set(held) == {one.cid for one in signed}
        assert all(pins[cid_text(cid)] for one in signed for cid, _ in one.blocks)
        assert await daemon.page(cid_text(signed[0].record.text_cid or b"")) == b"Answer 0."


async def test_one_answer_is_taken_out_of_its_batch_and_the_others_stay(tmp_path: pathlib.Path) -> None:
    async with a_jsipfs(tmp_path) as daemon, publishing(tmp_path, daemon) as cache:
        signed = made(5)
        for one in signed:
            cache.remember(one)
        await until(lambda: stats(cache).published == 5)
        assert (await cache.forget(signed[2].cid)).withdrawn == 1
        await until(lambda: stats(cache).withdrawn == 1)
        pins = await daemon.pins()
        assert signed[2].cid_text not in pins
        assert all(one.cid_text in pins for one in signed if one is not signed[2])
        refs = await daemon.call("refs/local")
        here = {parse_any(row["Ref"]) for row in (refs if isinstance(refs, list) else [refs])}
        assert all(cid[-32:] not in here for cid, _ in signed[2].blocks)
        assert all(one.cid[-32:] in here for one in signed if one is not signed[2])


def parse_any(text: str) -> bytes:
    """The digest at the end of any CID: js-ipfs lists its blocks as raw ones."""
    from multiformats import CID

    return bytes(CID.decode(text))[-32:]


async def test_a_daemon_that_is_killed_in_the_middle_loses_nothing(tmp_path: pathlib.Path) -> None:
    daemon = JsIpfs(tmp_path)
    await daemon.init()
    signed = made(40)
    async with publishing(tmp_path, daemon) as cache:
        for one in signed[:20]:
            cache.remember(one)
        async with daemon.running():
            await until(lambda: stats(cache).published > 0)
            for one in signed[20:]:
                cache.remember(one)
            await trio.sleep(0.5)  # it is at work now; where exactly the blow falls is left to chance
        await until(lambda: stats(cache).state == "waiting" or stats(cache).published == 40)
        async with daemon.running():
            await until(lambda: stats(cache).published == 40)
            pins = await daemon.pins()
            assert all(one.cid_text in pins for one in signed)
            assert stats(cache).refused == 0


async def test_an_export_is_imported_by_the_daemon_and_read_by_ipld_car(tmp_path: pathlib.Path) -> None:
    signed = made(30)
    store = Store(tmp_path / "answers.sqlite")
    async with AnswerCache(ALICE.peer_id, memory=Memory(1 << 20), store=store).running() as cache:
        for one in signed:
            cache.remember(one)
        plan = await plan_export(store)
        data = b"".join([piece async for piece in export(store, plan)])
    (tmp_path / "answers.car").write_bytes(data)
    program = (
        "import ipld_car, json, sys, hashlib\n"
        "roots, blocks = ipld_car.decode(open(sys.argv[1], 'rb').read())\n"
        "assert all(hashlib.sha256(b).digest() == bytes(c)[-32:] for c, b in blocks)\n"
        "print(json.dumps([[str(r) for r in roots], [c.encode('base32') for c, _ in blocks]]))\n"
    )
    command = [str(CAR_PYTHON), "-c", program, str(tmp_path / "answers.car")]
    run = await trio.to_thread.run_sync(partial(subprocess.run, command, capture_output=True, text=True, check=True))
    roots, cids = json.loads(run.stdout)
    assert len(roots) == 1
    assert {one.cid_text for one in signed} <= set(cids)
    async with a_jsipfs(tmp_path) as daemon:
        said = await daemon.call("dag/import", data)
        assert cid_text(plan.root) in json.dumps(said)
        pins = await daemon.pins()
        assert pins[cid_text(plan.root)] == "recursive"
        assert all(one.cid_text in pins for one in signed)


async def test_a_node_publishes_what_it_answers_and_a_browser_can_read_it(tmp_path: pathlib.Path) -> None:
    async with FakeUpstream() as upstream, a_jsipfs(tmp_path) as daemon:
        config = fast(upstream.url()) + f'[ipfs]\nkubo_api = "{daemon.address}"\n'
        with await start(tmp_path / "n", config=config) as node:
            ask_it = client(node).chat.completions.with_raw_response.create
            said = await in_thread(ask_it, **question("what goes out"))
            kept = await in_thread(ask_it, **question("what stays"), extra_headers={"x-shoal-publish": "swarm"})
            with trio.fail_after(30):
                while (
                    json.loads((await in_thread(node.shoal, "cache", "stats", "--json")).stdout)["publisher"][
                        "published"
                    ]
                    < 1
                ):
                    await trio.sleep(0.2)
            cid, private = said.headers["x-shoal-cid"], kept.headers["x-shoal-cid"]
            pins = await daemon.pins()
            assert cid in pins
            assert private not in pins
            raw = await in_thread(requests.get, f"{node.rpc}/ipfs/{cid}?format=raw", timeout=10)
            assert await daemon.call("block/get", arg=cid) == raw.content
            import cbrrr

            text = cid_text(bytes(cbrrr.decode_dag_cbor(raw.content)["text"].cid_bytes))
            assert await daemon.page(text) == b"ECHO<what goes out>"
            forgotten = await in_thread(node.shoal, "cache", "forget", cid)
            assert "unpin" in forgotten.stdout
            with trio.fail_after(30):
                while cid in await daemon.pins():
                    await trio.sleep(0.2)


async def test_a_private_swarms_answers_lie_at_the_daemon_sealed_and_only_where_its_owner_allows_it(
    tmp_path: pathlib.Path,
) -> None:
    swarm = f'[swarm]\nname = "reef"\nkey = "{"ab" * 32}"\n'
    async with FakeUpstream() as upstream, a_jsipfs(tmp_path) as daemon:
        config = fast(upstream.url()) + swarm + f'[ipfs]\nkubo_api = "{daemon.address}"\n'
        with await start(tmp_path / "silent", config=config) as node:
            await in_thread(client(node).chat.completions.create, **question("a secret"))
            told = json.loads((await in_thread(node.shoal, "cache", "stats", "--json")).stdout)
            assert told["publisher"] is None
        with await start(tmp_path / "n", config=config + 'private_swarms = ["reef"]\n') as node:
            said = await in_thread(client(node).chat.completions.with_raw_response.create, **question("another secret"))
            cid = said.headers["x-shoal-cid"]
            record = json.loads((await in_thread(node.shoal, "cache", "get", cid, "--json")).stdout)
            with trio.fail_after(30):
                while record["sealed"] not in (pins := await daemon.pins()):
                    await trio.sleep(0.2)
            assert cid not in pins
            block = await daemon.call("block/get", arg=record["sealed"])
            assert b"secret" not in block
            opened = json.loads((await in_thread(node.shoal, "cache", "get", record["sealed"], "--json")).stdout)
            assert opened["content"] == "ECHO<another secret>"
        refs = await daemon.call("refs/local")
        for row in refs if isinstance(refs, list) else [refs]:
            if row["Ref"].startswith("baf"):
                assert b"another secret" not in await daemon.call("block/get", arg=row["Ref"])
