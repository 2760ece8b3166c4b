"""What one generation has said so far: the text, and whether it may be moved, stored or called whole.

This is what continuation.py resumes from, and what a record is made of.
"""

from __future__ import annotations

from ...providers.base import Event, Finish, Logprobs, ReasoningDelta, TextDelta, ToolCallDelta, Usage

EVENT_BYTES = 64
"""What an event costs beside its text, roughly."""


class Transcript:
    """The events of an answer, summed up as they pass; `Usage` and `Finish` are kept back until the end.

    bytes: what the events so far cost in memory, roughly.
    """

    __slots__ = ("_parts", "bytes", "finish", "reasoned", "tools", "usage")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.bytes = 0
        self.usage: Usage | None = None
        self.finish: Finish | None = None
        self.reasoned = False
        self.tools = False

    def add(self, event: Event) -> bool:
        """Takes an event; True when it goes to the caller now."""
        if type(event) is TextDelta:
            if not event.text:
                return False
            self._parts.append(event.text)
            self.bytes += len(event.text) + EVENT_BYTES
            return True
        if type(event) is Finish:
            self.finish = event
            return False
        if type(event) is Usage:
            self.usage = event
            return False
        if type(event) is ReasoningDelta:
            if not event.text:
                return False
            self.reasoned = True
            self.bytes += len(event.text) + EVENT_BYTES
            return True
        if type(event) is ToolCallDelta:
            self.tools = True
            self.bytes += len(event.arguments) + EVENT_BYTES
            return True
        if type(event) is Logprobs:
            self.bytes += EVENT_BYTES * len(event.tokens)
            return True
        return False

    @property
    def text(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def texted(self) -> bool:
        """Whether text has gone to the caller."""
        return bool(self._parts)

    @property
    def said(self) -> bool:
        """Whether anything has gone to the caller."""
        return bool(self._parts) or self.reasoned or self.tools

    @property
    def empty(self) -> bool:
        """Whether it ended without a word and without saying that this was on purpose.

        On purpose is: a refusal or an image, cut by a limit or a filter, or tokens that were counted (a stop text met
        at once).
        """
        if self.said or self.finish is None or self.finish.reason != "stop":
            return False
        if self.finish.beside is not None and "message" in self.finish.beside:
            return False
        return self.usage is None or self.usage.completion_tokens == 0
