"""The engines for any device, on small random models: every sequence gets the tokens that transformers' generate gives.

They run here on a CPU; tests/gpu runs the same stories on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from shoal.providers.hf_worker.engine import Interrupted, Sequence, UnfitModelError
from shoal.providers.hf_worker.graph_engine import GraphEngine
from shoal.providers.hf_worker.guard import Guard
from shoal.providers.hf_worker.hf_model import proven
from shoal.providers.hf_worker.paged_engine import PAGE_TOKENS, PagedEngine
from shoal.providers.hf_worker.proof import reference
from shoal.providers.hf_worker.sampling import Sampler
from shoal.providers.hf_worker.slots import SlotEngine

from tests.providers.engine_story import SIZES, STORY, alone, greedy, never, prompt, run


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


Made = Callable[..., Any]


@pytest.fixture(params=["graphs", "paged", "slots"])
def made(request: pytest.FixtureRequest, model: Any) -> Iterator[Made]:
    kinds: dict[str, Any] = {"graphs": GraphEngine, "paged": PagedEngine, "slots": SlotEngine}
    engines: list[Any] = []

    def make(**options: Any) -> Any:
        engines.append(kinds[request.param](model, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def test_sequences_that_join_and_leave_at_different_times_get_the_tokens_they_get_alone(made: Made, model: Any) -> None:
    out = run(made(), STORY)
    for group in STORY.values():
        for sequence in group:
            assert out[sequence.id] == alone(model, sequence)


def test_sequences_without_room_wait_and_are_served(made: Made, model: Any) -> None:
    sequences = [greedy(at, prompt(20, at), 10) for at in range(6)]
    out = run(made(kv_tokens=96), {0: sequences})
    assert out == {each.id: alone(model, each) for each in sequences}


def test_a_cancelled_sequence_costs_nothing_more_wherever_it_was(made: Made, model: Any) -> None:
    engine = made(kv_tokens=2 * (30 + 20 + PAGE_TOKENS))
    for at in range(4):
        engine.add(greedy(at, prompt(30, at), 20))
    engine.step(never)
    engine.step(never)
    for at in (3, 0, 2, 99):  # waiting, running, unknown
        engine.remove(at)
    tokens: list[int] = []
    while engine.busy:
        picked = engine.step(never)
        assert {id_ for id_, _ in picked} <= {1}
        tokens += [token for _, token in picked]
        if len(tokens) >= 18:
            engine.remove(1)
    assert not engine.busy
    again = greedy(7, prompt(30, 2), 12)
    assert run(engine, {0: [again]})[7] == alone(model, again)


def test_a_caller_who_leaves_during_a_long_prompt_is_let_go_within_a_chunk(made: Made, model: Any) -> None:
    engine = made()
    engine.add(greedy(0, prompt(1500), 5))
    engine.step(never)
    assert engine.step(lambda id_: id_ == 0) == []
    engine.remove(0)
    assert not engine.busy
    other = greedy(1, prompt(10), 4)
    assert run(engine, {0: [other]})[1] == alone(model, other)


def test_a_long_prompt_is_computed_in_pieces_between_the_others_tokens(made: Made) -> None:
    engine = made()
    engine.add(greedy(0, prompt(10), 100))
    engine.step(never)
    engine.add(greedy(1, prompt(1500, 1), 5))
    steps = 0
    while True:
        picked = dict(engine.step(never))
        assert 0 in picked, "the running one gets a token in each step"
        steps += 1
        if 1 in picked:
            break
    assert steps >= 6  # 256 tokens at once


def test_a_seed_gives_the_same_tokens_in_any_company_and_in_every_engine(made: Made, model: Any) -> None:
    def seeded() -> Sequence:
        return Sequence(9, prompt(30, 3), 20, Sampler(0.9, 0.95, seed=7))

    engine = made()
    solo = run(engine, {0: [seeded()]})[9]
    others = [greedy(1, prompt(60, 8), 30), greedy(2, prompt(80, 4), 9)]
    assert run(engine, {0: [others[0]], 3: [seeded()], 6: [others[1]]})[9] == solo
    plain = SlotEngine(model)
    assert run(plain, {0: [seeded()]})[9] == solo
    plain.close()


def test_an_answer_taken_up_at_any_token_goes_on_as_the_whole_one(made: Made) -> None:
    engine = made()
    whole = run(engine, {0: [greedy(0, prompt(9), 25)]})[0]
    for cut in (1, 7, 24):
        assert run(engine, {0: [greedy(0, prompt(9) + whole[:cut], 25 - cut)]})[0] == whole[cut:]


@pytest.mark.parametrize("kind", [GraphEngine, PagedEngine])
def test_what_prompts_begin_with_alike_is_not_computed_again(kind: Any, model: Any) -> None:
    engine = kind(model)
    first = greedy(0, prompt(300), 3)
    assert run(engine, {0: [first]})[0] == alone(model, first)
    second = greedy(1, prompt(300) + prompt(20, 5), 3)
    engine.add(second)
    found: list[int] = []
    while engine.busy:
        for _, token in engine.step(never):
            found.append(token)
            if len(found) == 3:
                assert engine.reused(1) >= 288  # whole pages of the 300
                engine.remove(1)
                break
    engine.close()
    assert found == alone(model, second)


def test_a_window_of_attention_is_kept_by_pages_and_left_alone_by_the_graphs() -> None:
    torch.manual_seed(1)
    windowed = transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=8)).eval()
    with pytest.raises(UnfitModelError, match="choose slots"):
        GraphEngine(windowed)
    paged = PagedEngine(windowed)
    sequence = greedy(0, prompt(50), 12)
    assert run(paged, {0: [sequence]})[0] == alone(windowed, sequence)
    paged.close()


def test_a_manager_with_other_parts_is_refused_and_not_met_at_the_first_request(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching.model_runner import ModelRunner

    monkeypatch.delattr(ModelRunner, "_sample")
    with pytest.raises(UnfitModelError, match="cannot batch it by pages"):
        PagedEngine(model)


def odd(kind: str) -> Any:
    """Models whose keys and values are not as Llama's: as wide as each other and all heads alike."""
    torch.manual_seed(1)
    if kind == "gpt2":
        small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "bos_token_id": 1, "eos_token_id": 2}
        made: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=97, initializer_range=0.4, **small))
    elif kind == "stablelm":
        plain = {name: value for name, value in SIZES.items() if name != "head_dim"}
        made = transformers.StableLmForCausalLM(transformers.StableLmConfig(**plain))
    else:
        ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
        small = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "topk_group": 1}
        config = {**SIZES, "num_key_value_heads": 4, "n_group": 1, **ranks, **small}
        del config["head_dim"]
        made = transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**config))
    return made.eval()


