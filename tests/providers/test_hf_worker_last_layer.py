"""The likeliest token without all logits: the same as the argmax of the whole last layer, whatever it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.providers.hf_worker import last_layer
from shoal.providers.hf_worker.engine import Sequence
from shoal.providers.hf_worker.frames import Load
from shoal.providers.hf_worker.last_layer import Screened, exact_products
from shoal.providers.hf_worker.llama import Segment
from shoal.providers.hf_worker.logprobs import Noting
from shoal.providers.hf_worker.model import load
from shoal.providers.hf_worker.packed import Blocks, blocks_of, quantised, quantised_rows
from shoal.providers.hf_worker.sampling import Sampler
from shoal.providers.hf_worker.slot_memory import SlotMemory
from torch import Tensor

needs_kernel = pytest.mark.skipif(not exact_products(), reason="sums of bytes saturate on this processor")


class Counted(Blocks):
    """Blocks that count how often all of them were multiplied."""

    whole = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.whole += 1
        return super().__call__(x)


def screened(blocks: Tensor) -> tuple[Screened, Counted]:
    full = Counted(blocks)
    return Screened(*quantised_rows(full.rows(torch.arange(len(blocks)))), full), full


def matrix(count: int, inputs: int, bits: int, tokens: Callable[[Tensor], None] = lambda weight: None) -> Tensor:
    """A last layer in blocks: some tokens much longer than others, as in a real one."""
    weight = torch.randn(count, inputs) / inputs**0.5 * (1 + 3 * torch.rand(count, 1) ** 4)
    tokens(weight)
    if bits == 4:
        return quantised(weight)
    rows = weight.view(count, -1, 32)
    scale = (rows.abs().amax(-1) / 127).clamp_min(1e-7)
    return blocks_of((rows / scale[..., None]).round().add(128).to(torch.uint8), scale, -128 * scale)


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([4, 8]),
    count=st.sampled_from([1, 97, 1001, 4000]),
    inputs=st.sampled_from([32, 576]),
    rows=st.sampled_from([1, 2, 5, 16, 17, 47, 64, 70]),
    kind=st.sampled_from(["plain", "outliers", "a token's own row", "between two tokens", "zeros", "tiny", "huge"]),
)
def test_the_token_is_the_one_that_all_logits_would_choose(
    seed: int, bits: int, count: int, inputs: int, rows: int, kind: str
) -> None:
    torch.manual_seed(seed)
    find, full = screened(matrix(count, inputs, bits))
    x = torch.randn(rows, inputs)
    tokens = full.rows(torch.randint(0, count, (2 * rows,)))
    if kind == "outliers":
        x[:, torch.randint(0, inputs, (3,))] *= 100
    elif kind == "a token's own row":
        x = tokens[:rows]
    elif kind == "between two tokens":
        one, other = tokens[:rows], tokens[rows:]
        x = one / one.norm(dim=1, keepdim=True) + other / other.norm(dim=1, keepdim=True)
    elif kind in ("zeros", "tiny", "huge"):
        x *= {"zeros": 0.0, "tiny": 1e-36, "huge": 1e36}[kind]
    assert torch.equal(find(x), Blocks.__call__(full, x).argmax(-1))


@needs_kernel
@pytest.mark.parametrize("bits", [4, 8])
def test_of_tokens_that_are_alike_the_first_is_chosen_and_of_those_a_last_bit_apart_the_larger(bits: int) -> None:
    torch.manual_seed(8)
    twins = [5, 300, 301, 2999]

    def alike(weight: Tensor) -> None:
        weight[twins] = 2 * weight[5]

    blocks = matrix(3000, 64, bits, alike)
    find, full = screened(blocks)
    x = full.rows(torch.tensor([5] * 6)) + torch.randn(6, 64) / 50
    assert find(x).tolist() == [5] * 6
    for at in range(6):
        one = matrix(3000, 64, bits, alike)
        one[2999, at % 2, 0] ^= 1  # a weight of the last twin, by the smallest step
        find, full = screened(one)
        assert torch.equal(find(x), full(x).argmax(-1))


@needs_kernel
def test_the_whole_is_left_alone_where_few_tokens_are_possible_and_multiplied_where_many_are() -> None:
    torch.manual_seed(9)
    find, full = screened(matrix(4000, 576, 8))
    clear = 3 * full.rows(torch.arange(100, 116))
    find(clear)
    assert full.whole == 0
    for unclear in (torch.zeros(2, 576), torch.full((1, 576), torch.nan), torch.full((1, 576), torch.inf)):
        assert torch.equal(find(unclear), Blocks.__call__(full, unclear).argmax(-1))
    assert full.whole == 3


@needs_kernel
def test_bounds_hold_for_the_worst_that_rounding_can_do() -> None:
    """Every weight half a step from what is kept of it, every number of the row half a step of its second byte off."""
    torch.manual_seed(10)
    inputs = 64
    signs = torch.randint(0, 2, (2000, inputs)) * 2 - 1
    weight = signs * (torch.randint(0, 127, (2000, inputs)) + 0.5)
    weight[:, 0] = 127  # so that the step is 1
    scale, least = torch.full((2000, 2), 0.5), torch.full((2000, 2), -127.0)
    blocks = blocks_of((2 * weight + 254).clamp(0, 255).to(torch.uint8).view(2000, 2, 32), scale, least)
    find, full = screened(blocks)
    for _ in range(20):
        x = (torch.randint(-127, 128, (16, inputs)) + torch.randint(-127, 128, (16, inputs)) / 254).float()
        x += 0.5 / 254 * (torch.randint(0, 2, x.shape) * 2 - 1)
        logits = full(x)
        assert torch.equal(find(x), logits.argmax(-1))
        left = find._left(x)
        assert left is None or set(logits.argmax(-1).tolist()) <= set(left.tolist())


@needs_kernel
def test_the_likeliest_of_a_draft_have_their_own_logits_and_the_others_nearly() -> None:
    torch.manual_seed(11)
    find, full = screened(matrix(1000, 64, 8))
    x = torch.randn(5, 64)
    logits, exact = find.rescored(x), full(x)
    best = exact.topk(10).indices
    assert torch.equal(logits.gather(1, best), exact.gather(1, best))
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0)
    assert torch.equal(find.rescored(x[2:3]), logits[2:3])


def test_a_processor_that_saturates_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(a: Tensor, b: Tensor) -> Tensor:
        """VPMADDUBSW takes one of the two without a sign, so 128 is added to it, and taken away in the end."""
        pairs = ((a.int() + 128)[:, None, :] * b.T.int()[None]).view(len(a), b.shape[1], -1, 2).sum(-1)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(-1) - 128 * b.int().sum(0)

    def missing(a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    for kernel in (saturating, missing):
        exact_products.cache_clear()
        monkeypatch.setattr(last_layer, "_products", kernel)
        assert not exact_products()
    exact_products.cache_clear()


@pytest.mark.model
def test_of_real_rows_the_tokens_are_those_of_all_logits_and_a_mixed_batch_is_split(models_dir: Path) -> None:
    threads = torch.get_num_threads()
    try:
        loaded = load(Load("smollm2", str(models_dir / "smollm2"), 1, kv_tokens=2048))
        model: Any = loaded.engine._model  # type: ignore[attr-defined]
        if model._screened is None:
            pytest.skip("this processor has no kernel for it")
        text = loaded.prompter.tokens((Path(__file__).parents[2] / "benchmarks/perplexity.txt").read_text())[:200]
        with torch.inference_mode():
            memory = SlotMemory(model.memory_shape).values
            hidden = model.hidden(text, [Segment(memory, 0, len(text))], list(range(len(text))))
            for start in range(0, len(text), 16):
                rows = hidden[start : start + 16]
                assert model.likeliest(rows) == model.logits(rows).argmax(-1).tolist()
                left = model._screened._left(rows)
                assert left is not None
                assert len(left) < 1000
        wholes: list[int] = []
        logits = model.logits
        model.logits = lambda rows: wholes.append(len(rows)) or logits(rows)
        engine: Any = loaded.engine
        engine.preparing = None
        noting = Noting(Sampler(0.0), 2)
        samplers = [Sampler(0.0), noting, Sampler(0.9, seed=3)]
        for id_, sampler in enumerate(samplers):
            engine.add(Sequence(id_, text[:9], 4, sampler, []))
        picked: dict[int, list[int]] = {id_: [] for id_ in range(3)}
        while len(picked[0]) < 4:
            for id_, token in engine.step(lambda _: False):
                picked[id_].append(token)
        assert picked[0] == picked[1][: len(picked[0])]
        assert [note.token for note in noting.notes] == picked[1]
        assert max(wholes) == 2
    finally:
        torch.set_num_threads(threads)
