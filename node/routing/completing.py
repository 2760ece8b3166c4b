"""Requests to go on with bare text: who gets the text itself, and who the nearest that a chat can do.

A provider that completes (`Provider.completes`, or a peer that says so in its advert) gets the `completion`. Others get
the request's messages alone, in their place in the order, as long as a chat can say what is asked; a prompt in tokens,
a suffix, or log probabilities of the prompt it cannot. As with a route, it is what the first candidate is asked that
the answer's key is made of; what another is asked has a key of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from ...providers.base import Completion, ErrorKind, GenerateRequest
from .candidate import Candidate
from .no_answer import NoAnswer

Completes = Callable[[Candidate], bool]


def chat_of(request: GenerateRequest) -> GenerateRequest | None:
    """The nearest that a chat can do; None when it can do nothing like it."""
    return msgspec.structs.replace(request, completion=None) if request.messages else None


def settled(request: GenerateRequest, found: Sequence[Candidate], completes: Completes) -> GenerateRequest:
    """What the key is made of. found: who would be asked, in this order."""
    if not found or completes(found[0]):
        return request
    return chat_of(request) or request


def formed(
    found: Iterable[Candidate], request: GenerateRequest, completion: Completion, completes: Completes
) -> list[Candidate]:
    """Those of the candidates that can do it, each with what it is asked. request: as it was settled."""
    able: list[Candidate] = []
    for candidate in found:
        asks = candidate.asks or request
        if completes(candidate):
            raw = asks if asks.completion is not None else msgspec.structs.replace(asks, completion=completion)
            # Text goes on from text; what an answer that says its prompt, too, stands at is not known over there.
            goes_on = isinstance(completion.prompt, str) and not completion.echo and completion.best_of is None
            able.append(msgspec.structs.replace(candidate, asks=raw, continues=goes_on))
        elif (chat := chat_of(asks)) is not None:
            able.append(msgspec.structs.replace(candidate, asks=chat))
    return able


def why_nobody(request: GenerateRequest) -> NoAnswer:
    """When there are candidates, but none that can do what a chat cannot."""
    completion = request.completion
    assert completion is not None
    if completion.suffix is not None:
        param, what = "suffix", "writes before a suffix; leave it out"
    elif not isinstance(completion.prompt, str):
        param, what = "prompt", "takes a prompt in tokens; send text"
    elif completion.best_of is not None:
        param, what = "best_of", "picks the best of several; ask for n choices"
    else:
        param, what = "echo", "knows the prompt's log probabilities; leave out echo or logprobs"
    return NoAnswer(
        ErrorKind.BAD_REQUEST,
        f"Nobody who offers this model here or in the swarm {what}, or ask a model that completes text.",
        param=param,
    )
