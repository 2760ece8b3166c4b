"""One running tool: a process group of its own, three pipes, and an end that leaves nothing behind.

    process = ToolProcess(argv, environ, folder)
    process.start()
    nursery.start_soon(process.serve)           # writes its stdin, drains its stderr
    process.say(b"prompt"); process.say_no_more()
    while (line := await process.line()) is not None: ...
    code = await process.ended()
    await process.kill()                        # always, however it went

The prompt goes over stdin and never into argv, which every user of the machine can read.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

LINE_BYTES = 8 * 1024 * 1024
"""A longer line is no event of any tool."""
STDERR_BYTES = 64 * 1024
TERM_S = 0.05
"""Seconds between asking the tool to end (SIGTERM) and ending it (SIGKILL): a tool's tree is gone in 250 ms."""
GONE_S = 0.2
"""Seconds that are waited for the tool's children to be gone as well, once they were killed."""
REAP_S = 2.0
"""Seconds that the kernel gets to end what was killed; only a process that hangs in a disk or device needs them."""


class LineTooLong(Exception):
    """The tool wrote a line longer than LINE_BYTES."""


class ToolProcess:
    """See the module. folder: the working directory. stderr: its last 64 kB, for classification and nothing else."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        self._argv, self._environ, self._folder = list(argv), dict(environ), folder
        self._outbox_send, self._outbox = trio.open_memory_channel[bytes](math.inf)  # a prompt and a few replies
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._kept = b""
        self._lines: deque[bytes] = deque()
        self._stderr = bytearray()
        self._stderr_over = trio.Event()
        self._streams: list[trio.lowlevel.FdStream] = []
        self._family: dict[int, str] = {}

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def stderr(self) -> str:
        return self._stderr.decode(errors="replace")

    def start(self) -> None:
        """Raises OSError when the program cannot be run."""
        self._process = process = subprocess.Popen(  # noqa: S603
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=self._environ,
            cwd=self._folder,
            start_new_session=True,  # a process group to kill, and no terminal to ask for a password
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._pidfd = os.pidfd_open(process.pid)
        with process.stdin, process.stdout, process.stderr:
            self._streams = [
                trio.lowlevel.FdStream(os.dup(pipe.fileno()))
                for pipe in (process.stdin, process.stdout, process.stderr)
            ]

    async def serve(self) -> None:
        """Moves stdin and stderr until the tool closes them or `kill` has been called. Raises nothing."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._drain)

    # -- talking -----------------------------------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        """Bytes for the tool's stdin; what a tool that has closed it would get is dropped."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._outbox_send.send_nowait(data)

    def say_no_more(self) -> None:
        """Closes the tool's stdin, after what was said before."""
        self._outbox_send.close()

    async def line(self) -> bytes | None:
        """The next line of stdout, without its end; None when there are no more. Raises LineTooLong."""
        stdout = self._streams[1]
        while not self._lines:
            try:
                data = await stdout.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                last, self._kept = self._kept, b""
                return last or None
            *whole, self._kept = (self._kept + data).split(b"\n")
            self._lines.extend(whole)
            if len(self._kept) > LINE_BYTES:
                raise LineTooLong
        return self._lines.popleft()

    async def _write(self) -> None:
        stream = self._streams[0]
        try:
            async for data in self._outbox:
                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it reads no more; what it writes or how it ends will say why
        finally:
            self._outbox.close()
            await trio.aclose_forcefully(stream)

    async def _drain(self) -> None:
        stream = self._streams[2]
        try:
            while data := await stream.receive_some(16384):
                self._stderr += data
                del self._stderr[:-STDERR_BYTES]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._stderr_over.set()

    # -- its end -----------------------------------------------------------------------------------------------

    def remember_family(self) -> None:
        """Notes what the tool has started, while it lives: afterwards nobody knows whose children they were."""
        self._family |= _descendants(self.pid)

    async def ended(self) -> int:
        """Waits for the end of the tool itself; its exit code, negative for a signal."""
        assert self._process is not None
        await self.over()
        with trio.move_on_after(0.05):  # a child of it may hold stderr open
            await self._stderr_over.wait()
        # The code without reaping: until `kill`, the process group keeps its number.
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # noqa: ASYNC222
        if status is None:
            return 0
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    @property
    def alive(self) -> bool:
        """Whether the tool itself runs."""
        return self._pidfd >= 0 and not _ended(self._pidfd)

    async def over(self) -> None:
        """Waits for the end of the tool itself."""
        # A pidfd becomes readable when the process ends; nobody has to sit in a thread for that. A descriptor of its
        # own for each that waits, because trio lets only one wait for each.
        if self._pidfd < 0:
            return
        watched = os.dup(self._pidfd)
        try:
            await trio.lowlevel.wait_readable(watched)
        finally:
            os.close(watched)

    async def kill(self) -> None:
        """Ends the tool and all that it started, and frees the pipes. Bounded, also in a cancelled scope."""
        process = self._process
        if process is None or self._pidfd < 0:
            return
        with trio.CancelScope(shield=True):
            self.remember_family()
            if not _ended(self._pidfd):
                _signal_group(process.pid, signal.SIGTERM)
                with trio.move_on_after(TERM_S):
                    await self.over()
            # What is left of the group: the tool itself, or children that outlived it. Those that left the group
            # are known by their number and their start.
            _signal_group(process.pid, signal.SIGKILL)
            self.remember_family()
            for pid, started in self._family.items():
                if _start_of(pid) == started:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
            with trio.move_on_after(REAP_S):
                await self.over()
                process.poll()  # the number is free now; from here on, only signal 0 goes to it
                await self._gone()
            self._outbox_send.close()
            for stream in self._streams:
                await trio.aclose_forcefully(stream)
            os.close(self._pidfd)
            self._pidfd = -1

    async def _gone(self) -> None:
        """Waits until the kernel has ended the others; they are not our children, so nobody tells us."""
        end = trio.current_time() + GONE_S
        others = self._family | _members(self.pid)
        while any(_start_of(pid) == at for pid, at in others.items()) and trio.current_time() < end:  # noqa: ASYNC110
            await trio.sleep(0.002)


def _ended(pidfd: int) -> bool:
    return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _members(group: int) -> dict[int, str]:
    """The processes that are left of a group whose leader was reaped, and when each started."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return {}
    except PermissionError:
        pass
    found: dict[int, str] = {}
    for name in os.listdir("/proc"):  # some are left, or their remains are, where no init takes them away
        if name.isdecimal() and _group_of(int(name)) == group and (started := _start_of(int(name))) is not None:
            found[int(name)] = started
    return found


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _signal_group(group: int, number: int) -> None:
    # The leader is not reaped yet, so the number is still this group's and nobody else's.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _descendants(pid: int) -> dict[int, str]:
    """The processes below `pid` -> when each started (clock ticks since boot, as text), from /proc."""
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                for child in map(int, Path(f"/proc/{parent}/task/{thread}/children").read_text().split()):
                    if child not in found and (started := _start_of(child)) is not None:
                        found[child] = started
                        todo.append(child)
    return found


def _start_of(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat; None when there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
