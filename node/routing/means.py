"""What the generations of a router share: whom to ask, what is known of them, and the limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .alarm import Alarms
from .candidate import CandidateSource
from .health import Health
from .limits import RoutingLimits
from .recording import Found, Recorder
from .speed import Speed

LookUp = Callable[[Callable[[Found], None]], Awaitable[object]]
"""Calls back in the very moment that an answer has been found and verified."""


class Means(NamedTuple):
    """What all generations of a router work with."""

    source: CandidateSource
    health: Health
    speed: Speed
    alarms: Alarms
    limits: RoutingLimits
    recorder: Recorder | None
    now: Callable[[], float]  # trio's time
