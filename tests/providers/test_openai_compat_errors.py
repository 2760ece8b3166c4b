"""What an upstream's failures mean, and what is repeated of its words."""

from __future__ import annotations

import email.utils
import json

import pytest
from shoal.providers.base import ErrorKind, GenerateRequest
from shoal.providers.openai_errors import from_response, retry_after_of
from shoal.providers.quoting import quotable

NOW = 1_700_000_000.0
KEY = "sk-planted-key-0123456789"
PROMPT = "The secret recipe holds saffron, cardamom and a pinch of salt."
REQUEST = GenerateRequest.of(PROMPT)


def header_of(headers: dict[str, str]):  # type: ignore[no-untyped-def]
    return lambda name: headers.get(name)


def error(status: int, body: object = None, **headers: str):  # type: ignore[no-untyped-def]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_response(status, header_of(names), raw, REQUEST, key=KEY, key_hint="DESK_KEY", now=lambda: NOW)


def said(message: str = "", code: object = None, type: str | None = None, **metadata: object) -> dict[str, object]:  # noqa: A002
    return {"error": {"message": message, "code": code, "type": type, "metadata": metadata or None}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, said("nope"), ErrorKind.BAD_REQUEST),
        (400, said("too long", "context_length_exceeded"), ErrorKind.CONTEXT_LENGTH),
        (
            400,
            said("the request exceeds the available context size", 400, "exceed_context_size_error"),
            ErrorKind.CONTEXT_LENGTH,
        ),
        (
            400,
            {"object": "error", "message": "This model's maximum context length is 4096 tokens."},
            ErrorKind.CONTEXT_LENGTH,
        ),
        (
            422,
            {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096", "error_type": "validation"},
            ErrorKind.CONTEXT_LENGTH,
        ),
        (413, b"", ErrorKind.CONTEXT_LENGTH),
        (400, said("filtered", "content_filter"), ErrorKind.CONTENT_FILTER),
        (403, said("your input requires moderation", 403), ErrorKind.CONTENT_FILTER),
        (400, said("nonesuch is not a valid model ID", 400), ErrorKind.UNAVAILABLE),
        (400, said("The model nonesuch does not exist", "model_not_found"), ErrorKind.UNAVAILABLE),
        (400, said("API key not valid", "invalid_api_key"), ErrorKind.AUTH),
        (401, said("wrong key"), ErrorKind.AUTH),
        (403, said("forbidden"), ErrorKind.AUTH),
        (402, said("no credits", 402, limit_source="openrouter_credits"), ErrorKind.QUOTA),
        (402, said("busy", 402, limit_source="openrouter_in_flight_budget"), ErrorKind.RATE_LIMITED),
        (404, said("no such model", "model_not_found"), ErrorKind.UNAVAILABLE),
        (404, b"<html>", ErrorKind.UNAVAILABLE),
        (405, b"", ErrorKind.UNAVAILABLE),
        (302, b"", ErrorKind.UNAVAILABLE),
        (408, b"", ErrorKind.UPSTREAM),
        (422, {"detail": [{"loc": ["body"], "input": PROMPT}]}, ErrorKind.BAD_REQUEST),
        (429, said("slow down", "rate_limit_exceeded"), ErrorKind.RATE_LIMITED),
        (429, said("pay", "insufficient_quota", "insufficient_quota"), ErrorKind.QUOTA),
        (500, b"", ErrorKind.UPSTREAM),
        (502, b"bad gateway", ErrorKind.UPSTREAM),
        (503, said("Loading model", 503, "unavailable_error"), ErrorKind.OVERLOADED),
        (504, b"", ErrorKind.UPSTREAM),
        (529, b"", ErrorKind.OVERLOADED),
    ],
)
def test_each_failure_has_its_kind(status: int, body: object, kind: ErrorKind) -> None:
    found = error(status, body)
    assert found.kind is kind
    assert found.status == status


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": email.utils.formatdate(NOW + 90, usegmt=True)}, 90),
        ({"retry-after": email.utils.formatdate(NOW - 90, usegmt=True)}, 0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"x-ratelimit-reset": str(int((NOW + 12) * 1000))}, 12),
        ({"x-ratelimit-reset": "60"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_the_time_to_wait_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(header_of(headers), NOW) == seconds


def test_a_rate_limit_carries_the_time_to_wait_and_says_it() -> None:
    found = error(429, said("slow down"), retry_after="30")
    assert found.retry_after == 30
    assert "in 30 s" in found.message


def test_a_refused_key_names_the_variable_and_repeats_nothing() -> None:
    found = error(401, said(f"Incorrect API key provided: {KEY[:8]}****. Find yours at example.org"))
    assert "DESK_KEY" in found.message
    assert KEY[:8] not in str(found)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500])
def test_neither_prompt_nor_key_is_ever_repeated(status: int) -> None:
    for text in (f"invalid: {{'content': '{PROMPT}'}}", f"'...saffron, cardamom and a...' with {KEY}"):
        found = str(error(status, said(text)))
        assert "saffron" not in found
        assert KEY not in found


def test_a_helpful_sentence_is_repeated_on_one_line() -> None:
    assert "temperature must be\n at most 2" not in str(error(400, said("temperature must be\n at most 2")))
    assert "temperature must be at most 2" in str(error(400, said("temperature must be\n at most 2")))


def test_quotes_are_cut_and_cleaned() -> None:
    assert len(quotable("x" * 5000, private=())) == 240
    assert quotable("a\x1b[31mred", private=()) == "a[31mred"
    assert quotable("you said: abracadabra", private=("abracadabra",)) == ""
    assert quotable("it does not exist", private=("x", "is")) == "it does not exist"
    assert quotable("the input is 天気は", private=("天気",)) == ""
    assert quotable("fine", private=("", "something quite different")) == "fine"
