"""What a provider that makes embeddings offers beside `generate`: one more method, found by its shape.

if isinstance(provider, Embeds):
    found = await provider.embed(EmbedRequest(("a text",), model="m"))
    found.vectors[0]        # float32, little-endian

The router, the cache and a peer see vectors as they see any answer: a `GenerateRequest` with `embed` goes in, and out
comes one text, `{"embeddings":["<base64>",...]}`, a vector of packed float32 for each input. `able` gives the provider
that does so, `text_of` and `vectors_of` are the text's two directions.
"""

from __future__ import annotations

import array
import base64
import binascii
import contextlib
import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from .base import ErrorKind, Event, Finish, GenerateRequest, Provider, ProviderError, Status, TextDelta, Usage

PIECE_CHARS = 4 * 1024 * 1024
"""Vectors come in one piece, so that there is no half of them to go on from, unless they are longer than this."""


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """Texts, or token ids where the caller has tokenized for this model. extra: fields that are passed on unchanged."""

    inputs: tuple[str | tuple[int, ...], ...]
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
        """Raises ProviderError. Cancelling leaves no work behind."""
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


# -- as an answer ----------------------------------------------------------------------------------------------


class _Text(Struct, forbid_unknown_fields=True):
    embeddings: list[str]


_decode = msgspec.json.Decoder(_Text).decode


def text_of(vectors: Sequence[bytes]) -> str:
    """Packed vectors as the text of an answer: the same vectors are always the same text."""
    return '{"embeddings":["' + '","'.join(base64.b64encode(vector).decode() for vector in vectors) + '"]}'


def vectors_of(text: str, count: int) -> tuple[bytes, ...]:
    """The packed vectors in such a text. ValueError unless it has `count` of one length, of finite numbers."""
    try:
        vectors = tuple(base64.b64decode(each, validate=True) for each in _decode(text).embeddings)
    except (msgspec.DecodeError, binascii.Error, UnicodeError):
        raise ValueError("the text holds no embeddings") from None
    if len(vectors) != count:
        raise ValueError(f"the text holds {len(vectors)} embeddings, not {count}")
    if any(not vector or len(vector) % 4 or len(vector) != len(vectors[0]) for vector in vectors):
        raise ValueError("the embeddings are not of one length")
    if not all(math.isfinite(sum(unpack(vector))) for vector in vectors):
        raise ValueError("an embedding holds something that is no number")
    if text_of(vectors) != text:
        raise ValueError("the embeddings are spelt in another way than the one that is signed")
    return vectors


def able(provider: Provider) -> Provider | None:
    """The provider as one whose `generate` takes requests with `embed`; None when it makes no embeddings."""
    if provider.embeds:
        return provider
    return Encoder(provider, provider) if isinstance(provider, Embeds) else None


class Encoder(Provider):
    """A provider with an `embed` method as one that is asked by `generate`."""

    embeds = True

    def __init__(self, provider: Provider, encoder: Embeds) -> None:
        self.name = provider.name
        self._provider, self._encoder = provider, encoder

    async def probe(self) -> Status:
        return await self._provider.probe()

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return self._generate(request)

    @contextlib.asynccontextmanager
    async def _generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        yield self._events(request)

    async def _events(self, request: GenerateRequest) -> AsyncGenerator[Event]:
        wanted = request.embed
        if wanted is None:
            raise ProviderError(ErrorKind.BAD_REQUEST, f"{self.name} was asked for embeddings of nothing")
        asked = EmbedRequest(
            inputs=wanted.inputs, model=request.model, dimensions=wanted.dimensions, extra=request.extra
        )
        found = await self._encoder.embed(asked)
        text = text_of(found.vectors)
        try:
            vectors_of(text, len(wanted.inputs))
        except ValueError as error:
            raise ProviderError(ErrorKind.UPSTREAM, f"{self.name}: {error}") from None
        for start in range(0, len(text), PIECE_CHARS):
            yield TextDelta(text[start : start + PIECE_CHARS])
        yield Usage(found.tokens, 0)
        yield Finish("stop", found.model)
