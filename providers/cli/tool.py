"""What the runner wants to know of a tool: how it is found, what it needs, how it is started, how it talks."""

from __future__ import annotations

import abc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..base import ProviderError
from ..credential import Credential
from .settings import CliSettings
from .talk import Asked, Talk


class Command(Struct, frozen=True, kw_only=True):
    """How one call is started. argv holds neither prompt nor key; environ is on top of what all tools get.

    files: name in the throw-away home -> text. links: name there -> a file of the owner's (a login), followed.
    Its `repr` shows no value of environ.
    """

    argv: tuple[str, ...]
    environ: dict[str, str]
    files: dict[str, str] = {}
    links: dict[str, Path] = {}

    def __repr__(self) -> str:
        return f"Command({self.argv!r}, environ of {', '.join(self.environ)}, files {', '.join(self.files)})"


class Place(Struct, frozen=True):
    """Where a call runs: its throw-away home, and a folder that all calls of a tool share."""

    home: Path
    cache: Path

    @property
    def work(self) -> Path:
        """The empty working directory."""
        return self.home / "work"


class Tool(abc.ABC):
    """One tool with its settings. Pure, but for looking for its program and its credential."""

    kind: str
    """The provider's type: `codex_cli`."""
    program: str
    """The usual name of its program."""
    install: str
    """What to type to get it."""
    honours: frozenset[str] = frozenset({"stop"})
    """The options of a request that reach the model; `stop` is done by the runner."""
    warms = False
    """Whether it gets ready before it reads the question, so that one can be started ahead."""

    def __init__(self, settings: CliSettings, environ: Mapping[str, str], credential: Credential) -> None:
        self.settings, self.environ, self.credential = settings, environ, credential

    # -- what it needs -----------------------------------------------------------------------------------------

    def found(self) -> Path | None:
        """The program, when it is there."""
        return find(self.settings.binary or self.program, self.environ)

    def not_found(self) -> str:
        """What to say when it is not."""
        if self.settings.binary:
            return f"there is no program {self.settings.binary}; correct binary in [providers.{self.kind}]"
        return f"{self.program} is not on PATH; {self.install}, or set binary in [providers.{self.kind}]"

    def key(self) -> str | None:
        """The credential for a call. Raises ProviderError(UNAVAILABLE) that says where to put one."""
        return self.credential.read()

    @property
    @abc.abstractmethod
    def key_hint(self) -> str:
        """Where its credential comes from."""

    def version_argv(self, program: Path) -> tuple[str, ...]:
        return (str(program), "--version")

    def missing(self) -> str | None:
        """Why no request can be made, with what to do; None when one can."""
        if self.found() is None:
            return self.not_found()
        try:
            self.key()
        except ProviderError as error:
            return error.message
        return None

    # -- how it runs -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def command(self, program: Path, asked: Asked, place: Place) -> Command: ...

    @abc.abstractmethod
    def talk(self, name: str, asked: Asked, place: Place) -> Talk[Any]: ...


def find(program: str, environ: Mapping[str, str]) -> Path | None:
    """The program by its path (`~` is understood) or by its name on PATH."""
    if "/" in program:
        path = Path(program).expanduser()
        return path.absolute() if shutil.which(path) else None
    found = shutil.which(program, path=environ.get("PATH", ""))
    return Path(found).absolute() if found else None


_PASSED_ON = frozenset(
    [
        "PATH",
        "LANG",
        "LANGUAGE",
        "TZ",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NODE_EXTRA_CA_CERTS",
    ]
)


def environ_of_call(environ: Mapping[str, str], place: Place, command: Command) -> dict[str, str]:
    """All that the tool gets to see: a few variables of the node, folders of its own, and what its file says."""
    kept = {name: value for name, value in environ.items() if name.upper() in _PASSED_ON or name.startswith("LC_")}
    own = {
        "HOME": str(place.home),
        "TMPDIR": str(place.home / "tmp"),
        "XDG_CONFIG_HOME": str(place.home / ".config"),
        "XDG_DATA_HOME": str(place.home / ".local/share"),
        "XDG_STATE_HOME": str(place.home / ".local/state"),
        "XDG_CACHE_HOME": str(place.home / ".cache"),
        "XDG_RUNTIME_DIR": str(place.home / "tmp"),
        "NO_COLOR": "1",
        "TERM": "dumb",
        "CI": "1",
    }
    return kept | own | command.environ
