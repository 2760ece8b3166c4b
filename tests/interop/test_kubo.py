"""Blocks to and from a real Kubo, directly connected. `make interop` installs it (tests/interop/install.sh)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import pathlib
import subprocess
from collections.abc import AsyncIterator

import cbrrr
import pytest
import trio
from shoal.protocols.p2p.bitswap import Bitswap
from shoal.protocols.p2p.host import Host
from shoal.protocols.peer_id import Identity, PeerId

from tests.interop.ipfs_processes import Spoken, free_port

pytestmark = pytest.mark.interop

HERE = pathlib.Path(__file__).parent
PYTHON = HERE.parent.parent / "build" / "interop" / "venv" / "bin" / "python"
RAW, DAG_CBOR = 0x55, 0x71


def cid_of(codec: int, data: bytes) -> bytes:
    return bytes([1, codec, 0x12, 0x20]) + hashlib.sha256(data).digest()


def text_of(cid: bytes) -> str:
    return "b" + base64.b32encode(cid).decode().rstrip("=").lower()


class Blocks(dict[bytes, bytes]):
    def put(self, codec: int, data: bytes) -> str:
        cid = cid_of(codec, data)
        self[cid] = data
        return text_of(cid)


class Kubo(Spoken):
    """One Kubo in a child process."""

    def __init__(self, process: trio.Process, repository: pathlib.Path, port: int) -> None:
        super().__init__("Kubo", process, port)
        self.repository = repository

    def block(self, cid: bytes) -> bytes | None:
        """The bytes in Kubo's own store (flatfs): they are there only when Kubo has checked them."""
        name = base64.b32encode(cid[-34:]).decode().rstrip("=")
        files = list((self.repository / "blocks").glob(f"*/{name}.data"))
        return files[0].read_bytes() if files else None


@contextlib.asynccontextmanager
async def a_kubo(directory: pathlib.Path, routing: str = "none") -> AsyncIterator[Kubo]:
    if not PYTHON.exists():
        pytest.fail("Kubo is not installed: run `make interop`, or tests/interop/install.sh")
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    repository = directory / "kubo"
    with (directory / "kubo.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            [str(PYTHON), str(HERE / "kubo_node.py"), str(repository), str(port), routing],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=directory,  # it writes a log of its own where it stands
        )
        try:
            kubo = Kubo(process, repository, port)
            with trio.fail_after(60):
                ready = await kubo.answer()
            assert ready["ready"], (directory / "kubo.log").read_text()
            kubo.peer_id = PeerId(ready["id"])
            yield kubo
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


@contextlib.asynccontextmanager
async def a_node() -> AsyncIterator[tuple[Host, Bitswap, Blocks]]:
    host, blocks = Host(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"]), Blocks()
    bitswap = Bitswap(host, blocks)
    async with host.running(), bitswap.running():
        yield host, bitswap, blocks


async def test_kubo_fetches_a_record_and_what_it_links_to(tmp_path: pathlib.Path) -> None:
    async with a_kubo(tmp_path) as kubo, a_node() as (host, _, blocks):
        content = b"a long answer " * 30_000
        content_cid = cid_of(RAW, content)
        blocks[content_cid] = content
        record = cbrrr.encode_dag_cbor({"v": 1, "content": cbrrr.CID(content_cid), "model": "m", "sig": bytes(64)})
        text = blocks.put(DAG_CBOR, record)
        await host.connect(kubo.peer_id, kubo.addresses)
        began = trio.current_time()
        with trio.fail_after(20):
            assert await kubo.do("pin", cid=text) >= 0
        print(f"Kubo fetched a record and its content in {(trio.current_time() - began) * 1000:.0f} ms")
        assert kubo.block(cid_of(DAG_CBOR, record)) == record
        assert kubo.block(content_cid) == content


async def test_kubo_that_dials_us_fetches_a_raw_block(tmp_path: pathlib.Path) -> None:
    async with a_kubo(tmp_path) as kubo, a_node() as (host, _, blocks):
        text = blocks.put(RAW, b"hello from the other implementation")
        with trio.fail_after(20):
            await kubo.do("connect", address=host.addresses()[0])
            assert host.connected() == [kubo.peer_id]
            assert await kubo.do("download", cid=text, path=str(tmp_path / "out")) >= 0
        assert (tmp_path / "out").read_bytes() == b"hello from the other implementation"


async def test_kubo_gets_a_block_that_is_added_after_it_asked(tmp_path: pathlib.Path) -> None:
    async with a_kubo(tmp_path) as kubo, a_node() as (host, bitswap, blocks), trio.open_nursery() as nursery:
        await host.connect(kubo.peer_id, kubo.addresses)
        data = cbrrr.encode_dag_cbor({"late": True})
        cid = cid_of(DAG_CBOR, data)

        async def add_when_wanted() -> None:
            while not any(cid in peer._wanted for peer in bitswap._peers.values()):
                await trio.sleep(0.01)
            blocks.put(DAG_CBOR, data)
            bitswap.announce(cid)

        nursery.start_soon(add_when_wanted)
        with trio.fail_after(20):
            assert await kubo.do("pin", cid=text_of(cid)) >= 0
        assert kubo.block(cid) == data


async def test_a_block_is_fetched_from_kubo(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"what Kubo knows " * 1000)
    async with a_kubo(tmp_path) as kubo, a_node() as (host, bitswap, _):
        await host.connect(kubo.peer_id, kubo.addresses)
        cid = await kubo.do("add", path=str(tmp_path / "file"))
        began = trio.current_time()
        block = await bitswap.fetch(cid, timeout=10)
        print(f"fetched {len(block)} bytes from Kubo in {(trio.current_time() - began) * 1000:.0f} ms")
        assert b"what Kubo knows " * 1000 in block  # a UnixFS node around the file


async def test_many_blocks_are_fetched_by_kubo_in_one_go(tmp_path: pathlib.Path) -> None:
    async with a_kubo(tmp_path) as kubo, a_node() as (host, _, blocks):
        leaves = [f"leaf {i}".encode() * 100 for i in range(300)]
        cids = [cid_of(RAW, leaf) for leaf in leaves]
        blocks.update(zip(cids, leaves, strict=True))
        root = blocks.put(DAG_CBOR, cbrrr.encode_dag_cbor([cbrrr.CID(cid) for cid in cids]))
        await host.connect(kubo.peer_id, kubo.addresses)
        began = trio.current_time()
        with trio.fail_after(30):
            assert await kubo.do("pin", cid=root) >= 0
        print(f"Kubo fetched {len(leaves)} blocks in {(trio.current_time() - began) * 1000:.0f} ms")
        assert all(kubo.block(cid) == leaf for cid, leaf in zip(cids, leaves, strict=True))


async def test_kubo_is_told_at_once_that_a_block_is_not_here(tmp_path: pathlib.Path) -> None:
    async with a_kubo(tmp_path) as kubo, a_node() as (host, bitswap, _):
        await host.connect(kubo.peer_id, kubo.addresses)
        with trio.move_on_after(1) as scope:
            await kubo.do("pin", cid=text_of(cid_of(RAW, b"nowhere")))
        assert scope.cancelled_caught  # Kubo goes on looking; we neither failed nor lied
        assert bitswap.counters.served_blocks == 0
        assert bitswap.counters.violations == 0
        assert host.connected() == [kubo.peer_id]
