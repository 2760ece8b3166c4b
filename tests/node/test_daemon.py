"""The daemon's parts together, in this process: what it says, what it opens, joins, remembers and lets go of."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.node import lock, state
from shoal.node.announce import Announcer
from shoal.node.commands.exit_codes import ExitCode
from shoal.node.commands.failures import CommandError
from shoal.node.config_file import Override, load_config
from shoal.node.daemon import Daemon, open_listener
from shoal.node.identity import load_or_make
from shoal.node.swarm.invite import Invite
from shoal.protocols.http.client import Client
from shoal.providers.registry import Registry
from shoal.providers.settings import ProviderSettings

from .fakes_router import Pause, Scripted, Step, says

KEY = bytes(range(32))


class Heard(Announcer):
    """Keeps what a node announces."""

    def __init__(self) -> None:
        super().__init__(as_json=True, stream=io.StringIO())
        self.events: list[dict[str, Any]] = []
        self._news = trio.Event()

    def _write(self, line: str) -> None:
        self.events.append(json.loads(line))
        news, self._news = self._news, trio.Event()
        news.set()

    async def next(self, event: str, *, after: int = 0) -> dict[str, Any]:
        """The first such event among those after the first `after`."""
        with trio.fail_after(20):
            while True:
                for said in self.events[after:]:
                    if said["event"] == event:
                        return said
                await self._news.wait()


class Node:
    """A daemon in this process, and a client of its RPC."""

    def __init__(self, daemon: Daemon, heard: Heard, http: Client) -> None:
        self.daemon, self.heard, self.http = daemon, heard, http
        self.ended = trio.Event()

    async def ready(self, *, after: int = 0) -> dict[str, Any]:
        return await self.heard.next("ready", after=after)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        data = None if body is None else json.dumps(body).encode()
        with trio.fail_after(20):
            url = (await self.heard.next("rpc"))["rpc"] + path
            async with self.http.request(method, url, body=data) as response:
                return response.status, json.loads(await response.read(1 << 20)), dict(response.headers)

    async def ask(self, question: str = "What is the opposite of hot?") -> tuple[int, Any, dict[str, str]]:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        return await self.call("POST", "/v1/chat/completions", body)

    async def ask_in_vain(self) -> None:
        """For what ends with the node, however it does."""
        with contextlib.suppress(Exception):
            await self.ask()

    async def until_busy(self, requests: int = 1) -> None:
        with trio.fail_after(5):
            while (await self.call("GET", "/shoal/v1/status"))[1]["requests"]["in_flight"] < requests:
                await trio.sleep(0.01)

    async def peers(self) -> list[dict[str, Any]]:
        return list((await self.call("GET", "/shoal/v1/peers"))[1]["peers"])

    async def until_a_peer(self, *, offers: bool = True) -> None:
        with trio.fail_after(20):
            while not any(peer["connected"] and (peer["models"] or not offers) for peer in await self.peers()):
                await trio.sleep(0.02)


@contextlib.asynccontextmanager
async def node(
    data: Path, *steps: Step, share: bool = False, joined: tuple[str, ...] = (), toml: str = ""
) -> AsyncIterator[Node]:
    """A node whose one provider plays `steps`; without steps it has no provider. Ends with the block."""
    data.mkdir(exist_ok=True, mode=0o700)
    (data / "config.toml").write_text(toml)
    overrides = {"rpc.listen": Override("--rpc", "127.0.0.1:0")}
    loaded = load_config(data_dir=data, environ={}, overrides=overrides)
    registry = Registry()
    if steps:
        registry._built = {"scripted": (Scripted("scripted", list(steps)), ProviderSettings(share=share))}
    heard, http = Heard(), Client(environ={})
    with lock.hold(data):
        identity, _ = load_or_make(data / "identity.json")
        daemon = Daemon(loaded, identity, registry, heard, joined)
        daemon.watchdog.start = lambda: None  # type: ignore[method-assign]  # it would end the tests
        running = Node(daemon, heard, http)
        async with trio.open_nursery() as nursery, http.running():

            async def live() -> None:
                await daemon.run()
                running.ended.set()

            nursery.start_soon(live)
            yield running
            daemon.stopping.set()
            daemon.scope.deadline = trio.current_time() + 3
            with trio.fail_after(5):
                await running.ended.wait()


async def test_a_lone_node_says_what_it_is_and_stays_on_loopback(tmp_path: Path) -> None:
    async with node(tmp_path, *says("Cold.")) as one:
        ready = await one.ready()
        assert [e["event"] for e in one.heard.events] == ["rpc", "swarm", "provider", "ready"]
        assert ready["peer_id"] == one.daemon.identity.peer_id
        assert ready["swarm"] == "shoal"
        about = {"configured": True, "ready": True, "reason": "", "models": ["m1"], "share": False}
        assert ready["providers"]["scripted"] == about
        assert all(address.startswith("/ip4/127.0.0.1/") for address in ready["addresses"])
        assert Invite.parse(ready["invite"]).swarm == "shoal"
        assert 0 < ready["seconds"]["rpc"] <= ready["seconds"]["ready"]


async def test_the_rpc_answers_and_remembers(tmp_path: Path) -> None:
    async with node(tmp_path, *says("Cold.")) as one:
        status, body, headers = await one.ask()
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Cold.")
        assert headers["x-shoal-cache"] == "miss"
        assert (await one.ask())[2]["x-shoal-cache"] == "memory"


async def test_the_rpc_is_found_by_its_state_file_only_while_the_node_runs(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        ready = await one.ready()
        found = state._read(tmp_path / "rpc.json", state.RpcState)
        assert found is not None
        assert f"http://{found.address}" == ready["rpc"]
        assert found.invite == ready["invite"]
    assert not (tmp_path / "rpc.json").exists()


async def test_a_question_that_this_node_cannot_answer_goes_to_the_peer_that_can(tmp_path: Path) -> None:
    async with node(tmp_path / "a", *says("Cold."), share=True) as giver, node(tmp_path / "b") as asker:
        invite = (await giver.ready())["invite"]
        status, said, _ = await asker.call("POST", "/shoal/v1/join", {"invite": invite})
        assert (status, said["swarm"], said["moving"]) == (200, "shoal", False)
        await asker.until_a_peer()
        status, body, headers = await asker.ask()
        assert body["choices"][0]["message"]["content"] == "Cold."
        assert headers["x-shoal-peer"] == giver.daemon.identity.peer_id
        assert (await asker.ask())[2]["x-shoal-cache"] == "memory"
        status, verdict, _ = await asker.call("GET", f"/shoal/v1/verify/{headers['x-shoal-cid']}")
        assert verdict["ok"]


async def test_what_is_not_shared_is_not_offered(tmp_path: Path) -> None:
    async with node(tmp_path / "a", *says("Cold."), share=False) as giver:
        invite = (await giver.ready())["invite"]
        async with node(tmp_path / "b", joined=(invite,)) as asker:
            await asker.until_a_peer(offers=False)
            assert (await asker.ask())[0] == 503


async def test_a_joined_swarm_is_joined_again_at_the_next_start(tmp_path: Path) -> None:
    async with node(tmp_path / "a", *says("Cold."), share=True, toml='[swarm]\nname = "home"\n') as giver:
        invite = (await giver.ready())["invite"]
        async with node(tmp_path / "b") as asker:
            await asker.ready()
            assert (await asker.call("POST", "/shoal/v1/join", {"invite": invite}))[0] == 200
        async with node(tmp_path / "b") as asker:
            assert (await asker.ready())["swarm"] == "home"
            await asker.until_a_peer()


async def test_an_invite_stays_good_when_its_node_starts_again(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        first = (await one.ready())["addresses"]
    async with node(tmp_path) as one:
        assert (await one.ready())["addresses"] == first


async def test_a_port_of_last_time_that_is_taken_now_is_replaced(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        tmp_path.chmod(0o700)
        state.remember_ports(tmp_path, state.P2pState(loopback=port))
        async with node(tmp_path) as one:
            (address,) = (await one.ready())["addresses"]
            assert f"/tcp/{port}/" not in address


async def test_a_private_swarm_is_joined_while_running_and_the_rpc_stays_where_it_was(tmp_path: Path) -> None:
    private = f'[swarm]\nname = "home"\nkey = "{KEY.hex()}"\n'
    async with node(tmp_path / "a", *says("Cold."), share=True, toml=private) as giver, node(tmp_path / "b") as asker:
        invite, before = (await giver.ready())["invite"], await asker.ready()
        count = len(asker.heard.events)
        status, said, _ = await asker.call("POST", "/shoal/v1/join", {"invite": invite})
        assert (status, said) == (200, {"swarm": "home", "private": True, "moving": True})
        after = await asker.ready(after=count)
        assert (after["swarm"], after["rpc"], after["peer_id"]) == ("home", before["rpc"], before["peer_id"])
        await asker.until_a_peer()
        _, body, headers = await asker.ask()
        assert body["choices"][0]["message"]["content"] == "Cold."
        assert headers["x-shoal-cid"]
        assert (await giver.ask())[2]["x-shoal-cache"] == "memory"


async def test_a_private_swarms_key_is_in_no_answer_of_the_rpc(tmp_path: Path) -> None:
    private = f'[swarm]\nname = "home"\nkey = "{KEY.hex()}"\n'
    async with node(tmp_path, toml=private) as one:
        invite = (await one.ready())["invite"]
        assert Invite.parse(invite).key == KEY
        _, said, _ = await one.call("GET", "/shoal/v1/status")
        assert said["swarm"]["private"]
        assert invite not in json.dumps(said)
        assert KEY.hex() not in json.dumps(said)


async def test_a_bad_invite_is_refused_and_nothing_is_remembered(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await one.ready()
        status, said, _ = await one.call("POST", "/shoal/v1/join", {"invite": "shoal1nonsense"})
        assert status == 400
        assert said["error"]["param"] == "invite"
        assert state.remembered_swarm(tmp_path) is None


async def test_a_request_under_way_is_finished_before_the_node_ends(tmp_path: Path) -> None:
    async with node(tmp_path, "Co", Pause(0.3), *says("ld.")) as one:
        await one.ready()
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await one.ask())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await one.until_busy()
            one.daemon.stopping.set()
        assert answers[0][1]["choices"][0]["message"]["content"] == "Cold."


async def test_a_request_that_does_not_end_is_cut_in_time(tmp_path: Path) -> None:
    async with node(tmp_path, "Co", Pause(3600), toml="[node]\ndrain_s = 0.1\n") as one:
        await one.ready()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.ask_in_vain)
            await one.until_busy()
            began = trio.current_time()
            one.daemon.stopping.set()
            await one.ended.wait()
            assert trio.current_time() - began < 2


async def test_callers_of_answers_that_are_cut_at_the_end_are_told_so(tmp_path: Path) -> None:
    """Whole answers get a status, streams an event in place of their end; who comes now is not left waiting."""
    async with node(tmp_path, "Co", Pause(3600), toml="[node]\ndrain_s = 0.3\n") as one:
        await one.ready()
        url = (await one.heard.next("rpc"))["rpc"]
        told: dict[bool, tuple[int, str]] = {}

        async def ask(stream: bool) -> None:
            body = {"messages": [{"role": "user", "content": f"Hot {stream}?"}], "stream": stream}
            async with one.http.request("POST", url + "/v1/chat/completions", body=json.dumps(body).encode()) as answer:
                told[stream] = answer.status, (await answer.read(1 << 20)).decode()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, False)
            nursery.start_soon(ask, True)
            await one.until_busy(2)
            one.daemon.stopping.set()
            await trio.sleep(0.1)
            assert one.daemon.listener is not None
            assert one.daemon.listener.fileno() == -1, "nobody can connect any more"
        assert told[False][0] == 503
        assert json.loads(told[False][1])["error"]["code"] == "stopping"
        assert told[True][0] == 200
        assert '"content":"Co"' in told[True][1]
        assert '"code":"stopping"' in told[True][1].rpartition("data: ")[2]
        assert "[DONE]" not in told[True][1]


async def test_a_signal_ends_the_node_in_order_and_a_second_one_at_once(tmp_path: Path) -> None:
    toml = "[node]\ndrain_s = 60\n"
    async with node(tmp_path, "Co", Pause(3600), toml=toml) as one:
        await one.ready()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.ask_in_vain)
            await one.until_busy()
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await one.heard.next("stopping"))["why"] == "SIGTERM"
            os.kill(os.getpid(), signal.SIGINT)
            with trio.fail_after(3):
                await one.ended.wait()


async def test_an_rpc_port_that_is_taken_names_the_option_to_change(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = f"127.0.0.1:{taken.getsockname()[1]}"
        load = functools.partial(load_config, data_dir=tmp_path, environ={})
        for overrides, remedy in (
            ({"rpc.listen": Override("--rpc", text)}, "choose another"),
            ({"rpc.listen": Override("SHOAL_RPC_LISTEN", text)}, "change SHOAL_RPC_LISTEN"),
        ):
            with pytest.raises(CommandError, match=f"{text}: it is taken by another program; {remedy}") as caught:
                open_listener(load(overrides=overrides))
            assert caught.value.code == ExitCode.PORT_TAKEN


async def test_a_chosen_swarm_port_that_is_taken_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    from shoal.node.swarm_seat import ListenError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        toml = f'[swarm]\nlisten = ["/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"]\n'
        refused = pytest.RaisesExc(ListenError, match="change swarm.listen or --listen")
        with pytest.RaisesGroup(refused, flatten_subgroups=True):
            async with node(tmp_path, toml=toml) as one:
                await one.ready()


def test_lines_for_people_hold_the_facts() -> None:
    out = io.StringIO()
    said = Announcer(as_json=False, stream=out)
    said.start(version="1", peer_id="12D3", data_dir="/d", pid=1, new=True)
    said.rpc("http://127.0.0.1:1", 0.5)
    not_ready = {"configured": True, "ready": False, "models": [], "share": False}
    ready = {"configured": True, "ready": True, "reason": "", "models": ["smollm2"], "share": True}
    later = not_ready | {"configured": False, "reason": "not installed"}
    said.providers({"local_hf": ready, "openrouter": not_ready | {"reason": "no key"}, "b": later, "a": later})
    said.swarm(name="home", private=True, addresses=["/ip4/0.0.0.0/tcp/1"], opened=True)
    said.ready({"invite": "shoal1x"})
    text = out.getvalue()
    assert "peer id    12D3 (new)" in text
    assert "RPC        http://127.0.0.1:1/v1\n  dashboard  http://127.0.0.1:1/\n" in text
    assert "local_hf: ready (smollm2), shared with peers\n" in text
    assert "2 more can be set up" in text
    assert "not installed" not in text
    assert "openrouter: not ready: no key" in text
    assert "swarm      home (private)" in text
    assert "open on every interface" in text
    assert text.endswith("invite     shoal1x\nready; Ctrl-C ends it\n")


def test_that_nobody_reads_the_lines_does_not_end_the_node() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    said = Announcer(as_json=False, stream=stream)
    said.note("x" * 100_000)
    with contextlib.suppress(BrokenPipeError):
        stream.close()
