"""The garbage collector's share of a request's time.

What a node has loaded by the time it is ready (modules, classes, the swarm's host: some 120,000 objects) stays to its
end, but a full collection looks at each of them: 60 to 240 ms in which nobody is answered, every second under load.
So the collector rests while the node starts, and what is there then is set aside for good (gc.freeze).
"""

from __future__ import annotations

import gc

THRESHOLDS = (5_000, 10, 10)
"""Objects more than before, and collections of the generation below, after which one is due: a request in flight has
some hundreds of objects, which a collection in its midst would only carry along."""


def rest() -> None:
    """The node starts: nothing that is made now is garbage worth looking for."""
    gc.disable()


def set_aside() -> None:
    """The node is ready, for the first time or after a move to another swarm: what is there now stays."""
    if gc.get_freeze_count():
        gc.unfreeze()  # what an earlier swarm left behind goes
        gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
