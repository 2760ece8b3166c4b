"""A command-line tool as a provider: one process a request, gone with it.

First-token and idle limits are the router's, which leaves the context when one is reached; whatever the reason for
leaving it, the tool and all that it started are ended, and its home is removed, before the context is left.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from .. import options
from ..base import (
    Capabilities,
    Dropped,
    ErrorKind,
    Event,
    GenerateRequest,
    ModelInfo,
    Provider,
    ProviderError,
    Status,
)
from ..batches import Queued
from ..gate import Gate
from . import prompt
from .launch import Launch
from .process import LineTooLong, ToolProcess
from .talk import Asked, Fault, Talk
from .tool import Tool

PROBE_S = 5.0
"""Seconds for which a probe's finding is kept."""
VERSION_S = 30.0
"""Seconds that a tool may take to say its version (copilot unpacks itself first)."""
VERSION_WAIT_S = 4.0
"""Seconds that a probe waits for it; it goes on behind the probe."""


class CliProvider(Provider):
    """See the module. data_dir: the node's; homes are made below it."""

    def __init__(self, name: str, tool: Tool, data_dir: Path) -> None:
        self.name = name
        self._tool = tool
        self._settings = tool.settings
        self._launch = Launch(name, tool, data_dir / "cli", warm_s=tool.settings.warm_s)
        settings = self._settings
        self._gate = Gate(
            name, running=settings.max_concurrent, waiting=settings.max_queue, patience_s=settings.queue_s
        )
        self._nursery: trio.Nursery | None = None
        self._probed: tuple[float, Status] | None = None
        self._version_of: tuple[object, ...] | None = None
        self._version = ""
        self._version_fault = ""
        self._version_known = trio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with self._launch.running() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None

    def facts(self) -> dict[str, Any]:
        return self._gate.facts()

    # -- the probe ---------------------------------------------------------------------------------------------

    async def probe(self) -> Status:
        """Program, credential, version. Runs the tool for its version only, once for each program."""
        now = trio.current_time()
        if self._probed is None or now >= self._probed[0]:
            status = await self._look()
            self._probed = (now + PROBE_S, status)
        return self._probed[1]

    async def _look(self) -> Status:
        program = await trio.to_thread.run_sync(self._tool.found)
        if program is None:
            return Status(ready=False, reason=self._tool.not_found())
        await self._learn_version(program)
        if self._version_fault:
            return Status(ready=False, reason=self._version_fault, version=self._version)
        try:
            await trio.to_thread.run_sync(self._tool.key)  # a keyring may take its time
        except ProviderError as error:
            return Status(ready=False, reason=error.message, version=self._version)
        names = dict.fromkeys((*filter(None, (self._settings.model,)), *self._settings.models))
        models = tuple(ModelInfo(name, None, Capabilities()) for name in names)
        return Status(
            ready=True,
            models=models,
            default_model=next(iter(names), None),
            any_model=self._settings.any_model,
            version=self._version,
        )

    async def _learn_version(self, program: Path) -> None:
        facts = await trio.Path(program).stat()
        identity = (program, facts.st_mtime_ns, facts.st_size)
        if self._version_of != identity and self._nursery is not None:
            self._version_of, self._version, self._version_fault = identity, "", ""
            self._version_known = trio.Event()
            self._nursery.start_soon(self._ask_version, program, self._version_known)
        if self._version_of is not None:
            with trio.move_on_after(VERSION_WAIT_S):
                await self._version_known.wait()

    async def _ask_version(self, program: Path, known: trio.Event) -> None:
        argv = self._tool.version_argv(program)
        lines: list[bytes] = []
        code: int | None = None
        try:
            with trio.move_on_after(VERSION_S):
                async with self._launch.bare(argv) as process:
                    process.say_no_more()
                    while (line := await process.line()) is not None:
                        lines.append(line)
                    code = await process.ended()
        except (ProviderError, LineTooLong, OSError):
            code = None
        said = next((line.decode(errors="replace").strip() for line in lines if line.strip()), "")
        if code == 0:
            self._version = "".join(c for c in said[:60] if c.isprintable())
        else:
            how = "does not say its version" if code is None else f"ends with exit code {code}"
            self._version_fault = f"{program.name} {how}; {self._tool.install}"
        self._probed = None
        known.set()

    # -- requests ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        honours = self._tool.honours
        if (request.response_format or {}).get("type") != "json_schema":
            honours = honours - {"response_format"}  # a schema can be asked for, "some JSON" cannot
        dropped = options.dropped(request, honours, self._settings.unsupported, self.name)
        asked = await self._asked(request)
        program = self._tool.found()
        if program is None:
            raise ProviderError(ErrorKind.UNAVAILABLE, self._tool.not_found())
        async with self._gate, self._launch.started(program, asked) as started:
            talk = self._tool.talk(self.name, asked, started.place)
            yield Events(started.process, talk, dropped, self._settings.exit_s)

    async def _asked(self, request: GenerateRequest) -> Asked:
        """The request as the tool gets it. Raises ProviderError for what it cannot take at all."""
        system, text = prompt.texts_of(request, self.name)
        honours = self._tool.honours
        form = request.response_format or {}
        schema = form.get("json_schema") if "response_format" in honours else None
        return Asked(
            prompt=text,
            system=system,
            model=request.model or self._settings.model or next(iter(self._settings.models), None),
            max_tokens=request.max_tokens if "max_tokens" in honours else None,
            temperature=request.temperature if "temperature" in honours else None,
            top_p=request.top_p if "top_p" in honours else None,
            stop=request.stop,
            schema=schema.get("schema") if isinstance(schema, dict) else None,
            key=await trio.to_thread.run_sync(self._tool.key),
        )


class Events(Queued):
    """The events of one call."""

    def __init__(self, process: ToolProcess, talk: Talk[Any], dropped: tuple[str, ...], exit_s: float) -> None:
        self._process, self._talk, self._exit_s = process, talk, exit_s
        self._ready: deque[Event] = deque([Dropped(dropped)] if dropped else ())
        self._over = False
        process.say(talk.opening())
        if talk.ends_input:
            process.say_no_more()

    async def _read(self) -> None:
        process, talk = self._process, self._talk
        if talk.over:
            return await self._end()
        try:
            line = await process.line()
        except LineTooLong:
            talk.failed(Fault(kind=ErrorKind.UPSTREAM, said="it wrote a line that is too long for any event"), cut=True)
            return None
        if line is None:
            return await self._end()
        talk.hear(line)
        for reply in talk.replies():
            process.say(reply)
        if talk.says_no_more:
            process.say_no_more()
        self._ready.extend(talk.take())
        return None

    async def _end(self) -> None:
        """The tool has said how it ends, or has closed its output."""
        self._over = True
        code: int | None = None
        if not self._talk.cut:
            self._process.remember_family()
            with trio.move_on_after(self._exit_s):
                while await self._process.line() is not None:
                    pass  # nothing that comes after the end counts, but a full pipe would keep the tool from ending
                code = await self._process.ended()
            if self._talk.report is not None:
                with contextlib.suppress(OSError, msgspec.DecodeError):  # without it the usage is not known
                    self._talk.on_report(await trio.Path(self._talk.report).read_bytes())
        self._ready.extend(self._talk.exited(code, self._process.stderr))
