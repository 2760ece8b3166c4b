"""How answers are written: the short way for a plain text says what the long one says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.rpc import chat_answer
from shoal.node.rpc.chat_answer import Whole, completion, plain_completion
from shoal.providers.base import Event, Finish, Logprobs, ReasoningDelta, TextDelta, ToolCallDelta, Usage

counts = st.integers(0, 2**40)
usages = st.builds(Usage, counts, counts, counts, counts)
texts = st.lists(st.text(), max_size=4)
reasons = st.sampled_from(("stop", "length", "content_filter"))


def whole_of(*events: Event) -> Whole:
    whole = Whole()
    whole.take(events)
    return whole


@given(texts, usages, reasons, st.none() | st.text())
def test_a_plain_answer_is_written_the_same_either_way(
    pieces: list[str], usage: Usage, reason: str, model: str | None
) -> None:
    whole = whole_of(*map(TextDelta, pieces), usage, Finish(reason, model))  # type: ignore[arg-type]
    shoal = {"provider": "desk", "route": []}
    assert whole.plain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_answer.time, "time", lambda: 1_800_000_000.5)
        short = plain_completion("chatcmpl-1", model, whole, usage, shoal)
        assert short == completion("chatcmpl-1", model, [whole.choice(0)], usage, shoal, finish=whole.finish)


def test_what_is_more_than_a_text_is_not_plain() -> None:
    text, usage, end = TextDelta("Cold."), Usage(1, 1), Finish("stop")
    assert whole_of(text, usage, end).plain
    assert not whole_of(text, end).plain
    assert not whole_of(text, usage).plain
    assert not whole_of(text, Usage(1, 1, cost=0.1), end).plain
    assert not whole_of(ReasoningDelta("hm"), text, usage, end).plain
    assert not whole_of(ToolCallDelta(0, "a", "f", "{}"), usage, end).plain
    assert not whole_of(text, Logprobs(({"token": "Cold."},)), usage, end).plain
    assert not whole_of(text, usage, Finish("stop", beside={"message": {"refusal": "no"}})).plain
