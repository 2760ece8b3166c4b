"""Who can answer, in which order: the providers of this node by what their probes found, then the peers.

Probes run in the background and their findings are kept, so that ordering the candidates of a request is a pure look
at what is known. A named provider or model is a pin: only who is it, or offers it, is a candidate.

    source = NodeCandidates(registry, swarm, order=config.router.order)
    async with source.running():
        source.candidates(request, ask)
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec
import trio

from ...protocols.peer_id import PeerId
from ...providers.base import ErrorKind, GenerateRequest, ModelInfo, Provider, Status
from ...providers.embedding import able
from ...providers.registry import canonical
from . import completing
from .ask import Ask
from .candidate import Candidate
from .no_answer import NoAnswer
from .offer import Offer, does
from .routes import Route, Routes, Target, drawn

_log = logging.getLogger(__name__)

PEERS = "peers"
"""The peers' place in an order, and the pin that means any of them."""

REFRESH_S = 15.0
"""Seconds between two rounds of probes; providers cache their findings themselves, so a round is cheap."""
FIRST_LOOK_S = 1.5
"""Seconds that the start waits for the first findings; who is slower is known later."""
PROBE_S = 6.0
"""Seconds that a provider's probe may take."""
GATHER_S = 3.0
"""Seconds that a request nobody can answer waits for peers of a node that has just come up."""
GATHER_STEP_S = 0.05
"""Seconds between two looks whether a peer has said what it offers."""
REFRESH_GAP_S = 1.0
"""Requests that nobody can answer cause at most one round of probes in this time (seconds)."""


Lend = Callable[[str, Provider, str | None, str], Provider | None]
"""(name, provider, model, peer) -> the provider as that peer gets it; None: not now."""


class Providers(Protocol):
    """What is wanted of the registry (providers/registry.py)."""

    @property
    def providers(self) -> Mapping[str, Provider]: ...
    @property
    def refused(self) -> Mapping[str, str]: ...
    @property
    def shared(self) -> frozenset[str]: ...


class PeerProvider(Protocol):
    """A provider that is another node (node/swarm/peer_provider.py)."""

    name: str

    @property
    def peer(self) -> PeerId: ...

    def info(self, model: str | None) -> ModelInfo | None:
        """What the peer says of the model; None when it says nothing."""
        ...

    def makes_vectors(self, model: str | None) -> bool:
        """Whether the peer says that it makes embeddings by the model (None: by any)."""
        ...

    def completes_by(self, model: str | None) -> bool:
        """Whether the peer says that it goes on with bare text by the model (None: by any)."""
        ...

    def takes_images(self, model: str | None) -> bool:
        """Whether the peer may be shown more than text, as far as it says, by the model (None: by any)."""
        ...


class Peers(Protocol):
    """What is wanted of the swarm (node/swarm/swarm.py)."""

    def candidates_for(self, model: str | None) -> Sequence[Provider]:
        """A provider for each peer that offers the model (None: any), best first."""
        ...


