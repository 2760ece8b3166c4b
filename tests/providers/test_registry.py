"""The registry: names, tables, order, plug-ins, and what is registered by code."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.providers import registry as module
from shoal.providers.base import ErrorKind, Event, GenerateRequest, Provider, ProviderError, Status, TextDelta
from shoal.providers.environment import VariableError
from shoal.providers.faults import NotConfiguredError, RegistryError, UnknownProviderError
from shoal.providers.registry import (
    CLIS,
    ORDER,
    UNASKED,
    Registry,
    canonical,
    forget_llm_provider,
    register_llm_provider,
)
from shoal.providers.settings import BuildContext, ProviderSettings

DESK = {"type": "openai_compat", "base_url": "http://127.0.0.1:9/v1"}


def build(tables: dict[str, dict[str, Any]], *, environ: dict[str, str] | None = None, **options: Any) -> Registry:
    options.setdefault("unasked", ())
    return Registry.build(tables, data_dir=Path("unused"), environ=environ or {}, **options)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for name in list(module._registered.state[1]):
        forget_llm_provider(name)


class Parrot:
    def __init__(self, word: str = "squawk") -> None:
        self.word = word

    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        return f"{self.word} {prompt}"


async def ask(provider: Provider, prompt: str = "hello") -> str:
    async with provider.generate(GenerateRequest.of(prompt)) as events:
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])


# -- names


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("codex", "codex_cli"),
        ("Gemini", "gemini_cli"),
        ("claude", "claude_code"),
        ("claude-code", "claude_code"),
        ("accelerate", "backend_manager"),
        ("hf", "local_hf"),
        ("HuggingFace", "local_hf"),
        (" local ", "local_hf"),
        ("copilot_sdk", "copilot_sdk"),
        ("my-desk", "my-desk"),
    ],
)
def test_aliases_lead_to_one_name(alias: str, name: str) -> None:
    assert canonical(alias) == name


@pytest.mark.parametrize("name", sorted(CLIS))
def test_a_tool_that_is_not_installed_says_what_to_type(name: str) -> None:
    reason = build({}, environ={"PATH": "/nonexistent"}, unasked=UNASKED).refused[name]
    assert "is not on PATH; run `npm install -g @" in reason


def test_a_known_provider_without_a_table_is_not_configured_and_says_which_table() -> None:
    with pytest.raises(NotConfiguredError, match=r"add \[providers.claude_code\]"):
        build({}).get("claude")


def test_an_unknown_name_is_another_error_and_guesses() -> None:
    with pytest.raises(UnknownProviderError, match="did you mean desk"):
        build({"desk": DESK}).get("dekc")


# -- tables


def test_several_backends_of_one_type_live_under_names_of_the_owners_choice() -> None:
    registry = build({"desk": DESK, "Attic": DESK | {"share": True}})
    assert list(registry.providers) == ["desk", "attic"]
    assert registry.shared == {"attic"}
    assert registry.get("DESK").name == "desk"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"base_ulr": "x"} | DESK, ["providers.desk.base_ulr", "did you mean base_url?"]),
        ({"type": "openai_compat"}, ["providers.desk.base_url", "is missing", "add base_url to [providers.desk]"]),
        (DESK | {"base_url": 5}, ["providers.desk.base_url", "expected str, got int"]),
        (DESK | {"max_concurrent": "many"}, ["providers.desk.max_concurrent", "expected int, got str"]),
        (DESK | {"max_concurrent": 0}, ["providers.desk.max_concurrent", "too small"]),
        (DESK | {"models": ["a", 5]}, ["providers.desk.models", "expected str, got int"]),
        (DESK | {"connect_timeout_s": 0}, ["providers.desk.connect_timeout_s", "> 0"]),
        (DESK | {"base_url": "127.0.0.1:8000"}, ["providers.desk.base_url", "http or https"]),
        (DESK | {"base_url": "http://me:pw@host/v1"}, ["providers.desk.base_url", "api_key_file"]),
        (DESK | {"headers": {"Authorization": "x"}}, ["providers.desk.headers", "api_key_env"]),
        (DESK | {"headers": {"X-A": "a\r\nX-B: b"}}, ["providers.desk.headers", "printable ASCII"]),
        (DESK | {"type": "openai_compatt"}, ["providers.desk.type", "did you mean openai_compat?"]),
        (DESK | {"type": 5}, ["providers.desk.type", "wants text"]),
        ({"base_url": "http://x/v1"}, ["providers.desk.type", 'add type = "openai_compat"']),
        ({}, ["providers.desk", "openai_compat, openrouter, local_hf"]),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line_with_key_and_remedy(table: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RegistryError) as caught:
        build({"desk": table})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.provider == "desk"


def test_a_key_in_the_table_is_refused_without_being_repeated() -> None:
    with pytest.raises(RegistryError) as caught:
        build({"desk": DESK | {"api_key": "sk-planted"}})
    assert caught.value.key == "api_key"
    assert "api_key_env" in str(caught.value)
    assert "sk-planted" not in str(caught.value)


def test_two_tables_of_one_provider_are_refused() -> None:
    with pytest.raises(RegistryError, match="once more"):
        build({"desk": DESK, "Desk": DESK})


@pytest.mark.parametrize("name", ["", "peers", "a,b", "schön", "x" * 65])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(RegistryError, match="name"):
        build({name: DESK})


def test_a_provider_that_is_switched_off_says_how_to_switch_it_on() -> None:
    registry = build({"desk": DESK | {"enabled": False}})
    assert "enabled = true" in registry.refused["desk"]
    assert not registry.providers


# -- order


def test_names_of_ones_own_come_before_the_built_in_ones_and_local_comes_last() -> None:
    tables = {"openrouter": {"api_key_env": "K"}, "desk": DESK, "attic": DESK}
    assert list(build(tables).providers) == ["desk", "attic", "openrouter"]
    assert ORDER[-1] == "local_hf"


def test_the_configured_order_wins() -> None:
    tables = {"openrouter": {"api_key_env": "K"}, "desk": DESK, "attic": DESK}
    registry = build(tables, order=("attic", "peers", "OpenRouter"))
    assert list(registry.providers) == ["attic", "openrouter", "desk"]


def test_an_unknown_name_in_the_order_is_an_error() -> None:
    with pytest.raises(RegistryError, match="did you mean desk"):
        build({"desk": DESK}, order=("dseck",))


# -- without a table


def test_openrouter_needs_no_table_where_the_environment_holds_a_key() -> None:
    assert "openrouter" in build({}, environ={"OPENROUTER_API_KEY": "k"}, unasked=("openrouter",)).providers
    refused = build({}, unasked=("openrouter",)).refused
    assert "set OPENROUTER_API_KEY" in refused["openrouter"]


def test_building_a_registry_loads_neither_torch_nor_the_providers_that_are_not_used() -> None:
    code = (
        "import sys; from pathlib import Path; from shoal.providers.registry import Registry;"
        "Registry.build({}, data_dir=Path('x'), environ={}, unasked=());"
        "bad = [m for m in ('torch', 'transformers', 'shoal.providers.openai_compat', 'libp2p') if m in sys.modules];"
        "sys.exit(' '.join(bad) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- registered by code


@pytest.mark.parametrize(
    ("name", "factory"), [("", Parrot), ("  ", Parrot), ("a,b", Parrot), ("x", "Parrot"), ("x", None)]
)
def test_a_blank_name_or_a_factory_that_cannot_be_called_is_a_value_error(name: str, factory: Any) -> None:
    with pytest.raises(ValueError):
        register_llm_provider(name, factory)


async def test_registering_takes_effect_at_once_in_registries_that_run() -> None:
    registry = build({})
    async with registry.running():
        assert "parrot" not in registry.providers
        register_llm_provider("Parrot", Parrot)
        assert await ask(registry.get("pArRoT")) == "squawk hello"
        register_llm_provider("parrot", lambda: Parrot("again"))
        assert await ask(registry.get("parrot")) == "again hello"
        forget_llm_provider("parrot")
        with pytest.raises(UnknownProviderError):
            registry.get("parrot")


async def test_a_factory_runs_once_however_many_ask_and_not_before_somebody_does() -> None:
    made: list[Parrot] = []

    def factory() -> Parrot:
        made.append(Parrot())
        return made[-1]

    register_llm_provider("parrot", factory)
    registry = build({})
    async with registry.running():
        provider = registry.get("parrot")
        assert made == []
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask, provider)
        assert len(made) == 1


async def test_a_table_speaks_of_a_registered_provider_and_may_give_it_a_second_name() -> None:
    register_llm_provider("parrot", Parrot)
    registry = build({"parrot": {"share": True}, "polly": {"type": "parrot", "max_concurrent": 1}})
    assert registry.shared == {"parrot"}
    assert registry.settings["polly"].max_concurrent == 1
    async with registry.running():
        assert await ask(registry.get("polly")) == "squawk hello"


async def test_a_factory_that_fails_is_a_reason_and_is_asked_again_later(
    mock_clock: trio.testing.MockClock,
) -> None:
    results: list[Any] = [ImportError("no feathers"), Parrot()]

    def factory() -> Any:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    register_llm_provider("parrot", factory)
    registry = build({})
    async with registry.running():
        status = (await registry.statuses())["parrot"]
        assert not status.ready
        assert "ImportError: no feathers" in status.reason
        with pytest.raises(ProviderError) as caught:
            await ask(registry.get("parrot"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        mock_clock.jump(31)
        assert (await registry.statuses())["parrot"].ready


async def test_a_factory_of_something_else_says_what_is_missing() -> None:
    register_llm_provider("stone", object)
    registry = build({})
    async with registry.running():
        assert "has no generate" in (await registry.statuses())["stone"].reason


class Whole(Provider):
    """A full provider, whose life can be seen."""

    def __init__(self) -> None:
        self.name = "whole"
        self.alive = self.lived = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        self.alive = self.lived = True
        try:
            yield
        finally:
            self.alive = False

    async def probe(self) -> Status:
        return Status(ready=True)

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return self._generate()

    @asynccontextmanager
    async def _generate(self) -> AsyncGenerator[AsyncIterator[Event]]:
        async def events() -> AsyncIterator[Event]:
            await trio.lowlevel.checkpoint()
            yield TextDelta(f"alive: {self.alive}")

        yield events()


async def test_a_full_provider_from_a_factory_lives_as_long_as_it_is_in_use() -> None:
    first = Whole()
    register_llm_provider("whole", lambda: first)
    registry = build({})
    async with registry.running():
        provider = registry.get("whole")
        async with provider.generate(GenerateRequest.of("x")) as events:
            register_llm_provider("whole", Whole)
            assert registry.get("whole") is not provider
            assert [event async for event in events] == [TextDelta("alive: True")]
            assert first.alive
        await trio.testing.wait_all_tasks_blocked()
        assert not first.alive


async def test_the_life_of_all_providers_is_the_registrys() -> None:
    whole = Whole()
    registry = Registry.of(whole)
    async with registry.running():
        assert whole.alive
    assert whole.lived
    assert not whole.alive


# -- statuses


class Slow(Whole):
    async def probe(self) -> Status:
        await trio.sleep_forever()
        raise AssertionError


class Broken(Whole):
    async def probe(self) -> Status:
        raise RuntimeError("a plug-in's fault")


async def test_probes_are_asked_at_once_and_one_that_hangs_or_fails_hides_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    providers = {"a": Slow(), "b": Slow(), "c": Broken(), "d": Whole()}
    for name, provider in providers.items():
        provider.name = name
    registry = Registry.of(*providers.values())
    began = trio.current_time()
    statuses = await registry.statuses()
    assert trio.current_time() - began == pytest.approx(module.PROBE_DEADLINE_S)
    assert list(statuses) == ["a", "b", "c", "d"]
    assert "did not answer its probe within 6 s" in statuses["a"].reason
    assert "RuntimeError" in statuses["c"].reason
    assert statuses["d"].ready


# -- plug-ins


class Plugin:
    """A plug-in with settings, in the shape of a module."""

    class Settings(ProviderSettings, forbid_unknown_fields=True):
        word: str

    @staticmethod
    def build(name: str, settings: Any, context: BuildContext) -> Provider:
        from shoal.providers.simple import SimpleProvider

        return SimpleProvider(name, Parrot(settings.word), settings)


class Point(importlib.metadata.EntryPoint):
    loaded: Any

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def plugged(monkeypatch: pytest.MonkeyPatch, **points: Any) -> None:
    found = []
    for name, loaded in points.items():
        point = Point(name, f"package.{name}", module.ENTRY_POINTS)
        vars(point)["loaded"] = loaded
        found.append(point)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found if group == "shoal.providers" else [])


async def test_an_installed_plug_in_works_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, parrot=Parrot)
    registry = build({})
    async with registry.running():
        assert await ask(registry.get("parrot")) == "squawk hello"


async def test_a_plug_in_with_settings_takes_a_table_that_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, polly=Plugin)
    registry = build({"polly": {"word": "pieces of eight"}, "flint": {"type": "polly", "word": "arr"}})
    async with registry.running():
        assert await ask(registry.get("polly")) == "pieces of eight hello"
        assert await ask(registry.get("flint")) == "arr hello"
    with pytest.raises(RegistryError, match=r"providers.polly.wrod"):
        build({"polly": {"word": "x", "wrod": "x"}})


async def test_a_plug_in_that_needs_a_table_says_which_key(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, polly=Plugin)
    registry = build({})
    async with registry.running():
        assert "add word to [providers.polly]" in (await registry.statuses())["polly"].reason


@pytest.mark.parametrize("table", [{}, {"parrot": {"share": True}}])
async def test_a_broken_plug_in_is_a_reason_never_a_crash(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, dict[str, Any]]
) -> None:
    plugged(monkeypatch, parrot=ImportError("no module named feathers"))
    registry = build(table)
    async with registry.running():
        statuses = await registry.statuses()
        reason = registry.refused.get("parrot") or statuses["parrot"].reason
        assert "ImportError" in reason


# -- the backend manager's switch


BACKENDS = {"backends": {"a": {"base_url": "http://127.0.0.1:1/v1"}}}


@pytest.mark.parametrize("prefix", ["SHOAL_", "IPFS_ACCELERATE_PY_"])
def test_the_environment_switches_the_backend_manager_off_and_on(prefix: str) -> None:
    variable = f"{prefix}ENABLE_BACKEND_MANAGER"
    assert "backend_manager" in build({"backend_manager": dict(BACKENDS)}).providers
    off = build({"accelerate": dict(BACKENDS)}, environ={variable: "no"})
    assert off.refused["backend_manager"] == "switched off by the environment"
    on = build({"backend_manager": {**BACKENDS, "enabled": False}}, environ={variable: "1"})
    assert list(on.providers) == ["backend_manager"]


def test_a_backend_manager_without_backends_says_which_table_to_add() -> None:
    quiet = build({}, unasked=["backend_manager"]).refused["backend_manager"]
    assert quiet == "no backend is configured; add a table [providers.backend_manager.backends.NAME] with base_url"
    asked = build({}, environ={"SHOAL_ENABLE_BACKEND_MANAGER": "yes"}, unasked=["backend_manager"])
    assert asked.refused["backend_manager"].startswith("switched on, but no backend is configured")


def test_a_switch_that_is_neither_on_nor_off_names_the_variable() -> None:
    with pytest.raises(VariableError, match="SHOAL_ENABLE_BACKEND_MANAGER is neither true nor false"):
        build({}, environ={"SHOAL_ENABLE_BACKEND_MANAGER": "maybe"}, unasked=["backend_manager"])


def test_a_key_in_a_backends_table_is_refused_with_where_to_put_it() -> None:
    with pytest.raises(RegistryError, match="would hold a secret") as caught:
        build({"backend_manager": {"backends": {"a": {"base_url": "http://127.0.0.1:1/v1", "api_key": "sk-planted"}}}})
    assert "sk-planted" not in str(caught.value)
