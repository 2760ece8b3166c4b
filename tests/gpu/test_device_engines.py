"""The three engines on a real device: transformers' generate is the oracle, in fp32, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from shoal.providers.hf_worker.device import free_bytes
from shoal.providers.hf_worker.engine import NoRoomError, Sequence
from shoal.providers.hf_worker.graph_engine import CudaGraphs, GraphEngine
from shoal.providers.hf_worker.guard import Guard
from shoal.providers.hf_worker.paged_engine import PagedEngine
from shoal.providers.hf_worker.sampling import Sampler
from shoal.providers.hf_worker.slots import SlotEngine

from tests.providers.engine_story import SIZES, STORY, alone, greedy, never, prompt, run

pytestmark = pytest.mark.gpu

Made = Callable[..., Any]


@pytest.fixture(scope="module")
def model(device: str) -> Any:
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval().to(device)


@pytest.fixture(params=["graphs", "paged", "slots"])
def made(request: pytest.FixtureRequest, model: Any, device: str) -> Iterator[Made]:
    engines: list[Any] = []

    def make(**options: Any) -> Any:
        if request.param == "graphs":
            engine: Any = GraphEngine(model, record=CudaGraphs() if device.startswith("cuda") else None, **options)
        else:
            engine = (PagedEngine if request.param == "paged" else SlotEngine)(model, **options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def test_sequences_that_join_and_leave_get_the_tokens_that_generate_gives_them(made: Made, model: Any) -> None:
    out = run(made(), STORY)
    for group in STORY.values():
        for sequence in group:
            assert out[sequence.id] == alone(model, sequence)


def test_sixty_four_streams_run_together(made: Made, model: Any) -> None:
    sequences = [greedy(at, prompt(10 + at, at), 8) for at in range(64)]
    out = run(made(), {0: sequences})
    for sequence in sequences[::9]:
        assert out[sequence.id] == alone(model, sequence)


def test_a_seed_draws_the_same_in_company_and_alone(made: Made) -> None:
    def seeded() -> Sequence:
        return Sequence(9, prompt(30, 3), 20, Sampler(0.9, 0.95, seed=7))

    engine = made()
    solo = run(engine, {0: [seeded()]})[9]
    assert run(engine, {0: [greedy(1, prompt(60, 8), 30)], 3: [seeded()]})[9] == solo


def test_a_cancelled_sequence_leaves_within_one_step(made: Made) -> None:
    engine = made()
    for at in range(3):
        engine.add(greedy(at, prompt(30, at), 20))
    while len({id_ for id_, _ in engine.step(never)}) < 3:
        pass
    engine.remove(1)
    assert {id_ for id_, _ in engine.step(never)} == {0, 2}


def test_the_decode_step_is_recorded_and_replayed(cuda: str, model: Any) -> None:
    engine = GraphEngine(model, record=CudaGraphs())
    sequences = [greedy(at, prompt(20, at), 30) for at in range(3)]
    assert run(engine, {0: sequences}) == {each.id: alone(model, each) for each in sequences}
    assert engine.graphs_off == ""
    assert engine._graphs, "a graph was captured"
    engine.close()


def test_an_engine_larger_than_the_device_is_made_smaller(cuda: str, model: Any) -> None:
    free = free_bytes(cuda)
    assert free is not None
    each = 2 * 2 * 2 * 8 * 4  # bytes of one position of this model
    guard = Guard(lambda count: GraphEngine(model, kv_tokens=count), kv_tokens=2 * free // each, device=cuda)
    assert guard.kv_tokens < free // each
    sequence = greedy(0, prompt(30), 10)
    assert run(guard, {0: [sequence]})[0] == alone(model, sequence)
    guard._give_up()


def test_a_pass_that_finds_no_memory_shrinks_the_batch_or_refuses_with_figures(cuda: str, model: Any) -> None:
    guard = Guard(lambda count: SlotEngine(model, kv_tokens=count), kv_tokens=65_536, device=cuda)
    total = torch.cuda.get_device_properties(cuda).total_memory
    used = torch.cuda.memory_reserved(cuda)
    torch.cuda.set_per_process_memory_fraction((used + 24 * 2**20) / total, cuda)
    said: list[str] = []
    try:
        for at in range(48):
            guard.add(greedy(at, prompt(1000, at), 40))
        done: dict[int, int] = {}
        for _ in range(20_000):
            if not guard.busy:
                break
            try:
                for id_, _ in guard.step(never):
                    done[id_] = done.get(id_, 0) + 1
                    if done[id_] == 40:
                        guard.remove(id_)
            except NoRoomError as fault:
                said.append(fault.message)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
        guard._give_up()
    assert guard.kv_tokens < 65_536, "memory did run out"
    assert sum(count == 40 for count in done.values()) + len(said) == 48
    assert all("MB are free" in each for each in said)
