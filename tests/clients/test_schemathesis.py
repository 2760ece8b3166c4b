"""schemathesis against `/openapi.json`: nothing that it thinks of makes the node fail or answer as it did not say.

Left out: its checks that what the description forbids is refused (nulls and unknown fields are taken on purpose) and
that what it allows is taken (a description cannot say that a model must exist).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, run
from tests.e2e.node_process import NodeProcess

pytestmark = pytest.mark.clients

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("response_headers_conformance", "unsupported_method", "allow_header_conformance", "use_after_free"),
)
ENDLESS = ("/shoal/v1/events", "/shoal/v1/join")  # a stream without end; and this node shall stay alone


def test_nothing_that_schemathesis_tries_breaks_the_description(node: NodeProcess, tmp_path: Path) -> None:
    schemathesis = CLIENTS / "venv/bin/schemathesis"
    if not schemathesis.exists():
        pytest.fail("not installed: run tests/clients/install.sh (make clients does)")
    left_out = [part for path in ENDLESS for part in ("--exclude-path", path)]
    told = run(
        schemathesis,
        *("run", f"{node.rpc}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", "25", "--no-color"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--suppress-health-check", "all", *left_out),
        home=tmp_path,
        within=900,
    )
    assert told.code == 0, str(told)


def test_nothing_breaks_openais_own_description(node: NodeProcess, tmp_path: Path) -> None:
    """Statuses are left out: that description has none but 200."""
    schemathesis = CLIENTS / "venv/bin/schemathesis"
    if not schemathesis.exists():
        pytest.fail("not installed: run tests/clients/install.sh (make clients does)")
    told = run(
        schemathesis,
        *("run", Path(__file__).with_name("openai_spec.json"), "--url", f"{node.rpc}/v1", "--max-examples", "25"),
        *("--checks", ",".join(check for check in CHECKS if not check.startswith("status")), "--no-color"),
        *("--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"),
        home=tmp_path,
        within=900,
    )
    assert told.code == 0, str(told)
