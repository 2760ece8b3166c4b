"""Records: made, read back, rebuilt from a stream, and refused when anything about them is wrong."""

from __future__ import annotations

import time
from typing import Any

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID, multihash
from shoal.cache.cid import DAG_CBOR, RAW, cid_of
from shoal.cache.record import (
    Record,
    RecordError,
    RecordRefused,
    SignedRecord,
    decode,
    events,
    explain,
    rebuild,
    sign,
    verify,
)
from shoal.cache.schema import MAX_BLOCK_BYTES, MAX_CONTENT_BYTES, SIGNING_PREFIX
from shoal.protocols.peer_id import Identity
from shoal.protocols.peer_id import verify as verify_signature
from shoal.providers.base import Finish, TextDelta, Usage

from .answers import ALICE, BOB, CREATED_MS, LONG, answer, ask, key_of

usages = st.none() | st.builds(
    Usage,
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.none() | st.floats(0, 1e6),
)


def refusal(block: bytes, *args: Any, **checks: Any) -> str:
    """The reason for which a block is refused."""
    with pytest.raises(RecordRefused) as caught:
        verify(block, *args, **checks)
    return caught.value.reason


def forged(identity: Identity = ALICE, drop: str = "", **fields: Any) -> bytes:
    """A block with a good signature over fields that `sign` would never have put together."""
    form = cbrrr.decode_dag_cbor(answer().block)
    form.update(fields)
    form.pop(drop, None)
    form["sig"] = identity.sign(SIGNING_PREFIX + cbrrr.encode_dag_cbor({k: v for k, v in form.items() if k != "sig"}))
    return bytes(cbrrr.encode_dag_cbor(form))


# -- round trips -------------------------------------------------------------------------------------------------


@given(
    st.text(min_size=1, max_size=200),
    st.none() | st.text(min_size=1, max_size=40),
    st.text(min_size=1, max_size=40),
    st.sampled_from(["stop", "length"]),
    usages,
    st.sampled_from(["cid", "sha256"]),
    st.booleans(),
)
def test_a_record_is_read_back_as_it_was_signed(
    content: str, model: str | None, provider: str, finish: Any, usage: Usage | None, mode: str, link_text: bool
) -> None:
    signed = answer(
        mode=mode, content=content, model=model, provider=provider, finish=finish, usage=usage, link_text=link_text
    )
    key = key_of(mode=mode)
    record = verify(signed.block, signed.cid, key.cid)
    assert record == signed.record == decode(signed.block)
    assert (record.content, record.model, record.provider, record.finish) == (content, model, provider, finish)
    assert record.usage == usage
    assert record.request == key.reference
    assert record.node == ALICE.peer_id
    assert rebuild(record.without_content(), content, signed.cid, key.cid) == signed


def test_the_block_is_dag_cbor_under_its_cid_as_the_reference_library_makes_it() -> None:
    signed = answer()
    assert signed.cid == bytes(CID("base32", 1, "dag-cbor", multihash.digest(signed.block, "sha2-256")))
    form = cbrrr.decode_dag_cbor(signed.block)
    assert set(form) == {"v", "request", "model", "provider", "content", "finish", "usage", "created", "node", "sig"}
    del form["sig"]
    assert verify_signature(ALICE.peer_id, signed.record.sig, b"shoal/record/1\0" + cbrrr.encode_dag_cbor(form))


def test_a_record_holds_no_links_but_to_blocks_that_are_published_with_it() -> None:
    links: list[Any] = [v for v in cbrrr.decode_dag_cbor(answer().block).values() if isinstance(v, cbrrr.CID)]
    assert links == []  # a recursive pin would wait for the request's block, which nobody publishes


def test_nodes_of_either_mode_use_each_others_records() -> None:
    for mode in ("cid", "sha256"):
        signed = answer(mode=mode)
        for request in (key_of().cid, key_of().digest):
            assert verify(signed.block, signed.cid, request).content == "Cold."


