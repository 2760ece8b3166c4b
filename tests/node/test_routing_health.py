"""What is remembered of failures, and how a route and a Cache-Control header are written."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.routing.ask import CacheControl
from shoal.node.routing.attempt import MAX_ROUTE_CHARS, Attempt, header_safe, route_header
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.health import Health
from shoal.providers.base import ErrorKind, ProviderError

from .fakes_router import OTHER, Scripted, says

ONE = Candidate(provider=Scripted("a", says("x")), name="a", model="m1")
LIMITED = ProviderError(ErrorKind.RATE_LIMITED, "slow down", retry_after=10)


def test_a_rate_limited_candidate_is_left_alone_for_as_long_as_it_asked() -> None:
    health = Health()
    health.failed(ONE, LIMITED, now=100)
    assert health.blocked(ONE, now=109.9) is not None
    assert health.blocked(ONE, now=110) is None


def test_another_model_of_the_same_provider_is_not_held_back() -> None:
    health = Health()
    health.failed(ONE, LIMITED, now=100)
    assert health.blocked(Candidate(provider=ONE.provider, name="a", model="m2"), now=101) is None


def test_an_answer_clears_the_block() -> None:
    health = Health()
    health.failed(ONE, LIMITED, now=100)
    health.answered(ONE)
    assert health.blocked(ONE, now=101) is None


def test_what_is_remembered_is_bounded() -> None:
    health = Health(max_entries=10)
    for i in range(100):
        health.failed(Candidate(provider=ONE.provider, name=f"n{i}"), LIMITED, now=float(i))
    assert len(health._pauses) <= 10
    assert len(health.failures) <= 10


def test_a_route_is_one_short_line() -> None:
    route = [
        Attempt(provider="openrouter", outcome="rate_limited", ms=12.4, reason="its limit, is reached"),
        Attempt(provider="peer:abc123", outcome="ok", first_token_ms=80.0),
    ]
    assert route_header(route) == "openrouter;rate_limited;12, peer:abc123;ok;80"


@given(st.lists(st.text(max_size=300), max_size=50))
def test_a_route_is_safe_in_a_header_whatever_the_names(names: list[str]) -> None:
    text = route_header([Attempt(provider=name, outcome="ok", model=name) for name in names])
    assert len(text) <= MAX_ROUTE_CHARS
    assert text.isascii()
    assert text.isprintable()


@given(st.text())
def test_a_name_in_a_header_has_no_separators(name: str) -> None:
    assert not set(header_safe(name)) & set("\r\n\0;, \"'")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, CacheControl()),
        ("", CacheControl()),
        ("no-cache", CacheControl(no_cache=True)),
        ("No-Store, max-age=60", CacheControl(no_store=True, max_age=60)),
        ('max-age="5"', CacheControl(max_age=5)),
        ("max-age=-1", CacheControl(max_age=0)),
        ("max-age=soon", CacheControl(max_age=0)),
        ("only-if-cached, private", CacheControl(only_if_cached=True)),
    ],
)
def test_cache_control_is_read_as_rfc_9111_writes_it(header: str | None, expected: CacheControl) -> None:
    assert CacheControl.parse(header) == expected


@given(st.text())
def test_no_cache_control_header_is_an_error(header: str) -> None:
    CacheControl.parse(header)


def test_a_peer_that_was_lost_and_has_come_back_is_asked_at_once() -> None:
    health, was = Health(), Candidate(provider=Scripted("p", says("x")), name="peer:x", peer=OTHER.peer_id, since=0.0)
    for now in (1.0, 1.1, 1.2):
        health.failed(was, ProviderError(ErrorKind.INTERRUPTED, "lost"), now)
    assert health.blocked(was, 1.3) is not None
    back = msgspec.structs.replace(was, since=1.25)
    assert health.blocked(back, 1.3) is None
    assert health.blocked(back, 1.3) is None, "everybody may, not only a probe"
    for now in (1.4, 1.5, 1.6):
        health.failed(back, ProviderError(ErrorKind.CONNECTION, "lost again"), now)
    assert health.blocked(back, 1.7) is not None


def test_a_new_connection_does_not_put_right_what_the_peer_itself_has_said() -> None:
    health, was = Health(), Candidate(provider=Scripted("p", says("x")), name="peer:x", peer=OTHER.peer_id, since=0.0)
    for now in (1.0, 1.1, 1.2):
        health.failed(was, ProviderError(ErrorKind.UPSTREAM, "no sense"), now)
    assert health.blocked(msgspec.structs.replace(was, since=1.25), 1.3) is not None
