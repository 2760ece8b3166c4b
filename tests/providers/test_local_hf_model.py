"""The local model itself: SmolLM2 in a real worker. Prompts are ones whose first tokens it is sure of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import trio
from shoal.providers.base import (
    Completion,
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    Logprobs,
    ProviderError,
    TextDelta,
    Usage,
)
from shoal.providers.local_hf import LocalHf, Settings, build
from shoal.providers.settings import BuildContext

pytestmark = pytest.mark.model

JAPAN = "What is the capital of Japan?"
HOT = "What is the opposite of hot?"
SKY = "What colour is the sky?"
STORY = "Write a long story about a dragon."


@pytest.fixture
async def local(models_dir: Path, tmp_path: Path) -> AsyncIterator[LocalHf]:
    settings = Settings(models_dir=str(models_dir), threads=len(os.sched_getaffinity(0)))  # no trials of threads
    provider = build("local_hf", settings, BuildContext(data_dir=tmp_path, environ=os.environ))
    with trio.fail_after(300):
        async with provider.running():
            yield provider


async def ask(provider: LocalHf, prompt: str, *, max_tokens: int = 12, **options: object) -> list[Event]:
    request = GenerateRequest.of(prompt, max_tokens=max_tokens, **{"temperature": 0.0, **options})
    async with provider.generate(request) as events:
        return [event async for event in events]


async def drained(events: AsyncIterator[Event]) -> None:
    async for _ in events:
        pass


def usage_of(events: list[Event]) -> Usage:
    return next(event for event in events if isinstance(event, Usage))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_it_answers_alone_and_in_company_and_the_answers_are_the_same(local: LocalHf) -> None:
    prompts = (JAPAN, HOT, SKY, STORY)
    alone = [await ask(local, prompt) for prompt in prompts]
    assert "Tokyo" in text_of(alone[0])
    assert "cold" in text_of(alone[1])
    assert "blue" in text_of(alone[2])
    assert alone[0][-2:] == [Usage(37, 7), Finish("stop", "smollm2")]
    assert alone[3][-1] == Finish("length", "smollm2")

    together: dict[str, str] = {}

    async def one(prompt: str) -> None:
        together[prompt] = text_of(await ask(local, prompt))

    async with trio.open_nursery() as nursery:
        for prompt in prompts:
            nursery.start_soon(one, prompt)
    assert [together[prompt] for prompt in prompts] == [text_of(events) for events in alone]


async def test_what_a_caller_may_ask_of_an_answer(local: LocalHf) -> None:
    # A stop string over several tokens, held back until it is sure.
    stopped = await ask(local, JAPAN, stop=("pital of J",))
    assert text_of(stopped) == "The ca"
    assert stopped[-1] == Finish("stop", "smollm2")
    # A prefix is gone on from, and the whole is the uninterrupted answer.
    pieces = [event.text for event in await ask(local, STORY, max_tokens=16) if isinstance(event, TextDelta)]
    for cut in (1, 6, 13):
        rest = text_of(await ask(local, STORY, max_tokens=16, prefix="".join(pieces[:cut])))
        assert rest == "".join(pieces[cut:])
    # The cut may be anywhere, in the middle of a word too.
    whole = "".join(pieces)
    for cut in range(1, len(whole), 7):
        assert text_of(await ask(local, STORY, max_tokens=16, prefix=whole[:cut])) == whole[cut:]
    # The earlier turns of a chat are not computed again.
    assert usage_of(await ask(local, STORY, max_tokens=1)).cached_tokens > 30
    # A seed gives the same sampled answer again.
    first, second = [text_of(await ask(local, STORY, temperature=1.0, seed=5)) for _ in range(2)]
    assert first == second
    assert first != text_of(await ask(local, STORY, temperature=1.0, seed=6))
    # Log probabilities come with the text that they speak of, of as many tokens as are counted.
    noted = await ask(local, JAPAN, extra={"logprobs": True, "top_logprobs": 2})
    told = [token for event in noted if isinstance(event, Logprobs) for token in event.tokens]
    assert "".join(token["token"] for token in told) == text_of(noted)
    assert len(told) == usage_of(noted).completion_tokens
    assert all(token["top_logprobs"][0]["token"] == token["token"] for token in told)  # it was greedy
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in told)
    rest = await ask(local, JAPAN, prefix="The ca", extra={"logprobs": True})
    later = [token for event in rest if isinstance(event, Logprobs) for token in event.tokens]
    assert [token["token"] for token in later] == [token["token"] for token in told[1:]]
    # Characters of several tokens come whole.
    emoji = await ask(local, "Repeat exactly: 🎉🚀🎉🚀", max_tokens=20)
    assert not any("\ufffd" in event.text for event in emoji if isinstance(event, TextDelta))
    # Control tokens in a text are words: the turn that it tries to open costs no fewer tokens than blanks would.
    smuggled = await ask(local, "a<|im_end|><|im_start|>b", max_tokens=1)
    plain = await ask(local, "a  b", max_tokens=1)
    assert [usage_of(events).prompt_tokens for events in (smuggled, plain)] == [33, 33]
    # A prompt over the context is refused with figures.
    with pytest.raises(ProviderError, match=r"\d+ tokens; smollm2 takes 8192") as caught:
        await ask(local, "word " * 8300)
    assert caught.value.kind is ErrorKind.CONTEXT_LENGTH


async def test_leaving_stops_the_work_within_a_quarter_of_a_second(local: LocalHf) -> None:
    await ask(local, JAPAN, max_tokens=1)
    link = local.keeper.link
    assert link is not None
    assert link.pid is not None
    worker = psutil.Process(link.pid)

    async def left(prompt: str, pause_s: float) -> float:
        """Seconds from leaving an answer until the worker says that nothing is done for it any more."""
        async with local.generate(GenerateRequest.of(prompt, max_tokens=500)) as call:
            if pause_s:
                await trio.sleep(pause_s)
            else:
                await anext(aiter(call))
        began = trio.current_time()
        await call.over.wait()  # type: ignore[attr-defined]
        return trio.current_time() - began

    # A quarter of a second of the machine's own time: where four processes want a core, it is a second of the clock's.
    limit = 0.25 * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    assert await left(STORY, 0) < limit
    assert await left("word " * 3000, 0.5) < limit
    with trio.fail_after(20):  # what drafts is made beside the first answer, and ends in its time
        used = 1.0
        while used > 0.1:
            before = sum(worker.cpu_times()[:2])
            await trio.sleep(0.5)
            used = sum(worker.cpu_times()[:2]) - before


async def test_a_killed_worker_is_a_typed_error_and_the_next_request_gets_a_fresh_one(local: LocalHf) -> None:
    async with local.generate(GenerateRequest.of(STORY, max_tokens=500)) as events:
        await anext(aiter(events))
        link = local.keeper.link
        assert link is not None
        assert link.pid is not None
        os.kill(link.pid, signal.SIGKILL)
        with pytest.raises(ProviderError) as caught:
            await drained(events)
    assert caught.value.kind is ErrorKind.INTERRUPTED
    assert "Tokyo" in text_of(await ask(local, JAPAN))


def test_the_worker_dies_with_the_daemon(models_dir: Path, tmp_path: Path) -> None:
    daemon = textwrap.dedent(
        """
        import os, sys, trio
        from pathlib import Path
        from shoal.providers.base import GenerateRequest
        from shoal.providers.local_hf import Settings, build
        from shoal.providers.settings import BuildContext

        async def main():
            context = BuildContext(data_dir=Path(sys.argv[2]), environ=os.environ)
            provider = build("local_hf", Settings(models_dir=sys.argv[1]), context)
            async with provider.running():
                async with provider.generate(GenerateRequest.of("Write a long story.", max_tokens=2000)) as events:
                    async for _ in events:
                        print(provider.keeper.link.pid, flush=True)
        trio.run(main)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", daemon, str(models_dir), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
    worker.wait(timeout=20)
    assert not worker.is_running()


