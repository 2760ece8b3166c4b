"""The RPC: which path leads where, who may come in, and what an error looks like.

rpc = Rpc(router, node=daemon, source=candidates, registry=registry, cache=cache)
server = await nursery.start(partial(serve, rpc, ("127.0.0.1", 8642), on_error=rpc.on_error))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio

from ...cache.tiers import AnswerCache
from ...protocols.http.exchange import Exchange
from ...protocols.http.message import Header, HttpError
from ...protocols.http.request import Request
from ...providers.base import GenerateRequest, Message, Status
from ...providers.trace import TRACE, Trace
from ..routing.ask import Ask
from ..routing.candidates import NodeCandidates, Providers
from ..routing.engines_here import compared
from ..routing.router import Router
from .access import Access, TokenDesk
from .cache_api import CacheApi
from .completions import Completions
from .dashboard import Dashboard
from .embeddings import Embeddings
from .errors import JSON, ApiError, ShapedError, refuse_encoded, render
from .ipfs_gateway import Gateway
from .messages import Messages
from .messages_answer import render_anthropic
from .metrics_node import Telemetry
from .models import Models
from .node_api import Node, NodeApi
from .openai_chat import ChatCompletions
from .openapi import OpenApi
from .relay import KEEP_ALIVE_S, Relay
from .responses import Responses
from .swarm_api import SwarmApi

Handler = Callable[[Exchange, Mapping[str, str]], Awaitable[None]]
"""Takes the exchange, and its headers as a mapping."""
ItemHandler = Callable[[Exchange, Mapping[str, str], str], Awaitable[None]]
"""The same with what stands behind the prefix of the path."""


_ANTHROPIC = "/v1/messages"
"""Here errors have the shape that Anthropic's clients know."""


class _Providers:
    """The two sources of facts about providers as one."""

    def __init__(self, source: NodeCandidates, registry: Providers) -> None:
        self._source, self._registry = source, registry

    @property
    def statuses(self) -> Mapping[str, Status]:
        return self._source.statuses

    @property
    def shared(self) -> frozenset[str]:
        return self._registry.shared

    @property
    def refused(self) -> Mapping[str, str]:
        return self._registry.refused

    def facts(self, name: str) -> Mapping[str, Any]:
        provider = self._registry.providers.get(name)
        return {} if provider is None else provider.facts()

    def engines(self, model: str | None) -> list[dict[str, Any]]:
        return [] if self._source.in_place else compared(self._registry.providers, self._source.statuses, model)


def _in_its_trace(handler: Handler) -> Handler:
    """The handler, where the caller has said to which trace the request belongs (providers/trace.py)."""

    async def traced(exchange: Exchange, headers: Mapping[str, str]) -> None:
        state = ",".join(value for name, value in exchange.headers if name == "tracestate")
        before = TRACE.set(Trace.read(headers["traceparent"], state))
        try:
            await handler(exchange, headers)
        finally:
            TRACE.reset(before)

    return traced


