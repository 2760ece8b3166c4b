"""What the exit status of `shoal` means. One table for all commands."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Values above 128 are a signal's number plus 128, as shells have it."""

    OK = 0
    NO_ANSWER = 1
    USAGE = 2
    ALREADY_RUNNING = 3
    NO_NODE = 4
    REFUSED = 5
    PORT_TAKEN = 6
    INTERNAL = 70
    INTERRUPTED = 130
    PIPE_CLOSED = 141


MEANING: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.NO_ANSWER: "nobody could answer, or what was asked for is not there",
    ExitCode.USAGE: "wrong usage or configuration",
    ExitCode.ALREADY_RUNNING: "a node already runs on this data directory",
    ExitCode.NO_NODE: "no node is running here",
    ExitCode.REFUSED: "refused: verification failed, or the node said no",
    ExitCode.PORT_TAKEN: "a port or address cannot be listened on",
    ExitCode.INTERNAL: "a fault of Shoal's own; --debug shows where",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
    ExitCode.PIPE_CLOSED: "the reader of the output went away",
}


def table() -> str:
    """The codes as lines of text, for help."""
    return "\n".join(f"{code.value:>5}  {meaning}" for code, meaning in MEANING.items())
