"""The daemon: one trio process that puts the parts together, and takes them apart again.

Order: configuration -> data directory -> lock -> identity -> providers -> cache -> router -> RPC -> swarm. From the
cache on it is a `Life` (life.py), which is built anew when the node moves to a swarm with another key; the lock, the
identity, the providers and the RPC's socket stay.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence

import trio

from ..protocols.peer_id import Identity
from ..providers.registry import Registry
from . import addresses, lock, paths, state
from . import log as logs
from .announce import Announcer
from .commands.exit_codes import ExitCode
from .commands.failures import CommandError
from .config_file import Loaded
from .hardware import Hardware
from .identity import load_or_make
from .life import Life
from .machine import Machine
from .membership import Membership, decide
from .provider_tables import build_registry
from .routing.rates import Rates, kept
from .version import version

log = logging.getLogger("shoal.daemon")

UNWIND_S = 1.2
"""Seconds beside `node.drain_s` in which everything must have ended after a signal."""
BACKLOG = 1024


def run_daemon(
    loaded: Loaded, *, environ: Mapping[str, str], joined: Sequence[str] = (), as_json: bool = False
) -> ExitCode:
    """Run a node until a signal ends it. Raises what commands/failures.py has words for."""
    config = loaded.config
    logs.set_up(config.log.level, config.log.format)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    os.umask(0o077)  # whatever the parts write in the data directory is its owner's alone
    data = loaded.data_dir
    registry = build_registry(loaded, environ)
    paths.make_data_dir(data)
    with lock.hold(data):
        state.withdraw_rpc(data)
        identity, new = load_or_make(paths.identity_file(data))
        announce = Announcer(as_json=as_json)
        announce.start(version=version(), peer_id=identity.peer_id, data_dir=str(data), pid=os.getpid(), new=new)
        daemon = Daemon(loaded, identity, registry, announce, joined)
        try:
            trio.run(daemon.run)
        finally:
            daemon.watchdog.cancel()
        announce.stopped()
    return ExitCode.OK


class Daemon:
    """What outlives a change of swarm: identity, providers, the RPC's socket, and the wish to end."""

    def __init__(
        self, loaded: Loaded, identity: Identity, registry: Registry, announce: Announcer, joined: Sequence[str]
    ) -> None:
        self.loaded, self.identity, self.registry, self.announce = loaded, identity, registry, announce
        self.started = time.time()
        self.machine = Machine(loaded.data_dir, measure_after_s=loaded.config.node.measure_after_s)
        self.rates = Rates()
        self.membership = self._decide(joined)
        self.stopping = trio.Event()
        self.moving = trio.Event()
        self.scope = trio.CancelScope()
        self.listener: socket.socket | None = None
        self.watchdog = threading.Timer(loaded.config.node.drain_s + UNWIND_S + 0.2, _give_up)
        self.watchdog.daemon = True

    @property
    def hardware(self) -> Hardware:
        return self.machine.hardware

    def _decide(self, joined: Sequence[str]) -> Membership:
        data = self.loaded.data_dir
        remembered = state.remembered_swarm(data)
        return decide(
            self.loaded.config.swarm,
            joined=joined,
            remembered=remembered.invite if remembered is not None else None,
            ports=state.last_ports(data),
        )

    async def run(self) -> None:
        """The node's whole life, until a signal; a second signal ends it at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._signals)
            with self.scope:
                self.listener = open_listener(self.loaded)
                with contextlib.closing(self.listener):
                    rates_file = paths.rates_file(self.loaded.data_dir)
                    async with self.registry.running(), kept(self.rates, rates_file):
                        while not self.stopping.is_set():
                            self.moving = trio.Event()
                            await Life(self).run()
            nursery.cancel_scope.cancel()

    async def _signals(self) -> None:
        wanted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            wanted.append(signal.SIGHUP)
        with trio.open_signal_receiver(*wanted) as signals:
            async for number in signals:
                if self.stopping.is_set():
                    self.scope.cancel()
                    continue
                self.announce.stopping(signal.Signals(number).name)
                self.stopping.set()
                self.watchdog.start()
                self.scope.deadline = trio.current_time() + self.loaded.config.node.drain_s + UNWIND_S

    def move(self, invite: str) -> Membership:
        """Be in another swarm from the next moment on: this life ends when its requests are done, the next begins."""
        state.remember_swarm(self.loaded.data_dir, invite)
        self.membership = self._decide(())
        self.moving.set()
        return self.membership


def open_listener(loaded: Loaded) -> socket.socket:
    """The RPC's socket, listening. CommandError with the option to change when that is not possible."""
    text = loaded.config.rpc.listen
    host, port = addresses.parse_socket(text)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = "is taken by another program" if error.errno == errno.EADDRINUSE else paths.reason(error)
        option = loaded.origin.get("rpc.listen", "rpc.listen in the configuration")
        remedy = f"change {option}" if option != "--rpc" else "choose another"
        hint = f"{remedy} (for example --rpc 127.0.0.1:0 takes a free port)"
        raise CommandError(f"the RPC cannot listen on {text}: it {reason}; {hint}", ExitCode.PORT_TAKEN) from None
    listener.setblocking(False)
    return listener


def _give_up() -> None:
    """Runs in a thread when something does not end in time after a signal: what hangs must not keep the node."""
    log.error("something did not end in time; the node ends without it")
    os._exit(ExitCode.INTERNAL)
