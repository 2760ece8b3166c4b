"""Measured figures in words: `107 tokens/s, first token 80 ms, 3 min ago`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .output import duration


def when(at: Any, now: float | None = None) -> str:
    """How long ago a Unix time was; empty where there is none."""
    if not isinstance(at, int | float) or at <= 0:
        return ""
    past = max(0.0, (time.time() if now is None else now) - at)
    return "just now" if past < 60 else f"{duration(past)} ago"


def speed(model: Mapping[str, Any]) -> str:
    """What is known of a model's speed; empty where nothing is."""
    parts = []
    if isinstance(decode := model.get("decode_tps"), int | float):
        parts.append(f"{decode:.3g} tokens/s")
    if isinstance(prefill := model.get("prefill_tps"), int | float):
        parts.append(f"prompts {prefill:.3g} tokens/s")
    if isinstance(first := model.get("first_token_ms"), int | float):
        parts.append(f"first token {duration(first / 1000)}")
    return ", ".join(parts)


def machine(hardware: Mapping[str, Any]) -> list[str]:
    """Processor, cores, GPUs with their memory, and bandwidth: a few words each."""
    parts = [str(hardware["cpu"])] if hardware.get("cpu") else []
    if isinstance(cores := hardware.get("cores_usable"), int | float):
        parts.append(f"{cores:g} cores")
    gpus = hardware.get("gpus")
    for gpu in gpus if isinstance(gpus, list | tuple) else ():
        if not isinstance(gpu, Mapping):
            continue
        memory = gpu.get("memory_bytes")
        room = f" {memory / 2**30:.0f} GiB" if isinstance(memory, int) and memory else ""
        parts.append(f"{gpu.get('name', '')}{room}")
    if isinstance(gbs := hardware.get("memory_gbs"), int | float):
        parts.append(f"{gbs:.3g} GB/s")
    return parts
