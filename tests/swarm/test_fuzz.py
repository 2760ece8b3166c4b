"""A few thousand of the inputs that `python -m tests.swarm.fuzz` tries by the million."""

from __future__ import annotations

from tests.swarm.fuzz import run, samples


def test_whatever_a_peer_sends_is_read_or_refused():
    told = run(6000, seed=1)
    for reader, _ in samples():
        assert told[f"{reader.__name__} taken"], reader
        assert told[f"{reader.__name__} refused"] or reader.__name__ in ("decode", "items"), reader
