"""`shoal swarm`: create one, invite people into it, see who belongs, put nodes out and let them in again.

The owner's key is in the data directory (owner.json) and is used by these commands alone and by the node on the same
directory; it never goes over the RPC. What they sign, the running node passes on.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli import Group, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import duration, print_json, print_table, print_text

if TYPE_CHECKING:
    from ...protocols.peer_id import PeerId
    from ..swarm.invite import Invite
    from ..swarm.roster import Owner, Role, Roster

EXAMPLES = """\
shoal swarm create lab --private     a swarm of your own; strangers cannot even connect
shoal swarm invite                   the line (and QR code) that lets somebody in for a week
shoal swarm invite --role ask        the same for somebody who may only ask
shoal swarm members                  who belongs, in which roles
shoal swarm revoke PEER              put a node out, everywhere and for good
shoal swarm readmit PEER             let it in again after all"""

MOVE_S = 20.0
NOT_OWNER = "this machine does not hold the key of the swarm's owner; do it on the machine where it was created"
PORT = 4642


@click.group(cls=Group, examples=EXAMPLES)
def command() -> None:
    """Create a swarm, invite people, put nodes out, and let them in again."""


# -- create --------------------------------------------------------------------------------------------------------


@command.command(examples="shoal swarm create lab --private\nshoal swarm create lab && shoal run")
@click.argument("name")
@click.option("--private", is_flag=True, help="With a key and an owner: only whom you invite gets in.")
@click.option("--no-qr", is_flag=True, help="Without the QR code.")
@common
def create(name: str, private: bool, no_qr: bool, as_json: bool, data_dir: Path | None) -> None:
    """Create a swarm, and print the invite to it.

    A running node moves to it at once, another at its next start. With --private this machine becomes the owner's:
    back up owner.json in the data directory, nobody can be invited or put out without it.
    """
    from .. import paths, state
    from ..identity import load_or_make
    from ..swarm import admission
    from ..swarm.invite import Invite
    from ..swarm.roster import Owner
    from .client import find_data_dir

    data = find_data_dir(data_dir)
    paths.make_data_dir(data)
    me, _ = load_or_make(paths.identity_file(data))
    owner = ticket = None
    if private:
        key, _ = load_or_make(paths.owner_file(data))
        pen = Owner(key, name)
        statement, signature = pen.ticket()
        owner, ticket = pen.id, (statement, signature)
        admission.write(paths.roster_file(data, owner), pen.first_roster(me.peer_id, new=True))  # it has new members
    invite = Invite(
        swarm=name,
        addrs=tuple(f"{address}/p2p/{me.peer_id}" for address in own_addresses(data)),
        key=secrets.token_bytes(32) if private else None,
        owner=owner,
        ticket=ticket,
    )
    if state.running_rpc(data) is not None:
        text = trio_run(move_to, data_dir, invite)
        lines = [f"created {name!r}; the node here has moved to it"]
    else:
        state.remember_swarm(data, invite.text)
        text = invite.text
        lines = [f"created {name!r}; start its first node with `shoal run`"]
    show_invite(text, lines, private=private, qr=not no_qr, as_json=as_json, swarm=name)


def own_addresses(data: Path) -> list[str]:
    """Where the node on this directory will listen once its swarm reaches beyond the machine."""
    from ...protocols.interfaces import machine_addresses
    from .. import state

    port = state.last_ports(data).everywhere or PORT
    return [f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}" for host in machine_addresses()[:4]]


async def move_to(data_dir: Path | None, invite: Invite) -> str:
    """Have the running node move; the invite with its real addresses, once it is up."""
    import trio

    from ..swarm.invite import Invite
    from .client import connect, find_node

    async with connect(data_dir) as node:
        try:
            await node.post("/shoal/v1/join", {"invite": invite.text})
        except CommandError as error:
            if error.code != ExitCode.NO_ANSWER:  # a node that moves may close the connection before its answer
                raise
    with trio.move_on_after(MOVE_S):
        while True:
            swarm = await _swarm_of(data_dir)
            if swarm.get("name") == invite.swarm and swarm.get("up") and (found := find_node(data_dir)).invite:
                told = Invite.parse(found.invite)
                if told.key == invite.key and told.owner == invite.owner:
                    return found.invite
            await trio.sleep(0.1)
    raise CommandError("the node here did not come up in the new swarm; see its log", ExitCode.NO_ANSWER)


async def _swarm_of(data_dir: Path | None) -> dict[str, Any]:
    """What the running node says of its swarm; nothing while it moves."""
    from .client import connect

    try:
        async with connect(data_dir) as node:
            with contextlib.suppress(CommandError):
                return dict(await node.get("/shoal/v1/swarm"))
    except CommandError:
        pass
    return {}


# -- invite --------------------------------------------------------------------------------------------------------


@command.command(examples="shoal swarm invite\nshoal swarm invite --role ask --role cache --days 1")
@click.option(
    "--role",
    "roles",
    type=click.Choice(["ask", "serve", "cache"]),
    multiple=True,
    help="What they may do; all by default.",
)
@click.option("--days", type=click.FloatRange(0, 3650, min_open=True), default=7.0, show_default=True, help="Good for.")
@click.option("--no-qr", is_flag=True, help="Without the QR code.")
@common
def invite(roles: tuple[str, ...], days: float, no_qr: bool, as_json: bool, data_dir: Path | None) -> None:
    """Print an invite to the swarm of the running node.

    In a private swarm an invite is good for some days, for everybody who has it, and lets in with these roles.
    """
    import msgspec

    from ..swarm.invite import Invite
    from .client import find_node

    found = find_node(data_dir)
    if not found.invite:
        raise CommandError("the node here listens for no peers yet; try again in a moment", ExitCode.NO_ANSWER)
    shown = Invite.parse(found.invite)
    if shown.owner is not None:
        pen = owner_pen(data_dir, shown.owner, shown.swarm or "", needed=bool(roles))
        if pen is not None:
            statement, signature = pen.ticket(roles or ("ask", "serve", "cache"), ttl_s=days * 86_400)
            shown = msgspec.structs.replace(shown, ticket=(statement, signature))
    elif roles:
        raise CommandError("only a private swarm has roles; see `shoal swarm create --private`", ExitCode.USAGE)
    private = shown.key is not None
    show_invite(shown.text, [], private=private, qr=not no_qr, as_json=as_json, swarm=shown.swarm or "")


def owner_pen(data_dir: Path | None, owner: str, swarm: str, *, needed: bool = True) -> Any:
    from .. import paths
    from ..identity import load
    from ..swarm.roster import Owner
    from .client import find_data_dir

    try:
        key = load(paths.owner_file(find_data_dir(data_dir)))
    except FileNotFoundError:
        key = None
    if key is None or key.peer_id != owner:
        if needed:
            raise CommandError(NOT_OWNER, ExitCode.REFUSED)
        return None
    return Owner(key, swarm)


def show_invite(text: str, lines: list[str], *, private: bool, qr: bool, as_json: bool, swarm: str) -> None:
    if as_json:
        print_json({"swarm": swarm, "private": private, "invite": text})
        return
    if qr and sys.stdout.isatty():
        import segno

        code = segno.make(text.upper(), error="l", micro=False)  # upper case: 5.5 bits a letter instead of 8
        print_text(blocks(code.matrix) + "\n")
    secret = "; it lets in whoever has it, so send it to them alone" if private else ""
    print_text("".join(f"{line}\n" for line in lines) + f"shoal join {text}\n")
    if secret:
        click.echo(f"shoal: the invite is a secret{secret}", err=True)


def blocks(matrix: Sequence[Sequence[int]]) -> str:
    """A QR code in half blocks, two rows a line, dark on light whatever the terminal's colours, with its quiet zone."""
    border = 2
    width = len(matrix[0]) + 2 * border
    blank = [0] * width
    rows = [blank] * border + [[0] * border + list(row) + [0] * border for row in matrix] + [blank] * (border + 1)
    signs = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}
    pairs = zip(rows[::2], rows[1::2], strict=False)
    return "\n".join("".join(signs[int(a), int(b)] for a, b in zip(*pair, strict=True)) for pair in pairs)