@pytest.mark.parametrize(
    ("kind", "fits"), [("gpt2", {"graphs", "paged"}), ("stablelm", {"graphs"}), ("deepseek", set())]
)
def test_an_engine_that_computes_a_model_otherwise_than_the_model_itself_is_found_out_before_it_serves(
    kind: str, fits: set[str]
) -> None:
    odd_one = odd(kind)
    sequence = greedy(0, prompt(20), 8)
    expected, wanted = reference(odd_one), alone(odd_one, sequence)
    found: set[str] = set()
    for name, engine_of in (("graphs", GraphEngine), ("paged", PagedEngine)):
        try:
            engine = proven(engine_of(odd_one), expected)
        except UnfitModelError:
            continue
        found.add(name)
        assert run(engine, {0: [sequence]})[0] == wanted
        engine.close()  # type: ignore[attr-defined]
    assert found == fits
    assert run(SlotEngine(odd_one), {0: [sequence]})[0] == wanted, "and the slots serve"


def test_an_engine_that_answers_something_else_fails_its_proof(model: Any) -> None:
    engine = GraphEngine(model)
    inner = engine._pass

    def wrong(*given: Any) -> torch.Tensor:
        return inner(*given).roll(1, dims=-1)

    engine._pass = wrong  # type: ignore[method-assign]
    with pytest.raises(UnfitModelError, match="no usual keys"):
        proven(engine, reference(model))


# -- graphs --------------------------------------------------------------------------------------------------


