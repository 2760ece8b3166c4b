"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, LM Studio, TGI, Ray Serve, OpenAI.

    [providers.desk]
    type = "openai_compat"
    base_url = "http://127.0.0.1:8000/v1"

What is here: the settings, the connections, the probe. What the bytes mean is openai_wire.py and openai_errors.py.
First-token and idle limits are the router's; a slow connect is ours to end.
"""

from __future__ import annotations

import contextlib
import functools
import re
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta, field

from ..protocols.http.client import BadResponse, Call, Client, ClientError, ConnectFailed, Response
from ..protocols.http.message import Header
from .base import (
    Capabilities,
    ErrorKind,
    Event,
    GenerateRequest,
    ModelInfo,
    Provider,
    ProviderError,
    Status,
)
from .credential import Credential
from .embedding import Embeddings, EmbedRequest
from .faults import SettingsError
from .gate import Gate
from .keyring_entry import entry_of
from .openai_completions import Lacking, TextAnswer, completing, error_body
from .openai_counting import Counting
from .openai_embeddings import embeddings_body, embeddings_of
from .openai_errors import from_response
from .openai_stream import Events, Generating
from .openai_wire import ChatAnswer, MaxTokensField, body_of, continued, models_of
from .options import settle_lacking
from .settings import BuildContext, ProviderSettings
from .trace import TRACE

_VECTORS_BYTES = 128 * 1024 * 1024  # 2,048 inputs, 4,096 numbers each
_LIST_BYTES = 8 * 1024 * 1024

_RETRY_PROBE_S = 5.0
"""A probe that found the upstream not ready is believed this long."""


class Settings(ProviderSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.NAME]` with `type = "openai_compat"`."""

    base_url: str
    """Where the API lives, up to and with /v1."""
    api_key_env: str | None = None
    """The environment variable that holds the key."""
    api_key_file: str | None = None
    """A file that holds the key; it may change while the node runs."""
    api_key_keyring: str | None = None
    """The key's place in the system's keyring, SERVICE/NAME (`shoal providers login NAME` writes it to shoal/NAME)."""
    models: tuple[str, ...] = ()
    """The models to offer. Empty: what the server lists."""
    any_model: bool = False
    """Take model names that are not listed, too."""
    default_model: str | None = None
    """The model for a request that names none. Unset: the first one."""
    context_length: Annotated[int, Meta(ge=1)] | None = None
    """Tokens, for models whose context length the server does not tell."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every request. Not for keys."""
    connect_timeout_s: Annotated[float, Meta(gt=0)] = 5.0
    probe_timeout_s: Annotated[float, Meta(gt=0)] = 4.0
    models_ttl_s: Annotated[float, Meta(gt=0)] = 60.0
    """How long the list of models is believed."""
    max_tokens_field: MaxTokensField = "max_tokens"
    """What the server calls the limit of an answer; OpenAI's newer models want max_completion_tokens."""
    completions: bool = True
    """The server may have /completions, so that bare text goes there as it stands; false sends it as a user's message.
    A server that turns out not to have it gets messages, too."""
    continues: bool = False
    """The server goes on writing a final assistant message (OpenRouter, vLLM, SGLang, llama.cpp do), so that an answer
    that broke off elsewhere can be ended here. OpenAI's own models start again: leave it off there."""
    continue_fields: dict[str, Any] = field(default_factory=dict)
    """Sent along with such a request. vLLM: { add_generation_prompt = false, continue_final_message = true }."""
    tools: bool = True
    images: bool = True
    """Whether requests that hold images, sounds or files may go here. True leaves it to the server to refuse them."""
    seeds: bool = True
    lacks: tuple[str, ...] = ()
    """Options that the server or its models refuse or ignore, such as ["temperature"]; see `unsupported`."""


def build(name: str, settings: Settings, context: BuildContext) -> OpenAiCompat:
    """An OpenAI-compatible back end. Raises SettingsError."""
    check(settings)
    credential = Credential(
        environ=context.environ,
        variables=(settings.api_key_env,) if settings.api_key_env else (),
        file=Path(settings.api_key_file).expanduser() if settings.api_key_file else None,
        keyring=entry_of(settings.api_key_keyring),
    )
    return OpenAiCompat(name, settings, credential, context.environ)


