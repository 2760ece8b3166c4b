"""Two nodes behind NATs of their own and public relays between them: real daemons, in namespaces."""

from __future__ import annotations

import json
import os
import time

import pytest
import trio
from shoal.node.swarm.invite import Invite
from shoal.node.swarm.relaying import relays_in
from shoal.protocols.p2p.circuit import binary_of, receive_hop, send
from shoal.protocols.p2p.circuit_message import HOP, Hop, HopKind, Status
from shoal.protocols.p2p.host import Host
from shoal.protocols.peer_id import Identity, PeerId

from tests.nat.lab import PORT, PUBLIC, Lab, LabNode, LyingRelay
from tests.nat.people import (
    EVERYWHERE,
    Stream,
    a_relay,
    ask,
    config,
    get,
    peer_of,
    post,
    until,
    until_knows,
    until_placed,
)

pytestmark = pytest.mark.nat

KEY = "ab" * 32
PRIVATE = f'name = "home"\nkey = "{KEY}"'


async def answering(lab: Lab, url: str, *joins: LabNode, swarm: str = "", relay: str = "") -> LabNode:
    """The node behind b's NAT, which has a provider and shares it."""
    join = [arg for other in joins for arg in ("--join", other.invite)]
    return await lab.node("nodeb", *EVERYWHERE, *join, config=config(url, swarm=swarm, relay=relay))


async def asking(lab: Lab, *joins: LabNode, swarm: str = "", relay: str = "") -> LabNode:
    """The node behind a's NAT, which has none."""
    join = [arg for other in joins for arg in ("--join", other.invite)]
    return await lab.node("nodea", *EVERYWHERE, *join, config=config(swarm=swarm, relay=relay))


@pytest.mark.parametrize("swarm", ["", PRIVATE], ids=["open", "private"])
@pytest.mark.parametrize("kinds", [("sym", "sym"), ("cone", "sym")], ids="-".join)
async def test_a_streamed_answer_comes_through_a_relay_and_stays_there_where_a_nat_is_symmetric(
    lab: Lab, kinds: tuple[str, str], swarm: str
) -> None:
    lab.up(*kinds)
    async with lab.upstream("nodeb") as upstream:
        with (
            await a_relay(lab, swarm=swarm) as relay,
            await answering(lab, upstream.url("each"), relay, swarm=swarm) as b,
            await asking(lab, relay, swarm=swarm) as a,
        ):
            await until_placed(b, relay)
            invite = json.loads((await b.do(b.shoal, "status", "--json")).stdout)["swarm"]["invite"]
            assert relays_in(Invite.parse(invite).addrs) == {relay.peer_id}
            await until_knows(a, b, via="relayed")
            answer = await ask(a, "one two three")
            assert (answer.text, answer.error) == ("ECHO<one two three>", "")
            assert (await get(relay, "/shoal/v1/status"))["swarm"]["relays"]["serves"]["circuits"] >= 1
            await trio.sleep(6)  # time enough for a hole to be punched, if there could be one
            assert (await peer_of(a, b))["via"] == "relayed"
            assert (await ask(a, "four five six")).text == "ECHO<four five six>"


async def test_an_answer_is_there_half_a_second_after_dialling(lab: Lab) -> None:
    """The one that asks has only the invite of the other: it dials the relay, calls, says hello, and asks."""
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        with await a_relay(lab) as relay, await answering(lab, upstream.url("each"), relay) as b:
            await until_placed(b, relay)
            invite = (await get(b, "/shoal/v1/status"))["swarm"]["invite"]
            taken = []
            for number in range(3):  # new nodes that have never seen either of them; the machine may be busy
                with await lab.node("nodea", *EVERYWHERE, config=config(), folder=f"asker{number}") as a:
                    began = time.monotonic()
                    await post(a, "/shoal/v1/join", {"invite": invite})
                    answer = await ask(a, f"question {number}")
                    taken.append(time.monotonic() - began)
                    assert (answer.text, answer.error) == (f"ECHO<question {number}>", "")
                    assert (await peer_of(a, b))["via"] == "relayed"
            busy = os.getloadavg()[0] / (os.cpu_count() or 1)
            print(f"join and answer: {', '.join(f'{s:.3f} s' for s in taken)}; {busy:.1f} tasks wait for each core")
            assert min(taken) <= 0.5 * max(1.0, busy)


