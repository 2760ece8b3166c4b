"""Adverts: what a node says of itself is believed when it is signed, new, and its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.swarm.advert import (
    DOMAIN,
    MAX_BODY_BYTES,
    TTL_S,
    Advert,
    AdvertBook,
    AdvertContent,
    AdvertRefused,
    AdvertWriter,
    OfferedModel,
    SharedProvider,
)
from shoal.protocols.peer_id import Identity
from shoal.providers.base import Capabilities, ModelInfo

ME, OTHER = Identity.from_seed(b"\x01" * 32), Identity.from_seed(b"\x02" * 32)
CONTENT = AdvertContent(
    models=(OfferedModel("local_hf", ModelInfo("smollm2", 2048, Capabilities(seeds=True), decode_tps=20.5)),),
    providers=(SharedProvider("local_hf", default_model="smollm2", max_concurrent=2),),
    hardware={"cpu": "abacus", "cores": 2, "gpus": [{"name": "none"}]},
    addresses=(f"/ip4/192.0.2.7/tcp/4642/p2p/{ME.peer_id}",),
    version="0.1.0",
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(clock):
    return AdvertBook("home", clock=clock)


@pytest.fixture
def writer(clock):
    return AdvertWriter(ME, "home", clock=clock)


def forged(identity: Identity = ME, **changes) -> list[bytes]:
    fields = {"peer": ME.peer_id, "swarm": "home", "seq": 5, "created": 1_800_000_000.0, "ttl_s": 60.0, "v": 1}
    body = msgspec.msgpack.encode({**fields, **changes})
    return [body, identity.sign(DOMAIN + body)]


def refusal(book: AdvertBook, wire, brought_by=ME.peer_id) -> str:
    before = dict(book.refused)
    with pytest.raises(AdvertRefused) as caught:
        book.take(wire, brought_by=brought_by)
    reason = caught.value.reason
    assert book.refused == {**before, reason: before.get(reason, 0) + 1}
    return reason


def test_an_advert_comes_out_as_it_went_in(book, writer):
    advert = book.take(writer.write(CONTENT), brought_by=ME.peer_id)
    for name in AdvertContent.__struct_fields__:
        assert getattr(advert, name) == getattr(CONTENT, name)
    assert book.get(ME.peer_id) == advert
    assert (advert.peer, advert.swarm) == (ME.peer_id, "home")


def test_a_later_advert_takes_the_place_of_an_earlier_one(book, writer):
    book.take(writer.write(CONTENT), brought_by=ME.peer_id)
    book.take(writer.write(AdvertContent(version="2")), brought_by=ME.peer_id)
    assert book.get(ME.peer_id).version == "2"


def test_an_advert_played_again_is_stale(book, writer):
    first, second = writer.write(CONTENT), writer.write(CONTENT)
    book.take(second, brought_by=ME.peer_id)
    assert refusal(book, first) == "stale"
    assert refusal(book, second) == "stale"


def test_numbers_go_on_after_a_restart(book, clock):
    book.take(AdvertWriter(ME, "home", clock=clock).write(CONTENT), brought_by=ME.peer_id)
    clock.now += 1
    book.take(AdvertWriter(ME, "home", clock=clock).write(CONTENT), brought_by=ME.peer_id)


def test_an_advert_expires(book, writer, clock):
    wire = writer.write(CONTENT)
    book.take(wire, brought_by=ME.peer_id)
    clock.now += TTL_S + 1
    assert book.get(ME.peer_id) is None
    assert refusal(book, wire) == "expired"
    book.sweep()
    assert book.get(ME.peer_id) is None


def test_a_very_long_life_is_cut_short(book, clock):
    advert = book.take(forged(ttl_s=1e12), brought_by=ME.peer_id)
    assert advert.expires <= clock.now + 3600


def test_an_advert_signed_by_another_is_forged(book):
    assert refusal(book, forged(OTHER)) == "forged"


def test_an_advert_of_another_peer_is_not_taken_from_this_one(book, writer):
    assert refusal(book, writer.write(CONTENT), brought_by=OTHER.peer_id) == "foreign"


def test_a_flipped_bit_is_noticed(book, writer):
    body, signature = writer.write(CONTENT)
    flipped = bytes([body[-1] ^ 1])
    assert refusal(book, [body[:-1] + flipped, signature]) in ("forged", "malformed")
    assert refusal(book, [body, signature[:-1] + bytes([signature[-1] ^ 1])]) == "forged"


def test_an_advert_from_the_future_is_refused_but_clocks_may_differ_a_little(book, clock):
    assert refusal(book, forged(created=clock.now + 61)) == "future"
    book.take(forged(created=clock.now + 59), brought_by=ME.peer_id)


@pytest.mark.parametrize("created", [float("nan"), float("inf"), -float("inf")])
def test_no_number_for_a_time_is_refused(book, created):
    assert refusal(book, forged(created=created)) in ("future", "expired")


def test_another_swarms_advert_is_refused(book):
    assert refusal(book, forged(swarm="away")) == "swarm"


def test_an_oversized_advert_is_refused_unread(book):
    assert refusal(book, [b"x" * (MAX_BODY_BYTES + 1), b"y" * 64]) == "oversized"


@pytest.mark.parametrize("wire", [None, b"x", [], [b"x"], [b"x", "y"], ["x", b"y"], [b"", b""], [b"\x91" * 9000, b""]])
def test_a_malformed_advert_is_refused(book, wire):
    assert refusal(book, wire) == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"seq": "1"},
        {"models": [1]},
        {"addresses": ["x" * 257]},
        {"providers": [["x", 5]] * 65},
        {"hardware": []},
    ],
    ids=str,
)
def test_ill_typed_content_is_refused(book, changes):
    assert refusal(book, forged(**changes)) == "malformed"


@given(st.binary(max_size=300), st.binary(max_size=64))
def test_garbage_is_refused_and_nothing_else(body, signature):
    with pytest.raises(AdvertRefused):
        AdvertBook("home").take([body, signature], brought_by=ME.peer_id)


def test_unknown_fields_of_a_newer_node_are_ignored(book):
    assert isinstance(book.take(forged(mood="good"), brought_by=ME.peer_id), Advert)


def test_an_advert_with_too_many_models_is_cut_to_fit(book, writer):
    many = tuple(OfferedModel("openrouter", ModelInfo(f"vendor/model-{n}" + "x" * 150)) for n in range(2000))
    wire = writer.write(AdvertContent(models=many, providers=(SharedProvider("openrouter", any_model=True),)))
    advert = book.take(wire, brought_by=ME.peer_id)
    assert len(wire[0]) <= MAX_BODY_BYTES
    assert 0 < len(advert.models) < 2000
    assert advert.models == many[: len(advert.models)]


def test_who_offers_what():
    assert CONTENT.offers("smollm2")
    assert CONTENT.offers(None)
    assert not CONTENT.offers("gpt-9")
    assert not AdvertContent().offers(None)
    assert AdvertContent(providers=(SharedProvider("openrouter", any_model=True),)).offers("gpt-9")


# -- byte for byte -----------------------------------------------------------------------------------------------

MEASURED = AdvertContent(
    models=(
        OfferedModel(
            "local_hf",
            ModelInfo(
                "smollm2", 8192, decode_tps=107.0, prefill_tps=590.0, first_token_ms=80.0, measured_at=1_799_999_000.0
            ),
        ),
    ),
    hardware={"arch": "x86_64", "cores_usable": 2.0, "memory_gbs": 19.5, "measured_at": 1_799_990_000.0},
    version="0.1.0",
)
PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_statement_and_its_signature_stand_in_the_page_byte_for_byte(clock) -> None:
    body, signature = AdvertWriter(ME, "home", clock=clock).write(MEASURED)
    page = PAGE.read_text(encoding="utf-8")
    assert f"    {body.hex()}\n" in page
    assert f"    {signature.hex()}\n" in page


def test_adverts_of_older_and_of_newer_nodes_are_believed(book, clock) -> None:
    """What an older node does not measure is missing; what a newer one says beside is passed over."""
    fields = msgspec.msgpack.decode(AdvertWriter(ME, "home", clock=clock).write(MEASURED)[0])
    for name in ("first_token_ms", "measured_at"):
        del fields["models"][0]["model"][name]
    fields["models"][0]["model"]["watts"] = 12.5
    fields |= {"seq": fields["seq"] + 1, "mood": "good"}
    body = msgspec.msgpack.encode(fields)
    advert = book.take([body, ME.sign(DOMAIN + body)], brought_by=ME.peer_id)
    assert advert.models[0].model == ModelInfo("smollm2", 8192, decode_tps=107.0, prefill_tps=590.0)
