"""A model from the Hugging Face hub: its safetensors and what belongs to them, checked, and resumed after a failure.

    fetch("owner/model", folder, progress)      # blocking; the files are in `folder` when it returns

What is fetched is listed by the hub with size and digest (GET /api/models/ID?blobs=true: sha256 of large files, git's
blob id of small ones), and each file is checked against that. Half a file stays where it is and is gone on from the
next time (GET /ID/resolve/COMMIT/FILE with Range). Pickles and programs are not even fetched. HF_ENDPOINT and HF_TOKEN
are the hub's own variables; HF_HUB_OFFLINE switches it off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import msgspec
import truststore
from msgspec import Struct

from .weights import WeightsRefused, belongs

Progress = Callable[[str, int, int], None]

ENDPOINT = "https://huggingface.co"
SILENCE_S = 60.0
"""Seconds without a byte after which the hub counts as gone."""
LISTING_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 1024 * 1024
HALF = ".half"


class _Large(Struct):
    sha256: str
    size: int


class _File(Struct):
    rfilename: str
    size: int | None = None
    blobId: str | None = None  # noqa: N815 - the hub's spelling
    lfs: _Large | None = None


class _Listing(Struct):
    sha: str
    siblings: list[_File]


def fetch(
    name: str,
    folder: Path,
    progress: Progress,
    *,
    need_space: Callable[[int], None] = lambda size: None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Bring the files of a model into `folder`, and return the commit that they are of.

    need_space: raises when there is no room for so many more bytes. Raises WeightsRefused with what to do.
    """
    if environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        raise WeightsRefused(f"{name} is not installed and the hub is switched off by HF_HUB_OFFLINE; unset it first")
    endpoint = (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    token = environ.get("HF_TOKEN", "")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(f"{endpoint}/api/models/{name}?blobs=true", token) as answer:
            listing = msgspec.json.decode(answer.read(LISTING_BYTES), type=_Listing)
        files = _wanted(name, listing)
        total = sum(size for _, size, _ in files)
        here = sum(_size(folder / each) or _size(folder / (each + HALF)) for each, _, _ in files)
        need_space(max(0, total - here))
        before = 0
        for each, size, digest in files:
            url = f"{endpoint}/{name}/resolve/{urllib.parse.quote(listing.sha)}/{urllib.parse.quote(each)}"
            for done in _bring(url, token, folder / each, size, digest):
                progress("download", before + done, total)
            before += size
    except urllib.error.HTTPError as error:
        why = {401: "it is not there, or wants a token (HF_TOKEN)", 403: "its owner must let you in first (HF_TOKEN)"}
        reason = why.get(error.code, "there is no such model" if error.code == 404 else f"the hub says {error.code}")
        raise WeightsRefused(f"{name} cannot be fetched from the hub: {reason}") from None
    except (OSError, HTTPException, ssl.SSLError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WeightsRefused(
            f"{name} cannot be fetched from the hub ({type(error).__name__}); check the name and the network, then run"
            " the command again: it goes on where it stopped. Or give a folder or a .gguf file that is already here"
        ) from None
    return listing.sha


def _wanted(name: str, listing: _Listing) -> list[tuple[str, int, str]]:
    """(file, bytes, digest) of what is fetched; the digest is `sha256:...` or `git:...`."""
    found = []
    for file in listing.siblings:
        plain = file.rfilename
        if "/" in plain or "\\" in plain or plain.startswith(".") or not belongs(plain) or plain.endswith(".gguf"):
            continue
        if file.lfs is not None:
            found.append((plain, file.lfs.size, f"sha256:{file.lfs.sha256}"))
        elif file.size is not None and file.blobId is not None:
            found.append((plain, file.size, f"git:{file.blobId}"))
    if not any(file.endswith(".safetensors") for file, _, _ in found):
        others = sorted({Path(file.rfilename).suffix for file in listing.siblings} & {".gguf", ".bin", ".pt"})
        has = f"; it has {' and '.join(others)} only" if others else ""
        remedy = ": download one of its .gguf files and add that" if ".gguf" in others else ", so choose another"
        raise WeightsRefused(f"{name} has no safetensors on the hub{has}{remedy}")
    return found


def _bring(url: str, token: str, file: Path, size: int, digest: str) -> Iterator[int]:
    """Fetch one file, or the rest of it; yields the bytes that are here. Raises WeightsRefused for another content."""
    if _size(file) == size and _digest(file, digest) == digest:
        yield size
        return
    half = file.with_name(file.name + HALF)
    if _size(half) > size:
        half.unlink()
    done = _size(half)
    if done < size or not size:
        with _opened(url, token, start=done) as answer:
            if done and answer.status != 206:  # it sends all of it again
                done = 0
            with half.open("ab" if done else "wb") as out:
                while block := answer.read(min(BLOCK_BYTES, size - done + 1)):
                    done += len(block)
                    if done > size:
                        break
                    out.write(block)
                    yield done
    if done != size:
        raise OSError("the connection ended early" if done < size else "more came than was announced")
    if _digest(half, digest) != digest:
        half.unlink()
        raise WeightsRefused(f"{file.name} is not what the hub lists (its digest differs); run the command again")
    half.replace(file)


@contextlib.contextmanager
def _opened(url: str, token: str, start: int = 0) -> Iterator[HTTPResponse]:
    request = urllib.request.Request(url, headers={"user-agent": "shoal"})  # noqa: S310 - checked below
    if request.type not in ("http", "https"):
        raise WeightsRefused("HF_ENDPOINT is not an http or https address; mend it, or unset it")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for where the hub sends us
    if start:
        request.add_header("Range", f"bytes={start}-")
    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with urllib.request.urlopen(request, timeout=SILENCE_S, context=context) as answer:  # noqa: S310
        yield answer


def _digest(file: Path, like: str) -> str:
    """Of the same kind as `like`."""
    kind = like.partition(":")[0]
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % _size(file))
    with file.open("rb") as source:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