def test_a_long_answer_is_a_linked_raw_block() -> None:
    signed = answer(content=LONG)
    assert len(signed.block) < 1000
    assert signed.extra == LONG.encode()
    assert signed.record.content_cid == cid_of(RAW, LONG.encode())
    assert [cid for cid, _ in signed.blocks] == [signed.record.content_cid, signed.cid]
    assert verify(signed.block, signed.cid, key_of().cid, extra=signed.extra).content == LONG
    assert rebuild(signed.record.without_content(), LONG, signed.cid, key_of().cid) == signed


def test_every_length_around_the_limit_fits_its_block() -> None:
    for size in range(MAX_BLOCK_BYTES - 4200, MAX_BLOCK_BYTES - 4000, 40):
        signed = answer(content="é" * (size // 2))
        assert len(signed.block) < MAX_BLOCK_BYTES
        verify(signed.block, signed.cid, extra=signed.extra)


def test_a_linked_text_is_the_content_as_a_browser_shows_it() -> None:
    signed = answer(link_text=True)
    assert signed.blocks == [(cid_of(RAW, b"Cold."), b"Cold."), (signed.cid, signed.block)]
    assert verify(signed.block, signed.cid).text_cid == cid_of(RAW, b"Cold.")


def test_a_record_says_again_what_the_provider_said() -> None:
    record = answer(usage=Usage(14, 3, 0, 2, 0.01)).record
    assert events(record) == [TextDelta("Cold."), Usage(14, 3, 14, 2, 0.0), Finish("stop", "smollm2")]
    assert events(answer(usage=None).record) == [TextDelta("Cold."), Finish("stop", "smollm2")]


# -- what must not become a record ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (ask(), {"content": ""}),
        (ask(), {"content": "", "usage": Usage(14, 0)}),
        (ask(), {"finish": "content_filter"}),
        (ask(), {"finish": "tool_calls"}),
        (ask(model="gpt-4o"), {"model": "smollm2"}),
        (ask(model="gpt-4o"), {"model": None}),
        (ask(model="gpt-4o"), {"model": "smollm2", "aliases": ["gpt-4o-2024-08-06"]}),
        (ask(provider="openrouter"), {"provider": "local_hf"}),
        (ask(), {"provider": ""}),
        (ask(), {"provider": "p" * 257}),
        (ask(), {"content": "half \ud800"}),
        (ask(), {"content": "x" * (MAX_CONTENT_BYTES + 1)}),
        (ask(), {"model": "\ud800"}),
        (ask(), {"usage": Usage(2**64, 1)}),
        (ask(), {"usage": Usage(1, 1, cost=float("nan"))}),
    ],
)
def test_an_answer_that_is_no_answer_to_this_request_is_not_signed(request_: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        answer(request_, **fields)


def test_what_is_signed_always_verifies_or_is_not_signed() -> None:
    for usage in (Usage(-1, 1), Usage(1, 2**53), Usage(1, 1, cost=-1.0)):
        with pytest.raises(RecordError):
            answer(usage=usage)
    with pytest.raises(RecordError):
        answer(created_ms=-1)
    with pytest.raises(RecordError):
        answer(model="")


def test_a_pinned_model_may_answer_under_a_name_that_stands_for_it() -> None:
    signed = answer(ask(model="gpt-4o"), model="gpt-4o-2024-08-06", aliases=["gpt-4o-2024-08-06"])
    assert signed.record.model == "gpt-4o-2024-08-06"


# -- what is refused -------------------------------------------------------------------------------------------------


def test_every_single_flipped_bit_is_refused() -> None:
    signed = answer(model="m", provider="p", content="Cold.")
    for bit in range(8 * len(signed.block)):
        broken = bytearray(signed.block)
        broken[bit // 8] ^= 1 << bit % 8
        assert refusal(bytes(broken), signed.cid) == "cid"
        assert refusal(bytes(broken), None, key_of().cid, now_ms=signed.record.created) != "cid"


@given(st.data())
def test_every_single_flipped_bit_of_a_linked_content_is_refused(data: st.DataObject) -> None:
    signed = LONG_ANSWER
    assert signed.extra is not None
    bit = data.draw(st.integers(0, 8 * len(signed.extra) - 1))
    broken = bytearray(signed.extra)
    broken[bit // 8] ^= 1 << bit % 8
    assert refusal(signed.block, signed.cid, extra=bytes(broken)) == "content"


LONG_ANSWER: SignedRecord = answer(content=LONG)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    assert refusal(data) == "schema"


@given(st.integers(1, 400))
def test_a_truncated_record_is_refused(cut: int) -> None:
    block = answer().block
    assert refusal(block[:-cut]) in ("schema", "version")


def test_another_nodes_signature_is_refused() -> None:
    assert refusal(forged(BOB)) == "signature"


def test_a_node_cannot_put_its_name_under_anothers_answer() -> None:
    form = cbrrr.decode_dag_cbor(answer().block)
    form["node"] = BOB.peer_id
    assert refusal(cbrrr.encode_dag_cbor(form)) == "signature"


def test_a_signature_made_for_something_else_does_not_fit_a_record() -> None:
    form = cbrrr.decode_dag_cbor(answer().block)
    form["sig"] = ALICE.sign(cbrrr.encode_dag_cbor({k: v for k, v in form.items() if k != "sig"}))
    assert refusal(cbrrr.encode_dag_cbor(form)) == "signature"


def test_another_requests_record_is_refused() -> None:
    signed = answer()
    assert refusal(signed.block, signed.cid, key_of(ask("What is the opposite of cold?")).cid) == "request"


def test_another_blocks_cid_is_refused() -> None:
    signed = answer()
    assert refusal(signed.block, answer(content="Icy.").cid) == "cid"
    assert refusal(signed.block, cid_of(RAW, signed.block)) == "cid"
    assert refusal(signed.block, b"nonsense") == "cid"


def test_age_is_counted_from_when_the_answer_was_made() -> None:
    signed = answer(created_ms=CREATED_MS)
    hour_later = CREATED_MS + 3_600_000
    assert verify(signed.block, now_ms=hour_later, max_age_s=3600)
    assert refusal(signed.block, now_ms=hour_later + 1000, max_age_s=3600) == "age"
    assert refusal(signed.block, now_ms=CREATED_MS - 601_000) == "age"
    assert verify(signed.block, now_ms=CREATED_MS - 599_000)


def test_an_answer_of_this_moment_verifies_by_the_real_clock() -> None:
    assert abs(verify(answer().block).created - time.time() * 1000) < 60_000


def test_the_trust_rule_is_asked_about_the_signer() -> None:
    signed = answer()
    assert verify(signed.block, trusted=lambda node: node == ALICE.peer_id)
    assert refusal(signed.block, trusted=lambda node: node == BOB.peer_id) == "trust"


def test_a_missing_or_foreign_linked_block_is_refused() -> None:
    signed = LONG_ANSWER
    assert refusal(signed.block) == "content"
    assert refusal(signed.block, extra=LONG.encode() + b".") == "content"


def test_a_block_that_is_too_large_is_refused_before_it_is_read() -> None:
    assert refusal(bytes(MAX_BLOCK_BYTES)) == "size"
    assert refusal(forged(content="x" * MAX_BLOCK_BYTES)) == "size"


@pytest.mark.parametrize(
    "field", ["v", "request", "model", "provider", "content", "finish", "usage", "created", "node"]
)
def test_a_record_without_one_of_its_fields_is_refused(field: str) -> None:
    assert refusal(forged(drop=field)) == "schema"


RAW_LINK = cbrrr.CID(cid_of(RAW, b"Cold."))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"v": 2}, "version"),
        ({"v": True}, "schema"),
        ({"v": "1"}, "schema"),
        ({"more": 1}, "schema"),
        ({"request": b"short"}, "schema"),
        ({"request": "bafy"}, "schema"),
        ({"request": bytes(36)}, "schema"),
        ({"request": cbrrr.CID(key_of().cid)}, "schema"),
        ({"model": 5}, "schema"),
        ({"model": ""}, "schema"),
        ({"model": "m" * 257}, "schema"),
        ({"provider": None}, "schema"),
        ({"content": ""}, "empty"),
        ({"content": None}, "schema"),
        ({"content": b"Cold."}, "schema"),
        ({"content": cbrrr.CID(cid_of(DAG_CBOR, b"Cold."))}, "schema"),
        ({"content": cbrrr.CID(b"\x12\x20" + bytes(32))}, "schema"),
        ({"finish": "content_filter"}, "schema"),
        ({"finish": ["stop"]}, "schema"),
        ({"usage": None}, "schema"),
        ({"usage": {"prompt_tokens": 1}}, "schema"),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": -1}}, "schema"),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 1.0}}, "schema"),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": 1}}, "schema"),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0}}, "schema"),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "other": 1}}, "schema"),
        ({"created": -1}, "schema"),
        ({"created": 1.5}, "schema"),
        ({"created": 2**53 - 1}, "age"),
        ({"node": "12D3KooW"}, "node"),
        ({"node": b"12D3KooW"}, "schema"),
        ({"text": cbrrr.CID(cid_of(RAW, b"Hot."))}, "content"),
        ({"text": cid_of(RAW, b"Cold.")}, "schema"),
        ({"text": RAW_LINK, "content": RAW_LINK}, "schema"),
    ],
)
def test_a_well_signed_record_with_a_wrong_field_is_refused(fields: dict[str, Any], reason: str) -> None:
    assert refusal(forged(**fields)) == reason


