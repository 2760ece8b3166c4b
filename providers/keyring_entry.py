"""A key in the system's keyring (Secret Service, KWallet, macOS Keychain, Windows' vault), by the `keyring` package.

entry = KeyringEntry.parse("shoal/openrouter")     # keyring set shoal openrouter
entry.read()

A keyring answers over D-Bus and may ask a person to unlock it, so it is only ever asked in a thread of its own: from
the start on, and again in the background when the answer has grown old.
"""

from __future__ import annotations

import threading
import time

from .base import ErrorKind, ProviderError
from .faults import SettingsError

WAIT_S = 2.0
"""Seconds that the first reader waits for the keyring; it usually has answered long before."""
FRESH_S = 60.0
"""Seconds after which the keyring is asked anew, in the background."""
INSTALL = "run: pip install 'shoal[keyring]'"


class KeyringEntry:
    """service, user: what the entry is filed under, as in `keyring set SERVICE USER`."""

    def __init__(self, service: str, user: str) -> None:
        self.service, self.user = service, user
        self._lock = threading.Lock()
        self._known = threading.Event()
        self._asking = False
        self._asked_at = float("-inf")
        self._key: str | None = None
        self._fault = ""
        self._ask()

    @classmethod
    def parse(cls, text: str) -> KeyringEntry:
        """From "SERVICE/USER". Raises ValueError."""
        service, slash, user = text.rpartition("/")
        if not slash or not service.strip() or not user.strip():
            raise ValueError("is not SERVICE/NAME")
        return cls(service.strip(), user.strip())

    def __repr__(self) -> str:
        return f"KeyringEntry({self.service}/{self.user})"

    def read(self) -> str:
        """The key. Raises ProviderError(UNAVAILABLE) that says what to do."""
        if time.monotonic() - self._asked_at > FRESH_S:
            self._ask()
        if not self._known.wait(WAIT_S):
            self._refuse("has not answered yet; unlock it")
        if self._key is None:
            self._refuse(self._fault)
        return self._key or ""

    def _refuse(self, why: str) -> None:
        raise ProviderError(ErrorKind.UNAVAILABLE, f"the keyring {why}")

    def _ask(self) -> None:
        with self._lock:
            if self._asking:
                return
            self._asking, self._asked_at = True, time.monotonic()
        threading.Thread(target=self._look, name="keyring", daemon=True).start()

    def _look(self) -> None:
        key, fault = look_up(self.service, self.user)
        self._key, self._fault = key, fault
        self._known.set()
        with self._lock:
            self._asking = False


def entry_of(setting: str | None) -> KeyringEntry | None:
    """The entry that `api_key_keyring` names. Raises SettingsError."""
    if setting is None:
        return None
    try:
        return KeyringEntry.parse(setting)
    except ValueError as error:
        raise SettingsError("api_key_keyring", str(error), 'write api_key_keyring = "shoal/openrouter"') from None


def look_up(service: str, user: str) -> tuple[str | None, str]:
    """The key, or None and why there is none. May wait for a person."""
    try:
        import keyring
    except ImportError:
        return None, f"cannot be read, because its package is missing; {INSTALL}"
    try:
        key = keyring.get_password(service, user)
    except Exception as error:  # each platform's back end has errors of its own
        return None, f"cannot be read ({type(error).__name__}); unlock it, or put the key into a file"
    if not key:
        return None, f"has no key for {service}/{user}; run: shoal providers login {user}"
    return key, ""


def store(service: str, user: str, key: str) -> None:
    """Files a key. Raises ProviderError that says what to do."""
    try:
        import keyring
    except ImportError:
        raise ProviderError(
            ErrorKind.UNAVAILABLE, f"the keyring cannot be used, because its package is missing; {INSTALL}"
        ) from None
    try:
        keyring.set_password(service, user, key)
    except Exception as error:
        raise ProviderError(
            ErrorKind.UNAVAILABLE,
            f"the keyring takes no key ({type(error).__name__}); unlock it, or put the key into a file",
        ) from None
