"""The worker's loop: frames in, tokens computed, text out. One thread reads, the main one computes.

Imports no torch, so that the loop can be tested with an engine made of a few lines.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from ..base import ErrorKind, Finish, FinishReason, GenerateRequest, Logprobs, TextDelta, Usage
from .detokenizer import Detokenizer
from .engine import NoRoomError, Sequence
from .frames import (
    Beat,
    Cancel,
    Count,
    Counted,
    Dropped,
    Embed,
    Failed,
    FrameError,
    FrameSplitter,
    FromWorker,
    Generate,
    Load,
    Rates,
    Said,
    ToWorker,
    encode,
    to_worker,
)
from .prompt import PromptRefused
from .stops import StopFilter

if TYPE_CHECKING:
    from .loaded import Model
    from .logprobs import TokenNotes
    from .sampling import Sampler

BEAT_S = 1.0
"""Seconds after which a computing worker that has nothing to say shows that it lives."""
CONTEXT_TOKENS = 8
"""Tokens of a continued answer that the first new one is decoded with."""


class Pipes:
    """Frames over two file descriptors. `receive` is fed by a thread; the end of the input ends the process."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self.cancelled: set[int] = set()
        """Ids of requests whose cancel frame has come, known before the frame is received."""
        self._out = bytearray()
        self._spoke = time.monotonic()

    def start(self) -> None:
        threading.Thread(target=self._read, name="frames", daemon=True).start()

    def _read(self) -> None:
        splitter = FrameSplitter()
        try:
            while data := os.read(self._read_fd, 65536):
                for body in splitter.feed(data):
                    frame = to_worker(body)
                    if isinstance(frame, Cancel):
                        self.cancelled.add(frame.id)
                    self._inbox.put(frame)
        except FrameError:
            os._exit(3)
        # The daemon is gone or wants this worker gone: there is nothing to put in order, and the main thread may be
        # seconds deep in a product of matrices.
        os._exit(0)

    def receive(self, wait: bool) -> ToWorker | None:
        """The next frame; None when there is none now and `wait` is false."""
        try:
            return self._inbox.get(block=wait)
        except queue.Empty:
            return None

    def send(self, frame: FromWorker) -> None:
        """Keep a frame for the next flush."""
        self._out += encode(frame)

    def flush(self) -> None:
        """Write what was sent, or a beat when nothing was for a while."""
        now = time.monotonic()
        if not self._out:
            if now - self._spoke < BEAT_S:
                return
            self.send(Beat())
        self._spoke = now
        view = memoryview(bytes(self._out))
        self._out.clear()
        while view:
            view = view[os.write(self._write_fd, view) :]


