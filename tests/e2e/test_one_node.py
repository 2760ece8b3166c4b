"""One real node as a process, asked by real clients: the openai package, curl's requests, and the shoal command."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start, until
from tests.e2e.node_process import SHOAL
from tests.providers.fake_upstream import FakeUpstream


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def test_the_openai_package_gets_whole_answers_and_streams(tmp_path: Path, upstream: FakeUpstream) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url())) as node:
        whole = await in_thread(client(node).chat.completions.create, **question())
        assert whole.choices[0].message.content == "ECHO<one two three>"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0

        def stream() -> list[Any]:
            options = {"stream": True, "stream_options": {"include_usage": True}}
            return list(client(node).chat.completions.create(**question("four five six", **options)))

        chunks = await in_thread(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "ECHO<four five six>"
        assert chunks[-1].usage.completion_tokens > 0

        models = await in_thread(lambda: [m.id for m in client(node).models.list()])
        assert "echo" in models
    assert node.process.returncode == 0


async def test_the_same_question_is_answered_once_and_then_from_the_cache_even_after_kill_9(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    config = fast(upstream.url())
    with await start(tmp_path / "n", config=config) as node:
        ask = client(node).chat.completions.with_raw_response.create
        first = await in_thread(ask, **question())
        second = await in_thread(ask, **question())
        assert [r.headers["x-shoal-cache"] for r in (first, second)] == ["miss", "memory"]
        cid = first.headers["x-shoal-cid"]
        assert second.headers["x-shoal-cid"] == cid
        assert first.parse().choices[0].message == second.parse().choices[0].message
        assert len(upstream.chats) == 1
        verified = await in_thread(node.shoal, "verify", cid)
        assert verified.returncode == 0
        record = json.loads((await in_thread(node.shoal, "cache", "get", cid, "--json")).stdout)
        assert record["content"] == "ECHO<one two three>"
        assert record["node"] == node.peer_id
        await until(node, ("cache", "stats"), lambda stats: stats["disk"]["answers"] == 1)
        node.kill()
    with await start(tmp_path / "n", config=config) as node:
        third = await in_thread(client(node).chat.completions.with_raw_response.create, **question())
        assert (third.headers["x-shoal-cache"], third.headers["x-shoal-cid"]) == ("disk", cid)
        assert len(upstream.chats) == 1


async def test_a_client_that_leaves_ends_the_upstream_call(tmp_path: Path, upstream: FakeUpstream) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url("stall"))) as node:

        def leave_after_the_first_chunk() -> None:
            stream = client(node).chat.completions.create(**question(stream=True))
            next(iter(stream))
            stream.close()

        await in_thread(leave_after_the_first_chunk)
        await upstream.until(disconnects=1, within=2)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b'{"model": "echo"}', 400, "messages"),
        (b'{"model": "echo", "messages": "hi"}', 400, "messages"),
        (b'{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": "ten"}', 400, "max_tokens"),
        (b'{"model": "nobody-has-it", "messages": [{"role": "user", "content": "hi"}]}', 404, "model"),
    ],
)
async def test_bad_input_gets_openais_error_json(
    tmp_path: Path, upstream: FakeUpstream, body: bytes, status: int, param: str | None
) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url())) as node:
        got, error = await in_thread(post, node.rpc + "/v1/chat/completions", body)
        assert got == status
        assert {"message", "type", "param", "code"} <= error["error"].keys()
        assert (error["error"]["param"] or "").split("[")[0].split(".")[0] == (param or "")


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_a_web_page_cannot_drive_the_node(tmp_path: Path, upstream: FakeUpstream) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url())) as node:
        body = json.dumps(question()).encode()
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            status, error = await in_thread(post, node.rpc + "/v1/chat/completions", body, **headers)
            assert status == 403
            assert error["error"]["message"]
        assert not upstream.chats


async def test_the_node_keeps_its_identity_private_and_its_folder_to_itself(tmp_path: Path) -> None:
    with await start(tmp_path / "n", config=NO_MODEL) as node:
        keys = [p for p in (tmp_path / "n").rglob("*") if p.is_file() and "identity" in p.name]
        assert keys
        assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in keys)
        second = await in_thread(
            subprocess.run,
            [SHOAL, "run", "--data-dir", str(tmp_path / "n"), "--rpc", "127.0.0.1:0"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode == 3
        assert len(second.stderr.strip().splitlines()) == 1
        assert str(node.process.pid) in second.stderr
        peer_id = node.peer_id
    with await start(tmp_path / "n", config=NO_MODEL) as node:
        assert node.peer_id == peer_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_within_three_seconds(
    tmp_path: Path, upstream: FakeUpstream, number: signal.Signals
) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url("hang"))) as node:
        connection = socket.create_connection(("127.0.0.1", node.port))
        body = json.dumps(question()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        await upstream.until(count=1)
        began = time.monotonic()
        os.kill(node.process.pid, number)
        assert await in_thread(node.process.wait, 10) == 0
        assert time.monotonic() - began < 3
        connection.close()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[rpc]\nlistne = '127.0.0.1:1'\n", ("rpc.listne", "listen")),
        ("[rpc]\nlisten = 5\n", ("rpc.listen",)),
        ("[rpc]\nlisten = 'somewhere'\n", ("rpc.listen",)),
        ("[providers.fast]\ntype = 'openai_compat'\nbase_url = 'http://127.0.0.1:1'\nbase = 1\n", ("fast", "base")),
        ("not toml", ("line 1",)),
    ],
)
async def test_a_bad_configuration_is_one_line_that_names_file_key_and_remedy(
    tmp_path: Path, config: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(config)
    run = await in_thread(
        subprocess.run,
        [SHOAL, "run", "--data-dir", str(tmp_path / "n"), "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert all(word in run.stderr for word in ("bad.toml", *words))


async def test_the_daemon_imports_neither_torch_nor_transformers(tmp_path: Path, upstream: FakeUpstream) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url())) as node:
        await in_thread(client(node).chat.completions.create, **question())
        maps = Path(f"/proc/{node.process.pid}/maps").read_text()
        assert "libtorch" not in maps


async def test_ask_streams_to_the_terminal_and_says_who_answered(tmp_path: Path, upstream: FakeUpstream) -> None:
    with await start(tmp_path / "n", config=fast(upstream.url())) as node:
        asked = await in_thread(node.shoal, "ask", "seven eight", "--model", "echo")
        assert asked.stdout.strip() == "ECHO<seven eight>"
        assert "fast" in asked.stderr
        assert len(asked.stderr.strip().splitlines()) == 1
    gone = await in_thread(node.shoal, "ask", "anyone?", check=False)
    assert gone.returncode == 4
    assert "shoal run" in gone.stderr
