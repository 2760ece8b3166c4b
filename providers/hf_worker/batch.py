"""The books of continuous batching: who waits, who runs in which slot, what each has computed and will compute next.

What an engine adds is how it computes: `_compute`, and where a slot's keys and values are (`_cut`, `_fresh_slot`).

A slot whose sequence has ended keeps its keys and values until the memory is needed. A new sequence that begins with
the same tokens (a system prompt, the turns of a chat before this one) goes on from there: in the slot itself, or in a
copy when somebody still works there or when more than its end would be thrown away.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .engine import Interrupted, Sequence

CHUNK_TOKENS = 256
"""The largest piece of a prompt computed at once."""
CHUNK_S = 0.15
"""While others are decoding, a piece is made so small that they wait about this long, in seconds."""
SMALLEST_CHUNK = 32
"""Tokens of a piece from which on its speed is worth noting, and below which none is made for the others' sake."""
DRAFTED_TOKENS = 16
"""Tokens that are decided in one pass of the model when they were drafted; a stream comes in pieces so long."""

WORTH_KEEPING = 32
"""Tokens at the end of what is kept for which a new sequence that begins alike gets a copy: another chat, probably."""


class Slot:
    """tokens: those whose keys and values are in the memory, in order."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.busy = False
        self.used = 0.0


SlotT = TypeVar("SlotT", bound=Slot)


class Row(Generic[SlotT]):
    """A sequence in a slot. following: the token picked last, not computed yet; None while the prompt is not done."""

    def __init__(self, sequence: Sequence, slot: SlotT) -> None:
        self.sequence, self.slot = sequence, slot
        self.following: int | None = None
        self.draft = list(sequence.draft)
        self.pace = DRAFTED_TOKENS // 2
        """Tokens to decide in the next pass: more while the drafts are right."""

    @property
    def left(self) -> list[int]:
        """Tokens of the prompt that are not computed yet."""
        return self.sequence.tokens[len(self.slot.tokens) :]

    @property
    def room(self) -> int:
        """Tokens that may still be picked, at least one."""
        return max(len(self.sequence.tokens) + self.sequence.room - len(self.slot.tokens) - 1, 1)


Pieces = list[tuple[Row[SlotT], list[int]]]
"""Rows, and the tokens that are computed next of each."""


class Batch(ABC, Generic[SlotT]):
    """See `engine.Engine`.

    positions: those kept for all sequences together, running and ended; a sequence for which there is no room waits,
    unless it would be the only one. draft_tokens: tokens of a known text that are checked at once.
    """

    verifies = True

    def __init__(self, *, positions: int, draft_tokens: int) -> None:
        self._positions, self._draft_tokens = positions, draft_tokens
        self._slots: list[SlotT] = []
        self._waiting: deque[Sequence] = deque()
        self._rows: dict[int, Row[SlotT]] = {}
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
            row.slot.busy, row.slot.used = False, time.monotonic()
        else:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    def reused(self, id: int) -> int:  # noqa: A002
        return self._reused.get(id, 0)

    def redraft(self, id: int, tokens: list[int]) -> None:  # noqa: A002
        if id in self._rows:
            self._rows[id].draft = list(tokens)

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        return self._decode(gone) + self._prefill(gone)

    # -- what an engine adds ---------------------------------------------------------------------------------

    @abstractmethod
    def _run(self, pieces: Pieces[SlotT], wanted: list[int], check: Callable[[], bool] | None) -> Any:
        """Compute pieces, and give the logits of the wanted ones of their tokens, row by row.

        check: asked often while prompts are computed; Interrupted when it says yes, and nothing has changed.
        """

    @abstractmethod
    def _cut(self, slot: SlotT, count: int) -> None:
        """Keep the first `count` tokens of a slot, or fewer."""

    @abstractmethod
    def _fresh_slot(self, best: SlotT | None, tokens: list[int]) -> SlotT:
        """A slot for somebody new, which holds nothing, or a copy of `tokens`, the beginning of what `best` holds."""

    def _full(self) -> bool:
        """Whether every slot has somebody who runs in it, and no more can be made."""
        return False

    def _soon(self, sequence: Sequence) -> bool:
        """Whether a sequence had better wait for a step or two, and let others pass."""
        return False

    def _shares(self, prompts: list[Row[SlotT]], chunk: int) -> Pieces[SlotT]:
        """Which prompts a chunk of so many tokens goes to: the oldest first."""
        pieces: Pieces[SlotT] = []
        for row in prompts:
            if chunk > 0:
                pieces.append((row, row.left[:chunk]))
                chunk -= len(pieces[-1][1])
        return pieces

    def _pieces(self, rows: list[Row[SlotT]], gone: Callable[[int], bool]) -> Pieces[SlotT]:
        """What to compute next of rows that are decoded: the token picked last, and maybe what will follow it."""
        return [(row, [row.following]) for row in rows if row.following is not None]

    def _likeliest(self, logits: Any) -> list[int] | None:
        """The likeliest token of each row, for the greedy, where finding all at once is cheaper."""
        return None

    # -- prompts ---------------------------------------------------------------------------------------------

    def _prefill(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        """One chunk of prompts: a piece of a long one, or several short ones together."""
        self._admit()
        chunk = CHUNK_TOKENS
        if self.prefill_tps and any(row.following is not None for row in self._rows.values()):
            chunk = min(max(int(self.prefill_tps * CHUNK_S), SMALLEST_CHUNK), CHUNK_TOKENS)
        pieces = self._shares([row for row in self._rows.values() if row.following is None], chunk)
        if not pieces:
            return []
        began, count = time.perf_counter(), 0
        ready: list[Row[SlotT]] = []
        wanted: list[int] = []
        for row, piece in pieces:
            count += len(piece)
            if len(piece) == len(row.left):
                ready.append(row)
                wanted.append(count - 1)
        try:
            logits = self._compute(pieces, wanted, lambda: any(gone(row.sequence.id) for row, _ in pieces))
        except Interrupted:  # the others' pieces are computed again in the next step
            return []
        if count >= SMALLEST_CHUNK:
            self.prefill_tps = lately(self.prefill_tps, count / (time.perf_counter() - began))
        return [(row.sequence.id, self._pick(row, logits[at])) for at, row in enumerate(ready)]

    def _compute(self, pieces: Pieces[SlotT], wanted: list[int], check: Callable[[], bool] | None = None) -> Any:
        """Logits of some tokens; afterwards the pieces are in their slots."""
        logits = self._run(pieces, wanted, check)
        for row, piece in pieces:
            row.slot.tokens += piece
        return logits

    def _pick(self, row: Row[SlotT], logits: Any) -> int:
        row.following = token = int(row.sequence.sampler.pick(logits))
        return token

    # -- rows ------------------------------------------------------------------------------------------------

    def _decode(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        picked: list[tuple[int, int]] = []
        others: list[Row[SlotT]] = []
        for row in [row for row in self._rows.values() if row.following is not None]:
            if len(row.draft) > 1 and row.draft[0] == row.following:
                piece, row.draft = row.draft[: self._draft_tokens], row.draft[self._draft_tokens :]
                picked += self._advance([(row, piece)])
            else:
                row.draft = []  # whatever it was, it has been wrong
                others.append(row)
        if others:
            began = time.perf_counter()
            new = self._advance(self._pieces(others, gone))
            taken = time.perf_counter() - began
            self.decode_tps = lately(self.decode_tps, len(new) / len(others) / taken)
            picked += new
        return picked

    def _advance(self, pieces: Pieces[SlotT]) -> list[tuple[int, int]]:
        """Compute pieces that begin with the token picked last, and keep as much of each as is picked anyway."""
        before = [len(row.slot.tokens) for row, _ in pieces]
        logits = self._compute(pieces, list(range(sum(len(piece) for _, piece in pieces))))
        likeliest = self._likeliest(logits)
        picked: list[tuple[int, int]] = []
        first = 0
        for (row, piece), start in zip(pieces, before, strict=True):
            right = 0
            for at in range(len(piece)):
                if likeliest is not None and row.sequence.sampler.greedy:
                    row.following = likeliest[first + at]
                else:
                    self._pick(row, logits[first + at])
                assert row.following is not None
                picked.append((row.sequence.id, row.following))
                right += 1
                if piece[at + 1 : at + 2] != [row.following]:
                    break
            if right < len(piece):
                self._cut(row.slot, start + right)
            row.pace = min(2 * row.pace, DRAFTED_TOKENS) if right == len(piece) else max(row.pace // 2, 4)
            first += len(piece)
        return picked

    # -- slots -----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        for sequence in list(self._waiting):
            if self._soon(sequence):
                continue
            held = sum(len(row.sequence.tokens) + row.sequence.room for row in self._rows.values())
            needed = len(sequence.tokens) + sequence.room
            if self._full() or (self._rows and held + needed > self._positions):
                return
            self._waiting.remove(sequence)
            slot = self._place(sequence.tokens)
            slot.busy = True
            self._rows[sequence.id] = Row(sequence, slot)
            self._reused[sequence.id] = len(slot.tokens)
            self._make_room(held + needed)

    def _place(self, tokens: list[int]) -> SlotT:
        """A slot that holds as much of the beginning of `tokens` as any does, but not its last token."""
        best = max(self._slots, key=lambda slot: common(slot.tokens, tokens), default=None)
        if best is None:
            return self._fresh_slot(None, [])
        shared = min(common(best.tokens, tokens), len(tokens) - 1)
        if not best.busy and shared and len(best.tokens) - shared < WORTH_KEEPING:
            self._cut(best, shared)
            return best
        return self._fresh_slot(best, tokens[:shared])

    def _make_room(self, running: int) -> None:
        """Forget ended sequences, the one unused for longest first, until all that is kept fits."""
        idle = sorted((slot for slot in self._slots if not slot.busy and slot.tokens), key=lambda slot: slot.used)
        kept = sum(len(slot.tokens) for slot in idle)
        for slot in idle:
            if running + kept <= self._positions:
                break
            kept -= len(slot.tokens)
            self._cut(slot, 0)


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    return next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def lately(before: float, now: float) -> float:
    """A rate that follows what is measured, slowly."""
    return now if before == 0 else 0.8 * before + 0.2 * now
