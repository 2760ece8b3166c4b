"""A private swarm's owner says who belongs: tickets let people in, the roster keeps them, revoking puts them out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.swarm.admission import Admission, write
from shoal.node.swarm.entrance import JoinFailed
from shoal.node.swarm.invite import Invite
from shoal.node.swarm.roster import ROLES, Owner, RosterRefused, read_roster, read_ticket
from shoal.protocols.peer_id import Identity
from shoal.protocols.session import ProtocolError
from shoal.providers.base import GenerateRequest, ProviderError

from .fakes_swarm import IDENTITIES, FakeNetwork, FakeNode, until

REQUEST = GenerateRequest.of("What is the opposite of hot?")
OWNER, THIEF = Identity.from_seed(b"o" * 32), Identity.from_seed(b"t" * 32)
ME, YOU, OTHER = (identity.peer_id for identity in IDENTITIES[:3])


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_holds_until_it_expires_and_for_its_swarm_alone():
    clock = Clock()
    wire = Owner(OWNER, "home", clock=clock).ticket(["ask"], ttl_s=60)
    ticket = read_ticket(wire, swarm="home", owner=OWNER.peer_id, now=clock.now + 59)
    assert ticket.roles == ("ask",)
    with pytest.raises(RosterRefused, match="expired"):
        read_ticket(wire, swarm="home", owner=OWNER.peer_id, now=clock.now + 60)
    with pytest.raises(RosterRefused, match="future"):
        read_ticket(wire, swarm="home", owner=OWNER.peer_id, now=clock.now - 100)
    with pytest.raises(RosterRefused, match="another swarm"):
        read_ticket(wire, swarm="away", owner=OWNER.peer_id, now=clock.now)
    with pytest.raises(RosterRefused, match="owner"):
        read_ticket(Owner(THIEF, "home").ticket(), swarm="home", owner=OWNER.peer_id, now=clock.now)
    with pytest.raises(RosterRefused, match="owner"):  # a roster is no ticket, whoever signed it
        read_ticket(Owner(OWNER, "home").first_roster(ME), swarm="home", owner=OWNER.peer_id, now=clock.now)


@given(st.binary(max_size=200), st.binary(min_size=64, max_size=64))
def test_noise_is_neither_ticket_nor_roster(body, signature):
    for wire in ([body, signature], [body], body, None, [1, 2]):
        with pytest.raises(RosterRefused):
            read_ticket(wire, swarm="home", owner=OWNER.peer_id, now=0.0)
        with pytest.raises(RosterRefused):
            read_roster(wire, swarm="home", owner=OWNER.peer_id)


@given(st.dictionaries(st.text(max_size=8), st.integers(0, 2**63) | st.text() | st.lists(st.integers(0, 9))))
def test_what_the_owner_signs_must_still_be_well_typed(fields):
    body = msgspec.msgpack.encode(fields)
    wire = [body, OWNER.sign(b"shoal-roster-v1\0" + body)]
    with pytest.raises(RosterRefused):
        read_roster(wire, swarm="home", owner=OWNER.peer_id)


def admission(tmp_path=None, **more) -> Admission:
    path = tmp_path / "roster" if tmp_path is not None else None
    return Admission("home", ME, owner=OWNER.peer_id, path=path, **more)


def test_an_older_roster_does_not_undo_a_revocation(tmp_path):
    pen = Owner(OWNER, "home")
    here = admission(tmp_path)
    first = pen.first_roster(ME)
    assert here.take(first)
    both = pen.admit(here.roster, YOU, ROLES)
    assert here.take(both)
    assert here.roles(YOU) == ROLES
    assert here.take(pen.revoke(here.roster, YOU))
    assert not here.admits(YOU)
    assert not here.take(both)
    assert not here.take(first)
    with pytest.raises(RosterRefused, match="signature"):
        here.take(Owner(THIEF, "home").admit(here.roster, YOU, ROLES))
    again = admission(tmp_path)  # after a restart
    assert again.is_revoked(YOU)
    assert again.admits(ME)


def test_who_is_let_in_again_may_what_it_might_and_no_older_roster_undoes_that(tmp_path):
    pen, here = Owner(OWNER, "home"), admission(tmp_path)
    ticket = pen.ticket(["ask"])
    here.take(pen.first_roster(ME))
    id_ = read_ticket(ticket, swarm="home", owner=OWNER.peer_id, now=time.time()).id
    here.take(pen.admit(here.roster, YOU, ["ask"], id_))
    out = pen.revoke(here.roster, YOU)
    here.take(out)
    here.take(pen.revoke(here.roster, YOU))  # twice is once
    again = pen.readmit(here.roster, YOU)
    here.take(again)
    assert here.roles(YOU) == ("ask",)
    assert not here.take(out)
    assert admission(tmp_path).roles(YOU) == ("ask",)  # after a restart
    with pytest.raises(ProtocolError):  # its ticket may be in other hands
        here.check(OTHER, {"ticket": ticket})
    here.check(YOU, {"ticket": ticket})
    here.take(pen.revoke(here.roster, YOU))
    assert not here.take(again)
    assert here.is_revoked(YOU)
    here.take(pen.readmit(here.roster, YOU, ["serve", "cache"]))
    assert here.roles(YOU) == ("serve", "cache")


def test_the_rosters_of_an_earlier_swarm_of_the_same_owner_and_name_let_nobody_into_a_new_one(tmp_path):
    pen, before = Owner(OWNER, "home"), admission(owner_key=OWNER)
    old = pen.admit(before.roster, YOU, ROLES)
    assert before.take(old)
    write(tmp_path / "roster", pen.first_roster(ME, new=True))  # with a new key, perhaps because of this one
    here = admission(tmp_path, owner_key=OWNER)
    here.take(pen.revoke(here.roster, YOU))
    assert before.number < here.number
    assert not here.take(old)
    for claimed in (before.number, here.number):
        with pytest.raises(ProtocolError):
            here.check(YOU, {"roster": claimed})


def test_an_owners_node_that_has_lost_its_roster_gets_it_back_from_a_member():
    pen, lost, member = Owner(OWNER, "home"), admission(owner_key=OWNER), admission()
    member.take(pen.first_roster(ME, new=True))
    member.take(pen.admit(member.roster, YOU, ROLES))
    assert lost.take(member.wire)
    assert lost.roles(YOU) == ROLES


def test_a_roster_of_a_node_that_does_not_keep_roles_of_those_it_put_out_is_read():
    body = {"swarm": "home", "owner": OWNER.peer_id, "seq": 3, "created": 1.0, "v": 1, "members": [], "void": []}
    encoded = msgspec.msgpack.encode(body | {"revoked": [{"peer": YOU, "at": 1.0}]})
    roster = read_roster([encoded, OWNER.sign(b"shoal-roster-v1\0" + encoded)], swarm="home", owner=OWNER.peer_id)
    assert roster.put_out(YOU).roles == ROLES


def test_who_was_put_out_cannot_come_back_under_another_name_with_the_same_ticket():
    pen, here = Owner(OWNER, "home"), admission(owner_key=OWNER)
    papers = {"ticket": pen.ticket()}
    here.check(YOU, papers)
    here.welcome(YOU)
    assert here.roster.member(YOU) is not None
    here.take(pen.revoke(here.roster, YOU))
    for name in (YOU, OTHER):
        with pytest.raises(ProtocolError):
            here.check(name, papers)
    here.check(OTHER, {"ticket": pen.ticket()})


@pytest.mark.parametrize("papers", [{}, {"ticket": None}, {"ticket": 5}, {"ticket": [b"", b""]}, {"owner": "me"}])
def test_who_has_no_good_papers_stays_out(papers):
    with pytest.raises(ProtocolError):
        admission(owner_key=OWNER).check(YOU, papers)


def test_an_invite_carries_owner_and_ticket_and_one_without_reads_as_before():
    addrs = (f"/ip4/192.0.2.7/tcp/4642/p2p/{ME}",)
    ticket = tuple(Owner(OWNER, "home").ticket())
    invite = Invite(swarm="home", addrs=addrs, key=b"k" * 32, owner=OWNER.peer_id, ticket=ticket)
    assert Invite.parse(invite.text.upper()) == invite
    plain = Invite(swarm="home", addrs=addrs)
    assert Invite.parse(plain.text) == plain
    assert "ticket" not in repr(invite)


# -- the swarm at work ---------------------------------------------------------------------------------------------


class PrivateSwarm:
    """Nodes of one swarm; number 0 is the owner's. `enter` brings one in, with a ticket of these roles."""

    def __init__(self, stack: AsyncExitStack, tmp_path) -> None:
        self.network, self.stack, self.folder = FakeNetwork(), stack, tmp_path
        self.nodes: list[FakeNode] = []
        self.pen = Owner(OWNER, "test")

    async def enter(self, number: int, *, ticket=None, roles=ROLES) -> FakeNode:
        node = FakeNode(self.network, number)
        node.admission = Admission(
            "test",
            node.id,
            owner=OWNER.peer_id,
            ticket=ticket or (self.pen.ticket(roles) if number else None),
            path=self.folder / f"roster{number}",
            owner_key=OWNER if number == 0 else None,
        )
        await self.stack.enter_async_context(node.running())
        self.nodes.append(node)
        return node

    async def join(self, number: int, **how) -> FakeNode:
        node = await self.enter(number, **how)
        await node.swarm.join(self.nodes[0].host.addresses()[0])
        return node

    @property
    def owner(self) -> FakeNode:
        return self.nodes[0]


