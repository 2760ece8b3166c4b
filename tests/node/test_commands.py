"""The command line as a person and a script meet it: what is printed where, and what the exit status says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from shoal.node.commands.cli import SUBCOMMANDS
from shoal.node.commands.client import NO_NODE
from shoal.node.commands.exit_codes import MEANING, ExitCode
from shoal.node.commands.failures import only, report
from shoal.node.commands.output import duration, size, without_controls

from .fake_node import SHOAL, fake_node, shoal

CID = "bafyreib3h6tnyv5v3vvcqcxtwmslrdnfphyfyh5vfzs5gx5vpkq4qmlzrq"


async def test_version_is_one_line_on_stdout() -> None:
    done = await shoal("version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"shoal ")
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_version_loads_nothing_heavy() -> None:
    probe = "import sys; from shoal.node.commands.cli import run_cli; run_cli(['version']); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    loaded = set(out.split())
    assert not loaded & {"trio", "rich", "msgspec", "cryptography", "torch", "libp2p", "shoal.node.daemon"}


@pytest.mark.parametrize("name", SUBCOMMANDS)
async def test_every_command_has_help_with_an_example(name: str) -> None:
    done = await shoal(name, "--help")
    assert done.returncode == 0, done.stderr
    assert b"Examples:\n  shoal " + name.encode() in done.stdout or b"| shoal " + name.encode() in done.stdout


async def test_help_lists_the_commands_and_what_exit_codes_mean() -> None:
    text = (await shoal("--help")).stdout.decode()
    assert all(f"  {name} " in text for name in SUBCOMMANDS)
    assert all(f"{code.value}  {meaning}" in text for code, meaning in MEANING.items())


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANING) == set(ExitCode)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["statsu"], b"Did you mean status?"),
        (["status", "--jsn"], b"Did you mean '--json'?"),
        (["swarm"], b"Missing command"),
        (["cache", "get"], b"Missing argument 'CID'"),
        (["ask", "--max-tokens", "0", "hi"], b"0 is not in the range"),
        (["join"], b"Give an INVITE"),
    ],
)
async def test_wrong_usage_is_one_line_and_exit_status_2(arguments: list[str], hint: bytes) -> None:
    done = await shoal(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.count(b"\n") == 1
    assert hint in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["peers", "--json"],
        ["providers"],
        ["cache", "stats"],
        ["cache", "get", CID],
        ["verify", CID],
        ["ask", "hi"],
    ],
)
async def test_without_a_node_every_command_says_how_to_start_one(tmp_path: Path, arguments: list[str]) -> None:
    done = await shoal(*arguments, "--data-dir", str(tmp_path))
    assert done.returncode == ExitCode.NO_NODE
    assert done.stderr == f"shoal: {NO_NODE}\n".encode()
    assert done.stdout == b""


async def test_what_a_crashed_node_left_behind_is_not_asked(tmp_path: Path) -> None:
    async with fake_node(tmp_path):
        left = (tmp_path / "rpc.json").read_bytes()
    (tmp_path / "rpc.json").write_bytes(left)
    assert (await shoal("status", "--data-dir", str(tmp_path))).returncode == ExitCode.NO_NODE


async def test_a_node_that_is_still_starting_is_said_to_be(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        (tmp_path / "rpc.json").unlink()
        done = await node.shoal("status")
    assert done.returncode == ExitCode.NO_NODE
    assert f"(pid {os.getpid()}) is starting or ending".encode() in done.stderr


async def test_the_data_directory_is_found_through_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SHOAL_DATA_DIR", str(tmp_path))
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/status"] = {"peer_id": "12D3"}
        assert (await shoal("status", "--json")).returncode == 0


@pytest.mark.parametrize("said", [b"<html>", b'{"a": "\xff"}'])
async def test_something_else_on_the_nodes_port_is_no_traceback(tmp_path: Path, said: bytes) -> None:
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/status"] = said
        done = await node.shoal("status")
    assert done.returncode == ExitCode.NO_NODE
    assert done.stderr == b"shoal: what answered here is not a Shoal node\n"


async def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/peers"] = {"peers": [{"peer": "x" * 1000} for _ in range(1000)]}
        command = f"'{SHOAL}' peers --json --data-dir '{tmp_path}' | head -c 10; echo ${{PIPESTATUS[0]}} >&2"
        environ = {**os.environ, "PYTHONUNBUFFERED": ""}  # with it, Python takes a short write for a whole one
        done = await trio.run_process(["bash", "-c", command], capture_stdout=True, capture_stderr=True, env=environ)
    assert done.stderr == b"141\n"


# -- configuration ---------------------------------------------------------------------------------------------


async def test_config_check_says_that_a_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[router]\nhops = 0\n")
    done = await shoal("config", "check", str(tmp_path / "a.toml"), "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/a.toml: in order\n".encode())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[rpc]\nlistne = 1\n", "rpc.listne: unknown key; did you mean listen?"),
        ("[providers.lokal_hf]\n", "providers.lokal_hf"),
        ("[providers.local_hf]\nshare = 1\n", "providers.local_hf.share"),
        ('[router]\norder = ["nobody"]\n', "router.order: 'nobody'"),
    ],
)
async def test_config_check_names_file_key_and_remedy(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    done = await shoal("config", "check", str(tmp_path / "a.toml"), "--data-dir", str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.decode().startswith(f"shoal: {tmp_path}/a.toml: {fault}")
    assert done.stderr.count(b"\n") == 1


async def test_sharing_a_provider_that_is_none_is_blamed_on_the_option(tmp_path: Path) -> None:
    done = await shoal("run", "--share", "nobody", "--data-dir", str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(b"shoal: --share nobody: ")


async def test_config_show_prints_what_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'[swarm]\nkey = "{"ab" * 32}"\n')
    done = await shoal("config", "show", "--data-dir", str(tmp_path))
    assert f"# file: {tmp_path}/config.toml\n".encode() in done.stdout
    assert b'key = "(hidden)"' in done.stdout
    assert b"abab" not in done.stdout


# -- faults ----------------------------------------------------------------------------------------------------


def test_a_fault_of_our_own_is_one_line_and_a_traceback_only_with_debug(capsys) -> None:
    try:
        raise RuntimeError("oh")
    except RuntimeError as caught:
        error = caught
    assert report(error, debug=False) == ExitCode.INTERNAL
    assert capsys.readouterr().err == (
        "shoal: a fault of Shoal's own (RuntimeError: oh); run it again with --debug to see where\n"
    )
    report(error, debug=True)
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_matters_more_than_what_it_broke() -> None:
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [KeyboardInterrupt()])])
    assert isinstance(only(group), KeyboardInterrupt)
    assert report(group, debug=False) == ExitCode.INTERRUPTED


def test_a_models_words_cannot_steer_the_terminal() -> None:
    assert without_controls("a\x1b[2Jb\rc\x07\u009bd\n\té") == "a[2Jbcd\n\té"


def test_sizes_and_times_are_written_for_people() -> None:
    assert [size(n) for n in (0, 1536, 5 << 20, 3 << 40)] == ["0 B", "1.5 KiB", "5.0 MiB", "3.0 TiB"]
    assert [duration(s) for s in (0.25, 3, 75, 3700, 90_000)] == ["250 ms", "3.0 s", "1m15s", "1h01m", "1d01h"]
