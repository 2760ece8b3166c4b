"""Which node a command means: the one of --config, of SHOAL_CONFIG, of --data-dir, or the default; the same for all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from shoal.node.commands.cli import chosen, cli
from shoal.node.commands.exit_codes import ExitCode

from .fake_node import fake_node, shoal

STATUS = {"version": "0", "uptime_s": 1, "pid": 1, "peer_id": "12D3KooWFake", "swarm": {}, "providers": {}}


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join([*path, name]), command


def configuration(folder: Path, more: str = "") -> tuple[Path, Path]:
    data, file = folder / "its data", folder / "its.toml"
    data.mkdir(mode=0o700)
    file.write_text(f"[node]\ndata_dir = '{data}'\n{more}")
    return data, file


@pytest.mark.parametrize(("name", "command"), [each for each in commands(cli) if each[0] != "version"])
def test_every_command_can_be_told_which_configuration(name: str, command: click.Command) -> None:
    options = [option for parameter in command.params for option in parameter.opts]
    assert {"--config", "-c", "--data-dir", "--json", "--debug"} <= set(options), name


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["doctor", "--json"]])
async def test_the_node_of_a_configuration_is_asked(command: list[str], tmp_path: Path) -> None:
    data, file = configuration(tmp_path)
    async with fake_node(data) as node:
        node.answers |= {"GET /shoal/v1/status": STATUS, "GET /shoal/v1/providers": {}, "GET /shoal/v1/peers": {}}
        done = await shoal(*command, "--config", str(file))
        assert "GET /shoal/v1/status" in [asked[0] for asked in node.asked], done


async def test_a_group_hands_its_configuration_to_its_commands(tmp_path: Path) -> None:
    data, file = configuration(tmp_path, "[engines]\naddresses = []\n")
    async with fake_node(data) as node:
        await shoal("providers", "--config", str(file), "test", "mine")
        assert node.asked


async def test_a_slip_in_the_file_does_not_keep_its_owner_from_the_running_node(tmp_path: Path) -> None:
    data, file = configuration(tmp_path, '[rpc]\nlistne = "127.0.0.1:0"\n')
    async with fake_node(data) as node:
        node.answers["GET /shoal/v1/status"] = STATUS
        assert (await shoal("status", "-c", str(file))).returncode == 0
        node.answers |= {"GET /shoal/v1/providers": {}, "GET /shoal/v1/peers": {}}
        checked = json.loads((await shoal("doctor", "--json", "-c", str(file))).stdout)
    assert any("did you mean listen?" in finding["text"] for finding in checked["findings"])


async def test_a_node_that_answers_with_an_error_is_a_finding_and_not_the_end_of_the_doctor(tmp_path: Path) -> None:
    data, file = configuration(tmp_path)
    async with fake_node(data) as node:
        node.answers["GET /shoal/v1/status"] = STATUS  # and nothing else
        checked = json.loads((await shoal("doctor", "--json", "-c", str(file))).stdout)
    assert [finding["text"] for finding in checked["findings"] if finding["name"] == "node"] == [
        "There is nothing here."
    ]


@pytest.mark.parametrize("text", ["[node", "node = 1", "[node]\ndata_dir = 1", None])
async def test_a_file_that_does_not_say_where_is_named(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "shoal.toml"
    if text is not None:
        file.write_text(text)
    done = await shoal("status", "--config", str(file))
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(f"shoal: {file}: ".encode())


def test_a_choice_ends_with_its_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CONFIG", "before.toml")
    with chosen(Path("now.toml")):
        assert os.environ["SHOAL_CONFIG"] == "now.toml"
    assert os.environ["SHOAL_CONFIG"] == "before.toml"


# -- a group without a command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "said"), [("token", b"no tokens"), ("models", b"model"), ("config", b"[node]"), ("service", b"unit")]
)
async def test_a_group_by_itself_shows_what_there_is(group: str, said: bytes, tmp_path: Path) -> None:
    done = await shoal(group, "--data-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


async def test_its_help_and_its_commands_are_still_there(tmp_path: Path) -> None:
    assert b"Commands:" in (await shoal("cache", "--help")).stdout
    assert (await shoal("cache", "--json", "get")).returncode == ExitCode.USAGE
    assert b"No such command" in (await shoal("cache", "sttas")).stderr


async def test_the_cache_is_told_in_sentences(tmp_path: Path) -> None:
    looked = {"asked": 4, "found": 1, "seconds": 0.08}
    tier = {"answers": 2, "bytes": 3072, "max_bytes": 1 << 20, "evicted": 0}
    disk = tier | {"damaged": 1, "reason": "no space is left", "waiting_bytes": 2048, "set_aside": ["answers.1.bad"]}
    async with fake_node(tmp_path) as node:
        found = {"mode": "cid", "sealed": True, "misses": 6, "remembered": 6, "memory": tier, "disk": disk}
        found |= {"hits": {"memory": 3, "disk": 0, "swarm": 1}, "refused": {"signature": 2}, "publisher": None}
        found |= {"looked_up": {"swarm": looked, "dht": looked | {"asked": 0}}}
        node.answers["GET /shoal/v1/cache"] = found
        done = await node.shoal("cache")
    assert [" ".join(line.split()) for line in done.stdout.decode().splitlines()] == [
        "look-ups 4 of 10 found: 3 from memory, 1 from swarm",
        "new 6 answers kept since the start",
        "keys as cid, sealed for the swarm",
        "memory 2 answers, 3.0 KiB of 1.0 MiB",
        "disk 2 answers, 3.0 KiB of 1.0 MiB, 1 damaged, 2.0 KiB waiting to be written, no space is left",
        "set aside answers.1.bad",
        "swarm asked 4 times, 1 found, 20 ms each",
        "refused 2 signature",
    ]
