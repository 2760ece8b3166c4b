"""What this machine has: processor, memory, GPUs, operating system, as a container or an affinity mask leaves it to us.

`probe` is read once and told to peers; `sample` is the part that changes, cheap enough for once a second. Nothing here
imports torch, runs a program or opens a device. All of it is what the node says of itself: peers treat it as a claim.
Sources: /proc/cpuinfo, /proc/driver/nvidia, cgroup v2 (Linux, Documentation/admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import importlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

TOLD_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
"""The processor features that decide how fast a model runs, in the kernel's spelling."""


class Gpu(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """memory_bytes: 0 where the driver does not tell without its library."""

    vendor: str
    name: str
    uuid: str = ""
    memory_bytes: int = 0
    driver: str = ""


class Hardware(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """cores_usable: what affinity and the cgroup's quota leave; memory_bytes: the cgroup's limit, if lower."""

    arch: str
    cpu: str
    flags: tuple[str, ...] = ()
    cores_physical: int = 0
    cores_usable: float = 0.0
    memory_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    os: str = ""


class Load(Struct, frozen=True, kw_only=True):
    """load1: processes that ran or waited, mean of a minute; cpu_percent: of all cores, since the last sample."""

    memory_available_bytes: int
    load1: float
    cpu_percent: float


def probe(root: Path = Path("/")) -> Hardware:
    """The machine, a few milliseconds. `root` is where /proc and /sys are looked for."""
    brand, flags = _cpu(root)
    return Hardware(
        arch=platform.machine(),
        cpu=brand or platform.processor() or "unknown",
        flags=flags,
        cores_physical=psutil.cpu_count(logical=False) or 0,
        cores_usable=usable_cores(root),
        memory_bytes=_memory_total(root),
        gpus=_gpus(root),
        os=f"{platform.system()} {platform.release()}",
    )


def sample(root: Path = Path("/")) -> Load:
    """What changes; below a millisecond."""
    available = psutil.virtual_memory().available
    limit, used = _number(root, "memory.max"), _number(root, "memory.current")
    if limit is not None and used is not None:
        available = min(available, max(0, int(limit - used)))
    return Load(
        memory_available_bytes=available, load1=os.getloadavg()[0], cpu_percent=psutil.cpu_percent(interval=None)
    )


def usable_cores(root: Path = Path("/")) -> float:
    """Cores that this process may use: the affinity mask, and the tightest cpu.max quota above it."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _cgroups(root):
        try:
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            if quota != "max":
                cores = min(cores, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return round(cores, 2)


def _memory_total(root: Path) -> int:
    total = psutil.virtual_memory().total
    limit = _number(root, "memory.max")
    return total if limit is None else min(total, int(limit))


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


def _number(root: Path, name: str) -> float | None:
    """The least value of a cgroup file on the way up; None where there is none or it says "max"."""
    found = []
    for folder in _cgroups(root):
        try:
            found.append(float((folder / name).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            head = file.read(16_384).split("\n\n", 1)[0]
    except OSError:
        return "", ()
    fields = {}
    for line in head.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    present = set(fields.get("flags", fields.get("features", "")).split())
    return fields.get("model name", ""), tuple(flag for flag in TOLD_FLAGS if flag in present)


def _gpus(root: Path) -> tuple[Gpu, ...]:
    by_proc = _nvidia_by_proc(root)
    return (_nvidia_by_library() or by_proc) if by_proc else ()


def _nvidia_by_library() -> tuple[Gpu, ...]:
    """With pynvml, where somebody installed it, memory sizes are known as well. Empty where it cannot say."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # its errors are its own classes, known only once it is there
        return ()
    try:
        driver = str(nvml.nvmlSystemGetDriverVersion())
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                vendor="nvidia",
                name=str(nvml.nvmlDeviceGetName(handle)),
                uuid=str(nvml.nvmlDeviceGetUUID(handle)),
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                driver=driver,
            )
            for handle in handles
        )
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _nvidia_by_proc(root: Path) -> tuple[Gpu, ...]:
    """The driver's own text files: names and ids, but no memory size."""
    folder = root / "proc/driver/nvidia"
    try:
        version = re.search(
            r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", (folder / "version").read_text(encoding="utf-8")
        )
        cards = sorted((folder / "gpus").iterdir())
    except OSError:
        return ()
    gpus = []
    for card in cards:
        try:
            text = (card / "information").read_text(encoding="utf-8")
        except OSError:
            continue
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
        name, uuid = fields.get("Model", "NVIDIA GPU"), fields.get("GPU UUID", "")
        gpus.append(Gpu(vendor="nvidia", name=name, uuid=uuid, driver=version[1] if version else ""))
    return tuple(gpus)