def test_a_block_that_is_no_map_is_refused() -> None:
    for value in (None, [], "text", 1, RAW_LINK):
        assert refusal(bytes(cbrrr.encode_dag_cbor(value))) == "schema"


def test_a_refusal_never_shows_the_answer() -> None:
    for block in (forged(BOB, content="a secret answer"), forged(finish="a secret answer")):
        with pytest.raises(RecordRefused) as caught:
            verify(block)
        assert "secret" not in str(caught.value)


# -- rebuilding what was streamed --------------------------------------------------------------------------------------


def test_a_stream_that_was_changed_on_the_way_does_not_make_the_record() -> None:
    meta = answer().record.without_content()
    with pytest.raises(RecordRefused, match="signature"):
        rebuild(meta, "Hot.")
    with pytest.raises(RecordRefused, match="empty"):
        rebuild(meta, "")
    with pytest.raises(RecordRefused, match="schema"):
        rebuild(meta, "\ud800")
    with pytest.raises(RecordRefused, match="content"):
        rebuild(LONG_ANSWER.record.without_content(), LONG[:-1])


def test_a_meta_block_that_brings_its_own_content_is_refused() -> None:
    with pytest.raises(RecordRefused, match="schema"):
        rebuild(answer().block, "Cold.")


@given(st.binary(max_size=200))
def test_a_garbage_meta_block_is_refused(meta: bytes) -> None:
    with pytest.raises(RecordRefused):
        rebuild(meta, "Cold.")


