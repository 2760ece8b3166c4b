"""Continuous batching for a GPU: one flat memory of keys and values, and the decode step recorded as a CUDA graph.

A position of a sequence may lie anywhere in the memory; a table on the device says where. So nothing is moved when a
sequence joins or leaves, the memory is as large as was measured to fit, and a pass has a shape that depends only on how
many rows it has and on the longest of them, both rounded up: for each such shape one graph is captured, and replayed
for every token after. Without graphs (a CPU, MPS, a capture that fails) the same passes are computed as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .batch import Batch, Pieces, Slot, common
from .engine import Interrupted, UnfitModelError

MOST_SLOTS = 64
"""Sequences at once, running and ended."""
DRAFT_TOKENS = 64
"""Tokens of a known text that are checked at once."""
SMALLEST_SPAN = 128
"""Positions that a pass looks at, at least; longer ones in powers of two."""
WORTH_COPYING = 16
"""Tokens of a common beginning below which computing them again is as good."""
WARM_UPS = 2
"""Passes before a capture: libraries choose their kernels in the first ones (torch's notes on CUDA graphs)."""


class _Slot(Slot):
    """at: its row of the table. places: where in the memory its positions lie."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.places: list[int] = []


class _Pool(Cache):  # type: ignore[misc]
    """Keys and values of all positions, as a model of transformers sees a cache. Place 0 takes what nobody reads."""

    def __init__(self, layers: int, heads: int, width: int, places: int, dtype: torch.dtype, device: Any) -> None:
        super().__init__(layers=[])
        shape = (heads, places + 1, width)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.read = self.write = torch.empty(0)
        self.rows = 0

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._one(self.keys[layer], key), self._one(self.values[layer], value)

    def _one(self, pool: Tensor, new: Tensor) -> Tensor:
        heads, width = pool.shape[0], pool.shape[2]
        pool.index_copy_(1, self.write, new.transpose(0, 1).reshape(heads, -1, width))
        return pool.index_select(1, self.read).view(heads, self.rows, -1, width).transpose(0, 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def copy(self, to: Tensor, of: Tensor) -> None:
        for pool in (*self.keys, *self.values):
            pool.index_copy_(1, to, pool.index_select(1, of))


class GraphEngine(Batch[_Slot]):
    """See `batch.Batch`. kv_tokens: positions in the memory, all taken at once; no sequence may be longer.

    record: makes a graph of a pass (`CudaGraphs` on CUDA); None computes each pass as it is.
    Raises UnfitModelError for a model whose attention is not plain.
    """

    def __init__(
        self,
        model: Any,
        *,
        kv_tokens: int = 16384,
        record: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]] | None = None,
    ) -> None:
        super().__init__(positions=kv_tokens, draft_tokens=DRAFT_TOKENS)
        config = model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ())
        if not kinds <= {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
            raise UnfitModelError("its attention is not plain; choose slots")
        layers, heads, width = memory_shape(config)
        self._model, self._device, self._record = model, model.device, record
        self._longest = min(int(getattr(config, "max_position_embeddings", 0) or kv_tokens), kv_tokens)
        self._pool = _Pool(layers, heads, width, kv_tokens, model.dtype, model.device)
        self._free = list(range(kv_tokens, 0, -1))
        self._slots = [_Slot(at) for at in range(MOST_SLOTS)]
        self._table = torch.zeros(MOST_SLOTS + 1, self._longest + 1, dtype=torch.long, device=model.device)
        self._columns = torch.arange(self._longest + 1, device=model.device)
        self._graphs: dict[tuple[int, int], tuple[Callable[[], None], Tensor, Tensor]] = {}
        self.graphs_off = "" if record is not None else "this device has none"
        """Why no graphs are used; empty while they are."""

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        with torch.inference_mode():
            return super().step(gone)

    def close(self) -> None:
        """Give the memory back."""
        self._graphs.clear()
        del self._pool, self._table

    # -- computing -------------------------------------------------------------------------------------------

    def _run(self, pieces: Pieces[_Slot], wanted: list[int], check: Callable[[], bool] | None) -> Tensor:
        if check is not None and check():
            raise Interrupted
        taken = [[self._free.pop() for _ in piece] for _, piece in pieces]
        try:
            logits = self._pass(pieces, taken, wanted)
        except BaseException:
            for places in taken:
                self._free += places
            raise
        for (row, _), places in zip(pieces, taken, strict=True):
            row.slot.places += places
        return logits

    def _pass(self, pieces: Pieces[_Slot], taken: list[list[int]], wanted: list[int]) -> Tensor:
        """One pass of all pieces, each aligned on the right; what is left of it is written where nobody reads."""
        long = max(len(piece) for _, piece in pieces)
        rows = _power(len(pieces)) if long == 1 else len(pieces)
        tokens, places, positions, slots = [], [], [], []
        nowhere = self._longest
        for (row, piece), new in zip(pieces, taken, strict=True):
            start, pad = len(row.slot.tokens), long - len(piece)
            tokens.append([0] * pad + piece)
            places.append([0] * pad + new)
            positions.append([nowhere] * pad + list(range(start, start + len(piece))))
            slots.append([row.slot.at] * long)
        for _ in range(rows - len(pieces)):
            tokens.append([0] * long)
            places.append([0] * long)
            positions.append([nowhere] * long)
            slots.append([MOST_SLOTS] * long)
        longest = max(len(row.slot.tokens) + len(piece) for row, piece in pieces)
        span = min(max(_power(longest), SMALLEST_SPAN), self._longest)
        given = torch.tensor([tokens, places, positions, slots]).to(self._device)
        if long == 1:
            return self._decoded(given, span)[: len(pieces)]
        ends, last = [], 0
        for _, piece in pieces:
            last += len(piece)
            ends.append(last - 1)
        if set(wanted) <= set(ends):
            logits = self._forward(given, span, 1)
            return logits[[ends.index(at) for at in wanted], -1]
        logits = self._forward(given, span, 0)
        return torch.cat([logits[at, long - len(piece) :] for at, (_, piece) in enumerate(pieces)])[wanted]

    def _forward(self, given: Tensor, span: int, keep: int) -> Tensor:
        tokens, places, positions, slots = given.unbind()
        self._table[slots, positions] = places
        pool = self._pool
        pool.rows = len(tokens)
        pool.read, pool.write = self._table[slots[:, 0], :span].flatten(), places.flatten()
        seen = self._columns[:span] <= positions[..., None]
        logits: Tensor = self._model(
            input_ids=tokens,
            attention_mask=seen[:, None],
            position_ids=positions.clamp(max=self._longest - 1),
            past_key_values=pool,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits

    def _decoded(self, given: Tensor, span: int) -> Tensor:
        """One token of each row: by a graph where one can be had."""
        shape = (given.shape[1], span)
        if self._record is not None and not self.graphs_off and shape not in self._graphs:
            kept = given.clone()
            try:
                replay, logits = self._record(lambda: self._forward(kept, span, 1))
                self._graphs[shape] = (replay, kept, logits)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as fault:
                self.graphs_off = f"the capture failed ({str(fault).splitlines()[0][:120]})"
                print(f"decoding without CUDA graphs: {self.graphs_off}", file=sys.stderr)
        if self.graphs_off or shape not in self._graphs:
            return self._forward(given, span, 1)[:, -1]
        replay, kept, logits = self._graphs[shape]
        kept.copy_(given)
        replay()
        return logits[:, -1]

    def _likeliest(self, logits: Tensor) -> list[int]:
        found: list[int] = logits.argmax(-1).tolist()
        return found

    # -- slots -----------------------------------------------------------------------------------------------

    def _full(self) -> bool:
        return all(slot.busy for slot in self._slots)

    def _cut(self, slot: _Slot, count: int) -> None:
        self._free += reversed(slot.places[count:])
        del slot.places[count:], slot.tokens[count:]

    def _fresh_slot(self, best: _Slot | None, tokens: list[int]) -> _Slot:
        idle = [slot for slot in self._slots if not slot.busy]
        others = sorted([slot for slot in idle if slot is not best] or idle, key=lambda each: each.used)
        slot = min(others, key=lambda each: (bool(each.tokens), each.used))
        self._cut(slot, 0)
        if best is None or slot is best or len(tokens) < WORTH_COPYING or common(best.tokens, tokens) < len(tokens):
            return slot
        for other in others:
            if len(self._free) < len(tokens):
                self._cut(other, 0)
        if len(self._free) >= len(tokens):
            slot.places = [self._free.pop() for _ in tokens]
            to = torch.tensor(slot.places, device=self._device)
            self._pool.copy(to, torch.tensor(best.places[: len(tokens)], device=self._device))
            self._table[slot.at, : len(tokens)] = to
            slot.tokens = list(tokens)
            best.used = time.monotonic()
        return slot


class CudaGraphs:
    """Records passes on CUDA, in one memory that they share: a result holds until the next pass."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What does on the device again what `compute` does there, and the tensor that it fills each time."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        return graph.replay, result


def memory_shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads and width of the keys and values of a model."""
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return int(config.num_hidden_layers), heads, width


def _power(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()
