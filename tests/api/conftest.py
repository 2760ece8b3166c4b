"""What the tests of the Python API share: a RouterDeps that knows only what a test tells it, and an upstream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal import RouterDeps
from shoal.background import BackgroundLoop
from shoal.providers import registry

from tests.providers.fake_upstream import FakeUpstream

QUIET = "[providers.local_hf]\nenabled = false\n"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for name in registry.registered_names():
        registry.forget_llm_provider(name)


@pytest.fixture
def make_deps(tmp_path: Path) -> Iterator[Callable[..., RouterDeps]]:
    made: list[RouterDeps] = []

    def make(config: str = "", environ: dict[str, str] | None = None, **options: Any) -> RouterDeps:
        file = tmp_path / f"config{len(made)}.toml"
        file.write_text(QUIET + config)
        made.append(RouterDeps(config=file, data_dir=tmp_path / "data", environ=environ or {}, **options))
        return made[-1]

    yield make
    for deps in made:
        deps.close()


@pytest.fixture
def deps(make_deps: Callable[..., RouterDeps]) -> RouterDeps:
    return make_deps()


@pytest.fixture
def upstream_loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("upstream")
    yield loop
    loop.close()


@pytest.fixture
def upstream(upstream_loop: BackgroundLoop) -> FakeUpstream:
    return upstream_loop.enter(FakeUpstream()).value
