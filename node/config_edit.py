"""Adding tables to a configuration file: what the owner wrote stays as it is, byte for byte, comments and all.

    edited = with_tables(text, {"providers.backend_manager.backends.ollama": {"base_url": "http://127.0.0.1:11434/v1"}})
    save(file, edited)

TOML lets a table be defined anywhere, so a new one goes to the end of the file. Whether the result means exactly the
old file and the new tables is checked by reading it again; where it does not (the owner wrote an inline table, say),
nothing is written and the lines to add by hand are in the error.
"""

from __future__ import annotations

import copy
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import paths
from .config import ConfigError
from .config_file import toml_key, toml_value

Tables = Mapping[str, Mapping[str, Any]]
"""Dotted name of a table -> its keys."""


def lines_of(tables: Tables) -> str:
    """The tables as TOML."""
    written = []
    for name, keys in tables.items():
        header = ".".join(toml_key(part) for part in name.split("."))
        written.append("\n".join([f"[{header}]", *(f"{toml_key(k)} = {toml_value(v)}" for k, v in keys.items())]))
    return "\n\n".join(written) + "\n"


def with_tables(text: str, tables: Tables, *, where: str = "the file") -> str:
    """The text with the tables behind it. Raises ConfigError when TOML would not read it as that."""
    added = lines_of(tables)
    by_hand = "add this to it yourself:\n\n" + added
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: this is not TOML: {error}; `shoal config check` shows where") from None
    wanted = copy.deepcopy(before)
    for name, keys in tables.items():
        table = wanted
        for part in name.split("."):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{where}: {part} is no table, so nothing was written; {by_hand}")
        table.update(copy.deepcopy(dict(keys)))
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    edited = text + gap + added
    try:
        after = tomllib.loads(edited)
    except tomllib.TOMLDecodeError:
        after = None
    if after != wanted:
        raise ConfigError(f"{where}: its tables are written in a way that nothing can be put behind; {by_hand}")
    return edited


def save(file: Path, text: str) -> None:
    """Replace the file in one step, with the rights that it had; a new one is for its owner alone. Raises OSError.

    A link stays one: what it points to is replaced.
    """
    target = file.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
    paths.write_private(target, text.encode(), replace=True)
    if mode != 0o600:
        os.chmod(target, mode)
