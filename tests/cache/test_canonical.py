"""The canonical form: what is part of it, what is not, and what cannot be said in it."""

from __future__ import annotations

import math
from typing import Any

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from shoal.cache.canonical import CanonicalError, canonical_bytes, why_not_cacheable
from shoal.providers.base import (
    Completion,
    Embed,
    FunctionCall,
    GenerateRequest,
    ImagePart,
    ImageUrl,
    Message,
    TextPart,
    ToolCall,
)

from .answers import ask

text = st.text(max_size=30)
number = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text), min_size=1, max_size=4)
requests = st.builds(
    GenerateRequest,
    messages=messages.map(tuple),
    model=st.none() | text,
    provider=st.none() | text,
    max_tokens=st.none() | st.integers(1, 10**6),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    stop=st.lists(text, max_size=3).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    response_format=st.none() | st.dictionaries(text, json, max_size=3),
    extra=st.dictionaries(text, json, max_size=3),
)


@given(requests)
def test_the_form_is_strict_dag_cbor_and_the_same_every_time(request_: GenerateRequest) -> None:
    data = canonical_bytes(request_)
    assert canonical_bytes(request_) == data
    assert cbrrr.encode_dag_cbor(cbrrr.decode_dag_cbor(data)) == data


@given(requests, requests)
def test_two_requests_share_a_form_only_when_they_ask_the_same(one: GenerateRequest, other: GenerateRequest) -> None:
    same_text = [m.content for m in one.messages] == [m.content for m in other.messages]
    if not same_text or one.model != other.model or one.seed != other.seed:
        assert canonical_bytes(one) != canonical_bytes(other)


@given(requests)
def test_the_order_of_extra_fields_and_of_stops_does_not_matter(request_: GenerateRequest) -> None:
    turned = replace(
        request_, extra=dict(reversed(request_.extra.items())), stop=tuple(reversed(request_.stop)) + request_.stop[:1]
    )
    assert canonical_bytes(turned) == canonical_bytes(request_)


DIFFERENCES: dict[str, Any] = {
    "model": "m",
    "provider": "openrouter",
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "stop": ("\n",),
    "seed": 7,
    "n": 2,
    "response_format": {"type": "json_object"},
    "extra": {"frequency_penalty": 0.5},
    "prefix": "Co",
    "tools": ({"type": "function", "function": {"name": "f"}},),
    "tool_choice": "auto",
    "embed": Embed(("Hello",)),
    "completion": Completion("What is the opposite of hot?"),
    "messages": (Message("system", "What is the opposite of hot?"),),
}


def test_every_field_of_a_request_is_tried_here() -> None:
    assert set(DIFFERENCES) == set(GenerateRequest.__struct_fields__)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_option_that_can_change_the_answer_changes_the_form(name: str) -> None:
    assert canonical_bytes(replace(ask(), **{name: DIFFERENCES[name]})) != canonical_bytes(ask())


@pytest.mark.parametrize(
    "message",
    [
        Message("user", "Hello", name="ann"),
        Message("user", (TextPart("Hel"), TextPart("lo"))),
        Message("user", (TextPart("Hello"), ImagePart(ImageUrl("data:image/png;base64,AAAA")))),
        Message("user", (TextPart("Hello"), ImagePart(ImageUrl("data:image/png;base64,AAAA", "low")))),
        Message("user", "Hello", tool_calls=(ToolCall("1", FunctionCall("f", "{}")),)),
        Message("user", "Hello", tool_call_id="1"),
        Message("user", None),
        Message("user", ""),
        Message("developer", "Hello"),
    ],
)
def test_every_part_of_a_message_changes_the_form(message: Message) -> None:
    assert canonical_bytes(GenerateRequest(messages=(message,))) != canonical_bytes(GenerateRequest.of("Hello"))


@pytest.mark.parametrize(
    "completion",
    [
        Completion("Hell"),
        Completion((1, 2)),
        Completion("Hello", suffix="!"),
        Completion("Hello", echo=True),
        Completion("Hello", best_of=2),
    ],
)
def test_every_part_of_a_completion_changes_the_form(completion: Completion) -> None:
    plain = GenerateRequest.of("Hello", completion=Completion("Hello"))
    assert canonical_bytes(GenerateRequest.of("Hello", completion=completion)) != canonical_bytes(plain)


