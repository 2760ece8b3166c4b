"""How many tokens a prompt will be, roughly, where nobody has counted: by its bytes.

Which tokenizer will count is not known before somebody answers. Measured with cl100k on this repository's prose, code
and JSON: 3.4 to 4.4 bytes of ASCII a token, so that the estimate is right to about 15 %. Other scripts: 0.6 tokens for
a letter of two bytes (Russian), 1.2 for one of three (Chinese, Japanese).
"""

from __future__ import annotations

import math

import msgspec

from ...providers.base import GenerateRequest, Message, TextPart

ASCII_A_TOKEN = 4
OF_TWO_BYTES, OF_MORE = 0.6, 1.2
A_MESSAGE = 4
"""What a chat template puts around each message."""
AN_IMAGE = 1600
"""What Anthropic's models take for a large picture, at most; others take fewer."""


def estimate(request: GenerateRequest) -> int:
    """Tokens of a request's prompt, the tools' descriptions among them."""
    tokens = sum(_of_message(message) for message in request.messages)
    if request.tools:
        tokens += of_text(msgspec.json.encode(request.tools).decode())
    return math.ceil(tokens)


def of_text(text: str) -> float:
    plain = len(text.encode("ascii", "ignore"))
    if plain == len(text):
        return plain / ASCII_A_TOKEN
    others = len(text) - plain
    longer = min(others, len(text.encode("utf-8", "replace")) - plain - 2 * others)  # a byte more than two for each
    return plain / ASCII_A_TOKEN + (others - longer) * OF_TWO_BYTES + longer * OF_MORE


def _of_message(message: Message) -> float:
    tokens = A_MESSAGE + of_text(message.text)
    if message.shows:
        tokens += sum(AN_IMAGE for part in message.content or () if not isinstance(part, TextPart | str))
    for call in message.tool_calls:
        tokens += of_text(call.function.name) + of_text(call.function.arguments)
    return tokens
