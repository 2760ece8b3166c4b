"""Models from the hub: only what is wanted comes, checked; what broke off goes on; every refusal says what to do.

The hub is a fake after its documentation (huggingface.co/docs/hub/api): the listing with blobs, `resolve` with Range,
and a redirect to another host for large files.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal.providers import weights, weights_hub
from shoal.providers.weights import WeightsRefused

NAME = "someone/small-model"
COMMIT = "c0ffee" * 6


def safetensors(count: int = 50_000) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(i % 251 for i in range(count))


FILES = {
    "model.safetensors": safetensors(),
    "config.json": b'{"max_position_embeddings": 512}',
    "tokenizer.json": b'{"model": {}}',
    "pytorch_model.bin": b"a pickle",
    "modeling_own.py": b"a program",
    "tokenizer_own.py": b"a program",
    "onnx/model.safetensors": b"elsewhere",
    "../evil.safetensors": b"out",
}


class Hub:
    """address: its endpoint. asked: (path, Range or "") of each request; break_after: bytes until a connection ends."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.asked: list[tuple[str, str]] = []
        self.tokens: list[tuple[str, str]] = []
        self.break_after: int | None = None
        self.lies = False
        self.refuses = 0
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, request: Any) -> None:
        path, given = request.path, request.headers.get("Range") or ""
        self.asked.append((path, given))
        self.tokens.append((path.split("/")[1], request.headers.get("Authorization") or ""))
        if self.refuses:
            self.send(request, self.refuses, b"")
        elif path.startswith("/api/models/"):
            self.send(request, 200, json.dumps({"sha": COMMIT, "siblings": self.listed()}).encode())
        elif path.startswith("/cdn/"):
            data = self.files[path.removeprefix("/cdn/")]
            start = int(given.removeprefix("bytes=").removesuffix("-") or 0)
            self.send(request, 206 if start else 200, data[start:], cut=self.break_after)
        else:
            file = path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
            large = file.endswith(".safetensors")
            self.send(request, 302 if large else 200, b"" if large else self.files[file], to=f"/cdn/{file}")

    def listed(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for file, data in self.files.items():
            told = data + b"!" if self.lies and file.endswith(".safetensors") else data
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            row: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": blob}
            if file.endswith(".safetensors"):
                row["lfs"] = {"sha256": hashlib.sha256(told).hexdigest(), "size": len(data), "pointerSize": 134}
            rows.append(row)
        return rows

    @staticmethod
    def send(request: Any, status: int, body: bytes, *, to: str = "", cut: int | None = None) -> None:
        request.send_response(status)
        request.send_header("content-length", str(len(body)))
        if status == 302:
            request.send_header("location", to)
        request.end_headers()
        request.wfile.write(body if cut is None else body[:cut])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.close()


def test_only_what_is_wanted_comes_and_progress_ends_with_all_of_it(hub: Hub, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    folder = weights.install(NAME, tmp_path, lambda *step: steps.append(step))
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "shoal.json",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    whole = sum(len(FILES[name]) for name in ("model.safetensors", "config.json", "tokenizer.json"))
    assert steps[-1] == ("download", whole, whole)
    assert json.loads((folder / "shoal.json").read_text())["source"] == f"hub {NAME} {COMMIT}"
    assert weights.resolve(NAME, tmp_path).context_length == 512
    assert not list(tmp_path.glob(".part-*"))


def test_a_download_that_broke_off_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 20_000
    with pytest.raises(WeightsRefused, match="goes on where it stopped"):
        weights.install(NAME, tmp_path)
    hub.break_after = None
    hub.asked.clear()
    weights.install(NAME, tmp_path)
    assert ("/cdn/model.safetensors", "bytes=20000-") in hub.asked
    assert (weights.resolve(NAME, tmp_path).path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_what_differs_from_the_listing_is_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.lies = True
    with pytest.raises(WeightsRefused, match=r"model\.safetensors is not what the hub lists"):
        weights.install(NAME, tmp_path)
    hub.lies = False
    weights.install(NAME, tmp_path)


def test_the_token_is_for_the_hub_alone(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    weights.install(NAME, tmp_path)
    assert {token for place, token in hub.tokens if place in ("api", "someone")} == {"Bearer hf_secret"}
    assert {token for place, token in hub.tokens if place == "cdn"} == {""}


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "there is no such model"), (401, "HF_TOKEN"), (403, "HF_TOKEN"), (503, "the hub says 503")],
)
def test_what_the_hub_refuses_is_told_in_words(hub: Hub, tmp_path: Path, status: int, says: str) -> None:
    hub.refuses = status
    with pytest.raises(WeightsRefused, match=says):
        weights.install(NAME, tmp_path)


@pytest.mark.parametrize(
    ("file", "says"),
    [("model.Q4_K_M.gguf", r"it has \.gguf only: download one"), ("pytorch_model.bin", "choose another")],
)
def test_a_model_without_safetensors_is_refused_by_name(hub: Hub, tmp_path: Path, file: str, says: str) -> None:
    hub.files = {file: b"x", "config.json": b"{}"}
    with pytest.raises(WeightsRefused, match=says):
        weights.install(NAME, tmp_path)


def test_without_room_nothing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    def none(size: int) -> None:
        raise WeightsRefused(f"no room for {size}")

    with pytest.raises(WeightsRefused, match="no room for 50"):
        weights_hub.fetch(NAME, tmp_path / "m", lambda *step: None, need_space=none)
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE; unset it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "check the name and the network"),
        ({"HF_ENDPOINT": "file:///etc"}, "HF_ENDPOINT is not an http"),
    ],
)
def test_offline_is_refused_clearly(tmp_path: Path, environ: dict[str, str], says: str) -> None:
    with pytest.raises(WeightsRefused, match=says):
        weights_hub.fetch(NAME, tmp_path / "m", lambda *step: None, environ={**os.environ, **environ})
