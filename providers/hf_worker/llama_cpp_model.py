"""A GGUF in llama.cpp's own memory, by the low-level half of llama-cpp-python: weights, tokenizer, keys and values.

The extra `llama-cpp` brings the library; it is imported in the worker process alone. Scheduling is llama_cpp_engine.py.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as c
import numpy as np

from .calibration import Calibration, counts, key, known
from .chat_template import AddedToken, NotCoveredError, compiled
from .cores import usable_cores
from .engine import Interrupted
from .frames import Load
from .llama_cpp_engine import LlamaCppEngine, Piece
from .loaded import LoadError, Model, no_template
from .plain_sampling import Logits, PlainSampler
from .prompt import Prompter

BATCH_TOKENS = 512
"""Tokens that one call may compute."""
PIECE_TOKENS = 128
"""Of them at once: memory for this many rows of logits is taken, and giving up a prompt waits no longer than for it."""
SEQUENCES = 32
"""Texts whose keys and values are kept apart, running and ended."""
POSITIONS = 16_384
"""Tokens that all sequences may have together when nothing is said."""
FIRST_POSITIONS = 2048
"""Tokens for whose keys and values memory is taken at first; it doubles when more are wanted."""
SPARE = 32
"""Positions more than that, for trials."""
TRIAL = SEQUENCES
"""The sequence that trials of threads are made in."""


class LlamaCpp:
    """An open model. positions: tokens that all sequences may have together at most. Raises LoadError."""

    def __init__(self, file: Path, *, threads: int, positions: int, gpu: bool) -> None:
        c.llama_log_set(_silent, ctypes.c_void_p(0))
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.n_gpu_layers = 999 if gpu else 0
        self._model = c.llama_model_load_from_file(os.fsencode(file), params)
        if not self._model:
            raise LoadError("llama.cpp cannot load the file: it is damaged, or newer than this llama.cpp")
        self.trained = int(c.llama_model_n_ctx_train(self._model))
        self.positions, self._threads = positions, (threads, threads)
        self._context, self._memory, self._room = self._opened(min(positions, FIRST_POSITIONS))
        self.vocabulary = c.llama_model_get_vocab(self._model)
        self.tokens = int(c.llama_vocab_n_tokens(self.vocabulary))
        self.rewinds = not (c.llama_model_is_recurrent(self._model) or c.llama_model_is_hybrid(self._model))
        """Whether the last tokens of a sequence can be taken back."""
        self._batch = c.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._check: Callable[[], bool] = lambda: False
        self._abort = c.ggml_abort_callback(lambda _: self._check())
        self._never = c.ggml_abort_callback()

    def _opened(self, room: int) -> tuple[Any, Any, int]:
        """A context with memory for so many tokens, its memory, and how many they are. Raises LoadError."""
        options = c.llama_context_default_params()
        options.n_ctx = max(room + SPARE, BATCH_TOKENS)  # fewer than it has sequences, and llama.cpp aborts
        options.n_batch, options.n_ubatch, options.n_seq_max = BATCH_TOKENS, PIECE_TOKENS, SEQUENCES + 1
        options.n_threads, options.n_threads_batch = self._threads
        options.kv_unified = True
        options.no_perf = True
        context = c.llama_init_from_model(self._model, options)
        if not context:
            raise LoadError(f"llama.cpp has no memory for {room} positions; a smaller kv_tokens needs less")
        return context, c.llama_get_memory(context), room

    def reserve(self, count: int) -> None:
        """Have memory for `count` tokens, or for all that are allowed; what is there is carried over."""
        room = self._room
        while room < min(count, self.positions):
            room = min(2 * room, self.positions)
        if room == self._room:
            return
        context, memory, room = self._opened(room)
        for sequence in range(SEQUENCES):
            if c.llama_memory_seq_pos_max(self._memory, sequence) < 0:
                continue
            size = c.llama_state_seq_get_size(self._context, sequence)
            state = (ctypes.c_uint8 * size)()
            c.llama_state_seq_get_data(self._context, state, size, sequence)
            if not c.llama_state_seq_set_data(context, state, size, sequence):
                raise RuntimeError("llama.cpp could not carry a sequence over into more memory")
        c.llama_free(self._context)
        self._context, self._memory, self._room = context, memory, room

    def use_threads(self, count: int, for_prompts: int) -> None:
        """Threads for a single token, and for several at once."""
        self._threads = count, for_prompts
        c.llama_set_n_threads(self._context, count, for_prompts)

    def trial(self) -> None:
        """One token, as in an answer."""
        self.compute([Piece(TRIAL, 0, [0])], [0])
        self.forget(TRIAL)

    def compute(
        self, pieces: Sequence[Piece], wanted: Sequence[int], gone: Callable[[], bool] | None = None
    ) -> list[Logits]:
        """Logits of some of the tokens, by their place among all; they hold until the next call.

        gone: asked many times a second; Interrupted when it says yes, and the pieces are as if never computed.
        """
        batch, at = self._batch, 0
        for piece in pieces:
            for offset, token in enumerate(piece.tokens):
                batch.token[at] = token
                batch.pos[at] = piece.start + offset
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = piece.sequence
                batch.logits[at] = 0
                at += 1
        for row in wanted:
            batch.logits[row] = 1
        batch.n_tokens = at
        if gone is not None:
            self._check = gone
            c.llama_set_abort_callback(self._context, self._abort, None)
        code = c.llama_decode(self._context, batch)
        if gone is not None:
            c.llama_set_abort_callback(self._context, self._never, None)
        if code != 0:
            for piece in pieces:
                self.forget(piece.sequence, piece.start)
            if code == 2:
                raise Interrupted
            raise RuntimeError(f"llama.cpp gave up a batch of {at} tokens with {code}")
        return [self._logits(row) for row in wanted]

    def _logits(self, row: int) -> Logits:
        pointer = c.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self.tokens,))

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Take back what a sequence has from `start` on; false where only all of it can be, which is gone then."""
        if c.llama_memory_seq_rm(self._memory, sequence, start, -1):
            return True
        c.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def copy(self, sequence: int, to: int, count: int) -> None:
        """The first `count` tokens of a sequence belong to another as well. Costs nothing."""
        c.llama_memory_seq_cp(self._memory, sequence, to, 0, count)

    def about(self, key: str) -> str:
        """A value of the file's metadata; empty where it has none."""
        room = ctypes.create_string_buffer(256)
        size = c.llama_model_meta_val_str(self._model, key.encode(), room, len(room))
        return room.value.decode(errors="replace") if size > 0 else ""

    @property
    def template(self) -> str:
        """The model's chat template; empty when it has none."""
        found = c.llama_model_chat_template(self._model, None)
        return found.decode(errors="replace") if found else ""


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp prints hundreds of lines about every model."""


class GgufTokenizer:
    """What `prompt.Prompter` and the server need of a tokenizer, from the file itself."""

    def __init__(self, model: LlamaCpp) -> None:
        self._vocabulary = vocabulary = model.vocabulary
        self.size = model.tokens
        self._template = compiled(model.template)
        self.added_tokens_decoder: dict[int, AddedToken] = {}
        self.ends: set[int] = set()
        self._longest = ""
        for token in range(model.tokens):
            text = c.llama_vocab_get_text(vocabulary, token)
            if len(text) > len(self._longest):
                self._longest = text.decode(errors="replace")
            if c.llama_vocab_get_attr(vocabulary, token) & (c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN):
                self.added_tokens_decoder[token] = AddedToken(text.decode(errors="replace"), True)
                if c.llama_vocab_is_eog(vocabulary, token):
                    self.ends.add(token)
        self._named = {"bos_token": self._text(c.llama_vocab_bos), "eos_token": self._text(c.llama_vocab_eos)}
        self.all_special_tokens = [text for text in self._named.values() if text]

    def _text(self, which: Callable[[Any], int]) -> str:
        token = which(self._vocabulary)
        return "" if token < 0 else str(c.llama_vocab_get_text(self._vocabulary, token).decode(errors="replace"))

    def get_vocab(self) -> dict[str, int]:
        """Only the longest token: what a limit is reckoned from."""
        return {self._longest: 0}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        raw = text.encode()
        room = (c.llama_token * (len(raw) + 2))()
        count = c.llama_tokenize(self._vocabulary, raw, len(raw), room, len(room), add_special_tokens, True)
        return list(room[:count])

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without the control tokens."""
        given = (c.llama_token * len(tokens))(*tokens)
        room = ctypes.create_string_buffer(16 * len(tokens) + 64)
        size = c.llama_detokenize(self._vocabulary, given, len(tokens), room, len(room), False, False)
        if size < 0:
            room = ctypes.create_string_buffer(-size)
            size = c.llama_detokenize(self._vocabulary, given, len(tokens), room, len(room), False, False)
        return room.raw[:size].decode(errors="replace")

    def apply_chat_template(self, turns: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        return self._template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self._named)


