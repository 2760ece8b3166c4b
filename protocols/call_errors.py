"""How a call or a session fails, and the shape of an error frame's body: `[code, message, data]`."""

from __future__ import annotations

import logging
import traceback
from pathlib import PurePath
from typing import Any

from .framing import ProtocolError, encode_body

log = logging.getLogger("shoal.session")

MAX_CODE_CHARS = 64
MAX_MESSAGE_CHARS = 1000
MAX_DATA_BYTES = 32 * 1024


class SessionLost(Exception):
    """The stream ended, the peer fell silent, or the session was closed. The message says which."""


class PeerSilent(SessionLost):
    """Nothing has come from the peer for too long, so its connection is of no use either."""


class CallError(Exception):
    """The answer to a call is an error.

    code: for programs. The session's own: "busy", "cancelled", "internal", "too_large", "unknown_method"; a service
    adds its own. message: for people, never a prompt or an answer. data: plain data, at most 32 KiB encoded.
    """

    def __init__(self, code: str, message: str = "", data: Any = None) -> None:
        super().__init__(code, message)
        self.code, self.message, self.data = code, message, data

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code


def where(error: Exception) -> str:
    """The error's type and the line that raised it: what a log may hold, because its text may hold a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"{type(error).__name__} at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}"
        if frames
        else repr(type(error))
    )


def read_error(body: Any) -> CallError:
    if isinstance(body, list) and len(body) == 3 and isinstance(body[0], str) and isinstance(body[1], str):
        return CallError(body[0][:MAX_CODE_CHARS], body[1][:MAX_MESSAGE_CHARS], body[2])
    raise ProtocolError("a malformed error: expected [code, message, data]")


def error_body(error: CallError) -> list[Any]:
    data = error.data
    try:
        if len(encode_body(data)) > MAX_DATA_BYTES:
            data = None
    except TypeError:
        data = None
    return [error.code[:MAX_CODE_CHARS], error.message[:MAX_MESSAGE_CHARS], data]


def failure_of(error: Exception, method: str) -> CallError:
    """What the caller is told. The text of an unforeseen exception may hold a prompt: it is neither sent nor logged."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, CallError):
        return error
    if not isinstance(error, SessionLost):
        log.error("the handler of %r failed: %s", method[:MAX_CODE_CHARS], where(error))
    return CallError("internal", "the peer failed to answer")
