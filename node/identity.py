"""The node's identity on disk: one Ed25519 seed, made on the first start, readable by its owner alone.

The file is JSON, 0600 from its first byte, and appears whole or not at all. The peer id beside the seed is there so
that a damaged seed is noticed rather than taken for another node's identity.

    {"v":1,"type":"ed25519","seed":"<64 hex digits>","peer":"12D3KooW..."}
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from ..protocols.peer_id import Identity
from . import paths

MAX_FILE_BYTES = 4096


class IdentityError(Exception):
    """The identity cannot be used. One line, with the remedy and without the seed."""


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: Literal[1]
    type: Literal["ed25519"]
    seed: str
    peer: str

    def __repr__(self) -> str:
        return f"_File({self.peer})"


def load_or_make(path: Path) -> tuple[Identity, bool]:
    """The identity in `path`, and whether it was made just now. Raises IdentityError."""
    try:
        return load(path), False
    except FileNotFoundError:
        pass
    identity = Identity.generate()
    file = _File(v=1, type="ed25519", seed=identity.seed.hex(), peer=identity.peer_id)
    try:
        paths.write_private(path, msgspec.json.encode(file) + b"\n", replace=False)
    except FileExistsError:  # another process was first
        return load(path), False
    except OSError as error:
        raise IdentityError(f"{path}: the identity cannot be written: {paths.reason(error)}") from None
    return identity, True


def load(path: Path) -> Identity:
    """The identity in `path`. Raises FileNotFoundError, or IdentityError for a file that cannot be trusted or read."""
    remedy = "restore it from a backup, or move it away: the next start makes a new identity (a new peer id)"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IdentityError(
            f"{path}: the identity cannot be read: {paths.reason(error)}; it must be a plain file that this user owns"
        ) from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"{path}: is not a plain file; {remedy}")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise IdentityError(f"{path}: others may use this secret file (mode {mode:04o}); run: chmod 600 '{path}'")
        data = os.read(handle, MAX_FILE_BYTES)
    finally:
        os.close(handle)
    try:
        file = msgspec.json.decode(data, type=_File)
        identity = Identity.from_seed(bytes.fromhex(file.seed))
    except (msgspec.MsgspecError, ValueError):
        raise IdentityError(f"{path}: the identity is damaged; {remedy}") from None
    if identity.peer_id != file.peer:
        raise IdentityError(f"{path}: the identity is damaged: seed and peer id do not belong together; {remedy}")
    return identity
