"""A user's own provider: synchronous or async, text, pieces or events."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from shoal.providers.base import (
    Dropped,
    ErrorKind,
    Event,
    Finish,
    FunctionCall,
    GenerateRequest,
    ImagePart,
    ImageUrl,
    Message,
    ProviderError,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from shoal.providers.settings import ProviderSettings
from shoal.providers.simple import LLMProvider, SimpleProvider

ASK = GenerateRequest.of("hello", model="m")


def provider_of(function: Any, **settings: Any) -> SimpleProvider:
    """A provider whose `generate` is this function."""

    class Mine:
        generate = staticmethod(function)

    return SimpleProvider("mine", Mine(), ProviderSettings(**settings))


async def collect(provider: SimpleProvider, request: GenerateRequest = ASK) -> list[Event]:
    with trio.fail_after(10):
        async with provider.generate(request) as events:
            return [event async for event in events]


async def fail(provider: SimpleProvider, request: GenerateRequest = ASK) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await collect(provider, request)
    return caught.value


def said(prompt: str, *, model_name: str | None = None, **options: Any) -> str:
    return f"{prompt}|{model_name}|{sorted(options.items())}"


async def said_async(prompt: str, *, model_name: str | None = None, **options: Any) -> str:
    await trio.lowlevel.checkpoint()
    return said(prompt, model_name=model_name, **options)


def pieces(prompt: str, **options: Any) -> Iterator[str]:
    yield said(prompt, **options)[:3]
    yield ""
    yield said(prompt, **options)[3:]


async def pieces_async(prompt: str, **options: Any) -> AsyncIterator[str]:
    for piece in pieces(prompt, **options):
        await trio.lowlevel.checkpoint()
        yield piece


@pytest.mark.parametrize("function", [said, said_async, pieces, pieces_async])
async def test_every_form_gives_its_text_and_a_finish(function: Any) -> None:
    events = await collect(provider_of(function))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "hello|m|[]"
    assert events[-1] == Finish("stop")


async def test_events_may_be_yielded_and_a_finish_of_its_own_ends_the_answer() -> None:
    given = [TextDelta("a"), ToolCallDelta(0, "call_1", "bash", "{}"), Usage(1, 2), Finish("tool_calls", "m-1")]
    assert await collect(provider_of(lambda prompt, **_: iter([*given, "never"]))) == given


async def test_synchronous_work_happens_in_a_thread() -> None:
    threads: list[int] = []

    def function(prompt: str, **options: Any) -> str:
        threads.append(threading.get_ident())
        return "x"

    await collect(provider_of(function))
    assert threads != [threading.get_ident()]


async def test_options_arrive_under_their_names_and_unset_ones_do_not() -> None:
    request = GenerateRequest.of("hi", max_tokens=3, temperature=0.0, stop=("a",), seed=1, extra={"top_k": 4})
    events = await collect(provider_of(said), request)
    assert isinstance(events[0], TextDelta)
    expected = [("max_tokens", 3), ("seed", 1), ("stop", ["a"]), ("temperature", 0.0), ("top_k", 4)]
    assert events[0].text == f"hi|None|{expected}"


async def test_an_option_that_it_does_not_take_is_left_out_and_named_or_refused_as_the_owner_says() -> None:
    def narrow(prompt: str, *, model_name: str | None = None) -> str:
        return "x"

    request = GenerateRequest.of("hi", seed=1, max_tokens=2)
    assert (await collect(provider_of(narrow), request))[0] == Dropped(("max_tokens", "seed"))
    error = await fail(provider_of(narrow, unsupported="refuse"), request)
    assert error.kind is ErrorKind.UNAVAILABLE
    assert error.message.startswith("mine cannot honour max_tokens, seed; leave them out")
    assert (await fail(provider_of(lambda prompt: "x"))).message == "mine does not take model_name"
    assert await collect(provider_of(lambda prompt: "x"), GenerateRequest.of("hi")) == [TextDelta("x"), Finish("stop")]


async def test_a_conversation_becomes_one_prompt() -> None:
    messages = (
        Message("system", "Be brief."),
        Message("user", (TextPart("hi "), TextPart("there"))),
        Message("assistant", "Hello."),
        Message("user", "And?"),
    )
    prompts: list[str] = []
    provider = provider_of(lambda prompt, **_: prompts.append(prompt) or "x")
    await collect(provider, GenerateRequest(messages=messages))
    await collect(provider, GenerateRequest.of("hi", system="Be brief."))
    assert prompts == [
        "Be brief.\n\nUser: hi there\n\nAssistant: Hello.\n\nUser: And?\n\nAssistant:",
        "Be brief.\n\nhi",
    ]


async def test_a_function_that_names_messages_or_system_gets_them() -> None:
    seen: list[Any] = []

    def function(prompt: str, *, system: str | None = None, messages: Any = None, **options: Any) -> str:
        seen.extend((prompt, system, messages))
        return "x"

    await collect(provider_of(function), GenerateRequest.of("hi", system="Be brief."))
    assert seen == ["hi", "Be brief.", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]]


async def test_images_are_refused_not_dropped() -> None:
    image = Message("user", (TextPart("look"), ImagePart(ImageUrl("data:image/png;base64,AA"))))
    assert (await fail(provider_of(said), GenerateRequest(messages=(image,)))).kind is ErrorKind.UNAVAILABLE


async def test_tool_calls_of_the_past_are_refused_not_dropped() -> None:
    messages = (
        Message("user", "hi"),
        Message("assistant", tool_calls=(ToolCall("c", FunctionCall("f", "{}")),)),
        Message("tool", "done", tool_call_id="c"),
    )
    assert (await fail(provider_of(said), GenerateRequest(messages=messages))).kind is ErrorKind.UNAVAILABLE


# -- failures


@pytest.mark.parametrize("result", ["", [], [""], [Finish("stop")]])
async def test_an_answer_without_text_is_a_failure(result: Any) -> None:
    function = (lambda prompt, **_: result) if isinstance(result, str) else (lambda prompt, **_: iter(result))
    error = await fail(provider_of(function))
    assert error.kind is ErrorKind.UPSTREAM
    assert "finished with no text" in error.message


@pytest.mark.parametrize("result", [None, 5, b"bytes"])
async def test_what_is_no_text_is_a_failure_never_text_that_says_none(result: Any) -> None:
    error = await fail(provider_of(lambda prompt, **_: result))
    assert error.kind is ErrorKind.UPSTREAM
    assert type(result).__name__ in error.message
    assert "yielded" in (await fail(provider_of(lambda prompt, **_: iter([result or 5])))).message


async def test_an_exception_is_a_failure_that_does_not_repeat_the_prompt() -> None:
    def function(prompt: str, **options: Any) -> str:
        raise RuntimeError(f"cannot answer {prompt}")

    error = await fail(provider_of(function), GenerateRequest.of("a very private question"))
    assert error.kind is ErrorKind.UPSTREAM
    assert error.message == "mine raised RuntimeError"
    assert "flat battery" in (await fail(provider_of(_raise("flat battery")))).message


def _raise(message: str) -> Any:
    def function(prompt: str, **options: Any) -> str:
        raise OSError(message)

    return function


async def test_a_failure_after_text_is_an_interruption() -> None:
    def function(prompt: str, **options: Any) -> Iterator[str]:
        yield "half"
        raise RuntimeError

    assert (await fail(provider_of(function))).kind is ErrorKind.INTERRUPTED


async def test_a_typed_error_of_the_provider_itself_passes_as_it_is() -> None:
    mine = ProviderError(ErrorKind.QUOTA, "spent")

    async def function(prompt: str, **options: Any) -> str:
        raise mine

    assert await fail(provider_of(function)) is mine


# -- leaving


async def test_leaving_does_not_wait_for_a_thread_which_keeps_its_place_until_it_ends() -> None:
    begun, go = threading.Semaphore(0), threading.Event()

    def function(prompt: str, **options: Any) -> str:
        begun.release()
        go.wait(10)
        return "x"

    provider = provider_of(function, max_concurrent=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, provider)
        assert await trio.to_thread.run_sync(lambda: begun.acquire(timeout=5))
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0.01) as scope:
        await collect(provider)
    assert scope.cancelled_caught
    assert not begun.acquire(blocking=False)
    go.set()
    await collect(provider)


async def test_leaving_closes_what_the_function_left_open() -> None:
    closed: list[str] = []

    def sync_pieces(prompt: str, **options: Any) -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append("sync")

    async def async_pieces(prompt: str, **options: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append("async")

    for function in (sync_pieces, async_pieces):
        async with provider_of(function).generate(ASK) as events:
            assert await anext(events) == TextDelta("a")
    assert closed == ["sync", "async"]


async def test_one_more_than_may_wait_is_refused() -> None:
    started = trio.Event()

    async def function(prompt: str, **options: Any) -> str:
        started.set()
        await trio.sleep_forever()
        raise AssertionError

    provider = provider_of(function, max_concurrent=1, max_queue=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, provider)
        await started.wait()
        assert (await fail(provider)).kind is ErrorKind.OVERLOADED
        nursery.cancel_scope.cancel()


# -- what it says of itself


async def test_it_takes_any_model_unless_it_lists_its_own() -> None:
    class Listed:
        models = ("a", "b")

        def generate(self, prompt: str, *, model_name: str | None = None, **options: Any) -> str:
            return "x"

    assert (await provider_of(said).probe()).offers("whatever")
    status = await SimpleProvider("listed", Listed()).probe()
    assert status.offers("b")
    assert not status.offers("whatever")
    assert status.default_model == "a"


def test_the_protocol_can_be_checked_at_run_time() -> None:
    class Yes:
        def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
            return ""

    assert isinstance(Yes(), LLMProvider)
    assert not isinstance(object(), LLMProvider)
