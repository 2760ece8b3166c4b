"""Starting a tool for a call, and keeping one started for the next: a home, a process, and the end of both.

    launch = Launch(name, tool, data_dir / "cli")
    async with launch.running(), launch.started(program, asked) as started: ...

A tool spends most of the time until its first token on starting itself. Where a tool starts before it reads the
question (`Tool.warms`), one is started when a call has ended and waits for the next call with the same settings. It
serves one call, like any other, so no call sees another's traces.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import trio

from ..base import ErrorKind, ProviderError
from .home import Homes
from .process import ToolProcess
from .talk import Asked
from .tool import Command, Place, Tool, environ_of_call

log = logging.getLogger("shoal.providers.cli")


class Started:
    """A running tool with the home it runs in."""

    def __init__(self, process: ToolProcess, place: Place, command: Command) -> None:
        self.process, self.place, self.command = process, place, command


class Launch:
    """See the module. warm_s: seconds for which a started tool waits for a call; 0 keeps none."""

    def __init__(self, name: str, tool: Tool, base: Path, *, warm_s: float = 0.0) -> None:
        self._name, self._tool, self._warm_s = name, tool, warm_s if tool.warms else 0.0
        self._homes = Homes(base)
        self._nursery: trio.Nursery | None = None
        self._waiting: Started | None = None
        self._renewing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[trio.Nursery]:
        """The life of homes and of what waits; gives the nursery of the tools' pipes."""
        try:
            await trio.to_thread.run_sync(self._homes.open)
        except OSError as error:
            log.warning("%s cannot make homes for its calls (%s)", self._name, error.strerror)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    yield nursery
                finally:
                    self._nursery = None
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._homes.close)

    # -- a call ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def started(self, program: Path, asked: Asked) -> AsyncGenerator[Started]:
        """The tool, started for this question. Leaving ends it and removes its home. Raises ProviderError."""
        started = self._taken(program, asked)
        if started is None:
            started = await self._start(program, asked)
        try:
            yield started
        finally:
            await self._end(started)
            self._keep_one(program, msgspec.structs.replace(asked, prompt=""))

    @contextlib.asynccontextmanager
    async def bare(self, argv: tuple[str, ...]) -> AsyncGenerator[ToolProcess]:
        """The program with other arguments, such as --version. Raises ProviderError."""
        place = await self._place()
        started = await self._begin(Command(argv=argv, environ={}), place)
        try:
            yield started.process
        finally:
            await self._end(started)

    async def _start(self, program: Path, asked: Asked) -> Started:
        place = await self._place()
        try:
            command = self._tool.command(program, asked, place)
            await trio.to_thread.run_sync(self._homes.fill, place.home, command.files, command.links)
        except BaseException:
            await self._remove(place)
            raise
        return await self._begin(command, place)

    async def _begin(self, command: Command, place: Place) -> Started:
        process = ToolProcess(command.argv, environ_of_call(self._tool.environ, place, command), place.work)
        started = Started(process, place, command)
        try:
            if self._nursery is None:
                raise ProviderError(ErrorKind.UNAVAILABLE, f"{self._name} is not running")
            try:
                process.start()
            except OSError as error:
                raise ProviderError(
                    ErrorKind.UNAVAILABLE,
                    f"{Path(command.argv[0]).name} cannot be started ({error.strerror}); {self._tool.install}",
                ) from None
            self._nursery.start_soon(process.serve)
        except BaseException:
            await self._end(started)
            raise
        return started

    async def _end(self, started: Started) -> None:
        await started.process.kill()
        await self._remove(started.place)

    async def _place(self) -> Place:
        try:
            home = await trio.to_thread.run_sync(self._homes.make, {})
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self._name} cannot make a home for a call ({why})") from None
        except RuntimeError:
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self._name} is not running") from None
        return Place(home, self._homes.cache)

    async def _remove(self, place: Place) -> None:
        with trio.CancelScope(shield=True):
            if not await trio.to_thread.run_sync(self._homes.remove, place.home):
                log.warning("%s: something of a call was not removed; the next start will", self._name)

    # -- one that waits ----------------------------------------------------------------------------------------

    def _taken(self, program: Path, asked: Asked) -> Started | None:
        """The one that waits, if this question would have started the same."""
        waiting = self._waiting
        if waiting is None or self._nursery is None:
            return None
        self._waiting = None
        if waiting.process.alive and self._tool.command(program, asked, waiting.place) == waiting.command:
            return waiting
        self._nursery.start_soon(self._end, waiting)
        return None

    def _keep_one(self, program: Path, asked: Asked) -> None:
        if self._nursery is not None and self._warm_s > 0 and self._waiting is None and not self._renewing:
            self._nursery.start_soon(self._wait_for_a_call, program, asked)

    async def _wait_for_a_call(self, program: Path, asked: Asked) -> None:
        self._renewing = True
        try:
            started = await self._start(program, asked)
        except ProviderError:
            return  # the next call will start its own, and hear why that fails
        finally:
            self._renewing = False
        self._waiting = started
        try:
            with trio.move_on_after(self._warm_s):
                await started.process.over()
        finally:
            if self._waiting is started:
                self._waiting = None
                await self._end(started)
