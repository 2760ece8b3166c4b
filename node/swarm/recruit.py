"""Whom to connect to, of all that this node has heard of: enough that the swarm hangs together, and no more.

Twenty nodes are all connected with each other; of a thousand each has some tens of neighbours. Pure functions of what
is known, so that a simulation can run them with as many nodes as it likes.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from ...protocols.peer_id import PeerId

WANTED = 32  # peers that a node looks for by itself
CROWDED = 96  # connected peers above which it sends some of those away that came by themselves
COMFORTABLE = 80  # what is left then


def whom_to_seek(strangers: Collection[PeerId], have: int, rng: random.Random, *, wanted: int = WANTED) -> list[PeerId]:
    """Some of the strangers, at random, until there are `wanted` peers. have: connected, or dialled at the moment."""
    room = max(0, wanted - have)
    return rng.sample(sorted(strangers), min(room, len(strangers)))


def whom_to_dismiss(connected: int, idle: Sequence[PeerId], rng: random.Random) -> list[PeerId]:
    """Some of the idle peers that came by themselves, when there are too many in all."""
    if connected <= CROWDED:
        return []
    return rng.sample(list(idle), min(connected - COMFORTABLE, len(idle)))
