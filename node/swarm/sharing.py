"""What the owner lends to peers, and what they have had: limits per provider and model, the pause, and the accounts.

Nothing is lent that `share = true` does not name. What it names may have limits of its own:

    [share.local_hf]
    requests_per_minute = 30
    hours = ["22:00-06:00"]
    [share.local_hf.models.smollm2]
    tokens_per_day = 100000

A request must fit both the provider's limits and the model's. They count peers' requests alone: the owner's own are
never limited. Accounts and the pause are kept in one small file, written now and then.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec import Struct

from ...protocols.peer_id import PeerId
from ...providers.base import ErrorKind, Event, GenerateRequest, Provider, ProviderError, Status, Usage
from .. import paths
from .rules import ShareLimits, ShareRule

log = logging.getLogger("shoal.swarm")

MAX_ACCOUNTS = 1000  # the ones longest not used go first
WRITE_S = 15.0
PAUSED = "its owner has paused sharing; try another node"


class Account(Struct, kw_only=True):
    """What one peer has had here. first, last: Unix time in seconds."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: float = 0.0
    last: float = 0.0


class Kept(Struct, kw_only=True):
    """The file. paused_until: Unix time; 0: not paused, infinity is written as -1. day: the day that tokens counts."""

    paused_until: float = 0.0
    day: str = ""
    tokens: dict[str, int] = {}
    accounts: dict[str, Account] = {}


class _Meter:
    """One limit's state: requests of the last minute, and those running now."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque()
        self.running = 0


class Refusal(Struct, frozen=True):
    """Why a peer's request is not answered by a provider now. retry_after: seconds, where that is known."""

    kind: ErrorKind
    why: str
    retry_after: float | None = None


