"""`shoal models`: the weights that are installed here, and how more get here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from .cli import Group, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import console, print_json, print_json_line, print_table, print_text, size

EXAMPLES = """\
shoal models add smollm2             a small model, no account needed (93 MB)
shoal models add ./my-model.gguf     or a folder, or OWNER/NAME of the hub
shoal models use my-model            what requests get that name no model
shoal models list"""

Progress = Callable[[str, int, int], None]

WORDS = {
    "waiting": "waiting for another installation",
    "download": "downloading",
    "unpack": "unpacking",
    "convert": "converting",
}


@click.group(cls=Group, examples=EXAMPLES, alone="list")
def command() -> None:
    """List, install, choose and remove models."""


def store_of(data_dir: Path | None) -> Path:
    """Where the models lie, by configuration and environment."""
    from ..config_file import load_config
    from ..provider_tables import models_store

    return models_store(load_config(data_dir=data_dir).config.providers, os.environ)


@command.command("list", examples="shoal models list --json")
@common
def list_(as_json: bool, data_dir: Path | None) -> None:
    """List the installed models, and those that can be added by name."""
    from ...providers.weights import CATALOGUE, canonical, chosen, damaged, installed

    store = store_of(data_dir)
    there = installed(store)
    default = canonical(chosen(store))
    models = [
        {
            "name": m.name,
            "installed": True,
            "chosen": m.name == default,
            "embeds": m.encoder,
            "context_length": m.context_length,
            "bytes": m.size,
            "memory_bytes": m.memory,
            "path": str(m.path),
            "note": m.note,
        }
        for m in there
    ]
    broken = damaged(store)
    models += [{"name": name, "installed": False, "damaged": why} for name, why in broken.items()]
    known = {model.name for model in there} | broken.keys()
    models += [
        {"name": name, "installed": False, "title": packaged.title, "download_bytes": packaged.download_bytes}
        for name, packaged in CATALOGUE.items()
        if name not in known
    ]
    if as_json:
        print_json({"models_dir": str(store), "models": models})
        return
    rows = []
    for model in models:
        if model["installed"]:
            state = "chosen" if model["chosen"] else "embeddings" if model["embeds"] else "installed"
            rows.append((model["name"], state, size(int(str(model["bytes"]))), model["path"]))
        elif "damaged" in model:
            rows.append((model["name"], "damaged", "", str(model["damaged"])))
        else:
            what = f"run `shoal models add {model['name']}`"
            rows.append((model["name"], "not installed", size(int(str(model["download_bytes"]))), what))
    print_table(("model", "state", "size", "where"), rows, empty="no models")


@command.command("add", examples="shoal models add smollm2\nshoal models add ./my-model.gguf")
@click.argument("model")
@common
def add(model: str, as_json: bool, data_dir: Path | None) -> None:
    """Install MODEL: a known name, a GGUF file, a folder of safetensors, or a hub id (owner/name).

    What is there already stays. A folder's files are linked, so that they take no more room.
    """
    from ...providers.weights import WeightsError, canonical, install, resolve

    store = store_of(data_dir)
    try:
        with shown_progress(as_json) as progress:
            path = install(model, store, progress)
        found = resolve(model, store)
    except WeightsError as error:
        raise CommandError(str(error), ExitCode.NO_ANSWER) from None
    if as_json:
        told = {"name": canonical(model), "path": str(path), "bytes": found.size, "note": found.note}
        print_json_line({"event": "installed", **told})
    else:
        print_text(f"{canonical(model)} is installed ({size(found.size)}); `shoal run` offers it\n")
        if found.note:
            print_text(f"{found.note}\n")


@command.command("use", examples="shoal models use smollm2\nshoal models use ./my-model-folder")
@click.argument("model")
@common
def use(model: str, as_json: bool, data_dir: Path | None) -> None:
    """Make MODEL the one that requests get which name none: an installed one, or a folder of safetensors."""
    from ...providers.weights import WeightsError, choose

    try:
        found = choose(model, store_of(data_dir))
    except WeightsError as error:
        raise CommandError(str(error), ExitCode.NO_ANSWER) from None
    if as_json:
        print_json({"name": found.name, "path": str(found.path), "memory_bytes": found.memory})
    else:
        print_text(f"{found.name} is chosen; it takes about {size(found.memory)} of memory when it is loaded\n")
        print_text("a node that runs gives it to requests that name none, within seconds, unless its table names one\n")


@command.command("calibrate", examples="shoal models calibrate\nshoal models calibrate my-model --json")
@click.argument("model", default="")
@click.option("--anyway", is_flag=True, help="Also while other programs use this machine.")
@common
def calibrate(model: str, anyway: bool, as_json: bool, data_dir: Path | None) -> None:
    """Time the engines that can compute MODEL on this machine, and use the fastest from the next start on.

    Each is given 1, 4 and 16 streams to decode; it takes a minute or two on a processor. Without MODEL: the chosen one.
    """
    from ...providers.base import ProviderError
    from ...providers.hf_worker.cores import usable_cores
    from ...providers.hf_worker.engine_choice import STREAMS
    from ...providers.local_hf import LocalHf
    from ..config_file import load_config
    from ..provider_tables import build_registry

    cores, load = usable_cores(), os.getloadavg()[0]
    if load > cores and not anyway:
        raise CommandError(
            f"this machine is busy (load {load:.1f} on {cores} cores), and what is timed now would not hold;"
            " try again when it is quiet, or add --anyway",
            ExitCode.NO_ANSWER,
        )
    registry = build_registry(load_config(data_dir=data_dir), os.environ)
    provider = next((each for each in registry.providers.values() if isinstance(each, LocalHf)), None)
    if provider is None:
        raise CommandError("the local model is off; set enabled = true in [providers.local_hf]", ExitCode.NO_ANSWER)
    try:
        rates, fastest = trio_run(provider.time_engines, model)
    except ProviderError as error:
        raise CommandError(error.message, ExitCode.NO_ANSWER) from None
    if as_json:
        print_json({"chosen": fastest, "tokens_per_second": rates})
        return
    head = ("engine", *(f"{streams} stream{'s' if streams > 1 else ''}" for streams in STREAMS), "")
    rows = [
        (name, *(f"{each[streams]:.1f}" for streams in STREAMS), "chosen" if name == fastest else "")
        for name, each in rates.items()
    ]
    print_table(head, rows, empty="no engine takes it")
    print_text("tokens per second of all streams together\n")


@command.command("remove", examples="shoal models remove minilm")
@click.argument("model")
@common
def remove_(model: str, as_json: bool, data_dir: Path | None) -> None:
    """Delete an installed MODEL. A folder that lies elsewhere is never touched."""
    from ...providers.weights import WeightsError, canonical, remove

    name = canonical(model)
    try:
        gone = remove(name, store_of(data_dir))
    except WeightsError as error:
        raise CommandError(str(error), ExitCode.NO_ANSWER) from None
    if not gone:
        raise CommandError(f"{name} is not installed; see `shoal models list`", ExitCode.NO_ANSWER)
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        print_text(f"{name} is removed\n")


@contextmanager
def shown_progress(as_json: bool) -> Iterator[Progress]:
    """Progress as JSON lines, as a bar on a terminal, or as a line for each stage where there is none."""
    if as_json:
        yield _throttled(lambda stage, done, total: print_json_line({"event": stage, "done": done, "total": total}))
        return
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                seen.add(stage)
                print(WORDS.get(stage, stage), file=sys.stderr, flush=True)

        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<33}"), BarColumn(), TextColumn("{task.fields[amount]:>21}"))
    with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True), transient=True) as bar:
        tasks: dict[str, object] = {}

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(WORDS.get(stage, stage), total=total or None, amount="")
            in_bytes = stage in ("download", "unpack")
            amount = f"{size(done)} / {size(total)}" if in_bytes and total else f"{done}/{total}" if total else ""
            bar.update(tasks[stage], completed=done, total=total or None, amount=amount)  # type: ignore[arg-type]

        yield draw


def _throttled(tell: Progress) -> Progress:
    """At most one line a percent."""
    last: dict[str, int] = {}

    def told(stage: str, done: int, total: int) -> None:
        percent = 100 * done // total if total else 0
        if last.get(stage) != percent:
            last[stage] = percent
            tell(stage, done, total)

    return told