@asynccontextmanager
async def private_swarm(tmp_path) -> AsyncIterator[PrivateSwarm]:
    async with AsyncExitStack() as stack:
        made = PrivateSwarm(stack, tmp_path)
        await made.enter(0)
        yield made


def roster(node):
    return node.swarm.admission.roster


async def test_who_comes_with_a_ticket_is_put_on_the_roster_and_all_hear_of_it(autojump_clock, tmp_path):
    async with private_swarm(tmp_path) as swarm:
        for number in range(1, 6):
            await swarm.join(number)
        await until(lambda: all(roster(node) and len(roster(node).members) == 6 for node in swarm.nodes))
        await until(lambda: all(one.sees(two) for one in swarm.nodes for two in swarm.nodes if one is not two))


async def test_who_has_no_ticket_or_a_forged_one_stays_outside(autojump_clock, tmp_path):
    async with private_swarm(tmp_path) as swarm:
        one = await swarm.join(1)
        forged = Owner(THIEF, "test").ticket()
        stranger = await swarm.enter(2, ticket=forged)
        stranger.swarm.admission.ticket = forged
        address = swarm.owner.host.addresses()[0]
        with pytest.raises(JoinFailed, match="owner"):
            await stranger.swarm.join(address)
        with pytest.raises(JoinFailed):
            await stranger.swarm.join(one.host.addresses()[0])
        assert not swarm.owner.sees(stranger)
        assert not swarm.owner.swarm.is_member(stranger.id)
        assert swarm.owner.sees(one)


