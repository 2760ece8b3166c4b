"""Whatever lies in the data directory, a command ends with one line and a status, and never with a traceback."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal.node import paths, state
from shoal.node.commands.cli import run_cli
from shoal.node.commands.exit_codes import ExitCode

CID = "bafyreib3h6tnyv5v3vvcqcxtwmslrdnfphyfyh5vfzs5gx5vpkq4qmlzrq"
PEER = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
COMMANDS = """
status | status --json | peers | providers | providers test local_hf | top --once | route last | doctor | doctor --json
cache stats | cache list | cache get CID | cache pin CID | cache forget CID | cache forget --prompt hi
cache export OUT.car | cache import IN.car | verify CID | verify IN.car | receipt CID -o R.receipt | ask hi
pause | pause --for 2m | resume | swarm members | swarm invite | swarm invite --role ask
swarm revoke PEER | swarm readmit PEER
swarm create x | join shoal1abcdef | join --forget | token list | token new n | token revoke n
models list | models use smollm2 | config show | config check | service status | version | completion bash
"""
LINES = [
    [{"CID": CID, "PEER": PEER}.get(word, word) for word in line.split()]
    for line in COMMANDS.replace("\n", "|").split("|")
    if line.strip()
]
FILES = (
    *(paths.identity_file, paths.lock_file, paths.rpc_file, paths.swarm_file, paths.p2p_file, paths.peers_file),
    *(paths.health_file, paths.owner_file, paths.sharing_file, paths.answers_file),
)
NAMES = ("tokens.json", "token_usage.json", "config.toml", *(file(Path()).name for file in FILES))
DAMAGE = {"noise": bytes(range(256)), "a number": b"5", "half": b'{"tokens": [{"id": 5'}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "SHOAL_MODELS_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "IN.car").write_bytes(bytes(range(256)))
    return tmp_path


def check(data: Path, capsys: pytest.CaptureFixture[str], lines: list[list[str]] = LINES) -> None:
    for line in lines:
        code = run_cli([*line, "--data-dir", str(data)])
        told = capsys.readouterr()
        assert code != ExitCode.INTERNAL, (line, told.err)
        assert "Traceback" not in told.out + told.err
        assert code == 0 or told.err.startswith("shoal: ") or told.out, (line, told)


@pytest.mark.parametrize("damage", [*DAMAGE, "a folder"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_told(name: str, damage: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = place / "data"
    data.mkdir(mode=0o700)
    if damage == "a folder":
        (data / name).mkdir()
    else:
        (data / name).write_bytes(DAMAGE[damage])
        (data / name).chmod(0o600)
    check(data, capsys)


def test_a_data_directory_that_is_a_file_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "data").write_text("x")
    check(place / "data", capsys)


@pytest.fixture
def liar() -> Iterator[tuple[str, list[bytes]]]:
    """An address where every connection gets the same bytes, whatever it asks."""
    says: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        connection.sendall(says[0])
                    except OSError:
                        continue

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", says
        server.shutdown(socket.SHUT_RDWR)


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body)


@pytest.mark.parametrize(
    "said",
    [b"\x00\xff noise", b"", http(200, b"[]"), http(200, b"null"), http(200, b"<html>"), http(500, b"oops"),
     http(404, b'{"error": {"message": 5}}'), http(200, b"\xff\xfe"), b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"],
)  # fmt: skip
def test_something_else_in_the_nodes_place_is_told(
    said: bytes, place: Path, liar: tuple[str, list[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, says = liar
    says.append(said)
    held(place, address, capsys)


@pytest.mark.parametrize("address", ["", "x", "http://127.0.0.1:1", "127.0.0.1:99999", "\x1b[2J:80", "evil.example:80"])
def test_an_address_that_is_none_is_told(address: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held(place, address, capsys)


def held(place: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check with a data directory whose lock is held, and whose rpc.json names this address."""
    data = place / "data"
    data.mkdir(mode=0o700)
    with paths.lock_file(data).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        with state.rpc_announced(data, address, PEER, "0"):
            check(data, capsys, [line for line in LINES if line[:2] != ["swarm", "create"]])  # it waits for the node
