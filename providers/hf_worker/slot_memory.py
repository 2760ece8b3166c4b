"""Memory for the keys and values of one sequence: address space for the longest, pages only for what is written.

    slot = SlotMemory((layers, 2, heads, positions, width))
    slot.values[layer, 0, :, :length]

Nothing is ever moved or grown, and `release` gives the pages back to the system at once.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor


class SlotMemory:
    """values: fp32, zero until written. shape: the last but one is the position."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._pages = mmap.mmap(-1, 4 * math.prod(shape), flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page under each head's first position would be all of it
            self._pages.madvise(mmap.MADV_NOHUGEPAGE)
        self.values: Tensor = torch.frombuffer(self._pages, dtype=torch.float32).view(shape)

    def release(self) -> None:
        """Give the memory back; what was written is gone (on Linux it reads as zeros again)."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)
