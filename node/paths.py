"""Where things stand on disk: the data directory and the files in it.

The data directory is, in this order: --data-dir, SHOAL_DATA_DIR, `node.data_dir` of the configuration, the platform's
place for a user's data. It belongs to its owner alone (0700).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import platformdirs


class DataDirError(Exception):
    """The data directory cannot be used; the message is one line with the remedy."""


def data_dir(option: Path | None, environ: Mapping[str, str], configured: str = "") -> Path:
    """The data directory's absolute path; it need not exist yet."""
    chosen = option or environ.get("SHOAL_DATA_DIR") or configured
    if not chosen:
        chosen = platformdirs.user_data_dir("shoal", appauthor=False)
    return Path(chosen).expanduser().absolute()


def default_config_file() -> Path:
    """The platform's place for the configuration, whether or not the file exists."""
    return Path(platformdirs.user_config_dir("shoal", appauthor=False)) / "config.toml"


def make_data_dir(path: Path) -> None:
    """Make the directory (0700) unless it exists; refuse one that others may write to. Raises DataDirError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
    except (FileExistsError, NotADirectoryError):
        raise DataDirError(f"{path}: this is not a directory; give another --data-dir") from None
    except OSError as error:
        message = f"{path}: the data directory cannot be made: {reason(error)}; give another --data-dir"
        raise DataDirError(message) from None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataDirError(f"{path}: others may write to the data directory; run: chmod go-w '{path}'")
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataDirError(f"{path}: this user may not write to the data directory; give another --data-dir")


def reason(error: OSError) -> str:
    """What the operating system says, for use inside a sentence."""
    return (error.strerror or str(error)).lower()


def identity_file(data: Path) -> Path:
    return data / "identity.json"


def lock_file(data: Path) -> Path:
    return data / "lock"


def rpc_file(data: Path) -> Path:
    return data / "rpc.json"


def swarm_file(data: Path) -> Path:
    return data / "swarm.json"


def p2p_file(data: Path) -> Path:
    return data / "p2p.json"


def peers_file(data: Path) -> Path:
    return data / "peers.sqlite"


def health_file(data: Path) -> Path:
    return data / "health.json"


def hardware_file(data: Path) -> Path:
    return data / "hardware.json"


def rates_file(data: Path) -> Path:
    return data / "rates.json"


def owner_file(data: Path) -> Path:
    """The key of the swarms that were created here."""
    return data / "owner.json"


def roster_file(data: Path, owner: str) -> Path:
    """Who belongs to a swarm with an owner, as that owner has signed it."""
    return data / f"roster-{owner[-12:]}.bin"


def sharing_file(data: Path) -> Path:
    """What peers have had here, and whether sharing is paused."""
    return data / "sharing.json"


def answers_file(data: Path) -> Path:
    return data / "answers.sqlite"


def write_private(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a file that is 0600 from its first byte and whole or not there at all.

    replace=False keeps what exists: FileExistsError. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
