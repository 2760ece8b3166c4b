"""One daemon a data directory, and what the daemon says about itself is believed only while it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.node import state
from shoal.node.lock import AlreadyRunningError, LockError, hold, holder

HOLD = """
import pathlib, sys
from shoal.node.lock import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

LOOK = """
import fcntl, sys, time
file = open(sys.argv[1] + "/lock")
fcntl.flock(file, fcntl.LOCK_SH)
print("looking", flush=True)
time.sleep(0.05)
"""


@pytest.fixture
def other_process(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_daemon_is_refused_and_told_the_first_ones_pid(tmp_path: Path, other_process) -> None:
    refused = pytest.raises(AlreadyRunningError, match=rf"\(pid {other_process.pid}\) already runs")
    with refused as caught, hold(tmp_path):
        pass
    assert caught.value.pid == other_process.pid
    assert holder(tmp_path) == other_process.pid


def test_a_killed_daemon_leaves_no_lock_behind(tmp_path: Path, other_process) -> None:
    other_process.kill()
    other_process.wait()
    assert holder(tmp_path) is None
    with hold(tmp_path):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


def test_a_longer_pid_of_the_past_leaves_no_digits_behind(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("99999999999\n")
    with hold(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_looking_at_the_lock_does_not_stop_a_daemon_from_starting(tmp_path: Path) -> None:
    with hold(tmp_path):
        pass
    with subprocess.Popen([sys.executable, "-c", LOOK, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "looking\n"
        with hold(tmp_path):
            assert holder(tmp_path) == os.getpid()


def test_a_directory_without_room_for_a_lock_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="the lock cannot be opened"), hold(tmp_path / "none"):
        pass


def test_nobody_runs_on_an_empty_directory(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert state.running_rpc(tmp_path) is None


def test_the_rpc_is_announced_while_the_daemon_runs(tmp_path: Path) -> None:
    with hold(tmp_path):
        with state.rpc_announced(tmp_path, "127.0.0.1:1234", "12D3KooWx", "0.1.0"):
            found = state.running_rpc(tmp_path)
            assert found is not None
            assert (found.address, found.pid, found.peer) == ("127.0.0.1:1234", os.getpid(), "12D3KooWx")
            assert (tmp_path / "rpc.json").stat().st_mode & 0o077 == 0
        assert state.running_rpc(tmp_path) is None


def test_what_a_crashed_daemon_left_is_not_believed(tmp_path: Path) -> None:
    with hold(tmp_path), state.rpc_announced(tmp_path, "127.0.0.1:1234", "12D3KooWx", "0.1.0"):
        left = (tmp_path / "rpc.json").read_bytes()
    (tmp_path / "rpc.json").write_bytes(left)
    assert state.running_rpc(tmp_path) is None


def test_a_joined_swarm_is_remembered_and_forgotten(tmp_path: Path) -> None:
    assert state.remembered_swarm(tmp_path) is None
    state.remember_swarm(tmp_path, "invite-1")
    state.remember_swarm(tmp_path, "invite-2")
    remembered = state.remembered_swarm(tmp_path)
    assert remembered is not None
    assert remembered.invite == "invite-2"
    assert (tmp_path / "swarm.json").stat().st_mode & 0o077 == 0
    state.forget_swarm(tmp_path)
    assert state.remembered_swarm(tmp_path) is None


def test_a_damaged_memory_of_the_swarm_is_named(tmp_path: Path) -> None:
    (tmp_path / "swarm.json").write_text("{")
    with pytest.raises(state.StateError, match=r"swarm\.json: is damaged; remove it"):
        state.remembered_swarm(tmp_path)
