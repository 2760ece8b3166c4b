"""How many cores this process may use: by affinity, and by a container's quota. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2: "200000 100000", microseconds in each period."""
QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""cgroup v1: microseconds in each period, which stands in a file beside it; -1 is no quota."""


def usable_cores(quota: Path = QUOTA, quota_v1: Path = QUOTA_V1) -> int:
    """Whole cores, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        share, period = quota.read_text().split()
        cores = min(cores, int(share) // int(period))  # "max" is no number: no quota
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        share = quota_v1.read_text()
        if int(share) > 0:
            cores = min(cores, int(share) // int((quota_v1.parent / "cpu.cfs_period_us").read_text()))
    return max(cores, 1)
