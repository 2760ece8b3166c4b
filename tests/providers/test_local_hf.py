"""The local model's provider with a worker that has no model: its life, its deaths, its queue."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from shoal.providers.base import ErrorKind, Finish, ProviderError, TextDelta, Usage

from tests.providers.local_hf_fakes import Start, answer, starts, wish


async def drained(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_an_answer_comes_as_text_then_usage_then_the_end(start: Start) -> None:
    async with start() as provider, provider.generate(wish("words 2")) as events:
        assert [event async for event in events] == [
            TextDelta("w0 "),
            TextDelta("w1 "),
            Usage(3, 2),
            Finish("stop", "fake"),
        ]


async def test_no_worker_is_started_before_somebody_asks_and_one_serves_all(start: Start, log: Path) -> None:
    async with start() as provider:
        await provider.probe()
        assert starts(log) == []
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(answer, provider, wish("words 3"))
        assert len(starts(log)) == 1


async def test_preload_starts_the_worker_with_the_node(start: Start) -> None:
    async with start(preload=True) as provider:
        while provider.keeper.link is None or not provider.keeper.link.ready.is_set():
            await trio.lowlevel.checkpoint()


async def test_the_worker_ends_with_the_provider(start: Start, log: Path) -> None:
    async with start() as provider:
        await answer(provider, wish("words 1"))
        assert alive(starts(log)[0])
    assert not alive(starts(log)[0])


async def test_a_worker_killed_before_any_text_is_a_lost_connection_and_the_next_request_gets_a_fresh_one(
    start: Start, log: Path
) -> None:
    async with start() as provider:
        await answer(provider, wish("words 1"))
        with pytest.raises(ProviderError) as caught:
            await answer(provider, wish("die"))
        assert caught.value.kind is ErrorKind.CONNECTION
        assert "signal 9" in caught.value.message
        assert await answer(provider, wish("words 1")) == "w0 "
        first, second = starts(log)
        assert first != second


async def test_a_worker_killed_after_text_interrupts_the_answer_and_keeps_what_was_said(start: Start) -> None:
    async with start() as provider, provider.generate(wish("word then die")) as events:
        assert await anext(aiter(events)) == TextDelta("w0 ")
        with pytest.raises(ProviderError) as caught:
            await anext(aiter(events))
        assert caught.value.kind is ErrorKind.INTERRUPTED


async def test_all_requests_of_a_killed_worker_hear_of_it(start: Start) -> None:
    kinds: list[ErrorKind] = []

    async with start() as provider:

        async def ask() -> None:
            try:
                await answer(provider, wish("forever"))
            except ProviderError as fault:
                kinds.append(fault.kind)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            while provider.keeper.link is None or provider.keeper.link.in_flight < 3:
                await trio.lowlevel.checkpoint()
            with pytest.raises(ProviderError):
                await answer(provider, wish("die"))
    assert len(kinds) == 3
    assert set(kinds) <= {ErrorKind.INTERRUPTED, ErrorKind.CONNECTION}


async def test_a_worker_that_keeps_dying_is_not_started_again_and_again(start: Start, log: Path) -> None:
    async with start("crash") as provider:
        kinds = []
        for _ in range(3):
            with pytest.raises(ProviderError) as caught:
                await answer(provider, wish("words 1"))
            kinds.append(caught.value.kind)
        assert kinds == [ErrorKind.CONNECTION, ErrorKind.CONNECTION, ErrorKind.UNAVAILABLE]
        assert caught.value.retry_after is not None
        assert len(starts(log)) == 2
        status = await provider.probe()
        assert not status.ready
        assert "exit code 7 (RuntimeError)" in status.reason


async def test_a_model_that_cannot_be_loaded_is_unavailable_with_the_workers_reason(start: Start) -> None:
    async with start("refuse") as provider:
        with pytest.raises(ProviderError, match="too odd") as caught:
            await answer(provider, wish("words 1"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert "too odd" in (await provider.probe()).reason


async def test_a_worker_that_never_gets_ready_is_given_up(start: Start, log: Path) -> None:
    async with start("never", load_s=1.5) as provider:
        with pytest.raises(ProviderError, match="load_s"):
            await answer(provider, wish("words 1"))
        assert not alive(starts(log)[0])


async def test_a_silent_worker_is_taken_for_hung_and_killed(start: Start, log: Path) -> None:
    async with start(hang_s=0.5) as provider:
        with pytest.raises(ProviderError, match="no sign of life") as caught:
            await answer(provider, wish("silent"))
        assert caught.value.kind is ErrorKind.CONNECTION
        assert not alive(starts(log)[0])
        assert await answer(provider, wish("words 1")) == "w0 "


async def test_a_frozen_worker_is_killed_and_the_next_request_gets_a_fresh_one(start: Start, log: Path) -> None:
    async with start(hang_s=0.5) as provider:
        async with provider.generate(wish("forever")) as events:
            await anext(aiter(events))
            os.kill(starts(log)[0], signal.SIGSTOP)
            with pytest.raises(ProviderError, match="gave no sign of life") as caught:
                await drained(events)
        assert caught.value.kind is ErrorKind.INTERRUPTED
        assert await answer(provider, wish("words 2")) == "w0 w1 "
        assert len(starts(log)) == 2
        with pytest.raises(ProcessLookupError):
            os.kill(starts(log)[0], 0)


async def test_a_worker_that_beats_is_not_taken_for_hung(start: Start) -> None:
    async with start(hang_s=1) as provider:
        await answer(provider, wish("words 1"))
        async with provider.generate(wish("beats")):
            with trio.move_on_after(2.5):
                await trio.sleep_forever()
        assert provider.keeper.link is not None


async def test_leaving_cancels_at_the_worker_and_others_go_on(start: Start) -> None:
    async with start() as provider, provider.generate(wish("forever")) as other:
        async with provider.generate(wish("forever")) as events:
            await anext(aiter(events))
        link = provider.keeper.link
        assert link is not None
        while link.in_flight > 1:
            await trio.lowlevel.checkpoint()
        assert isinstance(await anext(aiter(other)), TextDelta)


async def test_a_cancelled_caller_leaves_nothing_behind(start: Start) -> None:
    async with start() as provider:
        await answer(provider, wish("words 1"))
        with trio.move_on_after(0.2):
            await answer(provider, wish("forever"))
        link = provider.keeper.link
        assert link is not None
        while link.in_flight:
            await trio.lowlevel.checkpoint()


async def test_one_more_request_than_may_wait_is_refused_at_once(start: Start) -> None:
    async with start(max_concurrent=1, max_queue=1) as provider, trio.open_nursery() as nursery:
        leave = trio.Event()

        async def occupy() -> None:
            async with provider.generate(wish("forever")):
                await leave.wait()

        nursery.start_soon(occupy)
        nursery.start_soon(occupy)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ProviderError, match="max_queue") as caught:
            await answer(provider, wish("words 1"))
        assert caught.value.kind is ErrorKind.OVERLOADED
        leave.set()


async def test_a_refusal_of_one_request_reaches_its_caller_only(start: Start) -> None:
    async with start() as provider:
        with pytest.raises(ProviderError, match="900 tokens") as caught:
            await answer(provider, wish("too long"))
        assert caught.value.kind is ErrorKind.CONTEXT_LENGTH
        assert await answer(provider, wish("words 1")) == "w0 "


async def test_a_worker_that_speaks_nonsense_is_replaced(start: Start, log: Path) -> None:
    async with start() as provider:
        with pytest.raises(ProviderError, match="no frame"):
            await answer(provider, wish("garbage"))
        assert await answer(provider, wish("words 1")) == "w0 "
        assert len(starts(log)) == 2


async def test_an_idle_worker_ends_and_comes_back(start: Start, log: Path) -> None:
    async with start(idle_unload_s=0.3) as provider:
        await answer(provider, wish("words 1"))
        while provider.keeper.link is not None:
            await trio.lowlevel.checkpoint()
        assert await answer(provider, wish("words 1")) == "w0 "
        assert (await provider.probe()).ready
        assert len(starts(log)) == 2


async def test_a_running_request_keeps_its_worker_from_being_unloaded(start: Start, log: Path) -> None:
    async with start(idle_unload_s=0.2) as provider, provider.generate(wish("forever")) as events:
        with trio.move_on_after(1):
            async for _ in events:
                pass
        assert alive(starts(log)[0])


async def test_the_worker_gets_no_keys_and_no_network(start: Start) -> None:
    async with start() as provider:
        names = (await answer(provider, wish("environ"))).split()
        assert "OPENAI_API_KEY" not in names
        assert {"HF_HUB_OFFLINE", "GOMP_SPINCOUNT", "PATH"} <= set(names)


async def test_a_flood_on_standard_error_neither_blocks_nor_fills_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "shoal.providers.local_hf"):
        async with start() as provider:
            await answer(provider, wish("noise"))
    assert sum(len(record.getMessage()) for record in caplog.records) < 100_000


def test_the_daemons_side_never_imports_torch() -> None:
    code = (
        "import sys, shoal.providers.local_hf, shoal.providers.weights, shoal.providers.weights_install\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'huggingface_hub', 'gguf', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_workers_imports_bring_neither_trio_nor_libp2p() -> None:
    code = (
        "import sys, shoal.providers.hf_worker.__main__, shoal.providers.hf_worker.server\n"
        "heavy = {'trio', 'libp2p', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