class Sharing:
    """rules: by provider. path: the file; None: nothing is kept. on_change: called when what is offered has changed."""

    def __init__(
        self,
        rules: Mapping[str, ShareRule] | None = None,
        *,
        path: Path | None = None,
        clock: Callable[[], float] = time.time,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_change = on_change
        self._rules, self._path, self._clock = dict(rules or {}), path, clock
        self._meters: dict[str, _Meter] = {}
        self._kept = self._load()
        self._dirty = False

    # -- the pause -------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        until = self._kept.paused_until
        return until < 0 or until > self._clock()

    def pause(self, seconds: float | None) -> None:
        """Lend nothing from now on: for some seconds, or (None) until resumed. What is under way goes on."""
        self._kept.paused_until = self._clock() + seconds if seconds is not None else -1.0
        self._changed()

    def resume(self) -> None:
        self._kept.paused_until = 0.0
        self._changed()

    def _changed(self) -> None:
        self._write()
        self.on_change()

    # -- what may be lent ------------------------------------------------------------------------------------------

    def lends(self, provider: str, model: str | None = None, peer: PeerId | None = None) -> bool:
        """Whether this may be lent at all, at this hour: what the advert says. peer: to this one."""
        return not self.paused and all(
            _open_at(limits.hours, self._clock()) and (peer is None or not limits.peers or peer in limits.peers)
            for _, limits in self._limits(provider, model)
        )

    def refusal(self, provider: str, model: str | None, peer: PeerId) -> Refusal | None:
        """Why a peer's request cannot be answered by this provider now; None: it can."""
        if self.paused:
            until = self._kept.paused_until
            return Refusal(ErrorKind.UNAVAILABLE, PAUSED, until - self._clock() if until > 0 else None)
        now = self._clock()
        for key, limits in self._limits(provider, model):
            meter = self._meters.setdefault(key, _Meter())
            if limits.peers and peer not in limits.peers:
                return Refusal(ErrorKind.AUTH, "its owner lends this to other peers only")
            if not _open_at(limits.hours, now):
                return Refusal(ErrorKind.UNAVAILABLE, f"its owner lends this from {', '.join(limits.hours)} only")
            if limits.concurrent is not None and meter.running >= limits.concurrent:
                return Refusal(ErrorKind.OVERLOADED, f"{limits.concurrent} requests of peers run already", 1.0)
            while meter.recent and meter.recent[0] <= now - 60:
                meter.recent.popleft()
            if limits.requests_per_minute is not None and len(meter.recent) >= limits.requests_per_minute:
                wait = meter.recent[0] + 60 - now if meter.recent else 60.0
                return Refusal(
                    ErrorKind.RATE_LIMITED, f"{limits.requests_per_minute} requests a minute is its limit", wait
                )
            if limits.tokens_per_day is not None and self._tokens(key) >= limits.tokens_per_day:
                why = f"its {limits.tokens_per_day} tokens for peers are spent for today"
                return Refusal(ErrorKind.QUOTA, why, _to_midnight(now))
        return None

    def check(self, offers: Mapping[str, str | None], peer: PeerId) -> None:
        """ProviderError when no provider may answer. offers: the shared providers that could -> the model asked for."""
        refusals = [self.refusal(provider, model, peer) for provider, model in offers.items()]
        if offers and all(refusals):
            said = next(refusal for refusal in refusals if refusal is not None)
            raise ProviderError(said.kind, said.why, retry_after=said.retry_after)

    def lend(self, name: str, provider: Provider, model: str | None, peer: str) -> Provider | None:
        """The provider as a peer gets it: counted. None when it may not have it now."""
        if self.refusal(name, model, PeerId(peer)) is not None:
            return None
        return _Lent(self, name, provider, model, PeerId(peer))

    def _limits(self, provider: str, model: str | None) -> list[tuple[str, ShareLimits]]:
        rule = self._rules.get(provider)
        if rule is None:
            return []
        found: list[tuple[str, ShareLimits]] = [(provider, rule)]
        if model is not None and model in rule.models:
            found.append((f"{provider}/{model}", rule.models[model]))
        return found

    def told(self, provider: str) -> dict[str, Any]:
        """A provider's limits as the advert tells them: numbers and hours, not which peers."""
        rule = self._rules.get(provider)
        if rule is None:
            return {}
        names = ("requests_per_minute", "tokens_per_day", "concurrent", "hours")
        return {name: value for name in names if (value := getattr(rule, name)) not in (None, ())}

    # -- what was lent ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _running(self, provider: str, model: str | None, peer: PeerId) -> Any:
        now = self._clock()
        meters = [self._meters.setdefault(key, _Meter()) for key, _ in self._limits(provider, model)]
        for meter in meters:
            meter.running += 1
            meter.recent.append(now)
        account = self._account(peer)
        account.requests += 1
        try:
            yield
        finally:
            for meter in meters:
                meter.running -= 1

    def _used(self, provider: str, model: str | None, peer: PeerId, usage: Usage) -> None:
        account = self._account(peer)
        account.prompt_tokens += usage.prompt_tokens
        account.completion_tokens += usage.completion_tokens
        for key, _ in self._limits(provider, model):
            self._kept.tokens[key] = self._tokens(key) + usage.total_tokens

    def _tokens(self, key: str) -> int:
        today = datetime.datetime.fromtimestamp(self._clock()).date().isoformat()
        if self._kept.day != today:
            self._kept.day, self._kept.tokens = today, {}
        return self._kept.tokens.get(key, 0)

    def _account(self, peer: PeerId) -> Account:
        now, accounts = self._clock(), self._kept.accounts
        account = accounts.get(peer)
        if account is None:
            if len(accounts) >= MAX_ACCOUNTS:
                del accounts[min(accounts, key=lambda name: accounts[name].last)]
            account = accounts[peer] = Account(first=now)
        account.last = now
        self._dirty = True
        return account

    def consumed(self, peer: str) -> dict[str, Any] | None:
        """What a peer has had here, for `shoal peers`."""
        account = self._kept.accounts.get(peer)
        return dict(msgspec.to_builtins(account)) if account is not None else None

    def view(self) -> dict[str, Any]:
        """For `/shoal/v1/sharing`: JSON-compatible."""
        until = self._kept.paused_until
        return {
            "paused": self.paused,
            "paused_until": until if until > 0 and self.paused else None,
            "limits": msgspec.to_builtins(self._rules),
            "tokens_today": {key: self._tokens(key) for key in list(self._kept.tokens)},
            "peers": msgspec.to_builtins(self._kept.accounts),
        }

    # -- the file --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write the accounts now and then, and tell when the hours or a pause have changed what is lent."""
        before = self._moment()
        while True:
            await trio.sleep(WRITE_S)
            if self._dirty:
                await trio.to_thread.run_sync(self._write)
            if (now := self._moment()) != before:
                before = now
                self.on_change()

    def _moment(self) -> tuple[bool, ...]:
        return (self.paused, *(self.lends(provider) for provider in sorted(self._rules)))

    def close(self) -> None:
        """Write what is not written yet."""
        if self._dirty:
            self._write()

    def _load(self) -> Kept:
        if self._path is not None:
            try:
                return msgspec.json.decode(self._path.read_bytes(), type=Kept)
            except FileNotFoundError:
                pass
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("the accounts of peers in %s cannot be read: %s", self._path.name, type(error).__name__)
        return Kept(tokens={}, accounts={})

    def _write(self) -> None:
        self._dirty = False
        if self._path is None:
            return
        try:
            paths.write_private(self._path, msgspec.json.encode(self._kept) + b"\n", replace=True)
        except OSError as error:
            log.warning("the accounts of peers cannot be written: %s", paths.reason(error))


class _Lent(Provider):
    """A provider of this node while a peer's request uses it."""

    def __init__(self, sharing: Sharing, name: str, provider: Provider, model: str | None, peer: PeerId) -> None:
        self.name = name
        self._sharing, self._provider, self._model, self._peer = sharing, provider, model, peer

    async def probe(self) -> Status:
        return await self._provider.probe()

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return self._generate(request)

    @contextlib.asynccontextmanager
    async def _generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        with self._sharing._running(self.name, self._model, self._peer):
            async with self._provider.generate(request) as events:
                yield self._counted(events)

    async def _counted(self, events: AsyncIterator[Event]) -> AsyncGenerator[Event]:
        async for event in events:
            if isinstance(event, Usage):
                self._sharing._used(self.name, self._model, self._peer, event)
            yield event


# -- hours -----------------------------------------------------------------------------------------------------------


def _open_at(hours: tuple[str, ...], now: float) -> bool:
    """Whether a local time lies in one of the spans "HH:MM-HH:MM"; one that ends before it begins passes midnight."""
    if not hours:
        return True
    moment = datetime.datetime.fromtimestamp(now)
    minute = moment.hour * 60 + moment.minute
    for span in hours:
        begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in span.split("-"))
        if begin <= minute < end or (end <= begin and (minute >= begin or minute < end)):
            return True
    return False


def _to_midnight(now: float) -> float:
    moment = datetime.datetime.fromtimestamp(now)
    return 86_400.0 - (moment.hour * 3600 + moment.minute * 60 + moment.second)
