"""The real tools against fake vendors on loopback: answers, streams, failures, and what is left when a call ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.providers.base import (
    Dropped,
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    ProviderError,
    TextDelta,
    Usage,
)
from shoal.providers.cli.process import _descendants, _start_of
from shoal.providers.cli.provider import CliProvider

from tests.providers.fake_vendors import FAILURES, FakeVendors
from tests.providers_real.tools import BIN, KEY, PLACE, TOOLS, Real

PROMPT = "say hello there planted-prompt-5b1e"
SYSTEM = "Answer in one line, planted-system-c4d2."


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def answer(provider: CliProvider, **options: Any) -> list[Event]:
    async with provider.generate(GenerateRequest.of(PROMPT, system=SYSTEM, **options)) as events:
        return [event async for event in events]


async def failure(provider: CliProvider, **options: Any) -> ProviderError:
    try:
        events = await answer(provider, **options)
    except ProviderError as error:
        return error
    raise AssertionError(f"it answered with {len(events)} events")


async def all_of(events: AsyncIterator[Event]) -> None:
    async for _ in events:
        pass


def homes(data_dir: Path) -> list[Path]:
    return [path for path in (data_dir / "cli").glob("calls-*/*") if path.name != "in-use"]


def family() -> dict[int, str]:
    """What this process has started, by number and start."""
    return _descendants(os.getpid())


def alive(processes: dict[int, str]) -> list[int]:
    return [pid for pid, started in processes.items() if _start_of(pid) == started]


# -- answers


async def test_the_probe_tells_the_version(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    async with (provider := real.provider(vendors, "ok", data_dir)).running():
        with trio.fail_after(20):
            while not (status := await provider.probe()).version:
                await trio.sleep(0.1)
    assert status.ready
    assert any(c.isdigit() for c in status.version)
    assert vendors.requests == []


async def test_an_answer_with_its_usage(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    async with (provider := real.provider(vendors, "ok", data_dir)).running():
        events = await answer(provider)
    assert "say hello there planted-prompt-5b1e>" in text_of(events)
    assert isinstance(events[-2], Usage)
    assert events[-2].completion_tokens > 2
    assert events[-1] == Finish("stop", "stub")
    [asked] = vendors.asked
    sent = str(asked.body)
    assert SYSTEM in sent
    assert PROMPT in sent
    assert KEY in str(asked.headers)
    offered = [t for t in asked.body.get("tools") or [] if t != {"functionDeclarations": []}]
    assert [t.get("name") for t in offered] == (["request_user_input"] if real.kind == "codex_cli" else [])
    assert homes(data_dir) == []


async def test_tokens_come_while_the_vendor_still_writes(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    provider = real.provider(vendors, "hold", data_dir)
    async with provider.running(), provider.generate(GenerateRequest.of(PROMPT)) as events:
        with trio.fail_after(30):
            first = await anext(events)
        assert isinstance(first, TextDelta)
        vendors.release()
        rest = [event async for event in events]
    assert isinstance(rest[-1], Finish)


HONOURED = {
    "codex_cli": (),
    "claude_code": (("max_tokens", 50),),
    "gemini_cli": (("maxOutputTokens", 50), ("temperature", 0.25), ("topP", 0.75)),
    "copilot_cli": (("max_completion_tokens", 50),),
    "copilot_sdk": (("max_completion_tokens", 50),),
}


async def test_options_reach_the_vendor_or_are_told_as_dropped(
    real: Real, vendors: FakeVendors, data_dir: Path
) -> None:
    async with (provider := real.provider(vendors, "ok", data_dir)).running():
        events = await answer(provider, max_tokens=50, temperature=0.25, top_p=0.75, seed=3)
    assert isinstance(events[0], Dropped)
    dropped = set(events[0].options)
    assert dropped | {"max_tokens", "temperature", "top_p"} == {"max_tokens", "temperature", "top_p", "seed"}
    body = vendors.asked[0].body
    given = {**body, **body.get("generationConfig", {})}
    if "max_completion_tokens" not in given and "max_tokens" in given:
        given["max_completion_tokens"] = given["max_tokens"]
    for name, value in HONOURED[real.kind]:
        assert given.get(name) == value, given.keys()
    assert len(HONOURED[real.kind]) == 4 - len(dropped)


@pytest.mark.parametrize(("scenario", "reason"), [("length", "length"), ("filter", "content_filter")])
async def test_a_limit_or_a_filter_ends_the_answer_after_one_request(
    real: Real, vendors: FakeVendors, data_dir: Path, scenario: str, reason: str
) -> None:
    async with (provider := real.provider(vendors, scenario, data_dir)).running():
        events = await answer(provider, max_tokens=4 if real.kind == "gemini_cli" and scenario == "length" else None)
    end = events[-1]
    assert isinstance(end, Finish)
    silent = {("gemini_cli", "filter"), ("copilot_cli", "filter")}
    assert end.reason == ("stop" if (real.kind, scenario) in silent else reason)
    assert text_of(events).count("planted-prompt") == 1


# -- failures


@pytest.mark.parametrize("scenario", FAILURES)
async def test_a_failure_is_its_kind_after_one_request(
    real: Real, vendors: FakeVendors, data_dir: Path, scenario: str
) -> None:
    before = family()
    async with (provider := real.provider(vendors, scenario, data_dir)).running():
        with trio.fail_after(30):
            error = await failure(provider)
        assert error.kind is FAILURES[scenario], error
        assert alive({pid: at for pid, at in family().items() if pid not in before}) == []
    assert len(vendors.asked) <= (2 if scenario in ("drop", "empty", "s404") else 1)
    assert "planted" not in str(error)
    assert KEY not in str(error)
    assert homes(data_dir) == []


async def test_nobody_listens(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    async with (provider := real.provider(vendors, "ok", data_dir, base_url="http://127.0.0.1:9")).running():
        with trio.fail_after(30):
            error = await failure(provider)
    assert error.kind is ErrorKind.CONNECTION


async def test_without_a_key_no_tool_is_started(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    own = {"api_key_env": "PLANTED_KEY"}
    async with (provider := real.provider(vendors, "ok", data_dir, key=None, **own)).running():
        error = await failure(provider)
        assert (await provider.probe()).reason == error.message == "no key; set PLANTED_KEY"
    assert error.kind is ErrorKind.UNAVAILABLE
    assert vendors.requests == []


@pytest.mark.parametrize("scenario", ["hang", "stall"])
async def test_a_silent_vendor_is_left_and_nothing_stays(
    real: Real, vendors: FakeVendors, data_dir: Path, scenario: str
) -> None:
    before = family()
    async with (provider := real.provider(vendors, scenario, data_dir)).running():
        with trio.move_on_after(60) as limit:
            async with provider.generate(GenerateRequest.of(PROMPT)) as events, trio.open_nursery() as nursery:
                nursery.start_soon(all_of, events)
                await vendors.until(count=1, within=30)
                await trio.sleep(0.5)
                limit.cancel()
        assert limit.cancelled_caught
        await vendors.until(idle=True, within=5)
        assert alive({pid: at for pid, at in family().items() if pid not in before}) == []
    assert homes(data_dir) == []


async def test_a_tool_that_is_ended_from_outside_is_a_broken_answer(
    real: Real, vendors: FakeVendors, data_dir: Path
) -> None:
    before = family()
    async with (provider := real.provider(vendors, "hold", data_dir)).running():
        outcome: object = None
        try:
            async with provider.generate(GenerateRequest.of(PROMPT)) as events:
                assert isinstance(await anext(events), TextDelta)
                for pid in set(family()) - set(before):
                    os.kill(pid, signal.SIGTERM)
                with trio.fail_after(15):
                    [event async for event in events]
        except ProviderError as error:
            outcome = error.kind
    assert outcome is ErrorKind.INTERRUPTED


async def test_a_quarter_of_a_second_after_a_cancel_no_process_is_left(
    real: Real, vendors: FakeVendors, data_dir: Path, record_property: Any
) -> None:
    before, took = family(), []
    async with (provider := real.provider(vendors, "stall", data_dir)).running():
        for _ in range(3):
            async with provider.generate(GenerateRequest.of(PROMPT)) as events:
                assert isinstance(await anext(events), TextDelta)
                processes = {pid: at for pid, at in family().items() if pid not in before}
                assert processes
                start = time.monotonic()
            took.append(time.monotonic() - start)
            assert alive(processes) == []
    record_property("cancel_ms", round(min(took) * 1000))
    print(f"{real.kind}: from leaving to nothing left {', '.join(f'{t * 1000:.0f}' for t in took)} ms")
    assert min(took) < 0.25
    await vendors.until(idle=True, within=5)


async def test_the_next_call_finds_a_started_tool(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    before = family()
    async with (provider := real.provider(vendors, "ok", data_dir, warm_s=60)).running():
        assert isinstance((await answer(provider))[-1], Finish)
        if not provider._tool.warms:
            assert homes(data_dir) == []
            return
        with trio.fail_after(10):
            while len(homes(data_dir)) != 1:
                await trio.sleep(0.01)
        [waiting] = homes(data_dir)
        await trio.sleep(4)  # longer than any of them waits for plain text
        async with provider.generate(GenerateRequest.of("another question", system=SYSTEM)) as events:
            assert homes(data_dir) == [waiting]
            assert "another question>" in text_of([event async for event in events])
        assert not waiting.exists()
    assert len(vendors.asked) == 2
    assert alive({pid: at for pid, at in family().items() if pid not in before}) == []


# -- secrets


async def test_planted_secrets_are_nowhere(
    real: Real, vendors: FakeVendors, data_dir: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    before, seen = family(), []
    async with (provider := real.provider(vendors, "hold", data_dir)).running():
        async with provider.generate(GenerateRequest.of(PROMPT, system=SYSTEM)) as events:
            assert isinstance(await anext(events), TextDelta)
            for pid in set(family()) - set(before):
                seen.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        seen.append(repr(await provider.probe()).encode())
        failing = real.provider(vendors, "s401", data_dir)
        async with failing.running():
            seen.append(str(await failure(failing)).encode())
    assert len(seen) > 2
    seen += [caplog.text.encode(), *(part.encode() for part in capfd.readouterr())]
    seen += [path.read_bytes() for path in written_below(data_dir, PLACE / "cache")]
    for secret in (KEY, "planted-prompt", "planted-system"):
        assert not [place for place in seen if secret.encode() in place]


def written_below(*folders: Path) -> list[Path]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            # What copilot unpacks of itself was there before any secret; only young files can hold one.
            if path.is_file() and not path.is_symlink() and path.stat().st_mtime > time.time() - 600:
                found.append(path)
    return found


async def test_nothing_calls_home(real: Real, vendors: FakeVendors, data_dir: Path) -> None:
    """Every tool honours HTTPS_PROXY: whoever wants to reach the outside comes to this proxy."""
    callers: list[bytes] = []

    async def caller(stream: trio.SocketStream) -> None:
        with trio.move_on_after(1):
            callers.append(await stream.receive_some(200))

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, caller, 0, host="127.0.0.1"))
        proxy = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        provider = real.provider(vendors, "ok", data_dir)
        provider._tool.environ = real.environ() | {
            "HTTPS_PROXY": proxy,
            "https_proxy": proxy,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        async with provider.running():
            assert isinstance((await answer(provider))[-1], Finish)
        nursery.cancel_scope.cancel()
    assert callers == []


# -- other credentials


async def test_a_login_of_codex_is_used(vendors: FakeVendors, data_dir: Path, tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.mkdir()
    subprocess.run(
        [BIN / "codex", "login", "--with-api-key"],
        input=KEY.encode(),
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CODEX_HOME": str(login)},
        check=True,
        capture_output=True,
    )
    kept = (login / "auth.json").read_bytes()
    provider = TOOLS["codex_cli"].provider(vendors, "ok", data_dir, key=None, login_dir=str(login))
    async with provider.running():
        assert isinstance((await answer(provider))[-1], Finish)
    assert vendors.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert (login / "auth.json").read_bytes() == kept


async def test_a_subscription_token_of_claude_is_used(vendors: FakeVendors, data_dir: Path) -> None:
    token = "sk-ant-oat01-planted-0b7d"
    provider = TOOLS["claude_code"].provider(vendors, "ok", data_dir, key=None)
    provider._tool.environ = {"PATH": os.environ["PATH"], "CLAUDE_CODE_OAUTH_TOKEN": token}
    provider._tool.credential._environ = provider._tool.environ
    async with provider.running():
        events = await answer(provider)
    assert isinstance(events[-1], Finish)
    assert vendors.asked[-1].headers["authorization"] == f"Bearer {token}"
    assert vendors.asked[-1].body.get("tools") in (None, [])
