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

    def _say(self, event: str, line: str | None, **facts: Any) -> None:
        if self._json:
            self._write(msgspec.json.encode({"event": event, **facts}).decode())
        elif line is not None:
            self._write(line)

    def start(self, *, version: str, peer_id: str, data_dir: str, pid: int, new: bool) -> None:
        made = " (new)" if new else ""
        line = f"Shoal {version}\n  peer id   {peer_id}{made}\n  data      {data_dir}"
        self._say("start", line, version=version, peer_id=peer_id, data_dir=data_dir, pid=pid, new_identity=new)

    def rpc(self, url: str, seconds: float) -> None:
        self._say("rpc", f"  RPC       {url}/v1", rpc=url, seconds=seconds)

    def providers(self, providers: dict[str, dict[str, Any]]) -> None:
        """Each provider, ready or why not; for people, those that share a reason share a line."""
        reasons: dict[str, list[str]] = {}
        for name, facts in providers.items():
            self._say("provider", None, name=name, **facts)
            if facts["ready"]:
                models = f" ({', '.join(facts['models'])})" if facts["models"] else ""
                shared = ", shared with peers" if facts["share"] else ""
                self._for_people(f"  provider  {name}: ready{models}{shared}")
            else:
                reasons.setdefault(facts["reason"], []).append(name)
        for reason, names in reasons.items():
            self._for_people(f"  provider  {', '.join(sorted(names))}: not ready: {reason}")

    def swarm(self, *, name: str, private: bool, addresses: list[str], opened: bool) -> None:
        line = f"  swarm     {name}{' (private)' if private else ''}"
        line += "".join(f"\n  listening {address}" for address in addresses) or "\n  listening nowhere"
        if opened:
            line += "\n  note      the swarm port is open on every interface, for peers beyond this machine"
        self._say("swarm", line, name=name, private=private, addresses=addresses, open=opened)

    def note(self, text: str) -> None:
        self._say("note", f"  note      {text}", text=text)

    def ready(self, facts: dict[str, Any]) -> None:
        invite = f"  invite    {facts['invite']}\n" if facts.get("invite") else ""
        self._say("ready", f"{invite}ready; Ctrl-C ends it", **facts)

    def stopping(self, why: str) -> None:
        self._say("stopping", f"{why}: finishing what is under way; once more ends at once", why=why)

    def stopped(self) -> None:
        self._say("stopped", "ended")