async def test_a_revoked_node_is_dropped_by_all_within_ten_seconds_and_stays_out(autojump_clock, tmp_path):
    async with private_swarm(tmp_path) as swarm:
        nodes = [await swarm.join(number) for number in range(1, 8)]
        await until(lambda: all(one.sees(two) for one in swarm.nodes for two in swarm.nodes if one is not two))
        bad, rest = nodes[3], [node for node in swarm.nodes if node is not nodes[3]]
        swarm.owner.swarm.take_roster(swarm.pen.revoke(roster(swarm.owner), bad.id))
        await until(lambda: not any(node.sees(bad) for node in rest), within=10)
        assert all(one.sees(two) for one in rest for two in rest if one is not two)
        await until(lambda: all(bad.id in node.host.barred for node in rest))
        for _ in range(30):
            await trio.sleep(10)
            assert not any(node.sees(bad) or bad.sees(node) for node in rest)
        late = await swarm.enter(9)
        await late.swarm.join(swarm.owner.swarm.invite())
        await until(lambda: late.sees(swarm.owner) and late.swarm.admission.is_revoked(bad.id))
        with pytest.raises(ProviderError):
            async with bad.swarm.peer(rest[1].id).provider.generate(REQUEST) as answer:
                await anext(answer)


async def test_a_revoked_node_that_is_let_in_again_is_back_at_once_everywhere(autojump_clock, tmp_path):
    async with private_swarm(tmp_path) as swarm:
        nodes = [await swarm.join(number) for number in range(1, 5)]
        await until(lambda: all(one.sees(two) for one in swarm.nodes for two in swarm.nodes if one is not two))
        back, rest = nodes[1], [node for node in swarm.nodes if node is not nodes[1]]
        swarm.owner.swarm.take_roster(swarm.pen.revoke(roster(swarm.owner), back.id))
        await until(lambda: all(back.id in node.host.barred and not node.sees(back) for node in rest))
        await trio.sleep(300)
        swarm.owner.swarm.take_roster(swarm.pen.readmit(roster(swarm.owner), back.id))
        await until(lambda: all(node.sees(back) and back.sees(node) for node in rest), within=5)
        await until(lambda: roster(back).seq == roster(swarm.owner).seq, within=5)


