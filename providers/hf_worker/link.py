"""The daemon's end of the pipes: one worker process, its requests, its death. Imports no torch.

link = WorkerLink(worker_command(), environ, load)
nursery.start_soon(link.run)
await link.ready.wait()
call = link.begin(request)
async for event in call: ...
link.leave(call)
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from .. import cgroups
from ..base import ErrorKind, Event, Finish, GenerateRequest, ProviderError, TextDelta
from . import frames
from .frames import FrameError, FrameSplitter

log = logging.getLogger("shoal.providers.local_hf")

LOG_LINE_CHARACTERS = 300
LOG_LINES = 200
"""Lines of one worker's standard error that are logged; what follows is dropped, so that no log fills a disk."""
REAP_S = 5.0
LAST_WORDS = "the worker ends by "
"""How the line on standard error begins that names the exception it dies of."""

_PASSED_ON = frozenset(
    (
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "SYSTEMROOT",
    )
)
_PASSED_ON_PREFIXES = ("LC_", "XDG_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "MKL_", "OMP_", "KMP_", "GOMP_", "TORCH_")


def worker_command() -> list[str]:
    """`-P` keeps the working directory off the module path, where a file called torch.py could lie."""
    return [sys.executable, "-P", "-m", "shoal.providers.hf_worker"]


SPINS = {"torch": "20000", "llama_cpp": "50000"}
"""How often a thread looks for its next piece of work before it sleeps (GOMP_SPINCOUNT), by engine."""


def worker_environ(environ: Mapping[str, str], threads: int, engine: str = "torch") -> dict[str, str]:
    """The variables a worker gets: no key of another provider, never the network, threads that sleep when idle.

    The threads of both engines meet hundreds of times a token. If they sleep at once (OMP_WAIT_POLICY=PASSIVE), waking
    them costs more than a second core gives (SmolLM2 on two cores, 16 streams: 119 tokens/s, 135 with one thread, 205
    with a third of a millisecond of patience); if they never sleep, a busy machine suffers. It must be set before
    either is loaded; the owner's OMP_WAIT_POLICY wins.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name.upper() in _PASSED_ON or name.upper().startswith(_PASSED_ON_PREFIXES)
    }
    if "OMP_WAIT_POLICY" not in kept:
        kept.setdefault("GOMP_SPINCOUNT", SPINS.get(engine, SPINS["torch"]))
    if threads:
        kept["OMP_NUM_THREADS"] = str(threads)
    kept |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    return kept


class Call:
    """One request at the worker: an iterator of its events. Raises ProviderError as soon as the worker is lost."""

    def __init__(self, id_: int) -> None:
        self.id = id_
        # Not bounded: a slow reader must not hold up the others of its batch, and an answer has no more pieces than
        # the model's context has tokens.
        self._send, self._receive = trio.open_memory_channel[Event | ProviderError](math.inf)
        self._text = False
        self._done = False
        self.over = trio.Event()
        """Set when the worker does no more work for this call."""

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> Event:
        if self._done:
            raise StopAsyncIteration
        item = await self._receive.receive()
        if isinstance(item, ProviderError):
            self._done = True
            raise item
        self._done = isinstance(item, Finish)
        return item

    def deliver(self, event: Event) -> None:
        """Hand the caller an event."""
        self._text = self._text or isinstance(event, TextDelta)
        self._send.send_nowait(event)
        if isinstance(event, Finish):
            self.over.set()

    def fail(self, kind: ErrorKind, message: str) -> None:
        """End the call: the caller gets the events so far, then this error."""
        self._send.send_nowait(ProviderError(kind, message))
        self.over.set()

    def cut(self, reason: str) -> None:
        """End the call because the worker is gone: interrupted when text was delivered, else a lost connection."""
        self.fail(ErrorKind.INTERRUPTED if self._text else ErrorKind.CONNECTION, reason)


class EmbedCall:
    """Texts at a worker that embeds: `await call.vectors()`; or a prompt that is counted: `await call.tokens()`.

    Both raise ProviderError.
    """

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.over = trio.Event()
        self._found: frames.Vectors | frames.Counted | ProviderError | None = None

    def deliver(self, found: frames.Vectors | frames.Counted) -> None:
        """Hand the caller what it waits for."""
        self._found = found
        self.over.set()

    def fail(self, kind: ErrorKind, message: str) -> None:
        """End the call with an error."""
        self._found = ProviderError(kind, message)
        self.over.set()

    def cut(self, reason: str) -> None:
        """End the call because the worker is gone."""
        self.fail(ErrorKind.CONNECTION, reason)

    async def vectors(self) -> frames.Vectors:
        """Wait for the vectors."""
        await self.over.wait()
        if isinstance(self._found, frames.Vectors):
            return self._found
        assert isinstance(self._found, ProviderError)
        raise self._found

    async def tokens(self) -> int:
        """Wait for the count."""
        await self.over.wait()
        if isinstance(self._found, frames.Counted):
            return self._found.tokens
        assert isinstance(self._found, ProviderError)
        raise self._found


class WorkerLink:
    """One worker from start to end. `run` lives as long as the process; `ready` is set when it serves or is lost.

    command, environ, folder: what to start, and where. load: the first frame. load_s: seconds that loading may take.
    hang_s: seconds without a frame, while requests run, after which the worker is taken for hung and killed.
    """

    def __init__(
        self,
        command: list[str],
        environ: Mapping[str, str],
        load: frames.Load,
        *,
        folder: Path | None = None,
        load_s: float = 300.0,
        hang_s: float = 60.0,
    ) -> None:
        self._command, self._environ, self._load, self._folder = command, environ, load, folder
        self._load_s, self._hang_s = load_s, hang_s
        self._calls: dict[int, Call | EmbedCall] = {}
        self._ids = 0
        self._outbox_send, self._outbox = trio.open_memory_channel[bytes](math.inf)  # two frames a call at most
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = 0.0
        self._why = ""
        self._log_read = trio.Event()
        self._last_words = ""
        self.ready = trio.Event()
        self.info: frames.Ready | None = None
        self.rates: frames.Rates | None = None
        self.timed: frames.Timed | None = None
        self.lost: str | None = None
        """Why this worker serves no more, as a sentence; None while it lives."""
        self.on_lost: Callable[[WorkerLink], None] = lambda link: None
        """Called at the moment when `lost` is set."""
        self.refused = False
        """Whether the worker itself said that it cannot load the model."""
        self.answered = 0
        """Requests answered in full."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    # -- requests --------------------------------------------------------------------------------------------

    def begin(self, request: GenerateRequest) -> Call:
        """Send a request. Raises ProviderError when the worker is lost or the request cannot be sent."""
        call = Call(self._send(lambda id_: frames.Generate(id_, request)))
        self._calls[call.id] = call
        return call

    def begin_embedding(self, texts: list[str]) -> EmbedCall:
        """Send texts to a worker that embeds. Raises ProviderError as `begin` does."""
        call = EmbedCall(self._send(lambda id_: frames.Embed(id_, texts)))
        self._calls[call.id] = call
        return call

    def begin_count(self, request: GenerateRequest) -> EmbedCall:
        """Send a request whose prompt is to be counted. Raises ProviderError as `begin` does."""
        call = EmbedCall(self._send(lambda id_: frames.Count(id_, request)))
        self._calls[call.id] = call
        return call

    def _send(self, frame_of: Callable[[int], frames.ToWorker]) -> int:
        """Send a frame under a fresh id, and give that."""
        if self.lost is not None:
            raise ProviderError(ErrorKind.CONNECTION, self.lost)
        self._ids += 1
        try:
            frame = frames.encode(frame_of(self._ids))
        except (FrameError, UnicodeEncodeError) as fault:
            why = "is too large" if isinstance(fault, FrameError) else "holds characters that are not Unicode text"
            raise ProviderError(ErrorKind.BAD_REQUEST, f"the request {why}") from None
        if not self._calls:
            self._heard = trio.current_time()
        self._outbox_send.send_nowait(frame)
        return self._ids

    def leave(self, call: Call | EmbedCall) -> None:
        """The caller wants no more of it: the worker stops computing it within one decode step."""
        if not call.over.is_set() and self.lost is None:
            self._outbox_send.send_nowait(frames.encode(frames.Cancel(call.id)))

    # -- the process -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start the process and serve it to its end; cancelling kills it. Sets `lost` and raises nothing."""
        try:
            # Not trio.run_process: that forks in a thread of the pool, and the worker's "die with the parent" is
            # about the thread that forked it, which the pool ends after ten idle seconds.
            self._process = process = subprocess.Popen(  # noqa: S603, ASYNC220
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=dict(self._environ),
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C in a terminal reaches the daemon alone
            )
        except OSError as fault:
            self._lose(f"the worker of the local model cannot be started ({fault.strerror or fault})")
            return
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        log.info("local model %s: worker %d is starting", self._load.name, process.pid)
        kills = cgroups.oom_kills()
        self._heard = trio.current_time()
        self._outbox_send.send_nowait(frames.encode(self._load))
        with process.stdin, process.stdout, process.stderr:
            to_it = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
            from_it = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
            errors = trio.lowlevel.FdStream(os.dup(process.stderr.fileno()))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, to_it)
                nursery.start_soon(self._log, errors)
                nursery.start_soon(self._watch)
                await self._read(from_it)
                with trio.move_on_after(1):  # its last words and its exit code are there, or come in a moment
                    await self._log_read.wait()
                    await _ended(process, 1)
                nursery.cancel_scope.cancel()
        finally:
            out_of_memory = cgroups.oom_kills() > kills
            how = _end_of(process.poll(), self._last_words, out_of_memory=out_of_memory)
            self._lose(self._why or f"the worker of the local model {how}")
            process.kill()
            with trio.CancelScope(shield=True):
                await _ended(process, REAP_S)
                for stream in (to_it, from_it, errors):
                    await trio.aclose_forcefully(stream)

    def stop(self, reason: str) -> None:
        """Kill the process; `run` ends, and calls in flight get `reason`."""
        self._why = self._why or reason
        if self._process is not None:
            self._process.kill()

    async def _write(self, stream: trio.lowlevel.FdStream) -> None:
        try:
            async for data in self._outbox:
                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has died: the reader sees the end of its output and says so

    async def _read(self, stream: trio.lowlevel.FdStream) -> None:
        splitter = FrameSplitter()
        try:
            while data := await stream.receive_some(65536):
                self._heard = trio.current_time()
                for body in splitter.feed(data):
                    self._handle(frames.from_worker(body))
        except FrameError:
            self.stop("the worker of the local model sent what is no frame")
        except trio.BrokenResourceError:
            pass

    def _handle(self, frame: frames.FromWorker) -> None:
        match frame:
            case frames.Said(id_, event):
                call = self._calls.get(id_)
                if isinstance(call, Call):
                    call.deliver(event)
                    if isinstance(event, Finish):
                        self.answered += 1
                        del self._calls[id_]
            case frames.Vectors(id_) | frames.Counted(id_):
                call = self._calls.pop(id_, None)
                if isinstance(call, EmbedCall):
                    call.deliver(frame)
                    self.answered += 1
            case frames.Failed(id_, kind, message):
                call = self._calls.pop(id_, None)
                if call is not None:
                    call.fail(kind, message)
            case frames.Dropped(id_):
                call = self._calls.pop(id_, None)
                if call is not None:
                    call.fail(ErrorKind.CANCELLED, "the caller left")
            case frames.Ready():
                self.info = frame
                log.info("local model %s: ready after %.1f s", self._load.name, frame.load_s)
                self.ready.set()
            case frames.Timed():
                self.timed = frame
                self.ready.set()
            case frames.Refused(reason):
                self.refused = True
                self._why = reason
            case frames.Rates():
                self.rates = frame
            case frames.Beat():
                pass

    async def _watch(self) -> None:
        """Kill a worker that is silent for too long while it should be busy."""
        while True:
            if not self.ready.is_set():
                limit = self._load_s
                reason = f"the local model was not loaded after {limit:g} s; a larger load_s gives it more time"
            elif self._calls:
                limit = self._hang_s
                reason = f"the worker of the local model gave no sign of life for {limit:g} s and was stopped"
            else:
                await trio.sleep(self._hang_s / 4)
                continue
            left = self._heard + limit - trio.current_time()
            if left <= 0:
                self.stop(reason)
                return
            await trio.sleep(min(left, self._hang_s / 4))

    async def _log(self, stream: trio.lowlevel.FdStream) -> None:
        kept, lines = b"", 0
        while data := await stream.receive_some(16384):
            *whole, kept = (kept + data).split(b"\n")
            kept = kept[-LOG_LINE_CHARACTERS:]
            for line in whole:
                lines += 1
                text = line[:LOG_LINE_CHARACTERS].decode(errors="replace")
                if text.startswith(LAST_WORDS):
                    self._last_words = text.removeprefix(LAST_WORDS)
                if lines <= LOG_LINES:
                    log.debug("worker: %s", text)
        self._log_read.set()

    def _lose(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        self.on_lost(self)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.cut(reason)
        self.ready.set()


async def _ended(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Wait until the process has ended, at most `limit_s` seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        await trio.to_thread.run_sync(partial(process.wait, limit_s), abandon_on_cancel=True)


def _end_of(code: int | None, last_words: str, *, out_of_memory: bool) -> str:
    """out_of_memory: the kernel has ended something for want of memory while the worker ran."""
    if code is None:
        return "was stopped"
    if code == -9 and out_of_memory:
        return (
            "was ended by the kernel, because memory ran out: close something, choose a smaller model, or lower"
            " kv_tokens or memory_mb"
        )
    if code < 0:
        reason = f"was killed by signal {-code}"
        return reason + ("; when nobody did that, memory has run out" if code == -9 else "")
    return f"ended with exit code {code} ({last_words or 'the log has its last lines at level debug'})"
