"""Who can generate text here: the names, their order, and the providers built from the configuration.

    registry = Registry.build({"desk": {"type": "openai_compat", "base_url": "..."}}, data_dir=..., environ=os.environ)
    async with registry.running():
        for name, status in (await registry.statuses()).items(): ...

A provider is one module with `class Settings(ProviderSettings)` and `build(name, settings, context) -> Provider`;
modules are imported when they are needed. Anyone adds one by an entry point of the group `shoal.providers` (such a
module, or a factory without arguments), or by `register_llm_provider`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from .base import ErrorKind, Provider, ProviderError, Status
from .deferred import Deferred
from .faults import NotConfiguredError, RegistryError, SettingsError, UnknownProviderError
from .settings import BuildContext, ProviderSettings

ENTRY_POINTS = "shoal.providers"
PROBE_DEADLINE_S = 6.0

ALIASES = {
    "codex": "codex_cli",
    "gemini": "gemini_cli",
    "claude": "claude_code",
    "accelerate": "backend_manager",
    "hf": "local_hf",
    "huggingface": "local_hf",
    "local": "local_hf",
}
"""Other names of the same provider."""

ORDER = (
    "backend_manager",
    "openrouter",
    "codex_cli",
    "copilot_cli",
    "copilot_sdk",
    "gemini_cli",
    "claude_code",
    "local_hf",
)
"""The built-in order. Providers under names of the owner's own choice come between the first two."""

CLIS = {
    "codex_cli": ".cli.codex",
    "copilot_cli": ".cli.copilot",
    "copilot_sdk": ".cli.copilot_sdk",
    "gemini_cli": ".cli.gemini",
    "claude_code": ".cli.claude",
}
BUILT_IN = {
    "openai_compat": ".openai_compat",
    "openrouter": ".openrouter",
    "local_hf": ".local_hf",
    "backend_manager": ".backend_manager",
    **CLIS,
}
"""Type -> module of this package."""

UNASKED = ("backend_manager", "openrouter", "local_hf", *CLIS)
"""Built without a table of their own: each finds out by itself whether it can work."""


_NAME = re.compile(r"[a-z0-9][a-z0-9 _.:/+@-]{0,63}")
_RESERVED = frozenset({"peers", "peer", "cache"})
"""Words that stand beside providers' names in orders and headers."""


def canonical(name: str) -> str:
    """The name a provider goes by: case, blanks around it and aliases do not matter."""
    plain = name.strip().lower()
    known = plain.replace("-", "_")
    known = ALIASES.get(known, known)
    return known if known in ORDER or known in BUILT_IN else plain


def _fault_of_name(name: str) -> str | None:
    if name in _RESERVED:
        return f"{name!r} means something else here; choose another name"
    if _NAME.fullmatch(name) is None:
        return "a provider's name is up to 64 letters, digits and _ . : / + @ - and starts with a letter or digit"
    return None


# -- providers registered by code ------------------------------------------------------------------------------

Factory = Callable[[], object]


class _Registered:
    """What `register_llm_provider` was told, for every registry of the process. Any thread may ask and tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.state: tuple[int, Mapping[str, Factory]] = (0, {})
        """A counter that grows with each change, and name -> factory."""

    def put(self, name: str, factory: Factory | None) -> None:
        with self._lock:
            generation, factories = self.state
            others = {key: value for key, value in factories.items() if key != name}
            self.state = (generation + 1, others if factory is None else {**others, name: factory})


_registered = _Registered()


def register_llm_provider(name: str, factory: Factory) -> None:
    """Offer a provider under a name, to every registry of this process, at once.

    factory: called without arguments, once, on first use, in a thread; gives an `LLMProvider` or a `Provider`.
    Registering a name again replaces what stood there. Raises ValueError for a blank or odd name, or a factory that
    cannot be called.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError("a provider needs a name; give one as text")
    if fault := _fault_of_name(canonical(name)):
        raise ValueError(fault)
    if not callable(factory):
        raise ValueError(  # noqa: TRY004 - the contract says ValueError for both
            f"the factory of {name!r} cannot be called; give a function or class that makes the provider"
        )
    _registered.put(canonical(name), factory)


def forget_llm_provider(name: str) -> None:
    """Undo `register_llm_provider`; a name that nobody registered is fine."""
    _registered.put(canonical(name), None)


def registered_names() -> frozenset[str]:
    """The names that `register_llm_provider` holds now."""
    return frozenset(_registered.state[1])


