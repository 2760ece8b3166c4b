"""The interface behind which tokens are computed. The server knows requests and text; an engine knows neither.

An engine is driven from one thread: `add` and `remove` change what is computed, `step` computes one piece of it.
`lean_engine.py` serves the Llama family on a CPU, `llama_cpp_engine.py` a GGUF, and three serve what transformers
loads on any device: `graph_engine.py`, `paged_engine.py` and `slots.py`, by what is fastest there (`engine_choice.py`).
Those that keep a memory of their own are small files on `batch.py`, which keeps the books.
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


class UnfitModelError(Exception):
    """This engine cannot serve this model; the message says why."""


class NoRoomError(Exception):
    """There is no memory for one sequence; it is let go, and all others are as they were. Nothing was picked."""

    def __init__(self, id: int, message: str) -> None:  # noqa: A002
        super().__init__(message)
        self.id, self.message = id, message


class Engine(Protocol):
    """Computes the next tokens of several sequences at once."""

    @property
    def verifies(self) -> bool:
        """Whether drafts are checked many at a time."""

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens per second, as measured lately; 0 before the first measurement."""

    @property
    def decode_tps(self) -> float:
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
        Raises NoRoomError for a sequence that the device has no memory for.
        """
