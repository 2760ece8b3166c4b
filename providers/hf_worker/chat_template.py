"""A model's chat template, run as transformers runs it: in the sandbox of jinja, which is all that is imported."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox


class NotCoveredError(Exception):
    """This folder's tokenizer needs transformers; the message says why."""


class AddedToken(NamedTuple):
    content: str
    special: bool


def compiled(template: str) -> jinja2.Template:
    """The template, ready to render. Raises NotCoveredError."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols],
        autoescape=False,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError:
        raise NotCoveredError("its chat template uses more than jinja") from None


def _tojson(value: Any, **options: Any) -> str:
    """Unlike jinja's own, it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=False, **options)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _now(form: str) -> str:
    import datetime

    return datetime.datetime.now().astimezone().strftime(form)
