"""What `shoal doctor` says of GPUs: found in the drivers' files, and whether the local model can compute on them."""

from __future__ import annotations

import importlib.metadata
import platform

from ..hardware import Gpu, probe
from .checks import Finding, note, ok

UNTRIED = "the local model goes the same way there as on CUDA, and we have not run it: tell us how it went"


def gpu() -> Finding | None:
    """None without a GPU, and without torch."""
    try:
        built = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    return finding(probe().gpus, built, platform.system(), platform.machine())


def finding(gpus: tuple[Gpu, ...], built: str, system: str, arch: str) -> Finding | None:
    """By the GPUs, torch's version, and the system."""
    nvidia = [each.name for each in gpus if each.vendor == "nvidia"]
    others = [each.name for each in gpus if each.vendor != "nvidia"]
    if nvidia and built.endswith("+cpu"):
        return note("GPU", f"{nvidia[0]} is there, and torch {built} was built without CUDA", "install torch for CUDA")
    if nvidia:
        return ok("GPU", f"{', '.join(nvidia)}; the first load of a model times its engines there")
    if others and "rocm" in built:
        return note("GPU", f"{others[0]} by ROCm: {UNTRIED}")
    if others:
        return note("GPU", f"{others[0]} is there, and torch {built} is not built for ROCm", "install torch for ROCm")
    if system == "Darwin" and arch == "arm64":
        return note("GPU", f"Apple's by MPS: {UNTRIED}")
    return None
