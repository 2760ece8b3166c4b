"""Libraries and small commands, unchanged, against a real node: each as its users write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, python, run
from tests.e2e.node_process import NodeProcess

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("library", ["openai", "anthropic", "langchain", "litellm"])
def test_a_python_library_works_unchanged(library: str, node: NodeProcess, tmp_path: Path) -> None:
    told = python(f"ask_{library}.py", node, tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false")
    assert told.out.strip().endswith("done"), str(told)


@pytest.mark.parametrize("script", ["ask_openai.py", "ask_agents.py"])
def test_what_stands_on_the_next_openai_works_too(script: str, node: NodeProcess, tmp_path: Path) -> None:
    """The package itself, and openai-agents and pydantic-ai, whose agents call tools and go on with a history."""
    told = python(script, node, tmp_path, place="later")
    assert told.out.strip().endswith("done"), str(told)


@pytest.mark.parametrize("library", ["openai", "anthropic", "ai_sdk"])
def test_a_package_for_node_js_works_unchanged(library: str, node: NodeProcess, tmp_path: Path) -> None:
    """OpenAI's, Anthropic's, and Vercel's AI SDK."""
    if not (CLIENTS / "node_modules/ai").exists():
        pytest.fail("not installed: run tests/clients/install.sh (make clients does)")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    script = tmp_path / "ask.mjs"
    script.write_text(Path(__file__).with_name(f"ask_{library}.mjs").read_text())
    told = run("node", script, home=tmp_path, BASE=node.rpc)
    assert told.out.strip().endswith("done"), str(told)


def test_the_llm_command(node: NodeProcess, tmp_path: Path) -> None:
    llm = CLIENTS / "venv/bin/llm"
    if not llm.exists():
        pytest.fail("not installed: run tests/clients/install.sh (make clients does)")
    about = {"api_base": f"{node.rpc}/v1", "supports_schema": True, "supports_tools": True, "vision": True}
    models = [{"model_id": name, "model_name": name, **about} for name in ("echo", "json", "worker")]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    place = {"home": tmp_path, "LLM_USER_PATH": str(tmp_path)}
    for how in ((), ("--no-stream",)):
        told = run(llm, "-m", "echo", "--key", "none", "-u", *how, "one two", **place)
        assert told.out.strip() == "ECHO<one two>", str(told)
        assert "Token usage: 2 input, 2 output" in told.err, str(told)
    again = run(llm, "-c", "--key", "none", "three", **place)
    assert again.out.strip() == "ECHO<three>", str(again)
    said = '{"word": "cold"}'
    schema = run(llm, "-m", "json", "--key", "none", "--schema", "word str", said, **place)
    assert json.loads(schema.out) == json.loads(said), str(schema)
    shell = 'def Bash(command: str) -> str:\n    "Run it."\n    return "ran " + command'
    called = run(llm, "-m", "worker", "--key", "none", "--functions", shell, "what is it?", **place)
    assert called.out.strip() == "TOLD<ran echo shoal-$((40 + 2))>", str(called)


def test_curl(node: NodeProcess, tmp_path: Path) -> None:
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "one two"}]})
    json_type = ("-H", "content-type: application/json")
    whole = run("curl", "-sS", f"{node.rpc}/v1/chat/completions", *json_type, "-d", body, home=tmp_path)
    assert json.loads(whole.out)["choices"][0]["message"]["content"] == "ECHO<one two>"
    streamed = json.dumps({**json.loads(body), "stream": True})
    told = run("curl", "-sSN", f"{node.rpc}/v1/chat/completions", *json_type, "-d", streamed, home=tmp_path)
    assert told.out.rstrip().endswith("data: [DONE]")
    long = tmp_path / "long.json"
    long.write_text(json.dumps({"model": "echo", "messages": [{"role": "user", "content": "x" * 2_000_000}]}))
    posted = run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *json_type, "-H", "transfer-encoding: chunked",
                 "--data-binary", f"@{long}", f"{node.rpc}/v1/chat/completions", home=tmp_path)  # fmt: skip
    assert posted.out == "200", posted
    waits = run("curl", "-sS", "-v", "-o", "/dev/null", *json_type, "-H", "expect: 100-continue", "--limit-rate", "1M",
                "--data-binary", f"@{long}", f"{node.rpc}/v1/chat/completions", home=tmp_path)  # fmt: skip
    assert "< HTTP/1.1 100 Continue" in waits.err, waits
    assert "< HTTP/1.1 200" in waits.err, waits
    zipped = run("curl", "-sS", "-w", "%{http_code}", *json_type, "-H", "content-encoding: gzip", "-d", body,
                 f"{node.rpc}/v1/chat/completions", home=tmp_path)  # fmt: skip
    assert zipped.out.endswith("415"), zipped
    head = run("curl", "-sS", "-I", f"{node.rpc}/v1/models", home=tmp_path)
    assert head.out.startswith("HTTP/1.1 200")
