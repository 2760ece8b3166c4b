"""Whether others can dial this node, in a few words. Loads nothing, so that `shoal status` stays quick."""

from __future__ import annotations

from typing import Any

KINDS = {
    "none": "none",
    "keeps-ports": "one that keeps ports (cone)",
    "changes-ports": "one that changes ports (symmetric)",
    "unknown": "not known yet",
}


def in_a_line(seen: dict[str, Any], places: int) -> str:
    """For `shoal status`: whether others can dial this node, and how."""
    reach, scope = seen.get("reach", "unknown"), seen.get("scope", "none")
    beyond = {"machine": " from this machine", "network": " from the local network"}.get(scope, "")
    kind = "" if scope != "internet" or seen.get("nat") == "unknown" else f", NAT: {KINDS[seen['nat']]}"
    relays = f", through {'a relay' if places == 1 else f'{places} relays'}" if places else ""
    if reach == "public":
        return f"yes{beyond}{kind}"
    if reach == "private":
        return f"{'not directly' if relays else 'no'}{beyond}{relays}{kind}"
    return f"not known{' yet' if scope != 'none' else ''}{kind}"
