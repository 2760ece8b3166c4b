"""The router: from a question to an answer, through the cache, a generation under way, or a walk of the candidates.

    router = Router(source, cache=cache, signer=identity)
    async with router.running():
        async with router.answer(Ask(request=request, deadline=trio.current_time() + 60)) as answer:
            async for event in answer: ...

What is decided about retries and fallbacks is walk.py; the way of one generation is generation.py.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Collection, Hashable, Mapping
from typing import Any

import trio
from msgspec import UNSET, Struct

from ...cache.cid import cid_text
from ...cache.key import Key
from ...cache.record import SignedRecord
from ...protocols.peer_id import Identity, PeerId
from ...providers.base import ErrorKind, GenerateRequest
from ...providers.trace import TRACE
from .alarm import Alarms
from .answer import Answer
from .ask import Ask
from .attempt import Attempt
from .beyond import Beyond, Find, Tiers
from .candidate import CandidateSource
from .fault import without_text
from .flight import Flight, Flights, node_stops, stopped
from .generation import Generation
from .health import Health
from .joined import JoinedAnswer
from .limits import RoutingLimits
from .means import LookUp, Means
from .no_answer import NoAnswer
from .recording import Cache, Far, Found, Recorder
from .shares import Shares
from .speed import Speed
from .together import Others, Part, Together
from .watcher import Watcher

_log = logging.getLogger(__name__)


class RouteNote(Struct, kw_only=True):
    """One finished request for `route/last`: all but what was said. at: seconds since 1970; ms: its whole time."""

    at: float
    ms: float
    caller: str
    asked_model: str | None
    provider: str | None
    model: str | None
    peer: str | None
    cache: str
    cid: str | None
    outcome: str
    attempts: list[Attempt]


class Router:
    """Answers requests. One for a node; `running` owns the generations, `answer` is what callers use.

    source: who can answer. cache, signer: without a cache nothing is looked up or stored. beyond: other nodes' caches.
    farther: look-ups behind those, by their tier. others: the nodes with which answers under way are shared.
    """

    def __init__(
        self,
        source: CandidateSource,
        cache: Cache | None = None,
        beyond: Beyond | None = None,
        signer: Identity | None = None,
        *,
        limits: RoutingLimits | None = None,
        farther: Mapping[Far, Find] | None = None,
        others: Others | None = None,
        on_record: Callable[[SignedRecord], None] | None = None,
    ) -> None:
        self.limits = limits or RoutingLimits()
        self.health = Health()
        self.speed = Speed()
        self.alarms = Alarms()
        self.flights = Flights()
        self._shares = Shares()
        self.counts: Counter[str] = Counter()
        self.notes: deque[RouteNote] = deque(maxlen=self.limits.recent_routes)
        self.watchers: list[Watcher] = []
        self.traced = False  # whether somebody wants to know whose span a request belongs to
        self._source, self._cache = source, cache
        self.recorder: Recorder | None = None
        if cache is not None:
            if signer is None:
                raise ValueError("a router with a cache needs an identity that signs what goes into it")
            self.recorder = Recorder(cache, signer, on_record=on_record)
        self.now: Callable[[], float] = trio.current_time
        self._means = self._all_means()
        self.beyond: Tiers | None = None
        if beyond is not None and cache is not None and self.recorder is not None:
            wait_s = self.limits.swarm_wait_s
            self.beyond = Tiers(beyond, farther or {}, cache=cache, recorder=self.recorder, wait_s=wait_s)
        self._me = signer.peer_id if signer is not None else None
        self._myself = frozenset((self._me,)) if self._me is not None else frozenset()
        self.together: Together | None = None
        if others is not None and cache is not None and self._me is not None and self.limits.join_wait_s > 0:
            self.together = Together(self._me, others, self.limits, cache.trusts)
        self._nursery: trio.Nursery | None = None
        self._alone: set[Flight] = set()  # those that fly in their callers' tasks

    def _all_means(self) -> Means:
        parts = self.health, self.speed, self.alarms, self.limits, self.recorder
        return Means(self._source, *parts, self.now)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The life of the generations. Leaving it cancels those that still run; their readers get NoAnswer."""
        # The clock itself: trio.current_time looks for it each time, which a request would pay for ten times.
        self.now = trio.lowlevel.current_clock().current_time
        self._means = self._all_means()
        async with trio.open_nursery() as nursery:
            self._nursery = await nursery.start(_hold_open)
            nursery.start_soon(self.alarms.run)
            try:
                yield
            finally:
                self.stop()
                nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Begin no generation any more and end those under way, at once: their readers get NoAnswer, and can say so."""
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.cancel_scope.cancel()
        for flight in self._alone:
            flight.stop()

    @property
    def in_flight(self) -> int:
        """Generations under way."""
        return self._shares.taken

    # -- asking ------------------------------------------------------------------------------------------------

    def ask(self, request: GenerateRequest, *, timeout_s: float | None = None, **how: Any) -> Ask:
        """An Ask of this machine with the router's own limits. timeout_s: seconds for the answer in all."""
        limits = self.limits
        now = self.now()
        return Ask(
            request=request,
            began=now,
            deadline=now + (limits.deadline_s if timeout_s is None else timeout_s),
            first_token_s=limits.first_token_s,
            idle_s=limits.idle_s,
            hops=limits.hops,
            **how,
        )

    def peek(self, ask: Ask) -> Found | None:
        """The answer, when it is in memory: the short way for the RPC, without waiting and without a route."""
        key = self._key(ask)
        control = ask.cache_control
        if key is None or self._cache is None or self.recorder is None or control.fresh:
            return None
        hit = self._cache.peek(key, control.max_age)
        if hit is None:
            return None
        self.counts["memory"] += 1
        found = self.recorder.found(hit)
        for watcher in self.watchers:
            watcher.peeked(ask, found)
        return found

    def answer(self, ask: Ask) -> Answer:
        """The answer as an async context manager; see `Answer`. Entering or reading it raises NoAnswer."""
        return Answer(self, ask)

    def answer_for_peer(
        self,
        request: GenerateRequest,
        peer: PeerId,
        deadline_s: float,
        hops: int = 0,
        seen: Collection[PeerId] = (),
    ) -> Answer:
        """The same for a request that a peer forwards: only shared providers, and no further peer unless hops > 0.

        deadline_s: seconds that the peer still gives. When read to its end, `answer.result()` is what the peer gets.
        """
        limits = self.limits
        ask = Ask(
            request=request,
            deadline=trio.current_time() + min(deadline_s, limits.deadline_s),
            first_token_s=limits.first_token_s,
            idle_s=limits.idle_s,
            hops=max(0, min(hops, limits.hops)),
            seen=frozenset(seen) | {peer},
            caller=peer,
        )
        if (trace := TRACE.get()) is not None:
            ask.trace = trace.through(recorded=self.traced)
        return Answer(self, ask)

    def leader(self, cid: bytes, asker: PeerId, lost: Collection[PeerId] = ()) -> PeerId:
        """Which node makes the answer to that key, for a peer that asks this one as its owner."""
        return self.together.leader(cid, asker, lost) if self.together is not None else asker

    @contextlib.asynccontextmanager
    async def joined(self, cid: bytes, peer: PeerId, deadline_s: float) -> AsyncGenerator[Answer]:
        """What this node generates under that key, or has just generated, for a peer that joins.

        Raises NoAnswer when there is nothing that the peer may have.
        """
        deadline = trio.current_time() + min(deadline_s, self.limits.deadline_s)
        part = await self.together.led(cid) if self.together is not None else None
        if part is not None:
            flight, of = part.flight, part.ask
            ask = Ask(request=of.request, deadline=deadline, caller=peer, asked=of.asked, key=of.key)
        else:
            signed = await self._cache.public_answer(cid) if self._cache is not None else None
            if signed is None:
                raise NoAnswer(ErrorKind.UNAVAILABLE, "There is no such answer under way here.", code="not_under_way")
            record = signed.record
            flight = self._landed(
                Found(record.provider, record.model, record.node, cid_text(signed.cid), "memory", record)
            )
            request = GenerateRequest(messages=(), model=record.model)
            ask = Ask(request=request, deadline=deadline, caller=peer, asked=request, key=None)
        async with JoinedAnswer(self, ask, flight) as answer:
            yield answer

    # -- an Answer's way in and out ----------------------------------------------------------------------------

    async def _join(self, ask: Ask) -> Flight:
        """The flight that will answer: a finished one out of the cache, one under way, or a new one."""
        key = self._key(ask)
        control = ask.cache_control
        if not ask.from_here and self._me in ask.seen:
            raise NoAnswer(ErrorKind.UNAVAILABLE, "The request has passed this node before.", code="loop")
        if self._me is not None:
            ask.seen = ask.seen | self._myself if ask.seen else self._myself
        shared: Hashable | None = None
        if key is None and not control.only_if_cached:
            return self._board(self._launch(ask, None, None), ask)
        if key is not None and not control.fresh:
            # A route's fallback may be another model: who asked for this one by its own name does not share that.
            alias = ask.asked.model if ask.asked is not None and ask.asked.model != ask.request.model else None
            shared = (key.digest, ask.from_here, ask.allow_fallback, alias)
            flight = self.flights.find(shared) or self._open_to(ask, key)
            if flight is not None:
                return self._board(flight, ask)
        if key is not None and self.recorder is not None and self._cache is not None and not control.fresh:
            hit = await self._cache.get(key, control.max_age)
            if hit is not None:
                return self._board(self._landed(self.recorder.found(hit)), ask)
            if control.only_if_cached:
                found = await self.beyond.find(key, ask.request) if self.beyond is not None else None
                if found is not None:
                    return self._board(self._landed(found), ask)
            elif (flight := self.flights.find(shared)) is not None:
                return self._board(flight, ask)  # somebody was quicker while the disk was asked
        if control.only_if_cached:
            raise NoAnswer(
                ErrorKind.UNAVAILABLE,
                "The answer is not in the cache, and the request says only-if-cached.",
                code="not_cached",
            )
        flight = self._launch(ask, key, shared)
        return self._board(flight, ask)

    def _open_to(self, ask: Ask, key: Key) -> Flight | None:
        """A generation of this machine's own callers that a peer may join: it will be published, and the provider that
        is at work is one that the peer may use."""
        publish = ask.cache_control.publish != "none" and getattr(self._cache, "publish", False)
        if ask.from_here or not ask.allow_fallback or not publish or not self.flights:
            return None
        flight = self.flights.find((key.digest, True, True, None))
        if flight is None or not flight.public or flight.peer is not None:
            return None
        names = [c.name for c in self._source.candidates(ask.request, ask) if c.peer is None]
        return flight if flight.provider in names else None

    def _board(self, flight: Flight, ask: Ask) -> Flight:
        flight.join(ask.deadline)
        for watcher in self.watchers:
            watcher.boarded(ask, flight)
        return flight

    def _left(self, ask: Ask, flight: Flight, ms: float) -> None:
        """A caller has left its answer, at the end or before, `ms` milliseconds after it asked."""
        outcome = "ok" if flight.ended else str(ErrorKind.CANCELLED)
        if flight.failure is not None:
            outcome = str(flight.failure.kind)
        elif flight.ended:
            self.counts[flight.cache] += 1
        note = RouteNote(
            at=time.time(),
            ms=ms,
            caller=ask.caller,
            asked_model=(ask.asked or ask.request).model,
            provider=flight.provider,
            model=flight.model,
            peer=flight.peer,
            cache=flight.cache,
            cid=flight.response_cid,
            outcome=outcome,
            attempts=flight.route,
        )
        self.notes.append(note)
        for watcher in self.watchers:
            watcher.left(ask, flight, note)

    # -- inside ------------------------------------------------------------------------------------------------

    def _key(self, ask: Ask) -> Key | None:
        """The request's cache key, computed once; None when the answer is none for the cache."""
        if ask.key is UNSET:
            ask.asked = ask.request
            ask.request = self._source.settled(ask.request, ask)
            ask.key = None
            if self._cache is not None and not ask.cache_control.no_store:
                as_known = ask.known is not None and ask.request is ask.asked
                ask.key = ask.known if as_known else self._cache.key(ask.request)
        return ask.key

    def _landed(self, found: Found) -> Flight:
        flight = Flight(0.0)
        flight.cache = found.tier
        flight.take(found)
        flight.land()
        return flight

    def _launch(self, ask: Ask, key: Key | None, shared: Hashable | None) -> Flight:
        if self._nursery is None:
            raise node_stops(ErrorKind.UNAVAILABLE)
        party = ask.party
        if (why_not := self._shares.why_not(party, self.limits.max_in_flight)) is not None:
            raise NoAnswer(ErrorKind.OVERLOADED, why_not, code="node_full", retry_after=1.0)
        flight = Flight(ask.deadline, read_ahead=self.limits.read_ahead_events, party=party)
        flight.alone = ask.whole and shared is None
        flight.cache = "miss" if key is not None else "bypass"
        flight.public = ask.cache_control.publish != "none"
        if shared is not None:
            self.flights.add(shared, flight)
        self._shares.take(party)
        if flight.alone:
            # In the task of the only caller that it can have: who is cancelled then takes it along.
            self._alone.add(flight)
            flight.pilot = functools.partial(self._make, flight, ask, None, None, None)
        else:
            self._nursery.start_soon(self._fly, flight, ask, key, shared, name="flight")
        return flight

    def _ground(self, flight: Flight) -> None:
        """Its caller has left before it began."""
        flight.pilot = None
        flight.fail(stopped())
        self._over(flight)

    def _over(self, flight: Flight) -> None:
        flight.land()
        self._alone.discard(flight)
        self._shares.give_back(flight.party)

    async def _fly(self, flight: Flight, ask: Ask, key: Key | None, shared: Hashable | None) -> None:
        """A flight's task: whatever happens in it, the flight ends, and only the flight."""
        look_up = None
        beside = ask.from_here and not ask.cache_control.fresh and self.limits.swarm_wait_s > 0
        if key is not None and self.beyond is not None and beside and self.beyond.anybody:
            look_up = functools.partial(self.beyond.find, key, ask.request)
        part = self._part(flight, ask, key) if self.together is not None and shared is not None else None
        with trio.CancelScope() as scope:
            flight.end = scope.cancel
            if flight.stopped:
                scope.cancel()
            await self._make(flight, ask, shared, look_up, part)

    async def _make(
        self, flight: Flight, ask: Ask, shared: Hashable | None, look_up: LookUp | None, part: Part | None
    ) -> None:
        """The making of the answer: however it ends, the flight ends with it."""
        try:
            await Generation(flight, ask, self._means, look_up, part).run()
        except Exception as error:  # a fault of ours: this answer fails, the node goes on
            _log.error("a generation failed with %s", type(error).__name__, exc_info=without_text(error))
            flight.fail(
                NoAnswer(ErrorKind.UPSTREAM, "The node failed inside; see its log.", flight.route, code="internal")
            )
        finally:
            if not flight.ended:
                flight.fail(stopped() if self._nursery is not None else node_stops())
            self._over(flight)
            if part is not None:
                part.over()
            if shared is not None:
                self.flights.remove(shared, flight)

    def _part(self, flight: Flight, ask: Ask, key: Key | None) -> Part | None:
        """Its part among the generations of other nodes: one whose answer may be published, and by nobody's pin."""
        publish = ask.cache_control.publish
        public = publish != "none" if publish is not None else getattr(self._cache, "publish", False)
        pinned = ask.request.provider is not None or not ask.allow_fallback
        if self.together is None or key is None or not public or pinned:
            return None
        return self.together.part(key.cid, flight, ask)


async def _hold_open(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """A nursery of its own, so that the generations can be ended without those who wait for them."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()
