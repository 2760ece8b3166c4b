"""Environment variables: their prefixes and their booleans.

`SHOAL_NAME` wins over `IPFS_ACCELERATE_PY_NAME`, the spelling of the system that Shoal succeeds; a vendor's own name
(`OPENROUTER_API_KEY`) comes last. An empty variable counts as not set.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIXES = ("SHOAL_", "IPFS_ACCELERATE_PY_")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class VariableError(ValueError):
    """A variable whose value cannot be read; the message names the variable and what it may hold."""


def spellings(name: str, *, vendor: bool = False) -> tuple[str, ...]:
    """The variables that are read for `name`, the strongest first; `vendor` adds the name without a prefix."""
    return tuple(prefix + name for prefix in PREFIXES) + ((name,) if vendor else ())


def found(environ: Mapping[str, str], name: str, *, vendor: bool = False) -> tuple[str, str] | None:
    """(variable, value) of the strongest spelling that is set, without surrounding blanks."""
    for variable in spellings(name, vendor=vendor):
        if value := environ.get(variable, "").strip():
            return variable, value
    return None


def text(environ: Mapping[str, str], name: str, *, vendor: bool = False) -> str | None:
    """The value of the strongest spelling that is set."""
    pair = found(environ, name, vendor=vendor)
    return pair[1] if pair else None


def boolean(environ: Mapping[str, str], name: str) -> bool | None:
    """True, False, or None when it is not set. Raises VariableError for anything but the eight words."""
    pair = found(environ, name)
    if pair is None:
        return None
    variable, value = pair
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise VariableError(f"{variable} is neither true nor false; write 1/0, true/false, yes/no or on/off")


def choice(environ: Mapping[str, str], name: str, options: tuple[str, ...]) -> str | None:
    """One of `options`, or None when it is not set. Raises VariableError for any other value."""
    pair = found(environ, name)
    if pair is None:
        return None
    variable, value = pair
    if value.lower() in options:
        return value.lower()
    raise VariableError(f"{variable} is not one that this version knows; write {' or '.join(options)}")