class Rpc:
    """The handler for `protocols.http.serve`, and its `on_error`.

    hosts: names or addresses beside loopback that clients may put into Host, as configured by the owner.
    origins: web origins that may ask. tokens: who may ask `outside`. keep_alive_s: seconds of silence after which a
    stream gets a comment.
    """

    def __init__(
        self,
        router: Router,
        *,
        node: Node,
        source: NodeCandidates,
        registry: Providers,
        cache: AnswerCache | None = None,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        tokens: TokenDesk | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._access = Access(hosts, origins=origins, desk=tokens)
        self._source = source
        relay = Relay(router, keep_alive_s=keep_alive_s)
        chat, messages, responses = ChatCompletions(relay), Messages(relay, source), Responses(relay)
        models = Models(source, node)
        api = NodeApi(node, router, _Providers(source, registry), cache)
        keeping, gateway = CacheApi(cache, source), Gateway(node, cache)
        swarm = SwarmApi(node)
        dashboard = Dashboard()
        self.telemetry = Telemetry(router, node, _Providers(source, registry), models, cache)
        self._exact: dict[str, dict[str, Handler]] = {
            "/": {"GET": dashboard.page},
            "/metrics": {"GET": self.telemetry.metrics},
            "/shoal/v1/events": {"GET": self.telemetry.feed},
            "/v1/chat/completions": {"POST": chat},
            "/v1/models": {"GET": models.get_all},
            "/openapi.json": {"GET": OpenApi(lambda: self.paths)},
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
            "/shoal/v1/status": {"GET": api.status},
            "/shoal/v1/peers": {"GET": api.peers},
            "/shoal/v1/providers": {"GET": api.providers},
            "/shoal/v1/cache": {"GET": api.cache},
            "/shoal/v1/cache/pin": {"POST": keeping.pin},
            "/shoal/v1/cache/forget": {"POST": keeping.forget},
            "/shoal/v1/cache/export": {"GET": keeping.export},
            "/shoal/v1/cache/import": {"POST": keeping.import_},
            "/shoal/v1/join": {"POST": api.join},
            "/shoal/v1/swarm": {"GET": swarm.swarm},
            "/shoal/v1/swarm/roster": {"POST": swarm.roster},
            "/shoal/v1/sharing": {"GET": swarm.sharing},
            "/shoal/v1/pause": {"POST": swarm.pause},
            "/shoal/v1/resume": {"POST": swarm.resume},
            "/shoal/v1/route/last": {"GET": api.last_route},
            "/v1/completions": {"POST": Completions(relay)},
            "/v1/embeddings": {"POST": Embeddings(relay)},
            "/v1/responses": {"POST": responses},
            "/v1/messages": {"POST": messages},
            "/v1/messages/count_tokens": {"POST": messages.count_tokens},
        }
        self._items: tuple[tuple[str, dict[str, ItemHandler]], ...] = (
            ("/assets/", {"GET": dashboard.file}),
            ("/v1/models/", {"GET": models.get_one}),
            ("/v1/responses/", {"GET": responses.stored, "DELETE": responses.stored}),
            ("/shoal/v1/cache/", {"GET": api.cached}),
            ("/shoal/v1/verify/", {"GET": api.verify}),
            ("/ipfs/", {"GET": gateway.get}),
        )

    async def __call__(self, exchange: Exchange) -> None:
        """A request that came by loopback."""
        if exchange.path.startswith(_ANTHROPIC):
            await self._serve(exchange, outside=False)
        else:
            await self._answer(exchange, outside=False)

    async def outside(self, exchange: Exchange) -> None:
        """A request that may have come from another machine: it needs a token."""
        await self._serve(exchange, outside=True)

    def gate(self, request: Request, *, outside: bool) -> None:
        """Before a long body is read: whoever may not ask need not send it. Raises HttpError."""
        try:
            self._access.let_in(dict(request.headers), outside=outside)
        except ApiError as error:
            raise HttpError(error.status, error.message, error.headers) from None

    async def _serve(self, exchange: Exchange, *, outside: bool) -> None:
        if exchange.path.startswith(_ANTHROPIC):
            try:
                await self._answer(exchange, outside=outside)
            except Exception as error:
                raise ShapedError(*render_anthropic(error)) from None
        else:
            await self._answer(exchange, outside=outside)

    async def _answer(self, exchange: Exchange, *, outside: bool) -> None:
        headers, access = dict(exchange.headers), self._access
        if "origin" in headers and (cors := access.cors(headers)):
            exchange.always = cors
            if (allowed := access.preflight(exchange.method, headers)) is not None:
                await exchange.respond(204, b"", allowed)
                return
        exchange.note = access.admit(exchange.method, exchange.path, headers, outside=outside)
        if "content-encoding" in headers:
            refuse_encoded(headers["content-encoding"])
        methods = self._exact.get(exchange.path)
        if methods is not None:
            handler = methods.get(exchange.method)
            if handler is not None:
                if "traceparent" in headers:
                    handler = _in_its_trace(handler)
                await handler(exchange, headers)
                return
        await self._other(exchange, headers, methods)

    @property
    def paths(self) -> dict[str, set[str]]:
        """Every path with its methods; one that ends in "/" stands for those with a name behind it."""
        exact = {path: set(methods) for path, methods in self._exact.items()}
        return exact | {path: set(methods) for path, methods in self._items}

    def on_error(self, error: Exception) -> tuple[int, list[Header], bytes]:
        """How an exception looks from outside; for `serve`."""
        return render(error)

    async def _other(self, exchange: Exchange, headers: Mapping[str, str], exact: dict[str, Handler] | None) -> None:
        """HEAD, OPTIONS, paths with a name in them, and what is not there."""
        method = exchange.method
        if exchange.path == "*":
            await self._no_method(exchange, sorted({method for methods in self.paths.values() for method in methods}))
            return
        if exact is None:
            for prefix, items in self._items:
                rest = exchange.path.removeprefix(prefix)
                if rest and rest != exchange.path:
                    item = items.get("GET" if method == "HEAD" else method)
                    if item is not None:
                        await item(exchange, headers, rest)
                        return
                    await self._no_method(exchange, items)
                    return
            message = "There is nothing at this path; the API is under /v1 and /shoal/v1."
            raise ApiError(404, message, code="unknown_url")
        if method == "HEAD" and "GET" in exact:
            await exact["GET"](exchange, headers)
            return
        await self._no_method(exchange, exact)

    async def _no_method(self, exchange: Exchange, methods: Iterable[str]) -> None:
        allowed = sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})
        allow: Header = ("allow", ", ".join(allowed))
        if exchange.method == "OPTIONS":
            await exchange.respond(204, b"", [allow])
            return
        raise ApiError(405, f"Use {' or '.join(methods)} here.", code="method_not_allowed", headers=(allow,))

    async def _healthz(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """The process answers; nothing is said about providers."""
        await exchange.respond(200, b'{"status":"ok"}', [JSON])

    async def _readyz(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """Whether a question without any wishes would find somebody to answer it."""
        question = GenerateRequest(messages=(Message("user", ""),))
        ask = Ask(request=question, deadline=trio.current_time())
        if self._source.candidates(question, ask):
            await exchange.respond(200, b'{"status":"ready"}', [JSON])
            return
        raise ApiError(503, self._source.why_none(question, ask).message, code="not_ready")
