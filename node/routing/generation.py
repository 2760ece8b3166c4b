"""The making of one answer: candidates are tried as `walk.py` says, and what they say goes into a `Flight`.

This is the thin I/O around the walk: waiting, calling providers under their limits, and racing a look-up in other
nodes' caches against the first attempt. What a finished answer leaves behind (record, cache) is `recording.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from ...cache.key import Key
from ...providers.base import POLICY, Dropped, ErrorKind, Event, ProviderError, Via
from ...providers.batches import Batches
from ...providers.gate import PARTY
from ...providers.severable import Severable
from ...providers.trace import TRACE
from .alarm import Limit, Watch
from .ask import Ask
from .attempt import ANSWERED, LOST, SKIPPED, Attempt
from .candidate import Candidate, attempt_at
from .continuation import FRESH, Continuation, Diverged, Plan, Splice, Way, prefixed
from .duel import Duel
from .fault import broken_off, provider_error, stopped_short, too_slow
from .flight import Flight
from .means import LookUp, Means
from .no_answer import NoAnswer
from .recording import Found
from .spliced import Spliced
from .together import Part
from .told import only_model, options_left_out, told
from .walk import Step, Walk, nothing_said

AFTER_FINISH_S = 1.0
"""Seconds that a provider gets to close its stream after Finish; the answer is whole by then."""

LOOK_AGAIN_S = 0.05
"""Seconds between two looks for peers that have come up."""

_SILENT = frozenset({ErrorKind.FIRST_TOKEN_TIMEOUT, ErrorKind.IDLE_TIMEOUT})

_FINAL = frozenset({ErrorKind.CONTENT_FILTER, ErrorKind.DEADLINE, ErrorKind.CANCELLED})
"""Kinds that stay what they are when text was sent before: nobody else could go on from there."""


class Generation:
    """Fills one flight. `look_up`, when given, asks beyond this machine and may win over the first attempt.

    part: its part among the generations of other nodes, where there are any.
    """

    def __init__(
        self, flight: Flight, ask: Ask, means: Means, look_up: LookUp | None = None, part: Part | None = None
    ) -> None:
        self._flight, self._ask = flight, ask
        self._source, self._health, self._speed, self._alarms, self._limits, self._recorder, self._now = means
        self._look_up, self._part = look_up, part
        self._answer_so_far = Continuation(ask.request)
        race = look_up is not None  # without one nothing waits for these
        self._walk_scope = trio.CancelScope() if race else _UNUSED
        self._look_up_scope = trio.CancelScope() if race else _UNUSED
        self._looked = trio.Event() if race else _NEVER
        self._won_elsewhere = False
        self._trying: tuple[Attempt, float] | None = None
        self._regroup_until: float | None = None
        self._stream: object = None  # that of the attempt under way, or of the last one

    async def run(self) -> None:
        """Ends with the flight: finished, or failed with the reason."""
        PARTY.set(self._flight.party)
        if self._ask.trace is not None:
            TRACE.set(self._ask.trace)
        if self._look_up is None:
            await self._answer()
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_beyond, self._look_up)
                with self._walk_scope:
                    with trio.move_on_after(self._limits.swarm_head_start_s):
                        await self._looked.wait()
                    await self._answer()
                self._look_up_scope.cancel()

    async def _look_beyond(self, look_up: LookUp) -> None:
        with self._look_up_scope:
            await look_up(self._found_elsewhere)
        self._looked.set()

    def _found_elsewhere(self, found: Found) -> None:
        if not self._flight.events and not self._flight.ended:
            self._won_elsewhere = True
            self._walk_scope.cancel()
            if self._trying is not None:
                attempt, start = self._trying
                attempt.outcome, attempt.ms = LOST, self._ms_since(start)
            self._flight.cache = found.tier
            self._flight.take(found)

    async def _answer(self) -> None:
        request = self._ask.request
        began: float | None = self._now()  # as long as nothing was waited for, it is still then
        candidates = self._candidates(began)
        if not candidates:
            began = None
            await self._source.refresh(request, self._ask)
            candidates = self._candidates()
        if not candidates:
            await self._give_up(self._source.why_none(request, self._ask))
            return
        walk = Walk(
            candidates,
            health=self._health,
            limits=self._limits,
            allow_fallback=self._ask.allow_fallback,
            unfit=self._unfit,
        )
        lost: Candidate | None = None  # the peer that was lost last
        while True:
            step = await self._next(walk, began)
            began = None
            if step is None:
                if lost is not None and await self._regrouped(walk):
                    continue
                break
            if self._part is not None and (leader := await self._leader(self._part, step.candidate)) is not None:
                if await self._joined(leader, walk):
                    return
                walk.once_more(step.candidate)
                continue
            before = len(self._flight.events)
            duel = self._duel(step, walk) if self._limits.hedge else None
            error = await self._attempt(step, duel)
            if error is None:
                return
            if duel is not None and not duel.started:
                walk.once_more(duel.rival)
            gone = error.kind in (ErrorKind.CONNECTION, ErrorKind.INTERRUPTED) and not isinstance(error, Diverged)
            lost = step.candidate if gone and step.candidate.peer is not None else None
            added = len(self._flight.events) > before
            begun = self._answer_so_far.begun
            walk.failed(step, error, self._now(), begun=begun, added=added and begun)
            if isinstance(error, _PrefixRejected) and self._unfit(step.candidate) is None:
                walk.once_more(step.candidate)
            if self._answer_so_far.said.bytes > self._limits.max_answer_bytes:
                break
            if begun:
                walk.offer(self._candidates(), rank=self._rank)
        last = walk.error or ProviderError(ErrorKind.UNAVAILABLE, "No provider could be asked.")
        failure = NoAnswer.after(last, self._flight.route)
        if request.completion is not None and not self._answer_so_far.begun and not self._candidates():
            failure = self._source.why_none(request, self._ask)  # by this they have found out that they cannot do it
        await self._give_up(failure)

    async def _leader(self, part: Part, candidate: Candidate) -> Candidate | None:
        """Whom to follow instead of asking `candidate`. Who forwards leaves it to the other node to find out who else
        is at work; not after a loss, when all who have lost the same go on at once."""
        return await part.follow() if candidate.peer is None or self._answer_so_far.begun else None

    async def _joined(self, leader: Candidate, walk: Walk) -> bool:
        """Follow a generation of somebody else; whether the flight has ended with it."""
        if self._health.blocked(leader, self._now()) is not None:
            return False
        error = await self._attempt(Step(leader, self._now()))
        if error is not None and error.kind in _SILENT and self._part is not None and leader.peer is not None:
            self._part.was_silent(leader.peer)
        if error is not None and self._answer_so_far.begun:
            walk.offer(self._candidates(), rank=self._rank)
        return error is None

    async def _give_up(self, failure: NoAnswer) -> None:
        """Fails the flight, but not before a look-up that still runs has had its say: the time is set aside for it."""
        if self._look_up is not None and not self._flight.events:
            await self._looked.wait()
        self._flight.fail(failure)

    async def _regrouped(self, walk: Walk) -> bool:
        """A swarm in which peers come and go: whether somebody else has come up, in the short time that is left to."""
        if not walk.lacks_candidates:
            return False
        if self._regroup_until is None:
            self._regroup_until = min(self._now() + self._limits.regroup_s, self._flight.deadline)
        while not walk.offer(self._candidates()):
            if self._now() >= self._regroup_until:
                return False
            await trio.sleep(LOOK_AGAIN_S)
        return True

    def _candidates(self, now: float | None = None) -> Sequence[Candidate]:
        key = self._ask.key
        found = self._source.candidates(self._ask.request, self._ask)
        if len(found) < 2:
            return found
        return self._speed.ranked(found, self._now() if now is None else now, key.cid if isinstance(key, Key) else None)

    async def _next(self, walk: Walk, now: float | None) -> Step | None:
        """The next step, when its time has come; None when there is none that fits the deadline."""
        while True:
            now = self._now() if now is None else now
            step = walk.step(now, self._flight.deadline)
            if walk.skipped:
                self._note_skipped(walk)
            if step is None:
                return None
            if step.at > now:
                await trio.sleep_until(step.at)
                now = self._now()
                block = self._health.blocked(step.candidate, now, last_resort=True)
                if block is not None:
                    walk.held(step, block, now)
                    continue
            return step

    def _plan(self, candidate: Candidate) -> Plan | str:
        if self._answer_so_far.fresh:
            return FRESH
        continues = candidate.continues and not self._health.rejects_prefix(candidate)
        return self._answer_so_far.plan(continues=continues, model=candidate.model, joins=candidate.joins)

    def _unfit(self, candidate: Candidate) -> str | None:
        """Why this candidate cannot go on from where the answer stands."""
        if self._answer_so_far.fresh:
            return None
        plan = self._plan(candidate)
        return plan if isinstance(plan, str) else None

    def _rank(self, candidate: Candidate) -> int:
        """Who goes on with an answer first: the same model before others, and who only may before nobody."""
        plan = self._plan(candidate)
        if isinstance(plan, Plan) and not plan.sure:
            return 2
        return int(candidate.model != self._answer_so_far.model)

    def _note_skipped(self, walk: Walk) -> None:
        for candidate, block in walk.skipped:
            self._flight.route.append(attempt_at(candidate, outcome=SKIPPED, reason=f"{block.kind}: {block.reason}"))
        walk.skipped.clear()

    def _duel(self, step: Step, walk: Walk) -> Duel | None:
        """A second candidate for this step, where one may be asked beside the first."""
        after_s = self._speed.slow_after(step.candidate)
        if after_s is None or self._answer_so_far.said.said or self._ask.request.prefix or self._ask.request.has_tools:
            return None
        rival = walk.rival(self._now())
        if rival is None:
            return None
        after_s = after_s * 1.05 + 0.005  # one that is as fast as ever is no cause
        return Duel(step.candidate, rival, self._ask, self._flight, self._health, self._answer_so_far, after_s)

    async def _attempt(self, step: Step, duel: Duel | None = None) -> ProviderError | None:
        """One try at one candidate: None when the flight has ended with an answer, else why it failed."""
        candidate, flight, whole = step.candidate, self._flight, self._answer_so_far
        plan = self._plan(candidate)
        if isinstance(plan, str):  # a walk does not step onto one that does not fit
            return ProviderError(ErrorKind.UNAVAILABLE, f"{candidate.name} cannot take this: {plan}")
        attempt = attempt_at(candidate)
        if plan.way is not Way.FRESH or candidate.joins:
            attempt.way = "join" if candidate.joins else str(plan.way)
        if candidate.asks is not None and candidate.asks != self._ask.request:
            flight.astray = True
        said = whole.said
        start, before = self._now(), len(flight.events)
        self._health.began(candidate, start)
        flight.provider, flight.peer, flight.model = candidate.name, candidate.peer, candidate.model
        if candidate.peer is not None and candidate.model is None:
            flight.model = await only_model(candidate)
        flight.route.append(attempt)
        self._trying = attempt, start
        events: object = None
        error: ProviderError | None = None
        splice = whole.begin(plan, flight.model)
        try:
            events, error = await self._relay(candidate, plan, splice, attempt, start, duel)
        finally:
            if duel is not None:
                candidate, attempt = duel.over(candidate, attempt)
                duel.ended(self._ms_since(start))
            attempt.ms = self._ms_since(start)
            if said.finish is None and error is None:
                self._health.let_go(candidate)
                if not self._won_elsewhere:
                    attempt.outcome = str(ErrorKind.CANCELLED)
        if self._won_elsewhere:
            await trio.lowlevel.checkpoint()
        if error is None and said.empty and not self._ask.request.prefix and self._ask.request.completion is None:
            error = nothing_said(candidate)
        if error is not None:
            events_of_it = len(flight.events) - before
            whole.broke_off(events_of_it + (splice.skipped if splice is not None else 0))
            unseen = flight.take_back()
            if unseen:
                whole.forget()
            error = self._as_seen(candidate, error, plan.way, added=events_of_it > 0 and not unseen)
            attempt.outcome, attempt.reason = str(error.kind), error.message
            if unseen:
                attempt.outcome = str(ErrorKind.INTERRUPTED)
            if candidate.joins and error.kind not in _SILENT:
                self._health.let_go(candidate)  # what failed is the provider over there; who is lost is so anyway
            elif not isinstance(error, Diverged):
                now = self._now()
                broke_off = unseen and error.kind is ErrorKind.CONNECTION  # it was reached, and it spoke
                self._health.failed(candidate, broken_off(error) if broke_off else error, now)
                if POLICY[error.kind].breaker or (candidate.peer is not None and error.kind is ErrorKind.UNAVAILABLE):
                    # A peer that offers what it does not have comes after the others, too.
                    self._speed.failed(candidate, now)
            return error
        self._health.answered(candidate)
        if plan.way is Way.FRESH and not candidate.joins and attempt.first_token_ms is not None:
            first_s, took_s = attempt.first_token_ms / 1000, attempt.ms / 1000
            self._speed.answered(candidate, first_s, len(flight.events) - before, took_s, start + took_s)
        attempt.outcome = ANSWERED
        self._land(candidate, events)
        return None

    def _as_seen(self, candidate: Candidate, error: ProviderError, way: Way, *, added: bool) -> ProviderError:
        """The failure by what the caller has seen of this attempt."""
        if way is Way.PREFIX and not added and error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.UNAVAILABLE):
            # It takes no prefix after all. Remembered, and not the caller's concern.
            self._health.note_rejected_prefix(candidate)
            return _PrefixRejected(f"{candidate.name} does not take the text so far")
        if isinstance(error, Diverged):
            return Diverged(f"{candidate.name} cannot go on with it: {error.message}")
        if candidate.joins and not added and error.kind not in _SILENT:
            return ProviderError(ErrorKind.UNAVAILABLE, f"joining {candidate.name}: {error.message}")
        if added and error.kind not in _FINAL:
            return ProviderError(ErrorKind.INTERRUPTED, f"{candidate.name} broke off: {error.message}")
        if error.kind is ErrorKind.INTERRUPTED:
            return ProviderError(ErrorKind.CONNECTION, error.message)  # nobody saw what it had said
        return error

    async def _relay(
        self,
        candidate: Candidate,
        plan: Plan,
        splice: Splice | None,
        attempt: Attempt,
        start: float,
        duel: Duel | None = None,
    ) -> tuple[object, ProviderError | None]:
        """Moves a provider's events into the flight under the attempt's limits; gives the stream for its result."""
        ask, flight, said = self._ask, self._flight, self._answer_so_far.said
        first_s = min(ask.first_token_s, self._limits.join_first_s) if candidate.joins else ask.first_token_s
        request = ask.request if plan is FRESH else prefixed(ask.request, plan)
        error: ProviderError | None = None
        self._stream = None
        limit = Limit()
        watch = self._alarms.watch(min(start + first_s, flight.deadline), limit.pass_)

        def later(deadline: float) -> None:
            # A reader with more time has joined. Until the first event the attempt's own limit may be what counts.
            if attempt.first_token_ms is None:
                watch.set(min(start + first_s, deadline))

        if not flight.alone:
            flight.when_deadline_moves(later)
        try:
            opened = candidate.open(request, ask, deadline_s=flight.deadline - start)
            if flight.alone and duel is None and isinstance(opened, Severable):
                limit.end = flight.end = opened.sever
                if flight.stopped:
                    return None, stopped_short()
                error = await self._draw(opened, candidate, splice, attempt, start, watch, None)
            else:
                with trio.CancelScope() as scope:
                    limit.end = scope.cancel
                    if flight.alone:
                        flight.end = scope.cancel
                        if flight.stopped:
                            scope.cancel()
                    drawn = opened if duel is None else duel.open(opened, request, attempt)
                    error = await self._draw(drawn, candidate, splice, attempt, start, watch, duel)
        except ProviderError as caught:
            error = caught
        except Exception as caught:  # a provider may be anybody's code: its fault costs one attempt, not the node
            error = provider_error(candidate, caught)
        finally:
            watch.stop()
            if flight.alone:
                flight.end = None
            else:
                flight.when_deadline_moves(None)
        if said.finish is not None:
            return self._stream, None  # the answer is whole; how its stream was closed does not matter
        if flight.alone and flight.stopped:
            error = stopped_short()
        elif limit.passed:
            error = too_slow(candidate, attempt, ask, spent=self._now() >= flight.deadline)
        if error is None:
            error = ProviderError(ErrorKind.UPSTREAM, f"{candidate.name} ended its stream without an end mark")
        return self._stream, error

    async def _draw(
        self,
        opened: AbstractAsyncContextManager[AsyncIterator[Event]],
        candidate: Candidate,
        splice: Splice | None,
        attempt: Attempt,
        start: float,
        watch: Watch,
        duel: Duel | None,
    ) -> ProviderError | None:
        """The same inside the limits: what the provider says until it has no more, or too much."""
        ask, flight, said = self._ask, self._flight, self._answer_so_far.said
        put = flight.events.append if flight.alone else flight.put  # nobody waits for news of what he writes himself
        async with opened as stream:
            self._stream = stream
            source: AsyncIterable[Event] = stream
            if splice is not None:
                source = Spliced(stream, splice, lambda: self._heard(candidate, attempt, start, watch))
            # What came in one packet is passed on in one turn, where nobody has to look at each event.
            batches = stream if isinstance(stream, Batches) and splice is None and duel is None else None
            async for event in source:
                if duel is not None:
                    candidate, attempt = duel.over(candidate, attempt)
                if self._won_elsewhere:
                    await trio.lowlevel.checkpoint()  # the walk is cancelled; this event was at hand already
                passed = False
                for one in (event,) if batches is None else (event, *batches.ready()):
                    if said.add(one):
                        if attempt.first_token_ms is None:
                            self._first(candidate, attempt, start, stream)
                        put(one)
                        passed = True
                    elif type(one) is Dropped:
                        attempt.dropped = one.options
                    elif type(one) is Via and candidate.peer is None:
                        attempt.via = one.name
                if passed and flight.full:
                    watch.set(flight.deadline)
                    await flight.room()
                if said.finish is not None:
                    if batches is not None and batches.over:
                        break
                    watch.set(min(self._now() + AFTER_FINISH_S, flight.deadline))
                elif passed:
                    watch.set(min(self._now() + ask.idle_s, flight.deadline))
                if passed and said.bytes > self._limits.max_answer_bytes:
                    return ProviderError(ErrorKind.UPSTREAM, f"{candidate.name} writes without end")
        return None

    def _first(self, candidate: Candidate, attempt: Attempt, start: float, stream: object) -> None:
        """The first event of an attempt has come."""
        attempt.first_token_ms = self._ms_since(start)
        if self._look_up is not None:
            self._look_up_scope.cancel()
        self._health.spoke(candidate)
        if candidate.peer is not None and (model := told(getattr(stream, "accepted", None), "model")) is not None:
            self._flight.model = self._answer_so_far.model = model

    def _heard(self, candidate: Candidate, attempt: Attempt, start: float, watch: Watch) -> None:
        """A provider that says again what the caller has is not silent."""
        now = self._now()
        if attempt.first_token_ms is None:
            attempt.first_token_ms = self._ms_since(start)
            self._health.spoke(candidate)
        watch.set(min(now + self._ask.idle_s, self._flight.deadline))

    def _ms_since(self, start: float) -> float:
        return round((self._now() - start) * 1000, 3)

    def _land(self, candidate: Candidate, events: object) -> None:
        """The answer is whole: record it, then let the readers have its end.

        A text of more than one hand is not recorded: nobody could honestly sign it as one provider's. One that was
        replayed is: whoever ended it has written all of it.
        """
        flight, whole = self._flight, self._answer_so_far
        said, finish = whole.said, whole.said.finish
        if finish is None:
            raise RuntimeError("an answer cannot land before its Finish")
        attempt, result = flight.route[-1], None
        flight.model = finish.model or flight.model
        if candidate.peer is not None and (result := getattr(events, "result", None)) is not None:
            flight.model = finish.model or told(result, "model") or flight.model
            flight.provider = told(result, "provider") or flight.provider
            attempt.dropped = attempt.dropped or options_left_out(result)
        dropped = attempt.dropped
        # Kept under the request's key, an answer made without some of its options would pass for one made with them.
        if candidate.joins and (joined := getattr(events, "flight", None)) is not None:
            flight.record, flight.response_cid = joined.record, joined.response_cid
        elif self._recorder is not None and not dropped and not whole.pieced:
            hit = self._recorder.record(self._ask, candidate, said, flight.model, result)
            if hit is not None:
                flight.record, flight.response_cid = hit.record, hit.cid_text
        last: list[Event] = [finish]
        if (usage := whole.usage()) is not None:
            last.insert(0, usage)
        flight.finish(last)


_UNUSED, _NEVER = trio.CancelScope(), trio.Event()


class _PrefixRejected(Diverged):
    """A provider that was said to continue a prefix does not."""
