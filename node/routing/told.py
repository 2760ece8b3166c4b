"""What a peer says of its answer, as far as it can be read: names of a bounded length, and nothing else."""

from __future__ import annotations

from .candidate import Candidate

MAX_NAME_CHARS = 256
"""Characters of a name that a peer may tell."""
MAX_DROPPED = 32
"""Names of options that a peer may tell."""


def told(result: object, name: str) -> str | None:
    """A name in what a peer says of its answer."""
    value = result.get(name) if isinstance(result, dict) else None
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS else None


def options_left_out(result: object) -> tuple[str, ...]:
    """The options that a peer's provider left out, as the peer tells them."""
    names = result.get("dropped") if isinstance(result, dict) else None
    if not isinstance(names, list | tuple):
        return ()
    return tuple(name for name in names[:MAX_DROPPED] if isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS)


async def only_model(candidate: Candidate) -> str | None:
    """The model that a peer will use when it offers a single one; else only its answer tells."""
    models = (await candidate.provider.probe()).models
    return models[0].name if len(models) == 1 else None
