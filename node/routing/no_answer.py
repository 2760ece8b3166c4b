"""The router's one failure: nobody could answer, and why."""

from __future__ import annotations

from collections.abc import Sequence

from ...providers.base import ErrorKind, ProviderError
from .attempt import Attempt


class NoAnswer(Exception):
    """There is no answer, or no whole one.

    kind: what decided it. message: one or two sentences for the caller, with what to do next. route: who was tried.
    code: a finer name than the kind where callers know one ("model_not_found"). param: the field of the request that
    is at fault. retry_after: seconds after which asking again may help.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        route: Sequence[Attempt] = (),
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(kind, message)
        self.kind, self.message, self.route = kind, message, list(route)
        self.code, self.param, self.retry_after = code, param, retry_after

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def again(self) -> NoAnswer:
        """The same failure as a new exception, so that each of several callers raises one of its own."""
        return NoAnswer(
            self.kind, self.message, self.route, code=self.code, param=self.param, retry_after=self.retry_after
        )

    @classmethod
    def after(cls, error: ProviderError, route: Sequence[Attempt]) -> NoAnswer:
        """The failure of a walk that ended with `error`. One attempt speaks for itself; of several, each is named."""
        tried = [a for a in route if a.outcome != "ok"]
        message = error.message
        if len(tried) > 1:
            message = "No provider could answer. " + "; ".join(a.sentence() for a in tried)
        if error.kind is ErrorKind.OVERLOADED and error.status is None:
            # No upstream said so: a queue of this node, or of a peer, is full.
            return cls(error.kind, message, route, code="node_full", retry_after=error.retry_after or 1.0)
        return cls(error.kind, message, route, retry_after=error.retry_after)
