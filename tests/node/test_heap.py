"""The garbage collector in a node: what is there when it is ready is set aside, what comes later is still collected."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from shoal.node import heap


class Knot:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_while_the_node_starts() -> None:
    heap.rest()
    assert not gc.isenabled()


def test_what_is_there_when_the_node_is_ready_is_not_looked_at_again() -> None:
    heap.rest()
    kept = weakref.ref(Knot())
    heap.set_aside()
    gc.collect()
    assert kept() is not None
    assert gc.isenabled()


def test_what_comes_later_is_collected() -> None:
    heap.rest()
    heap.set_aside()
    gone = weakref.ref(Knot())
    gc.collect()
    assert gone() is None


def test_what_an_earlier_swarm_left_behind_goes_when_the_node_has_moved() -> None:
    heap.set_aside()
    left = weakref.ref(Knot())
    gc.disable()
    heap.set_aside()
    assert left() is None
