"""The owner's limits on what peers get, as the configuration holds them: [share.PROVIDER] and its models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from .. import addresses

SPAN = re.compile(r"([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)")
SUBSCRIPTIONS = frozenset({"codex_cli", "copilot_cli", "copilot_sdk", "gemini_cli", "claude_code"})
"""Providers that answer by the owner's personal subscription."""
SUBSCRIPTION_NOTE = (
    "{} answers with your own subscription: peers will use it in your name, up to its limits, and its terms may forbid "
    "that; take share = true out again unless you are sure"
)


class ShareLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """requests_per_minute, tokens_per_day (local days), concurrent: of all peers together. hours: local time,
    "22:00-06:00"; none: always. peers: peer ids; none: every one."""

    requests_per_minute: Annotated[int, Meta(ge=0)] | None = None
    tokens_per_day: Annotated[int, Meta(ge=0)] | None = None
    concurrent: Annotated[int, Meta(ge=0)] | None = None
    hours: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()


class ShareRule(ShareLimits, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A provider's limits; models: those of single models, beside these."""

    models: dict[str, ShareLimits] = {}


def faults(rules: Mapping[str, ShareRule]) -> Iterator[tuple[str, str]]:
    """What a type cannot say: (dotted key, what is wrong and what to write instead)."""
    for name, rule in rules.items():
        yield from _faults(f"share.{name}", rule)
        for model, limits in rule.models.items():
            yield from _faults(f"share.{name}.models.{model}", limits)


def _faults(key: str, limits: ShareLimits) -> Iterator[tuple[str, str]]:
    for index, span in enumerate(limits.hours):
        if not SPAN.fullmatch(span):
            yield f"{key}.hours[{index}]", f'{span!r} is no span of hours; write it like "22:00-06:00"'
    for index, peer in enumerate(limits.peers):
        if not addresses.is_peer_id(peer):
            yield f"{key}.peers[{index}]", f"{peer!r} is not a peer id; see `shoal peers`"
