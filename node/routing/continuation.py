"""Going on with an answer that broke off: who may, in which way, and what of the next attempt the caller gets.

What belongs here: the decision and the text, as a pure state machine. It knows no clock, no provider and no wire; the
order of attempts is walk.py's. The rule above all others: the caller gets each character once, or is told that the
rest is missing.

    continuation = Continuation(request)
    plan = continuation.plan(continues=True, model="m1")     # a Plan, or the reason why this one cannot go on
    splice = continuation.begin(plan)
    for event in events_of_the_next_attempt:
        for passed in splice.take(event): ...                # raises Diverged when the answer is another one

The ways, best first:
    fresh    nobody has said anything, so there is nothing to go on from
    prefix   the next provider gets the text so far and yields what follows
    replay   the next provider writes the whole answer again; what the caller has is compared and skipped. With the
             same model only. Sure with temperature 0 or a seed; else worth a try when nobody is left who surely can:
             an answer that begins with what the caller has is a good one, and another is left at the first difference
    restart  only thoughts were said, and no text: the next provider starts again, and a thought says so
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from ...providers.base import (
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    ProviderError,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from .transcript import Transcript


class Way(enum.StrEnum):
    FRESH = "fresh"
    PREFIX = "prefix"
    REPLAY = "replay"
    RESTART = "restart"


class Plan(Struct, frozen=True):
    """How an attempt goes about it. prefix: what the provider is given; skip: what of its text the caller has.

    sure: whether it should work; else it is for the case that nobody is left with whom it should.
    """

    way: Way
    prefix: str = ""
    skip: str = ""
    sure: bool = True


FRESH = Plan(Way.FRESH)


class Diverged(ProviderError):
    """An attempt to go on did not lead on from what the caller has. Says nothing against the provider's health."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorKind.INTERRUPTED, message)


class Continuation:
    """One answer across its attempts.

    said: what the caller has of it. model: the one that wrote that, where known. pieced: whether the text is of more
    than one hand, so that nobody can sign it as his own.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self.said = Transcript()
        self.model: str | None = request.model if request.prefix else None
        self.pieced = False
        self._broken: list[Usage | int] = []

    @property
    def begun(self) -> bool:
        """Whether the caller has a part of the answer itself, so that a new attempt must go on from there."""
        return self.said.texted or self.said.tools

    @property
    def fresh(self) -> bool:
        """Whether there is nothing to go on from, so that an attempt begins like the first one."""
        return not self._request.prefix and not self.said.said

    def plan(self, *, continues: bool, model: str | None, joins: bool = False) -> Plan | str:
        """What an attempt with `model` at a provider that `continues` a prefix would do; a str says why it cannot.

        joins: it is a generation of the same request that is under way elsewhere, told from its beginning.
        """
        request, said = self._request, self.said
        if self.fresh:
            return FRESH
        if said.tools or (said.said and request.has_tools):
            return "tools are in play, so the answer is not moved"
        so_far = request.prefix + said.text
        if not so_far:
            return Plan(Way.RESTART)
        if joins:
            return Plan(Way.REPLAY, skip=so_far)
        structured = (request.response_format or {}).get("type", "text") != "text"
        if continues and not structured:
            return Plan(Way.PREFIX, prefix=so_far)
        if self.model is None or model != self.model:
            return "it does not go on from a prefix, and it is another model"
        return Plan(Way.REPLAY, skip=so_far, sure=not request.sampled)

    def begin(self, plan: Plan, model: str | None) -> Splice | None:
        """The attempt begins. None: its events go to the caller as they are."""
        self.said.usage = self.said.finish = None
        if plan.way is Way.FRESH:
            self.model = model
            return None
        if plan.way is Way.PREFIX and self.said.texted:
            self.pieced = True
        elif plan.way is Way.REPLAY:
            self.pieced = False
        self.model = model
        return Splice(plan)

    def broke_off(self, events: int) -> None:
        """The attempt under way has failed after `events` events, which are paid for."""
        if self.said.usage is not None:
            self._broken.append(self.said.usage)
        elif events:
            self._broken.append(events)

    def forget(self) -> None:
        """The caller has not read a word of it after all: the next attempt begins anew."""
        self.said = Transcript()
        self.model = self._request.model if self._request.prefix else None
        self.pieced = False

    def usage(self) -> Usage | None:
        """What the whole answer cost. An attempt that broke off before it counted has read the prompt and has written
        one token an event, as nearly as can be known."""
        last = self.said.usage
        if last is None or not self._broken:
            return last
        total = last
        for part in self._broken:
            if isinstance(part, int):
                part = Usage(last.prompt_tokens, part)
            total = Usage(
                total.prompt_tokens + part.prompt_tokens,
                total.completion_tokens + part.completion_tokens,
                total.cached_tokens + part.cached_tokens,
                total.reasoning_tokens + part.reasoning_tokens,
                None if total.cost is None and part.cost is None else (total.cost or 0.0) + (part.cost or 0.0),
            )
        return total


class Splice:
    """What of one later attempt the caller gets. `skipped`: events that were taken and not passed on."""

    __slots__ = ("_at", "_plan", "_signalled", "skipped")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._at = 0  # characters of plan.skip that came again
        self._signalled = plan.way is not Way.RESTART
        self.skipped = 0

    @property
    def caught_up(self) -> bool:
        """Whether everything that the caller has was said again."""
        return self._at == len(self._plan.skip)

    def take(self, event: Event) -> Sequence[Event]:
        """The events that the caller gets for this one. Raises Diverged; nothing wrong was passed on then."""
        if type(event) is TextDelta:
            if not self._signalled:
                return self._signal(event)
            if self.caught_up:
                return (event,)
            return self._compare(event.text)
        if type(event) is ReasoningDelta:
            if not self._signalled:
                return self._signal(event)
            if self._plan.way is not Way.RESTART:
                self.skipped += 1
                return ()  # the caller had the thoughts that led to the text so far
            return (event,)
        if not self.caught_up:
            if isinstance(event, Finish):
                raise Diverged("asked again, it ended before the point where the answer broke off")
            if isinstance(event, ToolCallDelta):
                raise Diverged("asked again, it wanted to call a tool where it had written text")
        return (event,)

    def _signal(self, event: Event) -> Sequence[Event]:
        self._signalled = True
        return (ReasoningDelta("\n[The provider broke off here. Another one starts again.]\n"), event)

    def _compare(self, text: str) -> Sequence[Event]:
        skip, at = self._plan.skip, self._at
        end = min(len(skip), at + len(text))
        here = end - at
        if text[:here] != skip[at:end]:
            raise Diverged("asked again, it says something else than before")
        self._at = end
        if here == len(text):
            self.skipped += 1
            return ()
        return (TextDelta(text[here:]),)


def prefixed(request: GenerateRequest, plan: Plan) -> GenerateRequest:
    """The request as the plan wants it."""
    if request.prefix == plan.prefix:
        return request
    return msgspec.structs.replace(request, prefix=plan.prefix)