def test_what_a_chat_could_do_is_no_part_of_a_completion() -> None:
    bare = GenerateRequest(messages=(), completion=Completion("Hello"))
    assert canonical_bytes(bare) == canonical_bytes(GenerateRequest.of("Hello", completion=Completion("Hello")))


def test_a_text_alone_and_as_a_single_part_are_the_same() -> None:
    parts = GenerateRequest(messages=(Message("user", (TextPart("Hello"),)),))
    assert canonical_bytes(parts) == canonical_bytes(GenerateRequest.of("Hello"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": -0.0}, {"temperature": 0}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"extra": {"presence_penalty": 1}}, {"extra": {"presence_penalty": 1.0}}),
        ({"extra": {"a": (1, 2)}}, {"extra": {"a": [1.0, 2.0]}}),
        ({"extra": {"a": None}}, {}),
        ({"extra": {"user": "u1", "metadata": {"x": 1}, "timeout": 5}}, {"extra": {"user": "u2"}}),
    ],
)
def test_two_spellings_of_one_request_have_one_form(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert canonical_bytes(GenerateRequest.of("x", **one)) == canonical_bytes(GenerateRequest.of("x", **other))


def test_integers_that_a_float_cannot_hold_stay_apart() -> None:
    one, other = (ask(extra={"k": 2**53 + n}) for n in (1, 2))
    assert canonical_bytes(one) != canonical_bytes(other)


def test_none_is_not_the_text_none() -> None:
    assert canonical_bytes(GenerateRequest.of("x", model="None")) != canonical_bytes(GenerateRequest.of("x"))


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"seed": 2**64},
        {"seed": -(2**64) - 1},
        {"extra": {"k": 2**70}},
        {"extra": {"k": math.nan}},
        {"extra": {"k": object()}},
        {"extra": {"k": {1: 2}}},
        {"extra": {"k": deep(100)}},
        {"extra": {"k": deep(100_000)}},
        {"response_format": {"k": "\ud800"}},
        {"stop": ("\ud800",)},
    ],
)
def test_what_dag_cbor_cannot_hold_is_a_typed_error_without_the_prompt(bad: dict[str, Any]) -> None:
    with pytest.raises(CanonicalError) as caught:
        canonical_bytes(GenerateRequest.of("a secret question", **bad))
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None  # a UnicodeEncodeError would carry the whole text


def test_broken_unicode_in_a_prompt_is_a_typed_error() -> None:
    with pytest.raises(CanonicalError):
        canonical_bytes(GenerateRequest.of("half \ud800"))


# -- what may be cached ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        ask(temperature=None),
        ask(temperature=0),
        ask(temperature=0.7, seed=1),
        ask(max_tokens=5, stop=("x",)),
        GenerateRequest(
            messages=(Message("user", (TextPart("x"), ImagePart(ImageUrl("data:image/png;base64,AAAA")))),)
        ),
    ],
)
def test_an_answer_that_can_be_had_again_is_cacheable(request_: GenerateRequest) -> None:
    assert why_not_cacheable(request_) is None


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (ask(temperature=0.7), "sampled"),
        (ask(n=2), "more than one"),
        (ask(tools=(TOOL,)), "tools"),
        (GenerateRequest(messages=(Message("tool", "42", tool_call_id="1"),)), "tools"),
        (ask(prefix="Co"), "continues"),
        (ask(extra={"logprobs": True}), "more than text"),
        (ask(extra={"functions": [{"name": "f"}]}), "more than text"),
        (GenerateRequest(messages=(Message("user", (ImagePart(ImageUrl("https://example.org/x.png")),)),)), "image"),
    ],
)
def test_what_must_not_be_cached_says_why(request_: GenerateRequest, why: str) -> None:
    assert why in (why_not_cacheable(request_) or "")


def test_no_store_is_kept() -> None:
    assert "no-store" in (why_not_cacheable(ask(), no_store=True) or "")
    assert why_not_cacheable(ask(extra={"logprobs": False})) is None
