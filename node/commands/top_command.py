"""`shoal top`: what the running node is doing, live, in the whole terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import click

from .cli import Command, common, trio_run
from .output import can_move, console, print_json

RETRY_S = 1.0


@click.command(cls=Command, examples="shoal top\nshoal top --once\nshoal top --json | jq .requests.live")
@click.option("--once", is_flag=True, help="Print the state now, and end.")
@common
def command(once: bool, as_json: bool, data_dir: Path | None) -> None:
    """Show requests, peers, providers and cache as they change. q or Ctrl-C ends it."""
    from .client import find_node

    find_node(data_dir)
    once = once or as_json or not can_move(sys.stdout)
    with contextlib.suppress(KeyboardInterrupt) if not once else contextlib.nullcontext():
        try:
            trio_run(print_once if once else watch, data_dir, *([as_json] if once else []))
        except BaseExceptionGroup:  # an interrupt, or a fault beside one
            if once:
                raise


async def print_once(data_dir: Path | None, as_json: bool) -> None:
    from .client import connect
    from .feed import follow
    from .top_screen import screen

    out = console()
    async with connect(data_dir) as node, contextlib.aclosing(follow(node)) as states:
        async for sections in states:
            if as_json:
                print_json(sections)
            else:
                out.print(screen(sections, min(out.width, 120), 60))
            return


async def watch(data_dir: Path | None) -> None:
    """Redraw with each piece of news, until q is pressed. A node that goes away meanwhile is waited for."""
    import trio
    from rich.live import Live
    from rich.text import Text

    from .client import connect
    from .failures import CommandError, only
    from .feed import follow
    from .top_screen import WARN, screen

    out, shown = console(), False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_quit_on_q, nursery.cancel_scope)
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while True:
                try:
                    async with connect(data_dir) as node, contextlib.aclosing(follow(node)) as states:
                        async for sections in states:
                            shown = True
                            live.update(screen(sections, out.width, out.height), refresh=True)
                except (CommandError, ExceptionGroup) as error:
                    known = only(error)
                    if not shown or not isinstance(known, CommandError):
                        raise
                    live.update(Text(f"{known}; waiting for it, q ends", WARN), refresh=True)
                await trio.sleep(RETRY_S)


async def _quit_on_q(scope: Any) -> None:
    async with keys() as pressed:
        async for key in pressed:
            if key in (b"q", b"Q", b"\x1b"):
                scope.cancel()


@contextlib.asynccontextmanager
async def keys() -> AsyncGenerator[Any]:
    """The keys as they are pressed, without echo; none when stdin is no terminal."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _nothing()
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield _read_keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def _read_keys(fd: int) -> AsyncGenerator[bytes]:
    import os

    import trio

    while True:
        await trio.lowlevel.wait_readable(fd)
        key = os.read(fd, 1)
        if not key:
            return
        yield key


async def _nothing() -> AsyncGenerator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for key in nothing:
        yield key
