"""One folder for all runs (copilot unpacks itself once), fake vendors for each test, and the tools if installed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.providers.fake_vendors import FakeVendors
from tests.providers_real.tools import BIN, PLACE, TOOLS, Real


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.providers)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (BIN / "codex").exists():
        pytest.skip("run `make providers`, which installs the tools")
    folder = tmp_path_factory.mktemp("data")
    (folder / "cli").mkdir()
    (PLACE / "cache").mkdir(exist_ok=True)
    (folder / "cli/cache").symlink_to(PLACE / "cache")
    return folder


@pytest.fixture
async def vendors(tmp_path: Path) -> AsyncIterator[FakeVendors]:
    targets = tmp_path / "targets"
    targets.mkdir()
    async with FakeVendors(targets) as vendors:
        yield vendors


@pytest.fixture(params=TOOLS)
def real(request: pytest.FixtureRequest) -> Real:
    return TOOLS[request.param]
