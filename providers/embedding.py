"""What a provider that makes embeddings offers beside `generate`: one more method, found by its shape.

if isinstance(provider, Embeds):
    found = await provider.embed(EmbedRequest(("a text",), model="m"))
    found.vectors[0]        # float32, little-endian
"""

from __future__ import annotations

import array
import sys
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """Texts, or token ids where the caller has tokenized for this model. extra: fields that are passed on unchanged."""

    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    model: str | None = None
    dimensions: int | None = None
    extra: dict[str, Any] = {}


class Embeddings(Struct, frozen=True, kw_only=True):
    """A vector for each input, in their order, each as packed float32, little-endian. tokens: of all inputs."""

    vectors: tuple[bytes, ...]
    model: str | None = None
    tokens: int = 0


@runtime_checkable
class Embeds(Protocol):
    """A provider that makes embeddings."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Raises ProviderError."""
        ...


def pack(numbers: Iterable[float]) -> bytes:
    """Numbers as packed float32, little-endian. Raises TypeError or OverflowError for what is no number."""
    packed = array.array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(vector: bytes) -> list[float]:
    """The numbers of a packed vector. Raises ValueError when its length is not a multiple of four."""
    packed = array.array("f")
    packed.frombytes(vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
