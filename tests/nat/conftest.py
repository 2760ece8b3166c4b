"""The lab as a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nat.lab import Lab, impossible


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab that is not up yet: `lab.up(KIND_A, KIND_B)` builds it."""
    if reason := impossible():
        pytest.fail(reason, pytrace=False)
    with Lab(tmp_path) as built:
        yield built
