"""What `shoal models calibrate` asks of a worker: tokens per second of each engine that takes a model here."""

from __future__ import annotations

import msgspec

from . import engine_choice
from .frames import Load


def timed(wanted: Load) -> tuple[str, dict[str, dict[int, float]]]:
    """The device, and engine -> streams -> tokens per second. Raises LoadError."""
    if wanted.engine == "llama_cpp":
        from .llama_cpp_model import load_gguf
        from .plain_sampling import PlainSampler

        model = load_gguf(wanted)
        found = engine_choice.compare({"llama_cpp": lambda: model.engine}, lambda: PlainSampler(0.0))
        return ("cpu" if model.device == "cpu" else model.device), found
    import torch

    from .cores import usable_cores
    from .device import about
    from .hf_model import compared
    from .loaded import LoadError
    from .model import device_of, load_lean
    from .sampling import Sampler
    from .tokens import NotCoveredError

    torch.set_num_threads(wanted.threads or usable_cores())
    device = device_of(wanted)
    found = {}
    try:
        lean = load_lean(msgspec.structs.replace(wanted, calibrated=""), device, wanted.threads or usable_cores())
        found = engine_choice.compare({"lean": lambda: lean.engine}, lambda: Sampler(0.0))
    except (NotCoveredError, LoadError):
        pass
    return about(device), found | compared(wanted, device)