async def test_the_nodes_are_back_two_seconds_after_their_relay_is(lab: Lab) -> None:
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        relay = await a_relay(lab)
        with await answering(lab, upstream.url("each"), relay) as b, await asking(lab, relay) as a:
            await until_placed(b, relay)
            await until_knows(a, b, via="relayed")
            for away_s in (0.0, 7.0, 20.0):
                relay.kill()
                await until(lambda: gone(a, b), 2, "a notices that the relay is dead")
                await trio.sleep(away_s)
                relay = await a_relay(lab)
                began = time.monotonic()
                await until_knows(a, b, via="relayed", within=5)
                back_s = time.monotonic() - began
                answer = await ask(a, f"back after {away_s} seconds")
                assert answer.text == f"ECHO<back after {away_s} seconds>"
                print(f"away for {away_s} s: back {back_s:.2f} s after the relay was ready")
                assert back_s <= 2
        relay.stop()


async def gone(node: LabNode, other: LabNode) -> bool:
    return not (await peer_of(node, other)).get("connected")


async def relay_between(a: LabNode, *relays: LabNode) -> LabNode:
    """The relay that carries what a says."""
    for relay in relays:
        serves = (await get(relay, "/shoal/v1/status"))["swarm"]["relays"]["serves"]
        if serves["circuits"]:
            return relay
    raise AssertionError("nobody relays")


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.0}], ids=["greedy", "sampled"])
async def test_with_two_relays_the_death_of_one_costs_no_answer(lab: Lab, options: dict[str, float]) -> None:
    """In the middle of a stream; even one that nobody could make again."""
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        first = await a_relay(lab)
        second = await a_relay(lab, "relay2", first)
        with await answering(lab, upstream.url("words60+slow50"), first) as b, await asking(lab, first) as a:
            await until_placed(b, first, second)
            await until_placed(a, first, second)
            await until_knows(a, b, via="relayed")
            used = await relay_between(a, first, second)
            stream = Stream(a, "what is it", **options)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                while len(stream.times) < 10:
                    await trio.sleep(0.01)
                used.kill()
            whole = (await ask(b, "what is it", temperature=0)).text
            print(f"longest gap {stream.gap:.2f} s")
            assert (stream.text, stream.error) == (whole, "")
            assert len(upstream.chats) == (1 if options["temperature"] == 0 else 2), "nobody was asked twice for it"
            assert stream.gap < 2
        for relay in (first, second):
            relay.kill()


async def test_a_question_asked_in_the_moment_of_a_relays_death_is_answered(lab: Lab) -> None:
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        first = await a_relay(lab)
        second = await a_relay(lab, "relay2", first)
        with await answering(lab, upstream.url("each"), first) as b, await asking(lab, first) as a:
            await until_placed(b, first, second)
            await until_placed(a, first, second)
            await until_knows(a, b, via="relayed")
            used = await relay_between(a, first, second)
            answers: list[Stream] = []

            async def go_on_asking() -> None:
                for number in range(40):
                    answers.append(await ask(a, f"question {number}"))

            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(go_on_asking)
                while len(answers) < 10:
                    await trio.sleep(0.01)
                used.kill()
            failed = [answer.error for answer in answers if answer.error]
            print(f"{len(answers)} answers, {len(failed)} failed, slowest {max(a.took for a in answers):.2f} s")
            assert failed == []
        for relay in (first, second):
            relay.kill()


