"""`/v1/completions`, and several choices at once in both shapes."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from shoal.providers.base import Completion, ErrorKind, Finish, GenerateRequest, Logprobs, Provider, TextDelta, Usage

from .fakes_router import OTHER, STOP, Pause, Scripted, ScriptedPeer, fails, says
from .fakes_rpc import door
from .test_openai_shape import HOT, with_client

TOKEN = {"token": "Cold", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Cold", "logprob": -0.5}]}


async def test_a_prompt_becomes_a_users_message_and_the_answer_text() -> None:
    provider = Scripted("first", says("Cold.", model="m1", usage=Usage(7, 2)))
    async with door(provider) as rpc:
        answer = await with_client(rpc, lambda c: c.completions.create(model="m1", prompt="Hot?", max_tokens=9))
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Cold.", "stop")
    assert answer.usage.total_tokens == 9
    assert provider.calls[0].messages[0].text == "Hot?"
    assert provider.calls[0].max_tokens == 9


async def test_a_stream_of_text() -> None:
    def work(client: openai.OpenAI) -> Any:
        return list(
            client.completions.create(
                model="m1", prompt="Hot? ", stream=True, echo=True, stream_options={"include_usage": True}
            )
        )

    async with door(Scripted("first", says("Co", "ld.", usage=Usage(7, 2)))) as rpc:
        chunks = await with_client(rpc, work)
    assert [c.choices[0].text for c in chunks[:-1]] == ["Hot? ", "Co", "ld.", ""]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_several_choices_in_their_order(stream: bool) -> None:
    provider = Scripted("first", says("a", usage=Usage(5, 1)))
    async with door(provider) as rpc:
        body = {"model": "m1", "prompt": ["one", "two"], "n": 2, "temperature": 1, "stream": stream}
        reply = await rpc.ask("POST", "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert sorted(call.messages[0].text for call in provider.calls) == ["one", "one", "two", "two"]
    if not stream:
        assert [c["index"] for c in reply.json["choices"]] == [0, 1, 2, 3]
        usage = reply.json["usage"]
    else:
        *chunks, last, _ = reply.events
        assert sorted(c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]) == [0, 1, 2, 3]
        usage = last["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, 4), "each prompt is counted once"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "best_of": 3, "n": 2}, "best_of"),
        ({"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "x", "echo": True, "max_tokens": 0}, "echo"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"prompt": ["x"] * 100, "n": 2}, "n"),
        ({"prompt": ["x", 1]}, "prompt"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "stop": [""]}, "stop"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        reply = await rpc.ask("POST", "/v1/completions", body)
    assert (reply.status, reply.error["param"]) == (400, param)


async def test_n_choices_are_n_generations_each_with_its_own_seed() -> None:
    provider = Scripted(
        "first", says("a", usage=Usage(7, 1)), says("b", usage=Usage(7, 1)), says("c", usage=Usage(7, 1))
    )
    async with door(provider) as rpc:
        reply = await rpc.chat(model="m1", n=3, seed=2**63 - 2)
    assert sorted(c["message"]["content"] for c in reply.json["choices"]) == ["a", "b", "c"]
    assert [c["index"] for c in reply.json["choices"]] == [0, 1, 2]
    assert len({call.seed for call in provider.calls}) == 3
    assert all(call.n == 1 for call in provider.calls)
    assert (reply.json["usage"]["prompt_tokens"], reply.json["usage"]["completion_tokens"]) == (7, 3)


async def test_choices_do_not_come_out_of_the_cache() -> None:
    provider = Scripted("first", says("a"), says("b"), says("c"), says("d"))
    async with door(provider) as rpc:
        await rpc.chat(model="m1", n=2)
        await rpc.chat(model="m1", n=2)
    assert len(provider.calls) == 4


async def test_streamed_choices_run_beside_each_other_and_openais_client_tells_them_apart() -> None:
    def work(client: openai.OpenAI) -> Any:
        texts = {0: "", 1: ""}
        reasons = {}
        for chunk in client.chat.completions.create(model="m1", messages=HOT, n=2, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason
        return texts, reasons

    scripts = (["a", Pause(0.05), "b", STOP], ["c", Pause(0.02), "d", STOP])
    async with door(Scripted("first", *scripts), keep_alive_s=0.01) as rpc:
        texts, reasons = await with_client(rpc, work)
    assert sorted(texts.values()) == ["ab", "cd"]
    assert reasons == {0: "stop", 1: "stop"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_choice_that_fails_fails_the_whole_before_anything_was_sent(stream: bool) -> None:
    provider = Scripted("first", fails(ErrorKind.BAD_REQUEST, "no"))
    async with door(provider) as rpc:
        reply = await rpc.chat(model="m1", n=3, stream=stream)
        assert reply.status == 400
        assert reply.error["message"] == "no"
        assert provider.open == 0


async def test_a_choice_that_breaks_off_ends_the_stream_with_an_error() -> None:
    provider = Scripted("first", ["a", Pause(0.05), *fails(ErrorKind.CONNECTION, "reset")], ["b", Pause(60), STOP])
    async with door(provider) as rpc:
        reply = await rpc.chat(model="m1", n=2, stream=True)
        assert "error" in reply.events[-1]
        assert provider.open == 0, "the other generation was cancelled"


async def test_logprobs_are_passed_on_where_a_provider_has_them() -> None:
    provider = Scripted("first", ["Cold", Logprobs((TOKEN,)), STOP])
    async with door(provider) as rpc:
        whole = await with_client(rpc, lambda c: c.chat.completions.create(model="m1", messages=HOT, logprobs=True))
        chunks = await with_client(
            rpc, lambda c: list(c.chat.completions.create(model="m1", messages=HOT, logprobs=True, stream=True))
        )
        text = await with_client(rpc, lambda c: c.completions.create(model="m1", prompt="x", logprobs=1))
    assert whole.choices[0].logprobs.content[0].logprob == -0.5
    told = [c.choices[0] for c in chunks if c.choices[0].logprobs]
    assert [c.logprobs.content[0].token for c in told] == ["Cold"]
    assert text.choices[0].logprobs.token_logprobs == [-0.5]
    assert text.choices[0].logprobs.top_logprobs == [{"Cold": -0.5}]
    assert provider.calls[0].extra == {"logprobs": True}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_called_unasked_is_a_stop_where_there_are_no_tools(stream: bool) -> None:
    async with door(Scripted("first", ["x", Finish("tool_calls")])) as rpc:
        reply = await rpc.ask("POST", "/v1/completions", {"prompt": "x", "stream": stream})
    last = reply.events[-2] if stream else reply.json
    assert last["choices"][0]["finish_reason"] == "stop"


async def test_a_stream_tells_log_probabilities_with_their_text_and_where_it_stands() -> None:
    second = {"token": " wind", "logprob": -0.25, "bytes": None, "top_logprobs": []}
    script = [TextDelta("Cold"), Logprobs((TOKEN,)), TextDelta(" wind"), Logprobs((second,)), STOP]
    async with door(Scripted("first", script)) as rpc:
        body = {"model": "m1", "prompt": "x", "logprobs": 1, "stream": True}
        reply = await rpc.ask("POST", "/v1/completions", body)
    told = [c["choices"][0] for c in reply.events[:-1] if c["choices"][0]["logprobs"]]
    assert [(c["text"], c["logprobs"]["tokens"], c["logprobs"]["text_offset"]) for c in told] == [
        ("Cold", ["Cold"], [0]),
        (" wind", [" wind"], [4]),
    ]


# -- bare text -------------------------------------------------------------------------------------------------


class Completing(Scripted):
    """A provider that goes on with bare text."""

    completes = True


async def test_who_completes_gets_the_text_itself() -> None:
    provider = Completing("first", says(" cold.", model="m1", usage=Usage(3, 2)))
    async with door(provider) as rpc:
        answer = await with_client(rpc, lambda c: c.completions.create(model="m1", prompt="Not hot but", suffix="!"))
        chunks = await with_client(
            rpc, lambda c: list(c.completions.create(model="m1", prompt=[[3, 4]], stream=True, max_tokens=5))
        )
    assert answer.choices[0].text == " cold."
    assert "".join(chunk.choices[0].text for chunk in chunks) == " cold."
    assert provider.calls[0].completion == Completion("Not hot but", suffix="!")
    assert provider.calls[0].messages == ()
    assert provider.calls[1].completion == Completion((3, 4))


async def test_the_prompts_own_log_probabilities_in_the_older_shape() -> None:
    first = {"token": "Hot", "logprob": None, "bytes": None, "top_logprobs": [], "text_offset": 0}
    second = {"token": "?", "logprob": -1.5, "bytes": None, "text_offset": 3}
    second["top_logprobs"] = [{"token": "!", "logprob": -0.5, "bytes": None}]
    provider = Completing("first", [TextDelta("Hot?"), Logprobs((first, second)), Usage(2, 0), Finish("length")])
    async with door(provider) as rpc:
        answer = await with_client(
            rpc, lambda c: c.completions.create(model="m1", prompt="Hot?", echo=True, logprobs=1, max_tokens=0)
        )
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("Hot?", "length")
    assert choice.logprobs.tokens == ["Hot", "?"]
    assert choice.logprobs.token_logprobs == [None, -1.5]
    assert choice.logprobs.top_logprobs == [None, {"!": -0.5, "?": -1.5}]
    assert choice.logprobs.text_offset == [0, 3]
    assert provider.calls[0].completion == Completion("Hot?", echo=True)


async def test_two_prompts_in_tokens_are_counted_both() -> None:
    async with door(Completing("first", says("a", usage=Usage(5, 1)))) as rpc:
        reply = await rpc.ask("POST", "/v1/completions", {"model": "m1", "prompt": [[1], [2]]})
    assert reply.json["usage"]["prompt_tokens"] == 10


async def test_a_completion_and_a_chat_are_kept_apart_and_each_is_kept() -> None:
    provider = Completing("first", says("raw"), says("chat"), says("never"))
    async with door(provider) as rpc:
        body = {"model": "m1", "prompt": "Hot?", "temperature": 0}
        chat = {"model": "m1", "messages": HOT, "temperature": 0}
        texts = []
        for _ in range(2):
            reply = await rpc.ask("POST", "/v1/completions", body)
            texts.append((reply.json["choices"][0]["text"], reply.json["shoal"]["cache"]))
            asked = {**chat, "messages": [{"role": "user", "content": "Hot?"}]}
            said = await rpc.ask("POST", "/v1/chat/completions", asked)
            texts.append((said.json["choices"][0]["message"]["content"], said.json["shoal"]["cache"]))
    assert texts == [("raw", "miss"), ("chat", "miss"), ("raw", "memory"), ("chat", "memory")]


async def test_who_only_chats_is_asked_in_place_and_keeps_his_answer_as_a_chats() -> None:
    chats, completes = Scripted("first", says("as a chat")), Completing("second", says("never"))
    async with door(chats, completes) as rpc:
        body = {"model": "m1", "prompt": "Hot?", "temperature": 0}
        first = await rpc.ask("POST", "/v1/completions", body)
        asked = {"model": "m1", "messages": [{"role": "user", "content": "Hot?"}], "temperature": 0}
        chat = await rpc.ask("POST", "/v1/chat/completions", asked)
    assert first.json["choices"][0]["text"] == "as a chat"
    assert chats.calls[0].completion is None
    assert chat.json["shoal"]["cache"] == "memory"


async def test_after_a_failure_each_gets_the_form_that_he_can_do() -> None:
    completes = Completing("first", fails(ErrorKind.AUTH, "no key"), says("raw"))
    chats = Scripted("second", says("as a chat"))
    async with door(completes, chats) as rpc:
        body = {"model": "m1", "prompt": "Hot?", "temperature": 0}
        reply = await rpc.ask("POST", "/v1/completions", body)
        asked = {"model": "m1", "messages": [{"role": "user", "content": "Hot?"}], "temperature": 0}
        chat = await rpc.ask("POST", "/v1/chat/completions", asked)
    assert reply.json["choices"][0]["text"] == "as a chat"
    assert completes.calls[0].completion == Completion("Hot?")
    assert chats.calls[0].completion is None
    assert chat.json["shoal"]["cache"] == "memory", "what it was asked is what its answer is kept under"


async def test_tokens_pass_by_who_only_chats() -> None:
    chats, completes = Scripted("first", says("never")), Completing("second", says("raw"))
    async with door(chats, completes) as rpc:
        reply = await rpc.ask("POST", "/v1/completions", {"model": "m1", "prompt": [1, 2]})
    assert reply.json["choices"][0]["text"] == "raw"
    assert chats.calls == []


class FindsOut(Completing):
    """As an upstream without text completions: what it lacks is known when it was asked once."""

    def generate(self, request: GenerateRequest) -> Any:
        self.completes = False
        return super().generate(request)


async def test_what_nobody_can_do_is_the_callers_fault_from_the_first_time_on() -> None:
    providers = [FindsOut(name, fails(ErrorKind.UNAVAILABLE, "a chat cannot do this")) for name in ("first", "second")]
    async with door(*providers) as rpc:
        for _ in range(2):
            reply = await rpc.ask("POST", "/v1/completions", {"model": "m1", "prompt": "x", "best_of": 2})
            assert (reply.status, reply.error["param"]) == (400, "best_of")
    assert [len(provider.calls) for provider in providers] == [1, 1]


async def test_a_text_that_breaks_off_is_gone_on_with_by_the_next_who_completes() -> None:
    first = Completing("first", ["once", Pause(0.01), *fails(ErrorKind.CONNECTION, "reset")])
    second = Completing("second", says(" upon"))
    async with door(first, second) as rpc:
        body = {"model": "m1", "prompt": "It was", "temperature": 0, "stream": True}
        reply = await rpc.ask("POST", "/v1/completions", body)
    texts = [event["choices"][0]["text"] for event in reply.events[:-1]]
    assert "".join(texts) == "once upon"
    assert second.calls[0].prefix == "once"


async def test_a_model_that_ends_a_text_at_once_has_answered() -> None:
    async with door(Completing("first", [Usage(3, 0), STOP])) as rpc:
        reply = await rpc.ask("POST", "/v1/completions", {"model": "m1", "prompt": "The end."})
    assert (reply.status, reply.json["choices"][0]["text"]) == (200, "")


class Beyond(ScriptedPeer):
    """A peer; `completes_by` is what its advert says. Old nodes say nothing of it."""

    completing = False

    def completes_by(self, model: str | None) -> bool:
        return self.completing

    def makes_vectors(self, model: str | None) -> bool:
        return False


class Reef:
    def __init__(self, peer: Provider) -> None:
        self._peer = peer

    def candidates_for(self, model: str | None) -> list[Provider]:
        return [self._peer]


async def test_a_peer_that_does_not_know_bare_text_gets_a_chat_or_nothing() -> None:
    peer = Beyond(OTHER.peer_id, says("Cold."))
    async with door(swarm=Reef(peer)) as rpc:
        text = await rpc.ask("POST", "/v1/completions", {"prompt": "Hot?", "model": "m1"})
        tokens = await rpc.ask("POST", "/v1/completions", {"prompt": [1, 2], "model": "m1"})
    assert text.json["choices"][0]["text"] == "Cold."
    assert [(call.completion, call.messages[0].text) for call in peer.calls] == [(None, "Hot?")]
    assert (tokens.status, tokens.error["param"]) == (400, "prompt")


async def test_a_peer_that_says_that_it_completes_gets_what_was_asked() -> None:
    peer = Beyond(OTHER.peer_id, says(" cold."))
    peer.completing = True
    async with door(swarm=Reef(peer)) as rpc:
        reply = await rpc.ask("POST", "/v1/completions", {"prompt": [1, 2], "model": "m1"})
    assert reply.json["choices"][0]["text"] == " cold."
    assert peer.calls[0].completion == Completion((1, 2))


async def test_metrics_tell_completions_from_chats() -> None:
    async with door(Completing("first", says("x"))) as rpc:
        await rpc.ask("POST", "/v1/completions", {"prompt": "x", "model": "m1"})
        told = (await rpc.ask("GET", "/metrics")).body.decode()
    assert 'gen_ai_operation_name="text_completion"' in told
    assert 'gen_ai_operation_name="chat"' not in told


async def test_what_one_cannot_do_the_next_is_asked_for_and_else_it_is_a_400() -> None:
    first = Completing("first", fails(ErrorKind.UNSUPPORTED, "it fills no gaps; leave suffix out"))
    second = Completing("second", says("raw"))
    asked = {"model": "m1", "prompt": "x", "suffix": "y"}
    async with door(first, second) as rpc:
        reply = await rpc.ask("POST", "/v1/completions", asked)
        alone = await rpc.ask("POST", "/v1/completions", {**asked, "provider": "first"})
    assert reply.json["choices"][0]["text"] == "raw"
    assert (alone.status, alone.error["code"]) == (400, "unsupported")
    assert "suffix" in alone.error["message"]
