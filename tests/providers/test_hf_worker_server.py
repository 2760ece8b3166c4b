"""The worker's loop over real pipes, with a model of a few lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shoal.providers.base import Completion, ErrorKind, Event, Finish, GenerateRequest, Logprobs, TextDelta, Usage
from shoal.providers.hf_worker import frames, server
from shoal.providers.hf_worker.engine import NoRoomError, Sequence
from shoal.providers.hf_worker.loaded import torch_sampler
from shoal.providers.hf_worker.prompt import Prompt, PromptRefused

END = 0


class Echo:
    """An engine that says the prompt's tokens again, one a step, and then the end."""

    prefill_tps, decode_tps = 5.0, 2.0

    def __init__(self) -> None:
        self.verifies = False
        self.script: list[int] | None = None
        """What it says instead of the prompt, whatever a sequence has already."""
        self.picks: torch.Tensor | None = None
        """Logits that the sampler picks by, instead."""
        self.drafts: list[list[int]] = []
        self.running: dict[int, tuple[Sequence, int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def add(self, sequence: Sequence) -> None:
        self.running[sequence.id] = (sequence, 0)
        self.drafts.append(list(sequence.draft))

    def reused(self, id_: int) -> int:
        return 0

    def redraft(self, id_: int, tokens: list[int]) -> None:
        self.drafts.append(tokens)

    def remove(self, id_: int) -> None:
        self.running.pop(id_, None)

    def step(self, gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        out = []
        for id_, (sequence, at) in list(self.running.items()):
            if self.picks is not None:
                out.append((id_, sequence.sampler.pick(self.picks)))
                continue
            said = sequence.tokens if self.script is None else self.script
            out.append((id_, ([*said, END])[at]))
            self.running[id_] = (sequence, at + 1)
        return out


class Bench:
    """A server and the daemon's end of its pipes."""

    def __init__(self) -> None:
        here_read, there_write = os.pipe()
        there_read, here_write = os.pipe()
        self.read_fd, self.write_fd = here_read, here_write
        self.pipes = server.Pipes(there_read, there_write)
        self.engine = Echo()

        def prompt(request: GenerateRequest) -> Prompt:
            if request.completion is not None:
                return Prompt(list(map(ord, str(request.completion.prompt))), [], "")
            text = request.messages[-1].text
            if text == "long":
                raise PromptRefused(ErrorKind.CONTEXT_LENGTH, "too long")
            if text == "odd":
                raise ZeroDivisionError("the secret text")
            return Prompt(list(map(ord, text)), list(map(ord, request.prefix)), request.prefix)

        model: Any = SimpleNamespace(
            name="echo",
            engine=self.engine,
            prompter=SimpleNamespace(
                prompt=prompt,
                count=lambda request: len(prompt(request).messages),
                context_length=50,
                tokens=lambda text: list(map(ord, text)),
                word=chr,
                controls=frozenset({ord("|")}),
            ),
            decode=lambda tokens: "".join(map(chr, tokens)),
            ends=frozenset({END}),
            temperature=0.0,
            top_p=1.0,
            sampler=torch_sampler,
            calibration=None,
        )
        self.server = server.Server(self.pipes, model)
        self._splitter = frames.FrameSplitter()
        self._said: list[frames.FromWorker] = []

    def feed(self, *sent: frames.ToWorker) -> None:
        """As if the frames had come over the pipe, without the thread that would read it."""
        for frame in sent:
            if isinstance(frame, frames.Cancel):
                self.pipes.cancelled.add(frame.id)
            self.pipes._inbox.put(frame)

    def turns(self, count: int = 1) -> list[frames.FromWorker]:
        """Let the server take some turns; what it said in them."""
        for _ in range(count):
            self.server.turn()
        os.set_blocking(self.read_fd, False)
        try:
            return [frames.from_worker(body) for body in self._splitter.feed(os.read(self.read_fd, 1 << 20))]
        except BlockingIOError:
            return []

    def answer(self, text: str, **options: Any) -> list[Event]:
        self.feed(frames.Generate(1, GenerateRequest.of(text, **options)))
        events: list[Event] = []
        while not any(isinstance(event, Finish) for event in events):
            for frame in self.turns():
                assert not isinstance(frame, frames.Failed), frame.message
                events += [frame.event] if isinstance(frame, frames.Said) else []
        return events


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for descriptor in (made.read_fd, made.write_fd, made.pipes._read_fd, made.pipes._write_fd):
        os.close(descriptor)


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_an_answer_ends_where_the_model_ends_it(bench: Bench) -> None:
    events = bench.answer("abc")
    assert text_of(events) == "abc"
    assert events[-2:] == [Usage(3, 3), Finish("stop", "echo")]
    assert bench.engine.running == {}


def test_max_tokens_ends_an_answer_by_length(bench: Bench) -> None:
    events = bench.answer("abcdef", max_tokens=2)
    assert text_of(events) == "ab"
    assert events[-2:] == [Usage(6, 2), Finish("length", "echo")]


def test_the_context_ends_an_answer_by_length(bench: Bench) -> None:
    events = bench.answer("x" * 40)
    assert events[-2:] == [Usage(40, 10), Finish("length", "echo")]


def test_a_stop_string_over_several_tokens_ends_the_answer_before_it(bench: Bench) -> None:
    events = bench.answer("one two three", stop=("two", "zzz"))
    assert text_of(events) == "one "
    assert events[-1] == Finish("stop", "echo")


def test_text_held_back_for_a_stop_string_comes_when_the_answer_ends(bench: Bench) -> None:
    assert text_of(bench.answer("so tw", stop=("two",))) == "so tw"
    assert text_of(bench.answer("so two", stop=("two!",), max_tokens=5)) == "so tw"


def test_a_prefix_counts_towards_max_tokens_and_not_towards_usage(bench: Bench) -> None:
    events = bench.answer("ab", prefix="xyz", max_tokens=4)
    assert events[-2:] == [Usage(2, 1), Finish("length", "echo")]


def test_a_prefix_that_is_already_the_whole_answer_ends_at_once(bench: Bench) -> None:
    assert bench.answer("ab", prefix="xyz", max_tokens=3) == [Usage(2, 0), Finish("length", "echo")]


def test_answers_run_side_by_side(bench: Bench) -> None:
    bench.feed(frames.Generate(1, GenerateRequest.of("abc")), frames.Generate(2, GenerateRequest.of("xyz")))
    bench.turns(1)
    inner = bench.engine.step

    def step(gone: Callable[[int], bool]) -> list[tuple[int, int]]:
        bench.engine.step = inner  # type: ignore[method-assign]
        bench.engine.remove(1)
        raise NoRoomError(1, "cuda:0 has 3 MB")

    bench.engine.step = step  # type: ignore[method-assign]
    (failed,) = bench.turns(1)
    assert failed == frames.Failed(1, ErrorKind.INTERRUPTED, "cuda:0 has 3 MB")
    said = [frame for frame in bench.turns(3) if isinstance(frame, frames.Said)]
    assert {frame.id for frame in said} == {2}
    assert isinstance(said[-1].event, Finish)


def test_threads_are_tried_after_the_first_answer_and_only_while_nobody_asks(bench: Bench) -> None:
    tried = []

    class Trials:
        due = True

        def slice(self) -> None:
            tried.append(bench.engine.busy)
            self.due = len(tried) < 3

    bench.server._model.calibration = Trials()  # type: ignore[misc,assignment]
    bench.answer("ab")
    assert tried == []
    bench.turns(2)
    bench.feed(frames.Generate(2, GenerateRequest.of("xy")))
    bench.turns(3)
    assert len(tried) == 2
    bench.turns(1)
    assert tried == [False, False, False]


def test_a_continued_answer_is_picked_again_and_only_what_is_new_is_said(bench: Bench) -> None:
    bench.engine.verifies, bench.engine.script = True, list(map(ord, "one two"))
    events = bench.answer("hi", prefix="one ")
    assert text_of(events) == "two"
    assert [event for event in events if isinstance(event, Usage)] == [Usage(2, 3)]
    assert bench.engine.drafts == [list(map(ord, "one "))]


def test_an_answer_cut_inside_a_token_goes_on_inside_it(bench: Bench) -> None:
    bench.engine.verifies, bench.engine.script = True, [1000, 1001]
    bench.server._model.decode = lambda tokens: "".join({1000: "one ", 1001: "two"}[token] for token in tokens)
    assert text_of(bench.answer("hi", prefix="on")) == "e two"
    assert bench.engine.drafts == [[111, 110]]


def test_what_is_picked_instead_of_the_draft_gets_a_new_draft_for_the_rest(bench: Bench) -> None:
    bench.engine.verifies, bench.engine.script = True, [1000, ord("t"), ord("w"), ord("o")]
    bench.server._model.decode = lambda tokens: "".join("one " if token == 1000 else chr(token) for token in tokens)
    assert text_of(bench.answer("hi", prefix="one tw")) == "o"
    assert bench.engine.drafts[1] == [1000, ord("t"), ord("w")]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
def test_a_prefix_that_somebody_else_wrote_is_taken_as_it_is(bench: Bench, options: dict[str, float]) -> None:
    bench.engine.verifies = True
    events = bench.answer("hi", prefix="ho", **options)  # picked would be "hi"; taken over, it echoes "hiho"
    assert text_of(events) == "hiho"


def test_a_continued_answer_ends_where_the_whole_would(bench: Bench) -> None:
    bench.engine.verifies, bench.engine.script = True, list(map(ord, "one two"))
    events = bench.answer("hi", prefix="one ", max_tokens=6)
    assert text_of(events) == "tw"
    assert events[-1] == Finish("length", "echo")
    events = bench.answer("hi", prefix="one ", max_tokens=4)
    assert text_of(events) == ""
    assert events[-1] == Finish("length", "echo")


def test_a_prompt_is_counted_while_others_are_answered_and_is_not_answered_itself(bench: Bench) -> None:
    bench.feed(frames.Generate(1, GenerateRequest.of("abc")), frames.Count(2, GenerateRequest.of("hello")))
    said = bench.turns(3)
    assert frames.Counted(2, 5) in said
    assert bench.engine.drafts == [[]], "one was begun"
    bench.feed(frames.Count(3, GenerateRequest.of("long")), frames.Count(4, GenerateRequest.of("odd")))
    bench.feed(frames.Generate(5, GenerateRequest.of("x")))
    failed = [frame for frame in bench.turns() if isinstance(frame, frames.Failed)]
    assert [(frame.id, frame.kind) for frame in failed] == [(3, ErrorKind.CONTEXT_LENGTH), (4, ErrorKind.UPSTREAM)]
    assert "secret" not in failed[1].message


# -- bare text -------------------------------------------------------------------------------------------------

NOTED: dict[str, Any] = {"logprobs": True, "top_logprobs": 0}


def bare(bench: Bench, completion: Completion, **options: Any) -> tuple[list[Event], list[dict[str, Any]]]:
    """The answer to bare text of letters, by a model to which "z" is always twice as likely as each other one."""
    row = torch.zeros(128)
    row[ord("z")] = 1.0
    bench.engine.picks = row
    events = bench.answer("", completion=completion, temperature=0.0, **options)
    return events, [token for event in events if isinstance(event, Logprobs) for token in event.tokens]


def test_bare_text_is_gone_on_with(bench: Bench) -> None:
    events, _ = bare(bench, Completion("abc"), max_tokens=2)
    assert text_of(events) == "zz"
    assert events[-2:] == [Usage(3, 2), Finish("length", "echo")]


def test_an_echo_is_the_prompt_and_then_what_follows(bench: Bench) -> None:
    events, _ = bare(bench, Completion("abc", echo=True), max_tokens=2)
    assert text_of(events) == "abczz"
    assert events[-2] == Usage(3, 2)


def test_an_echo_of_the_prompt_alone_computes_nothing(bench: Bench) -> None:
    events, _ = bare(bench, Completion("abc", echo=True), max_tokens=0)
    assert text_of(events) == "abc"
    assert events[-2:] == [Usage(3, 0), Finish("length", "echo")]
    assert bench.engine.drafts == []


@pytest.mark.parametrize("more", [0, 2])
def test_the_prompts_tokens_have_their_log_probabilities_and_the_first_has_none(bench: Bench, more: int) -> None:
    events, told = bare(bench, Completion("azb", echo=True), max_tokens=more, extra=NOTED)
    assert text_of(events) == "azb" + "z" * more
    assert [token["token"] for token in told] == list("azb" + "z" * more)
    assert [token["text_offset"] for token in told] == list(range(3 + more))
    assert told[0]["logprob"] is None
    assert told[1]["logprob"] == pytest.approx(told[2]["logprob"] + 1)
    assert events[-2:] == [Usage(3, more), Finish("length", "echo")]
    assert bench.engine.drafts == [[ord("z"), ord("b")]], "the engine may compute them in one pass"


def test_a_stop_string_in_the_prompt_stops_nothing(bench: Bench) -> None:
    events, _ = bare(bench, Completion("a.b", echo=True), max_tokens=1, stop=(".",), extra=NOTED)
    assert text_of(events) == "a.bz"


def test_one_token_alone_has_nothing_to_tell(bench: Bench) -> None:
    events, told = bare(bench, Completion("a", echo=True), max_tokens=0, extra=NOTED)
    assert text_of(events) == "a"
    assert [token["logprob"] for token in told] == [None]


def test_what_fills_a_gap_ends_at_any_control_token_and_other_text_does_not(bench: Bench) -> None:
    bench.engine.script = [ord("z"), ord("|"), ord("y"), END]
    assert text_of(bench.answer("", completion=Completion("a", suffix="b"))) == "z"
    assert text_of(bench.answer("", completion=Completion("a"))) == "z|y"