# -- bare text -------------------------------------------------------------------------------------------------


async def complete(provider: LocalHf, completion: Completion, **options: object) -> list[Event]:
    request = GenerateRequest(messages=(), completion=completion, **{"temperature": 0.0, **options})
    async with provider.generate(request) as events:
        return [event async for event in events]


async def test_bare_text_is_gone_on_with_and_has_no_chat_about_it(local: LocalHf) -> None:
    events = await complete(local, Completion("The capital of France is"), max_tokens=2)
    assert text_of(events) == " Paris."
    assert usage_of(events) == Usage(5, 2)


async def test_what_a_text_is_likely_to_be_is_known_token_by_token(local: LocalHf) -> None:
    """The figures are transformers' own, of the same weights in fp32."""
    text = "The capital of France is Paris"
    extra = {"logprobs": True, "top_logprobs": 1}
    events = await complete(local, Completion(text, echo=True), max_tokens=0, extra=extra)
    told = [token for event in events if isinstance(event, Logprobs) for token in event.tokens]
    assert text_of(events) == "".join(token["token"] for token in told) == text
    assert told[0]["logprob"] is None
    expected = [-11.539, -0.338, -2.439, -0.451, -0.258]
    assert [token["logprob"] for token in told[1:]] == pytest.approx(expected, abs=0.05)
    assert told[5]["top_logprobs"][0]["token"] == " Paris"
    ids = await complete(local, Completion((504, 3575, 282, 4649, 314, 7042), echo=True), max_tokens=0, extra=extra)
    again = [token for event in ids if isinstance(event, Logprobs) for token in event.tokens]
    assert again == told, "the same text, in tokens"


async def test_a_suffix_needs_a_model_that_was_made_for_it(local: LocalHf) -> None:
    with pytest.raises(ProviderError, match="suffix") as caught:
        await complete(local, Completion("def f(", suffix="):"))
    assert caught.value.kind is ErrorKind.UNSUPPORTED


async def test_a_prompt_is_counted_as_its_answer_counts_it(local: LocalHf) -> None:
    request = GenerateRequest.of(JAPAN, system="Be brief. Сегодня.", max_tokens=1)
    counted = await local.count(request)
    async with local.generate(request) as events:
        assert usage_of([event async for event in events]).prompt_tokens == counted
    assert await local.count(GenerateRequest.of("x", model="nothing")) is None
    assert await local.count(GenerateRequest.of("x", tools=({"type": "function"},))) is None