# -- members, revoke, readmit --------------------------------------------------------------------------------------


@command.command(examples="shoal swarm members\nshoal swarm members --json | jq -r '.members[].peer'")
@common
def members(as_json: bool, data_dir: Path | None) -> None:
    """List who belongs to the private swarm of the running node, and who was put out."""
    from .client import look_up

    found = look_up(data_dir, "/shoal/v1/swarm")
    if as_json:
        print_json(found)
        return
    if found.get("owner") is None:
        print_text(f"the swarm {found.get('name')!r} is open: everybody who knows an address of it may join\n")
        return
    now = time.time()
    rows = [
        (m["peer"], ", ".join(m["roles"]), duration(max(0.0, now - m["since"]))) for m in found.get("members") or ()
    ]
    rows += [(r["peer"], "put out", duration(max(0.0, now - r["at"]))) for r in found.get("revoked") or ()]
    print_table(("peer", "roles", "for"), rows, empty="the roster has not arrived yet")


def age(seconds: float) -> str:
    return duration(max(0.0, seconds))


@command.command(examples="shoal swarm revoke 12D3KooW...")
@click.argument("peer")
@common
def revoke(peer: str, as_json: bool, data_dir: Path | None) -> None:
    """Put a node out of the private swarm: every member drops it within seconds, and it stays out until `readmit`.

    The invite that it came with is void, too. The key of the swarm stays the same: a node that was put out can still
    open connections, which end before a word is said.
    """
    found = trio_run(change_roster, data_dir, whole(peer), without)
    if as_json:
        print_json(found)
    else:
        print_text(f"{peer} is put out; the members that are up know it within seconds\n")


