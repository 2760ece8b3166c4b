"""What becomes of options that a provider cannot honour: dropped and told, or refused, as the owner says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.providers import options
from shoal.providers.base import ErrorKind, GenerateRequest, ProviderError

ASK = GenerateRequest.of("hello", temperature=0.5, seed=7, stop=("\n",), extra={"top_k": 5, "user": "me"})


def test_the_options_of_a_request_are_those_that_it_sets_and_that_matter() -> None:
    assert options.asked(ASK) == {"temperature", "seed", "stop", "top_k"}
    assert options.asked(GenerateRequest.of("hello", response_format={"type": "text"})) == set()
    assert options.asked(GenerateRequest.of("hello", response_format={"type": "json_object"})) == {"response_format"}


def test_what_is_dropped_is_gone_from_the_request_and_named_in_order() -> None:
    request, dropped = options.settle(ASK, {"stop"}, "drop", "desk")
    assert dropped == ("seed", "temperature", "top_k")
    assert (request.temperature, request.seed, request.stop, request.extra) == (None, None, ("\n",), {"user": "me"})


def test_the_rule_to_refuse_leaves_the_request_to_another_provider_and_says_how_to_change_that() -> None:
    with pytest.raises(ProviderError) as caught:
        options.settle(ASK, {"stop", "temperature"}, "refuse", "desk")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.message == (
        "desk cannot honour seed, top_k; leave them out, ask another provider, or set unsupported = "
        '"drop" in [providers.desk]'
    )


def test_a_name_that_may_be_anything_is_not_repeated() -> None:
    ask = GenerateRequest.of("hello", extra={"a secret <of mine>": 1})
    with pytest.raises(ProviderError) as caught:
        options.dropped(ask, set(), "refuse", "desk")
    assert "secret" not in caught.value.message


@given(
    honours=st.frozensets(st.sampled_from(["temperature", "seed", "stop", "top_k", "max_tokens"])),
    temperature=st.none() | st.floats(0, 2),
    seed=st.none() | st.integers(),
    extra=st.dictionaries(st.sampled_from(["top_k", "min_p", "user"]), st.integers()),
)
def test_what_remains_is_honoured_and_nothing_goes_unsaid(
    honours: frozenset[str], temperature: float | None, seed: int | None, extra: dict[str, int]
) -> None:
    ask = GenerateRequest.of("hello", temperature=temperature, seed=seed, extra=extra)
    request, dropped = options.settle(ask, honours, "drop", "desk")
    assert options.asked(request) <= honours
    assert options.asked(request) | set(dropped) == options.asked(ask)
    lacks = options.asked(ask) - honours
    assert options.settle_lacking(ask, lacks, "drop", "desk") == (request, dropped)
