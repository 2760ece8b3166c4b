"""Messages to tokens: the model's own chat template, with text that can't pass for a control token.

The same for bare text, which goes to the model without a template.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..base import Completion, ErrorKind, GenerateRequest, Message
from .bounds import TEMPLATE_S, OutOfBoundsError, bounded

GAPS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001  DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
)
"""Control tokens before the text, between it and what stands behind the gap, and where the gap is to be filled."""


class PromptRefused(Exception):
    """This request has no prompt; kind and message go to the caller."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind, self.message = kind, message


class Prompt(NamedTuple):
    """messages: tokens of the conversation up to where the answer begins. prefix: tokens of the answer so far.

    text: the answer so far, without control tokens.
    """

    messages: list[int]
    prefix: list[int]
    text: str


class Neutraliser:
    """Takes control tokens out of text that came from outside.

    The tokenizer turns `<|im_end|>` in a user's text into the token that ends the turn, so such text could write turns
    of its own. Each one becomes a blank, and that again until none is left. Some tokenizers normalise a text first
    (`＜|im_end|＞` is a control token after NFKC): a text that would then hold one is normalised here.
    """

    def __init__(self, control: Iterable[str]) -> None:
        words = sorted({word for word in control if word.strip()}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def __call__(self, text: str) -> str:
        while self._pattern is not None:
            text, found = self._pattern.subn(" ", text)
            if not found:
                break
        if self._pattern is not None and not text.isascii():
            normalised = unicodedata.normalize("NFKC", text)
            if self._pattern.search(normalised):
                return self(normalised)
        return text


def control_tokens(tokenizer: Any) -> set[str]:
    """The texts of a tokenizer's control tokens.

    `all_special_tokens` alone would not do: it names 3 of SmolLM2's 17 (`<file_sep>`, `<issue_start>` and others are
    only marked as special among the added tokens).
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return special | set(tokenizer.all_special_tokens)


class Prompter:
    """Makes prompts for one model. name and context_length (tokens) are for the messages of refusals.

    template_s: seconds that the model's chat template gets.
    """

    def __init__(self, tokenizer: Any, name: str, context_length: int, *, template_s: float = TEMPLATE_S) -> None:
        self._tokenizer, self._name, self.context_length = tokenizer, name, context_length
        self._template_s = template_s
        self._neutralise = Neutraliser(control_tokens(tokenizer))
        self.controls = frozenset(at for at, token in tokenizer.added_tokens_decoder.items() if token.special)
        vocabulary = tokenizer.get_vocab()
        self._longest_token = max(map(len, vocabulary), default=1)
        self._size = getattr(tokenizer, "size", 0) or max(vocabulary.values(), default=0) + 1

    def prompt(self, request: GenerateRequest) -> Prompt:
        """The tokens of a request. Raises PromptRefused: too long, or not what the model's template takes."""
        if request.completion is not None:
            return self._bare(request.completion, request.prefix)
        messages = self.tokens(self.written(request))
        so_far = self._neutralise(request.prefix)
        prefix = self.tokens(so_far)
        if len(messages) + len(prefix) >= self.context_length:
            self._too_long(f"{len(messages) + len(prefix)} tokens")
        return Prompt(messages, prefix, so_far)

    def count(self, request: GenerateRequest) -> int:
        """Tokens of a request's prompt, as `prompt` makes it, even where they are more than the context holds.

        Raises PromptRefused.
        """
        if request.completion is not None:
            return len(self._bare(request.completion, "").messages)
        return len(self.tokens(self.written(request)))

    def written(self, request: GenerateRequest) -> str:
        """The conversation as the model's template writes it. Raises PromptRefused."""
        characters = len(request.prefix) + sum(len(message.text) for message in request.messages)
        if characters > self.context_length * self._longest_token:  # certain without spending time on tokens
            self._too_long(f"{characters} characters")
        turns = [self._turn(message) for message in request.messages]
        try:
            with bounded(self._template_s):
                text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (OutOfBoundsError, MemoryError):
            raise PromptRefused(
                ErrorKind.UPSTREAM,
                f"the chat template of {self._name} takes more than its bounds (template_s) allow; use another model",
            ) from None
        except Exception as fault:  # a template is a program that came with the model; its complaint may quote the text
            raise PromptRefused(
                ErrorKind.BAD_REQUEST,
                f"the chat template of {self._name} does not take these messages ({type(fault).__name__});"
                " try without a system message and with turns of user and assistant that alternate",
            ) from None
        return text

    def _bare(self, completion: Completion, prefix: str) -> Prompt:
        """The tokens of a text that is gone on with as it stands, without a template: control tokens come in as ids
        alone, which nobody writes by accident. Raises PromptRefused."""
        given = (completion.prompt, completion.suffix or "", prefix)
        characters = sum(len(each) for each in given if isinstance(each, str))
        if characters > self.context_length * self._longest_token:
            self._too_long(f"{characters} characters", "the prompt has")
        if isinstance(completion.prompt, str):
            tokens = self.tokens(self._neutralise(completion.prompt))
        else:
            tokens = list(completion.prompt)
            if max(tokens, default=0) >= self._size:
                raise PromptRefused(
                    ErrorKind.BAD_REQUEST,
                    f"prompt holds a token that {self._name} does not have: its ids are below {self._size}",
                )
        if completion.suffix is not None:
            tokens = self._gap(tokens, self.tokens(self._neutralise(completion.suffix)))
        if isinstance(completion.prompt, str):
            tokens = (
                self._tokenizer.encode("", add_special_tokens=True) + tokens
            )  # what a text begins with, if anything
        if not tokens:
            raise PromptRefused(ErrorKind.BAD_REQUEST, "prompt is empty; send at least one character")
        so_far = self._neutralise(prefix)
        more = self.tokens(so_far)
        if len(tokens) + len(more) >= self.context_length:
            self._too_long(f"{len(tokens) + len(more)} tokens", "the prompt has")
        return Prompt(tokens, more, so_far)

    def _gap(self, before: list[int], behind: list[int]) -> list[int]:
        """The tokens by which a model is asked what stands between two texts. Raises PromptRefused."""
        ids = {token.content: at for at, token in self._tokenizer.added_tokens_decoder.items()}
        for first, second, last in GAPS:
            if first in ids and second in ids and last in ids:
                return [ids[first], *before, ids[second], *behind, ids[last]]
        raise PromptRefused(
            ErrorKind.UNSUPPORTED,
            f"{self._name} was not made to write before a suffix (it has no tokens for that); leave suffix out,"
            " or choose a model that fills in the middle",
        )

    def _too_long(self, size: str, what: str = "the messages have") -> None:
        raise PromptRefused(
            ErrorKind.CONTEXT_LENGTH,
            f"{what} {size}; {self._name} takes {self.context_length} tokens with the answer:"
            " send less text, or choose a model with a larger context",
        )

    def _turn(self, message: Message) -> dict[str, str]:
        role = "system" if message.role == "developer" else message.role
        return {"role": role, "content": self._neutralise(message.text)}

    def word(self, token: int) -> str:
        """The text of one token; a control token's is its name, and a piece of a character is a replacement."""
        added = self._tokenizer.added_tokens_decoder.get(token)
        text: str = self._tokenizer.decode([token]) if added is None else added.content
        return text

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, as it stands."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens
