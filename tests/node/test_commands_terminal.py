"""What commands do with the terminal that they are given: narrow, wide, none, closed, and Ctrl-C at any time."""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from shoal.node import commands
from shoal.node.commands.cli import SUBCOMMANDS, cli, run_cli
from shoal.node.commands.client import find_node
from shoal.node.commands.exit_codes import MEANING, ExitCode
from shoal.node.commands.failures import CommandError, say
from shoal.node.commands.output import console, table_lines
from shoal.node.commands.status_command import in_place
from shoal.node.commands.top_screen import screen

from .fake_node import SHOAL, fake_node
from .test_commands_live import sections
from .test_commands_peers import Terminal

PEER = "12D3KooWEgoFCizaDDfLe6ovB2FbPkUjVECdXmRWEqXnZ6LURa4n"
COLUMNS = ("peer", "state", "models", "note")
ROWS = [(PEER, "connected", "qwen3-30b-a3b, llama-3.1-8b", ""), ("short", "away", "", "")]


def test_a_table_that_fits_is_a_table() -> None:
    assert table_lines(("a", "b"), [("1", "2"), ("longer", "")], 80) == ["a       b", "1       2", "longer"]


def test_what_does_not_fit_comes_below_its_row_with_its_name() -> None:
    assert table_lines(COLUMNS, ROWS, 70) == [
        "peer                                                  state",
        f"{PEER}  connected",
        "  models  qwen3-30b-a3b, llama-3.1-8b",
        "short                                                 away",
    ]


def test_on_forty_columns_an_id_is_still_whole() -> None:
    lines = table_lines(COLUMNS, ROWS, 40)
    assert lines[:3] == ["peer", PEER, "  state   connected"]


def test_where_nobody_looks_each_row_is_a_line() -> None:
    lines = table_lines(COLUMNS, [(PEER, "away", "m" * 300, "why\nnot")], None)
    assert len(lines) == 2
    assert lines[1].endswith("why not")


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=4, max_size=4), max_size=5),
    st.integers(1, 200),
)
def test_a_table_shows_every_value_whatever_the_width(rows: list[list[str]], width: int) -> None:
    lines = table_lines(COLUMNS, rows, width)
    assert bool(lines) == bool(rows)
    shown = "".join("".join(lines).split())
    for row in rows:
        for value in row:
            for word in "".join(c if c.isprintable() else " " for c in value if c in "\n\t" or c.isprintable()).split():
                assert word in shown


def test_a_screen_of_facts_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "6")
    rows: list[tuple[str, Any]] = [(f"name{n}", "x" * n * 20) for n in range(9)]
    drawn = in_place(rows, "")
    assert drawn.count("\n") == 5
    assert all(len(line.removeprefix("\x1b[H").removesuffix("\x1b[K")) < 40 for line in drawn.splitlines()[:5])
    assert in_place(rows, "no node is running here").startswith("\x1b[Hno node is running here")


@pytest.mark.parametrize("width", [20, 40, 69, 70, 200])
def test_top_fits_every_width_and_shows_who_answers(width: int) -> None:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(sections(), width, 40))
    lines = capture.get().splitlines()
    assert max(cell_len(line) for line in lines) <= width
    if width >= 40:
        assert any("smollm2" in line and "fast" in line for line in lines)


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_fault(closed: str, tmp_path: Path) -> None:
    for arguments in ("config show", "status"):
        line = f'"{SHOAL}" {arguments} --data-dir "{tmp_path}" {closed}'
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == (4 if arguments == "status" else 0), done
        assert "fault" not in done.stderr


def test_a_full_disk_is_said_in_words() -> None:
    with Path("/dev/full").open("w") as full:
        command = [SHOAL, "completion", "bash"]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30, env=buffered
        )
    assert (done.returncode, done.stderr) == (1, "shoal: the output: no space left on device\n")


def test_ctrl_c_at_the_wrong_moment_ends_it_as_at_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.commands.interrupts._handle", lambda _: None)  # the handler of pytest stays
    monkeypatch.delitem(sys.modules, "shoal.node.commands.cli", raising=False)
    load = builtins.__import__

    def interrupted(name: str, *args: Any, **options: Any) -> Any:
        if name == "click":
            raise KeyboardInterrupt
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 130


