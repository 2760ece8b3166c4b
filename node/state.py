"""What the daemon leaves on disk for others to find: where its RPC is, and which swarm it has joined.

rpc.json tells commands and the API of the same machine where to ask; it is removed at exit and worth nothing once the
lock beside it is free. swarm.json is the invite that the next start joins again; an invite may hold a private swarm's
key, so all files here are 0600. p2p.json holds the ports of the last start, so that old invites stay good.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from . import addresses, lock, paths


class RpcState(Struct, frozen=True, kw_only=True):
    """A running daemon. address: host:port of its RPC; started: Unix time in seconds.

    invite: what `shoal status` shows; here and not in the RPC's answer, since it may hold a private swarm's key.
    """

    address: str
    pid: int
    peer: str
    version: str
    started: float
    invite: str = ""


class SwarmState(Struct, frozen=True, kw_only=True):
    """The swarm that was joined. invite: as given to `shoal join`; joined: Unix time in seconds."""

    invite: str
    joined: float


class P2pState(Struct, frozen=True, kw_only=True):
    """The ports that peers were served on, on loopback and on every interface; 0: none yet."""

    loopback: int = 0
    everywhere: int = 0


class StateError(Exception):
    """A state file cannot be read or written. One line with the remedy."""


State = TypeVar("State", RpcState, SwarmState, P2pState)


def _read(path: Path, kind: type[State]) -> State | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {paths.reason(error)}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StateError(f"{path}: is damaged; remove it") from None


def _write(path: Path, state: Struct) -> None:
    try:
        paths.write_private(path, msgspec.json.encode(state) + b"\n", replace=True)
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {paths.reason(error)}") from None


@contextlib.contextmanager
def rpc_announced(data: Path, address: str, peer: str, version: str) -> Iterator[Callable[[str], None]]:
    """While inside, rpc.json says where this process's RPC is. Needs the lock. Gives what tells the invite."""
    path = paths.rpc_file(data)
    state = RpcState(address=address, pid=os.getpid(), peer=peer, version=version, started=time.time())

    def tell_invite(invite: str) -> None:
        _write(path, msgspec.structs.replace(state, invite=invite))

    _write(path, state)
    try:
        yield tell_invite
    finally:
        path.unlink(missing_ok=True)


def withdraw_rpc(data: Path) -> None:
    """Remove what a daemon that crashed left behind. Needs the lock."""
    paths.rpc_file(data).unlink(missing_ok=True)


def last_ports(data: Path) -> P2pState:
    """The ports of the last start; none where that is not known or cannot be read."""
    with contextlib.suppress(StateError):
        return _read(paths.p2p_file(data), P2pState) or P2pState()
    return P2pState()


def remember_ports(data: Path, ports: P2pState) -> None:
    if ports != last_ports(data):
        _write(paths.p2p_file(data), ports)


def running_rpc(data: Path) -> RpcState | None:
    """The daemon that runs on this data directory now; None when none does, whatever a crashed one left behind."""
    if lock.holder(data) is None:
        return None
    state = _read(paths.rpc_file(data), RpcState)
    if state is not None:
        try:
            addresses.parse_socket(state.address)
        except ValueError:
            raise StateError(f"{paths.rpc_file(data)}: is damaged; restart the node") from None
    return state


def remembered_swarm(data: Path) -> SwarmState | None:
    """The swarm joined before, or None. Raises StateError for a damaged file."""
    return _read(paths.swarm_file(data), SwarmState)


def remember_swarm(data: Path, invite: str) -> None:
    """Join this swarm again at the next start, instead of the one remembered so far."""
    _write(paths.swarm_file(data), SwarmState(invite=invite, joined=time.time()))


def forget_swarm(data: Path) -> None:
    """Be alone again from the next start on."""
    paths.swarm_file(data).unlink(missing_ok=True)