def check(settings: Settings) -> None:
    """What the types cannot say."""
    url = urllib.parse.urlsplit(settings.base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise SettingsError(
            "base_url", "is not an http or https address", 'write base_url = "http://127.0.0.1:8000/v1"'
        )
    if url.username is not None or url.password is not None:
        raise SettingsError(
            "base_url", "holds a user or a password", "put the key into a file and name it in api_key_file"
        )
    if url.query or url.fragment:
        raise SettingsError("base_url", "has a query or fragment", "write the address up to and with /v1, nothing more")
    for header, value in settings.headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", header):
            raise SettingsError(
                "headers", f"holds {header!r}, which is no header's name", "use letters, digits and dashes"
            )
        if not value.isascii() or not value.isprintable():
            raise SettingsError("headers", f"holds a value for {header} that HTTP cannot carry", "use printable ASCII")
        if header.lower() in _KEY_HEADERS:
            raise SettingsError(
                "headers", f"holds {header}", "name the key's variable in api_key_env or its file in api_key_file"
            )
        if header.lower() in _OUR_HEADERS:
            raise SettingsError("headers", f"holds {header}, which is set for each request", "remove it")


_KEY_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"})
_OUR_HEADERS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "accept"})


class OpenAiCompat(Provider):
    """One base URL. Connections are kept alive and pooled; the list of models is kept for `models_ttl_s`."""

    def __init__(
        self, name: str, settings: Settings, credential: Credential, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._settings = settings
        self._credential = credential
        self._lacks = frozenset(settings.lacks) | (frozenset() if settings.seeds else {"seed"})
        self.completes, self.completes_not = settings.completions, Lacking()
        self._gate = Gate(
            name, running=settings.max_concurrent, waiting=settings.max_queue, patience_s=settings.queue_s
        )
        try:
            self._client = Client(environ=environ)
        except ValueError as error:
            problem = f"cannot be reached through the proxy that the environment names ({error})"
            raise SettingsError("base_url", problem, "correct HTTP_PROXY or HTTPS_PROXY, or set NO_PROXY") from None
        self._base = settings.base_url.rstrip("/")
        self._counting = Counting(self, self._base)
        self._headers: tuple[Header, ...] = (
            ("user-agent", "shoal"),
            *((name.lower(), value) for name, value in settings.headers.items()),
            ("content-type", "application/json"),
            ("accept", "text/event-stream, application/json"),
        )
        self._keyed: tuple[str | None, tuple[Header, ...]] = (None, self._headers)
        self._capabilities = Capabilities(
            continues=settings.continues, tools=settings.tools, images=settings.images, seeds=settings.seeds
        )
        self._status: Status | None = None
        self._status_until = self._checked_at = float("-inf")
        self._probing = trio.Lock()
        self._nursery: trio.Nursery | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with self._client.running(), trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    @property
    def gate(self) -> Gate:
        return self._gate

    def facts(self) -> dict[str, Any]:
        return self._gate.facts()

    # -- answers -----------------------------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        if request.completion is not None:
            return completing(self, request)
        return Generating(self, request)

    def completes_no_text_by(self, model: str) -> None:
        """It was found out; the next probe tells it, too."""
        self.completes_not.add(model)
        if self._status is not None:
            self._status = msgspec.structs.replace(self._status, models=tuple(map(self._known, self._status.models)))

    def _known(self, model: ModelInfo) -> ModelInfo:
        completes = False if model.name in self.completes_not else None
        capabilities = msgspec.structs.replace(model.capabilities, completes=completes)
        return msgspec.structs.replace(model, capabilities=capabilities)

    def settled(self, request: GenerateRequest) -> tuple[GenerateRequest, tuple[str, ...]]:
        """The request as the upstream gets it, and the options that were left out. Raises ProviderError."""
        request, dropped = settle_lacking(request, self._lacks, self._settings.unsupported, self.name)
        return continued(request, self._settings.continue_fields) if request.prefix else request, dropped

    def call(self, request: GenerateRequest, model: str) -> Call:
        """The call for it, which is to be entered and left inside the gate."""
        body = body_of(request, model, max_tokens_field=self._settings.max_tokens_field)
        return self.post("/chat/completions", body)

    async def begin(self, call: Call, request: GenerateRequest, dropped: tuple[str, ...]) -> Events:
        """Enter the call; the events until its end."""
        response = await self.entered(call)
        if response.status != 200:
            raise await self.refusal(response, request)
        return Events(response, ChatAnswer(request, key=self._keyed[0]), dropped, whole=_is_json(response))

    def text_events(self, response: Response, request: GenerateRequest, dropped: tuple[str, ...]) -> Events:
        """The events of a text completion."""
        return Events(response, TextAnswer(request, key=self._keyed[0]), dropped, whole=_is_json(response))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors for texts (providers/embedding.py). Raises ProviderError."""
        body = embeddings_body(request, request.model or await self.default_model())
        async with self._gate:
            call = self.post("/embeddings", body)
            try:
                response = await self.entered(call)
                if response.status != 200:
                    raise await self.refusal(response, _NOTHING)
                return embeddings_of(await response.read(_VECTORS_BYTES), len(request.inputs))
            except ClientError as error:
                raise self._unreached(error) from error
            finally:
                await call.__aexit__(None, None, None)

    async def count(self, request: GenerateRequest) -> int | None:
        """See counting.py."""
        return await self._counting.count(request)

    def post_to(self, url: str, body: bytes) -> Call:
        """The same to another API of this server's, Anthropic's among them; no caller's trace is told."""
        headers, timeout = list(self._request_headers()), self._settings.connect_timeout_s
        if key := self._credential.read():
            headers.append(("x-api-key", key))
        headers.append(("anthropic-version", "2023-06-01"))
        return self._client.request("POST", url, headers=headers, body=body, connect_timeout=timeout)

    def post(self, path: str, body: bytes) -> Call:
        headers = self._request_headers()
        if (trace := TRACE.get()) is not None:
            headers = (*headers, *trace.headers)
        url, timeout = self._base + path, self._settings.connect_timeout_s
        return self._client.request("POST", url, headers=headers, body=body, connect_timeout=timeout)

    async def entered(self, call: Call) -> Response:
        """Failures until the answer's head are ProviderErrors; those of the body are the reader's."""
        try:
            return await call.__aenter__()
        except ClientError as error:
            raise self._unreached(error) from error

    def refuse_what_it_cannot(self, request: GenerateRequest) -> None:
        if request.n != 1:
            raise ProviderError(ErrorKind.BAD_REQUEST, f"{self.name} gives one answer a request; ask n = 1")
        if request.prefix and not self._settings.continues:
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self.name} does not continue an answer that exists in part")
        if request.has_tools and not self._settings.tools:
            raise ProviderError(ErrorKind.UNSUPPORTED, f"{self.name} does not call tools; ask another provider")
        if not self._settings.images and any(message.shows for message in request.messages):
            raise ProviderError(ErrorKind.UNSUPPORTED, f"{self.name} reads text only (images = false); ask another one")

    async def default_model(self) -> str:
        """For a request that names none. Raises ProviderError."""
        if self._settings.default_model:
            return self._settings.default_model
        if self._settings.models:
            return self._settings.models[0]
        status = await self.probe()
        if status.default_model is None:
            reason = status.reason or f"it lists no model; set default_model in [providers.{self.name}]"
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self.name}: {reason}")
        return status.default_model

    def _request_headers(self) -> tuple[Header, ...]:
        key = self._credential.read()
        if key != self._keyed[0]:
            self._keyed = (key, (*self._headers, ("authorization", f"Bearer {key}")) if key else self._headers)
        return self._keyed[1]

    async def refusal(self, response: Response, request: GenerateRequest, body: bytes | None = None) -> ProviderError:
        """What an answer says that is no answer. body: where it was read already."""
        if body is None:
            body = await error_body(response)
        return from_response(
            response.status, response.header, body, request, key=self._credential.read(), key_hint=self.key_hint
        )

    @property
    def key_hint(self) -> str:
        """Where the key comes from; never the key."""
        settings = self._settings
        if settings.api_key_keyring and not (settings.api_key_env or settings.api_key_file):
            return f"the keyring's {settings.api_key_keyring}"
        return settings.api_key_env or settings.api_key_file or f"api_key_env in [providers.{self.name}]"

    def _unreached(self, error: ClientError) -> ProviderError:
        """A connection that failed before the answer's head."""
        if isinstance(error, ConnectFailed):
            return ProviderError(
                ErrorKind.CONNECTION, f"{self._base} cannot be reached ({error}); is the server running?"
            )
        if isinstance(error, BadResponse):
            return ProviderError(ErrorKind.UPSTREAM, f"{self._base} does not answer in HTTP ({error}); check base_url")
        return ProviderError(ErrorKind.CONNECTION, f"{self._base} closed the connection before it answered")

    # -- the probe ---------------------------------------------------------------------------------------------

    async def probe(self) -> Status:
        """By GET /models, which such servers have and none charges for. A stale answer is renewed in the background."""
        fresh = trio.current_time() < self._status_until
        if self._status is not None and fresh:
            return self._status
        if self._status is not None and self._status.ready and self._nursery is not None:
            # Not in a request's way; the next caller sees what comes of it.
            self._status_until = trio.current_time() + self._settings.probe_timeout_s + 1
            self._nursery.start_soon(self.renew)
            return self._status
        return await self.renew()

    async def renew(self) -> Status:
        """The same, asked of the server now."""
        asked_at = trio.current_time()
        async with self._probing:
            if self._status is not None and self._checked_at >= asked_at:
                return self._status
            status = await self._look()
            self._status = status
            self._checked_at = trio.current_time()
            self._status_until = self._checked_at + (self._settings.models_ttl_s if status.ready else _RETRY_PROBE_S)
            return status

    async def _look(self) -> Status:
        with trio.move_on_after(self._settings.probe_timeout_s):
            try:
                return await self._listed()
            except ProviderError as error:
                return self._away(error.message)
        return self._away(
            f"{self._base} did not answer within {self._settings.probe_timeout_s:g} s; is it the right address?"
        )

    def _away(self, reason: str) -> Status:
        """Not ready, but with the models that the settings name: who asks for one of them is told the reason."""
        return Status(ready=False, reason=reason, models=self._offer([]).models)

    async def look_up(self, url: str, limit: int = _LIST_BYTES) -> tuple[int, bytes]:
        """Status and body of a GET of this server's, with the key. Raises ProviderError where there is no answer."""
        headers, timeout = self._request_headers(), self._settings.connect_timeout_s
        try:
            async with self._client.request("GET", url, headers=headers, connect_timeout=timeout) as response:
                return response.status, await response.read(limit)
        except ClientError as error:
            raise self._unreached(error) from error

    async def _listed(self) -> Status:
        headers = self._request_headers()
        try:
            async with self._client.request(
                "GET", f"{self._base}/models", headers=headers, connect_timeout=self._settings.connect_timeout_s
            ) as response:
                if response.status == 200:
                    return self._offer(models_of(await response.read(_LIST_BYTES)))
                # Some servers have no list; with models named in the settings, an answer is all we want to know.
                if response.status in (404, 405, 501) and (self._settings.models or self._settings.default_model):
                    return self._offer([])
                raise await self.refusal(response, _NOTHING)
        except ClientError as error:
            raise self._unreached(error) from error
        except ValueError as error:
            raise ProviderError(
                ErrorKind.UPSTREAM, f"{self._base}/models: {error}; does base_url end in /v1?"
            ) from None

    def _offer(self, listed: list[tuple[str, int | None]]) -> Status:
        settings, lengths = self._settings, dict(listed)
        names = settings.models or tuple(lengths)
        if settings.default_model and settings.default_model not in names:
            names = (*names, settings.default_model)
        if not names and not settings.any_model:
            return Status(ready=False, reason=f"{self._base} lists no model; load one, or name it in models")
        models = tuple(
            self._known(ModelInfo(name, lengths.get(name) or settings.context_length, self._capabilities))
            for name in names
        )
        default = settings.default_model or (names[0] if names else None)
        return Status(ready=True, models=models, default_model=default, any_model=settings.any_model)


def _is_json(response: Response) -> bool:
    """Whether the answer came whole, though a stream was asked for."""
    return _media_type(response.header("content-type") or "") == "application/json"


@functools.lru_cache(maxsize=64)
def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


_NOTHING = GenerateRequest(messages=())
