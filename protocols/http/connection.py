"""One connection of the server: reads requests and answers them, one after another, in one task.

That the client has left while a handler works comes from outside (`client_left`, see hangup.py) and cancels it.
Nothing is read meanwhile: what is pipelined behind the request at hand waits in the kernel.
Deadlines are a number on the connection (`deadline`) that the server's one watch looks at: setting it costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import traceback
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from .exchange import Exchange
from .limits import Limits
from .message import Header, HttpError, date_line, status_line, write_head
from .request import Continue, Event, Request, RequestParser, State
from .wire import Wire

Handler = Callable[[Exchange], Awaitable[None]]
OnError = Callable[[Exception], tuple[int, list[Header], bytes]]
Gate = Callable[[Request], None]
"""Looks at a request whose body is yet to come; raises HttpError to refuse it before that is read."""

logger = logging.getLogger(__name__)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINGER_S = 2.0  # for a refused client to read why, before what it still sends would reset the connection
_PIECE_BYTES = 65536  # progress in sending is seen by pieces of this size
_FAREWELL_S = 1.0  # for the answer to a request that came too slowly


class Owner(Protocol):
    """What a connection needs of its server."""

    handler: Handler
    on_error: OnError
    gate: Gate | None
    limits: Limits
    stopping: bool

    def busy(self, connection: Connection) -> None:
        """The connection has a request to answer: it must not be closed to make room."""

    def waiting(self, connection: Connection) -> None:
        """The connection waits for its client."""


class ClientGone(Exception):
    """Sending failed in a shielded part of a handler; elsewhere a handler whose client left is cancelled."""


class Connection:
    def __init__(self, owner: Owner, wire: Wire, client: tuple[str, int]) -> None:
        self.deadline = math.inf
        """When the client's time is up (trio's clock): to send a request, or to read an answer."""
        self._owner, self._wire, self._client = owner, wire, client
        self._limits = owner.limits
        self._parser = RequestParser(owner.limits)
        self._scope = trio.CancelScope()
        self._exchange: Exchange | None = None  # the latest
        self._answering = False
        self._client_gone = False
        self._awaited: State | None = None  # what the deadline stands for while nothing is being answered
        self._timed_out = False
        self._served = 0

    async def run(self) -> None:
        """Serve the connection to its end; the caller closes it then. Raises nothing that concerns only this one."""
        with self._scope, contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._serve()
        if self._timed_out and self._parser.state in ("head", "body"):
            await self._say_too_slow()

    def close(self) -> None:
        """Close at once; an answer that was cut must not look whole."""
        if self._exchange is not None and self._exchange.cut_looks_whole:
            self._wire.abort()
        else:
            self._wire.close()

    def cut(self) -> None:
        """End the connection now; a handler at work is cancelled."""
        self._scope.cancel()

    def finish(self) -> None:
        """End the connection as soon as nothing is lost by it: now, or after the request at hand."""
        if not self._answering and self._parser.state == "idle":
            self._scope.cancel()
        elif self._exchange is not None:
            self._exchange.close_afterwards()

    def client_left(self) -> None:
        """The client has closed its side: whatever is being done for it is cancelled."""
        self._client_gone = True
        if self._answering:
            self._scope.cancel()

    def check(self, now: float) -> None:
        """Cut the connection when its deadline has passed."""
        if now >= self.deadline:
            self._timed_out = not self._answering
            self._scope.cancel()

    async def _serve(self) -> None:
        try:
            await self._converse()
        except HttpError as refused:  # by the gate: a handler's become answers where it is called
            self._parser.refuse()
            await self._send(render_refusal(refused, self._owner.on_error))
            await self._close_gently()

    async def _converse(self) -> None:
        """Read and answer in turn until the connection is to be closed."""
        parser, wire, owner = self._parser, self._wire, self._owner
        self._wait_for_client()
        while data := await wire.receive():
            events = parser.feed(data)
            if not events:
                self._wait_for_client()
                continue
            self._answering = True
            self.deadline = math.inf
            owner.busy(self)
            for event in events:
                if not await self._answer(event):
                    return await self._close_gently()
            self._answering = False
            self._awaited = None
            self._wait_for_client()
            owner.waiting(self)
        return None

    def _wait_for_client(self) -> None:
        """Give the client its time for what it has to send next; bytes that do not complete that give it no more."""
        state = self._parser.state
        if state == self._awaited:
            return
        self._awaited = state
        if state == "body" and self._owner.gate is not None and (pending := self._parser.pending) is not None:
            self._owner.gate(pending)
        limits = self._limits
        if state == "idle":
            seconds = limits.idle_timeout_s
        else:
            seconds = limits.head_timeout_s if state == "head" else limits.body_timeout_s
        self.deadline = trio.current_time() + seconds

    async def _answer(self, event: Event) -> bool:
        """Answer what was read; returns whether the connection goes on."""
        if self._client_gone:
            self._scope.cancel()
            await trio.lowlevel.checkpoint()
        if isinstance(event, Request):
            self._served += 1
            last = self._owner.stopping or self._served >= self._limits.max_requests_per_connection
            exchange = self._exchange = Exchange(event, self._client, self._send, event.keep_alive and not last)
            await self._handle(exchange)
            return exchange.answered and exchange.keeps_connection and not self._owner.stopping
        if isinstance(event, Continue):
            if self._owner.gate is not None and (pending := self._parser.pending) is not None:
                self._owner.gate(pending)
            await self._send(_CONTINUE)
            return True
        await self._send(render_refusal(event, self._owner.on_error))
        return False

    async def _handle(self, exchange: Exchange) -> None:
        """Run the handler; whatever it raises becomes the answer, or cuts the one that has begun."""
        try:
            await self._owner.handler(exchange)
            if not exchange.answered:
                raise RuntimeError("the handler returned without a whole answer")
        except ClientGone:
            pass
        except Exception as raised:
            # Also asked when an answer has begun, for the log: only the renderer knows which errors are expected.
            status, headers, body = self._owner.on_error(_alone(raised))
            if exchange.headers_sent:
                return
            try:
                await exchange.respond(status, body, headers)
            except ValueError as unfit:
                logger.error("an error's answer is malformed: %s", describe(unfit))  # noqa: TRY400

    async def _send(self, data: bytes) -> None:
        """Send, giving the client time for each piece; a client that is gone cancels whoever sends."""
        try:
            if len(data) <= _PIECE_BYTES:
                self.deadline = trio.current_time() + self._limits.write_timeout_s
                await self._wire.send(data)
            else:
                for start in range(0, len(data), _PIECE_BYTES):
                    self.deadline = trio.current_time() + self._limits.write_timeout_s
                    await self._wire.send(data[start : start + _PIECE_BYTES])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            await trio.lowlevel.checkpoint()
            raise ClientGone from None
        self.deadline = math.inf

    async def _say_too_slow(self) -> None:
        error = HttpError(408, f"the request's {self._parser.state} took too long to arrive")
        with trio.move_on_after(_FAREWELL_S), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._wire.send(render_refusal(error, self._owner.on_error))

    async def _close_gently(self) -> None:
        """End our side, and read on where something is left: closing over it would reset the answer away."""
        if self._exchange is not None and not self._exchange.answered:
            return
        self.deadline = trio.current_time() + _LINGER_S
        await self._wire.send_eof()
        if self._parser.state != "idle" or self._wire.is_readable():
            while await self._wire.receive():
                pass


def render_refusal(error: HttpError, on_error: OnError) -> bytes:
    """The answer to what never became a request; the connection ends with it."""
    status, headers, body = on_error(error)
    tail = f"content-length: {len(body)}\r\nconnection: close\r\n{date_line()}\r\n"
    return write_head(status_line(status), headers, tail) + body


def _alone(error: Exception) -> Exception:
    """The one error in a group of one: a handler with a nursery raises groups."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def describe(error: Exception) -> str:
    """Kind and place of an error; not its text, which may hold what a user wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__
