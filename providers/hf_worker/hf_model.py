"""Loading a model folder by transformers: every architecture and device that it knows. Imports it and torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from . import engine_choice
from .device import about, free_bytes, positions
from .engine import Engine, UnfitModelError
from .frames import Load
from .graph_engine import CudaGraphs, GraphEngine, memory_shape
from .guard import Guard, out_of_memory
from .loaded import LoadError, Model, no_template
from .model import dtype_of
from .paged_engine import PagedEngine
from .prompt import Prompter
from .proof import Reference, prove, reference
from .sampling import Sampler
from .slots import SlotEngine

FEWEST_POSITIONS = 256
"""Keys and values of so many positions must fit beside a model, or it is refused."""


def load_by_transformers(wanted: Load, device: str, threads: int) -> Model:
    """Load a folder of safetensors. Raises LoadError; runs no code of the folder and reads no pickle."""
    model, tokenizer = loaded(wanted, device)
    if not tokenizer.chat_template:
        raise LoadError(no_template(wanted.name))
    kv_tokens, made = engines_for(model, wanted, device)
    dtype = str(model.dtype).removeprefix("torch.")
    name = wanted.engine if wanted.engine in made else _chosen(model, wanted, device, made)
    others = [] if wanted.engine in made else [each for each in reversed(engine_choice.ENGINES) if each != name]
    engine: Engine | None = None
    why = ""
    expected = reference(model) if others or name != "slots" else []
    for each in (name, *others):
        try:
            guard = Guard(made[each], kv_tokens=kv_tokens, device=device)
            if each != "slots":
                proven(guard, expected)
            engine, name = guard, each
            break
        except UnfitModelError as fault:
            why = why or str(fault)
        except Exception as fault:
            if not out_of_memory(fault):
                raise
            why = why or f"there is no memory for its engine on {device}; a smaller kv_tokens needs less"
    if engine is None:
        raise LoadError(f"the model {wanted.name} cannot be served: {why}")
    return _describe(wanted, model, tokenizer, engine, dtype, device, threads, name, kv_tokens)


def loaded(wanted: Load, device: str) -> tuple[Any, Any]:
    """A model on its device, and its tokenizer. Raises LoadError."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = dtype_of(wanted.dtype, device)
    size = sum(file.stat().st_size for file in Path(wanted.path).glob("*.safetensors"))
    free = free_bytes(device)
    if free is not None and dtype.itemsize <= 2 and size > 4 * free:  # it would be no smaller than a quarter there
        raise LoadError(_too_large(wanted.name, size, device, free))
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    what = "tokenizer of the model"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(wanted.path, **safe)
        what = "model"
        model = transformers.AutoModelForCausalLM.from_pretrained(
            wanted.path, use_safetensors=True, dtype=dtype, **safe
        )
        size = sum(each.nbytes for each in model.parameters())
        if free is not None and size > free:
            raise LoadError(_too_large(wanted.name, size, device, free))
        return model.to(device).eval(), tokenizer
    except LoadError:
        raise
    except Exception as fault:  # the libraries raise what they like for a broken folder
        if out_of_memory(fault):
            raise LoadError(_too_large(wanted.name, size, device, free_bytes(device))) from None
        why = str(fault).strip().splitlines()[0][:200] if str(fault).strip() else ""
        raise LoadError(f"the {what} {wanted.name} cannot be loaded ({type(fault).__name__}: {why})") from fault


def engines_for(model: Any, wanted: Load, device: str) -> tuple[int, dict[str, Callable[[int], Engine]]]:
    """Positions that there is memory for, and what makes each engine for so many. Raises LoadError without room."""
    config = model.config.get_text_config(decoder=True)
    longest = int(getattr(config, "max_position_embeddings", 0) or 2048)
    try:
        layers, heads, width = memory_shape(config)
    except (AttributeError, TypeError):  # no attention, say; the engines word it better
        layers = heads = width = 0
    each = 2 * layers * heads * width * model.dtype.itemsize
    free = free_bytes(device)
    kv_tokens = positions(wanted.kv_tokens, free, each, longest)
    least = max(kv_tokens, FEWEST_POSITIONS)
    if free is not None and each * least > free:
        raise LoadError(
            f"{wanted.name} leaves {free // 10**6} MB of {device} free, and {least} positions of its keys and values"
            f" take {each * least // 10**6} MB; choose a smaller model or a smaller kv_tokens"
        )
    on_cuda = device.startswith("cuda")
    return kv_tokens, {
        "graphs": lambda count: GraphEngine(model, kv_tokens=count, record=CudaGraphs() if on_cuda else None),
        "paged": lambda count: PagedEngine(model, kv_tokens=count),
        "slots": lambda count: SlotEngine(model, kv_tokens=count),
    }


def compared(wanted: Load, device: str) -> dict[str, dict[int, float]]:
    """Engine -> streams -> tokens per second, of all that take the model. Raises LoadError."""
    model, _ = loaded(wanted, device)
    return _compare(model, engines_for(model, wanted, device)[1])


def _compare(model: Any, made: dict[str, Callable[[int], Engine]]) -> dict[str, dict[int, float]]:
    expected = reference(model)

    def trial(make: Callable[[int], Engine]) -> Callable[[], Engine]:
        return lambda: proven(make(engine_choice.TRIAL_POSITIONS), expected)

    return engine_choice.compare({name: trial(make) for name, make in made.items()}, lambda: Sampler(0.0))


def proven(engine: Engine, expected: Reference) -> Engine:
    """The engine, when it computes as the model does. Raises UnfitModelError, and the engine is closed."""
    try:
        prove(engine, expected)
    except BaseException:
        close = getattr(engine, "close", None)
        if close is not None:
            close()
        raise
    return engine


def _chosen(model: Any, wanted: Load, device: str, made: dict[str, Callable[[int], Engine]]) -> str:
    """The fastest engine here, as far as it is known; on a GPU it is found out."""
    if not wanted.calibrated:
        return engine_choice.ON_CPU
    file = Path(wanted.calibrated).with_name(engine_choice.FILE)
    of = engine_choice.key(wanted.name, wanted.dtype, about(device))
    known = engine_choice.known(file, of)
    if known is None and device != "cpu":
        found = _compare(model, made)
        known = engine_choice.best(found)
        engine_choice.write(file, of, found, known)
    return known if known in made else engine_choice.ON_CPU


def _too_large(name: str, size: int, device: str, free: int | None) -> str:
    has = f" and {free // 10**6} MB of {device} are free" if free is not None else f", more than {device} has"
    return (
        f"the model {name} takes about {size // 10**6} MB{has}: close something, choose a smaller model, or set"
        ' device = "cpu"'
    )


def _describe(
    wanted: Load,
    model: Any,
    tokenizer: Any,
    engine: Engine,
    dtype: str,
    device: str,
    threads: int,
    computes: str,
    kv_tokens: int,
) -> Model:
    defaults = model.generation_config
    ends = defaults.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    text_config = model.config.get_text_config(decoder=True)
    context_length = min(int(getattr(text_config, "max_position_embeddings", 0) or 2048), kv_tokens)

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
        computes=computes,
    )
