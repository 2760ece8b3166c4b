"""Keys in the system's keyring: found without holding anybody up, and never shown."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shoal.providers import keyring_entry, openai_compat
from shoal.providers.base import ErrorKind, ProviderError
from shoal.providers.credential import Credential
from shoal.providers.faults import SettingsError
from shoal.providers.keyring_entry import KeyringEntry
from shoal.providers.settings import BuildContext

from tests.providers.fake_upstream import FakeUpstream

keyring = pytest.importorskip("keyring")
KEY = "sk-planted-in-the-keyring"


class Drawer(keyring.backend.KeyringBackend):  # type: ignore[misc]
    """A keyring in memory. opened: what a locked one waits for."""

    priority = 9  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[tuple[str, str], str] = {}
        self.opened = threading.Event()
        self.opened.set()
        self.fault: Exception | None = None
        self.asked = 0

    def get_password(self, service: str, username: str) -> str | None:
        self.asked += 1
        self.opened.wait(10)
        if self.fault is not None:
            raise self.fault
        return self.keys.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.keys[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.keys[service, username]


@pytest.fixture
def drawer() -> Iterator[Drawer]:
    before, made = keyring.get_keyring(), Drawer()
    keyring.set_keyring(made)
    yield made
    made.opened.set()
    keyring.set_keyring(before)


def test_a_key_that_was_filed_is_read(drawer: Drawer) -> None:
    keyring_entry.store("shoal", "desk", KEY)
    entry = KeyringEntry.parse("shoal/desk")
    assert entry.read() == KEY
    assert KEY not in repr(Credential(environ={}, keyring=entry))


def test_a_key_that_is_not_there_says_what_to_type(drawer: Drawer) -> None:
    with pytest.raises(ProviderError, match="run: shoal providers login desk") as caught:
        KeyringEntry("shoal", "desk").read()
    assert caught.value.kind is ErrorKind.UNAVAILABLE


def test_a_locked_keyring_holds_a_reader_up_for_a_moment_only(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_entry, "WAIT_S", 0.05)
    drawer.keys["shoal", "desk"] = KEY
    drawer.opened.clear()
    entry = KeyringEntry("shoal", "desk")
    with pytest.raises(ProviderError, match="unlock it"):
        entry.read()
    drawer.opened.set()
    assert entry._known.wait(5)
    assert (entry.read(), drawer.asked) == (KEY, 1)


def test_a_keyring_that_fails_is_a_reason_without_what_it_said(drawer: Drawer) -> None:
    drawer.fault = RuntimeError(f"dbus said {KEY}")
    with pytest.raises(ProviderError, match="RuntimeError") as caught:
        KeyringEntry("shoal", "desk").read()
    assert KEY not in str(caught.value)
    with pytest.raises(ProviderError, match="takes no key"):
        keyring_entry.store("shoal", "desk", KEY)


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ProviderError, match=r"pip install 'shoal\[keyring\]'"):
        KeyringEntry("shoal", "desk").read()


def test_an_old_answer_is_renewed_in_the_background(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer.keys["shoal", "desk"] = KEY
    entry = KeyringEntry("shoal", "desk")
    assert entry.read() == KEY
    drawer.keys["shoal", "desk"] = "sk-new"
    assert entry.read() == KEY
    monkeypatch.setattr(keyring_entry, "FRESH_S", 0.0)
    for _ in range(500):
        if entry.read() == "sk-new":
            return
        threading.Event().wait(0.01)
    pytest.fail("the new key was never seen")


def build(**keys: Any) -> openai_compat.OpenAiCompat:
    settings = msgspec.convert({"models": ["stub"], **keys}, openai_compat.Settings)
    return openai_compat.build("desk", settings, BuildContext(Path("unused"), {}))


async def test_the_key_is_sent_and_a_refusal_names_its_place_only(drawer: Drawer) -> None:
    drawer.keys["shoal", "desk"] = KEY
    async with FakeUpstream() as upstream:
        provider = build(base_url=upstream.url("s401+sayskey"), api_key_keyring="shoal/desk")
        async with provider.running():
            status = await provider.probe()
        assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "the keyring's shoal/desk" in status.reason
    assert KEY not in status.reason


@pytest.mark.parametrize("place", ["", "desk", "/desk", "shoal/"])
def test_a_place_that_is_none_is_refused_with_an_example(place: str) -> None:
    with pytest.raises(SettingsError, match="api_key_keyring is not SERVICE/NAME; write api_key_keyring"):
        build(base_url="http://127.0.0.1:1/v1", api_key_keyring=place)
