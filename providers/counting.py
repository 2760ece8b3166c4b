"""What a provider offers beside `generate` that knows how many tokens a prompt is before anybody answers it.

    if isinstance(provider, Counts):
        tokens = await provider.count(request)      # None: not this one, not now

Found by its shape, as embeddings are (embedding.py).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .base import GenerateRequest


@runtime_checkable
class Counts(Protocol):
    """A provider that counts as the model itself will, chat template and all."""

    async def count(self, request: GenerateRequest) -> int | None:
        """Tokens of the request's prompt: what the answer's usage will say. None where that cannot be known.

        Raises nothing that a failure of the provider may cause. Cancelling leaves no work behind.
        """
        ...
