"""`shoal doctor`: is everything in order, and what to do where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .cli import Command, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import in_colour, print_json, print_text, without_controls

MARKS = {"ok": ("✓", "32"), "note": ("!", "33"), "fault": ("✗", "31")}
PLAIN = {"✓": "+", "✗": "x", "→": ">"}
"""For terminals that have no such signs."""


@click.command(cls=Command, examples="shoal doctor\nshoal doctor --config ~/shoal.toml\nshoal doctor --json")
@common
def command(as_json: bool, data_dir: Path | None) -> int:
    """Check the installation, the configuration and the running node. Exit status 1 when something does not work."""
    import msgspec

    from .checks import Finding, of_machine, of_node
    from .nat_checks import of_nat
    from .waiting import waiting

    with waiting("looking at this machine"):
        findings, reachability = list(of_machine(None, data_dir)), dict[str, Any]()
    try:
        status, providers, peers = trio_run(_ask, data_dir)
        findings += of_node(status, providers, peers)
        swarm = status.get("swarm") or {}
        if swarm.get("up"):
            findings += of_nat(swarm, peers)
            reachability = swarm.get("reachability") or {}
    except CommandError as error:
        running = error.code is not ExitCode.NO_NODE or "no node is running" not in error.message
        if running:
            findings.append(Finding("node", "fault", error.message, "`shoal run`"))
        else:
            findings.append(Finding("node", "note", "none runs here", "`shoal run`"))
    faults = sum(finding.state == "fault" for finding in findings)
    if as_json:
        told = {"findings": msgspec.to_builtins(findings), "reachability": reachability}
        print_json({"ok": not faults, **told})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            _show(finding.name, width, finding.state, finding.text, finding.remedy)
        if faults:
            print_text(f"\n{faults} {'thing does' if faults == 1 else 'things do'} not work\n")
    return ExitCode.NO_ANSWER if faults else ExitCode.OK


def _show(name: str, width: int, state: str, text: str, remedy: str) -> None:
    mark, colour = MARKS[state]
    if "utf" not in (sys.stdout.encoding or "").lower():
        mark = PLAIN.get(mark, mark)
    colours = in_colour(sys.stdout)
    if colours:
        mark = f"\x1b[{colour}m{mark}\x1b[0m"
    text = " ".join(without_controls(text).split())
    print_text(f"{mark} {name:<{width}}  {text}\n")
    if remedy and state != "ok":
        arrow = "→" if "utf" in (sys.stdout.encoding or "").lower() else PLAIN["→"]
        arrow = f"\x1b[2m{arrow}\x1b[0m" if colours else arrow
        print_text(f"  {'':<{width}}  {arrow} {without_controls(remedy)}\n")


async def _ask(data_dir: Path | None) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    from .client import connect

    async with connect(data_dir) as node:
        status = await node.get("/shoal/v1/status")
        providers = (await node.get("/shoal/v1/providers")).get("providers") or []
        peers = (await node.get("/shoal/v1/peers")).get("peers") or []
        return status, providers, peers
