"""Continuous batching on `llama.Llama`: each sequence has a slot of memory, and what is in a slot is used again.

A slot whose sequence has ended keeps its keys and values until the memory is needed. A new sequence that begins with
the same tokens (a system prompt, the turns of a chat before this one) goes on from there: in the slot itself, or in a
copy when somebody still works there or when most of it would be thrown away.

While few sequences run, a coarser and faster copy of the model drafts the next tokens of those that take the likeliest,
and the model itself decides on all of them in one pass. It picks the same tokens as without, to the bit.
"""

from __future__ import annotations

import sys
import threading
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
DRAFTED_ROWS = 2
"""Sequences for which tokens are drafted; for more, one pass serves so many rows that drafting gains nothing."""
DRAFTED_TOKENS = 8
"""Tokens that are decided in one pass of the model when they were drafted; a stream comes in pieces so long."""
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
        self.pace = 2
        """Tokens to decide in the next pass: more while the drafts are right."""

    @property
    def left(self) -> list[int]:
        """Tokens of the prompt that are not computed yet."""
        return self.sequence.tokens[len(self.slot.tokens) :]

    @property
    def room(self) -> int:
        """Tokens that may still be picked, at least one."""
        return max(len(self.sequence.tokens) + self.sequence.room - len(self.slot.tokens) - 1, 1)


