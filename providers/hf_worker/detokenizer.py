"""Tokens to text, one at a time, exactly: the pieces joined are the text of the whole.

A character may be spread over several tokens (an emoji has four bytes), and a token's text may depend on the one
before it (a leading blank). So the last tokens are decoded together with the ones before them, and a character that
is not whole yet is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
HELD_TOKENS = 32
"""A character has at most 4 bytes (RFC 3629), so at most 4 tokens; what stays broken for longer is not one."""


class Detokenizer:
    """The text of one growing list of tokens.

    decode: text of some tokens, without the control tokens. context: tokens that stand before the first one.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(context)
        self._before = decode(self._tokens) if self._tokens else ""
        self._known = len(self._tokens)
        self._sent = ""  # what was given away of the text after the known tokens

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is not whole."""
        self._tokens.append(token)
        text = self._decode(self._tokens)[len(self._before) :]
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._known <= HELD_TOKENS:
            # Only the last character can still change: a decoder replaces each broken sequence before it for good.
            new = text[len(self._sent) : -1]
            self._sent += new
            return new
        new = text[len(self._sent) :]
        del self._tokens[: self._known]
        self._known = len(self._tokens)
        self._before = self._decode(self._tokens)
        self._sent = ""
        return new

    @property
    def holds(self) -> bool:
        """Whether a character has begun that is not whole."""
        return len(self._tokens) > self._known