# -- explaining ----------------------------------------------------------------------------------------------------


def test_a_good_record_is_explained_step_by_step() -> None:
    signed = answer()
    steps = explain(signed.block, signed.cid, key_of().cid, max_age_s=60, trusted=lambda _: True)
    assert [step.name for step in steps] == [
        "block hash",
        "schema",
        "peer id",
        "request",
        "age",
        "trust",
        "content",
        "signature",
    ]
    assert all(step.ok for step in steps)


def test_an_explanation_goes_on_after_the_first_failure() -> None:
    steps = {step.name: step.ok for step in explain(forged(BOB), None, key_of(ask("other")).cid)}
    assert steps["request"] is False
    assert steps["signature"] is False
    assert steps["schema"] is True
    assert steps["trust"] is None
    assert steps["block hash"] is None


def test_what_could_not_be_checked_is_not_called_good() -> None:
    steps = explain(b"not a record", cid_of(DAG_CBOR, b"not a record"))
    assert [step.ok for step in steps] == [True, False, None, None, None, None, None, None]


def test_the_sign_functions_defaults_are_now_and_this_node() -> None:
    record: Record = sign(BOB, key_of(), ask(), provider="p", model=None, content="Cold.", finish="stop").record
    assert record.node == BOB.peer_id
    assert record.model is None
    assert record.usage is None
    assert -1 < record.age_s() < 60
