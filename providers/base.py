"""The contract of everything that generates text: requests, events, errors, and the provider itself.

This file is the narrow waist of Shoal: the RPC and the API make a `GenerateRequest`, a provider turns it into
events, and whatever stands between them (router, cache, a peer) sees only what is defined here.
What a failure means for the next step is one table, `POLICY`, beside the kinds it speaks of.

    async with provider.generate(GenerateRequest.of("What is the opposite of hot?")) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                print(event.text, end="")
"""

from __future__ import annotations

import abc
import contextlib
import enum
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

# -- requests --------------------------------------------------------------------------------------------------


class TextPart(Struct, frozen=True, tag="text", forbid_unknown_fields=False):
    text: str


class ImageUrl(Struct, frozen=True, omit_defaults=True):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Struct, frozen=True, tag="image_url"):
    image_url: ImageUrl


class OtherPart(Struct, frozen=True, tag="other"):
    """A part of another kind (sound, a file, a video): it stands in its message's `extra`, whole."""

    kind: str


ContentPart = TextPart | ImagePart | OtherPart


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, in OpenAI's shape.

    extra: fields that Shoal does not type, as the caller wrote them, and `content` and `tool_calls` where the typed
    ones do not hold all of it. They go to OpenAI-compatible upstreams in the place of the typed ones.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    extra: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The message's text parts, joined; images are left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or () if isinstance(part, TextPart))

    def as_written(self) -> dict[str, Any]:
        """The message as OpenAI-compatible upstreams get it, `extra` included; JSON-compatible."""
        form: dict[str, Any] = msgspec.to_builtins(self)
        return form | (form.pop("extra", None) or {})

    @property
    def shows(self) -> bool:
        """Whether it holds more than text: an image, a sound, a file."""
        if self.content is None or isinstance(self.content, str):
            return False
        return any(not isinstance(part, TextPart) for part in self.content)


class Embed(Struct, frozen=True, omit_defaults=True):
    """Vectors are wanted of these texts (or of token ids, made for this model) instead of an answer.

    dimensions: numbers of a vector, for models that can be asked for fewer; None is the model's own number.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None


class Completion(Struct, frozen=True, omit_defaults=True):
    """A text (or token ids, made for this model) is to be gone on with as it stands: no turns, no chat template.

    suffix: the text that stands behind the gap. echo: the answer begins with the prompt, and where log probabilities
    are asked for they are told of the prompt's tokens, too; max_tokens may be 0 then. best_of: the likeliest of so
    many.
    """

    prompt: str | tuple[int, ...]
    suffix: str | None = None
    echo: bool = False
    best_of: int | None = None


class GenerateRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to generate. Everything here can change the answer; nothing that cannot (a deadline, a caller) is here.

    model, provider: None leaves the choice to the router; a name is a pin and is never swapped for another.
    max_tokens: tokens of the answer; None is the provider's own limit. stop: texts that end the answer, not included.
    extra: top-level fields of the caller's request that Shoal does not type, passed on unchanged where possible.
    prefix: text of the answer that already exists; only a provider that `continues` gets one, and yields what follows.
    embed: what to make vectors of; there are no messages then, and the answer is a text as embedding.py writes it.
    completion: what to go on with; `messages` then holds the nearest that a chat can do, or nothing where none can.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    provider: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    extra: dict[str, Any] = {}
    prefix: str = ""
    embed: Embed | None = None
    completion: Completion | None = None

    @classmethod
    def of(cls, prompt: str, *, system: str | None = None, **options: Any) -> GenerateRequest:
        """A request with one user message (and a system message before it, when given)."""
        head = (Message("system", system),) if system is not None else ()
        return cls(messages=(*head, Message("user", prompt)), **options)

    @property
    def sampled(self) -> bool:
        """True when two runs may differ by design: a temperature above 0 (or left to the provider) and no seed."""
        return self.seed is None and self.temperature != 0 and self.embed is None

    @property
    def has_tools(self) -> bool:
        """True when tools are offered or were used: such a call may have side effects and is never moved or cached."""
        if self.tools:
            return True
        for message in self.messages:  # noqa: SIM110 (any() and a generator cost more than most requests' messages)
            if message.tool_calls or message.role == "tool":
                return True
        return False

    @property
    def texts(self) -> list[str]:
        """What the caller has written, which no message of an error may quote."""
        texts = [message.text for message in self.messages]
        if self.completion is not None:
            given = (self.completion.prompt, self.completion.suffix)
            texts += [each for each in given if isinstance(each, str)]
        return texts


# -- events ----------------------------------------------------------------------------------------------------
# Arrays on the wire (worker pipes, swarm sessions): ["t", "Hel"]. A stream that ends without Finish is a failure.

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TextDelta(Struct, frozen=True, array_like=True, tag="t"):
    text: str


class ReasoningDelta(Struct, frozen=True, array_like=True, tag="r"):
    text: str


class ToolCallDelta(Struct, frozen=True, array_like=True, tag="c"):
    """A piece of a tool call: `id` and `name` come with the first piece of each index, `arguments` in pieces."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Logprobs(Struct, frozen=True, array_like=True, tag="l"):
    """Log probabilities of the tokens of the text before, in OpenAI's shape: {"token", "logprob", "bytes", ...}.

    Only for requests that ask for them in `extra` ("logprobs"), from providers that have them.
    """

    tokens: tuple[dict[str, Any], ...]


