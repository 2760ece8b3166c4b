"""Who has a model or an answer, found in the swarm's DHT by a node without a connection to them; and telling others.

    discovery = Discovery(dht, swarm, limits, models=..., answers=...)
    await discovery.find_model("smollm2", 1.5)           # who offers it is a candidate from then on
    blocks = await discovery.find_answers(request_cid, 0.05)

What belongs here: which keys are announced and when, and what becomes of a provider that was found: it is connected
like any peer that was heard of, and asked. The DHT itself is protocols/p2p/dht.py; it is asked only when there may be
somebody whom this node is not connected to.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Protocol

import trio
from msgspec import Struct

from ...protocols.peer_id import PeerId
from ...protocols.session import Session
from .lookup import ask_all

log = logging.getLogger("shoal.swarm")

MULTIHASH = b"\x12\x20"  # sha2-256, 32 bytes: what stands before a digest in a key
SETTLE_S = 2.0  # after the first peer has come, and after a change of what is offered
ASKED = 4  # providers of one answer, or of one model, that are connected to at once
MAX_FOUND = 8  # of them that are tried
NEXT_S = 0.25  # after which another one is tried beside one that does not answer
REACH_S = 3.0  # for a connection with one, by all that is known of its addresses; what a dead one costs at most
DEAD_S = 30.0  # that one which could not be reached is left alone
MISSED_S = 30.0  # a model that nobody was found for is not searched for again so soon
MAX_MISSED = 256
ADVERT_S = 1.0  # a peer that is connected now says what it offers within
MAX_MODELS = 512
WITHDRAWN_AT_ONCE = 256

_random = random.SystemRandom()


class DiscoveryLimits(Struct, frozen=True, kw_only=True):
    """`_s` is seconds; the others are counts."""

    announce_every_s: float = 30.0
    announce_batch: int = 64
    announced_answers: int = 1024
    answer_ttl_s: float = 24 * 3600.0
    model_ttl_s: float = 3600.0
    refresh_s: float = 600.0
    withdraw_s: float = 1.0


class Dht(Protocol):
    """What is wanted of protocols/p2p/dht.py."""

    def meet(self, peer: PeerId, told: Sequence[str] = ()) -> None: ...
    def release(self, peer: PeerId) -> None: ...
    def move(self, protocol: str, swarm: str) -> None: ...
    async def find_providers(self, key: bytes, found: Callable[[PeerId, tuple[str, ...]], object]) -> None: ...
    async def locate(self, peer: PeerId) -> tuple[str, ...]: ...
    async def refresh(self, key: bytes | None = None) -> int: ...
    async def provide(self, keys: Sequence[tuple[bytes, float]]) -> Collection[bytes]: ...
    async def publish_self(self, ttl_s: float) -> int: ...
    def known(self) -> Collection[PeerId]: ...
    def stats(self) -> dict[str, object]: ...


class Swarm(Protocol):
    """What is wanted of the swarm."""

    @property
    def name(self) -> str: ...
    def neighbours(self) -> dict[PeerId, tuple[str, ...]]: ...  # the connected peers, and where they can be dialled
    def knows_everyone(self) -> bool: ...  # whether all that were heard of are connected, and few
    def is_connected(self, peer: PeerId) -> bool: ...
    def may_serve(self, peer: PeerId) -> bool: ...
    def offers(self, peer: PeerId, model: str) -> bool: ...
    async def reach(self, peer: PeerId, told: Sequence[str]) -> Session | None: ...


def protocol_of(swarm: str, key: bytes | None) -> str:
    """The protocol id of a swarm's DHT; in a private one nobody else can make it."""
    tag = hmac.digest(key or b"", b"shoal dht v1\0" + swarm.encode(), hashlib.sha256).hex()[:16]
    return f"/shoal/{tag}/kad/1.0.0"


def model_key(swarm: str, model: str) -> bytes:
    """Where the providers of a model stand."""
    return MULTIHASH + hashlib.sha256(b"shoal-model-v1\0" + swarm.encode() + b"\0" + model.encode()).digest()


def answer_key(request: bytes) -> bytes:
    """Where those stand who have the answer to a request, given its CID or digest: the CID's multihash."""
    return MULTIHASH + request[-32:]