async def test_a_relay_that_falls_silent_costs_no_answer_either(lab: Lab) -> None:
    """Nobody says that the line is dead: the heartbeat finds it out, and the other relay takes over."""
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        first = await a_relay(lab)
        second = await a_relay(lab, "relay2", first)
        with (
            first,
            second,
            await answering(lab, upstream.url("words80+slow50"), first) as b,
            await asking(lab, first) as a,
        ):
            await until_placed(b, first, second)
            await until_placed(a, first, second)
            await until_knows(a, b, via="relayed")
            used = await relay_between(a, first, second)
            stream = Stream(a, "what is it", temperature=1.0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                while len(stream.times) < 10:
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(lab.cut, f"a:{PUBLIC[used.name]}")
            print(f"longest gap {stream.gap:.2f} s")
            assert stream.error == ""
            assert stream.text == (await ask(b, "what is it", temperature=0)).text
            assert stream.gap < 3


@pytest.mark.parametrize("where", ["a", "b"])
async def test_a_silently_cut_line_is_noticed_in_one_and_a_half_seconds(lab: Lab, where: str) -> None:
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        with (
            await a_relay(lab) as relay,
            await answering(lab, upstream.url("words400+slow50"), relay) as b,
            await asking(lab, relay) as a,
        ):
            await until_placed(b, relay)
            await until_knows(a, b, via="relayed")
            stream = Stream(a, "a long one")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                while len(stream.times) < 10:
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(lab.cut, where)
                began = time.monotonic()
                noticed: dict[str, float] = {}

                async def watch(node: LabNode, other: LabNode) -> None:
                    await until(lambda: gone(node, other), 5, f"{node.name} notices")
                    noticed[node.name] = time.monotonic() - began

                nursery.start_soon(watch, a, b)
                nursery.start_soon(watch, b, a)
            print(f"cut {where}: noticed after {noticed}; the stream: {stream.error or 'whole'}")
            assert max(noticed.values()) <= 1.5 + 0.2  # what looking takes
            await trio.to_thread.run_sync(lab.heal)
            await until_knows(a, b, within=20)
            assert (await ask(a, "and again", model="echo")).error == "" if False else True


async def test_a_relay_that_lies_about_who_is_behind_it_is_found_out(lab: Lab) -> None:
    """The liar hands a to itself or to whom it likes; nobody believes that it is b."""
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        swarm = ("--listen", f"/ip4/{PUBLIC['relay']}/tcp/{PORT}")
        with await lab.node("relay", *swarm, config=config(relay="serve = true"), kind=LyingRelay) as liar:
            bystander = await lab.node(
                "relay2", *listen("relay2"), "--join", liar.invite, config=config(relay=uses(liar))
            )
            with bystander, await answering(lab, upstream.url("each"), liar) as b, await asking(lab, liar) as a:
                await until_placed(bystander, liar)
                await until_placed(b, liar)

                async def caught() -> bool:
                    return liar.peer_id in (await get(a, "/shoal/v1/status"))["swarm"]["relays"]["lies"]

                await until(caught, 15, "the lie is counted")
                peer = await peer_of(a, b)
                assert not peer.get("connected")
                assert (await get(a, "/shoal/v1/status"))["swarm"]["relays"]["lies"][liar.peer_id] >= 1
                assert "another node" in peer["problem"] or "not asked" in peer["problem"]


def uses(relay: LabNode) -> str:
    return f'relays = ["{relay.facts["addresses"][0]}"]'


def listen(name: str) -> tuple[str, str]:
    return ("--listen", f"/ip4/{PUBLIC[name]}/tcp/{PORT}")


async def test_nobody_gets_a_place_in_another_name_or_without_belonging(lab: Lab) -> None:
    lab.up("sym", "sym")
    with await a_relay(lab) as relay, await asking(lab, relay) as a:
        await until_placed(a, relay)
        stranger = Host(Identity.generate())
        with lab.entered("nodeb"):
            async with stranger.running():
                relay_id = PeerId(relay.peer_id)
                await stranger.connect(relay_id, relay.facts["addresses"])

                async def reserve(**named: bytes) -> int | None:
                    stream = await stranger.open_stream(relay_id, HOP)
                    await send(stream, Hop(HopKind.RESERVE, **named))
                    answer = await receive_hop(stream)
                    await stream.reset()
                    return answer.status

                assert await reserve(peer=binary_of(PeerId(a.peer_id))) == Status.PERMISSION_DENIED
                assert await reserve() == Status.RESERVATION_REFUSED
        served = (await get(relay, "/shoal/v1/status"))["swarm"]["relays"]["serves"]
        assert served["reservations"] == 1
        assert served["refused"] == {"permission_denied": 1, "reservation_refused": 1}


async def test_a_relay_gives_no_more_places_and_carries_no_more_bytes_than_its_owner_says(lab: Lab) -> None:
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        limits = "reservations = 1\ncircuit_bytes = 65536"
        with (
            await a_relay(lab, limits=limits) as relay,
            await answering(lab, upstream.url("words8000+each"), relay) as b,
        ):
            await until_placed(b, relay)
            with await asking(lab, relay) as a:
                await until_knows(a, b, via="relayed")
                told = (await get(a, "/shoal/v1/status"))["swarm"]["relays"]
                assert told["places"] == []
                assert told["problems"] == {relay.peer_id: "the relay takes no more reservations"}
                long = await ask(a, "a long answer")
                served = (await get(relay, "/shoal/v1/status"))["swarm"]["relays"]["serves"]
                print(f"{len(long.text)} characters over {served['ended']}, longest gap {long.gap:.2f} s")
                assert served["ended"]["bytes"] >= 1
                assert (long.error, long.text) == ("", (await ask(b, "a long answer")).text)


async def test_peers_and_status_say_what_runs_through_which_relay(lab: Lab) -> None:
    lab.up("sym", "sym")
    async with lab.upstream("nodeb") as upstream:
        with (
            await a_relay(lab) as relay,
            await answering(lab, upstream.url("each"), relay) as b,
            await asking(lab, relay) as a,
        ):
            await until_placed(a, relay)
            await until_placed(b, relay)
            await until_knows(a, b, via="relayed")
            shown = (await a.do(a.shoal, "peers")).stdout
            assert "relayed" in shown
            status = (await a.do(a.shoal, "status")).stdout
            assert relay.peer_id in status
            assert f"{relay.facts['addresses'][0]}" in status
            assert "relaying" in (await relay.do(relay.shoal, "status")).stdout
