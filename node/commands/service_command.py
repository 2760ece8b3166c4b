"""`shoal service`: the node as a systemd user unit, so that it runs after a login or a reboot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from .cli import Command, Group, common
from .exit_codes import ExitCode
from .failures import CommandError
from .output import print_facts, print_json, print_text

NAME = "shoal.service"
EXAMPLES = """\
shoal service install
shoal service install --config ~/shoal.toml
shoal service status
shoal service uninstall"""

UNIT = """\
[Unit]
Description=Shoal, a peer-to-peer inference node

[Service]
Type=exec
ExecStart={command}
# Keys of providers, one NAME=value a line: for example OPENROUTER_API_KEY=...
EnvironmentFile=-{environment}
# As it was at the installation: command-line providers are looked for here.
Environment="PATH={path}"
Restart=on-failure
RestartSec=2
# 2 and 3: a wrong configuration, or a node that runs already. Trying again would not help.
RestartPreventExitStatus=2 3
TimeoutStopSec=70
LimitNOFILE=65536
NoNewPrivileges=yes
UMask=0077

[Install]
WantedBy=default.target
"""


@click.group(cls=Group, examples=EXAMPLES, alone="status")
def command() -> None:
    """Run the node as a service of your login (systemd)."""


def unit_file() -> Path:
    """Where systemd looks for a user's own units (systemd.unit(5))."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "systemd" / "user" / NAME


def environment_file() -> Path:
    from ..paths import default_config_file

    return default_config_file().with_name("environment")


def unit(data_dir: Path | None) -> str:
    """The unit's text. ConfigError when the configuration would not start."""
    from ..config_file import load_config

    load_config(data_dir=data_dir)
    config = Path(os.environ["SHOAL_CONFIG"]) if os.environ.get("SHOAL_CONFIG") else None
    if data_dir is None and os.environ.get("SHOAL_DATA_DIR"):
        data_dir = Path(os.environ["SHOAL_DATA_DIR"])
    words = [str(_shoal()), "run"]
    if config is not None:
        words += ["--config", str(config.expanduser().absolute())]
    if data_dir is not None:
        words += ["--data-dir", str(data_dir.expanduser().absolute())]
    if any(not character.isprintable() for word in words for character in word):
        raise CommandError("a path with a line break or control character cannot go into a unit", ExitCode.USAGE)
    path = ":".join(dict.fromkeys(os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")))
    return UNIT.format(
        command=" ".join(quoted(word) for word in words),
        environment=str(environment_file()).replace("%", "%%"),
        path=path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%"),
    )


def quoted(word: str) -> str:
    """A word of ExecStart (systemd.service(5)): quoted where it must be, with % and $ as they are."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if word and not any(character in word for character in " \t\"';"):
        return word
    return '"' + word.replace('"', '\\"') + '"'


def write_unit(file: Path, text: str) -> bool:
    """The unit in its place, whole or not at all. Whether there was another one before."""
    from ..paths import reason, write_private

    try:
        before = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
        if before != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_private(file, text.encode(), replace=True)
    except OSError as error:
        raise CommandError(f"{file}: cannot be written: {reason(error)}", ExitCode.NO_ANSWER) from None
    return before is not None and before != text


def _shoal() -> Path:
    """This command's own path, so that the service runs this installation."""
    beside = Path(sys.executable).with_name("shoal")
    if beside.exists():
        return beside
    found = shutil.which("shoal")
    if found is None:
        raise CommandError("the `shoal` command is not beside its Python nor on PATH; install it again", ExitCode.USAGE)
    return Path(found).absolute()


def systemctl(*arguments: str) -> str | None:
    """`systemctl --user ...`: None when it worked, else its words."""
    program = shutil.which("systemctl")
    if program is None:
        return "systemctl is not here"
    from .waiting import waiting

    try:
        with waiting(f"systemctl {arguments[0]}"):
            done = subprocess.run(  # noqa: S603  (a fixed program and fixed words)
                [program, "--user", *arguments], capture_output=True, text=True, timeout=60, check=False
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return " ".join((done.stderr or done.stdout).split()) or f"it ended with status {done.returncode}"


@command.command("install", cls=Command, examples="shoal service install\nshoal service install --print")
@click.option("--no-start", is_flag=True, help="Write the unit, and start nothing.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit, and write nothing.")
@common
def install(no_start: bool, only_print: bool, as_json: bool, data_dir: Path | None) -> None:
    """Write the unit, enable it and start it."""
    text = unit(data_dir)
    if only_print:
        print_text(text)
        return
    file = unit_file()
    changed = write_unit(file, text)
    problem = None
    if not no_start:
        problem = systemctl("daemon-reload") or systemctl("enable", "--now", NAME)
        if problem is None and changed:  # what ran before would run on as it was
            problem = systemctl("restart", NAME)
    if as_json:
        print_json({"unit": str(file), "started": not no_start and problem is None, "problem": problem})
        return
    print_text(f"{file}\n")
    if problem is not None:
        raise CommandError(
            f"the unit is written, but systemd did not start it: {problem}; "
            f"try: systemctl --user daemon-reload && systemctl --user enable --now {NAME}",
            ExitCode.REFUSED,
        )
    if no_start:
        print_text(f"start it with: systemctl --user daemon-reload && systemctl --user enable --now {NAME}\n")
    else:
        print_text("it runs; `journalctl --user -u shoal -f` shows its log\n")
    print_text(f"keys of providers go into {environment_file()}\n")
    print_text("to have it run while you are not logged in: loginctl enable-linger\n")


@command.command("uninstall", cls=Command, examples="shoal service uninstall")
@common
def uninstall(as_json: bool, data_dir: Path | None) -> None:
    """Stop the service and remove its unit. The node's data stays."""
    file = unit_file()
    there = file.exists()
    if there:
        systemctl("disable", "--now", NAME)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            message = f"{file}: cannot be removed: {(error.strerror or str(error)).lower()}"
            raise CommandError(message, ExitCode.NO_ANSWER) from None
        systemctl("daemon-reload")
    if as_json:
        print_json({"unit": str(file), "removed": there})
    else:
        print_text(f"{file} is removed\n" if there else "there is no service\n")


@command.command("status", cls=Command, examples="shoal service status")
@common
def status(as_json: bool, data_dir: Path | None) -> None:
    """Show whether it is installed, starts by itself, and runs."""
    file = unit_file()
    facts = {
        "unit": str(file) if file.exists() else None,
        "enabled": systemctl("is-enabled", NAME) is None,
        "running": systemctl("is-active", NAME) is None,
    }
    if as_json:
        print_json(facts)
        return
    said = {None: "not installed; `shoal service install`", True: "yes", False: "no"}
    print_facts(
        (name, said.get(value, value) if not isinstance(value, str) else value) for name, value in facts.items()
    )
