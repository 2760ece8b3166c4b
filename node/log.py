"""Logging: plain stdlib loggers under `shoal`, fields as `extra`, one line an event on stderr.

    log = logging.getLogger("shoal.swarm")
    log.info("peer connected", extra={"peer": peer_id, "rtt_ms": 12})

    10:42:07 info    swarm: peer connected peer=12D3KooW... rtt_ms=12
    {"time":"2026-01-02T10:42:07.123Z","level":"info","logger":"shoal.swarm","message":"peer connected",...}

No prompt, answer or key is ever logged; who logs sees to that, and no field named like one is let through.
"""

from __future__ import annotations

import datetime
import logging
import sys
import traceback
from typing import Any, Literal, TextIO

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NEVER = frozenset(
    {"prompt", "messages", "content", "answer", "text", "key", "seed", "token", "api_key", "authorization"}
)
_QUIET = ("libp2p", "multiaddr", "urllib3", "asyncio", "async_service", "ipfshttpclient")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: "(hidden)" if name in _NEVER else value
        for name, value in vars(record).items()
        if name not in _STANDARD and not name.startswith("_")
    }


class HumanLines(logging.Formatter):
    """Local time, level, logger without `shoal.`, message, fields. One line, whatever is in the values."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        name = record.name.removeprefix("shoal.")
        fields = "".join(f" {key}={_printable(value)}" for key, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():<7} {name}: {_escaped(record.getMessage())}{fields}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line; time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            line.setdefault(key, value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line, enc_hook=str).decode()


def _escaped(text: str) -> str:
    """Control characters as escapes: a peer's text must not move the cursor of whoever reads the log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _printable(value: Any) -> str:
    text = _escaped(str(value))
    return f'"{text}"' if " " in text or not text else text


def set_up(
    level: Literal["debug", "info", "warning", "error"] = "info",
    form: Literal["human", "json"] = "human",
    stream: TextIO | None = None,
) -> None:
    """Send the loggers under `shoal` to `stream` (stderr); libraries from warning or error on. Idempotent."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else HumanLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("shoal").setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.raiseExceptions = False  # a closed stderr must not end a request
