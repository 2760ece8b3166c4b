"""GGUF to safetensors, once per model: `python -m shoal.providers.hf_worker.convert MODEL.gguf FOLDER`.

Runs as a process of its own, because it imports torch and holds a whole model in memory for the time of one call.
Each line on standard output is one step of progress, `{"done": 1, "total": 4, "step": "tokenizer"}`; the reason of
a failure is the last line on standard error and the exit code is 1.

The model is filled by transformers' reader of GGUF files, not by `from_pretrained(gguf_file=...)`: transformers 5.23
asks for accelerate there, and what comes back cannot be saved ("quantized with gguf and is not serializable").
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from .. import cgroups, gguf_header
from .__main__ import die_with_parent

BUDGET_SHARE = 0.75
"""The part of this machine's memory that a model in fp32 may take; as in `shelf.py`, which loads it."""
STEPS = ("tokenizer", "configuration", "packing", "weights", "writing")


class ConversionError(Exception):
    """The file cannot become a model folder; the message says why."""


def _step(done: int) -> None:
    step = STEPS[done] if done < len(STEPS) else "done"
    print(json.dumps({"done": done, "total": len(STEPS), "step": step}), flush=True)


def convert(source: Path, folder: Path) -> None:
    """Write `source` as safetensors with configuration and tokenizer into `folder` (made when missing).

    In fp32, unrounded, with the file's blocks beside them where it has some that torch can compute with
    (`gguf_blocks.py`): those are what is served, and the plain weights are what others may compare them with. Another
    file in the type that `plain_dtype` gives.
    """
    _step(0)
    # Imported here, so that a wrong call answers at once and not after two seconds of imports.
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from .gguf_blocks import FILE as PACKED
    from .gguf_blocks import packed_tensors

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(source.parent), **where)
    if not tokenizer.chat_template:
        raise ConversionError(f"{source.name} has no chat template, so it is no model to talk to; choose one that is")
    _step(1)
    config = transformers.AutoConfig.from_pretrained(str(source.parent), **where)
    _step(2)
    packed = packed_tensors(source)
    dtype = torch.float32 if packed is not None else getattr(torch, plain_dtype(source))
    _step(3)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    tensors = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model, torch_dtype=dtype)
    lacking = model.load_state_dict(tensors["tensors"], strict=False)
    tied = set(model.all_tied_weights_keys)
    missing = sorted(set(lacking.missing_keys) - tied)
    if missing or lacking.unexpected_keys:
        raise ConversionError(
            f"{source.name} lacks {len(missing)} of the model's tensors and has {len(lacking.unexpected_keys)} others"
            f" (first: {(missing + lacking.unexpected_keys)[0]})"
        )
    model.tie_weights()
    _step(4)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    if packed is not None:
        save_file(packed, str(folder / PACKED))
    _step(5)


def plain_dtype(source: Path) -> str:
    """The type for weights that are not kept in blocks.

    fp16 for those of 16 bits (of BF16 it loses what is below 6e-8); bf16 would round others eight times as coarsely as
    fp16. For them fp32, as long as this machine could hold it: rounded to fp16 about one answer in twenty differs.
    """
    weights = gguf_header.matrices(source)
    if weights.keys() <= gguf_header.HALVES:
        return "float16"
    return "float32" if 4 * sum(weights.values()) <= BUDGET_SHARE * cgroups.memory_total() else "float16"


def main(arguments: list[str]) -> int:
    """The command: 0 when the folder is written, 1 with a reason on standard error, 2 for a wrong call."""
    if len(arguments) != 2:
        print("usage: python -m shoal.providers.hf_worker.convert MODEL.gguf FOLDER", file=sys.stderr)
        return 2
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    die_with_parent()  # an installation that was killed leaves nobody behind who writes into what the next one clears
    try:
        convert(Path(arguments[0]).resolve(), Path(arguments[1]))
    except Exception as fault:  # the boundary of a process: whatever it is becomes one line and an exit code
        print(" ".join(f"{type(fault).__name__}: {fault}".split())[:300], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
