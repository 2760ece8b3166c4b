"""What this machine has: processor, memory, GPUs, operating system, as a container or an affinity mask leaves it to us.

`probe` is read once and told to peers; `sample` is the part that changes, cheap enough for once a second. Nothing here
imports torch, runs a program or opens a device; what takes longer to find out is machine.py's. All of it is what the
node says of itself: peers treat it as a claim. Sources: /proc/cpuinfo, /proc/driver/nvidia, /sys/class/drm (amdgpu,
Documentation/gpu/amdgpu), and for what a container leaves ../providers/cgroups.py.
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

from ..providers.cgroups import memory_available, memory_total
from ..providers.cgroups import usable_cores as usable_cores

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
        cores_physical=_cores_physical(),
        cores_usable=usable_cores(root),
        memory_bytes=memory_total(root),
        gpus=_gpus(root),
        os=f"{platform.system()} {platform.release()}",
    )


def sample(root: Path = Path("/")) -> Load:
    """What changes; below a millisecond."""
    return Load(
        memory_available_bytes=memory_available(root),
        load1=os.getloadavg()[0],
        cpu_percent=_cpu_percent(),
    )


def _cores_physical() -> int:
    """0 where the system does not say."""
    try:
        return psutil.cpu_count(logical=False) or 0
    except (OSError, ValueError):  # /proc is hidden
        return 0


def _cpu_percent() -> float:
    try:
        return psutil.cpu_percent(interval=None)
    except (OSError, ValueError):
        return 0.0


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
