"""Stop strings, wherever the pieces of text are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from shoal.providers.hf_worker.stops import StopFilter

LETTERS = st.text("ab\n", max_size=30)


@given(LETTERS, st.lists(st.text("ab\n", max_size=4), max_size=3), st.lists(st.integers(0, 30)))
def test_the_text_ends_before_the_stop_string_that_is_whole_first_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    keeper = StopFilter(stops)
    out = "".join(keeper.push(text[a:b]) for a, b in itertools.pairwise(places))
    found = [(at + len(stop), at) for stop in stops if stop and (at := text.find(stop)) >= 0]
    if found:
        assert keeper.stopped
        assert out == text[: min(found)[1]]
    else:
        assert not keeper.stopped
        assert out + keeper.flush() == text


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    keeper = StopFilter(["END"])
    assert [keeper.push(piece) for piece in ("so E", "N", "d. E", "ND x")] == ["so ", "", "ENd. ", ""]
    assert keeper.stopped
    assert keeper.push("more") == keeper.flush() == ""
