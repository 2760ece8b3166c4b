"""The local model's worker is killed or frozen in the middle of an answer, and a real server of another kind goes on.

`transformers serve` has the very weights and computes in fp32, so the whole answer is the undisturbed one, to the
letter. llama.cpp computes otherwise: it must be asked for the rest of what was said, and what it says must follow.

scripts/install_backends.sh && scripts/install_llama_cpp.sh
python -m pytest -m providers tests/providers_real/test_failover.py
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import trio

from tests.e2e.fixtures import in_thread, start
from tests.e2e.node_process import NodeProcess
from tests.e2e.test_local_failover import ASKED, Answer, frozen, killed, worker_of

from .test_backends import PYTHON, Serve, models_dir, serve  # noqa: F401 - fixtures
from .test_llama_cpp import BUILT, STORE, found_at, own_server

pytestmark = [pytest.mark.providers, pytest.mark.model]

LOCAL = '[providers.local_hf]\nthreads = 1\n[router]\norder = ["local_hf"]\nidle_s = 3.0\nfirst_token_s = 60\n'


async def broken_off(node: NodeProcess, harm: Callable[[psutil.Process], None]) -> tuple[Answer, Any]:
    """An answer whose worker was harmed on the way, and its route."""
    answer = await in_thread(Answer, node)
    victim = await in_thread(worker_of, node)
    assert answer.first == "local_hf"
    await in_thread(answer.read, 40, lambda: harm(victim))
    route = answer.shoal["route"]
    assert route[0]["provider"] == "local_hf"
    assert route[0]["outcome"] in ("interrupted", "idle_timeout")
    assert route[-1]["outcome"] == "ok"
    assert route[-1]["provider"] != "local_hf"
    return answer, route


@pytest.mark.skipif(not PYTHON.exists(), reason="not installed: run scripts/install_backends.sh (make providers does)")
async def test_a_server_with_the_same_weights_ends_the_answer_to_the_letter(tmp_path: Path, serve: Serve) -> None:  # noqa: F811
    table = (
        f'[providers.backend_manager.backends.serve]\nbase_url = "{serve.url}"\nmodels = ["{serve.model}"]\n'
        f'aliases = {{ smollm2 = "{serve.model}" }}\n'
    )
    with trio.fail_after(120):
        await until_serving(serve)
    node = await start(tmp_path / "n", config=LOCAL + table)
    try:
        with trio.fail_after(240):
            whole = await in_thread(Answer, node)
            await in_thread(whole.read)
            for harm in (killed, frozen):
                answer, _ = await broken_off(node, harm)
                assert answer.text == whole.text
                assert answer.reason == whole.reason
    finally:
        node.kill()


async def until_serving(serve: Serve) -> None:  # noqa: F811
    """It listens before it has loaded the model."""
    direct = openai.OpenAI(base_url=serve.url, api_key="unused", max_retries=0, timeout=60)
    done = False
    while not done:
        await trio.sleep(0.2)
        with contextlib.suppress(openai.APIError):
            await in_thread(direct.chat.completions.create, **{**ASKED, "model": serve.model, "stream": False})
            done = True


class Between:
    """A proxy that hears what a server is asked and what it says; one request at a time."""

    def __init__(self, port: int) -> None:
        between = self
        self.prefix, self.said = "", ""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._pass_on("GET", None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                last = json.loads(body)["messages"][-1]
                between.prefix, between.said = last["content"] if last["role"] == "assistant" else "", ""
                self._pass_on("POST", body)

            def _pass_on(self, method: str, body: bytes | None) -> None:
                line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                line.request(method, self.path, body, {"content-type": "application/json"})
                reply = line.getresponse()
                self.send_response(reply.status)
                self.send_header("content-type", reply.headers["content-type"])
                self.send_header("connection", "close")
                self.end_headers()
                for row in reply:
                    self.wfile.write(row)
                    if row.startswith(b"data: {"):
                        for choice in json.loads(row[6:])["choices"]:
                            between.said += choice["delta"].get("content") or ""

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.skipif(not (BUILT / "installed").exists(), reason="not built: run scripts/install_llama_cpp.sh")
async def test_another_engine_goes_on_from_the_text_so_far_and_nothing_is_lost_at_the_seam(tmp_path: Path) -> None:
    server = own_server(next((STORE / "smollm2").glob("*.gguf")), tmp_path)
    node = between = None
    try:
        await found_at(server.address)
        between = Between(int(server.address.rpartition(":")[2]))
        table = f'[providers.other]\ntype = "openai_compat"\nbase_url = "{between.url}"\ncontinues = true\n'
        node = await start(tmp_path / "n", config=LOCAL + table)
        with trio.fail_after(240):
            whole = await in_thread(Answer, node)
            await in_thread(whole.read)
            for harm in (killed, frozen):
                answer, route = await broken_off(node, harm)
                assert len(between.prefix) >= 40, route
                assert whole.text.startswith(between.prefix)
                assert between.said
                assert answer.text == between.prefix + between.said
    finally:
        if node is not None:
            node.kill()
        if between is not None:
            between.server.shutdown()
        server.kill()
