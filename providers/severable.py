"""Generations that can be cut short from outside without a cancel scope around them.

A cancel scope costs 10 to 15 us to enter and leave, more than anything else of ours in a short request, and is there
only for the rare case that a limit is passed. A context that is `Severable` needs none from its caller.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from .base import Event


class Severable(AbstractAsyncContextManager[AsyncIterator[Event]]):
    """What `Provider.generate` may give. Cancelling the task that waits in it works as ever."""

    @abc.abstractmethod
    def sever(self) -> None:
        """End whatever is waited for in the context now: entering, reading or leaving it raises ProviderError at once.

        Called from another task; what was read before it is given still.
        """
