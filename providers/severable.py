"""Generations that can be cut short from outside without a cancel scope around them.

A cancel scope costs 10 to 15 us to enter and leave, more than anything else of ours in a short request, and is there
only for the rare case that a limit is passed. A context that is `Severable` needs none from its caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType

from .base import Event


class Severable:
    """What `Provider.generate` may give. Cancelling the task that waits in it works as ever.

    An asynchronous context, and no abstract class: to ask whether something is one of those takes ten times as long.
    """

    __slots__ = ()

    async def __aenter__(self) -> AsyncIterator[Event]:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError

    def sever(self) -> None:
        """End whatever is waited for in the context now: entering, reading or leaving it raises ProviderError at once.

        Called from another task; what was read before it is given still.
        """
        raise NotImplementedError
