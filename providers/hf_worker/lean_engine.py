"""Continuous batching on `llama.Llama`: each sequence has a slot of memory, and what is in a slot is used again.

A slot whose sequence has ended keeps its keys and values until the memory is needed. A new sequence that begins with
the same tokens (a system prompt, the turns of a chat before this one) goes on from there: in the slot itself, or in a
copy when somebody still works there or when most of it would be thrown away.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from .engine import Sequence
from .llama import Interrupted, Llama, Segment
from .packed import FEW_ROWS
from .slot_memory import SlotMemory

CHUNK_TOKENS = 256
"""The largest piece of a prompt computed at once."""
CHUNK_S = 0.15
"""While others are decoding, a piece is made so small that they wait about this long, in seconds."""
SMALLEST_CHUNK = 32
DRAFT_TOKENS = FEW_ROWS - 1
"""Tokens of a draft checked at once: so few that each is computed to the bit as if it came alone."""
MOST_SLOTS = 32
"""Slots that are made; each takes address space for the longest sequence."""
WORTH_COPYING = 16
"""Tokens of a common beginning below which computing them again is as good."""


class _Slot:
    """tokens: those whose keys and values are in the memory, in order."""

    def __init__(self, memory: SlotMemory) -> None:
        self.memory = memory
        self.tokens: list[int] = []
        self.row: _Row | None = None
        self.used = 0.0


class _Row:
    """A sequence in a slot. following: the token picked last, not computed yet; None while the prompt is not done."""

    def __init__(self, sequence: Sequence, slot: _Slot) -> None:
        self.sequence, self.slot = sequence, slot
        self.following: int | None = None
        self.draft = list(sequence.draft)

    @property
    def left(self) -> list[int]:
        """Tokens of the prompt that are not computed yet."""
        return self.sequence.tokens[len(self.slot.tokens) :]


class LeanEngine:
    """See `engine.Engine`.

    kv_tokens: positions kept for all sequences together, running and ended; a sequence for which there is no room
    waits, unless it would be the only one.
    """

    verifies = True

    def __init__(self, model: Llama, *, kv_tokens: int = 16384) -> None:
        self._model, self._kv_tokens = model, kv_tokens
        self._slots: list[_Slot] = []
        self._waiting: deque[Sequence] = deque()
        self._rows: dict[int, _Row] = {}
        self._reused: dict[int, int] = {}
        self.prefill_tps = 0.0
        self.decode_tps = 0.0

    # -- the interface ---------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rows)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, id: int) -> None:  # noqa: A002
        self._reused.pop(id, None)
        row = self._rows.pop(id, None)
        if row is not None:
            row.slot.row, row.slot.used = None, time.monotonic()
        else:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    def reused(self, id: int) -> int:  # noqa: A002
        return self._reused.get(id, 0)

    def redraft(self, id: int, tokens: list[int]) -> None:  # noqa: A002
        if id in self._rows:
            self._rows[id].draft = list(tokens)

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        with torch.inference_mode():
            tokens = self._decode()
            tokens += self._prefill(gone)
        return tokens

    # -- prompts ---------------------------------------------------------------------------------------------

    def _prefill(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        """One chunk of prompts: a piece of a long one, or several short ones together."""
        self._admit()
        chunk = CHUNK_TOKENS
        if self.prefill_tps and any(row.following is not None for row in self._rows.values()):
            chunk = min(max(int(self.prefill_tps * CHUNK_S), SMALLEST_CHUNK), CHUNK_TOKENS)
        pieces: list[tuple[_Row, list[int]]] = []
        for row in self._rows.values():
            if row.following is None and chunk > 0:
                piece = row.left[:chunk]
                if pieces and sum(len(each) for _, each in pieces) + len(piece) >= FEW_ROWS:
                    break  # a short prompt is computed as it would be alone
                pieces.append((row, piece))
                chunk -= len(piece)
        if not pieces:
            return []

        def check() -> None:
            if any(gone(row.sequence.id) for row, _ in pieces):
                raise Interrupted

        began = time.perf_counter()
        ready = [row for row, piece in pieces if len(piece) == len(row.left)]
        wanted, count = [], 0
        for row, piece in pieces:
            count += len(piece)
            if row in ready:
                wanted.append(count - 1)
        try:
            logits = self._compute(pieces, wanted, check)
        except Interrupted:  # the others' pieces are computed again in the next step
            return []
        if count >= SMALLEST_CHUNK:
            self.prefill_tps = _lately(self.prefill_tps, count / (time.perf_counter() - began))
        return [(row.sequence.id, self._pick(row, logits[at])) for at, row in enumerate(ready)]

    def _compute(
        self, pieces: list[tuple[_Row, list[int]]], wanted: list[int], check: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Logits of some rows; afterwards the pieces are in their slots."""
        segments = [Segment(row.slot.memory.values, len(row.slot.tokens), len(piece)) for row, piece in pieces]
        tokens = [token for _, piece in pieces for token in piece]
        logits = self._model(tokens, segments, wanted, check)
        for row, piece in pieces:
            row.slot.tokens += piece
        return logits

    def _pick(self, row: _Row, logits: Tensor) -> int:
        row.following = row.sequence.sampler.pick(logits)
        return row.following

    # -- rows ------------------------------------------------------------------------------------------------

    def _decode(self) -> list[tuple[int, int]]:
        rows = [row for row in self._rows.values() if row.following is not None]
        drafted = [row for row in rows if len(row.draft) > 1 and row.draft[0] == row.following]
        picked = [pair for row in drafted for pair in self._verify(row)]
        rows = [row for row in rows if row not in drafted]
        if not rows:
            return picked
        began = time.perf_counter()
        pieces = [(row, [row.following]) for row in rows if row.following is not None]
        logits = self._compute(pieces, list(range(len(rows))))
        greedy = logits.argmax(-1).tolist()
        for at, row in enumerate(rows):
            row.draft = []  # whatever it was, it has been wrong
            row.following = greedy[at] if row.sequence.sampler.greedy else row.sequence.sampler.pick(logits[at])
            picked.append((row.sequence.id, row.following))
        self.decode_tps = _lately(self.decode_tps, 1 / (time.perf_counter() - began))
        return picked

    def _verify(self, row: _Row) -> list[tuple[int, int]]:
        """Compute a draft as one piece, and keep as much of it as would have been picked anyway."""
        piece, row.draft = row.draft[:DRAFT_TOKENS], row.draft[DRAFT_TOKENS:]
        before = len(row.slot.tokens)
        logits = self._compute([(row, piece)], list(range(len(piece))))
        picked: list[tuple[int, int]] = []
        for at in range(len(piece)):
            token = self._pick(row, logits[at])
            picked.append((row.sequence.id, token))
            expected = piece[at + 1] if at + 1 < len(piece) else row.draft[0] if row.draft else None
            if token != expected:
                del row.slot.tokens[before + at + 1 :]
                row.draft = []
                break
        return picked

    # -- slots -----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting:
            sequence = self._waiting[0]
            held = sum(len(row.sequence.tokens) + row.sequence.room for row in self._rows.values())
            needed = len(sequence.tokens) + sequence.room
            if self._rows and held + needed > self._kv_tokens:
                return
            self._waiting.popleft()
            slot = self._place(sequence.tokens)
            self._rows[sequence.id] = slot.row = _Row(sequence, slot)
            self._reused[sequence.id] = len(slot.tokens)
            self._make_room(held + needed)

    def _place(self, tokens: list[int]) -> _Slot:
        """A slot that holds as much of the beginning of `tokens` as any does, but not its last token."""
        best = max(self._slots, key=lambda slot: _common(slot.tokens, tokens), default=None)
        common = min(_common(best.tokens, tokens), len(tokens) - 1) if best is not None else 0
        if best is not None and best.row is None and common and 2 * common >= len(best.tokens):
            del best.tokens[common:]
            return best
        slot = next((slot for slot in self._slots if slot.row is None and not slot.tokens), None)
        idle = [each for each in self._slots if each.row is None and each is not best]
        if slot is None and idle and len(self._slots) >= MOST_SLOTS:
            slot = min(idle, key=lambda each: each.used)
            slot.tokens = []
            slot.memory.release()
        if slot is None:
            slot = _Slot(SlotMemory(self._model.memory_shape))
            self._slots.append(slot)
        if best is not None and common >= WORTH_COPYING:
            slot.memory.values[..., :common, :] = best.memory.values[..., :common, :]
            slot.tokens = tokens[:common]
            best.used = time.monotonic()
        return slot

    def _make_room(self, running: int) -> None:
        """Forget ended sequences, the one unused for longest first, until all that is kept fits."""
        idle = sorted((slot for slot in self._slots if slot.row is None and slot.tokens), key=lambda slot: slot.used)
        kept = sum(len(slot.tokens) for slot in idle)
        for slot in idle:
            if running + kept <= self._kv_tokens:
                break
            kept -= len(slot.tokens)
            slot.tokens = []
            slot.memory.release()


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    return next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def _lately(before: float, now: float) -> float:
    return now if before == 0 else 0.8 * before + 0.2 * now
