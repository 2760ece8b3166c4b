"""The frames between daemon and worker."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, Message, TextDelta, TextPart, Usage
from shoal.providers.hf_worker import frames

REQUEST = GenerateRequest(
    messages=(Message("system", "be brief"), Message("user", (TextPart("a"), TextPart("b")))),
    stop=("x",),
    seed=2**63,
    max_tokens=5,
)
TO_WORKER = [frames.Load("m", "/m", 2), frames.Generate(7, REQUEST), frames.Cancel(7)]
FROM_WORKER = [
    frames.Ready(512, "float32", "cpu", 2, 1.5),
    frames.Refused("too odd"),
    frames.Said(7, TextDelta("é")),
    frames.Said(7, Usage(1, 2)),
    frames.Said(7, Finish("stop", "m")),
    frames.Failed(7, ErrorKind.CONTEXT_LENGTH, "long"),
    frames.Dropped(7),
    frames.Rates(1.0, 2.0),
    frames.Beat(),
]


@given(st.lists(st.integers(0, 10_000)))
def test_frames_survive_any_cut_of_the_stream(cuts: list[int]) -> None:
    stream = b"".join(map(frames.encode, FROM_WORKER))
    places = sorted({cut % len(stream) for cut in cuts} | {0, len(stream)})
    splitter = frames.FrameSplitter()
    bodies = [body for a, b in itertools.pairwise(places) for body in splitter.feed(stream[a:b])]
    assert [frames.from_worker(body) for body in bodies] == FROM_WORKER


def test_frames_to_the_worker_arrive_as_they_were_sent() -> None:
    bodies = frames.FrameSplitter().feed(b"".join(map(frames.encode, TO_WORKER)))
    assert [frames.to_worker(body) for body in bodies] == TO_WORKER


def test_an_announced_length_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(frames.FrameError, match="limit"):
        frames.FrameSplitter().feed((frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


@given(st.binary(max_size=64))
def test_bytes_that_are_no_frame_raise_one_error_and_nothing_else(body: bytes) -> None:
    for decode in (frames.to_worker, frames.from_worker):
        try:
            decode(body)
        except frames.FrameError:
            continue
