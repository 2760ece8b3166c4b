"""Answers cut anywhere and gone on from: the tail must be the uninterrupted one, or no stream could be resumed.

    python -m benchmarks continuation                (BENCH_CUTS=200 makes fewer than 1,000 cuts)

The cut is at a random character of a greedy answer, so mostly inside a word and often inside a token. Only the text is
handed over, as a node that takes over from another has nothing else. Runs the worker's server and the real model in
this process, without the pipes between.
"""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec
from shoal.providers import weights
from shoal.providers.base import GenerateRequest
from shoal.providers.hf_worker import server
from shoal.providers.hf_worker.frames import Generate, Load, Said

from .local_prompts import questions
from .table import show

CUTS = int(os.environ.get("BENCH_CUTS", "1000"))
CUT_TOKENS = 32
TOGETHER = 8
"""Answers on their way at the same time: their company must not change them either."""


def continued(model: Any, cuts: int, rng: random.Random, asking: list[str]) -> tuple[int, int]:
    """Answers cut at random characters and gone on from: how many came out as the uninterrupted, of how many."""

    class Wire:
        """Pipes that end here."""

        def __init__(self) -> None:
            self.inbox: list[Any] = []
            self.cancelled: set[int] = set()
            self.said: dict[int, str] = {}
            self.finished: set[int] = set()

        def receive(self, wait: bool) -> Any:
            return self.inbox.pop(0) if self.inbox else None

        def send(self, frame: Any) -> None:
            if isinstance(frame, Said):
                text = getattr(frame.event, "text", "")
                self.said[frame.id] = self.said.get(frame.id, "") + text
                if type(frame.event).__name__ == "Finish":
                    self.finished.add(frame.id)

        def flush(self) -> None:
            pass

    wire = Wire()
    serving = server.Server(wire, model)  # type: ignore[arg-type]

    def answers(requests: dict[int, GenerateRequest]) -> dict[int, str]:
        wire.said, wire.finished = dict.fromkeys(requests, ""), set()
        waiting = [Generate(id_, request) for id_, request in requests.items()]
        while len(wire.finished) < len(requests):
            while waiting and len(serving._answers) + len(wire.inbox) < TOGETHER:
                wire.inbox.append(waiting.pop(0))
            serving.turn()
        return wire.said

    asked = {at: GenerateRequest.of(q, max_tokens=CUT_TOKENS, temperature=0.0) for at, q in enumerate(asking)}
    whole = answers(asked)
    made = []
    for id_ in range(100, 100 + cuts):
        at = rng.choice([each for each in asked if len(whole[each]) > 3])
        made.append((id_, at, rng.randrange(1, len(whole[at]))))
    tails = answers({id_: msgspec.structs.replace(asked[at], prefix=whole[at][:cut]) for id_, at, cut in made})
    same = sum(tails[id_] == whole[at][cut:] for id_, at, cut in made)
    return same, len(made)


def main() -> None:
    from shoal.providers.hf_worker.model import load

    store = weights.models_dir(os.environ)
    folder = weights.install("smollm2", store)
    model = load(Load("smollm2", str(folder), len(os.sched_getaffinity(0)), kv_tokens=8192))
    same, cuts = continued(model, CUTS, random.Random(8), questions())
    show("Greedy answers cut at a random character and gone on from", ("tail as uninterrupted", "of"), [(same, cuts)])


if __name__ == "__main__":
    main()
