"""The `shoal` command itself: its subcommands, loaded when they are called, and what all of them share.

A subcommand is a module of this package with a click command `command`. Nothing heavy is imported for `shoal version`
or `--help`: a module imports trio, the HTTP client or the daemon inside its function.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from . import exit_codes
from .failures import PipeClosedError, only, report, say

SUBCOMMANDS: dict[str, str] = {
    "run": "Start a node on this machine.",
    "swarm": "Create a swarm, invite people, and put nodes out.",
    "join": "Join a swarm by its invite.",
    "pause": "Lend nothing to peers for a while.",
    "resume": "Lend to peers again.",
    "ask": "Ask a question and stream the answer.",
    "chat": "Talk with a model over several turns.",
    "status": "Show what the running node is doing.",
    "top": "Watch requests, peers and providers as they change.",
    "peers": "List the peers of the running node.",
    "providers": "List the providers, which are ready, and why others are not; test one.",
    "models": "List and install models.",
    "cache": "Look into the cache of answers.",
    "route": "Show who was tried for the last answer, and why each was left.",
    "verify": "Check an answer's record: address, signature, request.",
    "receipt": "Write an answer's record to a file that others can check offline.",
    "token": "Make, list and revoke access tokens.",
    "config": "Begin, check or show the configuration.",
    "service": "Run the node as a service of your login.",
    "doctor": "Find out what is wrong, and what to do.",
    "completion": "Complete commands in your shell.",
    "version": "Show the version.",
}

F = TypeVar("F", bound=Callable[..., Any])


class Invocation:
    """What holds for one run of the command line, however deep the subcommand."""

    def __init__(self) -> None:
        self.debug = False


class Subcommands(click.Group):
    """Lists the table above and imports a module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}_command", __package__)
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], SUBCOMMANDS, n=1)
            raise click.UsageError(f"{error.message}{f' Did you mean {near[0]}?' if near else ''}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise PipeClosedError from None  # click would end the process with status 1

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_verbatim(formatter, "Examples", EXAMPLES)
        write_verbatim(formatter, "Exit status", exit_codes.table())


EXAMPLES = """\
  shoal models add smollm2            a small model, no account needed
  shoal run                           start a node
  shoal ask "What is the opposite of hot?"
  shoal join INVITE                   be one of a swarm"""


def write_verbatim(formatter: click.HelpFormatter, title: str, text: str) -> None:
    formatter.write_paragraph()
    formatter.write(f"{title}:\n{text}\n")


class Command(click.Command):
    """A command whose help ends with examples, as they stand."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            write_verbatim(formatter, "Examples", "\n".join(f"  {line}" for line in self.examples.splitlines()))


class Group(click.Group):
    """A group of commands (`shoal cache ...`) with examples. alone: the one that runs when none is named."""

    command_class = Command

    def __init__(self, *args: Any, examples: str = "", alone: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})
        self.examples, self.alone = examples, alone

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.alone and not ctx.resilient_parsing and not {*args} & {*self.commands, *ctx.help_option_names}:
            args = [self.alone, *args] if not args or args[0].startswith("-") else args
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            write_verbatim(formatter, "Examples", "\n".join(f"  {line}" for line in self.examples.splitlines()))


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).debug = True


@contextlib.contextmanager
def chosen(config: Path) -> Iterator[None]:
    """--config is SHOAL_CONFIG for one command line, so that all who read the configuration mean the same file."""
    before = os.environ.get("SHOAL_CONFIG")
    os.environ["SHOAL_CONFIG"] = str(config)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SHOAL_CONFIG"]
        else:
            os.environ["SHOAL_CONFIG"] = before


def _config(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.with_resource(chosen(value))


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of a fault."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the node keeps its things (SHOAL_DATA_DIR).",
)

config_option = click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path),
    metavar="FILE",
    expose_value=False,
    callback=_config,
    help="The node's configuration, a TOML file (SHOAL_CONFIG).",
)


def common(function: F) -> F:
    """The options that every command has: as_json, data_dir, --config, and --debug."""
    for option in (debug_option, data_dir_option, config_option, json_option):
        function = option(function)
    return function


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("--version", "show_version", is_flag=True, help="Show the version and exit.")
@debug_option
@click.pass_context
def cli(ctx: click.Context, show_version: bool) -> None:
    """Shoal: one endpoint over everything you can ask, shared with the peers you trust."""
    if show_version:
        from .version_command import line

        click.echo(line())
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run_cli(arguments: list[str]) -> int:
    """Run a command line; the exit status. Never raises but for what ends the interpreter."""
    invocation = Invocation()
    try:
        result = cli.main(arguments, prog_name="shoal", standalone_mode=False, obj=invocation)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.Abort:
        return exit_codes.ExitCode.INTERRUPTED
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (try `{error.ctx.command_path} --help`)"
        say(error.format_message() + hint)
        return exit_codes.ExitCode.USAGE
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        return report(error, debug=invocation.debug)
    return result if isinstance(result, int) else exit_codes.ExitCode.OK


def trio_run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run an async function to its end. An error comes without the groups of the nurseries around it; an interrupt
    comes in its group, which click lets through without a line of its own.

    trio is imported here, so that commands without it stay fast.
    """
    import trio

    from .interrupts import LeftToTrio

    with LeftToTrio():
        try:
            return trio.run(functools.partial(function, *args, **kwargs))
        except ExceptionGroup as group:
            raise only(group) from group
