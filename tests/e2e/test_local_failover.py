"""The local model's worker is killed or frozen in the middle of an answer, and somebody else goes on with it.

Here it is a peer that has the same model, so the whole answer is known: it is the one that nobody disturbed.
`tests/providers_real/test_failover.py` has servers of other kinds.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.e2e.fixtures import client, in_thread, start, until_a_peer_offers
from tests.e2e.node_process import NodeProcess

pytestmark = pytest.mark.model

ALONE = "[providers.local_hf]\nthreads = 1\n[router]\nidle_s = 3.0\n"
GIVER = "[providers.local_hf]\nthreads = 1\nshare = true\n"
ASKED: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write a long story about a dragon."}],
    "max_tokens": 60,
    "temperature": 0,
    "stream": True,
}


def killed(worker: psutil.Process) -> None:
    worker.kill()


def frozen(worker: psutil.Process) -> None:
    worker.send_signal(signal.SIGSTOP)


class Answer:
    def __init__(self, node: NodeProcess) -> None:
        anew = {"cache-control": "no-cache"}
        raw = client(node).chat.completions.with_raw_response.create(**ASKED, extra_headers=anew)
        self.first = raw.headers["x-shoal-provider"]
        self._chunks = iter(raw.parse())
        self.text, self.shoal, self.reason = "", dict[str, Any](), ""

    def read(self, after: int = 0, then: Callable[[], None] = lambda: None) -> None:
        """To the end; once so many characters have come, `then`."""
        for chunk in self._chunks:
            self.shoal = getattr(chunk, "shoal", None) or self.shoal
            if chunk.choices:
                self.text += chunk.choices[0].delta.content or ""
                self.reason = chunk.choices[0].finish_reason or self.reason
            if after and len(self.text) >= after:
                after = 0
                then()


def worker_of(node: NodeProcess) -> psutil.Process:
    """That of local_hf, which is made anew for each answer after one was lost."""
    return max(psutil.Process(node.process.pid).children(), key=psutil.Process.create_time)


async def harmed(node: NodeProcess, harm: Callable[[psutil.Process], None], whole: Answer) -> list[dict[str, Any]]:
    """The route of an answer whose worker was harmed on the way; it is the whole one all the same."""
    answer = await in_thread(Answer, node)
    victim = await in_thread(worker_of, node)
    assert answer.first == "local_hf"
    assert int(Path(f"/proc/{victim.pid}/oom_score_adj").read_text()) > 0, "it goes before the node"
    await in_thread(answer.read, 40, lambda: harm(victim))
    assert answer.text == whole.text
    assert answer.reason == whole.reason
    route: list[dict[str, Any]] = answer.shoal["route"]
    assert route[0]["provider"] == "local_hf"
    assert route[0]["outcome"] in ("interrupted", "idle_timeout")
    assert route[-1]["outcome"] == "ok"
    return route


async def undisturbed(node: NodeProcess) -> Answer:
    whole = await in_thread(Answer, node)
    await in_thread(whole.read)
    assert whole.first == "local_hf"
    return whole


async def test_a_lost_worker_costs_a_gap_and_not_a_character(tmp_path: Path) -> None:
    giver = await start(tmp_path / "giver", config=GIVER)
    node = await start(tmp_path / "n", config=ALONE)
    try:
        with trio.fail_after(120):
            await in_thread(node.shoal, "join", giver.invite)
            await until_a_peer_offers(node, "smollm2")
            whole = await undisturbed(node)
            for harm in (killed, frozen):
                route = await harmed(node, harm, whole)
                assert len(route) == 2
                assert route[1]["peer"] == giver.peer_id
    finally:
        node.kill()
        giver.kill()
