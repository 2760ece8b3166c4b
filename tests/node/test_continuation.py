"""Going on with an answer that broke off: every cut point, every way of going on, and each character once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from shoal.node.routing.continuation import Continuation, Diverged, Plan, Way, prefixed
from shoal.providers.base import Event, Finish, GenerateRequest, ReasoningDelta, TextDelta, ToolCallDelta, Usage

SURE = GenerateRequest.of("What is the opposite of hot?", temperature=0.0)
SAMPLED = GenerateRequest.of("What is the opposite of hot?", temperature=0.7)
WITH_TOOLS = replace(SURE, tools=({"type": "function", "function": {"name": "f"}},))
STOP = Finish("stop", "m1")

texts = st.text(
    alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé漢🐟\n\r ")), min_size=1, max_size=60
)


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    """The text in pieces, cut at these places."""
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def hear(continuation: Continuation, plan: Plan, events: Sequence[Event], model: str = "m1") -> list[Event]:
    """What the caller gets of one attempt."""
    splice = continuation.begin(plan, model)
    got: list[Event] = []
    for event in events:
        for passed in (event,) if splice is None else splice.take(event):
            if continuation.said.add(passed):
                got.append(passed)
    return got


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def planned(continuation: Continuation, *, continues: bool = False, model: str | None = "m1") -> Plan:
    plan = continuation.plan(continues=continues, model=model)
    assert isinstance(plan, Plan), plan
    return plan


attempts = st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.lists(st.integers(0, 60), max_size=6)), max_size=5)


@given(texts, attempts, st.lists(st.integers(0, 60), max_size=6))
def test_wherever_it_breaks_off_and_however_it_goes_on_each_character_comes_once(
    text: str, broken: list[tuple[int, bool, list[int]]], cuts: list[int]
) -> None:
    continuation, got = Continuation(SURE), []
    for length, continues, chunks in [*broken, (len(text), False, cuts)]:
        plan = planned(continuation, continues=continues)
        whole = text.removeprefix(plan.prefix) if plan.prefix else text
        reach = len(text) if (length, chunks) == (len(text), cuts) else length
        written = whole[: max(0, reach - len(plan.prefix))]
        got += hear(continuation, plan, [TextDelta(piece) for piece in pieces(written, chunks) if piece])
        assert text.startswith(text_of(got))
    plan = planned(continuation, continues=True)
    rest = text[len(text_of(got)) :]
    got += hear(continuation, plan, [*([TextDelta(rest)] if rest else []), STOP])
    assert text_of(got) == text
    assert continuation.said.text == text


@given(texts, st.integers(0, 60), st.lists(st.integers(0, 60)), st.lists(st.integers(0, 60)))
def test_a_replay_skips_exactly_what_the_caller_has_however_both_were_cut(
    text: str, at: int, first: list[int], second: list[int]
) -> None:
    continuation = Continuation(SURE)
    said = text[: at % (len(text) + 1)]
    got = hear(continuation, planned(continuation), [TextDelta(piece) for piece in pieces(said, first) if piece])
    plan = planned(continuation)
    assert plan.way is (Way.REPLAY if said else Way.FRESH)
    got += hear(continuation, plan, [*(TextDelta(p) for p in pieces(text, second) if p), STOP])
    assert text_of(got) == text
    assert not continuation.pieced, "who ended it wrote all of it"


@given(texts, texts, st.integers(1, 60), st.lists(st.integers(0, 60)))
def test_a_replay_that_says_something_else_is_given_up_before_a_wrong_character(
    text: str, other: str, at: int, cuts: list[int]
) -> None:
    continuation = Continuation(SURE)
    said = text[: 1 + at % len(text)]
    got = hear(continuation, planned(continuation), [TextDelta(said)])
    splice = continuation.begin(planned(continuation), "m1")
    assert splice is not None
    events = [*(TextDelta(p) for p in pieces(other, cuts) if p), STOP]
    try:
        got += [passed for event in events for passed in splice.take(event)]
    except Diverged:
        assert not other.startswith(said)
    else:
        assert other.startswith(said)
    assert text_of(got) in (said, other)


def broken_after(request: GenerateRequest, *events: Event, model: str | None = "m1") -> Continuation:
    continuation = Continuation(request)
    hear(continuation, planned(continuation), events, model or "")
    continuation.model = model
    return continuation


def test_a_provider_that_continues_gets_the_text_so_far() -> None:
    continuation = broken_after(SAMPLED, TextDelta("Co"))
    plan = planned(continuation, continues=True, model="another")
    assert plan == Plan(Way.PREFIX, prefix="Co")
    assert prefixed(SAMPLED, plan).prefix == "Co"
    hear(continuation, plan, [TextDelta("ld."), STOP], "another")
    assert continuation.pieced, "a text of two hands is nobody's to sign"


def test_a_forwarded_request_with_a_prefix_is_continued_or_replayed_from_all_of_it() -> None:
    request = replace(SURE, prefix="Co", model="m1")
    assert planned(Continuation(request), continues=True) == Plan(Way.PREFIX, prefix="Co")
    assert planned(Continuation(request)) == Plan(Way.REPLAY, skip="Co")
    assert prefixed(request, Plan(Way.REPLAY, skip="Co")).prefix == ""
    continuation = broken_after(replace(request, prefix=""), TextDelta("Col"))
    assert planned(continuation, continues=True).prefix == "Col"


@pytest.mark.parametrize(
    ("request_", "model", "words"),
    [(SAMPLED, "m2", "another model"), (SURE, "m2", "another model"), (SURE, None, "another model")],
)
def test_without_a_prefix_only_the_same_model_goes_on(request_: GenerateRequest, model: str | None, words: str) -> None:
    why = broken_after(request_, TextDelta("Co")).plan(continues=False, model=model)
    assert isinstance(why, str)
    assert words in why


def test_a_seed_makes_it_a_fixed_choice_and_without_one_a_replay_is_not_sure() -> None:
    continuation = broken_after(replace(SAMPLED, seed=7), TextDelta("Co"))
    assert planned(continuation) == Plan(Way.REPLAY, skip="Co")
    assert planned(broken_after(SAMPLED, TextDelta("Co"))) == Plan(Way.REPLAY, skip="Co", sure=False)


def test_an_unknown_first_model_is_nobodys_equal() -> None:
    assert isinstance(broken_after(SURE, TextDelta("Co"), model=None).plan(continues=False, model=None), str)


@pytest.mark.parametrize("continues", [True, False])
def test_with_tools_in_play_nobody_goes_on(continues: bool) -> None:
    for continuation in (
        broken_after(WITH_TOOLS, TextDelta("Co")),
        broken_after(SURE, ToolCallDelta(0, "id", "f", "{")),
        broken_after(WITH_TOOLS, ReasoningDelta("hm")),
    ):
        assert "tools" in str(continuation.plan(continues=continues, model="m1"))


def test_offering_tools_is_no_hindrance_before_anything_was_said() -> None:
    assert planned(Continuation(WITH_TOOLS)).way is Way.FRESH


def test_a_structured_answer_is_not_continued_in_the_middle_of_its_grammar() -> None:
    request = replace(SURE, response_format={"type": "json_object"})
    assert planned(broken_after(request, TextDelta('{"a"')), continues=True).way is Way.REPLAY


def test_after_thoughts_alone_it_starts_again_and_says_so_in_a_thought() -> None:
    continuation = broken_after(SAMPLED, ReasoningDelta("First I think."))
    plan = planned(continuation, model="another")
    assert plan.way is Way.RESTART
    got = hear(continuation, plan, [ReasoningDelta("I think anew."), TextDelta("Cold."), STOP], "another")
    assert isinstance(got[0], ReasoningDelta)
    assert "starts again" in got[0].text
    assert text_of(got) == "Cold."


def test_thoughts_that_come_again_with_a_continued_text_are_not_told_twice() -> None:
    continuation = broken_after(SURE, ReasoningDelta("hm"), TextDelta("Co"))
    got = hear(continuation, planned(continuation), [ReasoningDelta("hm"), TextDelta("Cold."), STOP])
    assert got == [TextDelta("ld.")]


@pytest.mark.parametrize("event", [Finish("stop"), ToolCallDelta(0, "id", "f", "{}")])
def test_a_replay_that_ends_or_acts_before_the_text_so_far_is_given_up(event: Event) -> None:
    continuation = broken_after(SURE, TextDelta("Cold"))
    splice = continuation.begin(planned(continuation), "m1")
    assert splice is not None
    splice.take(TextDelta("Co"))
    with pytest.raises(Diverged):
        splice.take(event)


def test_usage_counts_what_was_paid_for_in_every_attempt() -> None:
    continuation = broken_after(SURE, TextDelta("Co"), TextDelta("l"))
    continuation.broke_off(2)
    hear(continuation, planned(continuation), [TextDelta("Cold."), Usage(9, 3, cost=0.5), STOP])
    assert continuation.usage() == Usage(18, 5, cost=0.5)


def test_usage_that_a_broken_attempt_has_counted_is_taken_as_counted() -> None:
    continuation = broken_after(SURE, TextDelta("Co"), Usage(8, 1, 4, 0, 0.25))
    continuation.broke_off(1)
    hear(continuation, planned(continuation), [TextDelta("Cold."), Usage(9, 3, cost=0.5), STOP])
    assert continuation.usage() == Usage(17, 4, 4, 0, 0.75)


def test_where_nobody_counted_nothing_is_claimed() -> None:
    continuation = broken_after(SURE, TextDelta("Co"))
    continuation.broke_off(1)
    hear(continuation, planned(continuation), [TextDelta("Cold."), STOP])
    assert continuation.usage() is None
