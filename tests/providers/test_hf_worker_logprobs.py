"""Log probabilities of an answer's tokens, from logits to what is told with each piece of text."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch
from shoal.providers.hf_worker.logprobs import Note, Noting, TokenNotes
from shoal.providers.hf_worker.sampling import Sampler


def test_the_sampler_picks_as_before_and_what_is_noted_sums_to_one() -> None:
    logits = torch.randn(7, generator=torch.Generator().manual_seed(1)).repeat(40, 1)
    plain, noting = Sampler(1.0, seed=3), Noting(Sampler(1.0, seed=3), top=7)
    assert [noting.pick(row) for row in logits] == [plain.pick(row) for row in logits]
    expected = torch.log_softmax(logits[0].double(), -1)
    for note in noting.notes:
        assert note.logprob == pytest.approx(float(expected[note.token]))
        assert sum(math.exp(logprob) for _, logprob in note.top) == pytest.approx(1)
        assert [token for token, _ in note.top] == expected.argsort(descending=True).tolist()


def test_arrays_are_taken_as_tensors_are_and_none_of_the_likeliest_need_be_noted() -> None:
    noting = Noting(Sampler(0.0), top=0)
    assert noting.pick(torch.tensor([0.0, 2.0], dtype=torch.bfloat16)) == 1

    class Likeliest:
        def pick(self, logits: np.ndarray[tuple[int], np.dtype[np.float32]]) -> int:
            return int(logits.argmax())

    arrays = Noting(Likeliest(), top=1)
    assert arrays.pick(np.array([3.0, 1.0], dtype=np.float32)) == 0
    assert arrays.notes[0].top == [(0, pytest.approx(-math.log1p(math.exp(-2))))]
    assert noting.notes[0].top == []


def words(*tokens: int) -> tuple[deque[Note], TokenNotes]:
    notes = deque(Note(token, -0.5, [(token, -0.5), (99, -2.0)]) for token in tokens)
    return notes, TokenNotes(notes, {1: "one", 2: " two", 3: "\ufffd", 4: "ü", 99: "x"}.__getitem__)


def test_a_token_is_told_with_the_first_text_that_it_brought() -> None:
    _, told = words(1, 2, 3, 4)
    told.brought("one")
    assert [each["token"] for each in told.due("on", whole=False)] == ["one"]
    told.brought(" two")
    assert told.due("e", whole=False) == ()
    told.brought("")  # a piece of a character
    told.brought("ü")
    (two, piece, whole) = told.due(" twoü", whole=False)
    assert two == {
        "token": " two",
        "logprob": -0.5,
        "bytes": list(b" two"),
        "top_logprobs": [
            {"token": " two", "logprob": -0.5, "bytes": list(b" two")},
            {"token": "x", "logprob": -2.0, "bytes": [120]},
        ],
    }
    assert piece["bytes"] is None
    assert whole["bytes"] == list("ü".encode())


def test_tokens_of_a_stop_string_are_not_told_and_those_of_a_whole_answer_all_are() -> None:
    _, told = words(1, 2)
    told.brought("one")
    told.brought(" two")
    assert len(told.due("on", whole=False)) == 1
    _, told = words(1, 3)
    told.brought("one")
    told.brought("")
    assert len(told.due("one", whole=True)) == 2


def test_tokens_that_say_nothing_new_are_passed_over() -> None:
    notes, told = words(1, 2)
    told.passed()
    told.brought(" two")
    assert [each["token"] for each in told.due(" two", whole=True)] == [" two"]
    assert not notes
