"""Memory bandwidth in GB/s, measured: `python bandwidth.py CORES` prints one number. A program of its own.

It runs beside the node, not in it: it takes a hundred megabytes and every core for a quarter of a second. Each core
copies blocks that are larger than a cache; what is read and what is written both count, and the best of some rounds is
taken, because anything else that runs takes away from it. Only the standard library is imported.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time

BLOCK_BYTES = 32 * 1024 * 1024
ROUNDS = 4
ROUND_S = 0.04
MAX_CORES = 16


def measure(cores: int, block_bytes: int = BLOCK_BYTES) -> float:
    """GB/s of all cores together, in at most about 0.3 s."""
    cores = max(1, min(cores, MAX_CORES))
    pairs = [(bytearray(b"\1") * block_bytes, bytearray(b"\2") * block_bytes) for _ in range(cores)]
    best = 0.0
    for _ in range(ROUNDS):
        copied = [0] * cores
        gate = threading.Barrier(cores + 1)
        threads = [threading.Thread(target=_copy, args=(pairs[at], copied, at, gate)) for at in range(cores)]
        for thread in threads:
            thread.start()
        gate.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        best = max(best, 2 * sum(copied) / (time.perf_counter() - began))
    return best / 1e9


def _copy(pair: tuple[bytearray, bytearray], copied: list[int], at: int, gate: threading.Barrier) -> None:
    source, target = ((ctypes.c_char * len(each)).from_buffer(each) for each in pair)
    gate.wait()
    until = time.perf_counter() + ROUND_S
    while time.perf_counter() < until:
        ctypes.memmove(target, source, len(pair[0]))  # without the interpreter's lock
        copied[at] += len(pair[0])


if __name__ == "__main__":
    print(f"{measure(int(sys.argv[1])):.2f}")
