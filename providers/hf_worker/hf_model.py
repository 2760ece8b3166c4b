"""Loading a model folder by transformers: every architecture and device that it knows. Imports it and torch."""

from __future__ import annotations

from typing import Any

import transformers

from .engine import Engine
from .frames import Load
from .loaded import LoadError, Model, no_template
from .model import dtype_of
from .prompt import Prompter
from .slots import SlotEngine, UnfitModelError


def load_by_transformers(wanted: Load, device: str, threads: int) -> Model:
    """Load a folder of safetensors. Raises LoadError; runs no code of the folder and reads no pickle."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = dtype_of(wanted.dtype, device)
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
        raise LoadError(no_template(wanted.name))
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
        prompter=Prompter(tokenizer, wanted.name, context_length, template_s=wanted.template_s),
        decode=decode,
        ends=frozenset(ends),
        temperature=float(defaults.temperature or 1.0) if sampled else 0.0,
        top_p=float(defaults.top_p or 1.0) if sampled else 1.0,
        dtype=dtype,
        device=device,
        threads=threads,
    )
