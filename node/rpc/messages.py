"""`POST /v1/messages`: Anthropic's shape, so that its clients (Claude Code among them) can ask this node.

ANTHROPIC_BASE_URL=http://127.0.0.1:8642 ANTHROPIC_AUTH_TOKEN=none ANTHROPIC_MODEL=smollm2 claude
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import msgspec

from ...protocols.http.exchange import Exchange
from ...protocols.http.message import Header
from ..routing.answer import Answer
from .chat_answer import Whole, shoal_object
from .chat_request import ChatCall
from .errors import JSON
from .grant import grant_of
from .messages_answer import MessageEvents, message_body
from .messages_request import CountBody, read_messages
from .openai_chat import asks_of
from .relay import Relay
from .token_estimate import estimate

ESTIMATED: Header = ("x-shoal-estimated", "input_tokens")


class Messages:
    """The handlers."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        call = read_messages(exchange.body, headers)
        asks = asks_of(self._relay.router, call)
        if call.stream:
            await self._relay.stream(exchange, asks, partial(_writer, call))
        else:
            await self._relay.whole(exchange, asks, partial(_render, call))

    async def count_tokens(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """An estimate that says so: who will answer, and with which tokenizer, is not known before it is asked."""
        call = read_messages(exchange.body, headers, CountBody)
        grant_of(exchange, asks_of(self._relay.router, call))
        body = {"input_tokens": estimate(call.request), "shoal": {"estimated": True}}
        await exchange.respond(200, msgspec.json.encode(body), [JSON, ESTIMATED])


def _writer(call: ChatCall, answer: Answer) -> MessageEvents:
    return MessageEvents(answer.model or call.request.model)


def _render(call: ChatCall, wholes: list[Whole], answer: Answer) -> bytes:
    return message_body(wholes[0], answer.model or call.request.model, shoal_object(answer))
