"""How a side ends a session so that its last word arrives: goaway, its own side closed, and the other side's end.

A reset alone may overtake nothing on its stream, but the connection under it may be closed at once after it (who is put
out is also disconnected), and a socket closed with something unread throws away what the other end has not read yet.
"""

from __future__ import annotations

import trio

from .framing import GOAWAY, frame
from .outbox import ByteStream

MAX_REASON_CHARS = 200
READ_BYTES = 64 * 1024
REFUSED_S = 2.0  # for one that is turned away to hear why


def goaway(reason: str) -> bytes:
    """The frame."""
    return frame(GOAWAY, 0, reason[:MAX_REASON_CHARS])


async def read_out(stream: ByteStream) -> None:
    """Throw away what still comes, until the other side ends. The caller sets the time; raises what the stream does."""
    while await stream.read(READ_BYTES):
        pass


async def refuse(stream: ByteStream, reason: str) -> None:
    """Turn away whoever has opened a stream for a session: no hello, only why. Within 2 s; the stream is then reset.

    Raises what the stream raises.
    """
    with trio.move_on_after(REFUSED_S):
        await stream.write(goaway(reason))
        await stream.close_write()
        await read_out(stream)
    await stream.reset()
