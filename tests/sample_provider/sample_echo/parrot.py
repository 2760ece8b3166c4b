"""A provider in its simplest form: one synchronous function. It runs in a thread."""

from __future__ import annotations


class Parrot:
    """Says the prompt again."""

    models = ("parrot-1",)

    def generate(self, prompt: str, *, model_name: str | None = None, temperature: float | None = None) -> str:
        if "fall silent" in prompt:
            return ""
        if "fall down" in prompt:
            raise RuntimeError("the parrot fell off its perch")
        return f"{prompt}!"
