"""Publishing to an IPFS daemon. The daemon here is a fake (fake_kubo.py); the real one is tested by `make interop`."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.cache.batch import links
from shoal.cache.cid import cid_text, parse_cid
from shoal.cache.kubo import KuboPublisher, api_multiaddr
from shoal.cache.memory import Memory
from shoal.cache.store import Store
from shoal.cache.tiers import AnswerCache

from .answers import ALICE, BOB, LONG, answer, ask, key_of
from .fake_kubo import FakeKubo

pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")  # see cache/kubo.py


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.db"


@asynccontextmanager
async def publishing(path: Path, address: str, **options: Any) -> AsyncIterator[AnswerCache]:
    """Alice's cache with a publisher that is quick to try again."""
    store = Store(path)
    publisher = KuboPublisher(address, store, **{"first_retry_s": 0.02, "timeout_s": 2.0, "linger_s": 0.0, **options})
    cache = AnswerCache(ALICE.peer_id, memory=Memory(1 << 20), store=store, publisher=publisher)
    async with cache.running():
        yield cache


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


def figures(cache: AnswerCache) -> Any:
    assert cache.publisher is not None
    return cache.publisher.stats()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("kind", ["kubo", "js-ipfs", "go-ipfs"])
async def test_a_public_answer_reaches_the_daemon_under_our_cid_and_is_pinned(path: Path, kind: str) -> None:
    with FakeKubo(kind).listening() as kubo:
        async with publishing(path, kubo.address) as cache:
            signed = answer(content=LONG)
            cache.remember(signed)
            await until(lambda: figures(cache).published == 1 and figures(cache).queued == 0)
            for cid, block in signed.blocks:
                assert kubo.blocks[cid_text(cid)] == block
            assert kubo.pins == {cid_text(signed.cid)}
            before = len(kubo.calls)
            cache.remember(answer(ask("again")))  # now it knows how this daemon wants to be told
            await until(lambda: figures(cache).published == 2)
            assert kubo.calls[before : before + 2] == ["/api/v0/block/put", "/api/v0/pin/add"]


async def test_private_and_foreign_answers_stay_here(path: Path) -> None:
    with FakeKubo().listening() as kubo:
        async with publishing(path, kubo.address) as cache:
            cache.remember(answer(ask("private")), public=False)
            cache.remember_foreign(answer(ask("bob's"), by=BOB).block, key_of(ask("bob's")))
            public = answer(ask("public"))
            cache.remember(public)
            await until(lambda: figures(cache).published == 1)
            assert list(kubo.blocks) == [cid_text(public.cid)]


async def test_remembering_does_not_wait_for_the_daemon(path: Path) -> None:
    kubo = FakeKubo()
    kubo.stall = threading.Event()
    try:
        with kubo.listening():
            async with publishing(path, kubo.address) as cache:
                cache.remember(answer())
                await until(lambda: bool(kubo.calls))
                with trio.fail_after(1):
                    cache.remember(answer(ask("another")))
                    assert await cache.get(key_of(ask("another"))) is not None
                assert figures(cache).state == "publishing"
                kubo.stall.set()
                await until(lambda: figures(cache).published == 2)
    finally:
        kubo.stall.set()


async def test_a_daemon_that_is_down_is_waited_for(path: Path) -> None:
    port = free_port()
    async with publishing(path, f"/ip4/127.0.0.1/tcp/{port}") as cache:
        for n in range(3):
            cache.remember(answer(ask(str(n))))
        await until(lambda: figures(cache).state == "waiting")
        assert figures(cache).queued == 3
        assert figures(cache).last_error
        with FakeKubo().listening(port):
            await until(lambda: figures(cache).published == 3)
        assert figures(cache).last_error == ""


async def test_what_waits_survives_a_restart_of_this_node(path: Path) -> None:
    port = free_port()
    signed = answer()
    async with publishing(path, f"/ip4/127.0.0.1/tcp/{port}") as cache:
        cache.remember(signed)
        await until(lambda: figures(cache).state == "waiting")
    with FakeKubo().listening(port) as kubo:
        async with publishing(path, kubo.address) as cache:
            await until(lambda: figures(cache).published == 1)
            assert kubo.pins == {cid_text(signed.cid)}


async def test_a_silent_daemon_is_given_up_after_the_timeout_and_tried_again(path: Path) -> None:
    kubo = FakeKubo()
    kubo.stall = threading.Event()
    try:
        with kubo.listening():
            async with publishing(path, kubo.address, timeout_s=0.1) as cache:
                cache.remember(answer())
                await until(lambda: figures(cache).state == "waiting")
                kubo.stall.set()
                await until(lambda: figures(cache).published == 1)
    finally:
        kubo.stall.set()


async def test_a_silent_daemon_does_not_hold_up_the_end(path: Path) -> None:
    kubo = FakeKubo()
    kubo.stall = threading.Event()
    try:
        with kubo.listening(), trio.fail_after(2):
            async with publishing(path, kubo.address, timeout_s=5) as cache:
                cache.remember(answer())
                await until(lambda: bool(kubo.calls))
    finally:
        kubo.stall.set()


