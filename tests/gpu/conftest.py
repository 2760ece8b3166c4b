"""The tests of a device: on CUDA where torch sees one, else skipped with the reason.

SHOAL_TEST_DEVICE=cpu runs what of them does not need a GPU, on a processor.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shoal.providers import weights
from shoal.providers.hf_worker.device import missing

DEVICE = os.environ.get("SHOAL_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says of each test why it does not run."""
    here = Path(__file__).parent
    reason = missing(DEVICE)
    for item in items:
        if reason and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason.partition(";")[0]))


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


@pytest.fixture
def cuda(device: str) -> str:
    """For what only a GPU can show."""
    if not device.startswith("cuda"):
        pytest.skip(f"{device} records no graphs and has no memory of its own")
    return device


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Where SmolLM2 lies."""
    store = weights.models_dir(os.environ)
    if not any(found.name == "smollm2" for found in weights.installed(store)):
        pytest.skip("SmolLM2 is not installed; run: make model")
    return store
