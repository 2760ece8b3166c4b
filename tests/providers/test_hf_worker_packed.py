"""Packed weights by themselves: what a row and a product of them are, beside the plain weights."""

from __future__ import annotations

import pytest
import torch
from shoal.providers.hf_worker.packed import (
    Blocks,
    Halves,
    Int4,
    Rescored,
    UnfitWeightsError,
    blocks_of,
    quantised,
    quantised_rows,
    taken_apart,
)


def test_a_row_of_halves_has_the_same_bits_in_any_company() -> None:
    """FBGEMM of torch 2.13 adds up each number of a product in one order, however many rows there are."""
    torch.manual_seed(4)
    weight = (torch.randn(5000, 576) / 24).half()
    layer, x = Halves(weight), torch.randn(150, 576)
    whole = layer(x)
    torch.testing.assert_close(whole, x @ weight.float().T, rtol=1e-5, atol=1e-5)
    last = Rescored(*quantised_rows(weight), lambda at: weight[at].float())
    logits = last(x)
    for first, count in ((0, 1), (1, 2), (3, 5), (8, 14), (22, 47), (69, 81)):
        assert torch.equal(layer(x[first : first + count]), whole[first : first + count])
        assert torch.equal(last(x[first : first + count]), logits[first : first + count])


def test_weights_that_fp16_does_not_hold_are_refused() -> None:
    for odd in (1e6, float("inf"), float("nan")):
        with pytest.raises(UnfitWeightsError):
            Halves(torch.full((4, 32), odd))


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_unpacked_as_the_format_says_to_the_bit(bits: int) -> None:
    torch.manual_seed(5)
    values = torch.randint(0, 2**bits, (70, 6, 32), dtype=torch.uint8)
    scale, least = torch.rand(70, 6) / 50, -torch.rand(70, 6)
    if bits == 4:
        scale, least = scale.half(), least.half()
    blocks = blocks_of(values, scale, least)
    # The product has so few bits that only the sum is rounded, once.
    expected = (values.double() * scale.double()[..., None] + least.double()[..., None]).float().flatten(1)
    at = torch.tensor([69, 0, 7])
    assert torch.equal(Blocks(blocks).rows(at), expected[at])
    if bits == 4:
        assert [torch.equal(a, b) for a, b in zip(taken_apart(blocks), (values, scale, least), strict=True)] == [
            True
        ] * 3


@pytest.mark.parametrize("shape", [(960, 576), (576, 1536), (97, 32), (5000, 64)])
def test_a_product_by_blocks_is_that_of_the_plain_weights_whatever_the_rows(shape: tuple[int, int]) -> None:
    torch.manual_seed(6)
    layer = Blocks(quantised(torch.randn(shape) / 24))
    weight, x = layer.rows(torch.arange(shape[0])), torch.randn(200, shape[1])
    for rows in (1, 3, 16, 17, 47, 63, 64, 65, 200):
        torch.testing.assert_close(layer(x[:rows]), x[:rows] @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [32, 16])
def test_blocks_of_eight_bits_are_drafted_with_by_four(group: int) -> None:
    torch.manual_seed(5)
    values = torch.randint(0, 64, (96, 256 // group, group), dtype=torch.uint8)
    scale = torch.rand(96, 256 // group) / 500
    blocks = blocks_of(values, scale, -32 * scale)
    x = torch.randn(3, 256)
    exact, rough = Blocks(blocks)(x), Int4(blocks)(x)
    assert not torch.equal(exact, rough)
    assert (exact - rough).square().mean() < 0.01 * exact.square().mean()


def test_a_row_by_blocks_has_the_same_bits_in_any_company_of_a_draft() -> None:
    """MKL adds up each number of these products in one order while the rows are few and fill whole registers."""
    torch.manual_seed(7)
    for shape in ((960, 576), (576, 1536), (5000, 576)):
        layer, x = Blocks(quantised(torch.randn(shape) / 24)), torch.randn(47, shape[1])
        whole = layer(x)
        for first, count in ((0, 1), (1, 2), (3, 5), (8, 14), (22, 25)):
            assert torch.equal(layer(x[first : first + count]), whole[first : first + count])


def test_few_rows_and_many_rows_are_nearly_the_same_product() -> None:
    torch.manual_seed(2)
    weight = torch.randn(1088, 576) / 24
    layer, x = Int4(quantised(weight)), torch.randn(100, 576)
    few = torch.cat([layer(x[at : at + 3]) for at in range(0, 100, 3)])
    assert (few - layer(x)).std() < 0.01 * few.std()  # the kernel for few rounds to bf16
    assert (few - x @ weight.T).std() < 0.1 * few.std()


def test_the_likeliest_tokens_get_the_logits_of_the_full_matrix() -> None:
    torch.manual_seed(3)
    weight, x = torch.randn(1000, 64), torch.randn(5, 64)
    logits, full = Rescored(*quantised_rows(weight), weight.__getitem__)(x), x @ weight.T
    best = full.topk(10).indices
    torch.testing.assert_close(logits.gather(1, best), full.gather(1, best))
    assert torch.equal(logits.argmax(-1), full.argmax(-1))


def test_a_matrix_in_a_mapped_file_is_computed_with() -> None:
    """torch 2.13's int8 kernel ends the process when a matrix begins at an odd place; four rows are enough."""
    weight = torch.randn(256, 64)
    q, scale = quantised_rows(weight)
    odd = torch.empty(256 * 64 + 8, dtype=torch.int8)[8:].view(256, 64).copy_(q)
    assert odd.data_ptr() % 16
    assert Rescored(odd, scale, weight.__getitem__)(torch.randn(4, 64)).shape == (4, 256)
