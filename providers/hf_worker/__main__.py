"""The worker process: `python -m shoal.providers.hf_worker`, frames on standard input and output.

It is started by `link.WorkerLink` and ends when its input ends or its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

BEGAN = time.monotonic()
OOM_SCORE = 500
"""Thousandths of the machine's memory that this process seems to have beyond its own when the kernel must end one."""


def die_with_parent() -> None:
    """Linux: a parent killed with SIGKILL takes this process along. Elsewhere the end of the input does it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def die_before_the_daemon() -> None:
    """Linux: where memory runs out, the kernel ends this process and not the node (proc(5), oom_score_adj)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def own_output() -> int:
    """Keep standard output for frames alone: whatever a library prints goes to standard error. Returns its new fd."""
    frames = os.dup(1)
    os.dup2(2, 1)
    return frames


def report_fault(kind: type[BaseException], _fault: BaseException, trace: TracebackType | None) -> None:
    """Where and what kind, but not the message: it may quote what a user wrote."""
    for frame in traceback.extract_tb(trace):
        print(f"  {frame.filename}:{frame.lineno} in {frame.name}", file=sys.stderr)
    print(f"the worker ends by {kind.__name__}", file=sys.stderr, flush=True)


def main() -> int:
    """Load what the first frame asks for and serve until the input ends."""
    die_with_parent()
    die_before_the_daemon()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the daemon, which drains first
    sys.excepthook = report_fault
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

    from .frames import Load, Ready, Refused, Timed
    from .server import Pipes, Server

    pipes = Pipes(0, own_output())
    pipes.start()
    wanted = pipes.receive(wait=True)
    if not isinstance(wanted, Load):
        print("the first frame is not a load frame", file=sys.stderr)
        return 3

    from .loaded import LoadError

    try:
        if wanted.trials:
            from .trials import timed

            pipes.send(Timed(*timed(wanted)))
            pipes.flush()
            return 0
        if wanted.engine == "llama_cpp":
            from .llama_cpp_model import load_gguf

            model = load_gguf(wanted)
        elif wanted.embeds:
            from .model import load_encoder

            encoder = load_encoder(wanted)
        else:
            from .model import load

            model = load(wanted)
    except LoadError as fault:
        pipes.send(Refused(str(fault)))
        pipes.flush()
        return 1
    if wanted.embeds:
        pipes.send(Ready(encoder.longest, "float32", "cpu", wanted.threads, time.monotonic() - BEGAN))
        pipes.flush()
        from .encoder_server import EncoderServer

        EncoderServer(pipes, encoder).run()
    took = time.monotonic() - BEGAN
    ready = Ready(
        model.prompter.context_length, model.dtype, model.device, model.threads, took, computes=model.computes
    )
    pipes.send(ready)
    pipes.flush()
    Server(pipes, model).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
