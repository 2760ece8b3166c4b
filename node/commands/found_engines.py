"""Engines that run on this machine, for `shoal providers` and `shoal doctor`; `shoal providers add` takes one in.

Nothing here needs a running node. The configuration file is added to (node/config_edit.py), and otherwise left alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .cli import Command, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import print_json, print_text

if TYPE_CHECKING:
    from ...providers.engines import Found
    from ..config_file import Loaded

POOL = "backend_manager"
STRATEGY = "best_performance"
"""What a pool is made with that has no table yet: of several engines the one that was measured to be faster."""


def found_here(loaded: Loaded, data_dir: Path | None, *, address: str | None = None) -> list[Found]:
    """The engines that answer where the configuration says to look, or at one address. Never this node itself."""
    section = loaded.config.engines
    if not section.look and address is None:
        return []
    places = (address,) if address else section.addresses
    found: list[Found] = trio_run(_look, places, section.timeout_s, _own(loaded, data_dir))
    return found


async def _look(addresses: Sequence[str], timeout_s: float, own: Sequence[str]) -> list[Found]:
    from ...providers.engines import look

    return await look(addresses, timeout_s=timeout_s, without=own)


def _own(loaded: Loaded, data_dir: Path | None) -> list[str]:
    """Where this node's own endpoint is, as configured and as it runs."""
    from .. import addresses
    from ..state import running_rpc
    from .client import find_data_dir

    state = running_rpc(find_data_dir(data_dir))
    own = []
    for text in (loaded.config.rpc.listen, state.address if state is not None else None):
        host, port = addresses.parse_socket(text) if text else ("", 0)
        if port:
            own.append(addresses.join_socket(host if addresses.is_loopback(host) else "127.0.0.1", port))
    return own


