"""Tokens to text piece by piece: the pieces joined are the whole text, and no character is ever torn."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from shoal.providers.hf_worker.detokenizer import REPLACEMENT, Detokenizer

TEXT = st.text(st.sampled_from("aé中🎉 ñ👩‍👩‍👧") | st.characters(codec="utf-8"), max_size=40)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut into tokens at some places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def decoder(vocabulary: list[bytes]):  # type: ignore[no-untyped-def]
    return lambda tokens: b"".join(vocabulary[token] for token in tokens).decode(errors="replace")


@given(TEXT, st.lists(st.integers(0, 10_000)))
def test_the_pieces_joined_are_the_text_wherever_tokens_are_cut(text: str, cuts: list[int]) -> None:
    vocabulary = pieces(text.encode(), cuts)
    detokenizer = Detokenizer(decoder(vocabulary))
    shown = "".join(detokenizer.push(token) for token in range(len(vocabulary)))
    assert shown == text or shown + REPLACEMENT == text  # a last one might still have become something else


@given(TEXT.filter(lambda text: REPLACEMENT not in text))
def test_a_character_in_four_tokens_never_shows_as_a_replacement(text: str) -> None:
    vocabulary = [bytes([byte]) for byte in text.encode()]
    detokenizer = Detokenizer(decoder(vocabulary))
    shown = [detokenizer.push(token) for token in range(len(vocabulary))]
    assert REPLACEMENT not in "".join(shown)
    assert "".join(shown) == text


def test_a_cut_character_at_the_end_is_kept_back() -> None:
    vocabulary = [b"so ", "🎉".encode()[:2]]
    detokenizer = Detokenizer(decoder(vocabulary))
    assert [detokenizer.push(0), detokenizer.push(1)] == ["so ", ""]


def test_a_replacement_character_that_the_model_wrote_comes_with_the_next_token() -> None:
    vocabulary = [REPLACEMENT.encode(), b"a"]
    detokenizer = Detokenizer(decoder(vocabulary))
    assert [detokenizer.push(0), detokenizer.push(1)] == ["", REPLACEMENT + "a"]


def test_bytes_that_are_no_text_come_as_replacements_and_cost_no_more_and_more() -> None:
    longest = 0

    def decode(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return b"".join(b"\x80" for _ in tokens).decode(errors="replace")

    detokenizer = Detokenizer(decode)
    shown = "".join(detokenizer.push(0) for _ in range(1000))
    assert len(shown) >= 990
    assert longest < 100


def test_a_continued_text_keeps_the_blank_that_its_first_token_begins_with() -> None:
    def decode(tokens: list[int]) -> str:  # as sentencepiece: the first token's blank is dropped
        return "".join([" one", " two", " three"][token] for token in tokens).lstrip()

    assert Detokenizer(decode, [0]).push(1) == " two"
    assert Detokenizer(decode).push(1) == "two"
