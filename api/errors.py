"""What can go wrong when asking from Python. A name that nobody knows, one that is known but cannot be used here,
one that failed, and an answer that did not come are four different errors.
"""

from __future__ import annotations

from collections.abc import Sequence

from .node.routing.attempt import Attempt
from .providers.base import ErrorKind
from .providers.faults import NotConfiguredError, UnknownProviderError

__all__ = ["GenerationError", "NotConfiguredError", "ProviderFailedError", "UnknownProviderError"]


class ProviderFailedError(RuntimeError):
    """The provider is configured, but cannot be used at the moment; the message says why and what to do."""


class GenerationError(RuntimeError):
    """There is no answer.

    kind: what decided it. route: who was tried, in order (empty when a running node was asked: it keeps the route).
    retry_after: seconds after which asking again may help.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind | None = None,
        route: Sequence[Attempt] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.route, self.retry_after = kind, list(route), retry_after
