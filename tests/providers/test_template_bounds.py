"""Chat templates come with a model, and are programs: what they may not do, and how long and how large they may be."""

from __future__ import annotations

import gc
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from shoal.providers.base import ErrorKind, GenerateRequest
from shoal.providers.hf_worker.bounds import OutOfBoundsError, bounded
from shoal.providers.hf_worker.chat_template import NotCoveredError, compiled
from shoal.providers.hf_worker.prompt import Prompter, PromptRefused

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


class Tokens:
    """As much of a tokenizer as a prompt needs: one token for each character."""

    def __init__(self, template: str) -> None:
        self.added_tokens_decoder: dict[int, Any] = {}
        self.all_special_tokens: list[str] = []
        self._template = compiled(template)

    def get_vocab(self) -> dict[str, int]:
        return {"x" * 1000: 0}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [1] * len(text)

    def apply_chat_template(self, turns: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        return self._template.render(messages=turns)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """hypothesis has its callback in the collector, which fails where a template has used up the depth of calls."""
    gc.disable()
    yield
    gc.enable()


def refused(template: str) -> PromptRefused:
    began, most = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PromptRefused) as caught:
        Prompter(Tokens(template), "odd", 1000, template_s=0.2).prompt(GenerateRequest.of("a secret question"))
    assert time.monotonic() - began < 5
    assert "secret" not in caught.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 600_000  # kilobytes
    return caught.value


@pytest.mark.parametrize(
    "template",
    [
        LOOP,
        '{% set n = namespace(x="aaaaaaaa") %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}',
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        '{{ "a"|center(10000000000) }}',
        '{{ "{:>10000000000}".format(1) }}',
        '{{ "%10000000000d" % messages|length }}',
        "{{ messages|tojson(indent=10000000000) }}",
    ],
)
def test_one_that_takes_too_long_or_too_much_is_ended_with_the_name_of_its_bound(template: str) -> None:
    error = refused(template)
    assert error.kind is ErrorKind.UPSTREAM
    assert "template_s" in error.message


@pytest.mark.parametrize(
    "template",
    [
        '{{ "a" * 10**11 }}',
        "{{ 10 ** 10 ** 9 }}",
        "{% set n = namespace(x=7) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        '{% include "/etc/passwd" %}',
    ],
)
def test_one_that_leaves_its_sandbox_or_jumps_to_something_huge_is_refused(template: str) -> None:
    assert "chat template of odd" in refused(template).message


def test_one_that_cannot_even_be_read_is_not_covered() -> None:
    with pytest.raises(NotCoveredError, match="RecursionError"):
        compiled("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}")


def test_afterwards_everything_is_as_it_was() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(OutOfBoundsError), bounded(0.05):
        compiled(LOOP).render()
    with pytest.raises(MemoryError), bounded(5, 1 << 20):
        bytearray(1 << 28)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    bytearray(1 << 26)
    prompter = Prompter(Tokens("{% for m in messages %}{{ m.content * 2 }}{% endfor %}"), "fine", 1000)
    assert len(prompter.prompt(GenerateRequest.of("four")).messages) == 8


def test_a_bound_within_a_bound_leaves_the_outer_one_in_force() -> None:
    def inner_ends() -> None:
        with bounded(60):
            pass
        spin()

    def spin() -> None:
        while True:
            assert time.monotonic() - began < 5

    began = time.monotonic()
    with pytest.raises(OutOfBoundsError), bounded(0.1):
        inner_ends()
    with pytest.raises(OutOfBoundsError), bounded(0.1), bounded(60):
        spin()


def test_a_thread_is_bounded_in_memory() -> None:
    met = []

    def work() -> None:
        try:
            with bounded(0.01, 1 << 20):
                time.sleep(0.05)
                bytearray(1 << 28)
        except MemoryError:
            met.append("memory")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert met == ["memory"]
