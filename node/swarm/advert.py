"""Adverts: a node's signed statement of what it offers, and the checks that one from outside must pass.

On the wire an advert is `[body, signature]`: `body` is the msgpack of `Advert`, as bytes, and the signature is over
DOMAIN and exactly these bytes, so nobody has to agree on a canonical msgpack. The signer is the peer that the advert
speaks of; that is checked here, too: an advert cannot speak for another node, whoever brings it.

What one peer passes on of another (gossip.py) goes through the same checks, and cannot take all the room.

    writer = AdvertWriter(identity, swarm="home")
    book = AdvertBook("home")
    book.take(writer.write(AdvertContent(...)), brought_by=identity.peer_id)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ...protocols.peer_id import Identity, PeerId, verify
from ...providers.base import ModelInfo
from .. import addresses

VERSION = 1
DOMAIN = b"shoal-advert-v1\0"
TTL_S = 300.0
MAX_TTL_S = 3600.0
MAX_BODY_BYTES = 48 * 1024
MAX_CLOCK_SKEW_S = 60.0
MAX_MODELS = 512
MAX_RELAYED_BYTES = 16 * 1024  # an advert that is longer is told by its signer alone
MAX_HELD = 1024
MAX_RELAYED_BY_ONE = 512

Reason = Literal["malformed", "oversized", "foreign", "forged", "swarm", "future", "expired", "stale", "crowded"]
Name = Annotated[str, Meta(max_length=256)]


class OfferedModel(Struct, frozen=True, omit_defaults=True):
    """A model that peers may use, and the provider here that runs it."""

    provider: Name
    model: ModelInfo


def offered(provider: str, model: ModelInfo, *, embeds: bool, completes: bool = False) -> OfferedModel:
    """The entry of a model. embeds, completes: the provider makes embeddings, and goes on with bare text; by which
    models, a server does not tell."""
    can = model.capabilities
    if embeds and can.embeds is None:
        can = msgspec.structs.replace(can, embeds=True)
    if completes and can.writes and can.completes is None:
        can = msgspec.structs.replace(can, completes=True)
    return OfferedModel(
        provider, model if can is model.capabilities else msgspec.structs.replace(model, capabilities=can)
    )


class SharedProvider(Struct, frozen=True, omit_defaults=True):
    """A provider that peers may use. any_model: it takes model names that are not listed. max_concurrent: requests.

    embeds, completes: it makes embeddings, and goes on with bare text, by models that are not listed, too.
    """

    name: Name
    any_model: bool = False
    default_model: Name | None = None
    max_concurrent: int | None = None
    embeds: bool = False
    completes: bool = False


class Load(Struct, frozen=True, omit_defaults=True):
    """How busy the node was when it wrote. cpu: 0 to 1 of all cores."""

    running: int = 0
    queued: int = 0
    cpu: float | None = None


class AdvertContent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the node says of itself. hardware, limits: plain facts (maps, lists, text, numbers), as claimed.

    relay: whether it carries what nodes say to each other that cannot be dialled. leaving: it stops now, and this is
    its last advert: it stands in for the earlier ones until they would have expired.
    """

    models: Annotated[tuple[OfferedModel, ...], Meta(max_length=MAX_MODELS)] = ()
    providers: Annotated[tuple[SharedProvider, ...], Meta(max_length=64)] = ()
    hardware: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    addresses: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    version: Annotated[str, Meta(max_length=64)] = ""
    load: Load = Load()
    relay: bool = False
    leaving: bool = False

    def offers(self, model: str | None) -> bool:
        """Whether a request that pins `model` (None: any) could be served."""
        if model is None:
            return bool(self.providers)
        return any(m.model.name == model for m in self.models) or any(p.any_model for p in self.providers)


class Advert(AdvertContent, frozen=True, kw_only=True, omit_defaults=True):
    """The content, and what makes it a statement. created: Unix time in seconds; ttl_s: seconds it holds from then."""

    peer: PeerId
    swarm: Name
    seq: int
    created: float
    ttl_s: float
    v: int = VERSION

    @property
    def expires(self) -> float:
        return self.created + min(self.ttl_s, MAX_TTL_S)