class Discovery:
    """models: the names that this node offers now. answers: the public answers that it has, as digests of their
    requests, the newest first, at most so many; still: which of these it has still. private: the swarm's key.
    """

    def __init__(
        self,
        dht: Dht,
        swarm: Swarm,
        limits: DiscoveryLimits,
        *,
        private: bytes | None,
        models: Callable[[], Sequence[str]],
        answers: Callable[[int], Awaitable[Sequence[bytes]]],
        still: Callable[[Sequence[bytes]], Awaitable[Collection[bytes]]],
    ) -> None:
        self._dht, self._swarm, self._limits = dht, swarm, limits
        self._private, self._models, self._stored, self._still = private, models, answers, still
        self._name = swarm.name
        self._told: dict[str, float] = {}  # a model that is announced -> when last (trio time)
        self._answers: OrderedDict[bytes, float] = OrderedDict()  # a key -> when last; the newest answer is the last
        self._withdrawn: list[bytes] = []
        self._missed: OrderedDict[str, float] = OrderedDict()
        self._dead: OrderedDict[PeerId, float] = OrderedDict()  # providers in vain -> when (trio time)
        self._leaving = False
        self._stirred, self._met, self._spoke = trio.Event(), trio.Event(), trio.Event()
        self._grown = trio.Event()  # a neighbour is new
        self.found = {"model": 0, "answer": 0}
        self.missed = {"model": 0, "answer": 0}

    async def run(self) -> None:
        """Until cancelled."""
        await self._met.wait()
        await trio.sleep(SETTLE_S * _random.uniform(0.5, 1.5))
        stored = await self._stored(self._limits.announced_answers)
        earlier = {answer_key(request): float("-inf") for request in reversed(stored)}
        self._answers = OrderedDict(earlier | self._answers)
        self._bound()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh)
            while True:
                self._stirred = trio.Event()
                try:
                    await self._announce()
                except Exception as error:  # what is not announced is not found from afar: no reason for a node to end
                    log.error("announcing in the DHT failed: %s", type(error).__name__)  # noqa: TRY400
                with trio.move_on_after(self._limits.announce_every_s * _random.uniform(0.8, 1.2)):
                    await self._stirred.wait()
                    await trio.sleep(min(SETTLE_S, self._limits.announce_every_s))

    # -- what the swarm says -----------------------------------------------------------------------------------

    def peers_changed(self) -> None:
        """Somebody came, went or spoke."""
        if self._swarm.name != self._name:
            self._name = self._swarm.name
            self._dht.move(protocol_of(self._name, self._private), self._name)
            self._told.clear()
            self._answers.clear()
            self._missed.clear()
        spoke, self._spoke = self._spoke, trio.Event()
        spoke.set()
        known = self._dht.known()
        for peer, told in self._swarm.neighbours().items():
            if peer not in known:
                self._grown.set()
            self._dht.meet(peer, told)
            self._dht.release(peer)
            self._met.set()

    def changed(self) -> None:
        """What this node offers has changed."""
        self._stirred.set()

    def answered(self, request: bytes) -> None:
        """From now on peers may have the answer to a request, by its CID or digest."""
        key = answer_key(request)
        if key not in self._answers:
            self._answers[key] = float("-inf")
            self._bound()

    def _bound(self) -> None:
        while len(self._answers) > self._limits.announced_answers:
            self._answers.popitem(last=False)

    def forgotten(self, requests: Sequence[bytes]) -> int:
        """This node has the answers no more: what was announced of them is taken back; how many had been."""
        announced = 0
        for request in requests:
            key = answer_key(request)
            if self._answers.pop(key, float("-inf")) > float("-inf"):
                announced += 1
                if len(self._withdrawn) < WITHDRAWN_AT_ONCE:
                    self._withdrawn.append(key)
        if announced:
            self._stirred.set()
        return announced

    # -- announcing --------------------------------------------------------------------------------------------

    async def _announce(self) -> None:
        """What is new, gone, or about to expire elsewhere; at most a batch."""
        now, limits = trio.current_time(), self._limits
        if not self._dht.known() or self._leaving:
            return
        models = dict.fromkeys(self._models()[:MAX_MODELS])
        gone = [model for model in self._told if model not in models]
        keys = [(model_key(self._name, model), 0.0) for model in gone]
        keys += [(key, 0.0) for key in self._withdrawn]
        due = [model for model in models if now - self._told.get(model, float("-inf")) > limits.model_ttl_s / 2]
        keys += [(model_key(self._name, model), limits.model_ttl_s) for model in due]
        self._withdrawn = []
        for model in gone:
            del self._told[model]
        if not self._swarm.knows_everyone():
            stale = now - limits.answer_ttl_s / 2
            answers = [key for key, told in reversed(self._answers.items()) if told <= stale][: limits.announce_batch]
            again = [key for key in answers if self._answers[key] > float("-inf")]
            evicted = set(again) - {answer_key(one) for one in await self._still([key[-32:] for key in again])}
            for key in evicted:
                self._answers.pop(key, None)
            keys += [(key, 0.0 if key in evicted else limits.answer_ttl_s) for key in answers]
        if not keys:
            return
        taken = await self._dht.provide(keys)
        log.debug("%d of %d announcements were taken", len(taken), len(keys))
        self._told |= {model: now for model in due if model_key(self._name, model) in taken}
        for key in taken:
            if key in self._answers:  # it may have been forgotten meanwhile
                self._answers[key] = now

    async def withdraw(self) -> None:
        """This node stops: take back what it has announced, models before answers, within `withdraw_s`.

        What is not reached in that time expires by itself.
        """
        self._leaving = True
        models, answers = list(self._told), [key for key, told in self._answers.items() if told > float("-inf")]
        self._told.clear()
        alone = self._swarm.knows_everyone()
        with trio.move_on_after(self._limits.withdraw_s):
            if models:
                await self._dht.provide([(model_key(self._name, model), 0.0) for model in models])
            if not alone:
                await self._dht.publish_self(0.0)
                await self._dht.provide([(key, 0.0) for key in answers[-WITHDRAWN_AT_ONCE:]])

    async def _refresh(self) -> None:
        """Know who is near this node, and be known; now and then, and sooner when there are new neighbours.

        In a small swarm there is nobody to look for.
        """
        while True:
            if not self._swarm.knows_everyone() and not self._leaving:
                await self._dht.refresh()
                await self._dht.refresh(_random.randbytes(32))
                await self._dht.publish_self(2 * self._limits.refresh_s + self._limits.model_ttl_s)
            self._grown = trio.Event()
            with trio.move_on_after(self._limits.refresh_s * _random.uniform(0.8, 1.2)):
                await trio.sleep(self._limits.refresh_s / 10)
                await self._grown.wait()

    # -- finding -----------------------------------------------------------------------------------------------

    @property
    def may_help(self) -> bool:
        """Whether there may be somebody whom this node is not connected to."""
        return bool(self._dht.known()) and not self._swarm.knows_everyone()

    async def find_answers(self, request_cid: bytes, timeout: float) -> list[bytes]:
        """Blocks that nodes offer as the answer to a request that this node was not connected to; unverified.

        timeout: seconds, for the search, the connection and the question.
        """
        blocks: list[bytes] = []
        if not self.may_help:
            return blocks
        deadline = trio.current_time() + timeout

        async def ask(peer: PeerId, told: Sequence[str], scope: trio.CancelScope) -> None:
            session = await self._reach(peer, told)
            if session is not None:
                blocks.extend(await ask_all([session], request_cid, deadline - trio.current_time()))
                if blocks:
                    scope.cancel()

        await self._with_providers(answer_key(request_cid), timeout, ask)
        (self.found if blocks else self.missed)["answer"] += 1
        return blocks

    async def find_model(self, model: str, timeout: float) -> bool:
        """Connect to nodes that offer a model which nobody that is known offers; whether there is one now.

        A model that was not found is not searched for again for 30 s. timeout: seconds.
        """
        if not self.may_help or trio.current_time() - self._missed.get(model, float("-inf")) < MISSED_S:
            return False
        there = False

        async def connect(peer: PeerId, told: Sequence[str], scope: trio.CancelScope) -> None:
            nonlocal there
            if not self._swarm.may_serve(peer) or await self._reach(peer, told) is None:
                return
            with trio.move_on_after(ADVERT_S):
                while not self._swarm.offers(peer, model):
                    await self._spoke.wait()
                there = True
                scope.cancel()

        await self._with_providers(model_key(self._name, model), timeout, connect)
        (self.found if there else self.missed)["model"] += 1
        if not there:
            self._missed[model] = trio.current_time()
            while len(self._missed) > MAX_MISSED:
                self._missed.popitem(last=False)
        return there

    async def _with_providers(
        self, key: bytes, timeout: float, use: Callable[[PeerId, Sequence[str], trio.CancelScope], Awaitable[None]]
    ) -> None:
        """Search for providers, and use them as they are found, a few at once, until one cancels the rest."""
        count, places = 0, trio.CapacityLimiter(ASKED)
        with trio.move_on_after(timeout):
            async with trio.open_nursery() as nursery:

                async def in_turn(peer: PeerId, told: tuple[str, ...]) -> None:
                    async with places:
                        over = trio.Event()
                        nursery.start_soon(one, peer, told, over)
                        with trio.move_on_after(NEXT_S):
                            await over.wait()

                async def one(peer: PeerId, told: tuple[str, ...], over: trio.Event) -> None:
                    try:
                        await use(peer, told, nursery.cancel_scope)
                    finally:
                        over.set()

                def found(peer: PeerId, told: tuple[str, ...]) -> bool:
                    nonlocal count
                    if not self._swarm.is_connected(peer) and not self._is_dead(peer):  # the connected have been asked
                        count += 1
                        nursery.start_soon(in_turn, peer, told)
                    return count >= MAX_FOUND

                await self._dht.find_providers(key, found)

    def _is_dead(self, peer: PeerId) -> bool:
        return trio.current_time() - self._dead.get(peer, float("-inf")) < DEAD_S

    async def _reach(self, peer: PeerId, told: Sequence[str]) -> Session | None:
        """A session with a provider, by the addresses in its record, else by those in its own; None after 3 s."""
        session, began = None, trio.current_time()
        with trio.move_on_after(REACH_S):
            session = await self._swarm.reach(peer, told)
            if session is None:
                told = [address for address in await self._dht.locate(peer) if address not in told]
                session = await self._swarm.reach(peer, told) if told else None
        if session is None:
            self._dead[peer] = began
            while len(self._dead) > MAX_MISSED:
                self._dead.popitem(last=False)
        return session

    def stats(self) -> dict[str, Any]:
        """JSON-compatible."""
        announced = {"models": len(self._told), "answers": sum(t > float("-inf") for t in self._answers.values())}
        return self._dht.stats() | {"announced": announced, "found": self.found, "missed": self.missed}
