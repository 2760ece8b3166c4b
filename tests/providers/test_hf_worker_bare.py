"""Bare text at the worker: to tokens without a template, gaps, and log probabilities of what was given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shoal.providers.base import Completion, ErrorKind, GenerateRequest
from shoal.providers.hf_worker.logprobs import Noting, Reading
from shoal.providers.hf_worker.prompt import GAPS, Prompter, PromptRefused

BEGIN = 1


class Coder:
    """One token per character, a mark at the beginning of a text, and control tokens for filling in the middle."""

    size = 1000
    all_special_tokens = ("<end>",)

    def __init__(self, gap: tuple[str, str, str] | None) -> None:
        words = ("<end>", "<s>", *(gap or ()))
        self.added_tokens_decoder = {at: SimpleNamespace(content=word, special=True) for at, word in enumerate(words)}

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*([BEGIN] if add_special_tokens else []), *map(ord, text)]

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> str:
        raise AssertionError("bare text has no template")


def tokens_of(completion: Completion, *, gap: tuple[str, str, str] | None = None, context: int = 100) -> list[int]:
    request = GenerateRequest(messages=(), completion=completion)
    return Prompter(Coder(gap), "coder", context).prompt(request).messages


def text(value: str) -> list[int]:
    return list(map(ord, value))


def test_a_text_goes_to_the_model_as_it_stands_behind_what_every_text_begins_with() -> None:
    assert tokens_of(Completion("  x = 1\n")) == [BEGIN, *text("  x = 1\n")]


def test_control_tokens_in_a_text_are_blanks_and_as_ids_they_are_the_callers() -> None:
    assert tokens_of(Completion("a<end>b<s>")) == [BEGIN, *text("a b ")]
    assert tokens_of(Completion((1, 97, 0))) == [1, 97, 0]


@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_is_asked_for_in_the_models_own_words(gap: tuple[str, str, str]) -> None:
    found = tokens_of(Completion("ab", suffix="yz"), gap=gap)
    assert found == [BEGIN, 2, *text("ab"), 3, *text("yz"), 4]


def test_a_text_cannot_open_a_gap_of_its_own() -> None:
    gap = GAPS[0]
    found = tokens_of(Completion("a" + gap[1] + "b", suffix=gap[2] + "z"), gap=gap)
    assert found == [BEGIN, 2, *text("a b"), 3, *text(" z"), 4]


@pytest.mark.parametrize(
    ("completion", "kind", "word"),
    [
        (Completion("a", suffix="b"), ErrorKind.UNSUPPORTED, "suffix"),
        (Completion((1000,)), ErrorKind.BAD_REQUEST, "below 1000"),
        (Completion("a" * 200), ErrorKind.CONTEXT_LENGTH, "200 characters"),
        (Completion((5,) * 100), ErrorKind.CONTEXT_LENGTH, "100 tokens"),
        (Completion(()), ErrorKind.BAD_REQUEST, "empty"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(completion: Completion, kind: ErrorKind, word: str) -> None:
    with pytest.raises(PromptRefused) as caught:
        tokens_of(completion)
    assert caught.value.kind is kind
    assert word in caught.value.message
    assert "aaaa" not in caught.value.message


def test_what_is_known_is_picked_as_it_is_and_noted_by_how_likely_it_was() -> None:
    class Likeliest:
        def pick(self, logits: Any) -> int:
            return int(logits.argmax())

    picks = Noting(Reading([2, 0], Likeliest()), top=1)
    row = np.array([1.0, 3.0, 2.0])
    assert [picks.pick(row) for _ in range(3)] == [2, 0, 1]
    whole = np.log(np.exp(row).sum())
    assert [note.logprob for note in picks.notes] == pytest.approx([2 - whole, 1 - whole, 3 - whole])
    assert [note.top[0][0] for note in picks.notes] == [1, 1, 1]
