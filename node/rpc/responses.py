"""`POST /v1/responses`: OpenAI's newer shape, which Codex CLI speaks. Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ...protocols.http.exchange import Exchange
from ..routing.answer import Answer
from .chat_answer import Whole, shoal_object
from .errors import ApiError
from .openai_chat import asks_of
from .relay import Relay
from .responses_answer import ResponseEvents, response_body
from .responses_request import ResponseCall, read_response


class Responses:
    """The handlers."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        asked = read_response(exchange.body, headers)
        asks = asks_of(self._relay.router, asked.call)
        if asked.call.stream:
            await self._relay.stream(exchange, asks, partial(_writer, asked))
        else:
            await self._relay.whole(exchange, asks, partial(_render, asked))

    async def stored(self, exchange: Exchange, headers: Mapping[str, str], name: str) -> None:
        """A response by its id: there is none."""
        raise ApiError(404, "This node stores no responses.", code="response_not_found")


def _writer(asked: ResponseCall, answer: Answer) -> ResponseEvents:
    return ResponseEvents(asked, answer.model or asked.call.request.model)


def _render(asked: ResponseCall, wholes: list[Whole], answer: Answer) -> bytes:
    return response_body(asked, wholes[0], answer.model or asked.call.request.model, shoal_object(answer))
