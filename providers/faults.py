"""What can be wrong with the configuration of a provider, in words that say what to write instead."""

from __future__ import annotations


class SettingsError(ValueError):
    """Raised by a provider's `build`: this key of its table cannot be used. All three are parts of one sentence."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key} {problem}; {remedy}")
        self.key, self.problem, self.remedy = key, problem, remedy


class RegistryError(Exception):
    """The providers cannot be built as configured. One line: provider, key where one is at fault, what to do."""

    def __init__(self, provider: str, key: str | None, problem: str, remedy: str) -> None:
        where = f"providers.{provider}.{key}" if key else f"providers.{provider}"
        super().__init__(f"{where} {problem}; {remedy}")
        self.provider, self.key, self.problem, self.remedy = provider, key, problem, remedy


class UnknownProviderError(LookupError):
    """Nobody has heard of a provider of that name."""


class NotConfiguredError(LookupError):
    """The provider is known, but cannot be used here; the message says why and what to do."""
