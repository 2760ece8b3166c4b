"""A request in one spelling: the bytes whose hash is the cache key, and whether a request may be cached at all.

The form is a dag-cbor map (github.com/ipld/ipld, specs/codecs/dag-cbor) of everything that can change the answer
and nothing else: no deadline, no user, no key. An option that is not set is not in the map. docs/record.md holds
the specification with byte-exact vectors; a change here is a new VERSION.

    canonical_bytes(GenerateRequest.of("What is the opposite of hot?", temperature=0))
"""

from __future__ import annotations

from typing import Any

import cbrrr

from ..providers.base import Completion, ContentPart, GenerateRequest, ImagePart, Message, OtherPart, TextPart

VERSION = 1

# Fields of OpenAI's request that say who asks, how it is delivered or what it costs: they cannot change the answer.
NEUTRAL_EXTRA = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "timeout",
        "user",
    }
)
# What a record (text, finish, usage) cannot hold, or what makes the provider act: never cached when set.
UNCACHEABLE_EXTRA = frozenset(
    {"audio", "function_call", "functions", "logprobs", "modalities", "top_logprobs", "web_search_options"}
)

_EXACT = 2**53  # above it a float no longer holds every integer
_MAX_DEPTH = 64


class CanonicalError(ValueError):
    """The request holds a value that dag-cbor cannot: NaN, an infinity, an integer beyond 64 bits, broken Unicode.

    The text names the field's kind of fault, never its value.
    """


def canonical_bytes(request: GenerateRequest) -> bytes:
    """The canonical form of a request. Two requests have the same bytes exactly when they ask for the same thing.

    CanonicalError when a value has no dag-cbor form.
    """
    form: dict[str, Any] = {"v": VERSION, "messages": [_message(m) for m in request.messages]}
    if request.embed is not None:
        form["embed"] = {"inputs": [list(each) if isinstance(each, tuple) else each for each in request.embed.inputs]}
        if request.embed.dimensions is not None:
            form["embed"]["dimensions"] = request.embed.dimensions
    if request.completion is not None:
        form["completion"] = _completion(request.completion)
        form["messages"] = []  # the nearest that a chat can do: it follows from the prompt, and is not what is answered
    if request.model is not None:
        form["model"] = request.model
    if request.provider is not None:
        form["provider"] = request.provider
    if request.max_tokens is not None:
        form["max_tokens"] = request.max_tokens
    if request.temperature is not None:
        form["temperature"] = float(request.temperature) + 0.0  # 1 is 1.0, and -0.0 is 0.0
    if request.top_p is not None:
        form["top_p"] = float(request.top_p) + 0.0
    if request.stop:
        form["stop"] = sorted(set(request.stop))  # the first to appear ends the answer, whatever the order here
    if request.seed is not None:
        form["seed"] = request.seed
    if request.n != 1:
        form["n"] = request.n
    if request.prefix:
        form["prefix"] = request.prefix
    if request.response_format is not None:
        form["response_format"] = _plain(request.response_format)
    if request.tools:
        form["tools"] = _plain(request.tools)
    if request.tool_choice is not None:
        form["tool_choice"] = _plain(request.tool_choice)
    if request.extra:
        extra = {k: _plain(v) for k, v in request.extra.items() if v is not None and k not in NEUTRAL_EXTRA}
        if extra:
            form["extra"] = extra
    try:
        return bytes(cbrrr.encode_dag_cbor(form))
    except UnicodeEncodeError:
        fault = "a text with half a surrogate pair"
    except (ValueError, OverflowError):
        fault = "NaN, an infinity or an integer beyond 64 bits"
    except TypeError:
        fault = "a value that is not JSON"
    # Raised out here so that the library's exception, which carries the text, is not chained to it.
    raise CanonicalError(f"the request has no canonical form: it holds {fault}")


def why_not_cacheable(request: GenerateRequest, *, no_store: bool = False) -> str | None:
    """Why the answer must neither be looked up nor stored, in a few words; None when it may be.

    A temperature that is not set counts as cacheable, though a provider's default may sample: asking again with the
    same words then gives the same answer, which is what a cache is for. Who wants another answer says no-cache.
    """
    if no_store:
        return "the caller said no-store"
    if request.temperature is not None and request.temperature > 0 and request.seed is None:
        return "it is sampled: temperature above 0 and no seed"
    if request.n > 1:
        return "it asks for more than one answer"
    if request.has_tools:
        return "it has tools in play"
    if request.prefix:
        return "it continues an answer"
    if request.extra and any(request.extra.get(name) for name in UNCACHEABLE_EXTRA):
        return "it asks for more than text"
    for message in request.messages:
        if not isinstance(message.content, str) and _looks_elsewhere(message):
            return "it refers to an image or a file by address, and what is there may change"
    return None


def _looks_elsewhere(message: Message) -> bool:
    return any(
        isinstance(p, OtherPart) or (isinstance(p, ImagePart) and not p.image_url.url.startswith("data:"))
        for p in message.content or ()
    )


def _completion(completion: Completion) -> dict[str, Any]:
    prompt = completion.prompt
    form: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else list(prompt)}
    if completion.suffix is not None:
        form["suffix"] = completion.suffix
    if completion.echo:
        form["echo"] = True
    if completion.best_of is not None:
        form["best_of"] = completion.best_of
    return form


def _message(message: Message) -> dict[str, Any]:
    form: dict[str, Any] = {"role": message.role}
    content = message.content
    if isinstance(content, str):
        form["content"] = content
    elif content is not None:
        first = content[0] if len(content) == 1 else None
        # One text part says the same as the bare text; several are kept apart, since providers join them differently.
        form["content"] = first.text if isinstance(first, TextPart) else [_part(p) for p in content]
    if message.name is not None:
        form["name"] = message.name
    if message.tool_calls:
        form["tool_calls"] = [
            {"id": c.id, "type": c.type, "function": {"name": c.function.name, "arguments": c.function.arguments}}
            for c in message.tool_calls
        ]
    if message.tool_call_id is not None:
        form["tool_call_id"] = message.tool_call_id
    if message.extra:
        # Beside the typed fields, never in their place: what one provider reads is not the key of what another does.
        form["extra"] = _plain(message.extra)
    return form


def _part(part: ContentPart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, OtherPart):
        return {"type": part.kind}
    image: dict[str, Any] = {"url": part.image_url.url}
    if part.image_url.detail is not None:
        image["detail"] = part.image_url.detail
    return {"type": "image_url", "image_url": image}


def _plain(value: Any, depth: int = 0) -> Any:
    """Untyped JSON in one spelling: lists for tuples, integers for integral numbers (JSON has one number type)."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and -_EXACT <= value <= _EXACT else value
    if depth > _MAX_DEPTH:
        raise CanonicalError(f"the request has no canonical form: it is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        return {k: _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value]
    return value
