"""`GET /openapi.json`: the RPC described, from the same Structs that check its requests (OpenAPI 3.1).

What a body may hold beyond the typed fields is passed on to providers, so nothing here forbids additional properties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from ...protocols.http.exchange import Exchange
from ..version import version
from .chat_request import ChatBody
from .completions_request import CompletionBody
from .embeddings import EmbeddingsBody
from .errors import JSON
from .messages_request import CountBody, MessagesBody
from .openapi_node import Forget, Join, Pause, Pin, Roster, parameters
from .responses_request import ResponseBody

# -- what comes back -------------------------------------------------------------------------------------------


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(Struct):
    """OpenAI's error."""

    error: ErrorDetail


class AnthropicErrorDetail(Struct):
    type: str
    message: str


class AnthropicError(Struct):
    """Anthropic's error."""

    type: str
    error: AnthropicErrorDetail


class RouteEntry(Struct):
    """One attempt. outcome: "ok", "skipped", "lost", "hit", or the kind of its failure. ms: milliseconds."""

    provider: str
    outcome: str
    model: str | None = None
    peer: str | None = None
    ms: float | None = None
    first_token_ms: float | None = None
    reason: str | None = None


class Shoal(Struct):
    """Where an answer came from. cache: "miss", "bypass", "memory", "disk", "swarm" or "dht"."""

    provider: str | None
    model: str | None
    peer: str | None
    cache: str
    cid: str | None
    request: str | None
    route: list[RouteEntry]


class CompletionUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(Struct):
    role: str
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class ChatCompletion(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage | None
    shoal: Shoal


class TextChoice(Struct):
    index: int
    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class TextCompletion(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage | None
    shoal: Shoal


class Embedding(Struct):
    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct):
    object: str
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    shoal: Shoal


class Response(Struct):
    id: str
    object: str
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    shoal: Shoal


class AnthropicMessage(Struct):
    id: str
    type: str
    role: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, Any]
    shoal: Shoal


class TokenCount(Struct):
    """shoal: {"estimated": false} where it was counted."""

    input_tokens: int
    shoal: dict[str, Any]


class Model(Struct):
    id: str
    object: str
    created: int
    owned_by: str
    shoal: dict[str, Any]


class ModelList(Struct):
    object: str
    data: list[Model]


class State(Struct):
    status: str


class Anything(Struct):
    """An object; see docs/api.md."""


