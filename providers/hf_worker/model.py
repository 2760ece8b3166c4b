"""Loading a model folder: weights, tokenizer, and the numbers that hardware decides. Imports torch.

The lean path (`llama.py`, `tokens.py`) serves what it covers on a CPU; everything else is loaded by transformers, in
`hf_model.py`, which takes seconds to import and is not imported before it is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from . import engine_choice
from .calibration import Calibration, counts, key, known
from .cores import usable_cores
from .device import CPU_POSITIONS, choose, fast_dtype, missing
from .encoder import Encoder, UnfitEncoderError
from .frames import Load
from .gguf_blocks import FILE as BLOCKS
from .lean_engine import LeanEngine
from .llama import Llama, covers
from .loaded import LoadError, Model, no_template
from .packed import UnfitWeightsError, packs_halves
from .prompt import Prompter
from .tokens import ChatTokenizer, NotCoveredError, read_json

HALVES = ("float16", "bfloat16")


def device_of(wanted: Load) -> str:
    """The device to load on. Raises LoadError for one that is not there."""
    device = choose(wanted.device)
    if reason := missing(device):
        raise LoadError(reason)
    return device


def dtype_of(asked: str, device: str) -> torch.dtype:
    """What torch calls it; "auto" is `device.fast_dtype`. Raises LoadError."""
    if asked != "auto":
        named = getattr(torch, asked, None)
        if not isinstance(named, torch.dtype):
            raise LoadError(
                f'dtype "{asked}" is not one of torch; use "auto", "int4", "float16", "float32" or "bfloat16"'
            )
        return named
    return fast_dtype(device)


def load(wanted: Load) -> Model:
    """Load a folder of safetensors. Raises LoadError; runs no code of the folder and reads no pickle."""
    threads = wanted.threads or usable_cores()
    torch.set_num_threads(threads)
    device = device_of(wanted)
    if wanted.dtype != "int4":
        dtype_of(wanted.dtype, device)
    try:
        if wanted.engine in engine_choice.ENGINES or _others_are_faster(wanted, device):
            raise NotCoveredError(f"the engine {wanted.engine} computes what transformers loads")
        return load_lean(wanted, device, threads)
    except NotCoveredError as fault:
        if wanted.dtype == "int4":
            raise LoadError(f'the model {wanted.name} cannot be loaded as "int4": {fault}; use "auto"') from None
    except LoadError:
        raise
    except Exception as fault:  # a broken folder, say; transformers words most of what can be wrong better
        print(f"the lean path cannot load it ({type(fault).__name__})", file=sys.stderr)
    from .hf_model import load_by_transformers

    return load_by_transformers(wanted, device, threads)


def _others_are_faster(wanted: Load, device: str) -> bool:
    """Whether one of transformers' engines was found to be faster on this CPU."""
    if device != "cpu" or not wanted.calibrated or wanted.dtype == "int4":
        return False
    file = Path(wanted.calibrated).with_name(engine_choice.FILE)
    return engine_choice.known(file, engine_choice.key(wanted.name, wanted.dtype, device)) in engine_choice.ENGINES


