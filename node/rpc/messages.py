"""`POST /v1/messages`: Anthropic's shape, so that its clients (Claude Code among them) can ask this node.

ANTHROPIC_BASE_URL=http://127.0.0.1:8642 ANTHROPIC_AUTH_TOKEN=none ANTHROPIC_MODEL=smollm2 claude
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
import trio

from ...protocols.http.exchange import Exchange
from ...protocols.http.message import Header
from ...providers.counting import Counts
from ..routing.answer import Answer
from ..routing.ask import Ask
from ..routing.candidate import CandidateSource
from .chat_answer import Whole, shoal_object
from .chat_request import ChatCall
from .errors import JSON
from .grant import grant_of
from .messages_answer import MessageEvents, message_body
from .messages_request import CountBody, read_messages
from .openai_chat import asks_of
from .relay import Relay
from .token_estimate import estimate

COUNT_S = 20.0
"""Seconds that counting may take; a local model may have to be loaded for it."""
ESTIMATED: Header = ("x-shoal-estimated", "input_tokens")


class Messages:
    """The handlers."""

    def __init__(self, relay: Relay, source: CandidateSource) -> None:
        self._relay, self._source = relay, source

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        call = read_messages(exchange.body, headers)
        asks = asks_of(self._relay.router, call)
        if call.stream:
            await self._relay.stream(exchange, asks, partial(_writer, call))
        else:
            await self._relay.whole(exchange, asks, partial(_render, call))

    async def count_tokens(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """What the one who would be asked first counts; an estimate that says so where he cannot."""
        call = read_messages(exchange.body, headers, CountBody)
        (ask,) = asks_of(self._relay.router, call)
        grant_of(exchange, [ask])
        tokens = await counted(self._source, ask)
        if tokens is not None:
            body: dict[str, Any] = {"input_tokens": tokens, "shoal": {"estimated": False}}
            await exchange.respond(200, msgspec.json.encode(body), [JSON])
            return
        body = {"input_tokens": estimate(call.request), "shoal": {"estimated": True}}
        await exchange.respond(200, msgspec.json.encode(body), [JSON, ESTIMATED])


async def counted(source: CandidateSource, ask: Ask) -> int | None:
    """Tokens of the prompt as who would be asked first counts them; None where he cannot, or not soon."""
    ask.asked = ask.request
    request = source.settled(ask.request, ask)
    first = next(iter(source.candidates(request, ask)), None)
    if first is None or first.peer is not None or not isinstance(first.provider, Counts):
        return None
    with trio.move_on_after(COUNT_S):
        return await first.provider.count(first.request_of(request))
    return None


def _writer(call: ChatCall, answer: Answer) -> MessageEvents:
    return MessageEvents(answer.model or call.request.model)


def _render(call: ChatCall, wholes: list[Whole], answer: Answer) -> bytes:
    return message_body(wholes[0], answer.model or call.request.model, shoal_object(answer))