def registrations() -> int:
    """A number that grows with every change of what is registered."""
    return _registered.state[0]


# -- the registry ----------------------------------------------------------------------------------------------


class Registry:
    """The providers of one node. `providers` is in the order in which they are tried.

    settings: name -> its checked settings (`share` is there). refused: name -> why it is known but not built.
    """

    def __init__(self, order: Iterable[str] = ()) -> None:
        self._order = tuple(canonical(name) for name in order)
        self._built: dict[str, tuple[Provider, ProviderSettings]] = {}
        self._registered: dict[str, tuple[Factory, Deferred]] = {}
        self._tables: dict[str, ProviderSettings] = {}
        self._providers: dict[str, Provider] = {}
        self._seen = -1
        self._off: set[str] = set()
        self._living: set[Provider] = set()
        self._nursery: trio.Nursery | None = None
        self.settings: dict[str, ProviderSettings] = {}
        self.refused: dict[str, str] = {}

    @classmethod
    def build(
        cls,
        settings: Mapping[str, Mapping[str, Any]],
        *,
        data_dir: Path,
        environ: Mapping[str, str],
        order: Iterable[str] = (),
        unasked: Iterable[str] = UNASKED,
    ) -> Registry:
        """The providers that the tables ask for, and those that need no table.

        settings: `{name: {"type": ..., key: value}}`; the type is the name where it is left out. order: names to
        try first; `peers`, the router's word, is passed over. unasked: built-in providers that need no table.
        Raises RegistryError for a table that cannot be used.
        """
        registry = cls(order)
        context = BuildContext(data_dir, environ)
        plugins = {canonical(p.name): p for p in importlib.metadata.entry_points(group=ENTRY_POINTS)}
        for given, table in settings.items():
            name = canonical(given)
            if fault := _fault_of_name(name):
                raise RegistryError(given, None, "has a name that cannot be used", fault)
            if registry._placed(name):
                raise RegistryError(given, None, f"is {name} once more", "keep one of the two tables")
            registry._add(name, dict(table), context, plugins)
        for name in unasked:
            if not registry._placed(name):
                registry._add_unasked(name, context)
        for name, point in plugins.items():
            if not registry._placed(name):
                registry._built[name] = _plugged(name, point, ProviderSettings(), context), ProviderSettings()
        for name in ORDER:
            if not registry._placed(name):
                registry.refused[name] = f"is not set up here; add [providers.{name}] to the configuration"
        registry._arrange()
        registry._check_order()
        return registry

    @classmethod
    def of(cls, *providers: Provider, order: Iterable[str] = ()) -> Registry:
        """A registry of providers that exist already."""
        registry = cls(order)
        registry._built = {provider.name: (provider, ProviderSettings()) for provider in providers}
        registry._arrange()
        return registry

    # -- what is there -----------------------------------------------------------------------------------------

    @property
    def providers(self) -> dict[str, Provider]:
        """Name -> provider, in order. Read it anew each time: registering a provider takes effect at once."""
        if self._seen != _registered.state[0]:
            self._arrange()
        return self._providers

    @property
    def shared(self) -> frozenset[str]:
        """The names that peers may use."""
        return frozenset(name for name in self.providers if self.settings[name].share)

    def get(self, name: str) -> Provider:
        """The provider of that name or alias. Raises UnknownProviderError, or NotConfiguredError with the reason."""
        wanted = canonical(name)
        provider = self.providers.get(wanted)
        if provider is not None:
            return provider
        if wanted in self.refused:
            raise NotConfiguredError(f"{wanted}: {self.refused[wanted]}")
        known = sorted({*self._providers, *self.refused})
        raise UnknownProviderError(f"there is no provider {name!r}; {_meant(wanted, known)}")

    async def statuses(self) -> dict[str, Status]:
        """What every provider says of itself, all asked at once, each within 6 s."""
        providers = dict(self.providers)
        found: dict[str, Status] = {}

        async def ask(name: str, provider: Provider) -> None:
            found[name] = Status(ready=False, reason=f"did not answer its probe within {PROBE_DEADLINE_S:g} s")
            with trio.move_on_after(PROBE_DEADLINE_S):
                try:
                    found[name] = await provider.probe()
                except Exception as error:  # a plug-in's fault must not hide the others
                    found[name] = Status(ready=False, reason=f"its probe failed with {type(error).__name__}")

        async with trio.open_nursery() as nursery:
            for name, provider in providers.items():
                nursery.start_soon(ask, name, provider)
        return {name: found[name] for name in providers}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The life of all of them, and of those that are registered meanwhile."""
        async with trio.open_nursery() as nursery:
            for provider in [*self.providers.values()]:
                self._living.add(provider)
                await nursery.start(self._live, provider)
            self._nursery = nursery
            self._arrange()  # what was registered while the others started has no life yet
            try:
                yield
            finally:
                self._nursery = None
                self._living.clear()
                nursery.cancel_scope.cancel()

    # -- how it came to be there -------------------------------------------------------------------------------

    def _placed(self, name: str) -> bool:
        return name in self._built or name in self._tables or name in self.refused

    def _add(
        self,
        name: str,
        table: dict[str, Any],
        context: BuildContext,
        plugins: Mapping[str, importlib.metadata.EntryPoint],
    ) -> None:
        """One table."""
        given = table.pop("type", name)
        if not isinstance(given, str):
            raise RegistryError(name, "type", "wants text", 'write type = "openai_compat", for example')
        kind = canonical(given)
        factories = _registered.state[1]
        told = _switched(kind, context)
        if told is not None:
            table["enabled"] = told
        if table.get("enabled") is False:
            self._off.add(name)
            how = " by the environment" if told is False else f"; set enabled = true in [providers.{name}]"
            self.refused[name] = f"switched off{how}"
        elif kind in factories:
            checked = _checked(name, table, ProviderSettings)
            if kind == name:
                self._tables[name] = checked
            else:
                self._built[name] = Deferred(name, factories[kind], checked), checked
        elif kind in BUILT_IN:
            self._add_module(name, _built_in(kind), table, context)
        elif kind in plugins:
            self._add_plugin(name, plugins[kind], table, context)
        else:
            raise _unknown_type(name, given, table, [*BUILT_IN, *plugins, *factories])

    def _add_module(self, name: str, module: Any, table: dict[str, Any], context: BuildContext) -> None:
        settings = _checked(name, table, module.Settings)
        try:
            self._built[name] = module.build(name, settings, context), settings
        except SettingsError as fault:
            raise RegistryError(name, fault.key, fault.problem, fault.remedy) from None

    def _add_plugin(
        self, name: str, point: importlib.metadata.EntryPoint, table: dict[str, Any], context: BuildContext
    ) -> None:
        try:
            loaded = point.load()
        except Exception as error:  # the plug-in's fault is its reason, not the node's end
            self.refused[name] = _broken(point, error)
            return
        if hasattr(loaded, "Settings"):
            self._add_module(name, loaded, table, context)
        else:
            checked = _checked(name, table, ProviderSettings)
            self._built[name] = Deferred(name, loaded, checked), checked

    def _add_unasked(self, name: str, context: BuildContext) -> None:
        """A built-in provider that has no table: with its default settings, or the reason why that is not enough."""
        try:
            module = _built_in(name)
        except ImportError as error:
            self.refused[name] = f"cannot be loaded ({error.name or error} is missing)"
            return
        missing = getattr(module, "missing", lambda environ: None)(context.environ)
        if missing:
            self.refused[name] = missing
        else:
            self._add_module(name, module, {}, context)

    def _arrange(self) -> None:
        """Puts what was built and what was registered in order, and gives what is new a life."""
        self._seen, factories = _registered.state
        for name, (factory, provider) in list(self._registered.items()):
            if factories.get(name) is not factory:
                provider.retire()
                del self._registered[name]
        for name, factory in factories.items():
            if name not in self._registered and name not in self._off:
                settings = self._settings_of(name)
                self._registered[name] = factory, Deferred(name, factory, settings)
        providers = {name: provider for name, (provider, _) in self._built.items()}
        providers |= {name: provider for name, (_, provider) in self._registered.items()}
        self._providers = {name: providers[name] for name in self._sorted(providers)}
        self.settings = {name: self._settings_of(name) for name in self._providers}
        if self._nursery is not None:
            for _, deferred in self._registered.values():
                if deferred not in self._living:
                    self._living.add(deferred)
                    self._nursery.start_soon(self._live, deferred)

    def _settings_of(self, name: str) -> ProviderSettings:
        if name in self._tables:
            return self._tables[name]
        return self._built[name][1] if name in self._built else ProviderSettings()

    def _sorted(self, names: Iterable[str]) -> list[str]:
        """As ordered, then by the built-in order, with names of the owner's own between its first two."""
        own = {name: i for i, name in enumerate(names)}
        builtin = {name: len(own) + i for i, name in enumerate(ORDER)} | {ORDER[0]: -1}
        ordered = {name: i - len(self._order) - 1 for i, name in enumerate(self._order)}
        return sorted(own, key=lambda name: ordered.get(name, builtin.get(name, own[name])))

    def _check_order(self) -> None:
        known = sorted({*self._providers, *self.refused})
        for name in self._order:
            if name not in known and name not in _RESERVED:
                raise RegistryError(
                    name, None, "stands in the order, but there is no such provider", _meant(name, known)
                )

    async def _live(self, provider: Provider, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Holds a provider's `running()` open; one that was replaced ends after its last request."""
        async with provider.running():
            task_status.started()
            if isinstance(provider, Deferred):
                await provider.until_unused()
            else:
                await trio.sleep_forever()
        self._living.discard(provider)


# -- modules, plug-ins, tables ---------------------------------------------------------------------------------

S = TypeVar("S", bound=ProviderSettings)


def _built_in(kind: str) -> Any:
    return importlib.import_module(BUILT_IN[kind], __package__)


def _switched(kind: str, context: BuildContext) -> bool | None:
    """Whether the environment switches a provider of this kind on or off; None when it says nothing."""
    if kind != "backend_manager":
        return None
    told: bool | None = _built_in(kind).switched(context.environ)
    return told


def _plugged(
    name: str, point: importlib.metadata.EntryPoint, settings: ProviderSettings, context: BuildContext
) -> Provider:
    """A plug-in without a table: loaded when it is first needed."""

    def make() -> object:
        loaded = point.load()
        if not hasattr(loaded, "Settings"):
            return loaded()
        try:
            return loaded.build(name, _checked(name, {}, loaded.Settings), context)
        except (RegistryError, SettingsError) as fault:
            raise ProviderError(ErrorKind.UNAVAILABLE, str(fault)) from None

    return Deferred(name, make, settings)


def _broken(point: importlib.metadata.EntryPoint, error: Exception) -> str:
    return f"the plug-in {point.value} cannot be loaded ({type(error).__name__}); reinstall or remove its package"


def _checked(name: str, table: dict[str, Any], settings: type[S]) -> S:
    """The table as settings. Raises RegistryError that names the key."""
    try:
        checked = msgspec.convert(table, settings)
    except msgspec.ValidationError as error:
        raise _fault_of_table(name, settings, str(error)) from None
    for key in ("max_concurrent", "max_queue"):
        if getattr(checked, key) < (key == "max_concurrent"):
            raise RegistryError(name, key, "is too small", f"write {key} = 8, for example")
    return checked


_UNKNOWN_KEY = re.compile(r"unknown field `([^`]*)`")
_MISSING_KEY = re.compile(r"missing required field `([^`]*)`")
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")


def _fault_of_table(name: str, settings: type[ProviderSettings], said: str) -> RegistryError:
    """msgspec's sentence, in ours. It holds types and bounds, never the value, so no key can be in it."""
    keys = [field.encode_name for field in msgspec.structs.fields(settings)]
    if match := _UNKNOWN_KEY.search(said):
        key = match[1]
        if key in ("api_key", "key", "token", "api_token"):
            return RegistryError(
                name, key, "would hold a secret", "name a variable in api_key_env or a file in api_key_file"
            )
        return RegistryError(name, key, "is no key of this provider", _meant(key, keys))
    if match := _MISSING_KEY.search(said):
        return RegistryError(name, match[1], "is missing", f"add {match[1]} to [providers.{name}]")
    place = _PLACE.search(said)
    expected = _PLACE.sub("", said).replace("`", "")
    return RegistryError(
        name, place[1] if place else None, "has the wrong type or value", expected[:1].lower() + expected[1:]
    )


def _unknown_type(name: str, given: str, table: Mapping[str, Any], kinds: list[str]) -> RegistryError:
    if given != name:
        return RegistryError(name, "type", f"is {given!r}, which nobody provides", _meant(given, kinds))
    if "base_url" in table:
        return RegistryError(name, "type", "is missing", 'add type = "openai_compat"')
    return RegistryError(
        name, None, "is no provider that this version knows", f"{_meant(name, kinds)}, or say its type"
    )


def _meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
