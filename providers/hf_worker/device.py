"""Which device computes, in what numbers, and how much of its memory is free. Imports torch.

CUDA was written for and is tested by tests/gpu where there is one. ROCm is CUDA to torch (`torch.version.hip` is set)
and MPS is Apple's: both go the same ways and have not been run.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import torch

KEPT_FREE = 0.2
"""The part of a device's free memory that is left for what a pass computes."""
MOST_POSITIONS = 131_072
"""Positions for keys and values that are taken on a device when nothing else is said, memory allowing."""
CPU_POSITIONS = 16_384
"""The same on a CPU, where memory is shared with everything else."""
SMI_S = 5.0


def choose(asked: str) -> str:
    """The device: as asked, or CUDA's with most free memory, MPS, CPU. "cuda" leaves open which, "cuda:1" does not."""
    if asked not in ("auto", "cuda"):
        return asked
    if torch.cuda.is_available():
        return f"cuda:{freest(torch.cuda.device_count())}"
    if asked == "cuda":
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def missing(device: str) -> str:
    """Why a device that was asked for cannot be used; empty when it can."""
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            built = torch.version.cuda or torch.version.hip
            lacks = "" if built else f": torch {torch.__version__} was built without it"
            return f'torch finds no CUDA device{lacks}; use device = "auto"'
        at = int(device.partition(":")[2] or 0)
        if at >= torch.cuda.device_count():
            return f'there is no {device}, torch finds {torch.cuda.device_count()}; use device = "auto"'
    if device == "mps" and not torch.backends.mps.is_available():
        return 'torch finds no MPS device; use device = "auto"'
    return ""


def freest(count: int) -> int:
    """Of the devices that CUDA_VISIBLE_DEVICES leaves, the one with most free memory.

    Asking a device opens it, which takes hundreds of megabytes there, so NVIDIA's program is asked where it is.
    """
    if count < 2:
        return 0
    free = _told_free()
    ours = [str(getattr(torch.cuda.get_device_properties(at), "uuid", "")) for at in range(count)]
    if not all(uuid in free for uuid in ours):
        return max(range(count), key=lambda at: torch.cuda.mem_get_info(at)[0])
    return max(range(count), key=lambda at: free[ours[at]])


def _told_free() -> dict[str, int]:
    """UUID of each NVIDIA device -> MB free."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=True)  # noqa: S603
        for line in said.stdout.splitlines():
            uuid, _, free = line.partition(",")
            found[uuid.strip().removeprefix("GPU-")] = int(free)
    return found


def fast_dtype(device: str) -> torch.dtype:
    """bf16 where it has units for it, else fp16 on a GPU, and fp32 on a CPU.

    On a CPU without bf16 units, bf16 products run at a hundredth of fp32's speed (measured, Zen 3).
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device != "cpu":
        return torch.bfloat16
    flags = torch.cpu.get_capabilities()
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32


def free_bytes(device: str) -> int | None:
    """What is free on a device; None where that is not known, or not its own."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    if device == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def positions(asked: int, free: int | None, each: int, longest: int) -> int:
    """For how many positions memory is taken: as asked, or as many of `each` bytes as fit; never fewer than none.

    longest: positions of the longest sequence, of which no more than 16 are thought useful.
    """
    if asked:
        return asked
    if free is None:
        return CPU_POSITIONS
    return max(min(int((1 - KEPT_FREE) * free) // max(each, 1), MOST_POSITIONS, 16 * longest), 0)


def about(device: str) -> str:
    """A device by name and driver, for what was measured on it."""
    if not device.startswith("cuda"):
        return device
    driver = "unknown"
    with contextlib.suppress(OSError, IndexError):
        driver = Path("/proc/driver/nvidia/version").read_text().partition("Kernel Module")[2].split()[0]
    api = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name(device)} driver {driver} {api}"
