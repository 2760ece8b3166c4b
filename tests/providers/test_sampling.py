"""The choice of a token."""

from __future__ import annotations

import pytest
import torch
from shoal.providers.hf_worker.sampling import Sampler

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -5.0])


def drawn(sampler: Sampler, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    return [sampler.pick(logits) for _ in range(count)]


@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(1e-9), Sampler(2.0, top_p=0.0)])
def test_no_temperature_takes_the_likeliest(sampler: Sampler) -> None:
    assert drawn(sampler, 20) == [1] * 20


def test_the_same_seed_draws_the_same_and_another_one_something_else() -> None:
    assert drawn(Sampler(1.0, seed=7), 50) == drawn(Sampler(1.0, seed=7), 50)
    assert drawn(Sampler(1.0, seed=7), 50) != drawn(Sampler(1.0, seed=8), 50)


def test_no_seed_draws_something_else_each_time() -> None:
    assert drawn(Sampler(2.0), 60) != drawn(Sampler(2.0), 60)


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**64, 10**40])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert drawn(Sampler(1.0, seed=seed), 10) == drawn(Sampler(1.0, seed=seed), 10)


@pytest.mark.parametrize("cut", [0, 1, 13, 49])
def test_a_seeded_answer_can_be_taken_up_at_any_token(cut: int) -> None:
    whole = drawn(Sampler(1.0, top_p=0.95, seed=3), 50)
    assert drawn(Sampler(1.0, top_p=0.95, seed=3, drawn=cut), 50 - cut) == whole[cut:]


def test_a_requests_draws_do_not_depend_on_others() -> None:
    alone = drawn(Sampler(1.0, seed=5), 20)
    one, other = Sampler(1.0, seed=5), Sampler(1.0, seed=6)
    together = []
    for _ in range(20):
        together.append(one.pick(LOGITS))
        other.pick(LOGITS)
        torch.rand(3)
    assert together == alone


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    sampler = Sampler(1.5, seed=1)
    counts = torch.bincount(torch.tensor(drawn(sampler, 6000)), minlength=5) / 6000
    assert torch.allclose(counts, torch.softmax(LOGITS / 1.5, -1), atol=0.03)


def test_top_p_draws_from_the_smallest_set_that_reaches_it() -> None:
    # probabilities: 0.64, 0.24, 0.09, 0.03, 0.00
    assert set(drawn(Sampler(1.0, top_p=0.6, seed=1), 200)) == {1}
    assert set(drawn(Sampler(1.0, top_p=0.7, seed=1), 200)) == {1, 2}
    assert set(drawn(Sampler(1.0, top_p=0.9, seed=1), 500)) == {1, 2, 3}


def test_a_flat_distribution_over_a_large_vocabulary_is_cut_right() -> None:
    flat = torch.zeros(20_000)
    tokens = drawn(Sampler(1.0, top_p=0.5, seed=2), 400, flat)
    assert len(set(tokens)) > 350


def test_logits_of_half_precision_are_taken() -> None:
    assert Sampler(0.7, top_p=0.9, seed=1).pick(LOGITS.bfloat16()) in {1, 2, 3}
