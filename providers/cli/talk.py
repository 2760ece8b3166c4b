"""One request's conversation with a tool, as a pure state machine: lines of its output in, events of an answer out.

    talk = tool.talk(asked)
    process.say(talk.opening())
    talk.hear(line); events = talk.take(); replies = talk.replies()
    ...until talk.over, or the process has ended: talk.exited(code, stderr)

What all tools have in common is here: an answer counts when the tool said that it is whole, there was text, and the
tool ended with 0. The tools' own words are in their files.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from ..base import ErrorKind, Event, Finish, FinishReason, ProviderError, ReasoningDelta, TextDelta, Usage
from ..hf_worker.stops import StopFilter
from ..openai_errors import Failure, kind_of
from ..quoting import quotable


class Asked(Struct, frozen=True, kw_only=True):
    """A request as a tool gets it: what it cannot honour is gone. key: the credential, None where it needs none."""

    prompt: str
    system: str
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    key: str | None = None


class Fault(Struct, frozen=True, kw_only=True):
    """What a tool said went wrong. status: the vendor's HTTP status, 0 where the tool does not say.

    words: identifiers (`rate_limit_error`). said: its sentence, which may quote the prompt. kind: where it is certain.
    """

    status: int = 0
    words: tuple[str, ...] = ()
    said: str = ""
    kind: ErrorKind | None = None
    retry_after: float | None = None


L = TypeVar("L")


class Talk(abc.ABC, Generic[L]):
    """See the module. name: the provider's. key_hint: where its key comes from, for the sentence about a wrong one.

    lines: the decoder of one line of the tool's output; lines that it cannot read are counted and passed over.
    """

    ends_input = True
    """Whether stdin is closed after the opening; a tool with a protocol closes it by `say_no_more`."""

    def __init__(self, name: str, asked: Asked, key_hint: str, lines: type[L]) -> None:
        self.name, self.asked, self.key_hint = name, asked, key_hint
        self._decode = msgspec.json.Decoder(lines).decode
        self._stops = StopFilter(asked.stop) if asked.stop else None
        self._events: list[Event] = []
        self._replies: list[bytes] = []
        self._chars = 0
        self._strange = 0
        self.model: str | None = None
        self.usage: Usage | None = None
        self.fault: Fault | None = None
        self.reason: FinishReason | None = None
        self.cut = False
        """The answer is known to be over before the tool knows: it is ended and its exit code means nothing."""
        self.says_no_more = False
        self.report: Path | None = None
        """A file that the tool writes at its end."""

    # -- what the tools say ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def opening(self) -> bytes:
        """What goes to stdin first."""

    @abc.abstractmethod
    def on(self, line: L) -> None:
        """One line of output. Calls `text`, `done`, `failed`, `reply`; sets `model` and `usage`."""

    def on_report(self, data: bytes) -> None:
        """What the file `report` holds at the end. May raise msgspec.DecodeError."""

    def on_exit(self, code: int, stderr: str) -> Fault | None:
        """What the exit code and stderr say about an end that the output did not explain."""
        return None

    # -- for the tools -----------------------------------------------------------------------------------------

    def text(self, piece: str) -> None:
        if not piece or self.over:
            return
        if self._stops is not None:
            piece = self._stops.push(piece)
            if self._stops.stopped:
                self._put(piece)
                self.done("stop", cut=True)
                return
        self._put(piece)

    def thought(self, piece: ReasoningDelta) -> None:
        if not self.over:
            self._events.append(piece)

    def done(self, reason: FinishReason, *, cut: bool = False) -> None:
        if not self.over:
            self.reason, self.cut = reason, cut

    def failed(self, fault: Fault, *, cut: bool = False) -> None:
        if not self.over:
            self.fault, self.cut = fault, cut

    def asked_for_a_tool(self) -> None:
        """The model wants a tool although none was offered; nothing that it says counts as an answer."""
        self.failed(Fault(kind=ErrorKind.UPSTREAM, said="the model asked for a tool, and none is offered"), cut=True)

    def reply(self, line: bytes) -> None:
        self._replies.append(line + b"\n")

    def _put(self, piece: str) -> None:
        if piece:
            self._chars += len(piece)
            self._events.append(TextDelta(piece))

    # -- for the runner ----------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """The tool has said how it ends."""
        return self.reason is not None or self.fault is not None

    @property
    def said(self) -> bool:
        """Whether there was text."""
        return self._chars > 0

    def hear(self, line: bytes) -> None:
        """One line of stdout."""
        line = line.strip()
        if not line or self.over:
            return
        try:
            decoded = self._decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._strange += 1
            return
        self.on(decoded)

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def replies(self) -> list[bytes]:
        """What is to be written to stdin since the last call."""
        replies, self._replies = self._replies, []
        return replies

    def exited(self, code: int | None, stderr: str) -> list[Event]:
        """The last events. code: None for a tool that was ended by us. Raises ProviderError when it is no answer."""
        if self.fault is None and self.reason is not None and code not in (0, None) and not self.cut:
            self.fault = self.on_exit(code, stderr) or Fault(
                kind=ErrorKind.UPSTREAM, said=f"it said that it was done and then {_ending(code)}"
            )
        if self.fault is not None:
            if self.fault.kind is None and not self.fault.status and code is not None:
                self.fault = self.on_exit(code, stderr) or self.fault
            raise self.error(self.fault)
        if self.reason is None:
            raise self.error((self.on_exit(code, stderr) if code is not None else None) or self._unexplained(code))
        if self._stops is not None:
            self._put(self._stops.flush())
        stopped = self._stops is not None and self._stops.stopped
        if not self.said and not stopped and self.reason in ("stop", "length"):
            raise self.error(Fault(kind=ErrorKind.UPSTREAM, said="it ended without a word"))
        last: list[Event] = [] if self.usage is None else [self.usage]
        return [*self.take(), *last, Finish(self.reason, self.model)]

    def _unexplained(self, code: int | None) -> Fault:
        if code is not None and (code < 0 or code > 128):
            return Fault(kind=ErrorKind.CONNECTION, said=f"it {_ending(code)} in the middle of its work")
        strange = "; its output is not what this version of Shoal knows" if self._strange else ""
        return Fault(kind=ErrorKind.UPSTREAM, said=f"it {_ending(code)} without saying that it was done{strange}")

    def error(self, fault: Fault) -> ProviderError:
        """What the caller is told: a sentence of ours, with the tool's own where it neither quotes nor betrays."""
        kind = kind_of_fault(fault)
        status = fault.status or None
        if self.said and kind is not ErrorKind.CONTENT_FILTER:
            why = f" (HTTP {fault.status})" if fault.status else ""
            return ProviderError(ErrorKind.INTERRUPTED, f"{self.name} broke off{why}", status=status)
        private = (self.asked.prompt, self.asked.system)
        said = quotable(fault.said, private=private, secrets=(self.asked.key,))
        return ProviderError(kind, self._sentence(kind, fault, said), retry_after=fault.retry_after, status=status)

    def _sentence(self, kind: ErrorKind, fault: Fault, said: str) -> str:
        label = f" (HTTP {fault.status})" if fault.status else ""
        quoted = f": {said}" if said else ""
        match kind:
            case ErrorKind.AUTH:
                return f"{self.name}: the vendor refused the credential{label}; check {self.key_hint}"
            case ErrorKind.QUOTA:
                return f"{self.name}: the account's credit or quota is spent{label}; top it up or raise its limit"
            case ErrorKind.RATE_LIMITED:
                return f"{self.name}: the vendor's rate limit is reached{label}; slow down or try again later"
            case ErrorKind.OVERLOADED:
                return f"{self.name}: the vendor is overloaded{label}; try again later"
            case ErrorKind.CONTEXT_LENGTH:
                return f"{self.name}: the conversation is too long for the model{label}; shorten it"
            case ErrorKind.CONTENT_FILTER:
                return f"{self.name}: the vendor's content filter refused the request{label}"
            case ErrorKind.CONNECTION:
                return f"{self.name} could not reach the vendor or broke off{label}{quoted}"
            case ErrorKind.UNAVAILABLE:
                return f"{self.name} cannot do this{label}{quoted or ': the vendor does not have this model'}"
            case _:
                return f"{self.name} failed{label}{quoted}"


def kind_of_fault(fault: Fault) -> ErrorKind:
    """The kind of a fault, by the rules for OpenAI-compatible upstreams: vendors share statuses and words."""
    if fault.kind is not None:
        return fault.kind
    words = iter(fault.words)
    failure = Failure(message=fault.said, type=next(words, None), code=next(words, None))
    return kind_of(fault.status, failure)


def _ending(code: int | None) -> str:
    if code is None:
        return "did not end"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def listed(words: Iterable[str | None]) -> tuple[str, ...]:
    """The words that are there, in lower case with underscores."""
    return tuple(word.lower() for word in words if word)
