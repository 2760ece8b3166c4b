"""Continuous batching on llama.cpp: many sequences in one memory of keys and values, decoded together.

Beginnings are shared in llama.cpp's memory, not copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .batch import Batch, Pieces, Slot

if TYPE_CHECKING:
    from .plain_sampling import Logits

DRAFT_TOKENS = 7
"""Tokens of a draft checked at once."""


class Piece(NamedTuple):
    """Tokens of one sequence, which has `start` tokens already."""

    sequence: int
    start: int
    tokens: list[int]


class Computer(Protocol):
    """What is wanted of `llama_cpp_model.LlamaCpp`."""

    positions: int
    rewinds: bool

    def compute(
        self, pieces: list[Piece], wanted: list[int], gone: Callable[[], bool] | None = None
    ) -> list[Logits]: ...
    def forget(self, sequence: int, start: int = 0) -> bool: ...
    def copy(self, sequence: int, to: int, count: int) -> None: ...
    def reserve(self, count: int) -> None: ...


class _Slot(Slot):
    """at: the number of the sequence in llama.cpp's memory."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at


class LlamaCppEngine(Batch[_Slot]):
    """See `batch.Batch`. slots: sequences at once, running and ended."""

    def __init__(self, model: Computer, *, slots: int = 32) -> None:
        super().__init__(positions=model.positions, draft_tokens=DRAFT_TOKENS)
        self._model = model
        self.verifies = model.rewinds
        self._slots = [_Slot(at) for at in range(slots)]

    def _run(self, pieces: Pieces[_Slot], wanted: list[int], check: Callable[[], bool] | None) -> list[Logits]:
        given = [Piece(row.slot.at, len(row.slot.tokens), piece) for row, piece in pieces]
        return self._model.compute(given, wanted, check)

    def _full(self) -> bool:
        return all(slot.busy for slot in self._slots)

    def _make_room(self, running: int) -> None:
        super()._make_room(running)
        kept = sum(len(slot.tokens) for slot in self._slots if not slot.busy)
        self._model.reserve(running + kept)

    def _cut(self, slot: _Slot, count: int) -> None:
        """Keep the first `count` tokens of a slot, or none where its memory does not go back."""
        if count < len(slot.tokens):
            kept = self._model.forget(slot.at, count)
            slot.tokens = slot.tokens[:count] if kept else []

    def _fresh_slot(self, best: _Slot | None, tokens: list[int]) -> _Slot:
        free = [slot for slot in self._slots if not slot.busy]
        others = [slot for slot in free if slot is not best] or free
        slot = min(others, key=lambda each: (bool(each.tokens), each.used))
        self._cut(slot, 0)
        if best is not None and slot is not best and tokens and self._model.rewinds:
            self._model.copy(best.at, slot.at, len(tokens))
            slot.tokens = list(tokens)
            best.used = time.monotonic()
        return slot