class LeanEngine:
    """See `engine.Engine`.

    kv_tokens: positions kept for all sequences together, running and ended; a sequence for which there is no room
    waits, unless it would be the only one. drafter: makes the model that drafts; called in a thread of its own once
    the first token is out. ends: tokens that end an answer, behind which nothing is drafted. prompt_threads: threads
    for a pass of many rows, which all cores serve, where waking them for each matrix of a few rows may cost more than
    they compute; 0: as many as for every pass.
    """

    verifies = True

    def __init__(
        self,
        model: Llama,
        *,
        kv_tokens: int = 16384,
        drafter: Callable[[], Llama] | None = None,
        ends: frozenset[int] = frozenset(),
        prompt_threads: int = 0,
    ) -> None:
        self._model, self._kv_tokens, self._ends = model, kv_tokens, ends
        self._prompt_threads = prompt_threads
        self._drafter: Llama | None = None
        self.preparing: threading.Thread | None = None
        """Makes the drafting model; it may be joined."""
        if drafter is not None:
            self.preparing = threading.Thread(target=self._prepare, args=(drafter,), name="drafter", daemon=True)
        self._slots: list[_Slot] = []
        self._waiting: deque[Sequence] = deque()
        self._rows: dict[int, _Row] = {}
        self._reused: dict[int, int] = {}
        self._turn = False
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
            tokens = self._decode(gone)
            tokens += self._prefill(gone)
        return tokens

    def _prepare(self, drafter: Callable[[], Llama]) -> None:
        try:
            self._drafter = drafter()
        except Exception as fault:  # the boundary of a thread: without drafts everything works, slower
            print(f"nothing will be drafted ({type(fault).__name__})", file=sys.stderr)

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

    def _shares(self, prompts: list[_Row], chunk: int) -> list[tuple[_Row, list[int]]]:
        """A chunk among prompts: half of it at least for the oldest, so that it ends; the shortest of the others next.

        A short prompt behind a long one is so computed in the next step, and makes that one take twice as long at most.
        """
        if not prompts:
            return []
        oldest, *others = prompts
        others.sort(key=lambda row: len(row.left))
        free = chunk - min(len(oldest.left), chunk - chunk // 2)
        pieces: list[tuple[_Row, list[int]]] = []
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

    def _compute(
        self, pieces: list[tuple[_Row, list[int]]], wanted: list[int], check: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Logits of some rows; afterwards the pieces are in their slots."""
        segments = [Segment(row.slot.memory.values, len(row.slot.tokens), len(piece)) for row, piece in pieces]
        tokens = [token for _, piece in pieces for token in piece]
        threads = torch.get_num_threads()
        wide = len(tokens) >= FEW_ROWS and self._prompt_threads > threads
        if wide:
            torch.set_num_threads(self._prompt_threads)
        try:
            logits = self._model(tokens, segments, wanted, check)
        finally:
            if wide:
                torch.set_num_threads(threads)
        for row, piece in pieces:
            row.slot.tokens += piece
        return logits

    def _pick(self, row: _Row, logits: Tensor) -> int:
        row.following = row.sequence.sampler.pick(logits)
        return row.following

    # -- rows ------------------------------------------------------------------------------------------------

    def _decode(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        rows = [row for row in self._rows.values() if row.following is not None]
        picked: list[tuple[int, int]] = []
        others: list[_Row] = []
        for row in rows:
            if len(row.draft) > 1 and row.draft[0] == row.following:
                piece, row.draft = row.draft[:DRAFT_TOKENS], row.draft[DRAFT_TOKENS:]
                picked += self._advance([(row, piece)])
            else:
                row.draft = []  # whatever it was, it has been wrong
                others.append(row)
        if others:
            began = time.perf_counter()
            new = self._advance(self._pieces(others, gone))
            taken = time.perf_counter() - began
            self.decode_tps = _lately(self.decode_tps, len(new) / len(others) / taken)
            picked += new
        return picked

    def _pieces(self, rows: list[_Row], gone: Callable[[int], bool]) -> list[tuple[_Row, list[int]]]:
        """What to compute next of each row: the token picked last, and those that will probably be picked after it."""
        pieces = [(row, [row.following]) for row in rows if row.following is not None]
        if self.preparing is not None and not self.preparing.ident:
            self.preparing.start()
        alone = len(rows) <= DRAFTED_ROWS and len(rows) == len(self._rows) and not self._waiting
        if self._drafter is None or not alone or not all(row.sequence.sampler.greedy for row in rows):
            return pieces
        growing = [(row, piece) for row, piece in pieces if len(piece) < min(row.pace, row.room)]
        while growing and not any(gone(row.sequence.id) for row in rows):
            segments = [
                Segment(row.slot.memory.values, len(row.slot.tokens) + len(piece) - 1, 1) for row, piece in growing
            ]
            logits = self._drafter([piece[-1] for _, piece in growing], segments, list(range(len(growing))))
            for (_, piece), token in zip(growing, logits.argmax(-1).tolist(), strict=True):
                piece.append(token)
            growing = [
                (row, piece)
                for row, piece in growing
                if len(piece) < min(row.pace, row.room) and piece[-1] not in self._ends
            ]
        return pieces

    def _advance(self, pieces: list[tuple[_Row, list[int]]]) -> list[tuple[int, int]]:
        """Compute pieces that begin with the token picked last, and keep as much of each as is picked anyway."""
        before = [len(row.slot.tokens) for row, _ in pieces]
        logits = self._compute(pieces, list(range(sum(len(piece) for _, piece in pieces))))
        likeliest = logits.argmax(-1).tolist()
        picked: list[tuple[int, int]] = []
        first = 0
        for (row, piece), start in zip(pieces, before, strict=True):
            right = 0
            for at in range(len(piece)):
                sampler = row.sequence.sampler
                row.following = likeliest[first + at] if sampler.greedy else sampler.pick(logits[first + at])
                picked.append((row.sequence.id, row.following))
                right += 1
                if piece[at + 1 : at + 2] != [row.following]:
                    break
            del row.slot.tokens[start + right :]
            row.pace = min(2 * row.pace, DRAFTED_TOKENS) if right == len(piece) else 2
            first += len(piece)
        return picked

    # -- slots -----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        for sequence in list(self._waiting):
            if self._soon_known(sequence.tokens):
                continue
            held = sum(len(row.sequence.tokens) + row.sequence.room for row in self._rows.values())
            needed = len(sequence.tokens) + sequence.room
            if self._rows and held + needed > self._kv_tokens:
                return
            self._waiting.remove(sequence)
            slot = self._place(sequence.tokens)
            self._rows[sequence.id] = slot.row = _Row(sequence, slot)
            self._reused[sequence.id] = len(slot.tokens)
            self._make_room(held + needed)

    def _soon_known(self, tokens: list[int]) -> bool:
        """Whether a prompt that is being computed begins alike, farther than it has come: that much will be copied."""
        last = len(tokens) - 1
        now = max((min(_common(slot.tokens, tokens), last) for slot in self._slots), default=0)
        prompts = (row for row in self._rows.values() if row.following is None)
        return any(min(_common(row.sequence.tokens, tokens), last) - now >= WORTH_COPYING for row in prompts)

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
