"""An engine that outlives a device whose memory runs out: the batch is shrunk, or one request refused with figures.

    engine = Guard(lambda kv_tokens: GraphEngine(model, kv_tokens=kv_tokens), kv_tokens=65536, device=device)

When a pass finds no memory, the engine is given up with all that it holds and made again for fewer positions.
What was running goes on from its tokens so far, which is a prompt to compute again and changes no answer; the same
sampler picks on. A sequence that finds no memory even alone is refused, and the others stay.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from .engine import Engine, NoRoomError, Sequence

LEAST_POSITIONS = 1024
"""Positions that are tried again for those who come later, however little there was before."""


def out_of_memory(fault: BaseException) -> bool:
    """Whether a device, or this machine, had no memory for it. torch has a type for CUDA's case alone."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(fault) if isinstance(fault, RuntimeError) else ""
    return "out of memory" in text or "STATUS_ALLOC_FAILED" in text or "can't allocate memory" in text


class _Picks:
    """A sampler that keeps what it picked: a pass that fails after some picks must not draw them again."""

    def __init__(self, sampler: Any) -> None:
        self.greedy = sampler.greedy
        self.picked: list[int] = []
        self._sampler = sampler

    def pick(self, logits: Any) -> int:
        token = int(self._sampler.pick(logits))
        self.picked.append(token)
        return token


class _Held:
    """A sequence and the tokens that were picked for it so far."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.picks = _Picks(sequence.sampler)
        self.told: list[int] = []

    @property
    def positions(self) -> int:
        """Those that it takes with its whole answer."""
        return len(self.sequence.tokens) + self.sequence.room

    @property
    def now(self) -> Sequence:
        """The sequence as it is to go on."""
        whole, room = self.sequence.tokens + self.told, self.sequence.room - len(self.told)
        draft = self.sequence.draft if not self.told else []
        return Sequence(self.sequence.id, whole, max(room, 1), self.picks, draft)  # type: ignore[arg-type]


class Guard:
    """See `engine.Engine`. make: an engine for so many positions. device: says of it what the owner reads."""

    def __init__(self, make: Callable[[int], Engine], *, kv_tokens: int, device: str = "cpu") -> None:
        self._make, self._device = make, device
        self.kv_tokens = kv_tokens
        """Positions of the engine that is in use."""
        self._held: dict[int, _Held] = {}
        self._refused: deque[NoRoomError] = deque()
        self._inner: Engine = self._made()
        self.verifies = self._inner.verifies

    @property
    def prefill_tps(self) -> float:
        return self._inner.prefill_tps

    @property
    def decode_tps(self) -> float:
        return self._inner.decode_tps

    @property
    def busy(self) -> bool:
        return bool(self._refused) or self._inner.busy

    def add(self, sequence: Sequence) -> None:
        held = _Held(sequence)
        if self.kv_tokens < held.positions <= LEAST_POSITIONS:
            self._remake(LEAST_POSITIONS)
        if held.positions > self.kv_tokens:
            self._refuse(sequence)
            return
        self._held[sequence.id] = held
        self._inner.add(held.now)

    def remove(self, id: int) -> None:  # noqa: A002
        self._held.pop(id, None)
        self._refused = deque(each for each in self._refused if each.id != id)
        self._inner.remove(id)

    def reused(self, id: int) -> int:  # noqa: A002
        return self._inner.reused(id)

    def redraft(self, id: int, tokens: list[int]) -> None:  # noqa: A002
        self._inner.redraft(id, tokens)

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        if self._refused:
            raise self._refused.popleft()
        try:
            picked = self._inner.step(gone)
        except Exception as fault:
            if not out_of_memory(fault):
                raise
            picked = self._untold()
        else:
            self._note(picked)
            return picked
        self._note(picked)
        self._shrink()  # out of the except clause: the fault's traceback holds on to the tensors of the pass
        return picked

    # -- memory ----------------------------------------------------------------------------------------------

    def _note(self, picked: list[tuple[int, int]]) -> None:
        for id_, token in picked:
            if id_ in self._held:
                self._held[id_].told.append(token)

    def _untold(self) -> list[tuple[int, int]]:
        """What was drawn in a pass that failed afterwards."""
        return [(id_, token) for id_, held in self._held.items() for token in held.picks.picked[len(held.told) :]]

    def _shrink(self) -> None:
        """Make the engine again for fewer positions; when the largest had all of them already, refuse that one."""
        wanted = {id_: each.positions for id_, each in self._held.items()}
        before, demand, largest = self.kv_tokens, sum(wanted.values()), max(wanted.values(), default=0)
        fewer = demand if before >= 2 * demand else max(before // 2, largest)
        if fewer >= before:
            id_ = max(wanted, key=wanted.__getitem__)
            refused, fewer = self._held.pop(id_).sequence, max(before // 2, LEAST_POSITIONS)
        else:
            refused = None
        figures = free_figures(self._device)
        print(f"no memory left on {self._device} ({figures}): {before} positions, now {fewer}", file=sys.stderr)
        self._remake(fewer)
        if refused is not None:
            self._refuse(refused)

    def _remake(self, count: int) -> None:
        """Another engine in place of this one, with all that this one was at."""
        self._give_up()
        self.kv_tokens = count
        self._inner = self._made()
        for id_, held in list(self._held.items()):
            if held.positions > self.kv_tokens:
                del self._held[id_]
                self._refuse(held.sequence)
            else:
                self._inner.add(held.now)

    def _refuse(self, sequence: Sequence) -> None:
        """Tell of a sequence without room, before the next pass."""
        needed = len(sequence.tokens) + sequence.room
        message = (
            f"the local model has no memory for this request: with its answer it takes {needed} positions and there is"
            f" room for {self.kv_tokens} on {self._device} ({free_figures(self._device)}); send less, ask for fewer"
            " max_tokens, or choose a smaller model"
        )
        self._refused.append(NoRoomError(sequence.id, message))

    def close(self) -> None:
        """Let the engine go, and its memory."""
        self._give_up()

    def _give_up(self) -> None:
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()
        del self._inner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _made(self) -> Engine:
        """An engine, for fewer positions where there is no memory for as many as were thought."""
        while True:
            try:
                return self._make(self.kv_tokens)
            except Exception as fault:
                if not out_of_memory(fault) or self.kv_tokens <= LEAST_POSITIONS:
                    raise
            self.kv_tokens = max(self.kv_tokens // 2, LEAST_POSITIONS)


def free_figures(device: str) -> str:
    """What is free on a device, in words."""
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        return f"{free // 10**6} of {total // 10**6} MB are free"
    return "it does not say what is free"
