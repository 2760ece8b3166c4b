"""Continuous batching by slots, on any decoder of transformers with full or sliding attention.

The running sequences are rows of one batch, their keys and values aligned on the right in a cache that grows to the
left. A new one is computed alone, a chunk of its prompt at a time between the others' decode steps, and then joins as
a row; a finished one leaves by selecting the rows that stay. Each token is the same as if its sequence ran alone
(logits differ in the fifth digit; see the test).
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .batch import CHUNK_S, CHUNK_TOKENS, SMALLEST_CHUNK, lately
from .engine import Interrupted, Sequence, UnfitModelError


class _Joining:
    """A sequence whose prompt is being computed, in a cache of its own."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        # Without a configuration every layer keeps all positions, and sliding windows are a matter of the mask alone:
        # rows of different length could not be joined otherwise.
        self.cache = DynamicCache()
        self.done = 0


class SlotEngine:
    """See `engine.Engine`.

    kv_tokens: positions that the cache may hold, rows times the longest row; a sequence for which there is no room
    waits, unless it would be the only one. 16,384 are 0.75 GB for SmolLM2-135M (46 kB each in fp32).
    """

    verifies = False

    def __init__(self, model: Any, *, kv_tokens: int = 16384) -> None:
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if not kinds <= {"full_attention", "sliding_attention"}:
            other = ", ".join(sorted(kinds - {"full_attention", "sliding_attention"}))
            raise UnfitModelError(
                f"its layers of kind {other} cannot share a batch; choose a model with plain attention"
            )
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise UnfitModelError("its positions cannot be set, so its sequences cannot share a batch; choose another")
        self._model = model
        self._device = model.device
        self._kv_tokens = kv_tokens
        self._waiting: deque[Sequence] = deque()
        self._joining: _Joining | None = None
        self._rows: list[Sequence] = []
        self._left: set[int] = set()
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._next = torch.empty(0)
        self._positions = torch.empty(0)
        self._interrupt: Callable[[], bool] | None = None
        self.prefill_tps = 0.0
        self.decode_tps = 0.0
        self._hooks = [
            module.register_forward_pre_hook(self._between_layers)
            for module in model.modules()
            if isinstance(module, GradientCheckpointingLayer)  # each decoder layer of transformers is one
        ]

    def close(self) -> None:
        """Leave the model as it was, and give the memory back."""
        for hook in self._hooks:
            hook.remove()
        self._cache = self._joining = None
        self._rows.clear()

    # -- the interface ---------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._joining or len(self._rows) > len(self._left))

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, id: int) -> None:  # noqa: A002
        if self._joining is not None and self._joining.sequence.id == id:
            self._joining = None
        elif any(row.id == id for row in self._rows):
            self._left.add(id)
            if len(self._left) == len(self._rows):
                self._leave()
        else:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    def reused(self, id: int) -> int:  # noqa: A002
        return 0

    def redraft(self, id: int, tokens: list[int]) -> None:  # noqa: A002
        """Drafts are passed over here."""

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        with torch.inference_mode():
            self._leave()
            tokens = self._decode() if self._rows else []
            tokens += self._prefill(gone)
        return tokens

    # -- prompts ---------------------------------------------------------------------------------------------

    def _fits(self, sequence: Sequence) -> bool:
        longest = max(len(each.tokens) + each.room for each in (*self._rows, sequence))
        return not self._rows or (len(self._rows) + 1) * longest <= self._kv_tokens

    def _prefill(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        """One chunk of prompts: a piece of a long one, or several short ones, which take no longer."""
        chunk = CHUNK_TOKENS
        if self._rows and self.prefill_tps:
            chunk = min(max(int(self.prefill_tps * CHUNK_S), SMALLEST_CHUNK), CHUNK_TOKENS)
        tokens: list[tuple[int, int]] = []
        while chunk > 0:
            if self._joining is None:
                if not self._waiting or not self._fits(self._waiting[0]):
                    break
                self._joining = _Joining(self._waiting.popleft())
            joining = self._joining
            piece = joining.sequence.tokens[joining.done : joining.done + chunk]
            chunk -= len(piece)
            tokens += self._compute(joining, piece, gone)
        return tokens

    def _compute(self, joining: _Joining, piece: list[int], gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        sequence = joining.sequence
        began = time.perf_counter()
        self._interrupt = lambda: gone(sequence.id)
        try:
            answer = self._model(
                input_ids=torch.tensor([piece], device=self._device),
                past_key_values=joining.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        except Interrupted:
            self._joining = None
            return []
        finally:
            self._interrupt = None
        joining.done += len(piece)
        if len(piece) >= SMALLEST_CHUNK:
            self.prefill_tps = lately(self.prefill_tps, len(piece) / (time.perf_counter() - began))
        if joining.done < len(sequence.tokens):
            return []
        self._joining = None
        token = sequence.sampler.pick(answer.logits[0, -1])
        self._join(joining, token)
        return [(sequence.id, token)]

    def _between_layers(self, *_: Any) -> None:
        if self._interrupt is not None and self._interrupt():
            raise Interrupted

    # -- rows ------------------------------------------------------------------------------------------------

    def _join(self, joining: _Joining, token: int) -> None:
        length = len(joining.sequence.tokens)
        mask = torch.ones(1, length, dtype=torch.long, device=self._device)
        following = torch.tensor([[token]], device=self._device)
        position = torch.tensor([[length]], device=self._device)
        if not self._rows:
            self._cache, self._mask, self._next, self._positions = joining.cache, mask, following, position
        else:
            width = self._mask.shape[1]
            wide = max(width, length)
            old, new = (wide - width, 0), (wide - length, 0)
            for layer, other in zip(self._cache.layers, joining.cache.layers, strict=True):
                layer.keys = _stack(layer.keys, (0, 0, *old), other.keys, (0, 0, *new))
                layer.values = _stack(layer.values, (0, 0, *old), other.values, (0, 0, *new))
            self._mask = _stack(self._mask, old, mask, new)
            self._next = torch.cat([self._next, following])
            self._positions = torch.cat([self._positions, position])
        self._rows.append(joining.sequence)

    def _decode(self) -> list[tuple[int, int]]:
        began = time.perf_counter()
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        logits = self._model(
            input_ids=self._next,
            attention_mask=self._mask if len(self._rows) > 1 else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        greedy = logits.argmax(-1).tolist()
        picked = [
            greedy[at] if row.sampler.greedy else row.sampler.pick(logits[at]) for at, row in enumerate(self._rows)
        ]
        self._next = torch.tensor(picked, device=self._device).unsqueeze(1)
        self._positions = self._positions + 1
        self.decode_tps = lately(self.decode_tps, 1 / (time.perf_counter() - began))
        return [(row.id, token) for row, token in zip(self._rows, picked, strict=True)]

    def _leave(self) -> None:
        if not self._left:
            return
        stay = [at for at, row in enumerate(self._rows) if row.id not in self._left]
        self._rows = [self._rows[at] for at in stay]
        self._left.clear()
        if not stay:
            self._cache = None
            return
        rows = torch.tensor(stay, device=self._device)
        mask = self._mask.index_select(0, rows)
        unused = int((mask.sum(0) == 0).sum())  # columns on the left that no row needs any more
        for layer in self._cache.layers:
            layer.keys = layer.keys.index_select(0, rows)[:, :, unused:].contiguous()
            layer.values = layer.values.index_select(0, rows)[:, :, unused:].contiguous()
        self._mask = mask[:, unused:].contiguous()
        self._next = self._next.index_select(0, rows)
        self._positions = self._positions.index_select(0, rows)


def _stack(upper: Tensor, upper_pad: tuple[int, ...], lower: Tensor, lower_pad: tuple[int, ...]) -> Tensor:
    return torch.cat([functional.pad(upper, upper_pad), functional.pad(lower, lower_pad)])