_decode = msgspec.msgpack.Decoder(Advert).decode


def beyond_machine(told: Iterable[str]) -> tuple[str, ...]:
    """Addresses without those that lead to whatever machine they are used on. What cannot be read is left out, too."""
    return tuple(address for address in told if not _is_local(address))


def _is_local(address: str) -> bool:
    try:
        return addresses.is_local_multiaddr(address)
    except ValueError:
        return True


class AdvertRefused(Exception):
    """An advert is not believed. reason: one of `Reason`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason: Reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class AdvertWriter:
    """Signs this node's adverts. The sequence number is the clock's milliseconds, so it grows over restarts."""

    def __init__(self, identity: Identity, swarm: str, *, clock: Callable[[], float] = time.time) -> None:
        self.swarm = swarm
        self._identity, self._clock = identity, clock
        self._seq = 0

    def write(self, content: AdvertContent, *, ttl_s: float = TTL_S) -> list[bytes]:
        """`[body, signature]`. Models are left out, the last first, until it is small enough."""
        now = self._clock()
        self._seq = max(self._seq + 1, int(now * 1000))
        fields = {name: getattr(content, name) for name in AdvertContent.__struct_fields__}
        models = content.models[:MAX_MODELS]
        while True:
            fields["models"] = models
            advert = Advert(
                peer=self._identity.peer_id, swarm=self.swarm, seq=self._seq, created=now, ttl_s=ttl_s, **fields
            )
            body = msgspec.msgpack.encode(advert)
            if len(body) <= MAX_BODY_BYTES:
                return [body, self._identity.sign(DOMAIN + body)]
            if not models:
                raise ValueError(f"an advert of {len(body)} bytes without its models; say less of the hardware")
            models = models[: len(models) // 2]


def verified(wire: Any, *, swarm: str, now: float) -> Advert:
    """The advert in `wire`, when it holds by itself. AdvertRefused otherwise; cheap checks come first."""
    if not (isinstance(wire, list) and len(wire) == 2 and all(isinstance(part, bytes) for part in wire)):
        raise AdvertRefused("malformed", "expected [body, signature]")
    body, signature = wire
    if len(body) > MAX_BODY_BYTES:
        raise AdvertRefused("oversized", f"{len(body)} bytes; the limit is {MAX_BODY_BYTES}")
    try:
        advert = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise AdvertRefused("malformed", "the body is not an advert") from None
    if advert.v != VERSION:
        raise AdvertRefused("malformed", f"version {advert.v}; this node knows {VERSION}")
    if not verify(advert.peer, signature, DOMAIN + body):
        raise AdvertRefused("forged", "the signature is not that of the peer it speaks of")
    if advert.swarm != swarm:
        raise AdvertRefused("swarm", "it speaks of another swarm")
    if not advert.created <= now + MAX_CLOCK_SKEW_S:
        raise AdvertRefused("future", "it was made in the future; one of the two clocks is wrong")
    if not now < advert.expires:
        raise AdvertRefused("expired", "it holds no longer")
    return advert


class Held(Struct, frozen=True):
    """wire: as it came, to be passed on. by: the peer that brought it; the signer itself, or one that passed it on.
    here: that peer was on this machine, so that loopback addresses in it mean this machine."""

    advert: Advert
    wire: list[bytes]
    by: PeerId
    here: bool = True

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the signer can be dialled from here."""
        return self.advert.addresses if self.here else beyond_machine(self.advert.addresses)

    @property
    def direct(self) -> bool:
        return self.by == self.advert.peer


