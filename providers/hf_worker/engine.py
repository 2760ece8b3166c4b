"""The interface behind which tokens are computed. The server knows requests and text; an engine knows neither.

An engine is driven from one thread: `add` and `remove` change what is computed, `step` computes one piece of it.
Other engines (packed weights, a lean forward, CUDA graphs) replace `slots.SlotEngine` by keeping to this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .sampling import Sampler


@dataclass(frozen=True)
class Sequence:
    """One text to go on with. tokens: what is there already; room: how many more may come. Both at least one."""

    id: int
    tokens: list[int]
    room: int
    sampler: Sampler


class Engine(Protocol):
    """Computes the next tokens of several sequences at once."""

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

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        """One decode step of all running sequences and one chunk of a new one's prompt; the new (id, token) pairs.

        gone: asked often while a prompt is computed; when it says yes, that prompt is given up within milliseconds.
        """
