"""`shoal join`: one string, and this node is one of a swarm, now and after every restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli import Command, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import print_json, print_text

EXAMPLES = """\
shoal join INVITE                    the line that `shoal run` or `shoal status` prints on another node
shoal join --forget                  be alone again from the next start on"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("invite", required=False)
@click.option("--forget", is_flag=True, help="Leave the swarm at the next start.")
@common
def command(invite: str | None, forget: bool, as_json: bool, data_dir: Path | None) -> None:
    """Join a swarm by its invite.

    A running node joins at once. Without one, the invite is kept for the next `shoal run`.
    """
    from .. import paths, state
    from ..swarm.invite import Invite
    from .client import find_data_dir

    if (invite is None) == (not forget):
        raise click.UsageError("Give an INVITE, or --forget.")
    data = find_data_dir(data_dir)
    said: dict[str, Any]
    if invite is None:
        state.forget_swarm(data)
        said, line = {"forgotten": True}, "forgotten; the next start is alone"
    else:
        parsed = Invite.parse(invite)  # InviteError, before anybody is asked
        where = f"the swarm {parsed.swarm!r}" if parsed.swarm is not None else "that peer"
        if state.running_rpc(data) is not None:
            said = trio_run(join_now, data_dir, invite)
            verb = "moving to" if said.get("moving") else "joined"
            line = f"{verb} {where}; see `shoal peers`"
        else:
            paths.make_data_dir(data)
            state.remember_swarm(data, invite)
            said = {"swarm": parsed.swarm, "at_next_start": True}
            line = f"no node is running here; the next `shoal run` joins {where}"
    if as_json:
        print_json(said)
    else:
        print_text(line + "\n")


async def join_now(data_dir: Path | None, invite: str) -> Any:
    """Ask the running node; a join that fails is nobody's wrong usage."""
    from .client import connect

    async with connect(data_dir) as node:
        try:
            return await node.post("/shoal/v1/join", {"invite": invite})
        except CommandError as error:
            if error.code == ExitCode.USAGE:
                raise CommandError(error.message, ExitCode.NO_ANSWER) from None
            raise
