"""The local model's worker is killed or frozen in the middle of an answer, and another model goes on with it.

Both are SmolLM2 in workers of their own, so the whole answer is known: it is the one that nobody disturbed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.e2e.fixtures import client, in_thread, start
from tests.e2e.node_process import NodeProcess

pytestmark = pytest.mark.model

CONFIG = """[providers.local_hf]
threads = 1
[providers.spare]
type = "local_hf"
threads = 1
[router]
order = ["local_hf", "spare"]
idle_s = 3.0
"""
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


async def test_a_lost_worker_costs_a_gap_and_not_a_character(tmp_path: Path) -> None:
    node = await start(tmp_path / "n", config=CONFIG)

    def worker() -> psutil.Process:  # that of local_hf, which is made anew for the second answer
        return max(psutil.Process(node.process.pid).children(), key=psutil.Process.create_time)

    try:
        with trio.fail_after(120):
            whole = await in_thread(Answer, node)
            await in_thread(whole.read)
            assert whole.first == "local_hf"
            for harm in (killed, frozen):
                answer = await in_thread(Answer, node)
                victim = await in_thread(worker)
                assert answer.first == "local_hf"
                score = Path(f"/proc/{victim.pid}/oom_score_adj").read_text()
                assert int(score) > 0, "it goes before the node where memory runs out"
                await in_thread(answer.read, 40, lambda harm=harm, victim=victim: harm(victim))
                assert answer.text == whole.text
                route = answer.shoal["route"]
                assert [each["provider"] for each in route] == ["local_hf", "spare"]
                assert route[0]["outcome"] in ("interrupted", "idle_timeout")
                assert route[1]["outcome"] == "ok"
    finally:
        node.kill()
