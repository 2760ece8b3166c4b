"""Texts to vectors: transformers' BertModel is the oracle; the provider serves them from a worker of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trio
from shoal.providers import weights
from shoal.providers.base import ErrorKind, ProviderError
from shoal.providers.embedding import EmbedRequest, Embeds, unpack
from shoal.providers.hf_worker.encoder import Encoder, UnfitEncoderError
from shoal.providers.local_hf import Settings, build
from shoal.providers.settings import BuildContext

WORDS = [*map(chr, range(ord("a"), ord("z") + 1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one small random encoder."""
    store = tmp_path_factory.mktemp("store")
    folder = store / "tiny"
    torch.manual_seed(4)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(str(folder))
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, **{word: at + 1 for at, word in enumerate(WORDS)}}}
    whole = {"version": "1.0", "model": model | {"unk_token": "[UNK]"}, "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / weights.MANIFEST).write_text(json.dumps({"name": "tiny", "source": "", "sha256": "", "files": sizes}))
    return folder


def encoder(folder: Path) -> Encoder:
    from shoal.providers.hf_worker.model import opened

    return Encoder(folder, opened([folder / "model.safetensors"]))


def test_vectors_are_the_mean_of_what_transformers_gives_whatever_shares_the_batch(folder: Path) -> None:
    ours = encoder(folder)
    oracle: Any = transformers.BertModel.from_pretrained(str(folder)).eval()
    texts = ["a b c d e", "z", "k l m n o p q r s t"]
    tokens = ours.tokens(texts)
    found = torch.tensor(ours.vectors(tokens))
    for vector, ids in zip(found, tokens, strict=True):
        with torch.inference_mode():
            mean = oracle(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-4)
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_texts_of_like_length_share_a_batch_and_each_is_in_one(folder: Path) -> None:
    texts = [[1] * length for length in (30, 2, 500, 3, 4000, 1)]
    batches = list(encoder(folder).batches(texts))
    assert sorted(at for batch in batches for at in batch) == list(range(6))
    assert batches[0][:3] == [5, 1, 3]
    assert all(len(batch) * max(len(texts[at]) for at in batch) <= 4096 for batch in batches)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UnfitEncoderError, match="t5"):
        Encoder(tmp_path, lambda name: torch.empty(0))


async def test_the_provider_embeds_in_a_worker_and_says_what_it_cannot(folder: Path, tmp_path: Path) -> None:
    settings = Settings(models_dir=str(folder.parent), encoder="tiny", threads=1)
    provider = build("local_hf", settings, BuildContext(data_dir=tmp_path, environ=os.environ))
    assert isinstance(provider, Embeds)
    with trio.fail_after(120):
        async with provider.running():
            answer = await provider.embed(EmbedRequest(inputs=("a b", "c")))
            assert (answer.model, answer.tokens, [len(each) for each in answer.vectors]) == ("tiny", 3, [128, 128])
            again = await provider.embed(EmbedRequest(inputs=("c",), model="tiny"))
            assert unpack(again.vectors[0]) == pytest.approx(unpack(answer.vectors[1]), abs=1e-5)
            for model, texts, kind in (
                (None, ["a " * 65], ErrorKind.CONTEXT_LENGTH),
                (None, [], ErrorKind.BAD_REQUEST),
                (None, [""], ErrorKind.BAD_REQUEST),
                ("nobody", ["a"], ErrorKind.UNAVAILABLE),
                (str(folder), ["a"], ErrorKind.UNAVAILABLE),
            ):
                with pytest.raises(ProviderError) as caught:
                    await provider.embed(EmbedRequest(inputs=tuple(texts), model=model))
                assert caught.value.kind is kind
