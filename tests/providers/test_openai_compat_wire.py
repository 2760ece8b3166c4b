"""Chat completions on the wire: requests as bodies, bytes as events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.providers.base import (
    ErrorKind,
    Event,
    Finish,
    FunctionCall,
    GenerateRequest,
    ImagePart,
    ImageUrl,
    Message,
    ProviderError,
    ReasoningDelta,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from shoal.providers.openai_wire import ChatAnswer, body_of, models_of

REQUEST = GenerateRequest.of("What is the opposite of hot?")


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def events_of(*pieces: bytes) -> list[Event]:
    answer = ChatAnswer(REQUEST)
    return [event for piece in pieces for event in answer.feed(piece)] + answer.end()


def failure_of(*pieces: bytes) -> tuple[list[Event], ProviderError]:
    answer = ChatAnswer(REQUEST)
    events = [event for piece in pieces for event in answer.feed(piece)]
    with pytest.raises(ProviderError) as caught:
        answer.end()
    return events, caught.value


# -- requests


def test_a_plain_request_streams_and_asks_for_usage() -> None:
    assert json.loads(body_of(REQUEST, "echo")) == {
        "model": "echo",
        "messages": [{"role": "user", "content": "What is the opposite of hot?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_every_typed_field_arrives_under_its_name() -> None:
    tool = {"type": "function", "function": {"name": "bash"}}
    call = ToolCall("call_1", FunctionCall("bash", "{}"))
    request = GenerateRequest(
        messages=(
            Message("user", (TextPart("look"), ImagePart(ImageUrl("data:image/png;base64,AA", "low")))),
            Message("assistant", tool_calls=(call,)),
            Message("tool", "done", tool_call_id="call_1"),
        ),
        max_tokens=5,
        temperature=0.0,
        top_p=0.5,
        stop=("END",),
        seed=7,
        tools=(tool,),
        tool_choice="auto",
        response_format={"type": "json_object"},
    )
    body = json.loads(body_of(request, "m", max_tokens_field="max_completion_tokens"))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "done", "tool_call_id": "call_1"},
    ]
    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body
    assert (body["temperature"], body["top_p"], body["stop"], body["seed"]) == (0.0, 0.5, ["END"], 7)
    assert (body["tools"], body["tool_choice"]) == ([tool], "auto")
    assert body["response_format"] == {"type": "json_object"}


def test_fields_that_nobody_typed_go_along_unchanged_but_replace_nothing() -> None:
    extra = {"top_k": 40, "provider": {"only": ["x"]}, "models": ["a", "b"], "model": "other", "stream": False}
    body = json.loads(body_of(GenerateRequest.of("hi", extra=extra), "echo"))
    assert (body["top_k"], body["provider"], body["models"]) == (40, {"only": ["x"]}, ["a", "b"])
    assert (body["model"], body["stream"]) == ("echo", True)


# -- answers


def test_text_then_usage_then_finish() -> None:
    events = events_of(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "co"}, model="echo-1"),
        chunk({"content": "ld"}),
        chunk({}, "stop"),
        chunk(usage={"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}),
        b"data: [DONE]\n\n",
    )
    assert events == [TextDelta("co"), TextDelta("ld"), Usage(3, 2, 1), Finish("stop", "echo-1")]


@given(st.lists(st.integers(0, 700), max_size=12), st.text(min_size=1, max_size=20))
def test_however_the_bytes_are_cut_the_events_are_the_same(cuts: list[int], text: str) -> None:
    stream = (
        b": OPENROUTER PROCESSING\n\n"
        + chunk({"reasoning": "hm"})
        + chunk({"content": text})
        + b"data:\n\n"
        + chunk({"content": None}, "length")
        + chunk({"role": "assistant", "content": ""}, "length", usage={"cost": 0.25, "completion_tokens": 4})
        + b"data: [DONE]\n\n"
    )
    places = sorted({min(c, len(stream)) for c in cuts})
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    expected = [ReasoningDelta("hm"), TextDelta(text), Usage(0, 4, cost=0.25), Finish("length")]
    assert events_of(*pieces) == expected


def test_tool_calls_come_in_pieces_by_index_and_a_wrong_stop_is_put_right() -> None:
    first = {"tool_calls": [{"index": 1, "id": "call_9", "function": {"name": "bash", "arguments": ""}}]}
    more = {"tool_calls": [{"index": 1, "function": {"arguments": '{"a"'}}]}
    assert events_of(chunk(first), chunk(more), chunk({}, "stop")) == [
        ToolCallDelta(1, "call_9", "bash", ""),
        ToolCallDelta(1, "", "", '{"a"'),
        Finish("tool_calls"),
    ]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("eos_token", "stop"),
        ("max_tokens", "length"),
        ("function_call", "tool_calls"),
        ("content_filter", "content_filter"),
    ],
)
def test_finish_reasons_of_other_dialects_are_understood(said: str, meant: str) -> None:
    assert events_of(chunk({"content": "x"}), chunk({}, said))[-1] == Finish(meant)  # type: ignore[arg-type]


def test_a_stream_that_ends_without_a_finish_is_a_failure() -> None:
    events, error = failure_of(chunk({"content": "half"}), b"data: [DONE]\n\n")
    assert events == [TextDelta("half")]
    assert error.kind is ErrorKind.INTERRUPTED


def test_a_stream_that_ends_before_its_first_text_failed_upstream() -> None:
    assert failure_of(chunk({"role": "assistant"}))[1].kind is ErrorKind.UPSTREAM


def test_an_answer_without_text_is_a_failure() -> None:
    error = failure_of(chunk({"content": ""}), chunk({}, "stop"), b"data: [DONE]\n\n")[1]
    assert error.kind is ErrorKind.UPSTREAM
    assert "finished with no text" in error.message


def test_an_answer_that_the_filter_held_back_says_so() -> None:
    assert failure_of(chunk({}, "content_filter"))[1].kind is ErrorKind.CONTENT_FILTER


def test_a_limit_that_went_into_reasoning_is_the_providers_own_finish() -> None:
    assert events_of(chunk({"reasoning": "hm"}), chunk({}, "length")) == [ReasoningDelta("hm"), Finish("length")]


def test_a_broken_event_comes_after_the_text_before_it_in_the_same_bytes() -> None:
    events, error = failure_of(chunk({"content": "so far"}) + b'data: {"choices": [\n\n' + chunk({"content": "never"}))
    assert events == [TextDelta("so far")]
    assert error.kind is ErrorKind.INTERRUPTED


def test_an_error_event_in_mid_stream_interrupts() -> None:
    error = {"code": "server_error", "message": "Provider disconnected"}
    events, failure = failure_of(chunk({"content": "so far"}) + chunk({"content": ""}, "error", error=error))
    assert events == [TextDelta("so far")]
    assert failure.kind is ErrorKind.INTERRUPTED


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 502, "message": "x"}, ErrorKind.UPSTREAM),
        ({"code": "server_error", "message": "x"}, ErrorKind.UPSTREAM),
        ({"code": 429, "message": "x"}, ErrorKind.RATE_LIMITED),
        ({"code": "rate_limit_exceeded"}, ErrorKind.RATE_LIMITED),
        ({"code": None, "type": "overloaded_error"}, ErrorKind.OVERLOADED),
        ("the runner has died", ErrorKind.UPSTREAM),
    ],
)
def test_an_error_as_the_first_event_has_its_own_kind(error: object, kind: ErrorKind) -> None:
    assert failure_of(chunk(None, error=error))[1].kind is kind


def test_a_finish_reason_of_error_is_no_finish() -> None:
    assert failure_of(chunk({"content": "so far"}), chunk({}, "error"))[1].kind is ErrorKind.INTERRUPTED


def test_bytes_that_are_not_utf8_are_no_part_of_an_answer() -> None:
    broken = b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n'
    events, error = failure_of(chunk({"content": "so far"}), broken, chunk({}, "stop"))
    assert (events, error.kind) == ([TextDelta("so far")], ErrorKind.INTERRUPTED)


def test_an_empty_finish_reason_is_none() -> None:
    pieces = [chunk({"content": "so "}, ""), chunk({"content": "far"}, ""), chunk({}, "stop")]
    assert events_of(*pieces) == [TextDelta("so "), TextDelta("far"), Finish("stop")]


def test_text_after_the_end_is_no_part_of_the_answer() -> None:
    pieces = [chunk({"content": "all"}, "stop"), chunk({"content": "more"}), chunk({}, "stop")]
    assert events_of(*pieces) == [TextDelta("all"), Finish("stop")]


# -- dialects


def test_a_character_that_is_cut_between_two_chunks_is_put_together() -> None:
    fish = [
        b'data: {"choices":[{"delta":{"content":"a \\ud83d"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\udc1f b"}}]}\n\n',
    ]
    assert events_of(*fish, chunk({}, "stop")) == [TextDelta("a "), TextDelta("\U0001f41f b"), Finish("stop")]


def test_half_a_character_that_stays_alone_is_replaced() -> None:
    half = b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
    assert events_of(half, chunk({"content": "b"}), chunk({}, "stop")) == [
        TextDelta("a"),
        TextDelta("\ufffdb"),
        Finish("stop"),
    ]


def test_text_and_thoughts_in_parts_are_understood() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    assert events_of(chunk({"content": [thought, {"type": "text", "text": "cold"}]}), chunk({}, "stop")) == [
        ReasoningDelta("hm"),
        TextDelta("cold"),
        Finish("stop"),
    ]


def test_arguments_that_are_an_object_become_their_text() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
    assert events_of(chunk({"tool_calls": [call]}), chunk({}, "tool_calls")) == [
        ToolCallDelta(0, "c1", "f", '{"x": 1}'),
        Finish("tool_calls"),
    ]


def test_numbers_and_names_of_a_wrong_type_are_passed_over() -> None:
    usage = {"prompt_tokens": 3.0, "completion_tokens": "many", "prompt_tokens_details": {"cached_tokens": 1}}
    odd = chunk({"content": "cold"}, model=7, usage=usage)
    assert events_of(odd, chunk({}, "stop")) == [TextDelta("cold"), Usage(3, 0, 1), Finish("stop")]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "content",
                        "text",
                        "usage",
                        "error",
                        "tool_calls",
                        "function",
                        "arguments",
                        "index",
                        "model",
                        "thinking",
                    ]
                ),
                x,
                max_size=4,
            )
        ),
    )
)
def test_no_chunk_of_another_shape_crashes_the_reader(odd: object) -> None:
    answer = ChatAnswer(REQUEST)
    for event in answer.feed(b"data: " + json.dumps(odd).encode() + b"\n\n"):
        assert isinstance(event, TextDelta | ToolCallDelta | ReasoningDelta)


def test_other_choices_than_the_first_are_not_mixed_in() -> None:
    second = b'data: {"choices":[{"index":1,"delta":{"content":"no"}}]}\n\n'
    assert events_of(chunk({"content": "yes"}), second, chunk({}, "stop")) == [TextDelta("yes"), Finish("stop")]


def test_an_answer_in_one_piece_gives_the_same_events() -> None:
    answer = ChatAnswer(REQUEST)
    message = {"role": "assistant", "content": "cold", "reasoning": "hm"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}, "model": "m"}
    events = answer.whole(json.dumps(body).encode()) + answer.end()
    assert events == [ReasoningDelta("hm"), TextDelta("cold"), Usage(1, 0), Finish("stop", "m")]


@pytest.mark.parametrize("body", [b"{}", b"<html>", b"[]", b'{"object":"list","data":[]}'])
def test_something_else_in_one_piece_is_a_failure(body: bytes) -> None:
    answer = ChatAnswer(REQUEST)
    assert answer.whole(body) == []
    with pytest.raises(ProviderError) as caught:
        answer.end()
    assert caught.value.kind is ErrorKind.UPSTREAM


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    answer = ChatAnswer(REQUEST)
    answer.feed(b"data: " + data + b"\n\n")
    with pytest.raises(ProviderError):
        answer.end()


# -- the list of models


def test_context_lengths_are_found_in_every_dialect() -> None:
    listed = {
        "data": [
            {"id": "router", "context_length": 1},
            {"id": "vllm", "max_model_len": 2},
            {"id": "llama.cpp", "meta": {"n_ctx_train": 3}},
            {"id": "openai", "owned_by": "x"},
        ]
    }
    assert models_of(json.dumps(listed).encode()) == [("router", 1), ("vllm", 2), ("llama.cpp", 3), ("openai", None)]


@pytest.mark.parametrize("body", [b"<html>", b'{"data": 5}', b'{"data": [{"name": "x"}]}'])
def test_a_list_in_another_shape_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="OpenAI's shape"):
        models_of(body)
