"""Claude Code and Codex CLI, as they are installed, pointed at the node: docs/api.md has the same lines for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import TOOLS, Told, run
from tests.e2e.node_process import NodeProcess

pytestmark = pytest.mark.clients


def claude(node: NodeProcess, home: Path, model: str, *args: str) -> Told:
    """Claude Code in a home of its own; what it says is one JSON object."""
    return run(
        TOOLS / "claude",
        *(*args, "--output-format", "json"),
        home=home,
        ANTHROPIC_BASE_URL=node.rpc,
        ANTHROPIC_AUTH_TOKEN="none",
        ANTHROPIC_MODEL=model,
        ANTHROPIC_SMALL_FAST_MODEL=model,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )


def test_claude_code_runs_what_the_model_wants_and_tells_it(node: NodeProcess, tmp_path: Path) -> None:
    """There and back: the model's call of a tool, the tool, its result, and the answer to that."""
    if not (TOOLS / "claude").exists():
        pytest.fail("not installed: run scripts/install_providers.sh")
    told = claude(node, tmp_path, "worker", "-p", "what is it?", "--allowedTools", "Bash")
    found = json.loads(told.out)
    assert found["is_error"] is False, str(told)
    assert "TOLD<shoal-42" in found["result"], str(told)
    assert found["num_turns"] == 2, str(told)


def test_claude_code_answers_through_the_node(node: NodeProcess, tmp_path: Path) -> None:
    if not (TOOLS / "claude").exists():
        pytest.fail("not installed: run scripts/install_providers.sh")
    told = claude(node, tmp_path, "echo", "-p", "say hello there")
    found = json.loads(told.out)
    assert found["is_error"] is False, str(told)
    assert "say hello there>" in found["result"], str(told)
    assert found["num_turns"] == 1, str(told)
    assert found["usage"]["output_tokens"] > 0, str(told)


def codex(node: NodeProcess, home: Path, model: str, *args: str) -> tuple[Told, list[dict[str, Any]]]:
    """Codex in a home of its own: what it printed, and the events in that."""
    (home / "config.toml").write_text(
        f'model = "{model}"\nmodel_provider = "shoal"\n[model_providers.shoal]\nname = "shoal"\n'
        f'base_url = "{node.rpc}/v1"\nenv_key = "SHOAL_KEY"\nwire_api = "responses"\n'
    )
    command = ("exec", "--skip-git-repo-check", "--json", *args)
    told = run(TOOLS / "codex", *command, home=home, CODEX_HOME=str(home), SHOAL_KEY="none")
    return told, [json.loads(line) for line in told.out.splitlines()]


def said(events: list[dict[str, Any]]) -> list[str]:
    items = [event.get("item", {}) for event in events if event.get("type") == "item.completed"]
    return [item["text"] for item in items if item.get("type") == "agent_message"]


def test_codex_answers_through_the_node(node: NodeProcess, tmp_path: Path) -> None:
    if not (TOOLS / "codex").exists():
        pytest.fail("not installed: run scripts/install_providers.sh")
    told, events = codex(node, tmp_path, "echo", "say hello there")
    assert said(events) == ["ECHO<say hello there>"], str(told)
    assert events[-1]["usage"]["output_tokens"] > 0, str(told)


def test_codex_runs_what_the_model_wants_and_tells_it(node: NodeProcess, tmp_path: Path) -> None:
    if not (TOOLS / "codex").exists():
        pytest.fail("not installed: run scripts/install_providers.sh")
    told, events = codex(node, tmp_path, "worker", "--dangerously-bypass-approvals-and-sandbox", "what is it?")
    assert "shoal-42" in said(events)[-1], str(told)
    assert said(events)[-1].startswith("TOLD<"), str(told)
