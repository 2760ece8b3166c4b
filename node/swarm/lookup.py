"""Look-ups: which connected peer has the answer to a request. One frame there, one back; unverified blocks.

On the wire: lookup `[request CID, ...]` (binary, at most MAX_CIDS), found `[block or nil, ...]` in the same order.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from ...protocols.session import CallError, Session, SessionLost

MAX_CIDS = 16
MAX_CID_BYTES = 64
MAX_BLOCK_BYTES = 512 * 1024
MAX_FOUND_BYTES = 4 * 1024 * 1024  # in one answer
ENOUGH_S = 0.02  # after the first block, for a second one in case the first does not verify

FindBlocks = Callable[[list[bytes]], "Awaitable[list[bytes | None]] | list[bytes | None]"]
"""The public answers that this node has, by request CID: a block or None for each."""


async def ask_all(sessions: Sequence[Session], cid: bytes, timeout: float) -> list[bytes]:
    """Blocks that peers offer for one request CID, in the order they came. timeout: seconds, for all of it.

    All are asked at once; soon after the first block has come the rest are not waited for.
    """
    blocks: list[bytes] = []
    first = trio.Event()

    async def ask(session: Session) -> None:
        try:
            told = await session.lookup([cid], timeout)
        except (CallError, SessionLost, trio.TooSlowError):
            return
        block = told[0] if isinstance(told, list) and len(told) == 1 else None
        if isinstance(block, bytes) and len(block) <= MAX_BLOCK_BYTES:
            blocks.append(block)
            first.set()

    async def enough(scope: trio.CancelScope) -> None:
        await first.wait()
        await trio.sleep(ENOUGH_S)
        scope.cancel()

    with trio.move_on_after(timeout):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(enough, waiting.cancel_scope)
            async with trio.open_nursery() as asking:
                for session in sessions:
                    asking.start_soon(ask, session)
            waiting.cancel_scope.cancel()
    return blocks


async def answer_lookup(body: Any, find_blocks: FindBlocks) -> list[bytes | None]:
    """The answer to a peer's look-up. CallError for one that is ill-typed; blocks that are too large are left out."""
    if not isinstance(body, list) or not 1 <= len(body) <= MAX_CIDS:
        raise CallError("bad_request", f"a look-up is a list of 1 to {MAX_CIDS} CIDs")
    if not all(isinstance(cid, bytes) and 0 < len(cid) <= MAX_CID_BYTES for cid in body):
        raise CallError("bad_request", "a CID in a look-up is binary")
    found = find_blocks(body)
    blocks = await found if inspect.isawaitable(found) else found
    room, told = MAX_FOUND_BYTES, list[bytes | None]()
    for block in blocks:
        if block is None or len(block) > min(room, MAX_BLOCK_BYTES):
            told.append(None)
        else:
            told.append(block)
            room -= len(block)
    return told
