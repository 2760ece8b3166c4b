"""Every way to fail, for every provider that is no command-line tool: the kind, in time, and nothing left over.

Each row goes through the router, as a caller's request does: what is looked at is the route's first attempt. Limits:
0.4 s to the first token, 0.4 s between two; whatever happens is over within LATEST_S.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest
import trio
from shoal.node.routing.limits import RoutingLimits
from shoal.providers import backend_manager, local_hf, openai_compat, openrouter
from shoal.providers.base import Finish, GenerateRequest, Provider, TextDelta
from shoal.providers.local_hf import LocalHf
from shoal.providers.settings import BuildContext, ProviderSettings
from shoal.providers.simple import SimpleProvider

from tests.node.fakes_router import Told, ask, routing
from tests.providers import fake_worker
from tests.providers.fake_upstream import FakeUpstream
from tests.providers.tiny_weights import model_folder

FAST = RoutingLimits(first_token_s=0.4, idle_s=0.4, max_attempts=1, max_rescues=1, retry_min_s=0.0, retry_max_s=0.01)
LATEST_S = 5.0
KEY = "sk-planted-in-the-matrix"


class Row(NamedTuple):
    """fault: what goes wrong. kind: of the first attempt, "ok" where it is no failure. text: what came before."""

    fault: str
    kind: str
    text: str = ""
    retry_after: float | None = None


HTTP = [
    Row("no credential", "unavailable"),
    Row("nobody listens", "connection"),
    Row("s401", "auth"),
    Row("s402", "quota"),
    Row("s403", "auth"),
    Row("unknown model", "unavailable"),
    Row("s404", "unavailable"),
    Row("s429", "rate_limited"),
    Row("s429ra", "rate_limited", retry_after=1),
    Row("s429date", "rate_limited", retry_after=30),
    Row("s500", "upstream"),
    Row("s503", "overloaded"),
    Row("s529", "overloaded"),
    Row("s400", "bad_request"),
    Row("s400ctx", "context_length"),
    Row("s400filter", "content_filter"),
    Row("hang", "first_token_timeout"),
    Row("stall", "interrupted", "ECHO<one two "),
    Row("cut", "interrupted", "ECHO<one two "),
    Row("reset", "interrupted", "ECHO<one two "),
    Row("errmid", "interrupted", "ECHO<one two "),
    Row("malformed", "interrupted", "ECHO<one two "),
    Row("err200", "upstream"),
    Row("errsse", "upstream"),
    Row("empty", "upstream"),
    Row("filter", "ok", "ECHO<one two three four>"),
    Row("length", "ok", "ECHO<one two "),
    Row("nofinish", "interrupted", "ECHO<one two three four>"),
    Row("garbage", "upstream"),
    Row("drop", "connection"),
]
KINDS_OF_HTTP = ("openai_compat", "openrouter", "backend_manager")
ASK = GenerateRequest.of("one two three four", model="stub", max_tokens=2)


def http_provider(kind: str, url: str, *, key: str = KEY) -> Provider:
    context = BuildContext(
        Path("unused"), {"DESK_KEY": key, "OPENROUTER_API_KEY": key, "SHOAL_OPENROUTER_BASE_URL": url}
    )
    keys: dict[str, Any] = {"base_url": url, "api_key_env": "DESK_KEY", "models": ["stub"], "any_model": True}
    if kind == "openai_compat":
        return openai_compat.build(kind, msgspec.convert(keys, openai_compat.Settings), context)
    if kind == "openrouter":
        return openrouter.build(kind, openrouter.Settings(models=("stub",), any_model=True), context)
    settings = msgspec.convert({"backends": {"only": keys}, "first_token_s": 0.3}, backend_manager.Settings)
    return backend_manager.build(kind, settings, context)


@contextlib.contextmanager
def nothing_left_over(folder: Path) -> Iterator[None]:
    """No child, no open file or socket, no thread of ours and no file more than before."""

    def now() -> tuple[set[int], set[str], set[str]]:
        me = psutil.Process()
        children = {child.pid for child in me.children(recursive=True)}
        files = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)}
        return children, files, {str(path) for path in folder.rglob("*")}

    before = now()
    yield
    after = now()
    assert [kind - was for kind, was in zip(after, before, strict=True)] == [set(), set(), set()]


def test_what_is_left_over_would_be_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), nothing_left_over(tmp_path):
        (tmp_path / "left").touch()
    with pytest.raises(AssertionError), contextlib.ExitStack() as stack, nothing_left_over(tmp_path):
        stack.enter_context(socket.socket())
    with pytest.raises(AssertionError), contextlib.ExitStack() as stack, nothing_left_over(tmp_path):  # noqa: PT012
        process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        stack.callback(process.kill)


def _open(fd: str) -> bool:
    try:
        os.stat(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return True


async def told_by(provider: Provider, request: GenerateRequest) -> Told:
    with trio.fail_after(LATEST_S):
        async with provider.running(), routing(provider, limits=FAST) as router:
            return await ask(router, request, timeout_s=LATEST_S)


def check(row: Row, told: Told, seconds: float) -> None:
    assert (told.outcomes[0][1], told.text) == (row.kind, row.text)
    assert seconds < LATEST_S / 2
    error = told.error
    if row.kind == "ok":
        assert error is None
        assert any(isinstance(event, Finish) for event in told.events)
    else:
        assert error is not None
        assert len(error.message) > 10
        assert KEY not in f"{error} {told.route}"
        if row.retry_after is not None:
            assert error.retry_after == pytest.approx(row.retry_after, abs=2)


@pytest.mark.parametrize("kind", KINDS_OF_HTTP)
@pytest.mark.parametrize("row", HTTP, ids=lambda row: row.fault.replace(" ", "-"))
async def test_an_upstreams_failure_has_its_kind_and_leaves_nothing(kind: str, row: Row, tmp_path: Path) -> None:
    request, key, scenario = ASK, KEY, f"{row.fault}+listed"
    if row.fault == "no credential":
        key, scenario = "", "ok"
    elif row.fault == "unknown model":
        request, scenario = msgspec.structs.replace(ASK, model="missing-model"), "ok"
    elif row.fault == "nobody listens":
        scenario = "ok"
    async with FakeUpstream() as upstream:
        url = upstream.url(scenario, "/api/v1" if kind == "openrouter" else "/v1")
        if row.fault == "nobody listens":
            url = "http://127.0.0.1:9/v1"
        with nothing_left_over(tmp_path):
            told = await told_by(http_provider(kind, url, key=key), request)
            await upstream.until(idle=True)
            while upstream.open_connections:
                await trio.sleep(0.005)
    if kind == "backend_manager" and row.fault in _ASKED_BEFORE:
        # The check found out before anybody asked, so that no request is spent.
        row = Row(row.fault, "unavailable")
    elif kind == "backend_manager" and row.fault == "hang":
        row = Row(row.fault, "first_token_timeout")
    check(row, told, told.took)


_ASKED_BEFORE = frozenset({"no credential", "nobody listens"})


# -- a user's own function ---------------------------------------------------------------------------------------

stop_waiting = threading.Event()


def _says(text: str) -> Callable[..., Any]:
    return lambda prompt, **options: text


def _raises(prompt: str, **options: Any) -> str:
    raise OSError(f"no such host; key {KEY}; prompt {prompt}"[:20])


def _hangs(prompt: str, **options: Any) -> str:
    stop_waiting.wait(LATEST_S)
    return "late"


def _stalls(prompt: str, **options: Any) -> Iterator[str]:
    yield "one "
    stop_waiting.wait(LATEST_S)


def _breaks(prompt: str, **options: Any) -> Iterator[str]:
    yield "one "
    raise ConnectionResetError("cut")


async def _hangs_async(prompt: str, **options: Any) -> str:
    await trio.sleep_forever()
    return ""


async def _stalls_async(prompt: str, **options: Any) -> AsyncGenerator[str]:
    yield "one "
    await trio.sleep_forever()


SIMPLE: list[tuple[Row, Callable[..., Any]]] = [
    (Row("raises", "upstream"), _raises),
    (Row("empty", "upstream"), _says("")),
    (Row("hangs", "first_token_timeout"), _hangs),
    (Row("stalls", "interrupted", "one "), _stalls),
    (Row("breaks", "interrupted", "one "), _breaks),
    (Row("malformed", "upstream"), lambda prompt, **options: 7),
    (Row("malformed piece", "upstream"), lambda prompt, **options: iter([7])),
    (Row("hangs async", "first_token_timeout"), _hangs_async),
    (Row("stalls async", "interrupted", "one "), _stalls_async),
    (Row("length", "ok", "one"), lambda prompt, **options: iter([TextDelta("one"), Finish("length")])),
]


@pytest.mark.parametrize(("row", "function"), SIMPLE, ids=lambda value: getattr(value, "fault", ""))
async def test_a_functions_failure_has_its_kind_and_leaves_nothing(
    row: Row, function: Callable[..., Any], tmp_path: Path
) -> None:
    stop_waiting.clear()

    class Mine:
        generate = staticmethod(function)

    provider = SimpleProvider("mine", Mine(), ProviderSettings())
    with nothing_left_over(tmp_path):
        told = await told_by(provider, ASK)
        stop_waiting.set()  # a thread ends when the user's function returns, and not before
    check(row, told, told.took)


# -- the local model ---------------------------------------------------------------------------------------------

LOCAL = [
    (Row("no libraries", "unavailable"), "ready", "words 3"),
    (Row("no weights", "unavailable"), "ready", "words 3"),
    (Row("refuses to load", "unavailable"), "refuse", "words 3"),
    (Row("crashes while loading", "connection"), "crash", "words 3"),
    (Row("never ready", "first_token_timeout"), "never", "words 3"),
    (Row("dies before text", "connection"), "ready", "die"),
    (Row("dies after text", "interrupted", "w0 "), "ready", "word then die"),
    (Row("hangs", "first_token_timeout"), "ready", "silent"),
    (Row("nonsense", "connection"), "ready", "garbage"),
    (Row("too long", "context_length"), "ready", "too long"),
    (Row("empty", "upstream"), "ready", "noise"),
    (Row("killed from outside", "interrupted", "more "), "ready", "forever"),
]


@pytest.mark.parametrize(("row", "manner", "wish"), LOCAL, ids=lambda value: getattr(value, "fault", ""))
async def test_the_local_models_failure_has_its_kind_and_leaves_nothing(
    row: Row, manner: str, wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "torch is not installed; run: pip install 'shoal[local]'" if row.fault == "no libraries" else ""
    monkeypatch.setattr(local_hf, "missing_libraries", lambda: missing)
    folder = model_folder(tmp_path / "tiny") if row.fault != "no weights" else tmp_path / "nothing-here"
    log = tmp_path / "pids"
    log.touch()
    provider = LocalHf(
        "local_hf",
        local_hf.Settings(model=str(folder)),
        models_dir=tmp_path,
        environ=dict(os.environ),
        worker=lambda: [sys.executable, fake_worker.__file__, str(log), manner],
    )
    limits = msgspec.structs.replace(FAST, first_token_s=2.5 if row.kind != "first_token_timeout" else 0.4)
    with nothing_left_over(tmp_path), trio.fail_after(20):
        async with provider.running(), routing(provider, limits=limits) as router, trio.open_nursery() as nursery:
            if row.fault == "killed from outside":
                nursery.start_soon(_kill_soon, log)
            told = await ask(router, GenerateRequest.of(wish), timeout_s=10.0)
    if row.fault == "killed from outside":
        assert (told.outcomes[0][1], set(told.text.split())) == ("interrupted", {"more"})
    else:
        check(row, told, 0.0)


async def _kill_soon(log: Path) -> None:
    """SIGTERM to the worker, once it writes."""
    while not (pids := log.read_text().split()):
        await trio.sleep(0.02)
    await trio.sleep(0.3)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pids[-1]), signal.SIGTERM)
