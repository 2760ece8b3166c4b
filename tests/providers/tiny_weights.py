"""A folder that has the shape of a model's: a few bytes of safetensors and a configuration."""

from __future__ import annotations

import json
from pathlib import Path


def safetensors_bytes(values: int = 4) -> bytes:
    """A whole safetensors file with one tensor of `values` floats."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * values)


def model_folder(path: Path, **config: object) -> Path:
    """Make `path` a model folder and return it."""
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(safetensors_bytes())
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 512, **config}))
    return path
