"""A file system that is really full: storing stops, answering and reading do not, and room makes it work again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_full_file_system_stops_storing_and_never_answering(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=4m none '{tmp_path}'"
    inside = ["unshare", "-rm", "sh", "-c"]
    try:
        allowed = subprocess.run([*inside, mount], capture_output=True, timeout=20).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this machine lets nobody mount a small file system in a namespace of its own")
    command = f"{mount} && exec '{sys.executable}' -m tests.cache.full_disk '{tmp_path}'"
    run = subprocess.run([*inside, command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["free"] < 64 * 1024  # it was really full
    assert seen["durable"] > 20
    assert "full" in seen["said"]
    assert seen["answered"] == seen["durable"] + 1 + 49
    assert seen["dropped"] > 0
    assert seen["readable"] == seen["after_restart"] == seen["durable"]
    assert seen["works_again"]
    assert seen["set_aside"] == []
