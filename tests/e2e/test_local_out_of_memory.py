"""The kernel ends the local model's worker, because memory has run out in the node's own cgroup. Linux, as root.

Something else in that cgroup takes memory in the middle of an answer; the kernel chooses the worker, which has told it
to. The node names it so, another provider goes on, and the next answer has a fresh worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.fixtures import client, in_thread
from tests.e2e.node_process import SHOAL, NodeProcess
from tests.providers.fake_upstream import FakeUpstream

pytestmark = pytest.mark.model

LIMIT = 900_000_000
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
SWAP = {V1: "memory.memsw.limit_in_bytes", V2: "memory.swap.max"}
LIMITS = {V1: {"memory.limit_in_bytes": LIMIT, SWAP[V1]: LIMIT}, V2: {"memory.max": LIMIT, SWAP[V2]: 0}}
HOG = f"""
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
taken = [b"x" * (8 << 20) for _ in range({LIMIT >> 23})]
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup with little memory; the tests are left out where none can be made."""
    mount = V1 if (V1 / "cgroup.procs").exists() else V2
    if not (mount / "cgroup.procs").exists():
        pytest.skip("there are no cgroups here")
    folder = mount / f"shoal-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as fault:
        pytest.skip(f"no cgroup can be made here ({fault.strerror}): this needs root")
    try:
        for name, value in LIMITS[mount].items():
            if (folder / name).exists():
                (folder / name).write_text(str(value))
            elif name != SWAP[mount]:
                pytest.skip("cgroups do not limit memory here")
        yield folder
    finally:
        folder.rmdir()


async def test_a_worker_that_the_kernel_ends_for_want_of_memory_is_named_so_and_replaced(
    tmp_path: Path, cgroup: Path
) -> None:
    enter = 'echo $$ > "$0" && exec "$@"'

    class Confined(NodeProcess):
        PROGRAM = ("sh", "-c", enter, str(cgroup / "cgroup.procs"), SHOAL)

    async with FakeUpstream() as upstream:
        config = (
            "[providers.local_hf]\nthreads = 1\n"
            f'[providers.other]\ntype = "openai_compat"\nbase_url = "{upstream.url()}"\nmodels = ["smollm2"]\n'
            'continues = true\n[router]\norder = ["local_hf", "other"]\n'
        )
        node = await in_thread(Confined, tmp_path / "n", config=config)
        try:
            question: dict[str, Any] = {
                "model": "smollm2",
                "messages": [{"role": "user", "content": "Write a long story about a dragon."}],
                "max_tokens": 400,
                "temperature": 0,
                "extra_headers": {"cache-control": "no-store, no-cache"},
            }

            def disturbed() -> tuple[str, Any]:
                text, shoal, hog = "", {}, None
                for chunk in client(node).chat.completions.create(stream=True, **question):
                    shoal = getattr(chunk, "shoal", None) or shoal
                    text += chunk.choices[0].delta.content or "" if chunk.choices else ""
                    if len(text) > 40 and hog is None:
                        command = [sys.executable, "-I", "-S", "-c", HOG, str(cgroup / "cgroup.procs")]
                        hog = subprocess.Popen(command, stdin=subprocess.PIPE)
                assert hog is not None
                hog.kill()
                hog.wait()
                return text, shoal

            with trio.fail_after(120):
                text, shoal = await in_thread(disturbed)
                assert [each["provider"] for each in shoal["route"]] == ["local_hf", "other"]
                assert "ECHO<" in text
                assert text.index("ECHO<") > 40
                assert "ended by the kernel, because memory ran out" in node.stderr()
                again = await in_thread(client(node).chat.completions.create, **{**question, "max_tokens": 8})
                answer = again.choices[0].message.content
                assert answer
                assert text.startswith(answer)
        finally:
            await in_thread(node.kill)
            with trio.fail_after(10):
                while os.path.exists(cgroup) and (cgroup / "cgroup.procs").read_text():
                    await trio.sleep(0.05)