class _Answer:
    """One request on its way: tokens in, events out.

    A continued answer is first picked again (`replaying`): its text is known, but not the tokens that it was made of,
    and the same text in other tokens goes on differently. The text's usual tokens are the engine's draft, so that
    nearly all of it is checked in one piece. When what is picked is not that text, somebody else wrote it: then its
    usual tokens are taken as they are (`accept_prefix`).
    """

    def __init__(self, model: Model, request: GenerateRequest) -> None:
        prompt = model.prompter.prompt(request)
        self.prompt_tokens = len(prompt.messages)
        self.count = 0
        self._model, self._prompt, self._prefix = model, prompt, prompt.text
        self._wanted = model.prompter.context_length if request.max_tokens is None else request.max_tokens
        temperature = model.temperature if request.temperature is None else request.temperature
        top_p = model.top_p if request.top_p is None else request.top_p

        top = request.extra.get("top_logprobs") or 0
        noted = bool(request.extra.get("logprobs"))
        bare, echo = request.completion is not None, request.completion is not None and request.completion.echo
        reads = prompt.messages[1:] if echo and noted else []
        fills = request.completion is not None and request.completion.suffix is not None
        # What fills a gap ends by a control token of its own (CodeLlama's <EOT>), which ends no other answer.
        self._ends = model.ends | model.prompter.controls if fills else model.ends
        self._notes: TokenNotes | None = None

        def sampler(drawn: int) -> Sampler:
            picks: Any = model.sampler(temperature, top_p, request.seed, drawn)
            if noted:
                from .logprobs import Noting, Reading, TokenNotes

                picks = noting = Noting(Reading(reads, picks) if reads else picks, top)
                self._notes = TokenNotes(noting.notes, model.prompter.word, offsets=bare and not request.prefix)
            return picks  # type: ignore[no-any-return]

        self._sampler = sampler
        self._stops = StopFilter(request.stop)
        self.replaying = bool(self._prefix) and model.engine.verifies and not (request.seed is None and temperature > 0)
        self._replayed = ""
        self._picked = 0
        self._behind = prompt.messages if bare and not echo else []  # what the answer's first token is decoded behind
        self._text = Detokenizer(model.decode, self._behind[-CONTEXT_TOKENS:])
        self.opening = ""
        """What is said before anything is computed: the prompt, or its first token."""
        self._unread = len(reads)
        self._begin(prompt.messages, 0)
        self.draft = list(prompt.prefix) if self.replaying else []
        if echo:
            self._echo(prompt.messages, reads)
        elif not self.replaying:
            self.accept_prefix()

    def _echo(self, prompt: list[int], reads: list[int]) -> None:
        """The answer begins with the prompt. With `reads`, its tokens are picked one by one, as they are known; they
        are the engine's draft, so that many are computed in one pass."""
        self.opening = "".join(map(self._text.push, prompt[: 1 if self._notes is not None else None]))
        if self._notes is not None:
            self._notes.begins(prompt[0], self.opening)
        if reads:
            self.tokens, self.draft = prompt[:1], list(reads)
            self.room += len(reads)

    def _begin(self, tokens: list[int], drawn: int) -> None:
        self.tokens = tokens
        self.room = min(self._wanted - drawn, self._model.prompter.context_length - len(tokens))
        self.sampler = self._sampler(drawn)

    def accept_prefix(self) -> None:
        """Go on from the text as it is."""
        prefix = self._prompt.prefix
        self.replaying, self.draft, self._picked = False, [], 0
        self._text = Detokenizer(self._model.decode, (self._behind + prefix)[-CONTEXT_TOKENS:])
        self._begin(self._prompt.messages + prefix, len(prefix))

    def sequence(self, id_: int) -> Sequence:
        return Sequence(id_, self.tokens, self.room, self.sampler, list(self.draft))

    def take(self, token: int) -> tuple[str, FinishReason | None]:
        """The text that a token brings, and why the answer is whole, when it is."""
        if self._unread:
            self._unread -= 1
            self._picked += 1
            text = self._text.push(token)
            if self._notes is not None:
                self._notes.brought(text)
            return text, "length" if self._picked >= self.room else None
        if token in self._ends:  # it ends the answer and is not part of it: not counted, as no text is
            return self._stops.flush(), "stop"
        self.count += 1
        self._picked += 1
        text = self._text.push(token)
        if self._notes is not None:
            self._notes.brought(text)
        return self._said(text)

    def logprobs(self, text: str, reason: FinishReason | None) -> Logprobs | None:
        """Log probabilities of the tokens whose text is said now, where they are wanted."""
        stopped = self._stops.stopped  # then what is left are tokens of the stop string
        told = self._notes.due(text, whole=reason is not None and not stopped) if self._notes is not None else ()
        return Logprobs(told) if told else None

    def _said(self, text: str) -> tuple[str, FinishReason | None]:
        text = self._stops.push(text)
        if self._stops.stopped:
            return text, "stop"
        if self._picked >= self.room:
            return text + self._stops.flush(), "length"
        return text, None

    def replay(self, token: int) -> bool:
        """Take a token while replaying; false when it does not lead to the known text."""
        self._picked += 1
        if token in self._ends or self._picked > self.room:
            return False
        text = self._text.push(token)
        self._replayed += text
        self.replaying = not self._replayed.startswith(self._prefix)
        if self._notes is not None:
            new = self._replayed[len(self._prefix) :]
            self._notes.brought(new) if new and not self.replaying else self._notes.passed()
        return not self.replaying or self._prefix.startswith(self._replayed)

    def met(self) -> tuple[str, FinishReason | None]:
        """As `take`, for the token that completed the known text: what it says beyond that is new."""
        new = self._replayed[len(self._prefix) :]
        self.count += bool(new)
        return self._said(new)

    def redrafted(self, token: int) -> list[int] | None:
        """A new draft when `token`, which was just picked, is not the one that the draft had; else None."""
        if self.draft and self.draft[0] == token:
            del self.draft[0]
            return None
        left = self._prefix[len(self._replayed) :]
        self.draft = self._model.prompter.tokens(left) if left and not self._text.holds else []
        return [token, *self.draft]


