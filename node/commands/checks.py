"""What `shoal doctor` looks at: each check says what it found, and what to do when that is not good."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from .. import addresses, lock, paths
from ..config import ConfigError
from ..config_file import Loaded, load_config
from .cli import trio_run
from .output import size

if TYPE_CHECKING:
    from ...providers.base import Status

LOW_DISK_BYTES = 1 << 30
LOW_FILES = 4096
LIBP2P = "0.8.1"
"""The version that protocols/p2p was measured against."""

State = Literal["ok", "note", "fault"]


class Finding(Struct, frozen=True):
    """state: "note" works with less than it could; "fault" does not work. remedy: what to do, "" when nothing."""

    name: str
    state: State
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Finding:
    return Finding(name, "ok", text)


def note(name: str, text: str, remedy: str = "") -> Finding:
    return Finding(name, "note", text, remedy)


def fault(name: str, text: str, remedy: str) -> Finding:
    return Finding(name, "fault", text, remedy)


def of_machine(config: Path | None, data_dir: Path | None) -> Iterator[Finding]:
    """What can be said without a running node."""
    from .gpu_check import gpu

    yield _python()
    yield _libp2p()
    yield _open_files()
    try:
        loaded = load_config(config, data_dir=data_dir)
    except ConfigError as error:
        yield fault("configuration", str(error), "mend the file; `shoal config check` checks it again")
        return
    source = str(loaded.source) if loaded.source else "no file; the defaults hold"
    yield ok("configuration", source)
    for warning in loaded.warnings:
        yield note("configuration", warning)
    yield from _data_dir(loaded.data_dir)
    yield _disk(loaded.data_dir)
    yield _rpc_port(loaded)
    yield from _swarm(loaded)
    if loaded.config.ipfs.kubo_api is not None:
        yield _kubo(loaded.config.ipfs.kubo_api)
    yield from _local_model(loaded)
    if (found := gpu()) is not None:
        yield found
    yield _machine(loaded.data_dir)
    yield from _engines(loaded, data_dir)


def _python() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return ok("Python", f"{found}, {sys.executable}")


def _libp2p() -> Finding:
    try:
        found = importlib.metadata.version("libp2p")
    except importlib.metadata.PackageNotFoundError:
        return fault("libp2p", "not installed", f"pip install libp2p=={LIBP2P}")
    if found != LIBP2P:
        return fault("libp2p", found, f"Shoal is made for {LIBP2P}: pip install libp2p=={LIBP2P}")
    return ok("libp2p", found)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LOW_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        remedy = f"`ulimit -n {LOW_FILES * 4}` before `shoal run` (up to {most}), or LimitNOFILE= in a service"
        return note("open files", f"at most {soft}, which bounds the connections", remedy)
    return ok("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def _data_dir(data: Path) -> Iterator[Finding]:
    if not data.exists():
        there = next(folder for folder in data.parents if folder.exists())
        if os.access(there, os.W_OK | os.X_OK):
            yield ok("data directory", f"{data} (made at the first start)")
        else:
            yield fault(
                "data directory", f"{data} cannot be made: {there} cannot be written", "choose another with --data-dir"
            )
        return
    try:
        mode = stat.S_IMODE(data.stat().st_mode)
    except OSError as error:
        yield fault("data directory", f"{data}: {paths.reason(error)}", "choose another with --data-dir")
        return
    if not os.access(data, os.W_OK | os.X_OK):
        yield fault("data directory", f"{data} cannot be written", f"chown it to {_user()}, or choose another")
    elif mode & 0o077:
        yield note("data directory", f"{data} is open to others ({mode:o})", f"chmod 700 {data}")
    else:
        yield ok("data directory", str(data))
    identity = paths.identity_file(data)
    if identity.exists() and stat.S_IMODE(identity.stat().st_mode) & 0o077:
        yield fault("identity", f"{identity} can be read by others", f"chmod 600 {identity}")


def _user() -> str:
    return os.environ.get("USER") or str(os.getuid())


def _disk(data: Path) -> Finding:
    there = next(folder for folder in (data, *data.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < LOW_DISK_BYTES:
        return note("disk", f"{size(free)} free", "make room, or set cache.disk_bytes lower")
    return ok("disk", f"{size(free)} free")


def _rpc_port(loaded: Loaded) -> Finding:
    text = loaded.config.rpc.listen
    host, port = addresses.parse_socket(text)
    if lock.holder(loaded.data_dir) is not None:
        return ok("RPC", "in use by the node that runs here")
    problem = _cannot_bind(host, port)
    if problem is not None:
        return fault("RPC", f"{text}: {problem}", "end that program, or `shoal run --rpc 127.0.0.1:0`")
    return ok("RPC", f"{text} is free")


def _swarm(loaded: Loaded) -> Iterator[Finding]:
    section = loaded.config.swarm
    running = lock.holder(loaded.data_dir) is not None
    for address in section.listen:
        parts = address.split("/")
        if running or len(parts) < 5 or parts[3] != "tcp":
            continue
        problem = _cannot_bind(parts[2], int(parts[4]))
        if problem is not None:
            yield fault("swarm port", f"{address}: {problem}", "choose another in swarm.listen")
    if running:
        return  # and says itself which swarm it is in
    if section.key is not None:
        yield ok("swarm", f"{section.name}, private")
    else:
        yield ok("swarm", section.name)


def _cannot_bind(host: str, port: int) -> str | None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        return paths.reason(error)
    return None


def _kubo(address: str) -> Finding:
    parts = address.split("/")
    try:
        with socket.create_connection((parts[2], int(parts[4])), timeout=2):
            return ok("Kubo", f"{address} answers")
    except (OSError, IndexError, ValueError):
        return note("Kubo", f"{address} does not answer", "start it (`ipfs daemon`), or unset ipfs.kubo_api")


def _local_model(loaded: Loaded) -> Iterator[Finding]:
    """What the provider itself would say, and whether there is memory for it."""
    from ...providers.local_hf import LocalHf
    from ...providers.weights import damaged
    from ..provider_tables import build_registry, models_store

    store = models_store(loaded.config.providers, os.environ)
    try:
        registry = build_registry(loaded, os.environ)
    except ConfigError as error:
        yield fault("providers", str(error), "mend the file; `shoal config check` checks it again")
        return
    provider = next((each for each in registry.providers.values() if isinstance(each, LocalHf)), None)
    if provider is None:
        yield ok("local model", "switched off in the configuration")
        return
    yield _of_provider(trio_run(provider.probe), store)
    for name, why in damaged(store).items():
        yield note("local model", f"{name}: {why}", f"`shoal models remove {name}`, or add it again")


def _of_provider(status: Status, store: Path) -> Finding:
    from ...providers import cgroups
    from ...providers.weights import installed

    if not status.ready:
        what, _, todo = status.reason.partition("; ")
        where = f" (in {store})" if "weights" in what else ""
        return note("local model", what + where, todo.removeprefix("run "))
    memory = {model.name: model.memory for model in installed(store)}.get(status.default_model or "", 0)
    free = cgroups.memory_available()
    if memory > free:
        text = f"{status.default_model} takes about {size(memory)} of memory, and {size(free)} are free"
        return note("local model", text, "close something, or choose a smaller model (`shoal models list`)")
    return ok("local model", ", ".join(model.name for model in status.models[:5]))


def _machine(data: Path) -> Finding:
    from ..machine import Machine
    from .figures import machine, when

    hardware = Machine(data, measure_after_s=0).hardware
    told = ", ".join([*machine(msgspec.to_builtins(hardware)), f"{size(hardware.memory_bytes)} of memory"])
    return ok("machine", f"{told}{', measured ' + when(hardware.measured_at) if hardware.measured_at else ''}")


def _engines(loaded: Loaded, data_dir: Path | None) -> Iterator[Finding]:
    """What else computes on this machine, and whether the node uses it."""
    from .found_engines import about, found_here, in_use, offer, timed

    found = found_here(loaded, data_dir)
    fresh = [engine for engine in found if not in_use(engine, loaded.config.providers)]
    for engine in found:
        if used := in_use(engine, loaded.config.providers):
            yield ok("engine", f"{about(engine)}, in use as {used}{timed(loaded, used)}")
        else:
            yield note("engine", f"found: {about(engine)}", f"add it: `{offer(engine, fresh)}`")


# -- the running node ------------------------------------------------------------------------------------------


def of_node(status: dict[str, Any], providers: list[dict[str, Any]], peers: list[dict[str, Any]]) -> Iterator[Finding]:
    """What the node that runs says of itself. Arguments: the answers of /shoal/v1/{status,providers,peers}."""
    from ..version import version

    if status.get("version") != version():
        yield note("node", f"runs {status.get('version')}, and this is {version()}", "stop it and `shoal run` again")
    else:
        yield ok("node", f"pid {status.get('pid')}, {status.get('rpc')}")
    ready = [row for row in providers if row.get("ready")]
    if ready:
        yield ok("providers", ", ".join(str(row["name"]) for row in ready))
    else:
        yield fault("providers", "none is ready", "`shoal providers` says what each needs")
    for row in providers:
        if not row.get("ready") and row.get("models"):
            yield note("providers", f"{row['name']}: {row.get('reason')}")
    yield from _peers(status.get("swarm") or {}, peers)
    failures = (status.get("requests") or {}).get("failures") or {}
    if failures:
        told = ", ".join(f"{name} {count}" for name, count in failures.items())
        yield note("failures", f"since the start: {told}", "`shoal top` shows the routes")


def _peers(swarm: dict[str, Any], peers: list[dict[str, Any]]) -> Iterator[Finding]:
    if not swarm.get("up"):
        yield note("swarm", "not up yet", "ask again in a moment")
        return
    yield ok("swarm", f"{swarm.get('name')}{', private' if swarm.get('private') else ''}")
    near = [peer for peer in peers if peer.get("connected")]
    local = all(addresses.is_local_multiaddr(address) for address in swarm.get("addresses") or ())
    if not peers:
        yield note("peers", "none", "`shoal status` shows the invite that another machine needs")
    elif not near:
        why = "; ".join(sorted({str(peer.get("problem")) for peer in peers if peer.get("problem")})[:2])
        remedy = "is the other node running, and its port open in its firewall?"
        yield fault("peers", f"{len(peers)} known, none connected{': ' + why if why else ''}", remedy)
    else:
        yield ok("peers", f"{len(near)} of {len(peers)} connected")
    beyond = any(not addresses.is_local_multiaddr(a) for peer in peers for a in peer.get("addresses") or ())
    if local and beyond:
        yield note("reach", "peers of other machines cannot connect here", 'swarm.listen = ["/ip4/0.0.0.0/tcp/4642"]')
    skew = [peer["told_at"] - time.time() for peer in near if isinstance(peer.get("told_at"), int | float)]
    if skew and min(skew) > 5:
        yield note("clock", f"peers' clocks are {min(skew):.0f} s ahead", "set this machine's clock (timedatectl)")
