"""The parts of the DHT that do no I/O: messages, statements, the table, a search, the store."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.protocols.p2p import kad_message as kad
from shoal.protocols.p2p.errors import ProtocolViolation
from shoal.protocols.p2p.kad_message import Entry, Message, decode, encode, frame
from shoal.protocols.p2p.kad_statement import (
    LOCATE,
    PROVIDE,
    Statement,
    StatementRefused,
    node_key,
    peer_bytes,
    peer_text,
    seal,
    unseal,
)
from shoal.protocols.p2p.kad_store import RecordStore
from shoal.protocols.p2p.kad_table import BUCKET, Search, Table, place_of, place_of_peer
from shoal.protocols.peer_id import Identity, PeerId

NOW = 1_700_000_000.0
KEY = b"\x12\x20" + bytes(32)
ONE = Identity.from_seed(b"\x01" * 32)
TWO = Identity.from_seed(b"\x02" * 32)
ADDRESS = f"/ip4/192.0.2.7/tcp/4642/p2p/{ONE.peer_id}"


def said(identity: Identity = ONE, **changes: object) -> Statement:
    facts = {"swarm": "home", "peer": identity.peer_id, "key": KEY, "created": NOW, "ttl_s": 3600.0}
    return Statement(**(facts | {"addresses": (ADDRESS,)} | changes))  # type: ignore[arg-type]


def believed(sealed: bytes, domain: bytes = PROVIDE, **how: object) -> Statement:
    return unseal(sealed, domain, **({"swarm": "home", "key": KEY, "now": NOW} | how))  # type: ignore[arg-type]


# -- messages --------------------------------------------------------------------------------------------------------

entries = st.builds(
    Entry,
    st.binary(min_size=1, max_size=64),
    st.lists(st.binary(max_size=256), max_size=16).map(tuple),
    st.binary(max_size=2048),
)
messages = st.builds(
    Message,
    st.integers(0, 5),
    st.binary(max_size=80),
    st.none() | st.binary(max_size=2048),
    st.lists(entries, max_size=5).map(tuple),
    st.lists(entries, max_size=5).map(tuple),
)


@given(messages)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Message(0, b"k" * 81)), id="key"),
        pytest.param(encode(Message(0, b"k", b"v" * 2049)), id="value"),
        pytest.param(encode(Message(0, b"k", None, (Entry(b"i" * 65),))), id="peer id"),
        pytest.param(encode(Message(0, b"k", None, (), (Entry(b"i", (), b"s" * 2049),))), id="statement"),
        pytest.param(encode(Message(0, b"k", None, (Entry(b"i"),) * 65)), id="peers"),
        pytest.param(b"\x08\x06", id="kind"),
    ],
)
def test_a_message_beyond_a_bound_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode(data)


def test_a_message_looks_as_the_specification_of_libp2p_says() -> None:
    from libp2p.kad_dht.pb.kademlia_pb2 import Message as Theirs

    theirs = Theirs(type=Theirs.MessageType.GET_PROVIDERS, key=KEY)
    peer = theirs.providerPeers.add()
    peer.id, near = peer_bytes(ONE.peer_id), theirs.closerPeers.add()
    peer.addrs.append(b"\x04\x7f\x00\x00\x01\x06\x12\x22")
    near.id = peer_bytes(TWO.peer_id)
    read = decode(theirs.SerializeToString())
    assert read == Message(
        kad.GET_PROVIDERS, KEY, None, (Entry(near.id),), (Entry(peer.id, (b"\x04\x7f\x00\x00\x01\x06\x12\x22",)),)
    )
    back = Theirs.FromString(encode(read))
    assert (back.type, back.key, back.providerPeers[0].id) == (theirs.type, KEY, peer.id)


def test_the_vectors_of_the_protocol_page() -> None:
    assert frame(Message(kad.PING)).hex() == "0408051200"
    assert frame(Message(kad.GET_PROVIDERS, b"key")).hex() == "0708031203" + b"key".hex()
    sealed = seal(ONE, said())
    assert sealed.hex() == VECTOR
    key = node_key(ONE.peer_id)
    assert key.hex() == b"/shoal/node/".hex() + "002408011220" + ONE.public_key.hex()


VECTOR = (
    "87a5737761726da4686f6d65a470656572d934313244334b6f6f574b3939566f56784e4537587a79427758457a573778684b"
    "37477076383572394633563366794b53554b504835a36b6579c4221220000000000000000000000000000000000000000000"
    "0000000000000000000000a763726561746564cb41d954fc40000000a574746c5f73cb40ac200000000000a9616464726573"
    "73657391d9502f6970342f3139322e302e322e372f7463702f343634322f7032702f313244334b6f6f574b3939566f56784e"
    "4537587a79427758457a573778684b37477076383572394633563366794b53554b504835a17601c9a44646371392a3a0a727"
    "a1441e65c53419cb21461218da9130a9ac5f326566d4c0ad732ab9ce9071fd3bfd0fd97870b00b502e2a88a5167c7164c987"
    "6c6503"
)


# -- statements ------------------------------------------------------------------------------------------------------


def test_a_statement_of_its_signer_is_believed() -> None:
    assert believed(seal(ONE, said()), peer=ONE.peer_id) == said()


@pytest.mark.parametrize(
    ("sealed", "reason"),
    [
        (lambda: seal(TWO, said()), "forged"),
        (lambda: seal(ONE, said(), LOCATE), "forged"),
        (lambda: seal(ONE, said())[:-1] + b"\x00", "forged"),
        (lambda: seal(ONE, said(swarm="elsewhere")), "swarm"),
        (lambda: seal(ONE, said(key=b"another")), "key"),
        (lambda: seal(ONE, said(created=NOW + 61)), "future"),
        (lambda: seal(ONE, said(created=NOW - 3600)), "expired"),
        (lambda: seal(ONE, said(created=NOW - 49 * 3600, ttl_s=1e9)), "expired"),
        (lambda: seal(ONE, said(created=NOW - 61, ttl_s=0.0)), "expired"),
        (lambda: seal(ONE, said(v=2)), "malformed"),
        (lambda: seal(ONE, said(addresses=("/ip4",) * 9)), "malformed"),
        (lambda: seal(ONE, said(created=float("nan"))), "future"),
        (lambda: b"", "malformed"),
        (lambda: b"\xc1" * 100, "malformed"),
        (lambda: seal(ONE, said()) + b"x" * 2048, "oversized"),
    ],
)
def test_a_statement_that_does_not_hold_is_refused_with_the_reason(sealed: object, reason: str) -> None:
    with pytest.raises(StatementRefused) as refused:
        believed(sealed())  # type: ignore[operator]
    assert refused.value.reason == reason


def test_a_node_cannot_bring_the_statement_of_another() -> None:
    with pytest.raises(StatementRefused, match="another node than the one that brings it"):
        believed(seal(ONE, said()), peer=TWO.peer_id)


def test_a_node_record_stands_under_its_own_nodes_key_alone() -> None:
    mine, others = node_key(ONE.peer_id), node_key(TWO.peer_id)
    assert believed(seal(ONE, said(key=mine), LOCATE), LOCATE, key=mine).addresses == (ADDRESS,)
    with pytest.raises(StatementRefused, match="another node's key"):
        believed(seal(ONE, said(key=others), LOCATE), LOCATE, key=others)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_statement_or_refused(data: bytes) -> None:
    with pytest.raises(StatementRefused):
        believed(data)


# -- the table and a search ------------------------------------------------------------------------------------------


def peers(count: int, rng: random.Random) -> list[PeerId]:
    return [peer_text(bytes.fromhex("002408011220") + rng.randbytes(32)) for _ in range(count)]


def test_a_full_bucket_keeps_those_that_have_been_there_longer() -> None:
    rng = random.Random(1)
    me, *others = peers(400, rng)
    table = Table(me)
    taken = [peer for peer in others if table.add(peer, ("/a",))]
    assert len(taken) == len(table) < 400
    far = [peer for peer in taken if (place_of_peer(peer) ^ place_of_peer(me)).bit_length() == 256]
    assert len(far) == BUCKET
    assert not table.add(me)
    table.remove(far[0])
    assert table.add(next(p for p in others if p not in table and (place_of_peer(p) ^ place_of_peer(me)) >> 255))


def test_a_search_ends_at_the_peers_that_are_really_nearest() -> None:
    """2,000 nodes that know what Kademlia lets them know: the search finds the 8 nearest with few questions."""
    rng = random.Random(2)
    everyone = peers(2000, rng)
    tables = {}
    for me in everyone:
        tables[me] = Table(me)
        for other in rng.sample(everyone, 300):
            tables[me].add(other, ("/a",))
    by_place = sorted(everyone, key=place_of_peer)
    for number, me in enumerate(by_place):  # a node's own neighbourhood is what its refresh fills
        for other in by_place[max(0, number - 20) : number + 21]:
            tables[me].add(other, ("/a",))
    asked = []
    for number in range(10):
        place = place_of(b"key %d" % number)
        me = rng.choice(everyone)
        search = Search(place, tables[me].closest(place, BUCKET), me=me)
        questions = 0
        while not search.over:
            for peer in search.next():
                questions += 1
                search.heard(peer, tables[peer].closest(place, 12))
        nearest = sorted((p for p in everyone if p != me), key=lambda p: place_of_peer(p) ^ place)
        assert search.closest[:8] == nearest[:8]
        asked.append(questions)
    assert max(asked) < 60


def test_peers_that_do_not_answer_are_replaced_by_the_next_nearest() -> None:
    rng = random.Random(3)
    me, *others = peers(30, rng)
    search = Search(0, others, me=me, width=5)
    dead = set(sorted(others, key=place_of_peer)[:5])
    while not search.over:
        for peer in search.next():
            if peer in dead:
                search.lost(peer)
            else:
                search.heard(peer, ())
    assert search.closest == sorted(set(others) - dead, key=place_of_peer)[:5]


def test_a_peer_that_names_thousands_cannot_make_a_search_grow() -> None:
    rng = random.Random(4)
    me, first, *invented = peers(3000, rng)
    search = Search(0, [first], me=me)
    search.next()
    search.heard(first, invented)
    assert len(search._known) <= 256 + 1  # and the one that was asked


# -- the store -------------------------------------------------------------------------------------------------------


def a_store(**bounds: int) -> RecordStore:
    return RecordStore(**({"records": 100, "per_peer": 50, "per_key": 4} | bounds))


def test_a_newer_statement_takes_the_place_of_the_older_and_never_the_reverse() -> None:
    store = a_store()
    old, new = said(), said(created=NOW + 1, addresses=())
    assert store.put(old, b"old", NOW)
    assert store.put(new, b"new", NOW)
    assert not store.put(old, b"old", NOW)
    assert [held.sealed for held in store.get(KEY, NOW)] == [b"new"]
    assert (len(store), store.refused["stale"]) == (1, 1)


def test_what_is_taken_back_is_gone_and_what_expires_too() -> None:
    store = a_store()
    store.put(said(), b"one", NOW)
    store.put(said(TWO), b"two", NOW)
    assert store.put(said(created=NOW + 1, ttl_s=0.0), b"back", NOW)
    assert [held.sealed for held in store.get(KEY, NOW)] == [b"two"]
    assert store.get(KEY, NOW + 3600) == []
    store.sweep(NOW + 3600)
    assert (len(store), store.keys) == (0, 0)


def test_one_node_cannot_fill_the_store_nor_one_key() -> None:
    store = a_store(per_peer=3, per_key=2)
    rng = random.Random(5)
    assert [store.put(said(key=b"%d" % n), b"s", NOW) for n in range(5)] == [True, True, True, False, False]
    crowd = peers(3, rng)
    assert [store.put(said(peer=peer, key=b"x"), b"s", NOW) for peer in crowd] == [True, True, False]
    assert store.refused == {"peer_full": 2, "key_full": 1}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(0, 5)), max_size=200))
def test_whatever_comes_the_store_keeps_its_bounds_and_its_books(puts: list[tuple[int, int, int]]) -> None:
    store = a_store(records=20, per_peer=8, per_key=3)
    for number, (key, peer, kind) in enumerate(puts):
        ttl_s = 0.0 if kind == 0 else 10.0
        one = said(peer=f"p{peer}", key=b"%d" % key, created=NOW + number, ttl_s=ttl_s)
        store.put(one, b"s%d" % number, NOW + number)
        assert len(store) <= 20
        assert len(store) == sum(map(len, store._by_key.values())) == sum(map(len, store._by_peer.values()))
        assert all(len(held) <= 3 for held in store._by_key.values())
        assert all(len(keys) <= 8 for keys in store._by_peer.values())


def test_a_flood_of_one_node_displaces_its_own_records_first() -> None:
    store = a_store(records=10, per_peer=9)
    assert store.put(said(TWO), b"quiet", NOW)
    for number in range(9):
        store.put(said(key=b"%d" % number), b"loud", NOW)
    for number in range(5):
        assert store.put(said(peer=f"n{number}", key=b"new"), b"new", NOW) is (number < 4)
    assert [held.sealed for held in store.get(KEY, NOW)] == [b"quiet"]