# -- what there is ---------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One method of one path. statuses: beside 200, and those that every path has. kind: what 200 holds.

    takes: the form of the body, where there is one: a `body`, or for other forms than JSON bytes of their own.
    """

    method: str
    path: str
    summary: str
    answer: type[Struct] | None = Anything
    body: type[Struct] | None = None
    streams: bool = False
    statuses: tuple[int, ...] = ()
    kind: str = "application/json"
    takes: str = "application/json"


ANSWERING = (404, 408, 429, 501, 502, 503, 504, 508)
"""How a question may fail beside being refused: see the table in docs/api.md."""

OPERATIONS: tuple[Operation, ...] = (
    Operation("post", "/v1/chat/completions", "Answer a conversation", ChatCompletion, ChatBody, True, ANSWERING),
    Operation("post", "/v1/completions", "Continue a text", TextCompletion, CompletionBody, True, ANSWERING),
    Operation("post", "/v1/embeddings", "Vectors for texts", EmbeddingList, EmbeddingsBody, False, ANSWERING),
    Operation("post", "/v1/responses", "Answer a conversation (Responses)", Response, ResponseBody, True, ANSWERING),
    Operation("get", "/v1/responses/{id}", "A stored response: there is none", None, statuses=(404,)),
    Operation("delete", "/v1/responses/{id}", "A stored response: there is none", None, statuses=(404,)),
    Operation(
        "post", "/v1/messages", "Answer a conversation (Anthropic)", AnthropicMessage, MessagesBody, True, ANSWERING
    ),
    Operation("post", "/v1/messages/count_tokens", "How many tokens a prompt has", TokenCount, CountBody),
    Operation("get", "/v1/models", "What this node and its swarm offer", ModelList),
    Operation("get", "/v1/models/{id}", "One model", Model, statuses=(404,)),
    Operation("get", "/healthz", "The process answers", State),
    Operation("get", "/readyz", "A question would find a provider", State, statuses=(503,)),
    Operation("get", "/metrics", "Metrics for Prometheus", None, kind="text/plain"),
    Operation("get", "/openapi.json", "This description"),
    Operation("get", "/", "The dashboard", None, kind="text/html"),
    Operation("get", "/assets/{name}", "A file of the dashboard", None, statuses=(404,), kind="*/*"),
    Operation("get", "/shoal/v1/events", "What happens, as server-sent events", None, kind="text/event-stream"),
    Operation("get", "/shoal/v1/status", "The node at a glance"),
    Operation("get", "/shoal/v1/peers", "The other nodes"),
    Operation("get", "/shoal/v1/providers", "Who can answer, and why others cannot"),
    Operation("get", "/shoal/v1/cache", "The cache of answers", statuses=(404,)),
    Operation("get", "/shoal/v1/cache/{cid}", "An answer by its CID", statuses=(404, 422), kind="*/*"),
    Operation("post", "/shoal/v1/cache/pin", "Keep an answer", Anything, Pin, statuses=(404, 507)),
    Operation("post", "/shoal/v1/cache/forget", "Forget answers", Anything, Forget, statuses=(404, 507)),
    Operation("get", "/shoal/v1/cache/export", "Answers as a CAR file", None, statuses=(404, 507), kind="*/*"),
    Operation(
        "post",
        "/shoal/v1/cache/import",
        "Take answers from a CAR file",
        statuses=(404, 422, 507),
        takes="application/octet-stream",
    ),
    Operation("get", "/shoal/v1/verify/{cid}", "Every check of an answer's record", statuses=(404, 422)),
    Operation("get", "/shoal/v1/route/last", "The route of the last answer", statuses=(404,)),
    Operation("post", "/shoal/v1/join", "Join a swarm", Anything, Join, statuses=(409, 502, 503)),
    Operation(
        "get", "/ipfs/{cid}", "A public block, as a trustless gateway", None, statuses=(404, 406, 412), kind="*/*"
    ),
    Operation("get", "/shoal/v1/swarm", "The swarm: its name, its owner, who belongs to it"),
    Operation("post", "/shoal/v1/swarm/roster", "Take the owner's new roster", Anything, Roster, statuses=(409,)),
    Operation("get", "/shoal/v1/sharing", "What peers have had of this node, and what is left"),
    Operation("post", "/shoal/v1/pause", "Lend nothing for a while", Anything, Pause),
    Operation("post", "/shoal/v1/resume", "Lend again"),
)

EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}
"""One server-sent event; its data is JSON as the API whose stream it is describes it."""

_REFUSALS = (400, 401, 403, 413, 415, 429, 500)
_REASONS = {
    400: "The request is malformed; `param` names the field",
    401: "A token is needed, or this one is not good",
    403: "Refused: the token's rights, or a web page of another origin",
    404: "Not here; for a model: nobody offers it",
    406: "Not in a form that was asked for",
    408: "The request took too long to arrive",
    409: "Not in the state for it",
    412: "Not here, and only what is here was asked for",
    413: "The body is too long",
    415: "The body is compressed",
    422: "The block is not an answer",
    429: "Too many requests, of the token, the node or the provider; see Retry-After",
    500: "A fault of the node's own",
    501: "No provider here can do this",
    502: "The provider failed",
    503: "Nobody can answer now",
    504: "No answer in time",
    507: "The disk refused it",
    508: "The request came back to a node that it had passed",
}


def operations(served: Mapping[str, Iterable[str]]) -> list[Operation]:
    """OPERATIONS, and in few words what else is `served` (see `Rpc.paths`)."""
    known = {(op.path.partition("{")[0], op.method.upper()) for op in OPERATIONS}
    found = list(OPERATIONS)
    for path, methods in served.items():
        name = "{name}" if path.endswith("/") and path != "/" else ""
        for method in sorted(methods):
            if (path, method) not in known:
                found.append(Operation(method.lower(), path + name, "The node about itself", None, kind="*/*"))
    return found


def document(served: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The whole description, JSON-compatible. served: the paths that there are, with their methods."""
    described = operations(served)
    structs: list[type[Struct]] = [kind for op in described for kind in (op.answer, op.body) if kind is not None]
    wanted: list[type[Struct]] = list(dict.fromkeys([*structs, Error, AnthropicError]))
    schemas, components = msgspec.json.schema_components(wanted, ref_template="#/components/schemas/{name}")
    named: dict[type[Struct], dict[str, Any]] = dict(zip(wanted, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in described:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, named)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shoal", "version": version(), "description": "The RPC of a Shoal node; see docs/api.md."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(operation: Operation, named: Mapping[type[Struct], dict[str, Any]]) -> dict[str, Any]:
    error = named[AnthropicError if operation.path.startswith("/v1/messages") else Error]
    responses: dict[str, Any] = {}
    if not (operation.answer is None and operation.kind == "application/json"):
        content: dict[str, Any] = {operation.kind: {"schema": named[operation.answer]} if operation.answer else {}}
        if operation.streams:
            content["text/event-stream"] = {"schema": EVENT}
        responses["200"] = {"description": "The answer", "content": content}
    for status in sorted({*_REFUSALS, *operation.statuses}):
        responses[str(status)] = {
            "description": _REASONS[status],
            "content": {"application/json": {"schema": error}},
        }
    found: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.body is not None or operation.takes != "application/json":
        schema = {"type": "string", "format": "binary"} if operation.body is None else named[operation.body]
        found["requestBody"] = {"required": True, "content": {operation.takes: {"schema": schema}}}
    fields = parameters(operation.method, operation.path)
    if "{" in operation.path:
        name = operation.path.partition("{")[2].partition("}")[0]
        fields.insert(0, {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}})
    if fields:
        found["parameters"] = fields
    return found


class OpenApi:
    """The handler; the description is made when it is first asked for."""

    def __init__(self, served: Callable[[], Mapping[str, Iterable[str]]]) -> None:
        self._served = served
        self._body = b""

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        if not self._body:
            self._body = msgspec.json.encode(document(self._served()))
        await exchange.respond(200, self._body, [JSON])
