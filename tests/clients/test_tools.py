"""Claude Code and Codex CLI, as they are installed, pointed at the node: docs/api.md has the same lines for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import TOOLS, run
from tests.e2e.node_process import NodeProcess

pytestmark = pytest.mark.clients


def test_claude_code_answers_through_the_node(node: NodeProcess, tmp_path: Path) -> None:
    if not (TOOLS / "claude").exists():
        pytest.fail("not installed: run scripts/install_providers.sh")
    told = run(
        TOOLS / "claude",
        *("-p", "say hello there", "--output-format", "json"),
        home=tmp_path,
        ANTHROPIC_BASE_URL=node.rpc,
        ANTHROPIC_AUTH_TOKEN="none",
        ANTHROPIC_MODEL="echo",
        ANTHROPIC_SMALL_FAST_MODEL="echo",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )
    found = json.loads(told.out)
    assert found["is_error"] is False, str(told)
    assert "say hello there>" in found["result"], str(told)


def test_codex_answers_through_the_node(node: NodeProcess, tmp_path: Path) -> None:
    if not (TOOLS / "codex").exists():
        pytest.fail("not installed: run scripts/install_providers.sh")
    (tmp_path / "config.toml").write_text(
        'model = "echo"\nmodel_provider = "shoal"\n[model_providers.shoal]\nname = "shoal"\n'
        f'base_url = "{node.rpc}/v1"\nenv_key = "SHOAL_KEY"\nwire_api = "responses"\n'
    )
    command = ("exec", "--skip-git-repo-check", "--json", "say hello there")
    told = run(TOOLS / "codex", *command, home=tmp_path, CODEX_HOME=str(tmp_path), SHOAL_KEY="none")
    items = [json.loads(line).get("item", {}) for line in told.out.splitlines()]
    said = [item["text"] for item in items if item.get("type") == "agent_message"]
    assert said == ["ECHO<say hello there>"], str(told)
