"""Log probabilities of the tokens of an answer, as OpenAI's API shows them, for any engine and any sampler.

    picks = Noting(sampler, top=3)          # picks what the sampler picks, and notes how likely it was
    told = TokenNotes(picks.notes, word)    # hands the notes out with the text that they speak of

The probabilities are the model's own: of all its tokens, before temperature and top_p.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

REPLACEMENT = "\ufffd"


class Picks(Protocol):
    """What a `Noting` stands around: see `sampling.Sampler`."""

    def pick(self, logits: Any, /) -> int:
        """The next token, by one row of logits."""


class Note(NamedTuple):
    """A token that was picked, and the likeliest at its place, likeliest first: (token, natural logarithm)."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Noting:
    """A sampler around another one. top: how many of the likeliest tokens are noted beside the one picked."""

    greedy = False
    """An engine that takes the likeliest token by itself would leave nothing to note."""

    def __init__(self, sampler: Picks, top: int) -> None:
        self._sampler, self._top = sampler, top
        self.notes: deque[Note] = deque()

    def twin(self) -> Any:
        """See `sampling.Sampler`; what it picks is not noted."""
        return self._sampler.twin()  # type: ignore[attr-defined]

    def pick(self, logits: Any) -> int:
        """The next token, by one row of logits: a tensor of torch, or an array."""
        token = self._sampler.pick(logits)
        row = np.asarray(logits.float().cpu() if hasattr(logits, "cpu") else logits, dtype=np.float64)
        high = row.max()
        whole = high + np.log(np.exp(row - high).sum())
        best = np.argpartition(row, -self._top)[-self._top :] if self._top else np.empty(0, dtype=int)
        top = [(int(at), float(row[at] - whole)) for at in best[np.argsort(-row[best], kind="stable")]]
        self.notes.append(Note(token, float(row[token] - whole), top))
        return token


class Reading:
    """A sampler that picks what is known before the other one picks anything: behind it, a `Noting` notes how likely
    each token of a text was."""

    greedy = False

    def __init__(self, known: list[int], sampler: Picks) -> None:
        self._known, self._sampler = deque(known), sampler

    def twin(self) -> Any:
        """See `sampling.Sampler`. Asked when the known tokens are over, as until then they are the engine's draft."""
        return self._sampler.twin()  # type: ignore[attr-defined]

    def pick(self, logits: Any) -> int:
        """The next token that is known; else the other sampler's."""
        return self._known.popleft() if self._known else self._sampler.pick(logits)


class TokenNotes:
    """Notes on their way to the caller: each is told with the first text that its token brought.

    offsets: with where in the text that is, in characters.
    """

    def __init__(self, notes: deque[Note], word: Callable[[int], str], *, offsets: bool = False) -> None:
        self._notes, self._word, self._offsets = notes, word, offsets
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._brought = self._said = 0

    def brought(self, text: str) -> None:
        """The token picked last brought this text, which may be empty or be held back."""
        note = self._notes.popleft()
        told = self._told(note.token, note.logprob)
        told["top_logprobs"] = [self._told(token, logprob) for token, logprob in note.top]
        self._brings(told, text)

    def begins(self, token: int, text: str) -> None:
        """The first token of a text brought this: nothing stands before it that could make it likely."""
        self._brings({**self._told(token, 0.0), "logprob": None, "top_logprobs": []}, text)

    def _brings(self, told: dict[str, Any], text: str) -> None:
        if self._offsets:
            told["text_offset"] = self._brought
        self._waiting.append((self._brought, told))
        self._brought += len(text)

    def passed(self) -> None:
        """The token picked last brought nothing that will be said."""
        self._notes.popleft()

    def due(self, said: str, *, whole: bool) -> tuple[dict[str, Any], ...]:
        """What to tell with the text that is said now; of an answer that is `whole`, all that is left."""
        self._said += len(said)
        told = []
        while self._waiting and (whole or self._waiting[0][0] < self._said):
            told.append(self._waiting.popleft()[1])
        return tuple(told)

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        word = self._word(token)
        # A piece of a character is no text, and what bytes it has is the tokenizer's secret.
        return {"token": word, "logprob": logprob, "bytes": None if REPLACEMENT in word else list(word.encode())}
