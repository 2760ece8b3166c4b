"""Continuous batching on llama.cpp: many sequences in one memory of keys and values, decoded together.

What a sequence has computed is kept after it has ended, until the room is needed; a new one that begins with the same
tokens goes on from there. Beginnings are shared in llama.cpp's memory, not copied.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .engine import Sequence

if TYPE_CHECKING:
    from .plain_sampling import Logits

CHUNK_TOKENS = 256
"""The largest piece of a prompt computed at once."""
CHUNK_S = 0.15
"""While others are decoding, a piece is made so small that they wait about this long, in seconds."""
SMALLEST_CHUNK = 32
DRAFT_TOKENS = 7
"""Tokens of a draft checked at once."""


class Interrupted(Exception):
    """Nobody wants what was being computed."""


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


class _Slot:
    """tokens: those whose keys and values are in the memory, in order."""

    def __init__(self, at: int) -> None:
        self.at = at
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


class LlamaCppEngine:
    """See `engine.Engine`. slots: sequences at once, running and ended."""

    def __init__(self, model: Computer, *, slots: int = 32) -> None:
        self._model = model
        self.verifies = model.rewinds
        self._slots = [_Slot(at) for at in range(slots)]
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
        return self._decode() + self._prefill(gone)

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
                pieces.append((row, row.left[:chunk]))
                chunk -= len(pieces[-1][1])
        if not pieces:
            return []
        began, count = time.perf_counter(), 0
        ready: list[_Row] = []
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
            self.prefill_tps = _lately(self.prefill_tps, count / (time.perf_counter() - began))
        return [(row.sequence.id, self._pick(row, logits[at])) for at, row in enumerate(ready)]

    def _compute(
        self, pieces: list[tuple[_Row, list[int]]], wanted: list[int], gone: Callable[[], bool] | None = None
    ) -> list[Logits]:
        """Logits of some tokens; afterwards the pieces are in their slots."""
        given = [Piece(row.slot.at, len(row.slot.tokens), piece) for row, piece in pieces]
        logits = self._model.compute(given, wanted, gone)
        for row, piece in pieces:
            row.slot.tokens += piece
        return logits

    def _pick(self, row: _Row, logits: Logits) -> int:
        row.following = int(row.sequence.sampler.pick(logits))  # type: ignore[arg-type]
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
        for at, row in enumerate(rows):
            row.draft = []  # whatever it was, it has been wrong
            picked.append((row.sequence.id, self._pick(row, logits[at])))
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
                self._cut(row.slot, before + at + 1)
                row.draft = []
                break
        return picked

    # -- slots -----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting:
            sequence = self._waiting[0]
            held = sum(len(row.sequence.tokens) + row.sequence.room for row in self._rows.values())
            needed = len(sequence.tokens) + sequence.room
            full = all(slot.row is not None for slot in self._slots)
            if full or (self._rows and held + needed > self._model.positions):
                return
            self._waiting.popleft()
            slot = self._place(sequence.tokens)
            self._rows[sequence.id] = slot.row = _Row(sequence, slot)
            self._reused[sequence.id] = len(slot.tokens)
            self._make_room(held + needed)

    def _place(self, tokens: list[int]) -> _Slot:
        """A free slot that holds as much of the beginning of `tokens` as any has, but not its last token."""
        best = max(self._slots, key=lambda slot: _common(slot.tokens, tokens))
        common = min(_common(best.tokens, tokens), len(tokens) - 1)
        if best.row is None and common and 2 * common >= len(best.tokens):
            self._cut(best, common)
            return best
        free = [slot for slot in self._slots if slot.row is None]
        others = [slot for slot in free if slot is not best] or free
        slot = min(others, key=lambda each: (bool(each.tokens), each.used))
        shared = common if slot is not best and self._model.rewinds else 0
        self._cut(slot, 0)
        if shared:
            self._model.copy(best.at, slot.at, shared)
            slot.tokens = tokens[:shared]
            best.used = time.monotonic()
        return slot

    def _cut(self, slot: _Slot, count: int) -> None:
        """Keep the first `count` tokens of a slot, or none where its memory does not go back."""
        if count < len(slot.tokens):
            kept = self._model.forget(slot.at, count)
            slot.tokens = slot.tokens[:count] if kept else []

    def _make_room(self, running: int) -> None:
        """Forget ended sequences, the one unused for longest first, until all that is kept fits."""
        idle = sorted((slot for slot in self._slots if slot.row is None and slot.tokens), key=lambda slot: slot.used)
        kept = sum(len(slot.tokens) for slot in idle)
        for slot in idle:
            if running + kept <= self._model.positions:
                break
            kept -= len(slot.tokens)
            self._cut(slot, 0)


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    return next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def _lately(before: float, now: float) -> float:
    return now if before == 0 else 0.8 * before + 0.2 * now
