"""What the daemon and the worker of the local model say to each other over two pipes.

A frame is 4 bytes of length (big endian) and a msgpack array `[tag, field, ...]`. Both sides import this file, so it
imports neither trio nor torch.

    daemon -> worker   load (once, first), generate, count or embed, cancel; the end of the pipe ends the worker
    worker -> daemon   ready or refused (once, first), then said, counted, vectors, failed, dropped, rates, beat;
                       timed in place of all that where `load` asked for trials
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..base import ErrorKind, Event, GenerateRequest

MAX_FRAME_BYTES = 64 * 1024 * 1024


_NO_FRAME = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec 0.22 raises for such bytes: the second for a tag that is no UTF-8, the third for deep nesting."""


class FrameError(ValueError):
    """The bytes on the pipe are not frames of this protocol."""


class Load(Struct, frozen=True, array_like=True, tag="load"):
    """Which model to load, and how. threads: 0 takes every usable core. kv_tokens: 0: what the device has room for."""

    name: str
    path: str
    threads: int = 0
    dtype: str = "auto"
    device: str = "auto"
    kv_tokens: int = 0
    embeds: bool = False
    """An encoder, which takes `embed` frames in place of `generate`."""
    engine: str = "torch"
    """What computes: torch; one of `engine_choice.ENGINES`, and no other; or llama_cpp, for which `path` is a GGUF."""
    calibrated: str = ""
    """The file that keeps how many threads were best; empty: all usable cores, without trials."""
    trials: bool = False
    """Time the engines that take the model, say what came of it, and end."""
    template_s: float = 2.0
    """Seconds that the model's chat template gets for a request."""


class Generate(Struct, frozen=True, array_like=True, tag="generate"):
    """One request; `id` is the daemon's and never used twice in a worker's life. `max_tokens` is always set."""

    id: int
    request: GenerateRequest


class Embed(Struct, frozen=True, array_like=True, tag="embed"):
    """Texts to turn into vectors, at least one; `id` as in `Generate`."""

    id: int
    texts: list[str]


class Count(Struct, frozen=True, array_like=True, tag="count"):
    """A request whose prompt is to be counted and not answered; `id` as in `Generate`."""

    id: int
    request: GenerateRequest


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    id: int


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """The model is loaded. load_s: seconds from the start of the process."""

    context_length: int
    dtype: str
    device: str
    threads: int
    load_s: float
    computes: str = ""
    """The engine's name, where there was a choice."""


class Timed(Struct, frozen=True, array_like=True, tag="timed"):
    """Engine -> streams -> tokens per second of all streams together. about: the device, by name and driver."""

    about: str
    rates: dict[str, dict[int, float]]


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """The model cannot be loaded; the worker ends."""

    reason: str


class Said(Struct, frozen=True, array_like=True, tag="said"):
    id: int
    event: Event


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """This request cannot be answered; the others go on."""

    id: int
    kind: ErrorKind
    message: str


class Dropped(Struct, frozen=True, array_like=True, tag="dropped"):
    """A cancelled request costs nothing any more."""

    id: int


class Rates(Struct, frozen=True, array_like=True, tag="rates"):
    """Measured: prompt tokens per second, and tokens per second of one stream; 0 where nothing was measured yet."""

    prefill_tps: float
    decode_tps: float


class Vectors(Struct, frozen=True, array_like=True, tag="vectors"):
    """One vector for each text of an `embed` frame; tokens: of all texts together."""

    id: int
    vectors: list[list[float]]
    tokens: int


class Counted(Struct, frozen=True, array_like=True, tag="counted"):
    """Tokens of the prompt of a `count` frame's request."""

    id: int
    tokens: int


class Beat(Struct, frozen=True, array_like=True, tag="beat"):
    """The worker computes and has nothing to say yet."""


ToWorker = Load | Generate | Count | Embed | Cancel
FromWorker = Ready | Timed | Refused | Said | Failed | Dropped | Rates | Vectors | Counted | Beat

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(frame: ToWorker | FromWorker) -> bytes:
    """The frame as it goes into a pipe. Raises FrameError when it is over MAX_FRAME_BYTES."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


def to_worker(body: bytes) -> ToWorker:
    """A frame's body as the worker reads it. Raises FrameError."""
    try:
        return _to_worker.decode(body)
    except _NO_FRAME as fault:
        raise FrameError(str(fault)) from None


def from_worker(body: bytes) -> FromWorker:
    """A frame's body as the daemon reads it. Raises FrameError."""
    try:
        return _from_worker.decode(body)
    except _NO_FRAME as fault:
        raise FrameError(str(fault)) from None


class FrameSplitter:
    """Bytes in, bodies of whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read; give the bodies that are whole now. Raises FrameError for a length over the limit."""
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes is announced, the limit is {MAX_FRAME_BYTES}")
            if len(buffer) - start - 4 < size:
                break
            bodies.append(bytes(buffer[start + 4 : start + 4 + size]))
            start += 4 + size
        del buffer[:start]
        return bodies