class NodeCandidates:
    """The candidate source of a node.

    order: names in the order to try, PEERS among them; those not named follow in the registry's order, PEERS last.
    provider: the only one to ask when the caller names none. model: the one to ask for when the caller names none.
    forward: whether peers are candidates at all. routes: what stands behind model names. on_change: called when a
    round of probes finds something new. gathering: whether the node has just come up, and peers that it knows have
    still to say what they offer. discover: connects to nodes that offer a model, if there are any. rated: adds
    what was measured of a provider's models to what its probe found.
    """

    def __init__(
        self,
        registry: Providers,
        swarm: Peers | None = None,
        *,
        order: Sequence[str] = (),
        provider: str | None = None,
        model: str | None = None,
        forward: bool = True,
        routes: Routes | None = None,
        on_change: Callable[[], None] | None = None,
        lend: Lend | None = None,
        rated: Callable[[str, Status], Status] = lambda name, status: status,
        discover: Callable[[str], Awaitable[object]] | None = None,
        gathering: Callable[[], bool] = lambda: False,
    ) -> None:
        self._registry, self._swarm = registry, swarm if forward else None
        self._rated = rated
        self._lend, self._discover, self._gathering = lend, discover, gathering
        self._order = tuple(canonical(name) for name in order)
        self._provider = canonical(provider) if provider is not None else None
        self._model, self._on_change = model, on_change
        self._routes = routes or Routes()
        self._jitter = random.SystemRandom()
        self._offers: dict[str, Offer] = {}
        self._last_round = float("-inf")
        self._rounds = trio.Lock()

    # -- what is known -----------------------------------------------------------------------------------------

    @property
    def statuses(self) -> dict[str, Status]:
        """What the last probes found, in the registry's order; a provider not probed yet is missing."""
        found = {}
        for name, provider in self._registry.providers.items():
            if (status := self._status(name, provider)) is not None:
                found[name] = self._rated(name, status)
        return found

    @property
    def in_place(self) -> bool:
        """Whether the owner has set an order, so that nobody is asked first for being faster."""
        return bool(self._order)

    def _status(self, name: str, provider: Provider) -> Status | None:
        offer = self._offers.get(name)
        return offer.status if offer is not None and offer.provider is provider else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The life of the background probes. Entering waits up to 1.5 s for the first findings."""
        async with trio.open_nursery() as nursery:
            looked = trio.Event()

            async def rounds() -> None:
                while True:
                    await self._round()
                    looked.set()
                    await trio.sleep(REFRESH_S)

            nursery.start_soon(rounds)
            with trio.move_on_after(FIRST_LOOK_S):
                await looked.wait()
            yield
            nursery.cancel_scope.cancel()

    async def refresh(self, request: GenerateRequest | None = None, ask: Ask | None = None) -> None:
        """A round of probes now, unless there was one a moment ago; waits up to 1.5 s for it.

        Where the node has just come up it waits up to 3 s for its peers, too.
        request, ask: what nobody known can answer. Nodes that offer its model are looked for beyond the peers that are
        known, at the same time.
        """
        async with trio.open_nursery() as nursery:
            if request is not None and ask is not None and ask.hops >= 1:
                if request.model is not None:
                    nursery.start_soon(self._look_farther, request.model, request.provider)
                nursery.start_soon(self._await_peers, request.model)
            if trio.current_time() - self._last_round >= REFRESH_GAP_S:
                with trio.move_on_after(FIRST_LOOK_S):
                    await self._round()

    async def _look_farther(self, model: str, provider: str | None) -> None:
        pin = self._pin(provider) if provider is not None else self._provider
        if self._swarm is not None and self._discover is not None and (pin is None or pin == PEERS):
            await self._discover(model)

    async def _await_peers(self, model: str | None) -> None:
        """A node that has just come up waits for its peers to say what they offer before it says that nobody does."""
        with trio.move_on_after(GATHER_S):
            while self._swarm is not None and self._gathering() and not self._swarm.candidates_for(model):  # noqa: ASYNC110
                await trio.sleep(GATHER_STEP_S)

    async def _round(self) -> None:
        async with self._rounds:
            before = self.statuses
            self._last_round = trio.current_time()
            async with trio.open_nursery() as nursery:
                for name, provider in list(self._registry.providers.items()):
                    nursery.start_soon(self._probe, name, provider)
            if self._on_change is not None and self.statuses != before:
                self._on_change()

    async def _probe(self, name: str, provider: Provider) -> None:
        status = Status(ready=False, reason=f"did not answer its probe within {PROBE_S:g} s")
        with trio.move_on_after(PROBE_S):
            try:
                status = await provider.probe()
            except Exception as error:  # the contract says that a probe does not raise; a plug-in's may
                _log.error("the probe of %s failed with %s", name, type(error).__name__)
                status = Status(ready=False, reason=f"its probe failed with {type(error).__name__}")
        self._offers[name] = Offer(name, provider, self._rated(name, status), in_place=bool(self._order))

    # -- who can answer ----------------------------------------------------------------------------------------

    def settled(self, request: GenerateRequest, ask: Ask | None = None) -> GenerateRequest:
        """The request with aliases and its route resolved and the configured default model filled in.

        Its key is made from this. Of a route it is the first target that counts: what another one answers is kept
        under a key of its own.
        """
        if request.provider is not None and (name := self._pin(request.provider)) != request.provider:
            request = msgspec.structs.replace(request, provider=name)
        if self._routes.any and (route := self._route(request, ask)) is not None:
            request = drawn(route, self._jitter)[0].request_of(request)
        if request.model is None and self._model is not None and request.embed is None:
            request = msgspec.structs.replace(request, model=self._model)
        if request.completion is not None and ask is not None:
            request = completing.settled(request, self.candidates(request, ask, formed=False), self._completes)
        return request

    def candidates(self, request: GenerateRequest, ask: Ask, *, formed: bool = True) -> list[Candidate]:
        """Everyone who may answer, in the order to try. Waits for nobody.

        formed: of a `completion`, each with the form that he can do, and none who can do neither.
        """
        pin = self._pin(request.provider) if request.provider is not None else self._provider
        found: list[Candidate] = []
        asked = ask.asked if ask.asked is not None else request
        if self._routes.any and (route := self._route(asked, ask)) is not None:
            targets = drawn(route, self._jitter)
            if targets is not route:  # the draw that settled the request stays in front
                targets = tuple(sorted(targets, key=lambda target: target.request_of(asked).model != request.model))
            for target in targets:
                found += self._routed(target, asked, ask)
            if asked.completion is not None and formed:
                found = completing.formed(found, request, asked.completion, self._completes)
            return found
        peers_done = False
        for name in self._names():
            if name == PEERS:
                peers_done = True
                found += self._peers(request, ask, pin)
            elif (pin is None or pin == name) and (candidate := self._here(name, request, ask)) is not None:
                found.append(candidate)
        if not peers_done and self._swarm is not None:
            found += self._peers(request, ask, pin)
        if asked.completion is not None and formed:
            found = completing.formed(found, request, asked.completion, self._completes)
        return found if ask.from_here or self._lend is None else list(self._lent(found, ask, self._lend))

    def _completes(self, candidate: Candidate) -> bool:
        """Whether the candidate goes on with bare text."""
        if candidate.peer is not None:
            return bool(candidate.provider.completes_by(candidate.model))  # type: ignore[attr-defined]  # PeerProvider's
        provider, offer = self._registry.providers.get(candidate.name), self._offers.get(candidate.name)
        info = offer.status.info(candidate.model or offer.status.default_model) if offer is not None else None
        return (
            provider is not None and provider.completes and (info is None or info.capabilities.completes is not False)
        )

    @staticmethod
    def _lent(found: list[Candidate], ask: Ask, lend: Lend) -> Iterator[Candidate]:
        """What a peer gets of them: providers of this node within the limits that their owner has set."""
        for candidate in found:
            if candidate.peer is not None:
                yield candidate
            elif (lent := lend(candidate.name, candidate.provider, candidate.model, ask.caller)) is not None:
                yield msgspec.structs.replace(candidate, provider=lent)

    def _route(self, asked: GenerateRequest, ask: Ask | None) -> Route | None:
        """The targets of the route that the caller's model name has, as far as his pin allows. Peers know no routes."""
        if (ask is not None and not ask.from_here) or (route := self._routes.find(asked.model)) is None:
            return None
        pin = self._pin(asked.provider) if asked.provider is not None else None
        if pin is None:
            return route
        return tuple(target for target in route if self._pin(target.provider) == pin) or None

    def _routed(self, target: Target, asked: GenerateRequest, ask: Ask) -> Iterator[Candidate]:
        """The candidates of one target."""
        asks, name = target.request_of(asked), self._pin(target.provider)
        if name in self._registry.providers:
            here = self._here(name, asks, ask)
            found = iter(()) if here is None else iter((here,))
        else:
            found = self._peers(asks, ask, name)
        for candidate in found:
            length = target.context_length or candidate.context_length
            yield msgspec.structs.replace(candidate, asks=asks, context_length=length, here=False)

    def _names(self) -> Iterable[str]:
        providers = self._registry.providers
        if not self._order:
            return providers
        placed = [name for name in self._order if name == PEERS or name in providers]
        return [*placed, *(name for name in providers if name not in self._order)]

    def _here(self, name: str, request: GenerateRequest, ask: Ask) -> Candidate | None:
        if not ask.from_here and name not in self._registry.shared:
            return None
        registered = self._registry.providers[name]
        offer = self._offers.get(name)
        if offer is not None and offer.provider is registered:
            found = offer.candidate(request)
            return None if found is not None and not found.images and _shows(request) else found
        # Registered a moment ago and not probed: whoever asks for it, or for anything, may try it.
        provider = registered if request.embed is None else able(registered)
        if provider is None or (request.model is not None and request.provider is None):
            return None
        return Candidate(provider=provider, name=name, model=request.model)

    def _peers(self, request: GenerateRequest, ask: Ask, pin: str | None) -> Iterator[Candidate]:
        if self._swarm is None or ask.hops < 1:
            return
        shows = _shows(request)
        for provider in self._swarm.candidates_for(request.model):
            peer: PeerId = provider.peer  # type: ignore[attr-defined]  # PeerProvider's
            if peer in ask.seen or peer == ask.caller or pin not in (None, PEERS, peer, provider.name):
                continue
            info = provider.info(request.model)  # type: ignore[attr-defined]
            if info is not None and not does(info, embed=request.embed is not None):
                continue
            if request.embed is not None and not provider.makes_vectors(request.model):  # type: ignore[attr-defined]
                continue
            if shows and not provider.takes_images(request.model):  # type: ignore[attr-defined]
                continue
            found = _candidate(provider, provider.name, request.model, info, peer)
            since = getattr(provider, "since", None)
            yield found if since is None else msgspec.structs.replace(found, since=since)

    @staticmethod
    def _pin(name: str) -> str:
        """A provider's name as the registry writes it; peer ids keep their case."""
        plain = name.strip()
        if plain.startswith("12D3Koo") or ":" in plain:
            return plain
        plain = canonical(plain)
        return PEERS if plain in ("peer", "swarm") else plain

    # -- nobody ------------------------------------------------------------------------------------------------

    def why_none(self, request: GenerateRequest, ask: Ask) -> NoAnswer:
        """The reason that there is no candidate, in words that say what to do."""
        pin = self._pin(request.provider) if request.provider is not None else self._provider
        if request.completion is not None and self.candidates(request, ask, formed=False):
            return completing.why_nobody(request)
        if ask.from_here and _shows(request) and (found := self._why_unseen(request, ask)) is not None:
            return found
        if not ask.from_here:
            return NoAnswer(
                ErrorKind.UNAVAILABLE, "This node shares no provider that can answer.", code="not_shared", param="model"
            )
        if pin is not None:
            return self._why_no_vectors(request, ask) or self._why_not_pinned(pin, request)
        if (no_vectors := self._why_no_vectors(request, ask)) is not None:
            return no_vectors
        statuses = self.statuses
        if request.model is None:
            reasons = [f"{name}: {status.reason or 'not ready'}" for name, status in statuses.items()]
            hint = "; ".join(reasons) or "none is configured"
            return NoAnswer(
                ErrorKind.UNAVAILABLE, f"No provider is ready ({hint}), and no peer offers one.", code="no_provider"
            )
        for name, status in statuses.items():
            if not status.ready and any(m.name == request.model for m in status.models):
                return NoAnswer(
                    ErrorKind.UNAVAILABLE,
                    f"{name}, which offers {_shown(request.model)}, is not ready: {status.reason}",
                )
        if self._swarm is not None and ask.hops >= 1 and self._gathering():
            why = "This node has just come up, and has not heard from all of its peers; ask again in a moment."
            return NoAnswer(ErrorKind.UNAVAILABLE, why, code="gathering", retry_after=1.0)
        why = f"Nobody here or in the swarm offers the model {_shown(request.model)}; GET /v1/models lists them."
        embed = request.embed is not None
        if any(m.name == request.model and not does(m, embed=embed) for s in statuses.values() for m in s.models):
            why = f"{_shown(request.model)} makes embeddings and writes no text; GET /v1/models lists others."
        return NoAnswer(
            ErrorKind.UNAVAILABLE,
            why,
            code="model_not_found",
            param="model",
        )

    def _why_no_vectors(self, request: GenerateRequest, ask: Ask) -> NoAnswer | None:
        """When somebody has the model, but makes no embeddings by it."""
        if request.embed is None or not self.candidates(msgspec.structs.replace(request, embed=None), ask):
            return None
        message = "Nobody here or in the swarm makes embeddings by this model; see docs/api.md for what can."
        return NoAnswer(ErrorKind.UNAVAILABLE, message, code="no_embeddings", param="model")

    def _why_unseen(self, request: GenerateRequest, ask: Ask) -> NoAnswer | None:
        """When those who could answer read text only."""
        bare = msgspec.structs.replace(request, messages=())
        asked = bare if ask.asked is None else msgspec.structs.replace(ask.asked, messages=())
        blind = msgspec.structs.replace(ask, request=bare, asked=asked)
        names = dict.fromkeys(candidate.name for candidate in self.candidates(bare, blind))
        if not names:
            return None
        message = (
            f"{', '.join(names)}: text only, and nobody else offers this. Leave images and files out, or ask for a "
            "model that takes them; `images = true` in a provider's table says that its models do."
        )
        return NoAnswer(ErrorKind.BAD_REQUEST, message, code="images_not_supported", param="messages")

    def _why_not_pinned(self, pin: str, request: GenerateRequest) -> NoAnswer:
        if pin == PEERS or pin.startswith("12D3Koo"):
            return NoAnswer(
                ErrorKind.UNAVAILABLE,
                "No connected peer offers that; `shoal peers` lists who offers what.",
                code="provider_unavailable",
                param="provider",
            )
        provider = self._registry.providers.get(pin)
        if provider is None:
            if pin in self._registry.refused:
                message = f"The provider {pin} cannot be used: {self._registry.refused[pin]}"
                return NoAnswer(ErrorKind.UNAVAILABLE, message, code="provider_unavailable", param="provider")
            names = ", ".join(self._registry.providers) or "none"
            message = f"There is no provider {_shown(pin)} here; configured: {names}."
            return NoAnswer(ErrorKind.UNAVAILABLE, message, code="provider_not_found", param="provider")
        status = self._status(pin, provider)
        if status is None or not status.ready:
            reason = status.reason if status is not None else "its probe has not ended yet; ask again in a moment"
            message = f"The provider {pin} is not ready: {reason}"
            return NoAnswer(ErrorKind.UNAVAILABLE, message, code="provider_unavailable", param="provider")
        some = ", ".join(m.name for m in status.models[:5]) or "none by name"
        return NoAnswer(
            ErrorKind.UNAVAILABLE,
            f"The provider {pin} does not offer the model {_shown(request.model or '')}; it offers: {some}.",
            code="model_not_found",
            param="model",
        )

    # -- what there is -----------------------------------------------------------------------------------------

    def models(self) -> dict[str, tuple[ModelInfo, list[str]]]:
        """What this node's own ready providers offer: model name -> what is known of it, and who offers it.

        The names of routes are among them, once a provider behind one is ready.
        """
        found: dict[str, tuple[ModelInfo, list[str]]] = {}
        for name, status in self.statuses.items():
            if status.ready:
                for model in status.models:
                    found.setdefault(model.name, (model, []))[1].append(name)
        for name, route in self._routes.names:
            if name not in found and (behind := [t.provider for t in route if self._can(t)]):
                found[name] = (ModelInfo(name, max((t.context_length or 0 for t in route), default=0) or None), behind)
        return found

    def _can(self, target: Target) -> bool:
        name = self._pin(target.provider)
        if name in self._registry.providers:
            status = self._status(name, self._registry.providers[name])
            return status is not None and status.offers(target.model)
        return self._swarm is not None and bool(self._swarm.candidates_for(target.model))


def _candidate(
    provider: Provider, name: str, model: str | None, info: ModelInfo | None, peer: PeerId | None = None
) -> Candidate:
    if info is None:
        return Candidate(provider=provider, name=name, model=model, peer=peer)
    return Candidate(
        provider=provider,
        name=name,
        model=model,
        peer=peer,
        context_length=info.context_length,
        continues=info.capabilities.continues,
    )


def _shows(request: GenerateRequest) -> bool:
    """Whether a message holds an image, a sound, a file."""
    return any(message.shows for message in request.messages)


def _shown(name: str, limit: int = 100) -> str:
    return repr(name if len(name) <= limit else name[:limit] + "...")
