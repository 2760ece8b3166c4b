"""How many generations run at once, and that no caller takes the room of all others. Pure.

While less than half of the room is taken, anybody may have it. From there on a caller may hold no more than its equal
share of the whole among those who hold something, so that one who comes late finds room. Each peer is a caller, each
token is, and all who ask on this machine without one are one caller together (`Ask.party`).
"""

from __future__ import annotations


class Shares:
    """taken: generations that run."""

    __slots__ = ("_held", "taken")

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self.taken = 0

    def why_not(self, caller: str, room: int) -> str | None:
        """Why `caller` must wait, in words for it; None: there is room."""
        if self.taken >= room:
            return f"This node works on {self.taken} requests, which is its limit; ask again in a moment."
        mine = self._held.get(caller, 0)
        if mine and self.taken * 2 >= room:
            share = max(1, room // len(self._held))
            if mine >= share:
                return (
                    f"This node works on {mine} requests of yours, which is your share of the {room} that it takes "
                    f"from {len(self._held)} callers; ask again in a moment."
                )
        return None

    def take(self, caller: str) -> None:
        self.taken += 1
        self._held[caller] = self._held.get(caller, 0) + 1

    def give_back(self, caller: str) -> None:
        self.taken -= 1
        if self._held[caller] == 1:
            del self._held[caller]
        else:
            self._held[caller] -= 1
