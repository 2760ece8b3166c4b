"""The worker's loop: frames in, tokens computed, text out. One thread reads, the main one computes.

Imports no torch, so that the loop can be tested with an engine made of a few lines.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import TYPE_CHECKING

from ..base import ErrorKind, Finish, FinishReason, GenerateRequest, TextDelta, Usage
from .detokenizer import Detokenizer
from .engine import Sequence
from .frames import (
    Beat,
    Cancel,
    Dropped,
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
    from .model import Model

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
    """One request on its way: tokens in, events out."""

    def __init__(self, model: Model, request: GenerateRequest) -> None:
        from .sampling import Sampler

        prompt = model.prompter.prompt(request)
        self.prompt_tokens = len(prompt.messages)
        self.count = 0
        self.tokens = prompt.messages + prompt.prefix
        wanted = model.prompter.context_length if request.max_tokens is None else request.max_tokens
        self.room = min(wanted - len(prompt.prefix), model.prompter.context_length - len(self.tokens))
        temperature = model.temperature if request.temperature is None else request.temperature
        top_p = model.top_p if request.top_p is None else request.top_p
        self.sampler = Sampler(temperature, top_p, request.seed, drawn=len(prompt.prefix))
        self._ends = model.ends
        self._text = Detokenizer(model.decode, prompt.prefix[-CONTEXT_TOKENS:])
        self._stops = StopFilter(request.stop)

    def take(self, token: int) -> tuple[str, FinishReason | None]:
        """The text that a token brings, and why the answer is whole, when it is."""
        if token in self._ends:  # it ends the answer and is not part of it: not counted, as no text is
            return self._stops.flush(), "stop"
        self.count += 1
        text = self._stops.push(self._text.push(token))
        if self._stops.stopped:
            return text, "stop"
        if self.count >= self.room:
            return text + self._stops.flush(), "length"
        return text, None


class Server:
    """Serves the requests that come over the pipes with one model. Runs until the input ends."""

    def __init__(self, pipes: Pipes, model: Model) -> None:
        self._pipes, self._model, self._engine = pipes, model, model.engine
        self._answers: dict[int, _Answer] = {}

    def run(self) -> None:
        """Serve for ever; the end of the input ends the process."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take the frames that have come (wait for one when there is nothing to compute), then compute one step."""
        frame = self._pipes.receive(wait=not self._engine.busy)
        while frame is not None:
            self._handle(frame)
            frame = self._pipes.receive(wait=False)
        if self._engine.busy:
            for id_, token in self._engine.step(self._pipes.cancelled.__contains__):
                self._take(id_, token)
        self._pipes.flush()

    def _handle(self, frame: ToWorker) -> None:
        match frame:
            case Generate(id_, request):
                self._begin(id_, request)
            case Cancel(id_):
                self._pipes.cancelled.discard(id_)
                if self._answers.pop(id_, None) is not None:
                    self._engine.remove(id_)
                self._pipes.send(Dropped(id_))
            case Load():
                raise FrameError("a worker loads one model, once")

    def _begin(self, id_: int, request: GenerateRequest) -> None:
        if id_ in self._pipes.cancelled:  # its cancel frame is in the inbox, and is answered from there
            return
        try:
            answer = _Answer(self._model, request)
        except PromptRefused as refusal:
            self._pipes.send(Failed(id_, refusal.kind, refusal.message))
            return
        except Exception as fault:  # one odd request must not end the others; its text stays out of the message
            self._pipes.send(Failed(id_, ErrorKind.UPSTREAM, f"the prompt could not be made ({type(fault).__name__})"))
            return
        if answer.room < 1:
            self._finish(id_, answer, "length")
            return
        self._answers[id_] = answer
        self._engine.add(Sequence(id_, answer.tokens, answer.room, answer.sampler))

    def _take(self, id_: int, token: int) -> None:
        answer = self._answers.get(id_)
        if answer is None:
            return
        text, reason = answer.take(token)
        if text:
            self._pipes.send(Said(id_, TextDelta(text)))
        if reason is not None:
            self._engine.remove(id_)
            del self._answers[id_]
            self._finish(id_, answer, reason)

    def _finish(self, id_: int, answer: _Answer, reason: FinishReason) -> None:
        self._pipes.send(Rates(self._engine.prefill_tps, self._engine.decode_tps))
        self._pipes.send(Said(id_, Usage(answer.prompt_tokens, answer.count)))
        self._pipes.send(Said(id_, Finish(reason, self._model.name)))
