"""Continuous batching by transformers' own manager: paged keys and values, shared beginnings, CUDA graphs where it can.

The manager's thread is not used: its batches are prepared, computed and booked one by one from `step`, so that a
request joins, leaves and is cancelled between two passes, and tokens are picked by each request's own sampler. For the
likeliest token the manager's choice on the device is taken as it is.

What is used of it beyond its public methods is named in `_parts`, as of transformers 5.23; a version that has other
parts is refused when the engine is made, and the slots serve instead.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from .batch import CHUNK_TOKENS, SMALLEST_CHUNK, lately
from .engine import Sequence, UnfitModelError

PAGE_TOKENS = 32
"""Positions in a page: what a shared beginning is rounded down to. (Flash attention would want 256.)"""
MOST_ROWS = 64
"""Sequences that run at once."""


class _Running:
    """A sequence that the manager has. key: its name there; computed: positions of it that have keys and values."""

    def __init__(self, sequence: Sequence, key: str) -> None:
        self.sequence, self.key = sequence, key
        self.reused: int | None = None
        self.answering = False


class PagedEngine:
    """See `engine.Engine`. kv_tokens: positions in all pages; a sequence for which there is no room waits.

    Raises UnfitModelError for a model that the manager does not take, or a manager that this was not made for.
    """

    verifies = False

    def __init__(self, model: Any, *, kv_tokens: int = 16384) -> None:
        self._model, self._attention = model, model.config._attn_implementation
        self._positions = max(kv_tokens, 2 * PAGE_TOKENS)
        self._waiting: deque[Sequence] = deque()
        self._rows: dict[int, _Running] = {}
        self._by_key: dict[str, _Running] = {}
        self._names = itertools.count()
        self._scores = torch.empty(0)
        self._picked: list[tuple[int, int]] = []
        self.prefill_tps = 0.0
        self.decode_tps = 0.0
        try:
            self._manager = model.init_continuous_batching(
                generation_config=transformers.GenerationConfig(do_sample=False, eos_token_id=-1),
                continuous_batching_config=transformers.ContinuousBatchingConfig(
                    page_size=PAGE_TOKENS,
                    num_blocks=-(-self._positions // PAGE_TOKENS) + 1,
                    max_batch_tokens=CHUNK_TOKENS,
                    max_requests_per_batch=MOST_ROWS,
                    auto_switch_to_flash=False,  # it would look for kernels on the network
                    use_async_batching=False,  # a token is picked here before the next batch is prepared
                ),
            )
            self._manager.warmup()
            self._parts()
        except (AttributeError, TypeError, ValueError, KeyError) as fault:
            self._restore()
            version = transformers.__version__
            raise UnfitModelError(
                f"transformers {version} cannot batch it by pages ({type(fault).__name__}); choose slots"
            ) from fault

    def _parts(self) -> None:
        """Take hold of where the manager picks tokens and where it reads what was picked."""
        self._processor = processor = self._manager.batch_processor
        self._scheduler = processor.scheduler
        self._io = processor.inputs_and_outputs
        runner = processor.model_runner
        self._manager_picks, self._manager_reads = runner._sample, self._io.prepare_batch_update
        self._graphs = bool(runner.use_cuda_graph_varlen or runner.use_cuda_graph_decode)
        if self._graphs:
            vocabulary = self._model.config.get_text_config().vocab_size
            self._scores = torch.empty(MOST_ROWS, vocabulary, device=self._model.device)
        runner._sample = self._keep_scores
        self._io.prepare_batch_update = self._read
        for part in ("prepare_next_batch", "_generation_step", "update_batch"):
            getattr(processor, part)
        for part in ("add_request", "cancel_request", "output_router"):
            getattr(self._manager, part)

    def close(self) -> None:
        """Give the pages back."""
        self._manager.destroy()
        self._manager.batch_processor = None
        del self._processor, self._scheduler, self._io, self._manager_picks, self._manager_reads
        self._scores = torch.empty(0)
        self._restore()

    def _restore(self) -> None:
        """The manager may have given the model another way to attend."""
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)

    # -- the interface ---------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rows)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, id: int) -> None:  # noqa: A002
        row = self._rows.pop(id, None)
        if row is not None:
            del self._by_key[row.key]
            self._manager.cancel_request(row.key)
        else:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    def reused(self, id: int) -> int:  # noqa: A002
        row = self._rows.get(id)
        return (row.reused or 0) if row is not None else 0

    def redraft(self, id: int, tokens: list[int]) -> None:  # noqa: A002
        """Drafts are passed over here."""

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        self._admit()
        for id_ in [id_ for id_, row in self._rows.items() if not row.answering and gone(id_)]:
            self.remove(id_)
        self._picked = []
        began = time.perf_counter()
        with torch.no_grad():
            if not self._processor.prepare_next_batch():
                return []
            self._note_reuse()
            self._processor._generation_step(self._model)
            self._processor.update_batch()
        self._drop_results()
        self._measure(time.perf_counter() - began)
        return self._picked

    # -- the manager -----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._rows) < MOST_ROWS:
            sequence = self._waiting[0]
            held = sum(_pages(row.sequence) for row in self._rows.values())
            if self._rows and held + _pages(sequence) > self._positions:
                return
            self._waiting.popleft()
            row = _Running(sequence, f"{sequence.id}.{next(self._names)}")
            self._rows[sequence.id] = self._by_key[row.key] = row
            self._manager.add_request(
                sequence.tokens, request_id=row.key, max_new_tokens=sequence.room, streaming=False, eos_token_id=-1
            )

    def _note_reuse(self) -> None:
        """How much of the prompts that are computed for the first time came out of shared pages."""
        for future in self._io.requests_in_batch:
            row = self._by_key.get(future.state.request_id)
            if row is not None and row.reused is None:
                row.reused = max(future.state.position_offset - future.query_length, 0)

    def _keep_scores(self, scores: Tensor, output_ids: Tensor) -> None:
        """Called by the manager with the logits of a batch, maybe while a graph is captured."""
        if self._graphs:
            count = min(scores.shape[1], len(self._scores))
            self._scores[:count].copy_(scores[0, :count])
        else:
            self._scores = scores[0]
        self._manager_picks(scores, output_ids)

    def _read(self) -> tuple[list[Any], list[int], list[float] | None]:
        """Called by the manager for what was picked: here each request's sampler has the last word."""
        futures, tokens, _ = self._manager_reads()
        at = 0
        for future in futures:
            if not future.has_new_token:
                continue
            row = self._by_key.get(future.state.request_id)
            if row is not None:
                if not row.sequence.sampler.greedy:
                    tokens[at] = row.sequence.sampler.pick(self._scores[at])
                row.answering = True
                self._picked.append((row.sequence.id, tokens[at]))
            at += 1
        return futures, tokens, None

    def _drop_results(self) -> None:
        """The manager reports requests whose room is used; they are known already. A failed one must not hang."""
        results = self._manager.output_router.output_queue
        while True:
            try:
                result = results.get_nowait()
            except queue.Empty:
                return
            if result.error is not None and result.request_id in self._by_key:
                raise RuntimeError("the manager of transformers gave up a request")

    def _measure(self, taken: float) -> None:
        decoding = 0
        prompts = 0
        for future in self._io.requests_in_batch:
            if future.query_length == 1:
                decoding += 1
            else:
                prompts += future.query_length
        if decoding:
            self.decode_tps = lately(self.decode_tps, 1 / taken)
        if prompts >= SMALLEST_CHUNK:
            self.prefill_tps = lately(self.prefill_tps, prompts / taken)


def _pages(sequence: Sequence) -> int:
    """Positions that a sequence may come to hold, in whole pages."""
    return -(-(len(sequence.tokens) + sequence.room) // PAGE_TOKENS) * PAGE_TOKENS
