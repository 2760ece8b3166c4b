"""Loading a model folder: weights, tokenizer, and the numbers that hardware decides. Imports torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from .engine import Engine
from .frames import Load
from .prompt import Prompter
from .slots import SlotEngine, UnfitModelError


class LoadError(Exception):
    """The model cannot be loaded; the message is one sentence for the owner of the node."""


@dataclass(frozen=True)
class Model:
    """What the server needs of a loaded model.

    decode: text of tokens, without control tokens. ends: tokens that end an answer.
    temperature, top_p: the model's own defaults, for requests that leave them open.
    """

    name: str
    engine: Engine
    prompter: Prompter
    decode: Callable[[list[int]], str]
    ends: frozenset[int]
    temperature: float
    top_p: float
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: by affinity, and by a container's quota (cgroup v2, "200000 100000")."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        share, period = quota.read_text().split()
        cores = min(cores, int(share) // int(period))  # "max" is no number: no quota
    return max(cores, 1)


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(asked: str, device: str) -> torch.dtype:
    """fp32 on a CPU without bf16 units: there, bf16 products run at a hundredth of fp32's speed (measured, Zen 3)."""
    if asked != "auto":
        named = getattr(torch, asked, None)
        if not isinstance(named, torch.dtype):
            raise LoadError(f'dtype "{asked}" is not one of torch; use "auto", "float32" or "bfloat16"')
        return named
    if device != "cpu":
        return torch.bfloat16
    flags = torch.cpu.get_capabilities()
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32


def load(wanted: Load) -> Model:
    """Load a folder of safetensors. Raises LoadError; runs no code of the folder and reads no pickle."""
    threads = wanted.threads or usable_cores()
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = _device(wanted.device)
    dtype = _dtype(wanted.dtype, device)
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(wanted.path, **safe)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            wanted.path, use_safetensors=True, dtype=dtype, attn_implementation="sdpa", **safe
        )
        model = model.to(device).eval()
        engine = SlotEngine(model, kv_tokens=wanted.kv_tokens)
    except UnfitModelError as fault:
        raise LoadError(f"the model {wanted.name} cannot be served: {fault}") from None
    except Exception as fault:  # the libraries raise what they like for a broken folder
        why = str(fault).strip().splitlines()[0][:200] if str(fault).strip() else ""
        raise LoadError(f"the model {wanted.name} cannot be loaded ({type(fault).__name__}: {why})") from fault
    if not tokenizer.chat_template:
        raise LoadError(f"the model {wanted.name} has no chat template; choose one that was made for conversation")
    return _describe(wanted, model, tokenizer, engine, str(dtype).removeprefix("torch."), device, threads)


def _describe(wanted: Load, model: Any, tokenizer: Any, engine: Engine, dtype: str, device: str, threads: int) -> Model:
    defaults = model.generation_config
    ends = defaults.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    text_config = model.config.get_text_config(decoder=True)
    context_length = int(getattr(text_config, "max_position_embeddings", 0) or 2048)

    def decode(tokens: list[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    sampled = bool(defaults.do_sample)
    return Model(
        name=wanted.name,
        engine=engine,
        prompter=Prompter(tokenizer, wanted.name, context_length),
        decode=decode,
        ends=frozenset(ends),
        temperature=float(defaults.temperature or 1.0) if sampled else 0.0,
        top_p=float(defaults.top_p or 1.0) if sampled else 1.0,
        dtype=dtype,
        device=device,
        threads=threads,
    )
