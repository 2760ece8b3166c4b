"""The forward pass of the Llama family on a CPU: Llama, SmolLM, Mistral, Qwen 2 and 3, in a few operations a layer.

Rows of any number of sequences go through the matrices together; attention is computed sequence by sequence on memory
that never moves (`slot_memory.py`). transformers' own classes are the oracle in the tests, and what serves every model
that `covers` does not name. Beside their loop this one is about twice as fast for one stream, and importing it costs
half a second instead of two and a half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .last_layer import Screened, exact_products
from .packed import FEW_ROWS, MANY_ROWS, Blocks, Dense, Halves, Int4, Rescored, quantised, quantised_rows

FAMILY = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
FAMILY["qwen3"] = "Qwen3ForCausalLM"
TRIAL_ROWS = 8
ATTENDED, FULL_BLOCK = 64, 512
"""Positions are attended to in multiples of these; see `_length`."""
PACKED = ("packed", "int4", "float16")
"""Forms in which a weight is not kept in one of torch's types."""
ROPES = ("default", "linear", "llama3")


class Segment(NamedTuple):
    """Rows that continue one sequence. memory: `SlotMemory.values`; start: tokens in it; rows: how many come."""

    memory: Tensor
    start: int
    rows: int


class Linear(Protocol):
    def __call__(self, x: Tensor, /) -> Tensor:
        """Rows of fp32 to rows of fp32."""


class Tensors(Protocol):
    """Where weights come from: a name to a tensor; KeyError when there is none."""

    def __call__(self, name: str, /) -> Tensor:
        """The tensor of a name."""


