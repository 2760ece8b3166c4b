"""The local model's provider over a worker that has no model: what its tests share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
import trio.testing
from shoal.providers import local_hf
from shoal.providers.base import (
    Finish,
    GenerateRequest,
    TextDelta,
)
from shoal.providers.local_hf import LocalHf, Settings

from tests.providers import fake_worker
from tests.providers.tiny_weights import model_folder

Start = Callable[..., AbstractAsyncContextManager[LocalHf]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "pids"


@pytest.fixture
def start(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(local_hf, "missing_libraries", lambda: "")
    folder = model_folder(tmp_path / "tiny")

    @contextlib.asynccontextmanager
    async def started(manner: str = "ready", **settings: object) -> AsyncIterator[LocalHf]:
        provider = LocalHf(
            "local_hf",
            Settings(model=str(folder), **settings),  # type: ignore[arg-type]
            models_dir=tmp_path,
            environ={**os.environ, "OPENAI_API_KEY": "sk-secret"},
            worker=lambda: [sys.executable, fake_worker.__file__, str(log), manner],
        )
        with trio.fail_after(60):
            async with provider.running():
                yield provider

    return started


def wish(text: str, **options: object) -> GenerateRequest:
    return GenerateRequest.of(text, **options)


async def answer(provider: LocalHf, request: GenerateRequest) -> str:
    text = ""
    async with provider.generate(request) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
    assert isinstance(event, Finish)
    return text


def starts(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []
