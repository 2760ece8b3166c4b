"""The lean forward and its slots on small random models: transformers' own classes are the oracle."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from shoal.providers.hf_worker import lean_engine
from shoal.providers.hf_worker.engine import Sequence
from shoal.providers.hf_worker.lean_engine import LeanEngine
from shoal.providers.hf_worker.llama import Llama, Segment, covers
from shoal.providers.hf_worker.sampling import Sampler
from shoal.providers.hf_worker.slot_memory import SlotMemory

from tests.providers import engine_story
from tests.providers.engine_story import alone, greedy, never, prompt, run

SIZES = engine_story.SIZES | {"intermediate_size": 64}  # blocks of weights have 32
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "llama tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama3 rope": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES)),
}


def made(kind: str) -> Any:
    torch.manual_seed(1)
    model = KINDS[kind]().eval()
    for name, weight in model.named_parameters():  # biases and norms begin as zeros and ones, which would hide faults
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        weight.data = weight.data.half().float()  # weights that 16 bits hold
    return model


def lean(model: Any, form: str = "float32") -> Llama:
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    assert covers(config) == ""
    return Llama(config, model.state_dict().__getitem__, form=form, positions=2048)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["float32", "float16"])
def test_logits_are_those_of_transformers_in_one_piece_and_in_several(kind: str, form: str) -> None:
    model = made(kind)
    ours = lean(model, form)
    tokens = prompt(90)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
        memory = SlotMemory(ours.memory_shape).values
        whole = ours(tokens, [Segment(memory, 0, 90)], list(range(90)))
        best = expected.topk(20).indices  # of the others, the packed form has the logits of int8 rows

        def same(logits: torch.Tensor, rows: list[int]) -> None:
            kept = best[rows]
            torch.testing.assert_close(logits.gather(1, kept), expected[rows].gather(1, kept), rtol=1e-4, atol=1e-4)

        same(whole, list(range(90)))
        memory = SlotMemory(ours.memory_shape).values
        pieces = [ours(tokens[a:b], [Segment(memory, a, b - a)], [b - a - 1]) for a, b in ((0, 50), (50, 89), (89, 90))]
        same(torch.cat(pieces), [49, 88, 89])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_sequences_that_join_and_leave_at_different_times_get_the_tokens_they_get_alone(kind: str) -> None:
    model = made(kind)
    arrivals = {
        0: [greedy(0, prompt(5), 20), greedy(1, prompt(40, 1), 3)],
        2: [greedy(2, prompt(1, 2), 30)],
        5: [greedy(3, prompt(90, 3), 8), greedy(4, prompt(11, 4), 1)],
        9: [greedy(5, prompt(300, 5), 12)],
        25: [greedy(6, prompt(17, 6), 6)],
    }
    out = run(LeanEngine(lean(model)), arrivals)
    for group in arrivals.values():
        for sequence in group:
            assert out[sequence.id] == alone(model, sequence), sequence.id


@pytest.mark.parametrize("form", ["float32", "float16"])
def test_a_long_prompt_delays_others_by_no_more_than_one_chunk_at_a_time(form: str) -> None:
    model = made("llama")
    engine = LeanEngine(lean(model, form))
    engine.add(greedy(0, prompt(10), 100))
    engine.step(never)
    engine.add(greedy(1, prompt(1500, 1), 5))
    done, steps = 0, 0
    while True:
        picked = dict(engine.step(never))
        assert 0 in picked  # a token of the running one in each step
        computed = len(engine._rows[1].slot.tokens)
        assert computed - done <= 256
        done, steps = computed, steps + 1
        if 1 in picked:
            break
    assert steps >= 6


@pytest.mark.parametrize(("form", "waits"), [("float16", 1), ("float32", 2)])
def test_a_short_prompt_does_not_wait_for_the_long_one_before_it(form: str, waits: int) -> None:
    model = made("llama")
    engine = LeanEngine(lean(model, form))
    long, short = greedy(0, prompt(1500, 1), 2), greedy(1, prompt(60), 2)
    engine.add(long)
    engine.step(never)
    engine.add(short)
    steps, out = 0, []
    while not out:
        out += engine.step(never)
        steps += 1
    assert out == [(1, alone(model, short)[0])]
    assert steps <= waits
    while not any(id_ == 0 for id_, _ in out):
        out += engine.step(never)
        steps += 1
    assert (0, alone(model, long)[0]) in out
    assert steps < 12  # six chunks of its own, half of one given away


def test_a_seeded_sequence_draws_the_same_alone_and_in_company_of_the_lean_engine() -> None:
    model = made("llama")

    def drawn(*others: Sequence) -> list[int]:
        seeded = Sequence(0, prompt(20), 15, Sampler(1.0, seed=7))
        return run(LeanEngine(lean(model, "float16")), {0: [seeded], 3: list(others)})[0]

    assert drawn() == drawn(greedy(1, prompt(70, 1), 9), Sequence(2, prompt(3, 2), 9, Sampler(1.0, seed=8)))


def test_what_was_computed_before_is_used_again_and_changes_nothing() -> None:
    model = made("llama")
    engine = LeanEngine(lean(model))
    first = greedy(0, prompt(200), 20)
    answer = run(engine, {0: [first]})[0]
    second = greedy(1, prompt(200) + answer + prompt(9, 4), 12)  # the next turn of the chat
    engine.add(second)
    tokens = [token for _, token in engine.step(never)]
    assert engine.reused(1) == 219  # all but the last token picked, whose keys nobody had needed
    while len(tokens) < 12:
        tokens += [token for _, token in engine.step(never)]
    assert tokens == alone(model, second)
    engine.remove(1)
    # Two at once on the same beginning: one of them works on a copy.
    both = {0: [greedy(2, prompt(150) + prompt(7, 5), 9), greedy(3, prompt(150) + prompt(8, 6), 9)]}
    out = run(engine, both)
    for sequence in both[0]:
        assert out[sequence.id] == alone(model, sequence)


def test_chats_that_take_turns_and_share_a_system_prompt_compute_only_what_is_new() -> None:
    model = made("llama")
    engine = LeanEngine(lean(model, "float16"), kv_tokens=4000)
    system = prompt(200, 50)
    chats = {0: system + prompt(120, 1), 1: system + prompt(90, 2), 2: system + prompt(60, 3)}
    spent: list[int] = []
    for turn in range(3):
        for chat, said in chats.items():
            sequence = greedy(10 * turn + chat, list(said), 6)
            engine.add(sequence)
            answer = [token for _, token in engine.step(never)]
            spent.append(len(said) - engine.reused(sequence.id))
            while len(answer) < 6:
                answer += [token for _, token in engine.step(never)]
            engine.remove(sequence.id)
            assert answer[:6] == alone(model, sequence)
            said += answer[:6] + prompt(15, turn)
    assert spent[0] == 320
    assert spent[1:3] == [90, 60]  # the system prompt is copied from the first chat
    assert max(spent[3:]) <= 6 + 15 + 1, spent  # each chat's own turns before
    assert sum(len(slot.tokens) for slot in engine._slots) <= 4000


def test_prompts_that_begin_alike_and_come_together_are_computed_once() -> None:
    model = made("llama")
    engine = LeanEngine(lean(model, "float16"))
    computed = []
    inner = engine._compute

    def counting(pieces: Any, *more: Any) -> torch.Tensor:
        computed.append(sum(len(piece) for _, piece in pieces))
        return inner(pieces, *more)

    engine._compute = counting  # type: ignore[method-assign]
    same = [greedy(id_, prompt(200), 1) for id_ in range(5)]
    longer = greedy(5, prompt(200) + prompt(30, 1), 1)
    other = greedy(6, prompt(20, 9), 1)
    out = run(engine, {0: [*same, longer, other]})
    assert sum(computed) <= 200 + 4 + 31 + 20  # and not 1,250
    for each in (*same, longer, other):
        assert out[each.id] == alone(model, each)


def test_who_waits_for_anothers_prompt_goes_on_when_that_one_is_given_up() -> None:
    model = made("llama")
    engine = LeanEngine(lean(model, "float16"))
    engine.add(greedy(0, prompt(1000), 5))
    second = greedy(1, prompt(1000), 1)
    engine.add(second)
    engine.step(never)
    engine.remove(0)
    out: list[tuple[int, int]] = []
    for _ in range(5):
        out += engine.step(never)
    assert out[0] == (1, alone(model, second)[0])


def test_memory_of_ended_sequences_is_given_up_when_others_need_it_the_oldest_first() -> None:
    engine = LeanEngine(lean(made("llama")), kv_tokens=500)
    for id_ in range(4):
        run(engine, {0: [greedy(id_, prompt(150, id_), 4)]})
    kept = [slot.tokens[:150] for slot in engine._slots if slot.tokens]
    assert sorted(kept) == sorted(prompt(150, id_) for id_ in (1, 2, 3))


def test_no_more_slots_are_made_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_engine, "MOST_SLOTS", 3)
    model = made("llama")
    engine = LeanEngine(lean(model))
    for id_ in range(6):
        sequence = greedy(id_, prompt(20 + id_, id_), 3)
        assert run(engine, {0: [sequence]})[id_] == alone(model, sequence)
    assert len(engine._slots) == 3


def test_a_sequence_waits_until_there_is_memory_for_it() -> None:
    model = made("llama")
    engine = LeanEngine(lean(model), kv_tokens=64)
    arrivals = {0: [greedy(0, prompt(40), 10), greedy(1, prompt(30, 1), 10), greedy(2, prompt(100, 2), 5)]}
    out = run(engine, arrivals)
    assert all(out[sequence.id] == alone(model, sequence) for sequence in arrivals[0])


@pytest.mark.parametrize("right", [0, 1, 5, 30, 100])
def test_a_draft_changes_no_token_however_much_of_it_is_right(right: int) -> None:
    model = made("llama")
    plain = alone(model, greedy(0, prompt(20), 100))
    draft = [*plain[:right], (plain[right] + 1) % 97, 5, 6] if right < 100 else plain
    engine = LeanEngine(lean(model))
    engine.add(greedy(0, prompt(20), 100, draft))
    out: list[int] = []
    steps = 0
    while len(out) < 100:
        out += [token for _, token in engine.step(never)]
        steps += 1
    assert out[:100] == plain
    if right >= 30:
        assert steps < 100 - right + 6


@pytest.mark.parametrize("flaw", [0.0, 0.02, 3.0])
def test_a_coarser_copy_drafts_and_changes_no_token_however_often_it_is_wrong(flaw: float) -> None:
    model = made("llama")
    coarse = made("llama")
    with torch.no_grad():
        for weight in coarse.parameters():
            weight.add_(flaw * torch.randn_like(weight))
    first, second = greedy(0, prompt(20), 60), greedy(1, prompt(31, 1), 9)
    expected = [alone(model, each) for each in (first, second)]
    ends = frozenset({expected[0][40]})
    engine = LeanEngine(lean(model, "float16"), drafter=lambda: lean(coarse, "float32"), ends=ends)
    assert engine.preparing is not None
    engine.preparing.start()
    engine.preparing.join()
    engine.add(first)
    engine.add(second)
    out: dict[int, list[int]] = {0: [], 1: []}
    steps = 0
    while len(out[0]) < 60:
        for id_, token in engine.step(never):
            out[id_].append(token)
        if len(out[1]) == 9:
            engine.remove(1)
        steps += 1
    assert [out[0], out[1]] == expected  # nothing beyond the room of either was picked
    assert (steps < 45) == (flaw < 1)


def test_nothing_is_drafted_for_so_many_that_one_pass_serves_them_as_well() -> None:
    drafts = []

    class Drafting(Llama):
        def hidden(self, tokens: list[int], *more: Any) -> torch.Tensor:
            drafts.append(len(tokens))
            return super().hidden(tokens, *more)

    engine = LeanEngine(lean(made("llama")))
    engine._drafter = lean(made("llama"))
    engine._drafter.__class__ = Drafting
    for id_ in range(9):
        engine.add(greedy(id_, prompt(9, id_), 50))
    for _ in range(6):
        engine.step(never)
    assert not drafts
    engine.remove(3)
    engine.step(never)
    assert drafts == [8]


@pytest.mark.parametrize("flaw", [0.0, 0.02])
def test_drawn_tokens_are_drafted_with_the_numbers_that_will_be_drawn(flaw: float) -> None:
    model, coarse = made("llama"), made("llama")
    with torch.no_grad():
        for weight in coarse.parameters():
            weight.add_(flaw * torch.randn_like(weight))

    def asked() -> list[Sequence]:
        return [Sequence(at, prompt(9 + at, at), 40, Sampler(0.9, 0.9, seed=at)) for at in range(3)]

    expected = run(LeanEngine(lean(model, "float16")), {0: asked()})
    engine = LeanEngine(lean(model, "float16"), drafter=lambda: lean(coarse, "float32"))
    assert engine.preparing is not None
    engine.preparing.start()
    engine.preparing.join()
    passes = []
    inner = engine._run

    def counting(pieces: Any, *more: Any) -> torch.Tensor:
        passes.append(len(pieces))
        return inner(pieces, *more)

    engine._run = counting  # type: ignore[method-assign]
    assert run(engine, {0: asked()}) == expected
    assert len(passes) < 32


def test_a_prompt_that_nobody_wants_any_more_is_given_up_between_two_layers() -> None:
    engine = LeanEngine(lean(made("llama"), "float16"))
    engine.add(greedy(0, prompt(200), 5))
    engine.add(greedy(1, prompt(20, 1), 5))
    asked = []

    def gone(id_: int) -> bool:
        asked.append(id_)
        return id_ == 0 and len(asked) > 2

    assert engine.step(gone) == []
    engine.remove(0)
    assert [id_ for id_, _ in engine.step(never)] == [1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gemma3"}, "architecture gemma3"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}, "window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "positions"),
        ({"hidden_act": "gelu"}, "feed-forward"),
    ],
)
def test_what_is_not_covered_is_left_to_transformers(change: dict[str, Any], reason: str) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}
    assert covers(config) == ""
    assert reason in covers(config | change)


def test_a_prompt_is_computed_with_more_threads_than_single_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    engine = LeanEngine(lean(model), prompt_threads=2)
    used, threads = [], torch.get_num_threads()
    forward = Llama.hidden

    def watched(self: Llama, tokens: list[int], *more: Any) -> torch.Tensor:
        used.append((len(tokens), torch.get_num_threads()))
        return forward(self, tokens, *more)

    monkeypatch.setattr(Llama, "hidden", watched)
    torch.set_num_threads(1)
    try:
        engine.add(greedy(0, prompt(100), 2))
        answer = [token for _ in range(2) for _, token in engine.step(never)]
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert used == [(100, 2), (1, 1)]
    assert answer == alone(model, greedy(0, prompt(100), 2))


@pytest.mark.parametrize("start", [0, 50, 370, 440, 500, 1010])
def test_a_row_of_a_few_is_attended_with_the_same_bits_as_alone_where_lengths_change(start: int) -> None:
    """torch 2.13 and MKL cut sums over positions by their number, so each row goes over a number of its own."""
    torch.manual_seed(12)
    sizes = SIZES | {"hidden_size": 192, "head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 1}
    model = lean(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval(), "float16")
    tokens = prompt(start + 40, 3)
    memories = [SlotMemory(model.memory_shape).values for _ in range(2)]
    for memory in memories:
        memory[:, :, :, :start] = torch.randn(memory[:, :, :, :start].shape, generator=torch.manual_seed(1))
    memories[1][:, :, :, start:] = 3.0  # what a wrong draft has left behind
    rows = tokens[start:]
    whole = model(rows, [Segment(memories[0], start, 40)], list(range(40)))
    cuts = [0, 1, 2, 5, 21, 37, 40]
    parts = [model(rows[a:b], [Segment(memories[1], start + a, b - a)], list(range(b - a))) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
