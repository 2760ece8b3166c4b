"""What is measured of the machine: once, later, in a process of its own, and again when the machine is another."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.node import bandwidth, machine
from shoal.node.hardware import Gpu
from shoal.node.machine import Machine, nvidia_gpus

SMI = """\
NVIDIA H100 80GB HBM3, GPU-1234, 81559, 570.86.10
NVIDIA GeForce RTX 3090, GPU-5678, 24576, 570.86.10
Failed to initialize NVML, x, [N/A], y
"""


async def measured(data: Path, **options: float) -> tuple[Machine, int]:
    """A machine that has run its course, and how often it said that something changed."""
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    found = Machine(data, **{"measure_after_s": 0.01, **options})
    with trio.fail_after(30):
        await found.run(tell)
    return found, told


def test_bandwidth_is_a_plausible_number() -> None:
    assert 0.1 < bandwidth.measure(1, block_bytes=4 * 1024 * 1024) < 10_000


async def test_it_is_measured_once_and_kept_with_its_date(tmp_path: Path) -> None:
    first, told = await measured(tmp_path)
    assert first.hardware.memory_gbs > 0.1
    assert first.hardware.measured_at > 1.6e9
    assert told == 1
    assert stat.S_IMODE((tmp_path / "hardware.json").stat().st_mode) == 0o600
    again, told = await measured(tmp_path)
    assert told == 0
    assert again.hardware == first.hardware


async def test_another_machine_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await measured(tmp_path)
    kept = json.loads((tmp_path / "hardware.json").read_text())
    for name, value in (("cpu", "another"), ("cores_usable", 99.0), ("memory_gbs", -1), ("measured_at", 9e12)):
        (tmp_path / "hardware.json").write_text(json.dumps(kept | {name: value}))
        assert Machine(tmp_path, measure_after_s=0).hardware.memory_gbs == 0


async def test_switched_off_it_is_never_measured(tmp_path: Path) -> None:
    found, told = await measured(tmp_path, measure_after_s=0)
    assert (found.hardware.memory_gbs, told) == (0, 0)


async def test_a_program_that_fails_or_hangs_is_no_fault_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "MEASURE_S", 0.2)
    for program in ("import time; time.sleep(60)", "raise SystemExit(3)", "print('no number')"):
        script = tmp_path / "program.py"
        script.write_text(program)
        monkeypatch.setattr(bandwidth, "__file__", str(script))
        found, told = await measured(tmp_path)
        assert (found.hardware.memory_gbs, told) == (0, 0)


@given(st.binary(max_size=300))
def test_a_file_that_cannot_be_used_is_ignored(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("data")
    (folder / "hardware.json").write_bytes(data)
    assert Machine(folder, measure_after_s=0).hardware.memory_gbs == 0


def nvidia(name: str, uuid: str, mib: int) -> Gpu:
    return Gpu(vendor="nvidia", name=name, uuid=uuid, memory_bytes=mib << 20, driver="570.86.10")


def test_nvidias_program_tells_names_memory_and_driver() -> None:
    assert nvidia_gpus(SMI) == [
        nvidia("NVIDIA H100 80GB HBM3", "GPU-1234", 81559),
        nvidia("NVIDIA GeForce RTX 3090", "GPU-5678", 24576),
    ]


async def test_nvidias_memory_comes_from_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "root/proc/driver/nvidia/gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t NVIDIA H100 80GB HBM3\nGPU UUID: \t GPU-1234\n")
    (card.parents[1] / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  x\n")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{SMI.splitlines()[0]}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(program))
    found = Machine(tmp_path, measure_after_s=0, root=tmp_path / "root")
    assert [gpu.memory_bytes for gpu in found.hardware.gpus] == [0]
    with trio.fail_after(10):
        await found.run(lambda: None)
    assert [gpu.memory_bytes for gpu in found.hardware.gpus] == [81559 << 20]
    assert msgspec.to_builtins(found.hardware)["gpus"][0]["driver"] == "570.86.10"


PROFILER = """\
{"SPDisplaysDataType": [
  {"_name": "Apple M2 Pro", "spdisplays_mtlgpufamilysupport": "spdisplays_metal3", "spdisplays_vendor":
   "sppci_vendor_Apple", "sppci_bus": "spdisplays_builtin", "sppci_cores": "19", "sppci_model": "Apple M2 Pro"},
  {"_name": "kHW_AMDRadeonPro5500MItem", "spdisplays_metal": "spdisplays_supported", "spdisplays_vendor":
   "sppci_vendor_amd", "spdisplays_vram": "8 GB", "sppci_model": "AMD Radeon Pro 5500M"}, 5, {}]}
"""


def test_a_mac_tells_its_gpus_and_apples_own_share_the_machines_memory() -> None:
    apple, other = machine.apple_gpus(PROFILER, 32 << 30)
    assert (apple.vendor, apple.name, apple.memory_bytes, apple.driver) == ("apple", "Apple M2 Pro", 32 << 30, "metal3")
    assert (other.vendor, other.name, other.memory_bytes) == ("other", "AMD Radeon Pro 5500M", 8 << 30)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"SPDisplaysDataType": {}}', "[" * 100_000, '{"a": 1}'])
def test_what_is_no_list_of_gpus_is_none(text: str) -> None:
    assert machine.apple_gpus(text, 1) == []


async def test_on_a_mac_its_own_program_is_asked_and_what_it_says_outlasts_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "system_profiler"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{PROFILER}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine, "PROFILER", (str(program),))
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    found, _ = await measured(tmp_path)
    assert [gpu.name for gpu in found.hardware.gpus] == ["Apple M2 Pro", "AMD Radeon Pro 5500M"]
    again, _ = await measured(tmp_path)
    assert again.hardware == found.hardware
