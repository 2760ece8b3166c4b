"""What a folder of weights may hold, looked at before a library opens any of it: all of it is untrusted.

    names = entries(folder)            # the files of it; raises Unfit with one line that names what is wrong
    check_safetensors(folder / "model.safetensors")

Refused by name: pickles (also in folders below, and as what an index points to), links that lead out, and what is no
file at all, such as a pipe. Headers are read whole and compared with the file's size. Nothing is run, and what is read
is bounded. Format: github.com/huggingface/safetensors, "Format" in its README.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "*.jinja"),
    *("special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json", "*.gguf"),
)
"""What a model consists of; anything else stays where it is."""
PROGRAMS = ("*.py", "*.so", "*.bin", "*.pt", "*.pkl")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
MAX_ENTRIES = 10_000
"""Files and folders below one model's folder."""
MAX_DEPTH = 8
MAX_HEADER_BYTES = 8 * 1024 * 1024
"""Of a safetensors file: room for a hundred thousand tensors. The format itself allows 100 MB."""
MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_INDEX_BYTES = 32 * 1024 * 1024
MAX_TOKENIZER_BYTES = 128 * 1024 * 1024

MAX_DIMENSIONS, MAX_SIZE = 16, 1 << 48

_BITS = (
    dict.fromkeys(("F64", "I64", "U64", "C64"), 64)
    | dict.fromkeys(("F32", "I32", "U32"), 32)
    | dict.fromkeys(("F16", "BF16", "I16", "U16"), 16)
    | dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8)
    | {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
)
_PARSE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError, TypeError)


class Unfit(ValueError):
    """This folder or file is not loaded; the message is one line that names it."""


def belongs(file: str) -> bool:
    """Whether a file of this name is part of a model."""
    name = file.lower()
    return any(fnmatch.fnmatch(name, p) for p in FILES) and not any(fnmatch.fnmatch(name, p) for p in PROGRAMS)


class _Tensor(Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def entries(folder: Path) -> list[str]:
    """The names of those of the folder's files that a model consists of. Raises Unfit, or OSError."""
    names = []
    weights = any(name.endswith(".safetensors") for name in os.listdir(folder))
    for path, below in _walk(folder):
        shown = path.relative_to(folder)
        if path.suffix.lower() in PICKLES:
            remedy = "delete it" if weights else "convert it to safetensors, or choose a model that has them"
            raise Unfit(
                f"the folder {folder} holds a pickle ({shown}), and loading one runs what its author wrote; {remedy}"
            )
        if below or not belongs(path.name):
            continue
        if path.is_symlink() and not _stays(path, folder):
            raise Unfit(f"{path} is a link that leads out of its folder; put the file itself there")
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Unfit(f"{path} is no file (a pipe, a socket or a device); delete it")
        if stat.S_ISREG(mode):
            names.append(path.name)
    for name in names:
        if name.endswith(".index.json"):
            _check_index(folder, name)
    return sorted(names)


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is in a folder below) of all that is there; links to folders are not followed."""
    count = 0
    folders = [(folder, 0)]
    while folders:
        at, depth = folders.pop()
        for entry in sorted(os.scandir(at), key=lambda each: each.name):
            count += 1
            if count > MAX_ENTRIES or depth > MAX_DEPTH:
                raise Unfit(f"the folder {folder} holds too much to be a model's; give the model's own folder")
            yield Path(entry.path), depth > 0
            if entry.is_dir(follow_symlinks=False):
                folders.append((Path(entry.path), depth + 1))


def _stays(path: Path, folder: Path) -> bool:
    """Whether a link's target is in the same folder, or where the hub's own cache keeps what its snapshots link to."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise Unfit(f"{path} is a link that leads nowhere; delete it, or get the model again") from None
    within = folder.resolve()
    if within in target.parents:
        return True
    return within.parent.name == "snapshots" and within.parents[1] / "blobs" == target.parent


def _check_index(folder: Path, name: str) -> None:
    """An index names the files that its tensors are in: files of this folder, and safetensors."""
    found = read_json(folder / name, MAX_INDEX_BYTES)
    table = found.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise Unfit(f"{folder / name} is not an index of safetensors; get it again")
    for file in sorted(set(table.values())):
        if file.lower().endswith(PICKLES):
            raise Unfit(f"{folder / name} points to a pickle ({file}), and loading one runs what its author wrote")
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise Unfit(f"{folder / name} points to {file[:80]!r}, which is no safetensors file of this folder")
        if not (folder / file).is_file():
            raise Unfit(f"{folder / name} points to {file}, which is not there; get the model again")


def read_json(path: Path, most: int) -> dict[str, Any]:
    """A file's JSON object. Raises Unfit for anything else, and for more than `most` bytes."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unfit(f"{path} is no file; get the model again")
            data = file.read(most + 1)
    except OSError as fault:
        raise Unfit(f"{path} cannot be read ({fault.strerror}); get the model again") from None
    if len(data) > most:
        raise Unfit(f"{path} is larger than {most >> 20} MiB; get the model again")
    try:
        found = json.loads(data)
    except _PARSE:
        found = None
    if not isinstance(found, dict):
        raise Unfit(f"{path} is not readable; get the model again")
    return found


def check_tokenizer(folder: Path) -> None:
    """What is said of the tokenizer is JSON; whether it makes sense shows when it is loaded. Raises Unfit."""
    for name, most in (("tokenizer.json", MAX_TOKENIZER_BYTES), ("tokenizer_config.json", MAX_CONFIG_BYTES)):
        if (folder / name).exists():
            found = read_json(folder / name, most)
            if name == "tokenizer.json" and not isinstance(found.get("model"), dict):
                raise Unfit(f"{folder / name} describes no tokenizer; get the model again")


def check_safetensors(path: Path) -> None:
    """The header is whole, each tensor is as long as its shape says, and they fill the file without gap or overlap."""
    try:
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES and 8 + length <= there:
                raise Unfit(f"{path} has a header of {length} bytes; {MAX_HEADER_BYTES} is the most that is read")
            if length < 2 or (8 + length > there and length > MAX_HEADER_BYTES):
                raise Unfit(f"{path} is not a safetensors file; get it again")
            head = file.read(length)
    except OSError as fault:
        raise Unfit(f"{path} cannot be read ({fault.strerror})") from None
    if len(head) < length:
        raise Unfit(f"{path} is truncated ({there} of at least {8 + length} bytes); get it again")
    try:
        table = msgspec.json.decode(head, type=dict[str, msgspec.Raw])
        table.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in table.items()}
    except _PARSE:
        raise Unfit(f"{path} is not a safetensors file; get it again") from None
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, after = tensor.data_offsets
        bits = _BITS.get(tensor.dtype)
        if bits is None:
            raise Unfit(f"{path} has a tensor of the unknown type {tensor.dtype[:20]!r}; get it again")
        if len(tensor.shape) > MAX_DIMENSIONS or not all(0 <= size < MAX_SIZE for size in tensor.shape):
            raise Unfit(f"{path} is damaged: {name[:80]} has a shape that no tensor has; get it again")
        if begin != end:
            raise Unfit(f"{path} is damaged: its tensors overlap or leave gaps ({name[:80]}); get it again")
        if math.prod(tensor.shape) * bits != 8 * (after - begin):
            raise Unfit(f"{path} is damaged: {name[:80]} is not as long as its shape says; get it again")
        end = after
    whole = 8 + length + end
    if there != whole:
        kind = "truncated" if there < whole else "too long"
        raise Unfit(f"{path} is {kind} ({there} of {whole} bytes); get it again")
