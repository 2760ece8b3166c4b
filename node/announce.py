"""What `shoal run` says on stdout: lines for people, or one JSON object a line for programs.

Events: start, rpc, provider, swarm, note, ready (with everything once more), stopping, stopped. That nobody reads
them is no reason for a node to end.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO

import msgspec


class Announcer:
    """Writes each event as it happens."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._json, self._stream = as_json, stream if stream is not None else sys.stdout

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    def _for_people(self, line: str) -> None:
        if not self._json:
            self._write(line)

    def _fact(self, name: str, value: str) -> None:
        self._for_people(_fact(name, value))

    def _say(self, event: str, line: str | None, **facts: Any) -> None:
        if self._json:
            self._write(msgspec.json.encode({"event": event, **facts}).decode())
        elif line is not None:
            self._write(line)

    def start(self, *, version: str, peer_id: str, data_dir: str, pid: int, new: bool) -> None:
        made = " (new)" if new else ""
        line = f"Shoal {version}\n{_fact('peer id', peer_id + made)}\n{_fact('data', data_dir)}"
        self._say("start", line, version=version, peer_id=peer_id, data_dir=data_dir, pid=pid, new_identity=new)

    def rpc(self, url: str, seconds: float) -> None:
        self._say("rpc", f"{_fact('RPC', url + '/v1')}\n{_fact('dashboard', url + '/')}", rpc=url, seconds=seconds)

    def providers(self, providers: dict[str, dict[str, Any]]) -> None:
        """Each provider, ready or why not. People get a line for each in use, and one for those that could be."""
        for name, facts in providers.items():
            self._say("provider", None, name=name, **facts)
            if facts["ready"]:
                models = f" ({', '.join(facts['models'])})" if facts["models"] else ""
                shared = ", shared with peers" if facts["share"] else ""
                self._fact("provider", f"{name}: ready{models}{shared}")
            elif facts["configured"]:
                self._fact("provider", f"{name}: not ready: {facts['reason']}")
        if not any(facts["ready"] for facts in providers.values()):
            self._fact("note", "nobody here can answer yet; `shoal models add smollm2` installs a small model")
        unset = sum(not facts["configured"] for facts in providers.values())
        if unset:
            self._fact("", f"{unset} more can be set up; `shoal providers` says what each needs")

    def swarm(self, *, name: str, private: bool, addresses: list[str], opened: bool) -> None:
        lines = [_fact("swarm", f"{name}{' (private)' if private else ''}")]
        # The peer id stands above; who wants to join needs the invite.
        lines += [_fact("listening", address.partition("/p2p/1")[0]) for address in addresses or ["nowhere"]]
        if opened:
            lines.append(_fact("note", "the swarm port is open on every interface, for peers beyond this machine"))
        line = "\n".join(lines)
        self._say("swarm", line, name=name, private=private, addresses=addresses, open=opened)

    def note(self, text: str) -> None:
        self._say("note", _fact("note", text), text=text)

    def ready(self, facts: dict[str, Any]) -> None:
        invite = f"{_fact('invite', facts['invite'])}\n" if facts.get("invite") else ""
        self._say("ready", f"{invite}ready; Ctrl-C ends it", **facts)

    def stopping(self, why: str) -> None:
        self._say("stopping", f"{why}: finishing what is under way; once more ends at once", why=why)

    def stopped(self) -> None:
        self._say("stopped", "ended")


def _fact(name: str, value: str) -> str:
    return f"  {name:<9}  {value}"
