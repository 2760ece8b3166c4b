"""The trio loop behind synchronous calls."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from shoal.background import BackgroundLoop, LoopClosedError


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test loop")
    yield loop
    loop.close()


async def double(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * number


def test_a_call_gives_what_the_coroutine_gives_from_another_thread(loop: BackgroundLoop) -> None:
    async def where() -> int:
        await trio.lowlevel.checkpoint()
        return threading.get_ident()

    assert loop.call(double, 4) == 8
    assert loop.call(where) != threading.get_ident()


@pytest.mark.parametrize("error", [KeyError("x"), TimeoutError("mine")])
def test_a_call_raises_what_the_coroutine_raises(loop: BackgroundLoop, error: Exception) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)) as caught:
        loop.call(fail)
    assert caught.value is error
    assert loop.call(double, 1) == 2


def test_closing_ends_calls_under_way_and_a_later_call_starts_anew(loop: BackgroundLoop) -> None:
    begun, caught = threading.Event(), []

    async def forever() -> None:
        begun.set()
        await trio.sleep_forever()

    def call() -> None:
        try:
            loop.call(forever)
        except LoopClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(10)
    loop.close()
    thread.join(10)
    assert len(caught) == 1
    assert not loop.alive
    assert loop.call(double, 2) == 4


def test_an_interrupted_wait_cancels_the_work(loop: BackgroundLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def forever() -> None:
        try:
            begun.set()
            await trio.sleep_forever()
        finally:
            ended.set()

    def interrupted(futures: object, timeout: float | None = None) -> None:
        assert begun.wait(10)
        raise KeyboardInterrupt

    loop.call(double, 1)
    monkeypatch.setattr("shoal.background.concurrent.futures.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.call(forever)
    assert ended.wait(10)


def test_a_context_stays_entered_until_it_is_released(loop: BackgroundLoop) -> None:
    left = threading.Event()

    @asynccontextmanager
    async def room() -> AsyncGenerator[str]:
        try:
            yield "inside"
        finally:
            left.set()

    held = loop.enter(room())
    assert held.value == "inside"
    assert not held.over
    held.release()
    assert left.wait(10)
    held.release()


def test_closing_leaves_what_is_entered(loop: BackgroundLoop) -> None:
    left = threading.Event()

    @asynccontextmanager
    async def room() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            left.set()

    held = loop.enter(room())
    loop.close()
    assert left.is_set()
    assert held.over


def test_entering_raises_what_the_context_raises(loop: BackgroundLoop) -> None:
    @asynccontextmanager
    async def closed() -> AsyncGenerator[None]:
        await trio.lowlevel.checkpoint()
        raise KeyError("closed")
        yield

    with pytest.raises(KeyError):
        loop.enter(closed())
    assert loop.call(double, 1) == 2


def test_a_context_that_breaks_does_not_end_the_loop(loop: BackgroundLoop, caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def brittle() -> AsyncGenerator[None]:
        yield
        raise KeyError("a secret")

    with caplog.at_level(logging.ERROR):
        held = loop.enter(brittle())
        held.release()
        loop.call(trio.testing.wait_all_tasks_blocked)
    assert held.over
    assert loop.call(double, 1) == 2
    assert "KeyError" in caplog.text
    assert "a secret" not in caplog.text
