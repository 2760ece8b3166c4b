"""What a container or an affinity mask leaves to this process: cores and memory, by cgroups v2 and v1.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. `root` is where /proc and /sys are looked for. A limit
anywhere on the way up counts, and the tightest one decides. Imports nothing heavy: the worker asks, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil


def usable_cores(root: Path = Path("/")) -> float:
    """Cores that this process may use: the affinity mask, and the tightest quota above it (cpu.max; cfs_quota_us)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _cgroups(root):
        try:
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            if quota != "max":
                cores = min(cores, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    for folder in _cgroups_v1(root, "cpu"):
        try:
            quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
            if quota_us > 0:
                cores = min(cores, quota_us / int((folder / "cpu.cfs_period_us").read_text(encoding="ascii")))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return round(cores, 2)


def memory_total(root: Path = Path("/")) -> int:
    """Bytes of memory: the machine's, or the tightest cgroup's limit where that is lower."""
    return min([_machine()[0], *(limit for limit, _ in _memory_limits(root))])


def memory_available(root: Path = Path("/")) -> int:
    """Bytes that can still be had: what is free, and what each cgroup on the way up has left.

    A cgroup's use counts what it has read of files; what was not looked at lately (inactive_file) is given back first.
    """
    return min([_machine()[1], *(max(0, limit - used) for limit, used in _memory_limits(root))])


def _machine() -> tuple[int, int]:
    """Bytes of memory, and those that are free or can be freed; by the system's calls where /proc is hidden."""
    try:
        memory = psutil.virtual_memory()
    except (OSError, ValueError):
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return memory.total, memory.available


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has ended for want of memory: of this cgroup and those below, else of the machine.

    memory.events of cgroup v2, memory.oom_control of v1 (its own alone), /proc/vmstat where neither is. To be compared
    with an earlier count.
    """
    for folder in (*_cgroups(root), *_cgroups_v1(root, "memory")):
        for name in ("memory.events", "memory.oom_control"):
            if (folder / name).exists():
                return _stat(folder / name, "oom_kill")
    return _stat(root / "proc/vmstat", "oom_kill")


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each cgroup that has a limit."""
    kinds = (
        (_cgroups(root), "memory.max", "memory.current", "inactive_file"),
        (_cgroups_v1(root, "memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folders, limit_file, used_file, cached in kinds:
        for folder in folders:
            limit = _number(folder / limit_file)
            if limit is not None:
                yield limit, max(0, (_number(folder / used_file) or 0) - _stat(folder / "memory.stat", cached))


def _cgroups(root: Path) -> list[Path]:
    """This process's cgroup and those above it, the outermost last. A limit anywhere on the way counts."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [mount]
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    folder = mount / own.lstrip("/")
    return [f for f in (folder, *folder.parents) if f == mount or mount in f.parents]


def _cgroups_v1(root: Path, controller: str) -> list[Path]:
    """The same for a controller of cgroup v1, whose lines are `4:cpu,cpuacct:/docker/ab12`. Empty where there is none.

    In a container its own group is often mounted as the root, and the path of that line is not there.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, own = rest.partition(":")
        if controller in names.split(","):
            mounts = [root / "sys/fs/cgroup" / name for name in (controller, names)]
            mount = next((each for each in mounts if each.is_dir()), mounts[0])
            folder = mount / own.lstrip("/")
            return [f for f in (folder, *folder.parents) if f == mount or mount in f.parents]
    return []


def _number(file: Path) -> int | None:
    """None where there is no such file, or it says "max"."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _stat(file: Path, name: str) -> int:
    """A line of memory.stat; 0 where there is none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0
    value = next((line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")), "0")
    return int(value) if value.isdecimal() else 0
