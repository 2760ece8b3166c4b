"""Where a provider's key comes from. The key itself is read when it is sent, and never printed.

key = Credential(variables=("OPENROUTER_API_KEY",), environ=os.environ)
headers = [("authorization", f"Bearer {key.read()}")]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .base import ErrorKind, ProviderError
from .keyring_entry import KeyringEntry


class Credential:
    """A key in the first environment variable that is set, else in a file (which may change while the node runs), else
    in the system's keyring.

    None of them named: no key is sent. `required` makes a missing key a reason not to start.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        variables: tuple[str, ...] = (),
        file: Path | None = None,
        keyring: KeyringEntry | None = None,
        required: bool = True,
    ) -> None:
        self._environ = environ
        self._variables = variables
        self._file, self._keyring = file, keyring
        self._required = required
        self._seen: tuple[int, int, str] | None = None

    def __repr__(self) -> str:
        return f"Credential({', '.join(self._variables)}{self._file or ''}{self._keyring or ''})"

    def read(self) -> str | None:
        """The key, or None where none is asked for. Raises ProviderError(UNAVAILABLE) that says where to put one."""
        for variable in self._variables:
            if value := self._environ.get(variable, "").strip():
                return _checked(value, variable)
        if self._file is not None:
            return self._read_file(self._file)
        if self._keyring is not None:
            return _checked(self._keyring.read(), "the keyring")
        if self._variables and self._required:
            raise ProviderError(ErrorKind.UNAVAILABLE, f"no key; set {self._variables[-1]}")
        return None

    def _read_file(self, path: Path) -> str:
        try:
            facts = path.stat()
            if self._seen is not None and self._seen[:2] == (facts.st_mtime_ns, facts.st_size):
                return self._seen[2]
            value = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise ProviderError(
                ErrorKind.UNAVAILABLE,
                f"the key file {path} cannot be read ({why}); write the key there or correct api_key_file",
            ) from None
        except UnicodeDecodeError:
            raise ProviderError(
                ErrorKind.UNAVAILABLE, f"the key file {path} holds no text; write the key there"
            ) from None
        if not value:
            raise ProviderError(ErrorKind.UNAVAILABLE, f"the key file {path} is empty; write the key there")
        _checked(value, str(path))
        self._seen = (facts.st_mtime_ns, facts.st_size, value)
        return value


def _checked(value: str, where: str) -> str:
    # A key goes into a header: a blank or a line break in it would be another header, or a pasted accident.
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ProviderError(
            ErrorKind.UNAVAILABLE,
            f"the key in {where} has blanks or odd characters in it; it must be one word of ASCII",
        )
    return value