class AdvertBook:
    """The newest advert of each peer. taken: how many were believed; refused: counts by reason.

    heard: how many are kept that another passed on than its signer.
    """

    def __init__(self, swarm: str, *, heard: int = MAX_HELD, clock: Callable[[], float] = time.time) -> None:
        self.swarm, self.heard = swarm, heard
        self.taken = 0
        self.refused: Counter[str] = Counter()
        self._clock = clock
        self._held: dict[PeerId, Held] = {}
        self._relayed: Counter[PeerId] = Counter()  # held adverts that a peer passed on, by that peer

    def take(self, wire: Any, *, brought_by: PeerId, here: bool = True) -> Advert:
        """Believe an advert of the peer that brings it, or raise AdvertRefused and count it. here: see Held."""
        return self._take(wire, brought_by, relayed=False, here=here)

    def take_relayed(self, wire: Any, *, brought_by: PeerId, here: bool = True) -> Advert:
        """The same for one of another peer than the one that passes it on."""
        return self._take(wire, brought_by, relayed=True, here=here)

    def _take(self, wire: Any, brought_by: PeerId, *, relayed: bool, here: bool) -> Advert:
        now = self._clock()
        try:
            advert = verified(wire, swarm=self.swarm, now=now)
            if relayed and len(wire[0]) > MAX_RELAYED_BYTES:
                raise AdvertRefused("oversized", "it is too long to be passed on")
            if not relayed and advert.peer != brought_by:
                raise AdvertRefused("foreign", "it speaks of another peer than the one that brought it")
            held = self._held.get(advert.peer)
            # An advert that has expired could not be played again, so its number need not be remembered.
            if held is not None and advert.seq <= held.advert.seq and now < held.advert.expires:
                raise AdvertRefused("stale", f"number {advert.seq} comes after {held.advert.seq}")
            if relayed and held is None and self._relayed.total() >= self.heard:
                raise AdvertRefused("crowded", f"{self.heard} adverts that were passed on are held")
            if relayed and held is None and self._relayed[brought_by] >= MAX_RELAYED_BY_ONE:
                raise AdvertRefused("crowded", "the peer that passes it on has passed on too many")
            if held is None and len(self._held) >= MAX_HELD and not self._make_room():
                raise AdvertRefused("crowded", f"{MAX_HELD} adverts are held")
        except AdvertRefused as refused:
            self.refused[refused.reason] += 1
            raise
        self.taken += 1
        self._drop(advert.peer)
        self._held[advert.peer] = Held(advert, [bytes(part) for part in wire], brought_by, here)
        if relayed:
            self._relayed[brought_by] += 1
        return advert

    def _drop(self, peer: PeerId) -> None:
        held = self._held.pop(peer, None)
        if held is not None and not held.direct:
            self._relayed[held.by] -= 1
            if self._relayed[held.by] <= 0:
                del self._relayed[held.by]

    def _make_room(self) -> bool:
        """Let go of the oldest that was passed on: those who speak for themselves come first."""
        oldest = min((h for h in self._held.values() if not h.direct), key=lambda h: h.advert.created, default=None)
        if oldest is not None:
            self._drop(oldest.advert.peer)
        return oldest is not None

    def get(self, peer: PeerId) -> Advert | None:
        """The peer's advert, while it holds."""
        held = self._held.get(peer)
        return held.advert if held is not None and self._clock() < held.advert.expires else None

    def number(self, peer: PeerId) -> int:
        """The number of the advert that is held of a peer; -1: none."""
        advert = self.get(peer)
        return advert.seq if advert is not None else -1

    def all(self) -> list[Held]:
        """Every advert that holds now, those that say farewell among them."""
        now = self._clock()
        return [held for held in self._held.values() if now < held.advert.expires]

    def present(self) -> list[Held]:
        """The adverts of those who have not said farewell."""
        return [held for held in self.all() if not held.advert.leaving]

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer can be dialled from here, as its advert says while it holds."""
        held = self._held.get(peer)
        return held.addresses if held is not None and self._clock() < held.advert.expires else ()

    def wire(self, peer: PeerId, *, here: bool = True) -> list[bytes] | None:
        """A peer's advert as it came, if it may be passed on; beyond this machine (here: False) only without loopback
        addresses."""
        held = self._held.get(peer)
        if held is not None and not here and len(beyond_machine(held.advert.addresses)) < len(held.advert.addresses):
            return None
        if held is None or self._clock() >= held.advert.expires or len(held.wire[0]) > MAX_RELAYED_BYTES:
            return None
        return held.wire

    def forget(self, peer: PeerId) -> None:
        self._drop(peer)

    def sweep(self) -> None:
        """Let go of what has expired."""
        now = self._clock()
        for peer in [peer for peer, held in self._held.items() if now >= held.advert.expires]:
            self._drop(peer)
