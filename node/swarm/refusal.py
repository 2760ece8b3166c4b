"""Why another node does not take this one, and what its owner can do about it.

The reasons travel as text in a goaway (docs/protocol.md); those that a healthy node gives are known here by how they
begin. What is not known is shown as it came.
"""

from __future__ import annotations

from .admission import REVOKED, STRANGER

WRONG_SWARM = "wrong swarm"

ADVICE = {
    REVOKED: "ask the swarm's owner, or leave it with `shoal join --forget`",
    STRANGER: "`shoal join INVITE` with an invite of its owner",
    "the invite has expired": "`shoal join INVITE` with the new one",
    WRONG_SWARM: "it is in another swarm: `shoal join INVITE` with an invite of it, or remove it from swarm.peers",
    "the peer left: more than": "it takes no more from this node for a while; if that comes again, update both nodes",
}
"""By the reason, or how it begins."""

OUT = frozenset({REVOKED, STRANGER})
"""Reasons that concern this node's place in the swarm, not only one peer."""


def reason_in(problem: str) -> str:
    """The known reason in what is told of a session that did not come about or ended; "" when there is none."""
    return next((reason for reason in ADVICE if reason in problem), "")


def advice(problem: str) -> str:
    """What to do next; "" when nothing is known."""
    return ADVICE.get(reason_in(problem), "")


def told(problem: str) -> str:
    """The problem, and what to do next."""
    return f"{problem}; {then}" if (then := advice(problem)) else problem
