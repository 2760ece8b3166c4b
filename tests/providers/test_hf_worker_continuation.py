"""Answers of the real model, cut at random characters and gone on from by the text alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from shoal.providers.hf_worker.frames import Load
from shoal.providers.hf_worker.model import load

from benchmarks.continuation import continued


@pytest.mark.model
def test_a_greedy_answer_goes_on_as_if_it_had_not_been_cut_wherever_it_was(models_dir: Path) -> None:
    """Beside others, and inside words and tokens; `python -m benchmarks continuation` makes a thousand cuts."""
    threads = torch.get_num_threads()
    model = load(Load("smollm2", str(models_dir / "smollm2"), 1, kv_tokens=4096))
    asking = ["Nenne drei Städte: Zürich, 東京 und …", "What is 2+2? Show 🎉."]
    try:
        assert continued(model, 12, random.Random(5), asking) == (12, 12)
    finally:
        torch.set_num_threads(threads)
