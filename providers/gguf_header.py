"""What a GGUF file says of itself: the key-value pairs at its beginning. Reads no tensor, and never the whole file.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. All of it is untrusted: the
lengths in it are checked against the file before anything is read.

    facts = read(Path("model.gguf"), {"general.architecture", "llama.context_length"})
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

_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9

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


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def pairs(self, wanted: Set[str]) -> dict[str, Value]:
        if self._take(4) != MAGIC:
            raise HeaderError("it is not a GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            raise HeaderError(f"it is GGUF version {version}, and 2 and 3 are known")
        self._number("<Q")  # tensors
        count = self._number("<Q")
        if count > MAX_PAIRS:
            raise HeaderError(f"it announces {count} facts about itself")
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._text(MAX_KEY_BYTES)
            value = self._value(self._number("<I"), keep=key in wanted)
            if value is not None:
                found[key] = value
            if len(found) == len(wanted):
                break
        return found

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
