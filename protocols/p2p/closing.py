"""Ending connections: in good order where the peer takes it, else by their sockets."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import trio

from . import sockets
from .stream import LOST

log = logging.getLogger("shoal.p2p")

CUT_AFTER_S = 0.5  # a peer that does not take our GO_AWAY in that time has its socket closed


async def close_all(connections: Sequence[Any]) -> None:
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(close, connection)


async def close(connection: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cut_later, connection)
        try:
            await connection.close()
        except Exception as error:
            log.debug("closing a connection: %s", type(error).__name__)
            await cut(connection)
        nursery.cancel_scope.cancel()


async def _cut_later(connection: Any) -> None:
    await trio.sleep(CUT_AFTER_S)
    await cut(connection)


async def cut(connection: Any) -> None:
    sockets.let_go(connection.muxed_conn)
    with contextlib.suppress(*LOST):
        await connection.muxed_conn.secured_conn.close()
