"""SmolLM2 in a real worker on the device, as a node runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio
from shoal.providers.base import GenerateRequest, TextDelta
from shoal.providers.hf_worker import engine_choice
from shoal.providers.local_hf import LocalHf, Settings, build
from shoal.providers.settings import BuildContext

pytestmark = pytest.mark.gpu

PROMPTS = ("What is the capital of Japan?", "What is the opposite of hot?", "What colour is the sky?")


def store_of(models_dir: Path, folder: Path) -> Path:
    """A store with the same model, whose notes are this test's own."""
    (folder / "smollm2").symlink_to(models_dir / "smollm2")
    return folder


async def answer(provider: LocalHf, prompt: str) -> str:
    asked = GenerateRequest.of(prompt, max_tokens=16, temperature=0.0)
    async with provider.generate(asked) as events:
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])


@pytest.mark.parametrize("engine", ["graphs", "paged", "slots"])
async def test_each_engine_answers_as_the_processor_does(
    engine: str, device: str, models_dir: Path, tmp_path: Path
) -> None:
    store = store_of(models_dir, tmp_path)

    async def answers(settings: Settings) -> tuple[list[str], LocalHf]:
        provider = build("local_hf", settings, BuildContext(data_dir=tmp_path, environ=os.environ))
        found = dict.fromkeys(PROMPTS, "")

        async def one(prompt: str) -> None:
            found[prompt] = await answer(provider, prompt)

        with trio.fail_after(500):
            async with provider.running():
                async with trio.open_nursery() as nursery:
                    for prompt in PROMPTS:
                        nursery.start_soon(one, prompt)
                status = await provider.probe()
                assert provider.keeper.link is not None
                info = provider.keeper.link.info
                assert info is not None
                if settings.engine in engine_choice.ENGINES:
                    assert info.computes == settings.engine
                    assert info.device.startswith(settings.device)
                    assert status.version.endswith(f"({engine})")
                    assert status.models[0].decode_tps, "its rate is told to peers"
        return list(found.values()), provider

    common = {"models_dir": str(store), "dtype": "float32", "kv_tokens": 4096, "max_concurrent": 4}
    expected, _ = await answers(Settings(device="cpu", **common))
    found, _ = await answers(Settings(device=device, engine=engine, **common))
    assert found == expected
    assert "Tokyo" in found[0]


async def test_the_first_load_on_a_gpu_times_the_engines_and_keeps_the_choice(
    cuda: str, models_dir: Path, tmp_path: Path
) -> None:
    store = store_of(models_dir, tmp_path)
    provider = build(
        "local_hf",
        Settings(device=cuda, models_dir=str(store)),
        BuildContext(data_dir=tmp_path, environ=os.environ),
    )
    with trio.fail_after(500):
        async with provider.running():
            assert await answer(provider, PROMPTS[0])
            assert provider.keeper.link is not None
            info = provider.keeper.link.info
    assert info is not None
    assert info.dtype in ("bfloat16", "float16")
    (kept,) = json.loads((store / engine_choice.FILE).read_text()).values()
    assert kept["engine"] == info.computes
    assert len(kept["tokens_s"]) >= 2
