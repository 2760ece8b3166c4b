"""What this node knows of one other node, and the view of it that people get."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import msgspec
import trio
from msgspec import Struct

from ...protocols.peer_id import PeerId
from ...protocols.session import Session
from .advert import Advert
from .load import Digest, Standing
from .peer_provider import PeerProvider
from .refusal import reason_in, told

FIRST_RETRY_S = 0.1
MAX_RETRY_S = 5.0
PATIENT_AFTER_S = 600.0  # of trying in vain; a peer away for so long is looked for once a minute
PATIENT_RETRY_S = 60.0
BETWEEN_S = 2.0
GIVE_UP_AFTER_S = 24 * 3600.0
STRANGER_PATIENCE_S = 30.0  # of trying in vain to reach a peer that was only heard of


class PeerModel(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    provider: str
    context_length: int | None = None
    decode_tps: float | None = None
    prefill_tps: float | None = None
    first_token_ms: float | None = None
    measured_at: float | None = None


class PeerView(Struct, frozen=True, kw_only=True):
    """One peer for `shoal peers` and the dashboard.

    since, last_good: Unix time in seconds. rtt_s: seconds there and back when last measured. calls: in flight, both
    ways. load, told_at: how busy it said it was, and when it said all this (Unix time in seconds, by its clock).
    problem: why it is not connected, where that is known, and what to do next. via: "direct" or "relayed" while it is
    connected. relay: the peer id of the relay between, if any.
    """

    peer: PeerId
    name: str
    connected: bool
    since: float | None = None
    last_good: float | None = None
    rtt_s: float | None = None
    calls: int = 0
    agent: str = ""
    version: str = ""
    models: tuple[PeerModel, ...] = ()
    providers: tuple[str, ...] = ()
    hardware: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    load: dict[str, Any] = {}
    told_at: float | None = None
    addresses: tuple[str, ...] = ()
    problem: str = ""
    via: str = ""
    relay: str = ""


class Peer:
    """State of one peer while this node runs.

    sessions: all that live; session: the one in use. seeking: the scope of the task that dials it when it is away.
    configured: an invite or the configuration names it: it is sought for ever. stranger: only heard of, from others.
    needed: a request waits for it. nudged: it is to be dialled at once.
    dismissed_until: trio time until which it is left alone. load, load_at: its last digest, and when (trio time) it
    came. told, told_on: the issue of this node's
    advert that it has, and on which session it got it.
    """

    def __init__(self, peer: PeerId, provider: PeerProvider) -> None:
        self.id, self.provider = peer, provider
        self.sessions: list[Session] = []
        self.session: Session | None = None
        self.addresses: tuple[str, ...] = ()
        self.seeking: trio.CancelScope | None = None
        self.dialling: trio.CancelScope | None = None
        self.configured = self.stranger = self.needed = self.nudged = False
        self.dismissed_until = -math.inf
        self.load: Digest | None = None
        self.load_at = self.used_at = -math.inf
        self.told = -1
        self.told_on: Session | None = None
        self.failures = 0  # dials in vain, since the start
        self.missed_at = -math.inf  # when (trio time) its last session was lost with the relay that it ran through
        self.met = False  # whether a session with it has worked since the start
        self.since: float | None = None
        self.last_good: float | None = None
        self.rtt_s: float | None = None
        self.problem_at = -math.inf  # Unix time
        self.refused = ""  # the reason for which it has last turned this node away, since they were last connected
        self._problem = ""
        self.changed = trio.Event()  # replaced at each change of `session`

    @property
    def problem(self) -> str:
        """Why there is no session, as far as is known."""
        return self._problem

    @problem.setter
    def problem(self, text: str) -> None:
        self._problem, self.problem_at = text, time.time()
        self.refused = reason_in(text) or self.refused

    @property
    def left_alone(self) -> bool:
        return trio.current_time() < self.dismissed_until

    @property
    def usable(self) -> bool:
        return self.session is not None and self.session.usable

    @property
    def between(self) -> bool:
        """Whether it was lost with its relay a moment ago, so that it may be back over another one in a moment."""
        return self.session is None and trio.current_time() - self.missed_at < BETWEEN_S

    def use(self, session: Session | None) -> None:
        """Make `session` the one in use; wakes whoever waits for the change."""
        if session is not None:
            self.met, self.problem, self.refused = True, "", ""
            self.last_good = time.time()
            self.since = self.since or self.last_good
            if self.session is None or not self.session.usable:
                self.provider.since = trio.current_time()
        else:
            self.since = self.rtt_s = None
        self.session = session
        self.stir()

    def stir(self) -> None:
        """Wake whoever waits for a change."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def learn(self, addresses: tuple[str, ...]) -> None:
        """Addresses to dial it at: those given now before those known before."""
        self.addresses = tuple(dict.fromkeys((*addresses, *self.addresses)))[:16]

    def standing(self) -> Standing:
        """What a choice among peers goes by."""
        calls = self.session.calls_in_flight if self.session is not None else 0
        age_s = trio.current_time() - self.load_at
        relayed = self.session is not None and self.session.relayed
        return Standing(calls=calls, digest=self.load, age_s=age_s, rtt_s=self.rtt_s, relayed=relayed)

    def _load(self, advert: Advert | None) -> dict[str, Any]:
        if self.load is not None and self.standing().fresh:
            return dict(msgspec.to_builtins(self.load))
        return dict(msgspec.to_builtins(advert.load)) if advert is not None else {}

    def view(self, advert: Advert | None) -> PeerView:
        session = self.session
        hello = session.remote_hello if session is not None else None
        models = () if advert is None else advert.models
        return PeerView(
            peer=self.id,
            name=self.provider.name,
            connected=self.usable,
            since=self.since,
            last_good=self.last_good,
            rtt_s=self.rtt_s,
            calls=session.calls_in_flight if session is not None else 0,
            agent=hello.agent if hello is not None else "",
            version=advert.version if advert is not None else "",
            models=tuple(
                PeerModel(
                    name=offered.model.name,
                    provider=offered.provider,
                    context_length=offered.model.context_length,
                    decode_tps=offered.model.decode_tps,
                    prefill_tps=offered.model.prefill_tps,
                    first_token_ms=offered.model.first_token_ms,
                    measured_at=offered.model.measured_at,
                )
                for offered in models
            ),
            providers=tuple(p.name for p in advert.providers) if advert is not None else (),
            hardware=advert.hardware if advert is not None else {},
            limits=advert.limits if advert is not None else {},
            load=self._load(advert),
            told_at=advert.created if advert is not None else None,
            addresses=self.addresses,
            problem=(session.leaving or "") if session is not None else told(self.problem),
            via="" if session is None else "relayed" if session.relayed else "direct",
            relay=session.relay or "" if session is not None else "",
        )


class Backoff:
    """How long to wait before the next dial: 0.1 s, doubled with each failure up to 5 s, after ten minutes a minute.

    waited: seconds in all, since the last success. lag: an extra, in seconds, on the first waits, so that of two nodes
    that lost each other one dials first.
    """

    def __init__(self, lag: float = 0.0, *, jitter: random.Random | None = None) -> None:
        self._lag, self._jitter = lag, jitter or _jitter
        self.reset()

    def reset(self) -> None:
        self._failures, self.waited = 0, 0.0

    def failed(self) -> float:
        """Seconds to wait now."""
        plain = min(FIRST_RETRY_S * 2.0**self._failures, MAX_RETRY_S)
        if self.waited > PATIENT_AFTER_S:
            plain = PATIENT_RETRY_S
        self._failures = min(self._failures + 1, 16)
        self.waited += plain
        return plain * self._jitter.uniform(0.5, 1.0) + self._lag


_jitter = random.SystemRandom()
