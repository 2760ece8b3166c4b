"""A node that relays, and connects whoever calls to another node than the one that was asked for.

python lying_relay.py run ...: as `shoal run`.
"""

from __future__ import annotations

import os

from shoal.node.commands import main
from shoal.protocols.p2p.relay import Relay
from shoal.protocols.peer_id import PeerId

honest = Relay._call


async def lie(self: Relay, caller: PeerId, called: PeerId) -> object:
    victims = [peer for peer in self.reserved() if peer not in (caller, called)]
    return await honest(self, caller, victims[0] if victims else called)


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    Relay._call = lie  # type: ignore[method-assign, assignment]
    main()