async def test_who_is_let_in_again_while_it_is_told_to_go_is_not_shut_out(autojump_clock, tmp_path):
    async with private_swarm(tmp_path) as swarm:
        one = await swarm.join(1)
        await until(lambda: swarm.owner.sees(one) and roster(one) is not None)
        swarm.owner.swarm.take_roster(swarm.pen.revoke(roster(swarm.owner), one.id))
        swarm.owner.swarm.take_roster(swarm.pen.readmit(roster(swarm.owner), one.id))
        await trio.sleep(10)
        await until(lambda: swarm.owner.sees(one), within=120)
        assert not swarm.owner.host.barred


async def test_roles_say_who_may_ask_serve_and_read(autojump_clock, tmp_path):
    async with private_swarm(tmp_path) as swarm:
        asker = await swarm.join(1, roles=("ask",))
        server = await swarm.join(2, roles=("serve",))
        await until(lambda: asker.sees(server) and asker.sees(swarm.owner), within=10)
        assert not server.sees(asker)  # it offers something and may not
        for node in (asker, server, swarm.owner):
            node.blocks[b"cid"] = b"block"
        assert await asker.swarm.find(b"cid", 1.0) == []
        assert await swarm.owner.swarm.find(b"cid", 1.0)
        (provider,) = [p for p in server.swarm.candidates_for("tiny") if p.peer == swarm.owner.id]
        with pytest.raises(ProviderError, match="right to ask"):
            async with provider.generate(REQUEST) as answer:
                await anext(answer)
        (provider,) = [p for p in asker.swarm.candidates_for("tiny") if p.peer == server.id]
        async with provider.generate(REQUEST) as answer:
            assert [event async for event in answer]


async def test_members_can_invite_while_the_owner_is_away(autojump_clock, tmp_path):
    async with private_swarm(tmp_path) as swarm:
        one = await swarm.join(1)
        await until(lambda: one.sees(swarm.owner))
        invite = one.swarm.invite()
        swarm.owner.host.die()
        await until(lambda: not one.sees(swarm.owner))
        two = await swarm.enter(2, ticket=list(Invite.parse(invite).ticket))
        await two.swarm.join(invite)
        await until(lambda: one.sees(two) and two.sees(one))
