"""A model that is loaded, as the server needs it, whoever computes it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration
    from .engine import Engine
    from .prompt import Prompter


class LoadError(Exception):
    """The model cannot be loaded; the message is one sentence for the owner of the node."""


def torch_sampler(temperature: float, top_p: float, seed: int | None, drawn: int) -> Any:
    """A `sampling.Sampler`; see there."""
    from .sampling import Sampler

    return Sampler(temperature, top_p, seed, drawn)


@dataclass(frozen=True)
class Model:
    """What the server needs of a loaded model.

    decode: text of tokens, without control tokens. ends: tokens that end an answer.
    temperature, top_p: the model's own defaults, for requests that leave them open.
    sampler: (temperature, top_p, seed, tokens drawn before) -> what picks the tokens of one request.
    calibration: trials of threads for when there is nothing to do; None when there are none.
    computes: the engine's name, where there was a choice.
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
    sampler: Callable[[float, float, int | None, int], Any] = torch_sampler
    calibration: Calibration | None = None
    computes: str = ""


def no_template(name: str) -> str:
    return f"the model {name} has no chat template; choose one that was made for conversation"
