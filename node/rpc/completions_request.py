"""The body of `POST /v1/completions` as requests to go on with bare text, or a 400 that names the field.

Format: https://platform.openai.com/docs/api-reference/completions/create. Each prompt is a request of its own. Beside
the text itself each carries, where a chat can say it, the user's message that comes nearest, for providers that know
nothing but chats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ...providers.base import Completion, Message
from .chat_request import ChatCall, Options, call_of, decode_object, others, typed_as
from .errors import bad_request

MAX_PROMPTS = 128
MAX_CHOICES = 128
"""Of a request in all: each is a generation."""
MAX_TOKEN_ID = 2**31


class CompletionBody(Options, kw_only=True):
    """The typed part of the body."""

    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


KNOWN = frozenset(CompletionBody.__struct_fields__)

Prompt = str | tuple[int, ...]


class CompletionCalls(Struct, frozen=True):
    """A call for each prompt. echo: what the node itself says before each choice; empty where nothing is to be said."""

    calls: list[ChatCall]
    echo: list[str]


def read_completions(body: bytes, headers: Mapping[str, str]) -> CompletionCalls:
    """The calls in a body and its headers (lower-case names). Raises ApiError."""
    raw = decode_object(body)
    typed = typed_as(raw, CompletionBody)
    prompts = prompts_of(typed.prompt)
    choices = typed.n or 1
    if len(prompts) * choices > MAX_CHOICES:
        raise bad_request(f"{len(prompts)} prompts with n choices each are more than {MAX_CHOICES} in all.", "n")
    if typed.max_tokens == 0 and not typed.echo:
        raise bad_request("Without a token there is nothing to say; max_tokens = 0 needs echo.", "max_tokens")
    best_of = typed.best_of if typed.best_of is not None and typed.best_of > choices else None
    if best_of is not None and choices > 1:
        raise bad_request("best_of larger than n needs n = 1 here; ask for n choices, or for one.", "best_of")
    if best_of is not None and typed.stream:
        raise bad_request("Which of several is the best is known at their end; leave out stream or best_of.", "best_of")
    extra = others(raw, KNOWN)
    if typed.logprobs is not None:
        extra |= {"logprobs": True, "top_logprobs": typed.logprobs}
    calls: list[ChatCall] = []
    echo: list[str] = []
    for prompt in prompts:
        says_prompt = bool(typed.echo) and (
            typed.logprobs is not None or typed.max_tokens == 0 or not isinstance(prompt, str)
        )
        completion = Completion(prompt, typed.suffix or None, says_prompt, best_of)
        messages: tuple[Message, ...] = ()
        if isinstance(prompt, str) and completion.suffix is None and not says_prompt and best_of is None:
            messages = (Message("user", prompt),)
        call = call_of(typed, headers, dict(extra), messages=messages, max_tokens=typed.max_tokens)
        request = msgspec.structs.replace(call.request, completion=completion)
        calls.append(msgspec.structs.replace(call, request=request))
        echo += [prompt if typed.echo and isinstance(prompt, str) and not says_prompt else ""] * choices
    return CompletionCalls(calls, echo)


def prompts_of(given: str | list[Any]) -> list[Prompt]:
    """The prompts, each as text or as token ids. Raises ApiError 400."""
    if isinstance(given, str):
        return [given]
    if given and all(is_token(each) for each in given):
        return [tuple(given)]
    if not given or len(given) > MAX_PROMPTS:
        raise bad_request(f"prompt wants a text, token ids, or an array of 1 to {MAX_PROMPTS} of these.", "prompt")
    if all(isinstance(each, str) for each in given):
        return list(given)
    if all(isinstance(each, list) and each and all(is_token(token) for token in each) for each in given):
        return [tuple(each) for each in given]
    raise bad_request("prompt wants a text, token ids, or an array of texts or of arrays of token ids.", "prompt")


def is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKEN_ID
