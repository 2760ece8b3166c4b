"""What the local model's provider offers: its models within a memory budget, and what it refuses in words."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from shoal.providers import local_hf, weights
from shoal.providers.base import (
    Dropped,
    ErrorKind,
    GenerateRequest,
    ImagePart,
    ImageUrl,
    Message,
    ProviderError,
    TextDelta,
    TextPart,
)
from shoal.providers.faults import SettingsError
from shoal.providers.hf_worker import engine_choice
from shoal.providers.local_hf import LocalHf, Settings, build
from shoal.providers.settings import BuildContext

from tests.providers import fake_worker
from tests.providers.local_hf_fakes import Start, answer, starts, wish
from tests.providers.test_weights import installed_model
from tests.providers.tiny_weights import model_folder


async def test_the_engines_of_a_model_are_timed_and_the_fastest_is_what_the_next_worker_is_asked_for(
    start: Start, tmp_path: Path
) -> None:
    async with start() as provider:
        assert provider._fastest(await provider._find("tiny")) == ""
        rates, chosen = await provider.time_engines("")
        assert chosen == provider._fastest(await provider._find("tiny")) == "paged"
        assert rates["paged"][16] == 60.0
    (kept,) = json.loads((tmp_path / engine_choice.FILE).read_text()).values()
    assert kept["engine"] == "paged"
    async with start("refuse", engine="slots") as provider:
        found = await provider._find("tiny")
        assert provider._link(found, "torch")._load.engine == "slots", "what the owner says goes before what was timed"


async def test_timing_engines_of_a_model_that_is_not_there_says_what_to_do(start: Start) -> None:
    async with start() as provider:
        with pytest.raises(ProviderError, match="shoal models"):
            await provider.time_engines("nothing-like-that")


async def test_measured_rates_show_in_the_probe(start: Start) -> None:
    async with start() as provider:
        await answer(provider, wish("words 1"))
        await answer(provider, wish("words 1"))
        (model,) = (await provider.probe()).models
        assert (model.prefill_tps, model.decode_tps) == (100.0, 10.0)
        assert (model.name, model.context_length) == ("tiny", 512)
        assert model.capabilities.continues
        assert model.capabilities.seeds


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (wish("x", n=2), "n is 1"),
        (wish("x", tools=({"type": "function"},)), "tools"),
        (wish("x", max_tokens=0), "max_tokens"),
        (GenerateRequest(messages=()), "messages is empty"),
        (
            GenerateRequest(
                messages=(
                    Message(
                        "user",
                        (TextPart("x"), ImagePart(ImageUrl("data:"))),
                    ),
                )
            ),
            "images",
        ),
        (wish("words 1", extra={"logprobs": True, "top_logprobs": 21}), "from 0 to 20"),
        (wish("words 1", extra={"logprobs": True, "top_logprobs": True}), "from 0 to 20"),
        (wish("words 1", extra={"top_logprobs": 2}), "needs logprobs"),
    ],
)
async def test_what_is_not_offered_is_refused_in_words_before_a_worker_starts(
    start: Start, log: Path, request_: GenerateRequest, words: str
) -> None:
    async with start() as provider:
        with pytest.raises(ProviderError, match=words) as caught:
            await answer(provider, request_)
        assert caught.value.kind is ErrorKind.BAD_REQUEST
        assert starts(log) == []


async def test_options_that_the_model_lacks_are_left_out_and_named_or_refused_as_the_owner_says(start: Start) -> None:
    odd = wish("words 1", response_format={"type": "json_object"}, extra={"logit_bias": {"1": 2}, "user": "me"})
    async with start() as provider:
        async with provider.generate(odd) as events:
            said = [event async for event in events]
        assert said[:2] == [Dropped(("logit_bias", "response_format")), TextDelta("w0 ")]
    async with start(unsupported="refuse") as provider:
        with pytest.raises(ProviderError, match="cannot honour logit_bias, response_format") as caught:
            await answer(provider, odd)
        assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_text_that_is_no_unicode_is_refused_and_harms_nobody(start: Start) -> None:
    async with start() as provider:
        with pytest.raises(ProviderError, match="Unicode") as caught:
            await answer(provider, wish("\ud800"))
        assert caught.value.kind is ErrorKind.BAD_REQUEST
        assert await answer(provider, wish("words 1")) == "w0 "


async def test_another_models_name_is_unavailable_here(start: Start) -> None:
    async with start() as provider:
        for model, words in (("gpt-x", "gpt-x are not installed"), ("/etc", "no model of this name")):
            with pytest.raises(ProviderError, match=words) as caught:
                await answer(provider, wish("x", model=model))
            assert caught.value.kind is ErrorKind.UNAVAILABLE


def another_model(store: Path) -> None:
    folder = model_folder(store / "other")
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    manifest = {"name": "other", "source": "", "sha256": "", "files": files}
    (folder / "shoal.json").write_text(json.dumps(manifest))


async def test_installed_models_are_served_by_workers_of_their_own_within_the_memory_budget(
    start: Start, tmp_path: Path, log: Path
) -> None:
    another_model(tmp_path)
    async with start(memory_mb=500) as provider:  # a worker counts for 300 MB: one fits
        assert [model.name for model in (await provider.probe()).models] == ["tiny", "other"]
        assert await answer(provider, wish("words 1")) == "w0 "
        assert await answer(provider, wish("words 1", model="other")) == "w0 "
        assert provider.keeper.link is None  # it made room
        assert await answer(provider, wish("words 1", model="tiny")) == "w0 "
    assert len(log.read_text().split()) == 3


async def test_a_model_that_finds_no_room_beside_one_at_work_waits_until_that_is_idle(
    start: Start, tmp_path: Path
) -> None:
    another_model(tmp_path)
    async with start(memory_mb=500) as provider, trio.open_nursery() as nursery:
        answers: list[str] = []

        async def ask_the_other() -> None:
            answers.append(await answer(provider, wish("words 1", model="other")))

        async with provider.generate(wish("words 3")) as events:
            await anext(aiter(events))
            nursery.start_soon(ask_the_other)
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert not answers
            async for _ in events:
                pass
    assert answers == ["w0 "]


async def test_a_model_that_finds_no_room_for_long_says_what_is_in_the_way(start: Start, tmp_path: Path) -> None:
    another_model(tmp_path)
    async with start(memory_mb=500, queue_s=0.1) as provider, provider.generate(wish("words 3")) as events:
        await anext(aiter(events))
        with pytest.raises(ProviderError, match=r"other takes about 301 MB of memory and 301 MB are in use") as caught:
            await answer(provider, wish("words 1", model="other"))
        assert caught.value.retry_after


async def test_another_choice_is_followed_while_the_node_runs_and_what_was_removed_is_unloaded(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_hf, "missing_libraries", lambda: "")
    monkeypatch.setattr(local_hf, "PROBE_S", 0.0)
    store = tmp_path / "store"
    for name in ("one", "two"):
        installed_model(store, name)
    provider = LocalHf(
        "local_hf",
        Settings(),
        models_dir=store,
        environ=os.environ,
        worker=lambda: [sys.executable, fake_worker.__file__, str(log), "ready"],
    )
    with trio.fail_after(60):
        async with provider.running():
            assert (await provider.probe()).default_model == "one"  # nothing was chosen, and the default is not here
            assert await answer(provider, wish("words 1")) == "w0 "
            first = provider.keeper
            weights.choose("two", store)
            assert (await provider.probe()).default_model == "two"

            async def ask() -> None:
                assert await answer(provider, wish("words 1")) == "w0 "

            async with trio.open_nursery() as nursery:  # at once, and none of them too early
                for _ in range(4):
                    nursery.start_soon(ask)
            assert provider.keeper is not first
            assert first.link is not None
            assert weights.remove("one", store)
            await provider.probe()
            assert first.link is None
            with pytest.raises(ProviderError, match="shoal models add one"):
                await answer(provider, wish("words 1", model="one"))
            assert weights.remove("two", store)
            assert not (store / weights.CHOICE).exists()
            assert not (await provider.probe()).ready
    assert len(starts(log)) == 2


async def test_a_model_that_does_not_fit_is_refused_with_figures(start: Start) -> None:
    async with start(memory_mb=100) as provider:
        with pytest.raises(ProviderError, match=r"tiny takes about 301 MB of memory; memory_mb .* 100 MB") as caught:
            await answer(provider, wish("words 1"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_missing_weights_are_said_with_the_command_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_hf, "missing_libraries", lambda: "")
    provider = build("local_hf", Settings(models_dir=str(tmp_path)), BuildContext(data_dir=tmp_path, environ={}))
    status = await provider.probe()
    assert not status.ready
    assert "shoal models add smollm2" in status.reason
    async with provider.running():
        with pytest.raises(ProviderError, match="shoal models add smollm2") as caught:
            await answer(provider, wish("x"))
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_missing_libraries_are_said_with_the_command_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_hf, "LIBRARIES", ("torch_that_is_not_there",))
    provider = build("local_hf", Settings(models_dir=str(tmp_path)), BuildContext(data_dir=tmp_path, environ={}))
    assert (await provider.probe()).reason.endswith("run: pip install 'shoal[local]'")


def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="hang_s"):
        build("local_hf", Settings(hang_s=0), BuildContext(data_dir=tmp_path, environ={}))
