"""The head of a GGUF file: what is wanted of it is found, and no bytes whatever do harm."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.providers.gguf_header import MAX_TENSORS, HeaderError, check, context_length, kv_bytes, matrices, read


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def tensor(name: str = "w", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(*pairs: tuple[str, int, bytes], version: int = 3, tensors: tuple[bytes, ...] = (tensor(),)) -> bytes:
    """A file with these pairs (key, kind, value as it stands there), and by default one tensor of eight floats."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(32)


NAMES = struct.pack("<IQ", 8, 3) + text("a") + text("<|im_end|>") + text("")
NUMBERS = struct.pack("<IQ", 5, 2) + bytes(8)
WHOLE = gguf(
    ("general.architecture", 8, text("llama")),
    ("tokenizer.ggml.tokens", 9, NAMES),
    ("tokenizer.ggml.token_type", 9, NUMBERS),
    ("llama.context_length", 4, struct.pack("<I", 8192)),
    ("tokenizer.chat_template", 8, text("{{ messages }}")),
)


def file(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_facts_are_found_behind_lists_of_any_kind(tmp_path: Path) -> None:
    path = file(tmp_path, WHOLE + bytes(1000))
    assert context_length(path) == 8192
    assert read(path, {"tokenizer.chat_template", "nothing"}) == {"tokenizer.chat_template": "{{ messages }}"}


def test_a_file_that_says_nothing_of_its_context_is_no_fault(tmp_path: Path) -> None:
    assert context_length(file(tmp_path, gguf(("general.name", 8, text("x"))))) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\3\4" + bytes(50), "not a GGUF file"),
        (b"GG", "cut short"),
        (gguf(version=9), "version 9"),
        (WHOLE[:60], "cut short"),
        (gguf(("k", 99, b"")), "unknown kind 99"),
        (gguf(("k", 9, struct.pack("<IQ", 4, 2**60))), "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "announces"),
    ],
)
def test_what_is_no_whole_gguf_is_refused_in_words(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(HeaderError, match=says):
        context_length(file(tmp_path, data))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (WHOLE[:-1], "cut short"),
        (gguf(tensors=()), "announces 0 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, MAX_TENSORS + 1, 0), f"announces {MAX_TENSORS + 1} tensors"),
        (gguf(tensors=(tensor("x" * 64),)), "64 bytes long"),
        (gguf(tensors=(text("w") + struct.pack("<I", 2**31),)), "dimensions"),
        (gguf(tensors=(tensor(shape=(2**32, 2**32)),)), "cannot have"),
        (gguf(tensors=(tensor(shape=(2**63, 2, 2)),)), "cannot have"),
        (gguf(tensors=(tensor(shape=(0,)),)), "cannot have"),
        (gguf(tensors=(tensor(shape=(8,), kind=3),)), "cannot have"),
        (gguf(tensors=(tensor(offset=7),)), "cannot have"),
        (gguf(tensors=(tensor(offset=2**63),)), "cut short"),
        (gguf(tensors=(tensor(kind=2**31),)), "unknown kind"),
        (gguf(tensors=(tensor(), tensor())), "two tensors"),
        (gguf(("general.alignment", 4, struct.pack("<I", 0))), "aligns"),
        (gguf(("general.alignment", 4, struct.pack("<I", 3))), "aligns"),
        (gguf(("k", 9, struct.pack("<IQ", 9, 2**20))), "unknown kind 9"),
    ],
)
def test_what_a_library_would_believe_is_compared_with_the_file(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(HeaderError, match=says):
        check(file(tmp_path, data))


def test_a_list_longer_than_any_tokenizer_is_not_walked_through(tmp_path: Path) -> None:
    path = file(tmp_path, gguf(("k", 9, struct.pack("<IQ", 8, 2**25))))
    with path.open("r+b") as sparse:
        sparse.truncate(2**29)
    with pytest.raises(HeaderError, match="a list of 33554432 entries"):
        check(path)


def number(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("more", "each"),
    [
        ({}, 2 * 30 * 9 * (64 + 64)),
        ({"attention.head_count_kv": 3}, 23_040),
        ({"attention.head_count_kv": 3, "attention.key_length": 128, "attention.value_length": 256}, 2 * 30 * 3 * 384),
        ({"block_count": 0}, 0),
        ({"attention.head_count_kv": 2**31}, 2 * 30 * 9 * 128),
    ],
)
def test_keys_and_values_of_a_token_are_reckoned_from_what_the_file_says(
    tmp_path: Path, more: dict[str, int], each: int
) -> None:
    facts = {"block_count": 30, "embedding_length": 576, "attention.head_count": 9} | more
    pairs = [(f"llama.{name}", 4, number(value)) for name, value in facts.items()]
    path = file(tmp_path, gguf(("general.architecture", 8, text("llama")), *pairs))
    assert kv_bytes(path) == each
    assert kv_bytes(file(tmp_path, gguf())) == 0


def test_the_weights_of_each_kind_are_counted_without_the_vectors(tmp_path: Path) -> None:
    tensors = (tensor("a", (32, 4), 2), tensor("b", (32, 2), 2), tensor("c", (8, 3), 1), tensor("norm", (32,)))
    assert matrices(file(tmp_path, gguf(tensors=tensors) + bytes(4096))) == {2: 192, 1: 24}


def test_a_whole_file_passes(tmp_path: Path) -> None:
    check(file(tmp_path, WHOLE))
    check(file(tmp_path, gguf(tensors=(tensor(), tensor("q", (32, 1), 3, 0), tensor("new", (8,), 200)))))


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)))
def test_no_bytes_do_harm(tmp_path_factory: pytest.TempPathFactory, tail: bytes, cut: int) -> None:
    path = file(tmp_path_factory.mktemp("gguf"), WHOLE[:cut] + tail)
    for looked in (context_length, check):
        with contextlib.suppress(HeaderError):
            looked(path)
