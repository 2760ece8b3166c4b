"""The router's numbers, each with its unit."""

from __future__ import annotations

from msgspec import Struct


class RoutingLimits(Struct, frozen=True, kw_only=True):
    """Bounds of one router; the daemon fills them from its configuration."""

    deadline_s: float = 300.0
    """Seconds for a request in all, when the caller sets no deadline."""
    first_token_s: float = 60.0
    """Seconds that one attempt gets until its first event."""
    idle_s: float = 30.0
    """Seconds between two events before an attempt counts as stalled."""
    hops: int = 1
    """How often a request from this machine may be forwarded."""
    hedge: bool = False
    """Ask a second candidate, too, when the first is silent for longer than 95 % of its first events took."""
    max_attempts: int = 8
    """Calls of providers for one request, retries included."""
    max_rescues: int = 16
    """Attempts that may break off after they have added to the answer; they are not counted in max_attempts."""
    regroup_s: float = 0.4
    """When the last one to ask was a peer that was lost, seconds in which others that come up are still asked."""
    retry_min_s: float = 0.05
    retry_max_s: float = 0.25
    """The second try at the same candidate starts after a random time between these two (seconds)."""
    patience_s: float = 1.0
    """A retry_after up to this long (seconds) is waited for in place; a longer one only when nobody else is left."""
    retry_after_max_s: float = 30.0
    """A longer retry_after (seconds) is told to the caller instead of waited for."""
    swarm_wait_s: float = 0.05
    """Seconds for a look-up in the caches of other nodes, beside the first attempt; 0: none."""
    swarm_head_start_s: float = 0.0
    """Seconds that such a look-up may hold the first attempt back."""
    join_wait_s: float = 0.4
    """Seconds for asking who else in the swarm generates an answer that can be kept; 0: nobody is asked or told."""
    join_near_s: float = 0.1
    """Owners of keys whose last answers all took longer (seconds) are asked once a minute only."""
    join_first_s: float = 15.0
    """Seconds that a generation which was joined may be silent before it says anything."""
    max_in_flight: int = 1024
    """Generations at once; one more is refused with a hint to come back."""
    read_ahead_events: int = 4096
    """Events that a generation may be ahead of its fastest reader before it is paused."""
    max_answer_bytes: int = 64 * 1024 * 1024
    """Memory that one answer may take, roughly; a provider that writes more is stopped."""
    recent_routes: int = 64
    """Routes kept for `route/last`."""
