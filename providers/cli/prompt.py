"""A conversation as the two texts that such a tool takes: what the system says, and what is asked.

One question is passed on as it is. A longer conversation becomes a transcript, because the tools take no other turns
than the user's; the model is asked for the next answer alone.
"""

from __future__ import annotations

from ..base import ErrorKind, GenerateRequest, Message, ProviderError

PLAIN = "You are a plain text generator. Answer with text only."
"""The system's text when the request has none; without one the tools would say that they are coding agents."""

_NAMES = {"user": "User", "assistant": "Assistant"}
_ASK = (
    "Continue this conversation with the assistant's next message. Write only that message, without a name before it."
)


def texts_of(request: GenerateRequest, name: str) -> tuple[str, str]:
    """(system text, prompt). Raises ProviderError for a conversation that such a tool cannot take."""
    if request.prefix:
        raise ProviderError(ErrorKind.UNAVAILABLE, f"{name} does not continue an answer that exists in part")
    if request.has_tools:
        raise ProviderError(ErrorKind.UNSUPPORTED, f"{name} is run with every tool off; leave tools out")
    if request.n != 1:
        raise ProviderError(ErrorKind.BAD_REQUEST, f"{name} gives one answer a request; ask n = 1")
    for message in request.messages:
        if message.shows:
            raise ProviderError(ErrorKind.UNSUPPORTED, f"{name} reads text only here; leave images and files out")
    system = [m.text for m in request.messages if m.role in ("system", "developer")]
    turns = [m for m in request.messages if m.role in _NAMES]
    if not any(turn.text.strip() for turn in turns):
        raise ProviderError(ErrorKind.BAD_REQUEST, "there is nothing to answer; send a user message with text")
    return "\n\n".join(system) or PLAIN, _prompt(turns)


def _prompt(turns: list[Message]) -> str:
    if len(turns) == 1:
        return turns[0].text
    transcript = "\n\n".join(f"{_NAMES[turn.role]}: {turn.text}" for turn in turns)
    return f"{_ASK}\n\n{transcript}\n\nAssistant:"
