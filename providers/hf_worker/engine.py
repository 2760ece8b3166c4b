"""The interface behind which tokens are computed. The server knows requests and text; an engine knows neither.

An engine is driven from one thread: `add` and `remove` change what is computed, `step` computes one piece of it.
`lean_engine.py` serves the Llama family on a CPU, `llama_cpp_engine.py` a GGUF, `slots.py` every model of transformers
on every device. The first two are small files on `batch.py`, which keeps the books.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .sampling import Sampler


@dataclass(frozen=True)
class Sequence:
    """One text to go on with. tokens: what is there already; room: how many more may come. Both at least one.

    draft: what will probably be picked first. It saves time and changes nothing: a token is one that the sampler
    picks, drafted or not. An engine that does not verify passes it over.
    """

    id: int
    tokens: list[int]
    room: int
    sampler: Sampler
    draft: list[int] = field(default_factory=list)


class Interrupted(Exception):
    """What was being computed is given up: nobody wants it any more."""


class Engine(Protocol):
    """Computes the next tokens of several sequences at once."""

    verifies: bool
    """Whether drafts are checked many at a time."""
    prefill_tps: float
    """Prompt tokens per second, as measured lately; 0 before the first measurement."""
    decode_tps: float
    """Tokens per second of one sequence, as measured lately; 0 before the first measurement."""

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in. It waits its turn when there is no memory for it now."""

    def remove(self, id: int) -> None:  # noqa: A002
        """Let a sequence go, waiting or running. An id that is not there is passed over."""

    def reused(self, id: int) -> int:  # noqa: A002
        """Tokens of a sequence's prompt that did not have to be computed; asked before it is removed."""

    def redraft(self, id: int, tokens: list[int]) -> None:  # noqa: A002
        """What a running sequence will probably pick after the token it picked last, that one included as the first."""

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        """One decode step of all running sequences and one chunk of a new one's prompt; the new (id, token) pairs.

        gone: asked often while a prompt is computed; when it says yes, that prompt is given up within milliseconds.
        """
