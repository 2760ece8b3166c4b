"""How much is done to find out about NATs and to get through them. Every bound of it is named here."""

from __future__ import annotations

from msgspec import Struct


class NatLimits(Struct, frozen=True, kw_only=True):
    """Counts unless the name says otherwise; `_s` is seconds."""

    confirmations: int = 2  # observers at different addresses that must agree on a verdict
    observers: int = 4  # that are asked
    ask_again_s: float = 1800.0
    dial_back_s: float = 3.0  # for one dial back to who asked; two lost SYNs still fit (RFC 6298: 1 s, then 2 s)
    dial_backs_per_peer: int = 4  # a minute, for one peer and for one address
    dial_backs: int = 30  # a minute, for all together
    dial_backs_at_once: int = 4
    punch: bool = True
    punch_tries: int = 3  # before a peer is left on its relay
    punch_gap_s: float = 1.0  # between two tries, doubled with each
    punch_s: float = 4.0  # for one try, dialling and both handshakes
    punch_again_s: float = 600.0  # after tries in vain, at most; sooner when the addresses change
    relayed_idle_s: float = 5.0  # that a relayed connection beside a direct one is kept without a stream
