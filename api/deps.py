"""`RouterDeps`: everything that `generate_text` keeps between two calls, in one object that can be handed around.

with RouterDeps(remote_cache=redis_like) as deps:
    generate_text("What is the opposite of hot?", deps=deps)
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Hashable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec

from .backends import NAME, own_pool
from .background import BackgroundLoop, Held
from .cache.canonical import CanonicalError, why_not_cacheable
from .cache.key import request_key
from .engine import LocalRouter, Said, local_router
from .errors import GenerationError
from .node.config_file import Loaded, load_config
from .node.state import RpcState, running_rpc
from .options import Call
from .protocols.http.client import Client
from .providers.base import GenerateRequest
from .providers.registry import canonical, registered_names
from .running_node import NodeGoneError
from .running_node import answer as node_answer
from .running_node import check as node_check

T = TypeVar("T")
_log = logging.getLogger(__name__)


@runtime_checkable
class RemoteCache(Protocol):
    """A cache of the caller's own, shared with whomever they like. Keys and values are text."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: str) -> Any: ...


class RouterDeps:
    """Caches, providers and the background loop behind `generate_text`. Any thread may use it.

    remote_cache: asked for an answer before anybody else, and told of each that may be kept. backend_manager: given out
    by `get_backend_manager` in place of the configured one. config, data_dir, environ: as for the node; None is the
    node's own rule. use_daemon: True asks only the node that runs on the data directory, False never does, None does
    when one runs. max_cached: entries of `set_cached`.
    """

    def __init__(
        self,
        *,
        remote_cache: RemoteCache | None = None,
        backend_manager: Any = None,
        config: Path | str | None = None,
        data_dir: Path | str | None = None,
        environ: Mapping[str, str] | None = None,
        use_daemon: bool | None = None,
        max_cached: int = 4096,
    ) -> None:
        if remote_cache is not None and not isinstance(remote_cache, RemoteCache):
            raise TypeError("remote_cache needs get(key) and set(key, value)")
        self.remote_cache, self.backend_manager = remote_cache, backend_manager
        self._config = Path(config) if config is not None else None
        self._data_dir = Path(data_dir) if data_dir is not None else None
        self._environ = os.environ if environ is None else environ
        self._use_daemon, self._max_cached = use_daemon, max_cached
        self._lock = threading.RLock()
        self._loop = BackgroundLoop()
        self._loaded: Loaded | None = None
        self._local: _Shared | None = None
        self._http: Held[Client] | None = None
        self._cached: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._made: dict[Hashable, concurrent.futures.Future[Any]] = {}
        self._makers: dict[Hashable, int] = {}
        _living.add(self)

    def __enter__(self) -> RouterDeps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- caches ------------------------------------------------------------------------------------------------

    def get_cached(self, key: Hashable) -> Any:
        """What `set_cached` keeps under a key, or None."""
        with self._lock:
            entry = self._cached.get(key)
            if entry is None:
                return None
            if entry[0] < time.monotonic():
                del self._cached[key]
                return None
            self._cached.move_to_end(key)
            return entry[1]

    def set_cached(self, key: Hashable, value: Any, *, ttl_s: float | None = None) -> None:
        """Keep a value in memory, for `ttl_s` seconds at most. None and "" are not kept: they answer nothing."""
        if value is None or value == "":
            return
        until = float("inf") if ttl_s is None else time.monotonic() + ttl_s
        with self._lock:
            self._cached[key] = (until, value)
            self._cached.move_to_end(key)
            while len(self._cached) > self._max_cached:
                self._cached.popitem(last=False)

    def get_cached_or_remote(self, key: str, *, ttl_s: float | None = None) -> Any:
        """The same, and then what the remote cache has. A remote cache that fails is as good as an empty one."""
        value = self.get_cached(key)
        if value is not None or self.remote_cache is None:
            return value
        try:
            value = self.remote_cache.get(key)
        except Exception as error:  # the caller's own code; a cache must not cost an answer
            _log.warning("the remote cache's get failed with %s", type(error).__name__)
            return None
        self.set_cached(key, value, ttl_s=ttl_s)
        return value if value != "" else None

    def set_cached_and_remote(self, key: str, value: Any, *, ttl_s: float | None = None) -> None:
        """Keep a value in memory and in the remote cache."""
        if value is None or value == "":
            return
        self.set_cached(key, value, ttl_s=ttl_s)
        if self.remote_cache is not None:
            try:
                self.remote_cache.set(key, value)
            except Exception as error:
                _log.warning("the remote cache's set failed with %s", type(error).__name__)

    def get_or_create(self, key: Hashable, factory: Callable[[], T]) -> T:
        """What `factory()` made for this key; it runs once, however many threads ask. A failure is not kept.

        `close()` calls the `close()` of what was made, where there is one.
        """
        with self._lock:
            future = self._made.get(key)
            mine = future is None
            if future is None:
                future = self._made[key] = concurrent.futures.Future()
                self._makers[key] = threading.get_ident()
            elif self._makers.get(key) == threading.get_ident():
                raise RuntimeError(f"the factory of {key!r} asks for what it is making")
        if not mine:
            made: T = future.result()
            return made
        try:
            made = factory()
        except BaseException as error:
            with self._lock:
                if self._made.get(key) is future:
                    del self._made[key]
                self._makers.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:
            self._makers.pop(key, None)
        future.set_result(made)
        return made

    def get_backend_manager(self, **options: Any) -> Any:
        """An `LLMProvider` over several servers: the one that was handed in, else the configured one.

        options: keys of `[providers.backend_manager]` (strategy, backends, ...) make a pool of the caller's own, the
        same for the same options. Raises NotConfiguredError when no backend is configured, TypeError, ValueError.
        """
        if self.backend_manager is not None:
            if options:
                raise TypeError(
                    f"the backend manager that was handed in takes no options, got {', '.join(sorted(options))}"
                )
            return self.backend_manager
        if options:
            key = ("backend_manager", msgspec.json.encode(options, order="deterministic"))
            return self.get_or_create(key, functools.partial(own_pool, self, options))
        from .router import get_llm_provider

        return get_llm_provider(NAME, deps=self)

    # -- answers -----------------------------------------------------------------------------------------------

    def answer(self, call: Call, instance: object | None = None) -> str:
        """The text, from the caches, the running node or this process."""
        loaded = self.loaded
        enabled = loaded.config.cache.enabled
        if call.use_cache is None:
            call = msgspec.structs.replace(call, use_cache=enabled)
        call = _with_defaults(call, loaded, {"router.model", "router.provider"} & loaded.origin.keys())
        node = self._node(call.request.provider) if instance is None else None
        if node is None and instance is None:
            call = _with_defaults(call, loaded, {"router.model", "router.provider"})
        key, ttl_s = None, loaded.config.cache.ttl_s or None
        if self.remote_cache is not None and call.use_cache and instance is None:
            key = _shared_key(call.request, loaded.config.cache.mode)
        if key is not None:
            found = self.get_cached_or_remote(key, ttl_s=ttl_s)
            if isinstance(found, str) and found.strip():
                return found
        said = self._ask(call, instance, node)
        if key is not None and said.storable:
            self.set_cached_and_remote(key, said.text, ttl_s=ttl_s)
        return said.text

    def check(self, name: str | None) -> object | None:
        """See `LocalRouter.check`; through the running node where calls go there."""
        node = self._node(name)
        if node is not None:
            try:
                self._loop.call(node_check, self._client(), node, name)
            except NodeGoneError:
                self._refuse_without_node()
            else:
                return None
        with self._router() as router:
            return self._loop.call(router.check, name)

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that count here."""
        return self._environ

    @property
    def loaded(self) -> Loaded:
        """The configuration, read once. Raises ConfigError."""
        with self._lock:
            if self._loaded is None:
                self._loaded = load_config(self._config, data_dir=self._data_dir, environ=self._environ)
            return self._loaded

    def _ask(self, call: Call, instance: object | None, node: RpcState | None) -> Said:
        if node is not None:
            deadline_s = self.loaded.config.router.deadline_s
            ask = functools.partial(node_answer, use_cache=call.use_cache is not False, deadline_s=deadline_s)
            try:
                return self._loop.call(ask, self._client(), node, call)
            except NodeGoneError:
                self._refuse_without_node()
        with self._router() as router:
            return self._loop.call(router.answer, call, instance)

    def _node(self, provider: str | None) -> RpcState | None:
        """The running node, unless this call is for this process: the node never sees what is registered here."""
        if self._use_daemon is False or (provider is not None and canonical(provider) in registered_names()):
            return None
        node = running_rpc(self.loaded.data_dir)
        if node is None:
            self._refuse_without_node()
        return node

    def _refuse_without_node(self) -> None:
        if self._use_daemon:
            raise GenerationError("no node runs here, and use_daemon says to ask one; start it with `shoal run`")

    # -- what lives in the loop --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _router(self) -> Iterator[LocalRouter]:
        """The router of this process, made now if need be; `clear` does not end it before the last user has left."""
        with self._lock:
            if self._local is None or self._local.held.over or not self._loop.alive:
                self._local = _Shared(self._loop.enter(local_router(self.loaded, self._environ)))
            shared = self._local
            shared.users += 1
        try:
            yield shared.held.value
        finally:
            with self._lock:
                shared.users -= 1
                shared.release_if_done()

    def _client(self) -> Client:
        with self._lock:
            if self._http is None or self._http.over or not self._loop.alive:
                # This machine, so no proxy of the environment.
                self._http = self._loop.enter(_running(Client(environ={})))
            return self._http.value

    def clear(self) -> None:
        """Forget every answer, provider and made object, and the configuration. Calls under way end as they began.

        What the remote cache and a running node keep is theirs, and stays.
        """
        with self._lock:
            shared, self._local = self._local, None
            if shared is not None:
                shared.retired = True
                shared.release_if_done()
            self._loaded = None
            self._cached.clear()
            made = [future for future in self._made.values() if future.done()]
            self._made = {key: future for key, future in self._made.items() if not future.done()}
        for future in made:
            _close(future.result())

    def close(self) -> None:
        """`clear`, and end the background loop with every call under way. What comes after that starts anew."""
        self.clear()
        self._loop.close()


class _Shared:
    """A router in the loop, and how many calls use it."""

    def __init__(self, held: Held[LocalRouter]) -> None:
        self.held, self.users, self.retired = held, 0, False

    def release_if_done(self) -> None:
        if self.retired and not self.users:
            self.held.release()


@contextlib.asynccontextmanager
async def _running(client: Client) -> AsyncGenerator[Client]:
    async with client.running():
        yield client


def _with_defaults(call: Call, loaded: Loaded, keys: Collection[str]) -> Call:
    """The call with the configured model and provider, where the caller named none."""
    request, router = call.request, loaded.config.router
    named: dict[str, str] = {}
    if request.model is None and router.model is not None and "router.model" in keys:
        named["model"] = router.model
    if request.provider is None and router.provider is not None and "router.provider" in keys:
        named["provider"] = router.provider
    if not named:
        return call
    request = msgspec.structs.replace(request, **named)
    body = {**call.body, **{name: value for name, value in named.items() if name not in call.body}}
    return msgspec.structs.replace(call, request=request, body=body)


def _shared_key(request: GenerateRequest, mode: str) -> str | None:
    """The request's key in a cache that others use, or None when it is not for one."""
    if why_not_cacheable(request) is not None:
        return None
    if request.provider is not None:
        name = canonical(request.provider)
        if name in registered_names():
            return None
        request = msgspec.structs.replace(request, provider=name)
    try:
        return request_key(request, mode).text
    except CanonicalError:
        return None


def _close(made: object) -> None:
    close = getattr(made, "close", None)
    if callable(close):
        try:
            close()
        except Exception as error:
            _log.warning("closing a %s failed with %s", type(made).__name__, type(error).__name__)


# -- the default -----------------------------------------------------------------------------------------------

_living: weakref.WeakSet[RouterDeps] = weakref.WeakSet()
_default: RouterDeps | None = None
_default_lock = threading.Lock()


def get_default_router_deps() -> RouterDeps:
    """The one that is used where none is given; made on first use."""
    global _default
    with _default_lock:
        if _default is None:
            _default = RouterDeps()
        return _default


def set_default_router_deps(deps: RouterDeps | None) -> None:
    """Use these where none are given; None makes new ones on next use. Those before are not closed: they are yours."""
    global _default
    if deps is not None and not isinstance(deps, RouterDeps):
        raise TypeError(f"the default must be a RouterDeps, not {type(deps).__name__}")
    with _default_lock:
        _default = deps


def living() -> list[RouterDeps]:
    """Every RouterDeps that somebody still holds."""
    return list(_living)


@atexit.register
def _close_all() -> None:
    for deps in living():
        deps.close()
