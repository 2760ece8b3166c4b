"""The throw-away homes in which tools run: private folders that are gone when the call is, and when a node crashed.

    homes = Homes(data_dir / "cli")
    homes.open()                    # also removes what a node that was killed has left
    home = homes.make({".codex/config.toml": "..."})
    homes.remove(home)
    homes.close()

Every `Homes` holds a lock on a folder of its own, so that what nobody holds is known to be left over.
Functions that touch the disk; call them in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

_LOCK = "in-use"


class Homes:
    """The homes of one provider, below `base`. `cache` outlives calls: what a tool unpacks of itself goes there."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._own: Path | None = None
        self._lock = -1

    @property
    def cache(self) -> Path:
        return self._base / "cache"

    def open(self) -> None:
        """Raises OSError."""
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._base.chmod(0o700)
        name = secrets.token_hex(6)
        new = self._base / f"new-{name}"
        new.mkdir(mode=0o700)
        self._lock = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._own = new.rename(self._base / f"calls-{name}")  # only now may another node's sweep see it
        self._sweep()

    def close(self) -> None:
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            os.close(self._lock)
            self._own, self._lock = None, -1

    def make(self, files: Mapping[str, str]) -> Path:
        """A new home with these files in it (names relative to it), `work`, an empty folder, and `tmp`, another."""
        if self._own is None:
            raise RuntimeError("homes are made while they are open")
        home = self._own / secrets.token_hex(6)
        for folder in (home, home / "work", home / "tmp"):
            folder.mkdir(mode=0o700)
        self.fill(home, files)
        return home

    def fill(self, home: Path, files: Mapping[str, str], links: Mapping[str, Path] | None = None) -> None:
        """Writes these files (names relative to the home), readable by the owner alone, and links to the owner's.

        Removing the home leaves what a link leads to alone.
        """
        for name, target in (links or {}).items():
            (home / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (home / name).symlink_to(target)
        for name, text in files.items():
            path = home / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
                file.write(text)

    def remove(self, home: Path) -> bool:
        """True when nothing is left of it."""
        shutil.rmtree(home, ignore_errors=True)
        return not home.exists()

    def _sweep(self) -> None:
        for folder in self._base.glob("calls-*"):
            if folder == self._own:
                continue
            with contextlib.suppress(OSError):  # another node's sweep may be quicker
                lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)
