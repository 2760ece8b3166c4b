"""The arguments of `generate_text` as one request body, checked by the same rules as the RPC's.

An option that nobody knows is a TypeError that names it; a value that cannot be is a ValueError that names its option.
Nothing is dropped, and None means that an option is not set.
"""

from __future__ import annotations

import difflib
from typing import Any

import msgspec
from msgspec import Struct

from .node.routing.ask import ANYTHING, CacheControl
from .node.rpc.chat_request import KNOWN, read_call
from .node.rpc.errors import ApiError
from .providers.base import GenerateRequest

TYPED = frozenset({"max_tokens", "temperature", "top_p", "stop", "seed", "response_format", "timeout", "fallback"})
"""Options that go into the body under their own names."""

PASSED_ON = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "min_p",
        "presence_penalty",
        "reasoning_effort",
        "repetition_penalty",
        "top_k",
    }
)
"""Fields that upstreams know and Shoal does not type; any other goes into `extra`."""

PIN_HEADER = "x-shoal-provider"

OTHER = frozenset({"extra", "max_new_tokens", "messages", "system", "use_cache"})

OPTIONS = TYPED | PASSED_ON | OTHER


class Call(Struct, frozen=True, kw_only=True):
    """One call of `generate_text`.

    body: as for POST /v1/chat/completions. request: the same, checked. timeout_s: seconds in all, None for the
    router's. use_cache: None leaves it to the configuration.
    """

    body: dict[str, Any]
    request: GenerateRequest
    timeout_s: float | None
    allow_fallback: bool
    use_cache: bool | None

    def cache_control(self, *, enabled: bool) -> CacheControl:
        """How the cache is used; `enabled` is what the configuration says."""
        used = enabled if self.use_cache is None else self.use_cache
        return ANYTHING if used else CacheControl(no_store=True)


def call_of(prompt: str | None, model_name: str | None, provider: str | None, options: dict[str, Any]) -> Call:
    """The call that the arguments mean. Raises TypeError and ValueError, see the module."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"generate_text() has no option {name!r}; {_meant(name)}")
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(f"the prompt must be text, not {type(prompt).__name__}")
    for argument, value in (("model_name", model_name), ("provider", provider), ("system", options.get("system"))):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{argument} must be text, not {type(value).__name__}")
    for name in ("use_cache", "fallback"):
        if options.get(name) is not None and not isinstance(options[name], bool):
            raise TypeError(f"{name} must be True, False or None, not {type(options[name]).__name__}")
    body = _body(prompt, model_name, provider, options)
    # OpenRouter's routing object has the field of that name; the pin goes where it does not get in its way.
    pin = {PIN_HEADER: provider} if provider and isinstance(body.get("provider"), dict) else {}
    try:
        call = read_call(msgspec.json.encode(body), pin)
    except ApiError as error:
        raise ValueError(error.message) from None
    except TypeError as error:  # msgspec met something that JSON has no form for
        raise TypeError(f"an option cannot be sent: {error}") from None
    return Call(
        body=body,
        request=call.request,
        timeout_s=call.timeout_s,
        allow_fallback=call.allow_fallback,
        use_cache=options.get("use_cache"),
    )


def _body(prompt: str | None, model_name: str | None, provider: str | None, options: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {name: options[name] for name in TYPED | PASSED_ON if options.get(name) is not None}
    if options.get("max_new_tokens") is not None:
        if "max_tokens" in body:
            raise ValueError("max_tokens and max_new_tokens are the same option; give one of them")
        body["max_tokens"] = options["max_new_tokens"]
    for name, value in _extra(options.get("extra")).items():
        if (name in body or name in KNOWN) and not (name == "provider" and isinstance(value, dict)):
            raise ValueError(f"extra holds {name!r}, which is an option of its own; give it by its name")
        body[name] = value
    body["messages"] = _messages(prompt, options)
    if model_name:
        body["model"] = model_name
    if provider:
        body.setdefault("provider", provider)
    return body


def _extra(extra: object) -> dict[str, Any]:
    if extra is None:
        return {}
    if not isinstance(extra, dict) or not all(isinstance(name, str) for name in extra):
        raise TypeError("extra must be a dict of fields for the provider")
    return extra


def _messages(prompt: str | None, options: dict[str, Any]) -> list[Any]:
    """The conversation so far, then the prompt as what the user says next."""
    given = options.get("messages")
    if given is not None and not isinstance(given, (list, tuple)):
        raise TypeError(f"messages must be a list of messages, not {type(given).__name__}")
    messages = list(given or ())
    if options.get("system") is not None:
        messages.insert(0, {"role": "system", "content": options["system"]})
    if prompt is not None and (prompt or given is None):
        messages.append({"role": "user", "content": prompt})
    if not messages or (prompt is None and given is None):
        raise TypeError("there is nothing to answer; give a prompt or messages")
    return messages


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, OPTIONS, 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(sorted(OPTIONS))}; fields for the provider alone go into extra={{...}}"
