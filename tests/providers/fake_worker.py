"""A worker of the local model without a model: the message of a request says what happens.

    python fake_worker.py LOG [ready|refuse|crash|never]     what it does when told to load; its pid goes into LOG

Messages: "words N" (N pieces, then the end), "forever" (a piece every 10 ms until cancelled), "silent" (nothing at
all), "beats" (beats only), "die" (SIGKILL at once), "word then die", "garbage" (no frame), "too long" (a refusal),
"environ" (the names of its variables), "noise" (a flood on standard error, then the end).
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from pathlib import Path

from shoal.providers.base import ErrorKind, Event, Finish, TextDelta, Usage
from shoal.providers.hf_worker import frames


class FakeWorker:
    def __init__(self, log: Path, manner: str) -> None:
        self.log, self.manner = log, manner
        self.inbox: queue.SimpleQueue[frames.ToWorker] = queue.SimpleQueue()
        self.endless: dict[int, str] = {}

    def send(self, *whole: frames.FromWorker) -> None:
        os.write(1, b"".join(map(frames.encode, whole)))

    def read(self) -> None:
        splitter = frames.FrameSplitter()
        while data := os.read(0, 65536):
            for body in splitter.feed(data):
                self.inbox.put(frames.to_worker(body))
        os._exit(0)

    def run(self) -> None:
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        threading.Thread(target=self.read, daemon=True).start()
        load = self.inbox.get()
        assert isinstance(load, frames.Load)
        if load.trials:
            slow, fast = {1: 5.0, 4: 9.0, 16: 20.0}, {1: 6.0, 4: 19.0, 16: 60.0}
            self.send(frames.Timed("cpu", {"lean": slow, "paged": fast, "slots": slow}))
            return
        if self.manner == "refuse":
            self.send(frames.Refused(f"the model {load.name} cannot be loaded (too odd)"))
            return
        if self.manner == "crash":
            os.write(2, b"the worker ends by RuntimeError\n")
            sys.exit(7)
        if self.manner == "ready":
            self.send(frames.Ready(512, "float32", "cpu", 1, 0.1))
        while True:
            try:
                frame = self.inbox.get(timeout=0.01 if self.endless else None)
            except queue.Empty:
                for id_, kind in self.endless.items():
                    self.send(frames.Beat() if kind == "beats" else frames.Said(id_, TextDelta("more ")))
                continue
            if isinstance(frame, frames.Generate):
                self.answer(frame.id, frame.request.messages[-1].text)
            elif isinstance(frame, frames.Cancel):
                self.endless.pop(frame.id, None)
                self.send(frames.Dropped(frame.id))

    def answer(self, id_: int, wish: str) -> None:
        def say(*events: Event) -> None:
            self.send(*(frames.Said(id_, event) for event in events))

        match wish.split():
            case ["words", count]:
                say(*(TextDelta(f"w{n} ") for n in range(int(count))), Usage(3, int(count)), Finish("stop", "fake"))
                self.send(frames.Rates(100.0, 10.0))
            case ["forever" | "beats" as kind]:
                self.endless[id_] = kind
            case ["silent"]:
                pass
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["word", "then", "die"]:
                say(TextDelta("w0 "))
                os.kill(os.getpid(), signal.SIGKILL)
            case ["garbage"]:
                os.write(1, b"\xff" * 64)
            case ["too", "long"]:
                self.send(frames.Failed(id_, ErrorKind.CONTEXT_LENGTH, "the messages have 900 tokens"))
            case ["environ"]:
                say(TextDelta(" ".join(sorted(os.environ))), Usage(1, 1), Finish("stop", "fake"))
            case ["noise"]:
                for _ in range(2000):
                    os.write(2, b"x" * 500 + b"\n")
                say(Usage(1, 0), Finish("stop", "fake"))
            case _:
                raise AssertionError("no such wish")


if __name__ == "__main__":
    FakeWorker(Path(sys.argv[1]), sys.argv[2]).run()
