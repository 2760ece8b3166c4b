"""Texts to vectors: a BERT-like sentence encoder (MiniLM), mean over the tokens, unit length. Imports torch.

What sentence-transformers does with all-MiniLM-L6-v2; transformers' BertModel is the oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor
from torch.nn import functional

from .tokens import read_json

BATCH_TOKENS = 4096
"""Tokens, with those that only fill up, that are computed at once; between two batches a request can be cancelled."""


class UnfitEncoderError(Exception):
    """This folder holds no encoder that is served here; the message says why."""


class Encoder:
    """tensors: the weights by transformers' names. Raises UnfitEncoderError for another architecture."""

    def __init__(self, folder: Path, tensors: Callable[[str], Tensor]) -> None:
        config = read_json(folder / "config.json")
        if config.get("model_type") != "bert" or config.get("position_embedding_type", "absolute") != "absolute":
            raise UnfitEncoderError(f"its architecture {config.get('model_type')} is no encoder that is served here")
        if config.get("hidden_act") != "gelu":
            raise UnfitEncoderError("its feed-forward layers are of another kind")
        self._tensors, self._heads, self._eps = tensors, config["num_attention_heads"], config["layer_norm_eps"]
        self._layers = range(config["num_hidden_layers"])
        self.longest = int(config["max_position_embeddings"])
        """Tokens that a text may have."""
        self._weights: dict[str, Tensor] = {}
        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Each text's tokens, with those that begin and end it."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def batches(self, texts: list[list[int]]) -> Iterator[list[int]]:
        """Which texts are computed together: those of like length, so that little is filled up."""
        batch: list[int] = []
        for at in sorted(range(len(texts)), key=lambda at: len(texts[at])):
            if batch and (len(batch) + 1) * len(texts[at]) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(at)
        if batch:
            yield batch

    @torch.inference_mode()
    def vectors(self, texts: list[list[int]]) -> list[list[float]]:
        """One vector of unit length for each text."""
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        there = torch.tensor([[True] * len(text) + [False] * (longest - len(text)) for text in texts])
        x = self._get("embeddings.word_embeddings.weight")[ids]
        x = x + self._get("embeddings.position_embeddings.weight")[:longest]
        x = self._norm(x + self._get("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
        for at in self._layers:
            layer = f"encoder.layer.{at}."
            query, key, value = (
                self._linear(x, f"{layer}attention.self.{name}").view(*x.shape[:2], self._heads, -1).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=there[:, None, None, :])
            mixed = self._linear(mixed.transpose(1, 2).flatten(2), f"{layer}attention.output.dense")
            x = self._norm(x + mixed, f"{layer}attention.output.LayerNorm")
            inner = functional.gelu(self._linear(x, f"{layer}intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{layer}output.dense"), f"{layer}output.LayerNorm")
        mean = (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        found: list[list[float]] = functional.normalize(mean, dim=-1).tolist()
        return found

    def _get(self, name: str) -> Tensor:
        if name not in self._weights:
            self._weights[name] = self._tensors(name).float()
        return self._weights[name]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._get(f"{name}.weight"), self._get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self._get(f"{name}.weight"), self._get(f"{name}.bias"), self._eps)
