"""Signed answers for the cache's tests, from two nodes with fixed keys."""

from __future__ import annotations

from typing import Any

from shoal.cache.key import Key, request_key
from shoal.cache.record import SignedRecord, sign
from shoal.protocols.peer_id import Identity
from shoal.providers.base import GenerateRequest, Usage

ALICE = Identity.from_seed(b"alice".ljust(32, b"."))
BOB = Identity.from_seed(b"bob".ljust(32, b"."))
CREATED_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z

LONG = "The sea was calm. " * 20_000  # 360,000 bytes: more than a record's block may have


def ask(prompt: str = "What is the opposite of hot?", **options: Any) -> GenerateRequest:
    return GenerateRequest.of(prompt, **{"temperature": 0.0, **options})


def answer(
    request: GenerateRequest | None = None, *, by: Identity = ALICE, mode: str = "cid", **fields: Any
) -> SignedRecord:
    """A record for a request (the usual question when None) as `by` would have made it."""
    request = ask() if request is None else request
    given = {
        "provider": "local_hf",
        "model": "smollm2",
        "content": "Cold.",
        "finish": "stop",
        "usage": Usage(14, 3),
        **fields,
    }
    return sign(by, request_key(request, mode), request, **given)


def key_of(request: GenerateRequest | None = None, mode: str = "cid") -> Key:
    return request_key(ask() if request is None else request, mode)
