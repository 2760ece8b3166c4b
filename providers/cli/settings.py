"""The settings that all command-line providers have. Each tool's file adds its own."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from ..credential import Credential
from ..faults import SettingsError
from ..keyring_entry import entry_of
from ..settings import ProviderSettings


class CliSettings(ProviderSettings, kw_only=True, forbid_unknown_fields=True):
    """`share` is False here for a reason: a subscription's terms are about its owner, and a tool that answers for a
    whole swarm spends its owner's money or quota. Set it to true only where the account allows it.
    """

    binary: str | None = None
    """The tool's program: a path, or a name that is looked up on PATH. Unset: the tool's usual name."""
    model: str | None = None
    """The model for a request that names none. Unset: the tool's own default."""
    models: tuple[str, ...] = ()
    """More models that requests may name."""
    any_model: bool = False
    """Take model names that are not listed, too; the vendor refuses those that it does not have."""
    api_key_env: str | None = None
    """The environment variable that holds the key. Unset: the vendor's own names."""
    api_key_file: str | None = None
    """A file that holds the key; it may change while the node runs."""
    api_key_keyring: str | None = None
    """The key's place in the system's keyring, SERVICE/NAME (`shoal providers login NAME` writes it to shoal/NAME)."""
    max_concurrent: int = 2
    """Each running tool takes 160 to 400 MB of memory."""
    warm_s: Annotated[float, Meta(ge=0)] = 120.0
    """Seconds after a call for which one more is kept started, where that makes the next one faster; 0 keeps none."""
    exit_s: Annotated[float, Meta(gt=0)] = 5.0
    """Seconds that a tool may take to end after it has said that the answer is whole."""


def credential_of(
    settings: CliSettings, environ: Mapping[str, str], names: tuple[str, ...], *, required: bool = True
) -> Credential:
    """The key that the settings name, else the vendor's own variables (the first that is set; the last is advised)."""
    file = Path(settings.api_key_file).expanduser() if settings.api_key_file else None
    if settings.api_key_env:
        names = (settings.api_key_env,)
    elif file is not None or settings.api_key_keyring:
        names = ()
    return Credential(
        environ=environ,
        variables=names,
        file=file,
        keyring=entry_of(settings.api_key_keyring),
        required=required or bool(settings.api_key_env),
    )


def hint_of(settings: CliSettings, names: tuple[str, ...]) -> str:
    """Where that key comes from, for a sentence."""
    keyring = f"the keyring's {settings.api_key_keyring}" if settings.api_key_keyring else ""
    return settings.api_key_env or settings.api_key_file or keyring or " or ".join(names)


def checked_url(key: str, url: str | None, example: str) -> None:
    """Raises SettingsError for what is no plain http or https address."""
    if url is None:
        return
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(key, "is not an http or https address", f'write {key} = "{example}"')
    if parts.username is not None or parts.password is not None:
        raise SettingsError(key, "holds a user or a password", "put the key into a file and name it in api_key_file")
