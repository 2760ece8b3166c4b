"""A model's chat template, run as transformers runs it: in the sandbox of jinja, which is all that is imported.

A template is a program of whoever made the model. The sandbox keeps it from Python; that it takes neither time nor
memory without end is bounds.py's and this file's: an operation that jumps from small to huge in one step, where no
signal comes through, is refused (`_Sandbox`).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox

from .bounds import OutOfBoundsError, bounded


class NotCoveredError(Exception):
    """This folder's tokenizer needs transformers; the message says why."""


class AddedToken(NamedTuple):
    content: str
    special: bool


MOST_ITEMS = 1_000_000
"""Characters or entries that one operation may make, and the largest number that it may multiply or raise."""


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """With a look at what is multiplied; such operators are not computed when the template is read, either."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _size(left) * _size(right) > MOST_ITEMS:
            raise jinja2.exceptions.SecurityError("a template makes nothing so large in one step")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> float:
    """How much an operand brings to a product."""
    if isinstance(value, int | float):
        return abs(value)
    return len(value) if hasattr(value, "__len__") else 1


def compiled(template: str) -> jinja2.Template:
    """The template, ready to render. Raises NotCoveredError."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols],
        autoescape=False,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        with bounded():
            return environment.from_string(template)
    except jinja2.TemplateSyntaxError:
        raise NotCoveredError("its chat template uses more than jinja") from None
    except (OutOfBoundsError, MemoryError, RecursionError) as fault:
        raise NotCoveredError(f"its chat template cannot be read ({type(fault).__name__})") from None


def _tojson(value: Any, **options: Any) -> str:
    """Unlike jinja's own, it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=False, **options)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _now(form: str) -> str:
    import datetime

    return datetime.datetime.now().astimezone().strftime(form)
