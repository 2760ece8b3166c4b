"""A fake of the part of Kubo's RPC that publishing uses. It is not Kubo: `make interop` tests against a real daemon.

Blocks are kept under the CID that a daemon of the chosen kind would give them. kind "kubo" knows `cid-codec` (and
refuses it together with `format`), "js-ipfs" knows `format`, "go-ipfs" knows `format=cbor`; an option that a kind does
not know is ignored and ends in a CIDv0 of dag-pb, as with the real ones.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from multiformats import CID, multihash


class FakeKubo:
    """The daemon's state, and how it misbehaves. sleep: an event that each call waits for, when there is one."""

    def __init__(self, kind: str = "kubo") -> None:
        self.kind = kind
        self.blocks: dict[str, bytes] = {}
        self.pins: set[str] = set()
        self.provided: list[str] = []
        self.calls: list[str] = []
        self.refuse_puts = 0
        self.wrong_cids = False
        self.stall: threading.Event | None = None
        self.address = ""

    def name(self, data: bytes, options: dict[str, str]) -> str:
        given = options.get("cid-codec" if self.kind == "kubo" else "format", options.get("format", ""))
        known = {"dag-cbor": "dag-cbor", "raw": "raw"}
        if self.kind == "go-ipfs":
            known = {"cbor": "dag-cbor", "raw": "raw"}
        digest = multihash.digest(hashlib.sha256(data).digest() if self.wrong_cids else data, "sha2-256")
        if given in known:
            return str(CID("base32", 1, known[given], digest))
        return str(CID("base58btc", 0, "dag-pb", digest))

    def answer(self, path: str, options: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.calls.append(path)
        if self.stall is not None:
            self.stall.wait(10)
        if path == "/api/v0/block/put":
            if self.kind == "kubo" and "format" in options and "cid-codec" in options:
                return 500, {"Message": "unable to use both", "Code": 0, "Type": "error"}
            if self.refuse_puts:
                self.refuse_puts -= 1
                return 500, {"Message": "no space left on device", "Code": 0, "Type": "error"}
            cid = self.name(body, options)
            self.blocks[cid] = body
            return 200, {"Key": cid, "Size": len(body)}
        if path == "/api/v0/pin/add" and options.get("arg") in self.blocks:
            self.pins.add(options["arg"])
            return 200, {"Pins": [options["arg"]]}
        if path == "/api/v0/block/rm" and options.get("arg") in self.blocks:
            del self.blocks[options["arg"]]
            return 200, {"Hash": options["arg"]}
        if path == f"/api/v0/{'dht' if self.kind == 'go-ipfs' else 'routing'}/provide" and self.kind != "js-ipfs":
            self.provided.append(options["arg"])
            return 200, {"ID": "", "Type": 4}
        if path == "/api/v0/pin/rm" and options.get("arg") in self.pins:
            self.pins.discard(options["arg"])
            return 200, {"Pins": [options["arg"]]}
        return 500, {"Message": f"no such thing: {path}", "Code": 0, "Type": "error"}

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[FakeKubo]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                url = urlsplit(self.path)
                options = {k: v[-1] for k, v in parse_qs(url.query).items()}
                status, answer = fake.answer(url.path, options, file_in(self.headers["content-type"], self.read_body()))
                data = json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    self.close_connection = True

            def read_body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        with Server(("127.0.0.1", port), Handler) as server:
            self.address = f"/ip4/127.0.0.1/tcp/{server.server_address[1]}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def file_in(content_type: str | None, body: bytes) -> bytes:
    """The one file of a multipart body."""
    if not content_type or not content_type.startswith("multipart/"):
        return body
    message = email.message_from_bytes(
        b"content-type: " + content_type.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    (part,) = message.iter_parts()  # type: ignore[attr-defined]
    payload: bytes = part.get_payload(decode=True)
    return payload