class Usage(Struct, frozen=True, array_like=True, tag="u"):
    """Tokens as the provider counted them; cost in US dollars when the provider says it."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Finish(Struct, frozen=True, array_like=True, tag="f"):
    """The answer is whole. `model` is the one that wrote it, where the provider says so.

    beside: what an OpenAI-compatible upstream said that the other events do not hold, by the place where it stood:
    "answer" (`system_fingerprint` ...), "choice", "message" (`annotations`, `refusal` ...), "usage".
    """

    reason: FinishReason
    model: str | None = None
    beside: dict[str, dict[str, Any]] | None = None


class Dropped(Struct, frozen=True, array_like=True, tag="d"):
    """The names of the request's options that the provider cannot honour and left out, sorted; told before any text.

    It is about the attempt, not of the answer: the router notes it in the route and hands it to nobody.
    """

    options: tuple[str, ...]


class Via(Struct, frozen=True, array_like=True, tag="v"):
    """The name of the back end that a provider with several has chosen; told right before its first event.

    It is about the attempt, too: the router notes it in the route and hands it to nobody.
    """

    name: str


Event = TextDelta | ReasoningDelta | ToolCallDelta | Logprobs | Usage | Finish | Dropped | Via

# -- errors ----------------------------------------------------------------------------------------------------


class ErrorKind(enum.StrEnum):
    UNAVAILABLE = "unavailable"  # no binary, no credential, no such model
    AUTH = "auth"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    UPSTREAM = "upstream"  # 5xx, or an answer that makes no sense
    CONNECTION = "connection"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105
    IDLE_TIMEOUT = "idle_timeout"
    INTERRUPTED = "interrupted"  # cut, stalled or malformed after text was sent
    DEADLINE = "deadline"  # the request's own time is spent
    UNSUPPORTED = "unsupported"  # what is asked is right, and beyond this provider; another may do it
    BAD_REQUEST = "bad_request"
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"
    CANCELLED = "cancelled"


class Policy(NamedTuple):
    """What a failure of one kind leads to.

    again: the same provider is tried again: "no", "once" (with jitter), "after" (retry_after, deadline allowing).
    next: the next candidate is tried: "yes", "no", "larger" (only one with a larger context) or "continue" (go on from
    the text already sent). breaker: the failure counts against the provider's breaker.
    """

    again: Literal["no", "once", "after"]
    next: Literal["yes", "no", "larger", "continue"]
    breaker: bool


POLICY: dict[ErrorKind, Policy] = {
    ErrorKind.UNAVAILABLE: Policy("no", "yes", False),
    ErrorKind.AUTH: Policy("no", "yes", True),
    ErrorKind.QUOTA: Policy("no", "yes", True),
    ErrorKind.RATE_LIMITED: Policy("after", "yes", True),
    ErrorKind.OVERLOADED: Policy("once", "yes", True),
    ErrorKind.UPSTREAM: Policy("once", "yes", True),
    ErrorKind.CONNECTION: Policy("once", "yes", True),
    ErrorKind.FIRST_TOKEN_TIMEOUT: Policy("no", "yes", True),
    ErrorKind.IDLE_TIMEOUT: Policy("no", "yes", True),
    ErrorKind.INTERRUPTED: Policy("no", "continue", True),
    ErrorKind.DEADLINE: Policy("no", "no", False),
    ErrorKind.UNSUPPORTED: Policy("no", "yes", False),
    ErrorKind.BAD_REQUEST: Policy("no", "no", False),
    ErrorKind.CONTEXT_LENGTH: Policy("no", "larger", False),
    ErrorKind.CONTENT_FILTER: Policy("no", "no", False),
    ErrorKind.CANCELLED: Policy("no", "no", False),
}


class ProviderError(Exception):
    """A provider could not give the answer.

    message: one sentence for the person who asked, with what to do next; never a prompt, an answer or a key.
    retry_after: seconds, where the provider said so. status: the upstream's HTTP status, where there is one.
    """

    def __init__(
        self, kind: ErrorKind, message: str, *, retry_after: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(kind, message)
        self.kind, self.message, self.retry_after, self.status = kind, message, retry_after, status

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


# -- providers -------------------------------------------------------------------------------------------------


class Capabilities(Struct, frozen=True, omit_defaults=True):
    streams: bool = True
    continues: bool = False  # takes GenerateRequest.prefix and yields only what follows it
    tools: bool = False
    images: bool = False
    seeds: bool = False
    logprobs: bool = False
    writes: bool = True  # False: an encoder, which makes vectors and writes no text
    embeds: bool | None = None  # makes vectors of texts; None: not known before it was asked
    completes: bool | None = None  # goes on with bare text; None: as its provider says


class ModelInfo(Struct, frozen=True, omit_defaults=True):
    """A model on offer. context_length in tokens; the rates are measured ones, in tokens per second, where known.

    first_token_ms: milliseconds to the first token, as measured; measured_at: when the last of it was (Unix time, s).
    """

    name: str
    context_length: int | None = None
    capabilities: Capabilities = Capabilities()
    decode_tps: float | None = None
    prefill_tps: float | None = None
    first_token_ms: float | None = None
    measured_at: float | None = None


class Status(Struct, frozen=True, omit_defaults=True):
    """What a probe found. `reason` says why a provider is not ready and what to do, in one line without secrets.

    any_model: the provider takes model names that it does not list (a large remote catalogue).
    """

    ready: bool
    reason: str = ""
    models: tuple[ModelInfo, ...] = ()
    default_model: str | None = None
    any_model: bool = False
    version: str = ""

    def offers(self, model: str | None) -> bool:
        """Whether a request that pins `model` (None: any) can be served here."""
        if not self.ready or model is None or self.any_model:
            return self.ready
        return self.info(model) is not None

    def info(self, model: str | None) -> ModelInfo | None:
        """What is known of a model on offer."""
        for info in self.models:
            if info.name == model:
                return info
        return None


class Provider(abc.ABC):
    """A back end that generates text. One object serves many requests at once.

    Leaving `generate`'s context cancels the work for good: no process, connection or computation is left behind.
    """

    name: str
    runs_here: bool = False
    """Whether this machine computes the answers, so that the faster of several such providers is asked first."""
    disturbs: bool = False
    """Whether a request of the node's own would break off what somebody else is being told there."""
    embeds: bool = False
    """Whether `generate` takes requests with `embed`; a provider with an `embed` method need not (embedding.py)."""
    completes: bool = False
    """Whether `generate` goes on with the bare text of a `completion`; one that does not gets the messages alone."""

    @abc.abstractmethod
    async def probe(self) -> Status:
        """Whether a request could be served now. Cheap, cached by the provider, spends no request, never raises."""

    @abc.abstractmethod
    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Start generating. Raises ProviderError on entry or from the iterator; the last event is Finish."""

    def facts(self) -> dict[str, Any]:
        """What else there is to know now, for its owner: load, latency, credit. JSON-compatible; no prompt, no key."""
        return {}

    def running(self) -> AbstractAsyncContextManager[None]:
        """The provider's life: whatever it keeps (processes, pooled connections, checks) lives inside this context."""
        return contextlib.nullcontext()


event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
