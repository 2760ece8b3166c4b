"""The watch over connections: every way of leaving is seen once, and a number used again is not mistaken."""

from __future__ import annotations

import socket

import pytest
import trio
from shoal.protocols.http.hangup import HangupWatch

from .http_fakes import PATIENCE_S


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("how", ["close", "half-close", "with unread bytes"])
async def test_a_side_that_leaves_is_noticed(how: str, early: bool) -> None:
    left = trio.Event()
    watch = HangupWatch()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if not early:
            watch.add(ours.fileno(), left.set)
        if how == "with unread bytes":
            theirs.send(b"never read")
        if how == "half-close":
            theirs.shutdown(socket.SHUT_WR)
        else:
            theirs.close()
        if early:
            watch.add(ours.fileno(), left.set)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            with trio.fail_after(PATIENCE_S):
                await left.wait()
            nursery.cancel_scope.cancel()


async def test_a_watch_removed_late_leaves_the_one_that_has_its_number_now() -> None:
    calls: list[str] = []
    left = trio.Event()

    def first() -> None:
        calls.append("first")

    def second() -> None:
        calls.append("second")
        left.set()

    watch = HangupWatch()
    ours, theirs = socket.socketpair()
    watch.add(ours.fileno(), first)
    number = ours.fileno()
    ours.close()
    theirs.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert ours.fileno() == number  # the lowest free number: POSIX promises it
        watch.add(number, second)
        watch.remove(number, first)
        theirs.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            with trio.fail_after(PATIENCE_S):
                await left.wait()
            nursery.cancel_scope.cancel()
    assert calls == ["second"]
    watch.remove(number, second)
    watch.remove(number, second)