def covers(config: dict[str, Any]) -> str:
    """Why this file does not serve a model with this config.json; empty when it does."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or FAMILY.get(kind) not in (config.get("architectures") or ["missing"]):
        return f"its architecture {kind} has no lean forward"
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        return "its feed-forward layers are of another kind"
    if set(config.get("layer_types") or ["full_attention"]) != {"full_attention"}:
        return "its attention has a window"
    if config.get("sliding_window") and config.get("use_sliding_window", kind == "mistral"):
        return "its attention has a window"
    rope = _rope(config)
    if rope.get("rope_type", rope.get("type", "default")) not in ROPES or rope.get("partial_rotary_factor", 1) != 1:
        return "its positions are encoded in another way"
    return ""


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Both spellings: rope_parameters of transformers 5, rope_scaling and rope_theta before."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return rope


def _rotations(config: dict[str, Any], width: int, positions: int) -> Tensor:
    """One complex number for each position and pair of numbers, [positions, 1, width / 2]."""
    rope = _rope(config)
    speed = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        speed /= rope["factor"]
    elif kind == "llama3":  # Llama 3.1: slow rotations are stretched, fast ones kept, those between mixed
        old = rope["original_max_position_embeddings"]
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        wave = 2 * math.pi / speed
        mix = ((old / wave - low) / (high - low)).clamp(0, 1)
        speed = mix * speed + (1 - mix) * speed / factor
    angle = torch.outer(torch.arange(positions).float(), speed)
    return torch.polar(torch.ones_like(angle), angle).unsqueeze(1)


def side_by_side(weight: Tensor, width: int) -> Tensor:
    """Rows of q or k as `llama.py` takes them: transformers has the two numbers of a rotation half a head apart."""
    return weight.view(-1, 2, width // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


class _Layer(NamedTuple):
    qkv: Linear
    o: Linear
    gu: Linear
    down: Linear
    norm: Tensor
    mlp_norm: Tensor
    bias: Tensor | None
    head_norms: Tensor | None


class Llama:
    """config: config.json. tensors: the model's weights by transformers' names, and those of `gguf_blocks.py`.

    form: "packed" (`packed.Blocks`, made of what is among the tensors), "float16" (`packed.Halves`), "int4"
    (`packed.Int4`, of the same or of plain tensors), or another dtype of torch. positions: the longest sequence.
    kept: the same as `tensors`; what is taken from it stays in use, so that a mapped file that is only read to be
    packed goes out of memory with `tensors`. beside: a model of the same weights in another form, whose first layer is
    shared.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tensors: Tensors,
        *,
        form: str,
        positions: int,
        kept: Tensors | None = None,
        beside: Llama | None = None,
    ) -> None:
        self._heads, self._eps = config["num_attention_heads"], config["rms_norm_eps"]
        self._groups = config.get("num_key_value_heads") or self._heads
        self._width = config.get("head_dim") or config["hidden_size"] // self._heads
        self._inner, self._form = config["intermediate_size"], form
        self._tensors, self._kept = tensors, kept or tensors
        self.memory_shape = (config["num_hidden_layers"], 2, self._groups, _length(positions), self._width)
        self.invariant = form in ("packed", "float16")
        """Whether the bits of a row do not depend on the rows that are computed with it."""
        name = "model.embed_tokens.weight"
        # Packing fp16 is one thread's work and holds no lock of Python's.
        with ThreadPoolExecutor(torch.get_num_threads() if form == "float16" else 1) as pool:
            layers = pool.map(lambda at: self._layer(at, config), range(config["num_hidden_layers"]))
            if beside is not None:
                self._cis: Tensor = beside._cis
                self._first: Blocks | Tensor = beside._first
                self._norm: Tensor = beside._norm
            else:
                self._cis = _rotations(config, self._width, positions)
                self._first = self._rows("embedding") or self._plain(name)
                self._norm = tensors("model.norm.weight").float().clone()
            last = name if config.get("tie_word_embeddings") else "lm_head.weight"
            self._screened: Screened | None = self._screen(last) if beside is None else beside._screened
            self._head: Linear = self._last(last)
            self._layers = list(layers)
        del self._tensors, self._kept

    def _layer(self, at: int, config: dict[str, Any]) -> _Layer:
        prefix, width = f"model.layers.{at}.", self._width

        def get(name: str, *, paired: bool = False) -> Tensor:
            tensor = self._tensors(prefix + name)
            return side_by_side(tensor, width) if paired else tensor

        def product(name: str, *parts: str) -> Linear:
            if self._form == "packed":
                return Blocks(self._kept(f"{at}.{name}"))
            if self._form == "int4" and (once := _found(self._tensors, f"{at}.{name}")) is not None:
                return Int4(self._kept(f"{at}.{name}"), once=once)
            weight = torch.cat([get(f"{part}.weight", paired=part[-6:] in ("q_proj", "k_proj")) for part in parts])
            if self._form == "int4":
                return Int4(quantised(weight))
            if self._form == "float16":
                return Halves(weight)
            return Dense(weight.to(getattr(torch, self._form)))

        bias = head_norms = None
        if config.get("attention_bias") or config["model_type"] == "qwen2":
            names = ("q_proj", "k_proj", "v_proj")
            bias = torch.cat([get(f"self_attn.{n}.bias", paired=n != "v_proj") for n in names]).float()
        if config["model_type"] == "qwen3":
            norms = [get(f"self_attn.{name}.weight", paired=True).float() for name in ("q_norm", "k_norm")]
            head_norms = torch.stack([norms[0]] * self._heads + [norms[1]] * self._groups)
        return _Layer(
            product("qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            product("o", "self_attn.o_proj"),
            product("gu", "mlp.gate_proj", "mlp.up_proj"),
            product("down", "mlp.down_proj"),
            get("input_layernorm.weight").float().clone(),
            get("post_attention_layernorm.weight").float().clone(),
            bias,
            head_norms,
        )

    def _plain(self, name: str) -> Tensor:
        """A plain matrix in the form that it is used in."""
        weight = self._kept(name)
        return weight if self._form in PACKED else weight.to(getattr(torch, self._form))

    def _rows(self, name: str) -> Blocks | None:
        """The first or last layer in blocks; None where there are none, or others are wanted."""
        found = _found(self._kept, name) if self._form in PACKED else None
        return Blocks(found) if found is not None and found.dtype == torch.uint8 else None

    def _last(self, name: str) -> Linear:
        if self._form == "int4" and self._screened is not None:
            return self._screened.rescored
        tied = name == "model.embed_tokens.weight"
        full = self._first if tied else self._rows("head") or self._plain(name)
        if self._form in ("int4", "float16"):
            q, s = _found(self._tensors, "rough.q"), _found(self._tensors, "rough.s")
            if q is None or s is None:
                q, s = quantised_rows(self._tensors(name))
            return Rescored(q, s, full.rows if isinstance(full, Blocks) else partial(_taken, full))
        return full if isinstance(full, Blocks) else Dense(full)

    def _screen(self, name: str) -> Screened | None:
        """What finds the likeliest tokens without all logits, where the last layer is in blocks."""
        full = self._first if name == "model.embed_tokens.weight" else self._rows("head")
        q, s = _found(self._kept, "rough.q"), _found(self._kept, "rough.s")
        if not isinstance(full, Blocks) or q is None or s is None or not exact_products():
            return None
        return Screened(q, s, full)

    def __call__(
        self,
        tokens: list[int],
        segments: list[Segment],
        wanted: list[int],
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Logits after the rows `wanted`, fp32 [len(wanted), vocabulary]; for the rest see `hidden`."""
        return self.logits(self.hidden(tokens, segments, wanted, check))

    def logits(self, hidden: Tensor) -> Tensor:
        """Of what `hidden` gave: fp32 [rows, vocabulary]."""
        return self._head(hidden) if len(hidden) else hidden.new_empty(0, 0)

    def likeliest(self, hidden: Tensor) -> list[int]:
        """The token with the largest of the logits of each row; `logits` are not all computed where that is proven."""
        if not len(hidden):
            return []
        found = self._screened(hidden) if self._screened is not None else self._head(hidden).argmax(-1)
        tokens: list[int] = found.tolist()
        return tokens

    def hidden(
        self,
        tokens: list[int],
        segments: list[Segment],
        wanted: list[int],
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """What the last layer is given after the rows `wanted`: fp32 [len(wanted), hidden size].

        tokens: the rows of all segments, one after another. check: called between layers; what it raises comes out.
        """
        heads, groups, width = self._heads, self._groups, self._width
        turned = (heads + groups) * width
        where = [at for segment in segments for at in range(segment.start, segment.start + segment.rows)]
        cis = self._cis[where]
        x = self._embedded(torch.tensor(tokens))
        rows = len(tokens)
        # The bits of a few rows do not depend on their company, and attention keeps to that.
        single = [segment.rows < FEW_ROWS for segment in segments]
        spans = [
            _spans(segment, heads // groups, alike=self.invariant) if few else []
            for few, segment in zip(single, segments, strict=True)
        ]
        masks = [None if few else _mask(segment) for few, segment in zip(single, segments, strict=True)]
        for at, layer in enumerate(self._layers):
            check()
            y = layer.qkv(self._normed(x, layer.norm))
            if layer.bias is not None:
                y = y + layer.bias
            if layer.head_norms is not None:
                per_head = y[:, :turned].view(rows, heads + groups, width)
                per_head.copy_(self._normed(per_head, layer.head_norms))
            torch.view_as_complex(y[:, :turned].view(rows, heads + groups, width // 2, 2)).mul_(cis)
            y = y.view(rows, heads + 2 * groups, width)
            attended: list[Tensor] = []
            first = 0
            for segment, parts, mask in zip(segments, spans, masks, strict=True):
                memory, start, count = segment
                piece, end = y[first : first + count], start + count
                memory[at, :, :, start:end] = piece[:, heads:].view(count, 2, groups, width).permute(1, 2, 0, 3)
                for part in parts:
                    keys, values = memory[at, :, :, : part.length].unsqueeze(1)
                    attended.append(self._attend_few(piece[part.rows, :heads], keys, values, part.mask))
                if not parts:
                    keys, values = memory[at, :, :, :end].unsqueeze(1)
                    attended.append(self._attend(piece[:, :heads], keys, values, mask))
                first += count
            x = x + layer.o(torch.cat(attended))
            x = x + self._fed(layer, self._normed(x, layer.mlp_norm))
        check()
        return self._normed(x[wanted], self._norm)

    def _fed(self, layer: _Layer, x: Tensor) -> Tensor:
        """The feed-forward layers."""
        gu, down, inner = layer.gu, layer.down, self._inner
        if isinstance(gu, Blocks) and isinstance(down, Blocks) and len(x) < MANY_ROWS:
            y = gu.turned(gu.columns(x))  # upright from one product to the other
            return down.turned(functional.silu(y[:inner]).mul_(y[inner:]))[:, : len(x)].T
        y = gu(x)
        return down(functional.silu(y[:, :inner]).mul_(y[:, inner:]))

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self._first.rows(tokens) if isinstance(self._first, Blocks) else _taken(self._first, tokens)

    def trial(self) -> None:
        """Compute some rows for nobody, as many as several streams or a draft have."""
        memory = torch.zeros(*self.memory_shape[:3], _length(TRIAL_ROWS), self._width)
        with torch.inference_mode():
            self.likeliest(self.hidden([0] * TRIAL_ROWS, [Segment(memory, 0, TRIAL_ROWS)], list(range(TRIAL_ROWS))))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True).add_(self._eps)) * weight

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """query [rows, heads, width]; keys, values [1, groups, length, width]; gives [rows, heads * width]."""
        attend = functional.scaled_dot_product_attention
        count = len(query)
        query = query.transpose(0, 1).unsqueeze(0)
        causal = mask is None
        out = attend(query, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1).reshape(count, -1)

    def _attend_few(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The same, of rows that are attended as they would be alone: the heads of a group are rows of one query."""
        count, groups, width = len(query), self._groups, self._width
        if count == 1:
            one = query.view(1, groups, -1, width)
            return functional.scaled_dot_product_attention(one, keys, values, attn_mask=mask).view(1, -1)
        rows = query.reshape(count, groups, -1, width).transpose(0, 1).reshape(1, groups, -1, width)
        out = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
        return out.view(groups, count, -1, width).transpose(0, 1).reshape(count, -1)


def _taken(weight: Tensor, rows: Tensor) -> Tensor:
    return weight[rows].float()


def _found(tensors: Tensors, name: str) -> Tensor | None:
    try:
        return tensors(name)
    except KeyError:
        return None


class _Span(NamedTuple):
    """Rows of a segment that look at equally many positions, `length`; mask: for each head of a group and row."""

    rows: slice
    length: int
    mask: Tensor | None


def _length(known: int) -> int:
    """Positions that a row is attended over which knows so many, the rest masked: as many whoever is beside it.

    torch 2.13 goes through them by 512, and MKL cuts these sums in parts by their number.
    """
    step = ATTENDED if known <= FULL_BLOCK else FULL_BLOCK
    return -(-known // step) * step


def _spans(segment: Segment, heads: int, *, alike: bool) -> list[_Span]:
    """A segment in parts of rows with the same length. heads: those of a group. alike: one row alone has it, too."""
    if segment.rows == 1 and not alike:
        return [_Span(slice(0, 1), segment.start + 1, None)]
    spans, row = [], 0
    while row < segment.rows:
        known = segment.start + row + 1
        length = _length(known)
        count = min(length - known + 1, segment.rows - row)
        mask = torch.full((count, length), -torch.inf).triu_(known).repeat_interleave(heads, 0)
        spans.append(_Span(slice(row, row + count), length, mask))
        row += count
    return spans


def _mask(segment: Segment) -> Tensor | None:
    """Which positions each row may look at; None when it is the plain triangle."""
    if segment.start == 0:
        return None
    return torch.ones(segment.rows, segment.start + segment.rows, dtype=torch.bool).tril(segment.start)
