"""The loop of a worker that embeds: texts in, vectors out. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..base import ErrorKind
from .frames import Cancel, Dropped, Embed, Failed, FrameError, Vectors
from .server import Pipes


class Encodes(Protocol):
    """What `encoder.Encoder` offers."""

    longest: int

    def tokens(self, texts: list[str]) -> list[list[int]]: ...

    def batches(self, texts: list[list[int]]) -> Iterator[list[int]]: ...

    def vectors(self, texts: list[list[int]]) -> list[list[float]]: ...


class EncoderServer:
    """Serves one request after another; a cancelled one ends after the batch in computation."""

    def __init__(self, pipes: Pipes, encoder: Encodes) -> None:
        self._pipes, self._encoder = pipes, encoder

    def run(self) -> None:
        """Serve for ever; the end of the input ends the process."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take one frame and do what it says."""
        match self._pipes.receive(wait=True):
            case Embed(id_, texts):
                if id_ not in self._pipes.cancelled:
                    self._embed(id_, texts)
            case Cancel(id_):
                self._pipes.cancelled.discard(id_)
                self._pipes.send(Dropped(id_))
            case _:
                raise FrameError("this worker embeds texts and does nothing else")
        self._pipes.flush()

    def _embed(self, id_: int, texts: list[str]) -> None:
        try:
            tokens = self._encoder.tokens(texts)
            longest = max(map(len, tokens), default=0)
            if longest > self._encoder.longest:
                limit = self._encoder.longest
                message = f"a text has {longest} tokens; the encoder takes {limit}: send it in shorter pieces"
                self._pipes.send(Failed(id_, ErrorKind.CONTEXT_LENGTH, message))
                return
            found: list[list[float]] = [[]] * len(tokens)
            for batch in self._encoder.batches(tokens):
                if id_ in self._pipes.cancelled:  # its cancel frame is in the inbox, and is answered from there
                    return
                for at, vector in zip(batch, self._encoder.vectors([tokens[at] for at in batch]), strict=True):
                    found[at] = vector
                self._pipes.flush()  # a beat, when the last one is long ago
        except Exception as fault:  # one odd request must not end the worker; its text stays out of the message
            self._pipes.send(
                Failed(id_, ErrorKind.UPSTREAM, f"the texts could not be embedded ({type(fault).__name__})")
            )
            return
        self._pipes.send(Vectors(id_, found, sum(map(len, tokens))))
