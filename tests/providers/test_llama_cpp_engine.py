"""The engine on llama.cpp, without llama.cpp: a computer of a few lines keeps the same books and checks every call.

The real library is met in tests/providers_real/test_llama_cpp.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.providers.hf_worker.batch import CHUNK_TOKENS
from shoal.providers.hf_worker.engine import Interrupted, Sequence
from shoal.providers.hf_worker.llama_cpp_engine import LlamaCppEngine, Piece
from shoal.providers.hf_worker.plain_sampling import Logits, PlainSampler

WORDS = 50


def follows(tokens: list[int]) -> int:
    """What this "model" picks after a text: it depends on all of it."""
    value = 7
    for token in tokens:
        value = (value * 31 + token) % 10_007
    return value % WORDS


class BookKeeper:
    """Holds the tokens of each sequence as llama.cpp would, and objects to a call that does not fit them."""

    def __init__(self, positions: int = 4096, *, rewinds: bool = True) -> None:
        self.positions, self.rewinds = positions, rewinds
        self.held: dict[int, list[int]] = {}
        self.computed = 0
        self.calls: list[int] = []
        self.reserved: list[int] = []

    def compute(self, pieces: list[Piece], wanted: list[int], gone: Callable[[], bool] | None = None) -> list[Logits]:
        if gone is not None and gone():
            raise Interrupted
        rows: list[Logits] = []
        for piece in pieces:
            held = self.held.setdefault(piece.sequence, [])
            assert piece.start == len(held), "a piece goes on where the sequence ends"
            for token in piece.tokens:
                held.append(token)
                row = np.zeros(WORDS, dtype=np.float32)
                row[follows(held)] = 1
                rows.append(row)
        self.computed += len(rows)
        self.calls.append(len(rows))
        assert sum(map(len, self.held.values())) <= 2 * self.positions
        return [rows[at] for at in wanted]

    def forget(self, sequence: int, start: int = 0) -> bool:
        if start and not self.rewinds:
            self.held.pop(sequence, None)
            return False
        self.held[sequence] = self.held.get(sequence, [])[:start]
        return True

    def reserve(self, count: int) -> None:
        self.reserved.append(count)
        assert sum(map(len, self.held.values())) <= count

    def copy(self, sequence: int, to: int, count: int) -> None:
        assert not self.held.get(to)
        self.held[to] = self.held[sequence][:count]


def told(tokens: list[int], count: int) -> list[int]:
    """The answer of one that computes nothing twice and forgets nothing."""
    text = list(tokens)
    for _ in range(count):
        text.append(follows(text))
    return text[len(tokens) :]


def sequence(id_: int, tokens: list[int], room: int = 20, draft: list[int] | None = None) -> Sequence:
    return Sequence(id_, tokens, room, PlainSampler(0), draft or [])  # type: ignore[arg-type]


def run(
    engine: LlamaCppEngine, wanted: dict[int, int], answers: dict[int, list[int]] | None = None
) -> dict[int, list[int]]:
    """Step until each has as many tokens as wanted, and take it out then."""
    answers = answers if answers is not None else {}
    for _ in range(2000):
        if not wanted:
            return answers
        for id_, token in engine.step(lambda id_: False):
            answers.setdefault(id_, []).append(token)
            if id_ in wanted and len(answers[id_]) >= wanted[id_]:
                engine.remove(id_)
                del wanted[id_]
    raise AssertionError("it never ended")


def test_sequences_that_come_and_go_get_what_each_would_get_alone() -> None:
    computer = BookKeeper()
    engine = LlamaCppEngine(computer)
    engine.add(sequence(1, [1, 2, 3]))
    first: dict[int, list[int]] = {}
    for _ in range(3):
        for id_, token in engine.step(lambda id_: False):
            first.setdefault(id_, []).append(token)
    engine.add(sequence(2, [1, 2, 9, 9]))
    engine.add(sequence(3, list(range(40)) * 20))
    answers = run(engine, {1: 12, 2: 5, 3: 4}, first)
    assert answers[1][:12] == told([1, 2, 3], 12)
    assert answers[2][:5] == told([1, 2, 9, 9], 5)
    assert answers[3][:4] == told(list(range(40)) * 20, 4)
    assert max(computer.calls) <= CHUNK_TOKENS
    assert not engine.busy


def test_the_second_turn_computes_only_what_is_new() -> None:
    computer = BookKeeper()
    engine = LlamaCppEngine(computer)
    engine.add(sequence(1, list(range(40)) * 10))
    answer = run(engine, {1: 5})[1]
    before = computer.computed
    engine.add(sequence(2, list(range(40)) * 10 + answer[:4] + [3, 3]))
    run(engine, {2: 3})
    assert computer.computed - before < 15


def test_a_beginning_that_somebody_still_uses_is_shared() -> None:
    computer = BookKeeper()
    engine = LlamaCppEngine(computer)
    system = list(range(45)) * 5
    engine.add(sequence(1, [*system, 1]))
    engine.step(lambda id_: False)
    before = computer.computed
    engine.add(sequence(2, [*system, 2]))
    answers = run(engine, {1: 5, 2: 5}, {1: told([*system, 1], 1)})
    assert answers[2][:5] == told([*system, 2], 5)
    assert computer.computed - before < 20


def test_memory_is_asked_for_before_it_is_filled_and_for_no_more_than_runs_and_is_kept() -> None:
    computer = BookKeeper(4096)
    engine = LlamaCppEngine(computer)
    engine.add(sequence(1, [1, 2, 3], room=20))
    run(engine, {1: 5})
    assert computer.reserved == [23]
    engine.add(sequence(2, [9] * 500, room=50))
    run(engine, {2: 5})
    assert 550 <= computer.reserved[-1] <= 550 + 23


@settings(deadline=None)
@given(st.lists(st.integers(0, WORDS - 1), max_size=30), st.integers(0, 30), st.booleans())
def test_a_draft_changes_nothing_but_the_time(draft: list[int], right: int, rewinds: bool) -> None:
    prompt = [4, 5, 6]
    whole = told(prompt, 30)
    engine = LlamaCppEngine(BookKeeper(rewinds=rewinds))
    engine.add(sequence(1, prompt, 40, (whole[:right] + draft) if engine.verifies else []))
    assert run(engine, {1: 25})[1][:25] == whole[:25]


def test_what_cannot_go_back_is_computed_again() -> None:
    engine = LlamaCppEngine(BookKeeper(rewinds=False))
    assert not engine.verifies
    engine.add(sequence(1, [1, 2, 3, 4]))
    run(engine, {1: 5})
    engine.add(sequence(2, [1, 2, 3, 9]))
    assert run(engine, {2: 5})[2][:5] == told([1, 2, 3, 9], 5)


def test_a_prompt_that_nobody_wants_is_given_up_and_the_other_one_is_not() -> None:
    engine = LlamaCppEngine(BookKeeper())
    engine.add(sequence(1, [1] * 100))
    engine.add(sequence(2, [2] * 30))
    assert engine.step(lambda id_: id_ == 1) == []
    engine.remove(1)
    assert run(engine, {2: 3})[2][:3] == told([2] * 30, 3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 30)), max_size=12))
def test_memory_that_is_too_small_for_all_makes_them_wait(work: list[tuple[list[int], int]]) -> None:
    engine = LlamaCppEngine(BookKeeper(positions=128), slots=4)
    wanted = {}
    for id_, (tokens, room) in enumerate(work):
        engine.add(sequence(id_, tokens, room))
        wanted[id_] = room
    answers = run(engine, dict(wanted))
    for id_, (tokens, room) in enumerate(work):
        assert answers[id_][:room] == told(tokens, room)


# -- picking -----------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_draws_again_from_any_place() -> None:
    logits = np.linspace(0, 3, 200, dtype=np.float32)
    whole = PlainSampler(0.9, 0.95, seed=11)
    picks = [whole.pick(logits) for _ in range(20)]
    for cut in (0, 1, 7, 19):
        rest = PlainSampler(0.9, 0.95, seed=11, drawn=cut)
        assert [rest.pick(logits) for _ in range(20 - cut)] == picks[cut:]
    assert len(set(picks)) > 3


def test_greedy_takes_the_likeliest_and_the_nucleus_leaves_out_the_rest() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.1, 0.1], dtype=np.float32))
    assert PlainSampler(0).pick(logits) == 0
    draws = PlainSampler(1.0, 0.75, seed=1)
    assert {draws.pick(logits) for _ in range(200)} == {0, 1}


def test_draws_are_as_likely_as_the_model_says() -> None:
    logits = np.log(np.array([0.2, 0.5, 0.3], dtype=np.float32))
    draws = PlainSampler(1.0, 1.0, seed=3)
    picks = [draws.pick(logits) for _ in range(4000)]
    assert [picks.count(token) / 4000 for token in range(3)] == pytest.approx([0.2, 0.5, 0.3], abs=0.03)