class FakeGraphs:
    """Records as CUDA does: what is replayed reads and fills the same tensors, and the shape stays."""

    def __init__(self, *, fails_at: int = 0) -> None:
        self.captured, self.replayed, self._fails_at = 0, 0, fails_at

    def __call__(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        self.captured += 1
        if self.captured == self._fails_at:
            raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")
        result = compute()

        def replay() -> None:
            self.replayed += 1
            result.copy_(compute())

        return replay, result


def test_each_shape_is_captured_once_and_replayed_for_every_token(model: Any) -> None:
    graphs = FakeGraphs()
    engine = GraphEngine(model, record=graphs)
    sequences = [greedy(at, prompt(10 + at, at), 12) for at in range(3)]
    assert run(engine, {0: sequences}) == {each.id: alone(model, each) for each in sequences}
    first = graphs.captured
    assert run(engine, {0: sequences}) == {each.id: alone(model, each) for each in sequences}
    assert graphs.captured == first <= 3  # rows of 1, 2 and 4, one span
    assert graphs.replayed >= 20


def test_a_capture_that_fails_is_told_once_and_decoding_goes_on(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = FakeGraphs(fails_at=2)
    engine = GraphEngine(model, record=graphs)
    out = run(engine, STORY)
    for group in STORY.values():
        for sequence in group:
            assert out[sequence.id] == alone(model, sequence)
    assert engine.graphs_off == "the capture failed (operation not permitted when stream is capturing)"
    assert capsys.readouterr().err.count("decoding without CUDA graphs") == 1
    assert graphs.captured == 2


def test_the_memory_of_ended_sequences_is_given_to_new_ones(model: Any) -> None:
    engine = GraphEngine(model, kv_tokens=400)
    for at in range(6):
        sequence = greedy(at, prompt(150, at), 6)
        assert run(engine, {0: [sequence]})[at] == alone(model, sequence)
    assert len(engine._free) + sum(len(slot.places) for slot in engine._slots) == 400


def test_a_known_text_is_checked_in_one_pass_and_a_wrong_one_changes_nothing(model: Any) -> None:
    engine = GraphEngine(model)
    whole = run(engine, {0: [greedy(0, prompt(9), 25)]})[0]
    wrong = [*whole[:5], (whole[5] + 1) % 97, *whole[6:20]]
    for draft in (whole, wrong):
        engine.add(Sequence(3, prompt(9), 25, Sampler(0.0), draft=list(draft)))
        picked: list[int] = []
        steps = 0
        while len(picked) < 25:
            picked += [token for _, token in engine.step(never)]
            steps += 1
        engine.remove(3)
        assert picked[:25] == whole
        assert steps <= (2 if draft is whole else 22)


# -- memory --------------------------------------------------------------------------------------------------


class Leaky:
    """An engine whose device runs out of memory at some steps, or whenever more than so many positions are wanted."""

    def __init__(self, inner: Any, kv_tokens: int, faults: set[int], steps: list[int]) -> None:
        self._inner, self.kv_tokens, self._faults, self._steps = inner, kv_tokens, faults, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        self._steps.append(self.kv_tokens)
        picked: list[tuple[int, int]] = self._inner.step(gone)
        if len(self._steps) in self._faults:  # after the samplers have drawn
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return picked


@pytest.mark.parametrize("kind", [GraphEngine, PagedEngine, SlotEngine])
def test_when_memory_runs_out_the_batch_shrinks_and_nobodys_answer_changes(kind: Any, model: Any) -> None:
    steps: list[int] = []
    guard = Guard(lambda count: Leaky(kind(model, kv_tokens=count), count, {2, 7, 20}, steps), kv_tokens=4096)

    def sequences() -> list[Sequence]:
        some = [greedy(at, prompt(20 + 30 * at, at), 15) for at in range(4)]
        return [*some, *(Sequence(9 + at, prompt(30, at), 15, Sampler(0.9, 0.95, seed=7)) for at in range(3))]

    plain = SlotEngine(model)
    expected = run(plain, {0: sequences()})
    plain.close()
    assert run(guard, {0: sequences()}) == expected
    assert guard.kv_tokens < 4096
    assert sorted(steps, reverse=True) == steps, "it shrinks, and never grows"
    guard._give_up()


def test_a_request_that_finds_no_memory_alone_is_refused_with_figures_and_the_others_stay(model: Any) -> None:
    from shoal.providers.hf_worker.engine import NoRoomError

    class Small(Leaky):
        def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
            if any(len(row.sequence.tokens) > 1000 for row in self._inner._rows.values()):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step(gone)

    guard = Guard(lambda count: Small(GraphEngine(model, kv_tokens=count), count, set(), []), kv_tokens=4096)
    large, small = greedy(0, prompt(1200), 100), greedy(1, prompt(20), 12)
    guard.add(large)
    guard.add(small)
    picked: list[int] = []
    refusals: list[NoRoomError] = []
    while len(picked) < 12:
        try:
            picked += [token for id_, token in guard.step(never) if id_ == 1]
        except NoRoomError as fault:
            refusals.append(fault)
    assert picked == alone(model, small)
    assert [fault.id for fault in refusals] == [0]
    assert "1300 positions" in refusals[0].message
    assert "1024 on cpu" in refusals[0].message or "1312 on cpu" in refusals[0].message
    guard.remove(1)
    assert not guard.busy


def test_an_engine_for_which_there_is_no_memory_is_made_smaller(model: Any) -> None:
    asked: list[int] = []

    def make(count: int) -> Any:
        asked.append(count)
        if count > 3000:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)")
        return SlotEngine(model, kv_tokens=count)

    guard = Guard(make, kv_tokens=10_000)
    assert asked == [10_000, 5000, 2500]
    assert guard.kv_tokens == 2500


def test_other_faults_of_an_engine_are_not_taken_for_a_lack_of_memory(model: Any) -> None:
    class Broken(Leaky):
        def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
            raise RuntimeError("CUDA error: device-side assert triggered")

    guard = Guard(lambda count: Broken(SlotEngine(model), count, set(), []), kv_tokens=4096)
    guard.add(greedy(0, prompt(5), 3))
    with pytest.raises(RuntimeError, match="assert"):
        guard.step(never)


def test_a_pass_that_was_given_up_takes_no_memory(model: Any) -> None:
    engine = GraphEngine(model, kv_tokens=500)

    def gives_up(_: Any, __: Any, ___: Any) -> Any:
        raise Interrupted

    engine.add(greedy(0, prompt(100), 5))
    engine._pass = gives_up  # type: ignore[method-assign]
    assert engine.step(never) == []
    assert len(engine._free) == 500
