"""Continuous batching on `llama.Llama`, the lean forward of the Llama family on a CPU.

While few sequences run, a coarser and faster copy of the model drafts their next tokens, drawing the same numbers as
they will where tokens are drawn, and the model itself decides on all of them in one pass. It picks the same tokens as
without, to the bit.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .batch import Batch, Pieces, Row, Slot, common
from .engine import Interrupted, Sequence
from .llama import Llama, Segment
from .packed import FEW_ROWS, PANEL_ROWS
from .slot_memory import SlotMemory

DRAFT_TOKENS = FEW_ROWS - 1
"""Tokens of a draft checked at once: so few that each is computed to the bit as if it came alone."""
DRAFTED_ROWS = PANEL_ROWS
"""Tokens decided in one pass, of all sequences: so many cost no more than one."""
MOST_SLOTS = 32
"""Slots that are made; each takes address space for the longest sequence."""
WORTH_COPYING = 16
"""Tokens of a common beginning below which computing them again is as good."""


class _Slot(Slot):
    def __init__(self, memory: SlotMemory) -> None:
        super().__init__()
        self.memory = memory


class LeanEngine(Batch[_Slot]):
    """See `batch.Batch`.

    kv_tokens: its positions. drafter: makes the model that drafts; called in a thread of its own once the first token
    is out. ends: tokens that end an answer, behind which nothing is drafted. prompt_threads: threads for a pass of
    many rows, which all cores serve, where waking them for each matrix of a few rows may cost more than they compute;
    0: as many as for every pass.
    """

    def __init__(
        self,
        model: Llama,
        *,
        kv_tokens: int = 16384,
        drafter: Callable[[], Llama] | None = None,
        ends: frozenset[int] = frozenset(),
        prompt_threads: int = 0,
    ) -> None:
        super().__init__(positions=kv_tokens, draft_tokens=DRAFT_TOKENS)
        self._model, self._ends, self._prompt_threads = model, ends, prompt_threads
        self._drafter: Llama | None = None
        self.preparing: threading.Thread | None = None
        """Makes the drafting model; it may be joined."""
        if drafter is not None:
            self.preparing = threading.Thread(target=self._prepare, args=(drafter,), name="drafter", daemon=True)
        self._turn = False

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        with torch.inference_mode():
            return super().step(gone)

    def _prepare(self, drafter: Callable[[], Llama]) -> None:
        try:
            self._drafter = drafter()
        except Exception as fault:  # the boundary of a thread: without drafts everything works, slower
            print(f"nothing will be drafted ({type(fault).__name__})", file=sys.stderr)

    # -- computing -------------------------------------------------------------------------------------------

    def _shares(self, prompts: list[Row[_Slot]], chunk: int) -> Pieces[_Slot]:
        """A chunk among prompts: half of it at least for the oldest, so that it ends; the shortest of the others next.

        A short prompt behind a long one is so computed in the next step, and makes that one take twice as long at most.
        """
        if not prompts:
            return []
        oldest, *others = prompts
        others.sort(key=lambda row: len(row.left))
        free = chunk - min(len(oldest.left), chunk - chunk // 2)
        pieces: Pieces[_Slot] = []
        for row in others:
            if free > 0:
                pieces.append((row, row.left[:free]))
                free -= len(pieces[-1][1])
        taken = sum(len(piece) for _, piece in pieces)
        pieces.insert(0, (oldest, oldest.left[: chunk - taken]))
        rows = taken + len(pieces[0][1])
        if len(pieces) > 1 and rows >= FEW_ROWS and not self._model.invariant:
            self._turn = not self._turn  # each is computed as it would be alone, so they take turns
            return pieces[1:2] if self._turn else [(oldest, oldest.left[:chunk])]
        return pieces

    def _run(self, pieces: Pieces[_Slot], wanted: list[int], check: Callable[[], bool] | None) -> list[int | Tensor]:
        """See `Batch._run`; of the greedy the token itself, which is cheaper to find than all logits."""

        def between() -> None:
            if check is not None and check():
                raise Interrupted

        segments = [Segment(row.slot.memory.values, len(row.slot.tokens), len(piece)) for row, piece in pieces]
        tokens = [token for _, piece in pieces for token in piece]
        threads = torch.get_num_threads()
        wide = len(tokens) >= FEW_ROWS and self._prompt_threads > threads
        if wide:
            torch.set_num_threads(self._prompt_threads)
        try:
            hidden = self._model.hidden(tokens, segments, wanted, between)
            greedy = [row.sequence.sampler.greedy for row, piece in pieces for _ in piece]
            return _found(self._model, hidden, [greedy[at] for at in wanted])
        finally:
            if wide:
                torch.set_num_threads(threads)

    def _pick(self, row: Row[_Slot], found: int | Tensor) -> int:
        if isinstance(found, Tensor):
            return super()._pick(row, found)
        row.following = found
        return found

    def _pieces(self, rows: list[Row[_Slot]], gone: Callable[[int], bool]) -> Pieces[_Slot]:
        """What to compute next of each row: the token picked last, and those that will probably be picked after it."""
        pieces = super()._pieces(rows, gone)
        if self.preparing is not None and not self.preparing.ident:
            self.preparing.start()
        most = DRAFTED_ROWS // len(rows)
        alone = len(rows) == len(self._rows) and not self._waiting
        if self._drafter is None or most < 2 or not alone:
            return pieces
        twins = {id(row): row.sequence.sampler.twin() for row in rows if not row.sequence.sampler.greedy}

        def wanted(row: Row[_Slot], piece: list[int]) -> bool:
            return len(piece) < min(row.pace, row.room, most) and piece[-1] not in self._ends

        growing = [(row, piece) for row, piece in pieces if wanted(row, piece)]
        while growing and not any(gone(row.sequence.id) for row in rows):
            segments = [
                Segment(row.slot.memory.values, len(row.slot.tokens) + len(piece) - 1, 1) for row, piece in growing
            ]
            hidden = self._drafter.hidden([piece[-1] for _, piece in growing], segments, list(range(len(growing))))
            drafted = _found(self._drafter, hidden, [id(row) not in twins for row, _ in growing])
            for (row, piece), found in zip(growing, drafted, strict=True):
                piece.append(twins[id(row)].pick(found) if isinstance(found, Tensor) else found)
            growing = [(row, piece) for row, piece in growing if wanted(row, piece)]
        return pieces

    # -- slots -----------------------------------------------------------------------------------------------

    def _soon(self, sequence: Sequence) -> bool:
        """Whether a prompt that is being computed begins alike, farther than it has come: that much will be copied."""
        tokens = sequence.tokens
        last = len(tokens) - 1
        now = max((min(common(slot.tokens, tokens), last) for slot in self._slots), default=0)
        prompts = (row for row in self._rows.values() if row.following is None)
        return any(min(common(row.sequence.tokens, tokens), last) - now >= WORTH_COPYING for row in prompts)

    def _cut(self, slot: _Slot, count: int) -> None:
        del slot.tokens[count:]
        if not count:
            slot.memory.release()

    def _fresh_slot(self, best: _Slot | None, tokens: list[int]) -> _Slot:
        slot = next((slot for slot in self._slots if not slot.busy and not slot.tokens), None)
        idle = [each for each in self._slots if not each.busy and each is not best]
        if slot is None and idle and len(self._slots) >= MOST_SLOTS:
            slot = min(idle, key=lambda each: each.used)
            self._cut(slot, 0)
        if slot is None:
            slot = _Slot(SlotMemory(self._model.memory_shape))
            self._slots.append(slot)
        if best is not None and len(tokens) >= WORTH_COPYING:
            slot.memory.values[..., : len(tokens), :] = best.memory.values[..., : len(tokens), :]
            slot.tokens = list(tokens)
            best.used = time.monotonic()
        return slot


def _found(model: Llama, hidden: Tensor, greedy: list[bool]) -> list[int | Tensor]:
    """For each row the likeliest token where that is what will be picked, its logits elsewhere."""
    likeliest = iter(model.likeliest(hidden[greedy]))
    logits = iter(model.logits(hidden[[not each for each in greedy]]))
    return [next(likeliest) if each else next(logits) for each in greedy]
