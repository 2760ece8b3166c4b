"""Counting the values of a msgpack body: exact for what msgpack can say, and no trouble with what it cannot."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.protocols.items import TooManyItems, check_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=100,
)


def counted(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(counted, value))
    if isinstance(value, dict):
        return 1 + sum(1 + counted(inner) for inner in value.values())
    return 1


@given(VALUES)
def test_every_value_is_counted_once(value):
    data = msgspec.msgpack.encode(value)
    check_items(data, counted(value))
    with pytest.raises(TooManyItems):
        check_items(data, counted(value) - 1)


@given(st.binary(max_size=200))
def test_what_is_no_msgpack_is_left_to_the_decoder(data):
    try:
        check_items(data, 1000)
    except TooManyItems:
        assert any(byte in range(0x80, 0xA0) or byte >= 0xDC for byte in data)


@pytest.mark.parametrize("size", [0, 15, 16, 300, 70_000])
def test_all_lengths_of_texts_bytes_arrays_and_maps(size):
    for value in ("x" * size, b"x" * size, [None] * size, dict.fromkeys(map(str, range(size)))):
        data = msgspec.msgpack.encode([value, 7])
        check_items(data, 2 + counted(value))
        with pytest.raises(TooManyItems):
            check_items(data, 1 + counted(value))
    ext = msgspec.msgpack.encode([msgspec.msgpack.Ext(5, b"x" * size), 7])
    check_items(ext, 3)
    with pytest.raises(TooManyItems):
        check_items(ext, 2)