@pytest.mark.parametrize("module", ["click", "shoal.node.commands.output", "msgspec", "trio"])
def test_ctrl_c_while_a_module_is_loaded_ends_it_without_a_word(module: str, tmp_path: Path) -> None:
    program = """
import os, signal, sys
from shoal.__main__ import main
module = sys.argv.pop()
sys.addaudithook(lambda event, told: event == "import" and told[0] == module and os.kill(os.getpid(), signal.SIGINT))
main()
"""
    command = [sys.executable, "-c", program, "status", "--data-dir", str(tmp_path), module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupt_that_the_caller_has_ignored_stays_ignored(tmp_path: Path) -> None:
    program = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from shoal.__main__ import main
from shoal.node.commands import client
ask = client.find_node
client.find_node = lambda data: os.kill(os.getpid(), signal.SIGINT) or ask(data)
main()
"""
    command = [sys.executable, "-c", program, "status", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == ExitCode.NO_NODE


async def test_a_terminal_that_knows_no_escape_sequences_gets_none(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/status"] = {"version": "0", "uptime_s": 1, "swarm": {}, "providers": {}}
        terminal = Terminal("status", "--watch", "--every", "0.1", "--data-dir", str(tmp_path), TERM="dumb")
        try:
            await terminal.until("peer id", count=2)
            terminal.process.send_signal(signal.SIGINT)
            assert await trio.to_thread.run_sync(terminal.process.wait) == 0
        finally:
            terminal.end()
    assert "\x1b" not in terminal.seen


async def test_a_question_is_text_whatever_the_locale_knows(tmp_path: Path) -> None:
    plain = os.environ | {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [SHOAL, "ask", "Grüße", "--json", "--data-dir", str(tmp_path)]
    async with fake_node(tmp_path) as node:
        await trio.run_process(command, env=plain, check=False, capture_stdout=True, capture_stderr=True)
        assert json.loads(node.asked[0][2])["messages"][0]["content"] == "Grüße"
        state = await trio.run_process(
            [SHOAL, "top", "--once", "--data-dir", str(tmp_path)], env=plain, check=False, capture_stderr=True
        )
    assert b"not UTF-8" not in state.stderr


def test_output_that_the_locale_has_no_letters_for_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console().print("● ready")
    sys.stdout.flush()
    assert raw.getvalue() == b"? ready\n"


def test_a_node_of_another_user_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **options: Any) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(CommandError, match="this user may not look into it") as error:
        find_node(tmp_path)
    assert error.value.code == ExitCode.REFUSED


def test_without_a_home_the_users_own_is_found() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [SHOAL, "config", "show"], env=environ, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr


def test_an_upstreams_words_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("it said \x1b]0;owned\x07 and\u202e more")
    assert capsys.readouterr().err == "shoal: it said ]0;owned and more\n"


WORDS = (
    *(
        "",
        "-",
        "--",
        "x",
        "-1",
        "1e9",
        "nan",
        "\u00e9",
        "\udcff",
        "\n",
        "a" * 300,
        "/dev/null",
        "/nope/x",
        "shoal1aaaa",
        "{}",
    ),
    *("~", "../..", "30d", "99999999999999999999", "127.0.0.1:0", "--data-dir", "--json", "--help", "\x1b[31m"),
    *("bafyreib3h6tnyv5v3vvcqcxtwmslrdnfphyfyh5vfzs5gx5vpkq4qmlzrq", PEER),
)
KNOWN = {code.value for code in MEANING} - {ExitCode.INTERNAL.value}
LEFT_OUT = {("run",), ("service", "install"), ("models", "add"), ("models", "calibrate"), ("providers", "login")}


def test_no_command_line_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    context, places = click.Context(cli), list[tuple[tuple[str, ...], click.Command]]()
    for name in SUBCOMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        places.append(((name,), command))
        if isinstance(command, click.Group):
            places += [((name, below), inner) for below, inner in command.commands.items()]
    places = [place for place in places if place[0] not in LEFT_OUT]
    chance = random.Random(7)
    for _ in range(400):
        path, command = chance.choice(places)
        options = [
            name for parameter in command.params if parameter.param_type_name == "option" for name in parameter.opts
        ]
        options = [name for name in options if name not in ("--debug", "--watch", "-w")]
        arguments = [*path]
        for _ in range(chance.randrange(5)):
            arguments.append(chance.choice(options if options and chance.random() < 0.4 else WORDS))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(chance.choice([b"", b"hi\n", b"\xff\xfe"]))))
        assert run_cli(arguments) in KNOWN, arguments
