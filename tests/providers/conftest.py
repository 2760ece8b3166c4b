"""Fixtures of several files: the real weights for tests marked `model`, and the local model's provider without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shoal.providers import weights

from tests.providers.local_hf_fakes import log, start

__all__ = ["log", "models_dir", "start"]


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The shared store with SmolLM2 in it; installed by the first test that asks, when `make model` has not done so."""
    store = weights.models_dir(os.environ)
    weights.install("smollm2", store)
    return store
