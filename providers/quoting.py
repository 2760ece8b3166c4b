"""What may be repeated of a text that somebody else wrote, such as an upstream's error message.

Such texts explain a failure better than we can, but some quote the prompt (validation errors do) or the key. What
could be either is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LONGEST = 240
_RUN = 16


def quotable(said: str, *, private: Iterable[str], secrets: Iterable[str | None] = ()) -> str:
    """`said` on one line and cut to 240 characters, or "" where it shares 16 characters with a private text.

    private: prompts and answers; one shorter than 16 characters must not appear as words. secrets: keys, left out.
    """
    line = " ".join(said.split())
    for secret in secrets:
        if secret:
            line = line.replace(secret, "…")
    if not line.isprintable():
        line = "".join(c for c in line if c.isprintable())
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 1] + "…"
    for text in private:
        if _shares(line, " ".join(text.split())):
            return ""
    return line


def _shares(line: str, text: str) -> bool:
    if not text:
        return False
    if len(text) < _RUN:
        # A prompt of one short word must not silence every sentence that has its letters in it.
        return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", line) is not None if text.isascii() else text in line
    return any(line[i : i + _RUN] in text for i in range(len(line) - _RUN + 1))