class Server:
    """Serves the requests that come over the pipes with one model. Runs until the input ends."""

    def __init__(self, pipes: Pipes, model: Model) -> None:
        self._pipes, self._model, self._engine = pipes, model, model.engine
        self._answers: dict[int, _Answer] = {}
        self._served = False

    def run(self) -> None:
        """Serve for ever; the end of the input ends the process."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take the frames that have come (wait for one when there is nothing to compute), then compute one step."""
        trials = self._model.calibration
        trying = trials is not None and self._served and not self._engine.busy and trials.due
        frame = self._pipes.receive(wait=not self._engine.busy and not trying)
        if frame is None and trying and trials is not None:
            trials.slice()
        while frame is not None:
            self._handle(frame)
            frame = self._pipes.receive(wait=False)
        if self._engine.busy:
            over: set[int] = set()
            try:
                picked = self._engine.step(self._gone)
            except NoRoomError as fault:
                self._give_up(fault)
                picked = []
            for id_, token in picked:
                if id_ not in over and not self._take(id_, token):
                    over.add(id_)
        self._pipes.flush()

    def _gone(self, id_: int) -> bool:
        """Whether nobody wants a request any more. Asked between layers, so it is also where a long pass shows life."""
        self._pipes.flush()
        return id_ in self._pipes.cancelled

    def _handle(self, frame: ToWorker) -> None:
        match frame:
            case Generate(id_, request):
                self._begin(id_, request)
            case Count(id_, request):
                self._count(id_, request)
            case Cancel(id_):
                self._pipes.cancelled.discard(id_)
                if self._answers.pop(id_, None) is not None:
                    self._engine.remove(id_)
                self._pipes.send(Dropped(id_))
            case Load() | Embed():
                raise FrameError("this worker has loaded a model, and answers")

    def _begin(self, id_: int, request: GenerateRequest) -> None:
        if id_ in self._pipes.cancelled:  # its cancel frame is in the inbox, and is answered from there
            return
        try:
            answer = _Answer(self._model, request)
        except Exception as fault:  # one odd request must not end the others
            self._pipes.send(_failed(id_, fault))
            return
        self._answers[id_] = answer
        self._start(id_, answer)

    def _count(self, id_: int, request: GenerateRequest) -> None:
        if id_ in self._pipes.cancelled:
            return
        try:
            tokens = self._model.prompter.count(request)
        except Exception as fault:
            self._pipes.send(_failed(id_, fault))
            return
        self._pipes.send(Counted(id_, tokens))

    def _start(self, id_: int, answer: _Answer) -> None:
        if answer.opening or answer.room < 1:
            self._say(id_, answer, answer.opening, "length" if answer.room < 1 else None)
        if answer.room < 1:
            del self._answers[id_]
            self._finish(id_, answer, "length")
        else:
            self._engine.add(answer.sequence(id_))

    def _take(self, id_: int, token: int) -> bool:
        """False when the other tokens of this step are no longer wanted for this request."""
        answer = self._answers.get(id_)
        if answer is None:
            return False
        if answer.replaying:
            return self._replay(id_, answer, token)
        text, reason = answer.take(token)
        return self._tell(id_, answer, text, reason)

    def _tell(self, id_: int, answer: _Answer, text: str, reason: FinishReason | None) -> bool:
        self._say(id_, answer, text, reason)
        if reason is not None:
            cached = self._engine.reused(id_)
            self._engine.remove(id_)
            del self._answers[id_]
            self._finish(id_, answer, reason, cached)
        return reason is None

    def _say(self, id_: int, answer: _Answer, text: str, reason: FinishReason | None) -> None:
        if text:
            self._pipes.send(Said(id_, TextDelta(text)))
        if (told := answer.logprobs(text, reason)) is not None:
            self._pipes.send(Said(id_, told))

    def _replay(self, id_: int, answer: _Answer, token: int) -> bool:
        if not answer.replay(token):
            self._engine.remove(id_)
            answer.accept_prefix()
            self._start(id_, answer)
            return False
        if answer.replaying:
            draft = answer.redrafted(token)
            if draft is not None:
                self._engine.redraft(id_, draft)
            return True
        return self._tell(id_, answer, *answer.met())

    def _give_up(self, fault: NoRoomError) -> None:
        """The device has no memory for one request; whoever asked may go on elsewhere from the text so far."""
        answer = self._answers.pop(fault.id, None)
        if answer is not None:
            begun = answer.count > 0
            self._pipes.send(Failed(fault.id, ErrorKind.INTERRUPTED if begun else ErrorKind.UNAVAILABLE, fault.message))

    def _finish(self, id_: int, answer: _Answer, reason: FinishReason, cached: int = 0) -> None:
        self._served = True
        self._pipes.send(Rates(self._engine.prefill_tps, self._engine.decode_tps))
        self._pipes.send(Said(id_, Usage(answer.prompt_tokens, answer.count, min(cached, answer.prompt_tokens))))
        self._pipes.send(Said(id_, Finish(reason, self._model.name)))


def _failed(id_: int, fault: Exception) -> Failed:
    """Why a request has no prompt; what a stranger's exception says may quote the text, and stays out."""
    if isinstance(fault, PromptRefused):
        return Failed(id_, fault.kind, fault.message)
    return Failed(id_, ErrorKind.UPSTREAM, f"the prompt could not be made ({type(fault).__name__})")