def load_lean(wanted: Load, device: str, threads: int) -> Model:
    """Without transformers. Raises NotCoveredError for what needs it."""
    folder = Path(wanted.path)
    config = read_json(folder / "config.json")
    if device != "cpu":
        raise NotCoveredError(f"packed weights are for a CPU, not for {device}")
    if reason := covers(config):
        raise NotCoveredError(reason)
    tokenizer = ChatTokenizer(folder)
    if not tokenizer.chat_template:
        raise LoadError(no_template(wanted.name))
    files = sorted(folder.glob("*.safetensors"))
    context_length = int(config.get("max_position_embeddings") or 2048)
    kv_tokens = wanted.kv_tokens or CPU_POSITIONS
    positions = min(context_length, kv_tokens)

    def made(form: str, beside: Llama | None = None) -> Llama:
        # Twice: what is only read to be packed goes out of memory with the first, what is read again stays mapped.
        return Llama(config, opened(files), form=form, positions=positions, kept=opened(files), beside=beside)

    def drafting() -> Llama:
        drafter = made("int4", beside=model)
        give_back_memory()
        return drafter

    blocks = (folder / BLOCKS).is_file()
    form = _form(wanted.dtype, blocks=blocks, halves=config.get("dtype", config.get("torch_dtype")) in HALVES)
    try:
        model = made(form)
    except UnfitWeightsError as fault:
        if wanted.dtype != "auto":
            raise LoadError(f'the model {wanted.name} cannot be loaded as "{form}": {fault}; use "auto"') from None
        form = "float32"
        model = made(form)
    give_back_memory()
    keep_pieces()
    dtype = form
    trials = None
    if not wanted.threads and wanted.calibrated:
        file, of = Path(wanted.calibrated), key(wanted.name, dtype, torch.__version__, threads)
        found = known(file, of)
        if found is None:
            trials = Calibration(file, of, counts(threads), torch.set_num_threads, model.trial)
        else:
            threads = found
            torch.set_num_threads(threads)
    defaults = read_json(folder / "generation_config.json")
    ends = defaults.get("eos_token_id", config.get("eos_token_id"))
    closing = set(ends) if isinstance(ends, list) else {ends} if isinstance(ends, int) else set()
    if tokenizer.eos_token_id is not None:
        closing.add(tokenizer.eos_token_id)
    sampled = bool(defaults.get("do_sample"))
    return Model(
        name=wanted.name,
        engine=LeanEngine(
            model,
            kv_tokens=kv_tokens,
            drafter=drafting if blocks and form in ("packed", "float16") else None,
            ends=frozenset(closing),
            prompt_threads=0 if wanted.threads else usable_cores(),
        ),
        prompter=Prompter(tokenizer, wanted.name, positions, template_s=wanted.template_s),
        decode=tokenizer.decode,
        ends=frozenset(closing),
        temperature=float(defaults.get("temperature") or 1.0) if sampled else 0.0,
        top_p=float(defaults.get("top_p") or 1.0) if sampled else 1.0,
        dtype=dtype,
        device=device,
        threads=threads,
        calibration=trials,
    )


def _form(asked: str, *, blocks: bool, halves: bool) -> str:
    """How the lean path holds the weights; see `llama.Llama`. halves: they are stored in 16 bits."""
    if asked == "float16" and not packs_halves():
        raise LoadError('dtype "float16" has no kernel on this processor; use "auto", "float32" or "bfloat16"')
    if asked != "auto":
        return asked
    fast = str(dtype_of("auto", "cpu")).removeprefix("torch.")
    if not packs_halves():  # no FBGEMM, whose kernels unpack blocks, too
        return fast
    if blocks:
        return "packed"
    return "float16" if halves and fast == "float32" else fast  # fp32's answers, for half of its memory


def load_encoder(wanted: Load) -> Encoder:
    """Load a sentence encoder. Raises LoadError."""
    torch.set_num_threads(wanted.threads or usable_cores())
    folder = Path(wanted.path)
    try:
        return Encoder(folder, opened(sorted(folder.glob("*.safetensors"))))
    except UnfitEncoderError as fault:
        raise LoadError(f"the model {wanted.name} cannot embed texts: {fault}") from None
    except Exception as fault:  # the libraries raise what they like for a broken folder
        raise LoadError(f"the encoder {wanted.name} cannot be loaded ({type(fault).__name__})") from fault


def keep_pieces() -> None:
    """Have glibc keep blocks of up to 32 MB that are freed: what is unpacked for each product comes and goes there.

    By default it asks the system for such blocks again and again, and each page of them is then cleared first.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(m_mmap_threshold, 32 << 20)
        library.mallopt(m_trim_threshold, 32 << 20)


def give_back_memory() -> None:
    """Return what loading has freed to the system: with glibc, 180 of 640 MB stay behind between what is in use."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def opened(files: list[Path]) -> Callable[[str], Tensor]:
    """The tensors of some safetensors files, read when asked for. Raises KeyError for a name that none has."""
    handles: list[Any] = [safe_open(str(file), framework="pt") for file in files]
    where = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 - it is no mapping

    def get(name: str) -> Tensor:
        tensor: Tensor = where[name].get_tensor(name)
        return tensor

    return get
