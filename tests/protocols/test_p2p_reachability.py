"""What a node concludes of its reachability, and how two nodes that know theirs get to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.protocols.p2p.reachability import (
    MAX_ADDRESSES,
    Facts,
    Nat,
    Observation,
    Reach,
    conclude,
    may_initiate,
    plan,
    scope_of,
    verdict,
    worth_dialling,
)
from shoal.protocols.peer_id import PeerId

ME, RELAY, RELAY2 = "11.22.33.1", "11.22.33.10", "11.22.33.20"
REACHES: tuple[Reach, ...] = ("unknown", "public", "private")
NATS: tuple[Nat, ...] = ("unknown", "none", "keeps-ports", "changes-ports")
facts = st.builds(Facts, reach=st.sampled_from(REACHES), nat=st.sampled_from(NATS))
some_ips = st.sampled_from(
    [
        "11.22.33.2",
        "8.8.4.4",
        "10.2.0.2",
        "192.168.1.7",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "169.254.1.1",
        "::1",
        "::ffff:10.2.0.2",
        "x",
    ]
)


def seen(
    seat: str = RELAY, *, ip: str = ME, port: int = 40000, local: int = 40000, dialled: bool | None = None
) -> Observation:
    observer = PeerId(f"12D3KooW{seat}")
    return Observation(observer=observer, seat=seat, ip=ip, port=port, local_port=local, dialled_back=dialled)


# -- the table of the lab's kinds of NAT -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "port", "dialled", "nat", "reach"),
    [
        ("cone", 40000, False, "keeps-ports", "private"),
        ("open or full", 40000, True, "keeps-ports", "public"),
        ("sym", 51234, False, "changes-ports", "private"),
        ("sym with a forwarded port", 51234, True, "changes-ports", "public"),
    ],
)
def test_each_kind_of_nat_is_told_by_what_one_observer_sees(
    kind: str, port: int, dialled: bool, nat: str, reach: str
) -> None:
    found = conclude([seen(port=port, dialled=dialled)], machine={"10.1.0.2"})
    assert (found.nat, found.reach, found.scope) == (nat, reach, "internet"), kind


def test_a_machine_with_a_public_address_has_no_nat() -> None:
    assert conclude([seen(dialled=True)], machine={ME}).nat == "none"


def test_a_firewall_before_a_public_address_is_no_nat_and_yet_private() -> None:
    found = conclude([seen(dialled=False)], machine={ME})
    assert (found.nat, found.reach) == ("none", "private")


def test_nothing_is_known_before_anybody_was_asked() -> None:
    assert conclude([]) == Facts()


def test_a_connection_that_the_observer_dialled_says_nothing_about_ports() -> None:
    assert conclude([seen(local=0)]).nat == "unknown"
    assert conclude([seen(local=0)], machine={ME}).nat == "none", "but the address does"


def test_what_neighbours_say_does_not_count_as_soon_as_somebody_beyond_was_asked() -> None:
    neighbour = seen("192.168.1.9", ip="192.168.1.7", dialled=True)
    assert conclude([neighbour]).scope == "network"
    assert conclude([neighbour]).reach == "public"
    both = conclude([neighbour, seen(dialled=False)])
    assert (both.scope, both.reach, both.ips) == ("internet", "private", (ME,))


def test_peers_at_one_address_have_one_voice() -> None:
    liars = [seen(RELAY, dialled=True) for _ in range(5)]
    assert conclude([*liars, seen(RELAY2, dialled=False)]).reach == "unknown"


def test_two_that_disagree_give_no_verdict_and_a_third_decides() -> None:
    two = [seen(RELAY, dialled=True), seen(RELAY2, dialled=False)]
    assert conclude(two).reach == "unknown"
    assert conclude([*two, seen("11.22.33.30", dialled=False)]).reach == "private"


def test_one_voice_is_enough_only_while_there_is_no_other() -> None:
    assert conclude([seen(RELAY, dialled=False), seen(RELAY2)]).reach == "private", "the other cannot say"
    assert conclude([seen(RELAY, dialled=False), seen(RELAY2, dialled=True)]).reach == "unknown"


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
def test_a_verdict_needs_a_majority_and_enough_voices(yes: int, no: int, wanted: int) -> None:
    found = verdict(yes, no, wanted)
    assert (found == "unknown") == (yes == no or max(yes, no) < wanted)
    assert (found == "public") == (yes > no and yes >= wanted)
    mirror = {"public": "private", "private": "public", "unknown": "unknown"}
    assert verdict(no, yes, wanted) == mirror[found]


@given(
    st.permutations([seen(RELAY, dialled=True), seen(RELAY2, port=1, dialled=False), seen("11.22.33.30", ip="8.8.4.4")])
)
def test_the_order_of_the_answers_does_not_matter(order: list[Observation]) -> None:
    found = conclude(order)
    assert (found.reach, found.nat, found.yes, found.no) == ("unknown", "keeps-ports", 1, 1)
    assert found.ips[0] == ME


# -- two nodes ---------------------------------------------------------------------------------------------------------


@given(facts, facts)
def test_both_sides_come_to_the_same_plan(mine: Facts, theirs: Facts) -> None:
    swapped = {"initiator-dials": "receiver-dials", "receiver-dials": "initiator-dials"}
    there, back = plan(mine, theirs), plan(theirs, mine)
    if mine.reach == theirs.reach == "public":
        assert there == back == "initiator-dials"
    else:
        assert back == swapped.get(there, there)


@given(facts, facts)
def test_nobody_punches_where_a_port_cannot_be_foretold_and_somebody_reachable_is_always_dialled(
    mine: Facts, theirs: Facts
) -> None:
    found = plan(mine, theirs)
    reachable = "public" in (mine.reach, theirs.reach)
    changing = "changes-ports" in (mine.nat, theirs.nat)
    assert (found == "punch") == (not reachable and not changing)
    assert (found == "none") == (not reachable and changing)


@given(facts, facts)
def test_wherever_a_direct_connection_is_possible_one_side_begins(mine: Facts, theirs: Facts) -> None:
    if plan(mine, theirs) != "none":
        assert may_initiate(mine) or may_initiate(theirs)
    if not (may_initiate(mine) or may_initiate(theirs)):
        assert plan(mine, theirs) == "none"


@given(
    st.lists(st.tuples(some_ips, st.integers(-1, 70_000))),
    st.lists(some_ips, max_size=3),
    st.lists(some_ips, max_size=2),
)
def test_no_peer_makes_this_node_dial_where_a_stranger_would_not_go(
    theirs: list[tuple[str, int]], mine: list[str], machine: list[str]
) -> None:
    chosen = worth_dialling(theirs, mine=mine, machine=machine)
    assert len(chosen) <= MAX_ADDRESSES
    for ip, port in chosen:
        assert (ip, port) in theirs
        assert 0 < port < 65536
        assert ip not in machine
        assert scope_of(ip) in ("internet", "network")
        if scope_of(ip) == "network" and any(scope_of(own) == "internet" for own in mine):
            assert {other for other, _ in theirs} & set(mine), "a private address only behind the same NAT"


def test_private_addresses_are_tried_behind_the_same_nat_and_after_the_public_one() -> None:
    theirs = [("192.168.1.9", 4642), (ME, 4642)]
    assert worth_dialling(theirs, mine=[ME]) == [(ME, 4642), ("192.168.1.9", 4642)]
    assert worth_dialling(theirs, mine=["11.22.33.2"]) == [(ME, 4642)]