@command.command(examples="shoal swarm readmit 12D3KooW...\nshoal swarm readmit 12D3KooW... --role ask")
@click.argument("peer")
@click.option(
    "--role",
    "roles",
    type=click.Choice(["ask", "serve", "cache"]),
    multiple=True,
    help="What it may do; by default what it might do before.",
)
@common
def readmit(peer: str, roles: tuple[Role, ...], as_json: bool, data_dir: Path | None) -> None:
    """Let a node that was put out of the private swarm in again.

    It needs no new invite, and if it is up it is back within a minute. One that has left the swarm meanwhile, or lacks
    a new key of it, joins with a new invite. The invite that it once came with stays void.
    """

    def again(pen: Owner, roster: Roster, peer_id: PeerId) -> list[bytes]:
        if roster.member(peer_id) is not None:
            raise CommandError(f"{peer} is a member already", ExitCode.USAGE)
        if roster.put_out(peer_id) is None:
            raise CommandError(f"{peer} was never put out; `shoal swarm invite` lets it in", ExitCode.USAGE)
        return pen.readmit(roster, peer_id, roles)

    found = trio_run(change_roster, data_dir, whole(peer), again)
    if as_json:
        print_json(found)
    else:
        may = next((", ".join(member["roles"]) for member in found["members"] if member["peer"] == peer), "")
        print_text(f"{peer} is let in again ({may}); if it is up it is back within a minute\n")


def whole(peer: str) -> PeerId:
    """A peer id as somebody typed it."""
    from ...protocols.peer_id import PeerId
    from ..addresses import is_peer_id

    if not is_peer_id(peer):
        raise click.UsageError("Give a whole peer id; `shoal swarm members` lists them.")
    return PeerId(peer)


def without(pen: Owner, roster: Roster, peer: PeerId) -> list[bytes]:
    if roster.member(peer) is None and not roster.is_revoked(peer):
        names = ", ".join(member.peer[-6:] for member in roster.members)
        raise CommandError(f"there is no such member (there are: {names})", ExitCode.USAGE)
    return pen.revoke(roster, peer)


async def change_roster(
    data_dir: Path | None, peer: PeerId, sign: Callable[[Owner, Roster, PeerId], list[bytes]], attempts: int = 5
) -> Any:
    """Sign the next roster and have the node pass it on; again when it has changed meanwhile."""
    from ...protocols.peer_id import PeerId
    from ..swarm.roster import read_roster
    from .client import connect

    async with connect(data_dir) as node:
        for attempt in range(attempts):
            found = await node.get("/shoal/v1/swarm")
            if found.get("owner") is None:
                raise CommandError("this swarm is open and has no members to put out or let in", ExitCode.USAGE)
            if not found.get("roster"):
                raise CommandError("the roster has not arrived yet; try again in a moment", ExitCode.NO_ANSWER)
            pen = owner_pen(data_dir, found["owner"], found["name"])
            wire = [base64.b64decode(part) for part in found["roster"]]
            roster = read_roster(wire, swarm=found["name"], owner=PeerId(found["owner"]))
            told = [base64.b64encode(part).decode() for part in sign(pen, roster, peer)]
            try:
                return await node.post("/shoal/v1/swarm/roster", {"roster": told})
            except CommandError as error:
                if error.code != ExitCode.REFUSED or attempt == attempts - 1:
                    raise
    raise AssertionError("unreachable")
