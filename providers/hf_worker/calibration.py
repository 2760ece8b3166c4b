"""How many threads a model is computed with: tried for a second when the machine is idle, and kept on disk.

    trials = Calibration(file, key, counts=[1, 2], use=torch.set_num_threads, trial=one_pass)
    while trials.due:
        trials.slice()      # one pass, tens of milliseconds; requests are looked for between two

The key names all that the best number depends on: another model, another build of torch, other cores, and it is tried
anew. How threads wait is no part of it: it is decided before torch is loaded, in `link.worker_environ`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TRIAL_S = 1.0
"""Seconds that all trials together take."""
WORTH = 0.95
"""More threads are taken only when a pass takes less than this part of the time with fewer."""
MOST_KEPT = 64


def counts(cores: int) -> list[int]:
    """The numbers of threads worth trying on so many cores."""
    return sorted({1, max(cores // 2, 1), max(cores - 1, 1), cores})


def key(model: str, dtype: str, version: str, cores: int, library: str = "torch") -> str:
    """What the best number of threads depends on. library, version: what computes."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    waiting = os.environ.get("OMP_WAIT_POLICY") or f"{os.environ.get('GOMP_SPINCOUNT', 'no')} spins"
    return f"{model} {dtype} {library} {version} cores {cores} of {','.join(map(str, allowed))}, {waiting}"


def known(file: Path, of: str) -> int | None:
    """The number that was found for a key; None when it was never tried."""
    found = read(file).get(of)
    threads = found.get("threads") if isinstance(found, dict) else None
    return threads if isinstance(threads, int) and 0 < threads <= 1024 else None


class Calibration:
    """Trials of some numbers of threads, by turns.

    use: sets the number of threads. trial: computes what is typical, once. The fastest pass counts for each number, so
    that another process's moment does not.
    """

    def __init__(
        self, file: Path, of: str, counts: Sequence[int], use: Callable[[int], None], trial: Callable[[], None]
    ) -> None:
        self._file, self._key, self._counts, self._use, self._trial = file, of, list(counts), use, trial
        self._best: dict[int, float] = {}
        self._turn, self._spent = 0, 0.0
        self.done = len(self._counts) < 2
        self.threads = self._counts[-1]
        """The number in use."""

    @property
    def due(self) -> bool:
        """Whether now is the time for a trial: others' work on the same cores would decide it."""
        return not self.done and os.getloadavg()[0] <= self._counts[-1]

    def slice(self) -> None:
        """One pass with the next number; after the last one the best number is in use and written down."""
        count = self._counts[self._turn % len(self._counts)]
        first = self._turn < len(self._counts)  # threads are made in the first pass, which therefore does not count
        self._turn += 1
        self._use(count)
        began = time.perf_counter()
        self._trial()
        taken = time.perf_counter() - began
        self._spent += taken
        if not first:
            self._best[count] = min(taken, self._best.get(count, taken))
        if self._spent >= TRIAL_S and len(self._best) == len(self._counts):
            self._decide()
        else:
            self._use(self.threads)

    def _decide(self) -> None:
        chosen = self._counts[0]
        for count in self._counts[1:]:
            if self._best[count] < WORTH * self._best[chosen]:
                chosen = count
        self.done, self.threads = True, chosen
        self._use(chosen)
        milliseconds = {str(count): round(1000 * taken, 2) for count, taken in self._best.items()}
        keep(self._file, self._key, {"threads": chosen, "ms": milliseconds, "at": int(time.time())})


def keep(file: Path, of: str, found: dict[str, Any]) -> None:
    """Write down what was found for a key, and forget the oldest of too many."""
    everything = read(file)
    everything.pop(of, None)
    while len(everything) >= MOST_KEPT:
        del everything[next(iter(everything))]
    everything[of] = found
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(everything, indent=1))
        fresh.replace(file)
    except OSError:  # a store that may only be read: it is tried again by the next worker
        fresh.unlink(missing_ok=True)


def read(file: Path) -> dict[str, Any]:
    """What was written down; nothing where there is no such file, or another one."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
