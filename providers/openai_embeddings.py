"""OpenAI's embeddings on the wire, seen from the client: a request as a body, an answer's bytes as vectors. Pure."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import msgspec
from msgspec import Struct

from .base import ErrorKind, ProviderError
from .embedding import Embeddings, EmbedRequest, pack, unpack


class _Vector(Struct):
    embedding: str | list[float]
    index: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None


class _Answer(Struct):
    data: list[_Vector]
    model: str | None = None
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def embeddings_body(request: EmbedRequest, model: str) -> bytes:
    """The body of a POST /embeddings. The encoding is left to the server: some know only one."""
    body: dict[str, Any] = {**request.extra, "model": model, "input": request.inputs}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return msgspec.json.encode(body)


def embeddings_of(data: bytes, count: int) -> Embeddings:
    """The vectors in an answer to `count` inputs. Raises ProviderError when it makes no sense."""
    try:
        answer = _decode(data)
        vectors = {
            position if vector.index is None else vector.index: _packed(vector.embedding)
            for position, vector in enumerate(answer.data)
        }
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, OverflowError, ValueError):
        raise ProviderError(ErrorKind.UPSTREAM, "the upstream's answer holds no embeddings") from None
    if sorted(vectors) != list(range(count)):
        raise ProviderError(ErrorKind.UPSTREAM, f"the upstream gave {len(vectors)} embeddings for {count} inputs")
    tokens = answer.usage.prompt_tokens if answer.usage is not None else None
    return Embeddings(vectors=tuple(vectors[i] for i in range(count)), model=answer.model, tokens=tokens or 0)


def _packed(vector: str | list[float]) -> bytes:
    packed = pack(vector) if isinstance(vector, list) else base64.b64decode(vector, validate=True)
    if not math.isfinite(sum(unpack(packed))):
        raise ValueError("JSON has no NaN and no infinity")
    return packed
