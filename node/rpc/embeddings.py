"""`POST /v1/embeddings`: vectors from providers that make them, here or at a peer, or out of the cache.

To the router they are an answer like any other (providers/embedding.py): the same order of candidates and table of
failures, the same cache, the same limits for peers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ...protocols.http.exchange import Exchange
from ...providers.base import Embed, ErrorKind, GenerateRequest
from ...providers.embedding import unpack, vectors_of
from ..routing.answer import Answer
from ..routing.ask import CacheControl
from ..routing.no_answer import NoAnswer
from .chat_answer import Whole, shoal_object
from .chat_request import (
    ANY_MODEL,
    MAX_TIMEOUT_S,
    MIN_TIMEOUT_S,
    decode_object,
    others,
    publish_header,
    timeout_header,
    typed_as,
)
from .errors import bad_request
from .relay import Relay

MAX_INPUTS = 2048
MAX_TOKEN_ID = 2**32


class EmbeddingsBody(Struct, kw_only=True):
    """The typed part of the body."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    provider: str | None = None
    fallback: bool | None = None
    timeout: Annotated[float, Meta(ge=MIN_TIMEOUT_S, le=MAX_TIMEOUT_S)] | None = None


KNOWN = frozenset(EmbeddingsBody.__struct_fields__)


class Embeddings:
    """The handler."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        raw = decode_object(exchange.body)
        typed = typed_as(raw, EmbeddingsBody)
        request = request_of(typed, others(raw, KNOWN), headers.get("x-shoal-provider"))
        ask = self._relay.router.ask(
            request,
            timeout_s=typed.timeout or timeout_header(headers),
            allow_fallback=typed.fallback is not False,
            cache_control=CacheControl.parse(
                headers.get("cache-control"), publish_header(headers.get("x-shoal-publish"))
            ),
        )
        as_text = typed.encoding_format == "base64"

        def render(wholes: list[Whole], answer: Answer) -> bytes:
            return body_of(request, wholes[0], answer, as_text=as_text)

        await self._relay.whole(exchange, [ask], render)


def request_of(typed: EmbeddingsBody, extra: dict[str, Any], provider: str | None) -> GenerateRequest:
    """What the router is asked. Raises ApiError 400."""
    return GenerateRequest(
        messages=(),
        embed=Embed(inputs_of(typed.input), typed.dimensions),
        model=None if typed.model in ANY_MODEL else typed.model,
        provider=typed.provider or provider or None,
        extra=extra,
    )


def inputs_of(given: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """The inputs: texts, or lists of token ids. Raises ApiError 400."""
    if isinstance(given, str) or (given and all(is_token(each) for each in given)):
        given = [given]
    if not 1 <= len(given) <= MAX_INPUTS:
        raise bad_request(f"input wants 1 to {MAX_INPUTS} texts.", "input")
    if all(isinstance(each, str) for each in given):
        if "" in given:
            raise bad_request("A text in input must not be empty.", "input")
        return tuple(given)
    if all(isinstance(each, list) and each and all(is_token(token) for token in each) for each in given):
        return tuple(tuple(each) for each in given)
    raise bad_request("input wants a text, an array of texts, or arrays of tokens.", "input")


def is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKEN_ID


def body_of(request: GenerateRequest, whole: Whole, answer: Answer, *, as_text: bool) -> bytes:
    """Raises NoAnswer when a peer's answer holds no vectors."""
    try:
        vectors = vectors_of(whole.text, len(request.embed.inputs) if request.embed is not None else 0)
    except ValueError as error:
        message = f"{answer.provider or 'The provider'} gave no embeddings: {error}."
        raise NoAnswer(ErrorKind.UPSTREAM, message, answer.route) from None
    tokens = whole.usage.prompt_tokens if whole.usage is not None else 0
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector).decode() if as_text else unpack(vector),
                }
                for index, vector in enumerate(vectors)
            ],
            "model": answer.model or request.model or "unknown",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "shoal": shoal_object(answer),
        }
    )