def in_use(found: Found, tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of the provider table that has this engine's address already; empty when none has."""
    wanted = _place(found.base_url)
    for name, table in tables.items():
        if _place(table.get("base_url")) == wanted:
            return name
        backends = table.get("backends")
        for backend, keys in backends.items() if isinstance(backends, Mapping) else ():
            if isinstance(keys, Mapping) and _place(keys.get("base_url")) == wanted:
                return f"{name}.{backend}"
    return ""


def _place(url: Any) -> tuple[str, int | None] | None:
    try:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    return ("127.0.0.1" if host in ("localhost", "::1") else host, port) if host else None


def about(found: Found) -> str:
    """`Ollama 0.12.1 at 127.0.0.1:11434 with 3 models`."""
    if found.needs_key:
        return f"{found.title} at {found.address}, which wants a key"
    if found.kind == "llama_cpp_python":
        return f"{found.title} at {found.address}"
    count = len(found.models)
    return f"{found.title} at {found.address} with {count} model{'' if count == 1 else 's'}"


def offer(found: Found, others: Sequence[Found] = ()) -> str:
    """The command that takes it in; with its address where another of its kind comes first."""
    first = next((each for each in others if each.engine == found.engine), found)
    where = "" if first == found else f" --address {found.address}"
    return f"shoal providers add {found.engine}{where}"


def same_models(found: Found, store: Path) -> dict[str, str]:
    """Installed model -> what the engine calls it, for those that it has under another name."""
    from ...providers.engines import plain_name
    from ...providers.weights import CATALOGUE, installed

    theirs = {plain_name(name): name for name in reversed(found.models)}
    same = {}
    for model in installed(store):
        packaged = CATALOGUE.get(model.name)
        names = (model.name, *(packaged.aliases if packaged else ()), *([model.gguf.name] if model.gguf else ()))
        their = next((theirs[plain] for plain in map(plain_name, names) if plain in theirs), None)
        if their is not None and model.name not in found.models and not model.encoder:
            same[model.name] = their
    return same


def timed(loaded: Loaded, used: str) -> str:
    """What the node has measured of models that this engine and the local model both have; empty where nothing is."""
    from .. import paths
    from ..provider_tables import table_name
    from ..routing.rates import MAX_BYTES, Rates
    from .figures import speed, when

    rates = Rates()
    try:
        with paths.rates_file(loaded.data_dir).open("rb") as file:
            rates.load(file.read(MAX_BYTES))
    except (OSError, ValueError):
        return ""
    engine, local = used.partition(".")[0], table_name(loaded.config.providers, "local_hf")
    words = []
    for row in rates.view():
        ours = rates.known(local, row["model"])
        if row["provider"] == engine != local and ours is not None:
            both = f"{speed(row)} ({when(row['at'])}), and {local} {speed(msgspec.to_builtins(ours))} ({when(ours.at)})"
            words.append(f"; {row['model']}: {both}")
    return "".join(words[:3])


def as_json(found: Found, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For `--json`."""
    return {
        "engine": found.engine,
        "title": found.title,
        "address": found.address,
        "models": list(found.models),
        "needs_key": found.needs_key,
        "provider": in_use(found, tables) or None,
    }


@click.command(
    "add",
    cls=Command,
    examples="shoal providers add ollama\nshoal providers add llama_cpp --address 127.0.0.1:8081 --as second --yes",
)
@click.argument("engine")
@click.option("--address", metavar="HOST:PORT", help="Where it listens, when that is not among engines.addresses.")
@click.option("--as", "name", metavar="NAME", help="The backend's name; without it the engine's.")
@click.option("--api-key-env", metavar="VARIABLE", help="The environment variable that holds its key.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common
@click.pass_context
def add(
    ctx: click.Context,
    engine: str,
    address: str | None,
    name: str | None,
    api_key_env: str | None,
    yes: bool,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Take in an inference ENGINE that runs on this machine: ollama, llama_cpp, vllm, sglang or lm_studio.

    It becomes a backend of the provider backend_manager. The configuration file is added to and keeps what is in it.
    """
    from ...providers import engines
    from .. import addresses, lock
    from ..config_edit import lines_of, save, with_tables
    from ..config_file import load_config

    above = ctx.parent.params if ctx.parent is not None else {}
    data_dir, as_json = data_dir or above.get("data_dir"), as_json or bool(above.get("as_json"))
    wanted = engines.canonical(engine)
    if wanted is None:
        known = ", ".join(engines.ENGINES)
        raise CommandError(f"{engine} is no engine that Shoal knows; known: {known}", ExitCode.USAGE)
    if address is not None:
        try:
            addresses.check_loopback(address)
        except ValueError as error:
            raise CommandError(f"{error}; for other machines see docs/providers.md", ExitCode.USAGE) from None
    loaded = load_config(data_dir=data_dir)
    found = _chosen(wanted, found_here(loaded, data_dir, address=address), loaded, address)
    file = _file(loaded, data_dir)
    if used := in_use(found, loaded.config.providers):
        _tell(as_json, {"added": False, "provider": used, "file": str(file)}, f"it is in use already, as {used}\n")
        return
    tables = _tables(found, name or wanted, api_key_env, loaded, file)
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise CommandError(f"{about(found)}; --yes adds it to {file}", ExitCode.USAGE)
        print_text(f"found: {about(found)}\n\n{lines_of(tables)}\n")
        if not click.confirm(f"Add this to {file}?", err=True):
            raise CommandError("nothing was changed", ExitCode.NO_ANSWER)
    text = with_tables(file.read_bytes().decode() if file.exists() else "", tables, where=str(file))
    _check(text, file, data_dir)
    try:
        save(file, text)
    except OSError as error:
        raise CommandError(f"{file}: cannot be written: {error.strerror}", ExitCode.USAGE) from None
    pid = lock.holder(loaded.data_dir)
    then = f"the node that runs here (pid {pid}) uses it once it is started again" if pid else "`shoal run` uses it"
    added = {"added": True, "provider": f"{POOL}.{name or wanted}", "file": str(file), "restart": pid is not None}
    _tell(as_json, added, f"{about(found)} is added to {file}; {then}\n")


def _tell(as_json: bool, facts: dict[str, Any], text: str) -> None:
    if as_json:
        print_json(facts)
    else:
        print_text(text)


def _chosen(wanted: str, found: Sequence[Found], loaded: Loaded, address: str | None) -> Found:
    """The engine that was meant: of several the first one that is not in use."""
    from ...providers.engines import ENGINES

    matching = [each for each in found if each.engine == wanted]
    if not matching:
        engine = ENGINES[wanted]
        where = address or ", ".join(loaded.config.engines.addresses)
        others = "".join(f"; {about(each)} does: {offer(each)}" for each in found[:1])
        message = f"no {engine.title} answers at {where}: start it (`{engine.start}`), or say where with --address"
        raise CommandError(message + others, ExitCode.NO_ANSWER)
    fresh = [each for each in matching if not in_use(each, loaded.config.providers)]
    return (fresh or matching)[0]


def _file(loaded: Loaded, data_dir: Path | None) -> Path:
    """The file that `shoal run` would read, there or not."""
    from .. import paths

    if loaded.source is not None:
        return loaded.source
    return data_dir / "config.toml" if data_dir is not None else paths.default_config_file()


def _tables(
    found: Found, name: str, api_key_env: str | None, loaded: Loaded, file: Path
) -> dict[str, Mapping[str, Any]]:
    """What is added. CommandError where the name is taken, or a key is missing."""
    from ..provider_tables import models_store, table_name

    if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
        raise CommandError(f"{name!r} is no name for a backend; use letters, digits, - and _", ExitCode.USAGE)
    if found.needs_key and api_key_env is None:
        message = f"{about(found)}: put it into an environment variable and name that with --api-key-env"
        raise CommandError(message, ExitCode.USAGE)
    providers = loaded.config.providers
    pool = table_name(providers, POOL)
    there = providers.get(pool)
    if there is not None and name in (there.get("backends") or {}):
        message = f"[providers.{pool}.backends.{name}] is in {file} already; mend it there, or add this one --as NAME"
        raise CommandError(message, ExitCode.REFUSED)
    keys = found.keys | ({"api_key_env": api_key_env} if api_key_env else {})
    table = f"providers.{pool}.backends.{name}"
    backend: dict[str, Mapping[str, Any]] = {table: keys}
    if same := same_models(found, models_store(providers, os.environ)):
        backend[f"{table}.aliases"] = same
    return backend if there is not None else {f"providers.{pool}": {"strategy": STRATEGY}, **backend}


def _check(text: str, file: Path, data_dir: Path | None) -> None:
    """Refuse what a node could not start with, before anything is written. Raises ConfigError."""
    from ..config import ConfigError
    from ..config_file import load_config
    from ..provider_tables import build_registry

    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.toml"
        trial.write_text(text, encoding="utf-8")
        try:
            build_registry(load_config(trial, data_dir=data_dir), os.environ)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(trial), str(file))) from None
