"""What the token of a request permits, carried with its exchange, and what was used on it.

`Rpc` puts a grant into `Exchange.note`; whoever answers a question asks it first (`grant_of`) and reports to it after.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ...protocols.http.exchange import Exchange
from ...providers.base import GenerateRequest, Usage
from ..routing.ask import Ask


class Grant(Protocol):
    """A token's rights while one request runs. name: the token's."""

    @property
    def name(self) -> str: ...

    def check_model(self, model: str | None) -> None:
        """Raises ApiError 403 when the token is not for this model (None: any)."""
        ...

    def good(self) -> bool:
        """Whether the token is good still; what has no end by itself asks now and then."""
        ...

    def used(self, usage: Usage | None) -> None:
        """An answer was given; what it cost, where somebody counted."""
        ...


def grant_of(exchange: Exchange, asks: Iterable[Ask]) -> Grant | None:
    """The exchange's grant after it was asked about each model; None where no token was shown or needed."""
    grant: Grant | None = exchange.note
    if grant is not None:
        for ask in asks:
            grant.check_model(ask.request.model)
            for other in _others(ask.request):
                grant.check_model(other)
            ask.token = grant.name
    return grant


def _others(request: GenerateRequest) -> list[str | None]:
    """The models that the request lets an upstream choose from, too: OpenRouter takes a list of fallbacks."""
    found = request.extra.get("models")
    if not isinstance(found, list):
        return []
    return [each if isinstance(each, str) else None for each in found]
