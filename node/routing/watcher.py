"""Who is told of each request as it comes and goes: the dashboard and the metrics. What they do costs every request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .ask import Ask
    from .flight import Flight
    from .no_answer import NoAnswer
    from .recording import Found
    from .router import RouteNote


class Watcher(Protocol):
    """Nothing here may wait or raise. Of what was asked and said a watcher keeps nothing but counts."""

    def boarded(self, ask: Ask, flight: Flight) -> None:
        """A caller has joined the flight that answers it."""
        ...

    def left(self, ask: Ask, flight: Flight, note: RouteNote) -> None:
        """The caller has left, at the end or before."""
        ...

    def peeked(self, ask: Ask, found: Found) -> None:
        """An answer was in memory and needed no flight."""
        ...

    def refused(self, ask: Ask, why: NoAnswer) -> None:
        """The caller got no flight at all: the node is full, or stopping, or only the cache was to be asked."""
        ...
