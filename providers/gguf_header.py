"""What a GGUF file says of itself: the key-value pairs at its beginning. Reads no tensor, and never the whole file.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. All of it is untrusted: the
lengths in it are checked against the file before anything is read, and `check` looks at all that a library would
believe, before one gets the file: names, counts, shapes, and that each tensor lies within the file.

    facts = read(Path("model.gguf"), {"general.architecture", "llama.context_length"})
    check(Path("model.gguf"))           # raises HeaderError
"""

from __future__ import annotations

import struct
from collections.abc import Set
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
MAX_PAIRS = 10_000
MAX_KEY_BYTES = 65_535
MAX_TEXT_BYTES = 1024 * 1024
"""Of a value that is returned; a longer one is cut."""

MAX_ITEMS = 4_000_000
"""Entries of one list: a tokenizer's words and merges are some hundred thousand."""
MAX_TENSORS = 65_536
MAX_NAME_BYTES, MAX_DIMENSIONS = 64, 4
"""Of a tensor, as in ggml."""
MAX_ALIGNMENT = 1 << 20

_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""Kind of a tensor -> (values of a block, bytes of a block): ggml.h, `enum ggml_type`, and ggml-common.h."""
HALVES = frozenset((1, 30))
"""Kinds of 16 bits: F16 and BF16."""
_KINDS = 256
"""A kind above is none; one below that is not listed is newer than this file, and whoever loads it knows its size."""

Value = str | int | float | bool


class HeaderError(ValueError):
    """It is no GGUF file, or not a whole one; the message says which."""


def read(path: Path, wanted: Set[str]) -> dict[str, Value]:
    """The wanted pairs that are there, arrays left out. Raises HeaderError, or OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        return _Reader(file, size).pairs(wanted)


def context_length(path: Path) -> int | None:
    """Tokens that the model was made for; None where the file does not say. Raises HeaderError, or OSError."""
    architecture = str(read(path, {"general.architecture"}).get("general.architecture", ""))
    key = f"{architecture}.context_length"
    length = read(path, {key}).get(key)
    return length if isinstance(length, int) and length > 0 else None


def kv_bytes(path: Path) -> int:
    """Bytes that keys and values of one token take in 16 bits; at most, where heads differ from layer to layer.

    0 where the file does not say. Raises HeaderError, or OSError.
    """
    architecture = str(read(path, {"general.architecture"}).get("general.architecture", ""))
    heads_of = {f"{architecture}.attention.{name}" for name in ("head_count", "head_count_kv")}
    lengths = {f"{architecture}.attention.{name}" for name in ("key_length", "value_length")}
    layers = {f"{architecture}.{name}" for name in ("block_count", "embedding_length")}
    found = read(path, heads_of | lengths | layers)

    def number(name: str, otherwise: int) -> int:
        value = found.get(f"{architecture}.{name}")
        return value if isinstance(value, int) and 0 < value < 1 << 20 else otherwise

    heads = number("attention.head_count", 0)
    each = number("embedding_length", 0) // heads if heads else 0
    width = number("attention.key_length", each) + number("attention.value_length", each)
    return 2 * number("block_count", 0) * number("attention.head_count_kv", heads) * width


def check(path: Path) -> None:
    """Everything before the tensors' data, and where that would lie. Raises HeaderError, or OSError."""
    matrices(path)


def matrices(path: Path) -> dict[int, int]:
    """How many weights there are of each kind (`enum ggml_type`), vectors left out; all is checked as by `check`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        return _Reader(file, size).check()


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._tensors = 0
        self._weights: dict[int, int] = {}

    def pairs(self, wanted: Set[str], *, whole: bool = False) -> dict[str, Value]:
        if self._take(4) != MAGIC:
            raise HeaderError("it is not a GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            raise HeaderError(f"it is GGUF version {version}, and 2 and 3 are known")
        self._tensors = self._number("<Q")
        count = self._number("<Q")
        if count > MAX_PAIRS:
            raise HeaderError(f"it announces {count} facts about itself")
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._text(MAX_KEY_BYTES)
            value = self._value(self._number("<I"), keep=key in wanted)
            if value is not None:
                found[key] = value
            if len(found) == len(wanted) and not whole:
                break
        return found

    def check(self) -> dict[int, int]:
        alignment = self.pairs({"general.alignment"}, whole=True).get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise HeaderError(f"it aligns its tensors to {alignment} bytes")
        if not 0 < self._tensors <= MAX_TENSORS:
            raise HeaderError(f"it announces {self._tensors} tensors")
        ends, names = 0, set[str]()
        for _ in range(self._tensors):
            length = self._number("<Q")
            if length >= MAX_NAME_BYTES:
                raise HeaderError(f"it has a tensor whose name is {length} bytes long")
            name = self._take(length).decode(errors="replace")
            if name in names:
                raise HeaderError(f"it has two tensors called {name!r}")
            names.add(name)
            ends = max(ends, self._tensor(name, alignment))
        begin = -(-self._file.tell() // alignment) * alignment
        if begin + ends > self._size:
            raise HeaderError(f"it is cut short: {self._size} of {begin + ends} bytes are there")
        return self._weights

    def _tensor(self, name: str, alignment: int) -> int:
        """Where a tensor's data ends, in bytes after the first one's beginning."""
        count = self._number("<I")
        if not 0 < count <= MAX_DIMENSIONS:
            raise HeaderError(f"its tensor {name!r} has {count} dimensions")
        shape = [self._number("<Q") for _ in range(count)]
        kind, offset = self._number("<I"), self._number("<Q")
        if kind >= _KINDS:
            raise HeaderError(f"its tensor {name!r} is of the unknown kind {kind}")
        values, size = _BLOCKS.get(kind, (1, 0))
        elements = 1
        for length in shape:
            elements *= length
        if not elements or elements > 1 << 48 or shape[0] % values or offset % alignment:
            raise HeaderError(f"its tensor {name!r} has a shape or a place that it cannot have")
        if count > 1:
            self._weights[kind] = self._weights.get(kind, 0) + elements
        return offset + elements // values * size

    def _value(self, kind: int, *, keep: bool) -> Value | None:
        if kind in _FORMATS:
            (value,) = struct.unpack(_FORMATS[kind], self._take(struct.calcsize(_FORMATS[kind])))
            return value if keep else None
        if kind == _TEXT:
            if keep:
                return self._text(MAX_TEXT_BYTES)
            self._skip(self._number("<Q"))
            return None
        if kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if count > MAX_ITEMS and count <= self._size:
                raise HeaderError(f"it has a list of {count} entries")
            if inner in _FORMATS:
                self._skip(count * struct.calcsize(_FORMATS[inner]))
                return None
            if inner == _TEXT:
                for _ in range(count):
                    self._skip(self._number("<Q"))
                return None
        raise HeaderError(f"it has a value of the unknown kind {kind}")

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _text(self, most: int) -> str:
        length = self._number("<Q")
        text = self._take(min(length, most))
        self._skip(length - len(text))
        return text.decode(errors="replace")

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise HeaderError("it is cut short")
        return data

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise HeaderError("it is cut short")
        self._file.seek(count, 1)
