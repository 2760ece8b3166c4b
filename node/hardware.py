"""What this machine has: processor, memory, GPUs, operating system, as a container or an affinity mask leaves it to us.

`probe` is read once and told to peers; `sample` is the part that changes, cheap enough for once a second. Nothing here
imports torch, runs a program or opens a device; what takes longer to find out is machine.py's. All of it is what the
node says of itself: peers treat it as a claim. Sources: /proc/cpuinfo, /proc/driver/nvidia, /sys/class/drm (amdgpu,
Documentation/gpu/amdgpu), cgroup v2 and v1 (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/).
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
    """cores_usable: what affinity and the cgroup's quota leave; memory_bytes: the cgroup's limit, if lower.

    memory_gbs: GB/s that all cores together copy, reading and writing, as measured at `measured_at` (Unix time, s); 0:
    not measured yet.
    """

    arch: str
    cpu: str
    flags: tuple[str, ...] = ()
    cores_physical: int = 0
    cores_usable: float = 0.0
    memory_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    os: str = ""
    memory_gbs: float = 0.0
    measured_at: float = 0.0


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
    if limit is None:
        limit, used = _number_v1(root, "memory", V1_LIMIT), _number_v1(root, "memory", "memory.usage_in_bytes")
    if limit is not None and used is not None:
        available = min(available, max(0, int(limit - used)))
    return Load(
        memory_available_bytes=available, load1=os.getloadavg()[0], cpu_percent=psutil.cpu_percent(interval=None)
    )


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


def _memory_total(root: Path) -> int:
    total = psutil.virtual_memory().total
    limits = (_number(root, "memory.max"), _number_v1(root, "memory", V1_LIMIT))
    return min([total, *(int(limit) for limit in limits if limit is not None)])


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


V1_LIMIT = "memory.limit_in_bytes"


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


def _number(root: Path, name: str) -> float | None:
    """The least value of a cgroup file on the way up; None where there is none or it says "max"."""
    return _least(_cgroups(root), name)


def _number_v1(root: Path, controller: str, name: str) -> float | None:
    return _least(_cgroups_v1(root, controller), name)


def _least(folders: list[Path], name: str) -> float | None:
    found = []
    for folder in folders:
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
    brand = fields.get("model name") or _line(root / "sys/firmware/devicetree/base/model").rstrip("\0")  # ARM boards
    return brand, tuple(flag for flag in TOLD_FLAGS if flag in present)


def _gpus(root: Path) -> tuple[Gpu, ...]:
    by_proc = _nvidia_by_proc(root)
    return ((_nvidia_by_library() or by_proc) if by_proc else ()) + _amd_by_sys(root)


def _amd_by_sys(root: Path) -> tuple[Gpu, ...]:
    """AMD's cards by their driver's files, which tell the size of their memory; untried on such a machine."""
    gpus = []
    try:
        cards = sorted((root / "sys/class/drm").glob("card[0-9]*"))
    except OSError:
        return ()
    for card in cards:
        device = card / "device"
        if _line(device / "vendor") != "0x1002" or "-" in card.name:  # a connector is called card0-HDMI-A-1
            continue
        memory, driver = _line(device / "mem_info_vram_total"), _line(root / "sys/module/amdgpu/version")
        gpus.append(
            Gpu(
                vendor="amd",
                name=_line(device / "product_name") or f"AMD GPU {_line(device / 'device')}".strip(),
                uuid=_line(device / "unique_id"),
                memory_bytes=int(memory) if memory.isdecimal() else 0,
                driver=driver,
            )
        )
    return tuple(gpus)


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:200]
    except OSError:
        return ""


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
