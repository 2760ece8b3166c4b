"""Keys are sent where they belong and show nowhere else: not in a file, an answer, a header, a table or a log line.

A real node with a key from each place that one can come from, against upstreams that repeat the key in their errors.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.fixtures import NO_MODEL, in_thread, start
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

KEYS = {
    "desk": "sk-planted-desk-0001",
    "filed": "sk-planted-filed-0002",
    "openrouter": "sk-or-v1-planted-0003",
    "pool": "sk-planted-pool-0004",
    "said": "sk-planted-said-0005",
}


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


def configuration(upstream: FakeUpstream, keys: Path) -> str:
    def compat(name: str, scenario: str, more: str) -> str:
        return (
            f'[providers.{name}]\ntype = "openai_compat"\nbase_url = "{upstream.url(scenario)}"\n'
            f'models = ["{name}-model"]\n{more}\n'
        )

    return (
        f'{NO_MODEL}[log]\nlevel = "debug"\n'
        + compat("desk", "s401+sayskey+listed", 'api_key_env = "DESK_KEY"')
        + compat("filed", "s400+sayskey+listed", f'api_key_file = "{keys / "filed"}"')
        + compat("said", "err200+sayskey", f'api_key_file = "{keys / "said"}"')
        + f'[providers.openrouter]\nbase_url = "{upstream.url("s403+sayskey+listed", "/api/v1")}"\n'
        + f'[providers.backend_manager.backends.b]\nbase_url = "{upstream.url("s404+sayskey+listed")}"\n'
        + f'models = ["pool-model"]\napi_key_file = "{keys / "pool"}"\n'
    )


def found_in(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()}


def asked(node: NodeProcess, provider: str, *, stream: bool) -> bytes:
    """Everything that a client sees of one question: status, headers, body."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "one two"}],
        "provider": provider,
        "stream": stream,
    }
    reply = httpx.post(f"{node.rpc}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    return f"{reply.status_code} {reply.headers}".encode() + reply.content


def seen(node: NodeProcess, path: str) -> bytes:
    reply = httpx.get(f"{node.rpc}{path}", timeout=30, trust_env=False)
    return f"{reply.headers}".encode() + reply.content


async def test_no_key_is_written_or_printed_anywhere(
    upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("filed", "pool", "said"):
        (keys / name).write_text(KEYS[name])
    monkeypatch.setenv("DESK_KEY", KEYS["desk"])
    monkeypatch.setenv("SHOAL_OPENROUTER_API_KEY", KEYS["openrouter"])
    data = tmp_path / "node"
    shown: dict[str, bytes] = {}
    node = await start(data, config=configuration(upstream, keys))
    try:
        shown["ready"] = json.dumps(node.facts).encode()
        for provider in ("desk", "filed", "said", "openrouter", "backend_manager"):
            for stream in (False, True):
                shown[f"{provider} {stream}"] = await in_thread(asked, node, provider, stream=stream)
            done = await in_thread(node.shoal, "providers", "test", provider, check=False)
            shown[f"test {provider}"] = (done.stdout + done.stderr).encode()
        for path in ("status", "providers", "peers", "route/last", "cache"):
            shown[path] = await in_thread(seen, node, f"/shoal/v1/{path}")
        shown["metrics"] = await in_thread(seen, node, "/metrics")
        for command in (("providers",), ("status",), ("config", "show"), ("providers", "--json")):
            done = await in_thread(node.shoal, *command, check=False)
            shown[" ".join(command)] = (done.stdout + done.stderr).encode()
        argv = Path(f"/proc/{node.process.pid}/cmdline")
        shown["argv"] = argv.read_bytes() if argv.exists() else b""
    finally:
        await in_thread(node.stop)
    shown |= found_in(data)

    sent = {chat.headers.get("authorization") for chat in upstream.chats}
    assert sent == {f"Bearer {key}" for key in KEYS.values()}, "each key was sent, so each could have been repeated"
    assert b"refused the key" in shown["desk False"]
    leaks = [(where, name) for where, text in shown.items() for name, key in KEYS.items() if key.encode() in text]
    assert leaks == []
    assert any(where.endswith("stderr.log") for where in shown), "the log was looked at"


async def test_the_upstreams_do_repeat_the_key_or_the_test_above_would_show_nothing(upstream: FakeUpstream) -> None:
    def post(scenario: str) -> bytes:
        request = urllib.request.Request(
            f"{upstream.url(scenario)}/chat/completions", b"{}", {"Authorization": "Bearer sk-planted-control"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.addheaders = []
        try:
            with opener.open(request, timeout=10) as reply:
                return bytes(reply.read())
        except urllib.error.HTTPError as error:
            return error.read()

    for scenario in ("s401+sayskey", "err200+sayskey"):
        assert b"sk-planted-control" in await in_thread(post, scenario)