async def test_a_block_that_the_daemon_refuses_is_tried_again(path: Path) -> None:
    kubo = FakeKubo()
    kubo.refuse_puts = 4
    with kubo.listening():
        async with publishing(path, kubo.address) as cache:
            cache.remember(answer())
            await until(lambda: figures(cache).published == 1)
            assert figures(cache).attempts_failed >= 1


async def test_a_block_that_is_always_refused_is_given_up_and_the_others_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.cache.kubo.MAX_ATTEMPTS", 2)
    kubo = FakeKubo()
    kubo.wrong_cids = True
    with kubo.listening():
        async with publishing(path, kubo.address) as cache:
            cache.remember(answer())
            await until(lambda: figures(cache).refused == 1)
            assert "otherwise" in figures(cache).last_error
            assert not kubo.pins  # what it names otherwise is not what we published
            kubo.wrong_cids = False
            cache.remember(answer(ask("another")))
            await until(lambda: figures(cache).published == 1)


async def test_a_forgotten_answer_is_unpinned(path: Path) -> None:
    with FakeKubo().listening() as kubo:
        async with publishing(path, kubo.address) as cache:
            signed = answer()
            cache.remember(signed)
            await until(lambda: bool(kubo.pins))
            assert (await cache.forget(signed.cid)).withdrawn == 1
            await until(lambda: figures(cache).withdrawn == 1)
            assert not kubo.pins


async def test_an_answer_forgotten_before_it_was_published_never_is(path: Path) -> None:
    port = free_port()
    async with publishing(path, f"/ip4/127.0.0.1/tcp/{port}") as cache:
        signed = answer()
        cache.remember(signed)
        await until(lambda: figures(cache).state == "waiting")
        await cache.forget(signed.cid)
        with FakeKubo().listening(port) as kubo:
            await until(lambda: figures(cache).withdrawn == 1 and figures(cache).queued == 0)
            assert not kubo.blocks


async def test_a_batch_has_one_root_that_is_pinned_and_announced_and_one_answer_can_leave_it(path: Path) -> None:
    with FakeKubo().listening() as kubo:
        async with publishing(path, kubo.address, linger_s=0.05) as cache:
            signed = [answer(ask(str(n)), content="the same", link_text=True) for n in range(4)]
            cache.remember(signed[0])
            for one in signed[1:]:
                cache.remember(one)
            await until(lambda: figures(cache).published == 4)
            tops = [link for pin in kubo.pins for link in links(kubo.blocks[pin]) or [parse_cid(pin)]]
            assert set(tops) == {one.cid for one in signed}
            assert len(kubo.pins) == figures(cache).roots <= 2
            assert set(kubo.provided) == kubo.pins
            await cache.forget(signed[3].cid)
            await until(lambda: figures(cache).withdrawn == 1)
            tops = [link for pin in kubo.pins for link in links(kubo.blocks[pin]) or [parse_cid(pin)]]
            assert set(tops) == {one.cid for one in signed[:3]}
            assert signed[3].cid_text not in kubo.blocks
            text = cid_text(signed[3].record.text_cid or b"")
            assert kubo.blocks[text] == b"the same"  # the others have the same text
            for one in signed[:3]:
                await cache.forget(one.cid)
            await until(lambda: figures(cache).withdrawn == 4)
            assert (kubo.pins, kubo.blocks) == (set(), {})


async def test_only_what_is_asked_for_is_published_when_the_owner_says_so(path: Path) -> None:
    with FakeKubo().listening() as kubo:
        async with publishing(path, kubo.address) as cache:
            cache.auto_publish = False
            cache.remember(answer(ask("quiet")))
            cache.remember(answer(ask("private")), public=False, ipfs=True)
            loud = answer(ask("loud"))
            cache.remember(loud, ipfs=True)
            await until(lambda: figures(cache).published == 1)
            assert list(kubo.blocks) == [loud.cid_text]


async def test_no_proxy_of_the_environment_is_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with FakeKubo().listening() as kubo:
        async with publishing(path, kubo.address) as cache:
            cache.remember(answer())
            await until(lambda: figures(cache).published == 1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/ip4/127.0.0.1/tcp/5001", "/ip4/127.0.0.1/tcp/5001"),
        ("/dns/kubo.example/tcp/443/https", "/dns/kubo.example/tcp/443/https"),
        ("http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://[::1]:5001/", "/ip6/::1/tcp/5001/http"),
        ("https://kubo.example:443", "/dns/kubo.example/tcp/443/https"),
    ],
)
def test_an_address_may_be_written_both_ways(written: str, meant: str) -> None:
    assert api_multiaddr(written) == meant


@pytest.mark.parametrize("address", ["", "127.0.0.1:5001", "/ip4/127.0.0.1", "http://user:pw@host:1", "ftp://h:1"])
def test_an_address_that_is_none_is_refused_with_the_form(address: str) -> None:
    with pytest.raises(ValueError, match=r"/ip4/127\.0\.0\.1/tcp/5001"):
        api_multiaddr(address)
