"""A private swarm of real nodes: created by a command, joined by its invite, and left by whom its owner puts out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import segno
import trio
from shoal.node.commands.pause_command import seconds_of
from shoal.node.commands.swarm_command import blocks

from tests.e2e.fixtures import NO_MODEL, in_thread, start, until
from tests.e2e.node_process import NodeProcess

SHOAL = str(Path(sys.executable).with_name("shoal"))


def create(folder: Path, *args: str) -> str:
    run = subprocess.run(
        [SHOAL, "swarm", "create", "lab", *args, "--json", "--data-dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return str(json.loads(run.stdout)["invite"])


def connected(count: int):
    return lambda said: sum(peer["connected"] for peer in said["peers"]) == count


def says(node: NodeProcess, reason: str):
    """Whether that node has told the one that is asked why it does not take it."""
    return lambda said: any(peer["peer"] == node.peer_id and reason in peer["problem"] for peer in said["peers"])


async def test_a_private_swarm_lets_in_who_is_invited_drops_who_is_put_out_and_takes_them_back(
    tmp_path: Path,
) -> None:
    await in_thread(create, tmp_path / "owner", "--private")
    config = NO_MODEL + '[swarm]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
    owner = await start(tmp_path / "owner", config=config)
    with owner:
        invite = json.loads((await in_thread(owner.shoal, "swarm", "invite", "--json")).stdout)["invite"]
        one, two = [await start(tmp_path / name, "--join", invite, config=config) for name in ("one", "two")]
        with one, two:
            for node in (owner, one, two):
                await until(node, ("peers",), connected(2), within=15)
            said = await until(one, ("swarm", "members"), lambda said: len(said.get("members", ())) == 3)
            assert {member["peer"] for member in said["members"]} == {n.peer_id for n in (owner, one, two)}
            refused = await in_thread(one.shoal, "swarm", "revoke", two.peer_id, check=False)
            assert refused.returncode == 5
            assert "owner" in refused.stderr
            began = trio.current_time()
            await in_thread(owner.shoal, "swarm", "revoke", two.peer_id)
            for node in (owner, one):
                await until(node, ("peers",), connected(1))
            await until(two, ("peers",), connected(0))
            assert trio.current_time() - began < 10
            for node in (owner, one):
                await until(two, ("peers",), says(node, "put this node out"))
            shown = (await in_thread(two.shoal, "peers")).stdout + (await in_thread(two.shoal, "status")).stdout
            assert "turned away" in shown
            assert "ask the swarm's owner" in " ".join(shown.split())
            said = await until(one, ("swarm", "members"), lambda said: len(said["revoked"]) == 1)
            for node, peer, code, why in (
                (two, two.peer_id, 5, "owner"),
                (owner, one.peer_id, 2, "a member already"),
                (owner, "12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj", 2, "shoal swarm invite"),
            ):
                refused = await in_thread(node.shoal, "swarm", "readmit", peer, check=False)
                assert (refused.returncode, why in refused.stderr) == (code, True), refused.stderr
            again = await in_thread(owner.shoal, "swarm", "readmit", two.peer_id)
            assert "let in again (ask, serve, cache)" in again.stdout
            for node in (owner, one, two):
                await until(node, ("peers",), connected(2))
            for node in (owner, one):  # the statement that put it out counts no more, whoever sends it
                replay = await in_thread(
                    httpx.post, f"{node.rpc}/shoal/v1/swarm/roster", json={"roster": said["roster"]}
                )
                assert replay.status_code == 409
            await in_thread(owner.shoal, "swarm", "revoke", two.peer_id)
            await until(owner, ("peers",), connected(1))
        with await start(tmp_path / "two", "--join", invite, config=config) as two:
            await until(two, ("peers",), says(owner, "put this node out"))
            for node in (owner, two):
                await until(node, ("peers",), connected(0))
            await in_thread(owner.shoal, "swarm", "readmit", two.peer_id)
        one, two = [await start(tmp_path / name, "--join", invite, config=config) for name in ("one", "two")]
        with one, two:  # neither heard of it when it was said
            for node in (owner, one, two):
                await until(node, ("peers",), connected(2), within=15)


async def test_a_running_node_moves_to_the_swarm_that_it_creates_and_others_follow(tmp_path: Path) -> None:
    config = NO_MODEL + '[swarm]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
    with await start(tmp_path / "one", config=config) as one, await start(tmp_path / "two", config=config) as two:
        made = await in_thread(one.shoal, "swarm", "create", "lab", "--private", "--json")
        invite = json.loads(made.stdout)["invite"]
        assert json.loads((await in_thread(one.shoal, "status", "--json")).stdout)["swarm"]["private"]
        await in_thread(two.shoal, "join", invite)
        for node in (one, two):
            await until(node, ("peers",), connected(1), within=20)
        open_one = await in_thread(one.shoal, "swarm", "create", "plaza", "--json")
        assert not json.loads(open_one.stdout)["private"]
        status = await until(one, ("status",), lambda said: said["swarm"]["name"] == "plaza", within=20)
        assert not status["swarm"]["private"]
        await until(two, ("peers",), connected(0))


async def test_pause_and_resume_are_told(tmp_path: Path) -> None:
    with await start(tmp_path / "one", config=NO_MODEL) as one:
        assert "2m00s" in (await in_thread(one.shoal, "pause", "--for", "2m")).stdout
        told = json.loads((await in_thread(one.shoal, "pause", "--json")).stdout)
        assert told["paused"]
        assert told["paused_until"] is None
    with await start(tmp_path / "one", config=NO_MODEL) as one:  # the pause holds over a restart
        assert json.loads((await in_thread(one.shoal, "resume", "--json")).stdout)["paused"] is False
        wrong = await in_thread(one.shoal, "pause", "--for", "soon", check=False)
        assert wrong.returncode == 2


def test_spans_of_time_are_read_as_people_write_them() -> None:
    assert [seconds_of(text) for text in ("30s", "1.5h", "2 d")] == [30, 5400, 172_800]


@pytest.mark.parametrize("text", ["shoal1abc", "SHOAL1" + "A7" * 400])
def test_the_qr_code_on_the_screen_is_the_code(text: str) -> None:
    matrix = segno.make(text.upper(), error="l", micro=False).matrix
    lines = blocks(matrix).split("\n")
    pixels: list[list[int]] = []
    for line in lines:
        pixels.append([int(sign in "▄ ") for sign in line])
        pixels.append([int(sign in "▀ ") for sign in line])
    size = len(matrix)
    assert [row[2 : 2 + size] for row in pixels[2 : 2 + size]] == [list(row) for row in matrix]
    assert not any(pixels[0] + pixels[1])
