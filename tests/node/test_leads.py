"""The book of who makes an answer: one leader a key, another only when that one is gone, and bounded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.routing.leads import AGAIN_S, FAR_S, LEAD_S, MAX_LEADS, SAMPLES, Leads, Nearness, owner_of
from shoal.protocols.peer_id import Identity, PeerId

PEERS = [Identity.from_seed(bytes([n]) * 32).peer_id for n in range(1, 8)]
A, B, C = PEERS[:3]
KEY = b"\x01\x71\x12\x20" + bytes(32)


def everybody(peer: PeerId) -> bool:
    return True


def nobody(peer: PeerId) -> bool:
    return False


@given(st.permutations(PEERS), st.binary(min_size=32, max_size=36))
def test_everybody_who_knows_the_same_nodes_names_the_same_owner(peers: Sequence[PeerId], cid: bytes) -> None:
    assert owner_of(cid, peers) == owner_of(cid, PEERS)


@given(st.binary(min_size=32, max_size=36), st.sampled_from(PEERS))
def test_a_node_that_leaves_moves_only_the_keys_that_it_owned(cid: bytes, gone: PeerId) -> None:
    owner = owner_of(cid, PEERS)
    left = owner_of(cid, [peer for peer in PEERS if peer != gone])
    assert left == owner or owner == gone


def test_owners_are_spread_evenly() -> None:
    owned = [owner_of(bytes([n % 256, n // 256]) * 18, PEERS) for n in range(7000)]
    assert all(800 < owned.count(peer) < 1200 for peer in PEERS)


def test_the_first_who_asks_leads_and_the_others_are_told_so() -> None:
    leads = Leads()
    assert [leads.leader(KEY, peer, (), everybody, 0.0) for peer in (B, A, C, B)] == [B, B, B, B]


def test_of_those_who_lost_the_leader_the_first_leads_and_the_others_follow_it() -> None:
    leads = Leads()
    leads.leader(KEY, A, (), everybody, 0.0)
    assert [leads.leader(KEY, peer, (A,), everybody, 1.0) for peer in (C, B, C)] == [C, C, C]


def test_a_leader_that_cannot_be_reached_or_is_long_ago_leads_no_more() -> None:
    leads = Leads()
    leads.leader(KEY, A, (), everybody, 0.0)
    assert leads.leader(KEY, B, (), nobody, 1.0) == B
    assert leads.leader(KEY, C, (), everybody, 2.0 + LEAD_S) == C


def test_the_book_is_bounded() -> None:
    leads = Leads()
    for n in range(MAX_LEADS + 10):
        leads.leader(n.to_bytes(4, "big"), A, (), everybody, 0.0)
    assert len(leads) == MAX_LEADS
    assert leads.leader((0).to_bytes(4, "big"), B, (), everybody, 0.0) == B


def test_who_is_silent_is_left_alone_for_a_moment() -> None:
    near = Nearness(0.05)
    assert near.asked(A, 0.0)
    near.missed(A, 0.0)
    assert near.asked(A, 0.0), "once is nothing"
    near.missed(A, 0.0)
    assert not near.asked(A, AGAIN_S - 0.1)
    assert near.asked(B, 0.0)
    assert near.asked(A, AGAIN_S)
    near.missed(A, AGAIN_S)
    assert not near.asked(A, AGAIN_S)
    near.answered(A, 0.01, AGAIN_S)
    near.missed(A, AGAIN_S)
    assert near.asked(A, AGAIN_S)


@pytest.mark.parametrize(("best", "asked"), [(0.04, True), (0.06, False)])
def test_who_is_always_too_far_away_is_asked_once_a_minute(best: float, asked: bool) -> None:
    near = Nearness(0.05)
    for took in (*[0.2] * (SAMPLES - 1), best):
        near.answered(A, took, 0.0)
    assert near.asked(A, 1.0) is asked
    assert near.asked(A, FAR_S)
