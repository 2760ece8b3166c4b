"""Batched decoding on small random models: every sequence gets the tokens that it gets alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from shoal.providers.hf_worker.engine import Sequence, UnfitModelError
from shoal.providers.hf_worker.sampling import Sampler
from shoal.providers.hf_worker.slots import SlotEngine

from tests.providers.engine_story import SIZES, STORY, alone, greedy, never, prompt, run


@pytest.fixture(scope="module", params=["llama", "sliding"])
def model(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    if request.param == "llama":
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    else:
        made = transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=8))
    return made.eval()


def test_sequences_that_join_and_leave_at_different_times_get_the_tokens_they_get_alone(model) -> None:  # type: ignore[no-untyped-def]
    out = run(SlotEngine(model), STORY)
    for group in STORY.values():
        for sequence in group:
            assert out[sequence.id] == alone(model, sequence)


def test_a_sequence_for_which_there_is_no_memory_waits_and_is_served(model) -> None:  # type: ignore[no-untyped-def]
    engine = SlotEngine(model, kv_tokens=60)
    sequences = [greedy(at, prompt(20, at), 10) for at in range(4)]
    out = run(engine, {0: sequences})
    assert out == {each.id: alone(model, each) for each in sequences}


def test_one_sequence_larger_than_the_memory_limit_is_served_alone(model) -> None:  # type: ignore[no-untyped-def]
    sequence = greedy(0, prompt(50), 5)
    assert run(SlotEngine(model, kv_tokens=10), {0: [sequence]})[0] == alone(model, sequence)


def test_a_removed_sequence_costs_nothing_more_wherever_it_was(model) -> None:  # type: ignore[no-untyped-def]
    engine = SlotEngine(model, kv_tokens=100)
    for at in range(3):
        engine.add(greedy(at, prompt(30, at), 20))
    engine.step(never)
    for at in (2, 0, 99):  # waiting, running, unknown
        engine.remove(at)
    while engine.busy:
        tokens = engine.step(never)
        assert {id_ for id_, _ in tokens} <= {1}
        if tokens:
            engine.remove(1)
    assert not engine.busy


def test_a_prompt_is_given_up_between_two_layers(model) -> None:  # type: ignore[no-untyped-def]
    engine = SlotEngine(model)
    asked = 0

    def gone(id_: int) -> bool:
        nonlocal asked
        asked += 1
        return id_ == 0 and asked > 1

    engine.add(greedy(0, prompt(600), 5))
    assert engine.step(gone) == []
    assert asked == 2
    assert not engine.busy
    sequence = greedy(1, prompt(10), 4)
    assert run(engine, {0: [sequence]})[1] == alone(model, sequence)


def test_a_long_prompt_is_computed_in_chunks_between_the_others_tokens(model) -> None:  # type: ignore[no-untyped-def]
    engine = SlotEngine(model)
    engine.add(greedy(0, prompt(4), 50))
    engine.step(never)
    engine.add(greedy(1, prompt(1500), 5))
    steps = 0
    while True:
        tokens = engine.step(never)
        assert tokens[0][0] == 0
        steps += 1
        if len(tokens) > 1:
            break
    assert steps >= 1500 / 256


def test_several_short_prompts_join_in_one_step(model) -> None:  # type: ignore[no-untyped-def]
    engine = SlotEngine(model)
    for at in range(4):
        engine.add(greedy(at, prompt(20, at), 5))
    assert [id_ for id_, _ in engine.step(never)] == [0, 1, 2, 3]


def test_a_seeded_sequence_draws_the_same_alone_and_in_company(model) -> None:  # type: ignore[no-untyped-def]
    def seeded() -> Sequence:
        return Sequence(0, prompt(12), 20, Sampler(1.0, 0.9, seed=11))

    solo = run(SlotEngine(model), {0: [seeded()]})[0]
    others = greedy(1, prompt(30, 1), 9), greedy(2, prompt(3, 2), 9)
    company = run(SlotEngine(model), {0: [others[0]], 3: [seeded()], 6: [others[1]]})[0]
    assert company == solo


def test_a_sequence_continued_at_any_token_ends_as_the_whole_one(model) -> None:  # type: ignore[no-untyped-def]
    whole = run(SlotEngine(model), {0: [greedy(0, prompt(9), 25)]})[0]
    for cut in (1, 7, 24):
        tail = run(SlotEngine(model), {0: [greedy(0, prompt(9) + whole[:cut], 25 - cut)]})[0]
        assert tail == whole[cut:]


def test_a_model_whose_layers_cannot_share_a_batch_is_refused() -> None:
    config = transformers.LlamaConfig(**SIZES)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnfitModelError, match="linear_attention"):
        SlotEngine(transformers.LlamaForCausalLM(config))
