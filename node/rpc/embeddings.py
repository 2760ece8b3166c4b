"""`POST /v1/embeddings`: vectors from the providers of this node that make them (providers/embedding.py).

Candidates are tried in the router's order until one answers, each failure by the same table as a chat's. Vectors are
not cached and not forwarded to peers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import trio
from msgspec import Meta, Struct

from ...protocols.http.exchange import Exchange
from ...providers.base import POLICY, ErrorKind, GenerateRequest, Message, ProviderError, Usage
from ...providers.embedding import Embeddings as Vectors
from ...providers.embedding import EmbedRequest, Embeds, unpack
from ..routing.ask import Ask
from ..routing.attempt import ANSWERED, Attempt, header_safe, route_header
from ..routing.candidate import CandidateSource
from ..routing.no_answer import NoAnswer
from ..routing.router import Router
from .chat_request import ANY_MODEL, MAX_TIMEOUT_S, decode_object, others, timeout_header, typed_as
from .errors import JSON, NO_RETRY, ApiError, bad_request
from .grant import grant_of

MAX_INPUTS = 2048


class EmbeddingsBody(Struct, kw_only=True):
    """The typed part of the body."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    provider: str | None = None
    timeout: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)] | None = None


KNOWN = frozenset(EmbeddingsBody.__struct_fields__)


class Embeddings:
    """The handler."""

    def __init__(self, router: Router, source: CandidateSource) -> None:
        self._router, self._source = router, source

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        raw = decode_object(exchange.body)
        typed = typed_as(raw, EmbeddingsBody)
        request = EmbedRequest(
            inputs=inputs_of(typed.input),
            model=None if typed.model in ANY_MODEL else typed.model,
            dimensions=typed.dimensions,
            extra=others(raw, KNOWN),
        )
        # What candidates are chosen by: model and provider; there is nothing to say.
        question = GenerateRequest(
            messages=(Message("user", ""),),
            model=request.model,
            provider=typed.provider or headers.get("x-shoal-provider"),
        )
        ask = self._router.ask(question, timeout_s=typed.timeout or timeout_header(headers))
        grant = grant_of(exchange, [ask])
        found, route = await self._embed(request, ask)
        if grant is not None:
            grant.used(Usage(found.tokens, 0))
        about = [
            JSON,
            ("x-shoal-provider", header_safe(route[-1].provider)),
            ("x-shoal-peer", "local"),
            ("x-shoal-cache", "bypass"),
            ("x-shoal-route", route_header(route)),
        ]
        await exchange.respond(200, body_of(found, request.model, as_text=typed.encoding_format == "base64"), about)

    async def _embed(self, request: EmbedRequest, ask: Ask) -> tuple[Vectors, list[Attempt]]:
        """The first candidate's vectors. Raises NoAnswer, or ApiError when nobody here makes embeddings."""
        question = self._source.settled(ask.request)
        candidates = [c for c in self._source.candidates(question, ask) if c.peer is None]
        if not candidates:
            raise self._source.why_none(question, ask)
        able = [c for c in candidates if isinstance(c.provider, Embeds)]
        if not able:
            message = "No provider of this node makes embeddings for this model; an openai_compat provider can."
            raise ApiError(501, message, param="model", code="no_embeddings", headers=(NO_RETRY,))
        route: list[Attempt] = []
        failure = ProviderError(ErrorKind.DEADLINE, "The request's time is spent; give it more.")
        for candidate in able:
            attempt = Attempt(provider=candidate.name, outcome="", model=candidate.model)
            route.append(attempt)
            start = trio.current_time()
            try:
                with trio.fail_at(ask.deadline):
                    assert isinstance(candidate.provider, Embeds)
                    found = await candidate.provider.embed(msgspec.structs.replace(request, model=candidate.model))
            except trio.TooSlowError:
                attempt.outcome = str(ErrorKind.DEADLINE)
                break
            except ProviderError as error:
                failure = error
                attempt.outcome, attempt.reason = str(error.kind), error.message
            else:
                attempt.outcome = ANSWERED
                return found, route
            finally:
                attempt.ms = round((trio.current_time() - start) * 1000, 3)
            if POLICY[failure.kind].next == "no":
                break
        raise NoAnswer.after(failure, route)


def inputs_of(given: str | list[Any]) -> tuple[str, ...] | tuple[tuple[int, ...], ...]:
    """The inputs: texts, or lists of token ids. Raises ApiError 400."""
    if isinstance(given, str) or (given and all(type(each) is int for each in given)):
        given = [given]
    if not 1 <= len(given) <= MAX_INPUTS:
        raise bad_request(f"input wants 1 to {MAX_INPUTS} texts.", "input")
    if all(isinstance(each, str) for each in given):
        if "" in given:
            raise bad_request("A text in input must not be empty.", "input")
        return tuple(given)
    if all(isinstance(each, list) and each and all(type(token) is int for token in each) for each in given):
        return tuple(tuple(each) for each in given)
    raise bad_request("input wants a text, an array of texts, or arrays of tokens.", "input")


def body_of(found: Vectors, model: str | None, *, as_text: bool) -> bytes:
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector).decode() if as_text else unpack(vector),
                }
                for index, vector in enumerate(found.vectors)
            ],
            "model": found.model or model or "unknown",
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        }
    )