def load_gguf(wanted: Load) -> Model:
    """Load a GGUF file. Raises LoadError."""
    cores = usable_cores()
    threads = wanted.threads or cores
    gpu = wanted.device != "cpu" and bool(c.llama_supports_gpu_offload())
    model = LlamaCpp(Path(wanted.path), threads=threads, positions=wanted.kv_tokens or POSITIONS, gpu=gpu)
    if not model.template:
        raise LoadError(no_template(wanted.name))
    try:
        tokenizer = GgufTokenizer(model)
    except NotCoveredError as fault:
        raise LoadError(f"the model {wanted.name} cannot be served: {fault}") from None
    dtype = model.about("general.file_type") or "gguf"
    trials = None
    if not wanted.threads and wanted.calibrated and not gpu:
        version = importlib.metadata.version("llama-cpp-python")
        file, of = Path(wanted.calibrated), key(wanted.name, dtype, version, cores, "llama-cpp-python")
        found = known(file, of)
        if found is None:
            trials = Calibration(file, of, counts(cores), lambda count: model.use_threads(count, cores), model.trial)
        else:
            threads = found
            model.use_threads(found, cores)
    sampled = _number(model.about("general.sampling.temp"))
    return Model(
        name=wanted.name,
        engine=LlamaCppEngine(model),
        prompter=Prompter(tokenizer, wanted.name, min(model.trained, model.positions), template_s=wanted.template_s),
        decode=tokenizer.decode,
        ends=frozenset(tokenizer.ends),
        temperature=sampled or 0.0,
        top_p=_number(model.about("general.sampling.top_p")) or 1.0,
        dtype=dtype,
        device="gpu" if gpu else "cpu",
        threads=threads,
        sampler=PlainSampler,
        calibration=trials,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
