"""What the machine says it has, read from pieces of /proc and /sys as they look elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from shoal.node import hardware
from shoal.providers import cgroups


def file(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine_has_a_processor_and_memory() -> None:
    found = hardware.probe()
    assert found.arch
    assert found.cores_usable > 0
    assert found.memory_bytes > 2**20


def test_the_probe_leaves_torch_alone() -> None:
    program = "import sys; from shoal.node import hardware; hardware.probe(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    file(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    file(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    file(tmp_path, "sys/fs/cgroup/a/cpu.max", "50000 100000\n")
    file(tmp_path, "sys/fs/cgroup/a/memory.max", "1000000\n")
    file(tmp_path, "sys/fs/cgroup/a/b/memory.max", "max\n")
    found = hardware.probe(tmp_path)
    assert found.cores_usable == 0.5
    assert found.memory_bytes == 1_000_000


def test_memory_that_the_cgroup_still_grants_is_what_is_available(tmp_path: Path) -> None:
    file(tmp_path, "proc/self/cgroup", "0::/\n")
    file(tmp_path, "sys/fs/cgroup/memory.max", "5000\n")
    file(tmp_path, "sys/fs/cgroup/memory.current", "2000\n")
    assert hardware.sample(tmp_path).memory_available_bytes == 3000


def test_brand_and_the_flags_that_matter_are_told(tmp_path: Path) -> None:
    cpus = "processor: 0\nmodel name\t: Example 9000\nflags\t\t: fpu avx2 vme fma amx_int8\n\nprocessor: 1\n"
    file(tmp_path, "proc/cpuinfo", cpus)
    found = hardware.probe(tmp_path)
    assert found.cpu == "Example 9000"
    assert found.flags == ("avx2", "fma", "amx_int8")


def test_arm_features_are_read_too(tmp_path: Path) -> None:
    file(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd sve i8mm\n")
    assert hardware.probe(tmp_path).flags == ("asimd", "i8mm", "sve")


def test_nvidia_cards_are_found_without_their_library(tmp_path: Path) -> None:
    folder = "proc/driver/nvidia"
    file(tmp_path, f"{folder}/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release\n")
    card = "Model: \t\t NVIDIA H100\nIRQ: 10\nGPU UUID: \t GPU-12\n"
    file(tmp_path, f"{folder}/gpus/0000:01:00.0/information", card)
    (gpu,) = hardware.probe(tmp_path).gpus
    assert (gpu.vendor, gpu.name, gpu.uuid, gpu.driver) == ("nvidia", "NVIDIA H100", "GPU-12", "550.54.14")


def test_an_empty_machine_is_described_without_a_fault(tmp_path: Path) -> None:
    found = hardware.probe(tmp_path)
    assert found.gpus == ()
    assert found.flags == ()


def test_cgroup_v1_limits_count_as_well(tmp_path: Path) -> None:
    file(tmp_path, "proc/self/cgroup", "4:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n")
    file(tmp_path, "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us", "-1\n")
    file(tmp_path, "sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", "25000\n")
    file(tmp_path, "sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", "100000\n")
    file(tmp_path, "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes", "2000000\n")
    file(tmp_path, "sys/fs/cgroup/memory/docker/ab/memory.usage_in_bytes", "500000\n")
    found = hardware.probe(tmp_path)
    assert found.cores_usable == 0.25
    assert found.memory_bytes == 2_000_000
    assert hardware.sample(tmp_path).memory_available_bytes == 1_500_000


def test_a_container_whose_own_group_is_mounted_as_the_root(tmp_path: Path) -> None:
    file(tmp_path, "proc/self/cgroup", "4:cpu,cpuacct:/docker/not-visible-here\n")
    file(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n")
    file(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert hardware.usable_cores(tmp_path) == 0.5


def test_amds_cards_tell_their_memory_and_connectors_are_no_cards(tmp_path: Path) -> None:
    card = "sys/class/drm/card1/device"
    file(tmp_path, f"{card}/vendor", "0x1002\n")
    file(tmp_path, f"{card}/product_name", "Example Instinct\n")
    file(tmp_path, f"{card}/mem_info_vram_total", "17163091968\n")
    file(tmp_path, "sys/class/drm/card1-DP-1/device/vendor", "0x1002\n")
    file(tmp_path, "sys/class/drm/card2/device/vendor", "0x10de\n")
    file(tmp_path, "sys/module/amdgpu/version", "6.10.5\n")
    [gpu] = hardware.probe(tmp_path).gpus
    assert (gpu.vendor, gpu.name, gpu.memory_bytes, gpu.driver) == ("amd", "Example Instinct", 17163091968, "6.10.5")


def test_each_group_has_its_own_use_and_what_it_has_read_of_files_is_given_back(tmp_path: Path) -> None:
    file(tmp_path, "proc/self/cgroup", "0::/pod/box\n")
    for folder, limit, used, cached in (("pod/box", 5_000_000, 4_000_000, 3_000_000), ("pod", 9_000_000, 8_500_000, 0)):
        file(tmp_path, f"sys/fs/cgroup/{folder}/memory.max", f"{limit}\n")
        file(tmp_path, f"sys/fs/cgroup/{folder}/memory.current", f"{used}\n")
        file(tmp_path, f"sys/fs/cgroup/{folder}/memory.stat", f"anon 1\ninactive_file {cached}\nx y\n")
    assert hardware.probe(tmp_path).memory_bytes == 5_000_000
    assert hardware.sample(tmp_path).memory_available_bytes == 500_000


def test_a_machine_whose_proc_is_hidden_is_described_by_the_systems_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(*_: object, **__: object) -> None:
        raise FileNotFoundError("/proc/meminfo")

    for name in ("virtual_memory", "cpu_count", "cpu_percent"):
        monkeypatch.setattr(psutil, name, hidden)
    found = hardware.probe(tmp_path)
    assert found.cores_physical == 0
    assert found.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < hardware.sample(tmp_path).memory_available_bytes <= found.memory_bytes


def test_processes_that_were_ended_for_want_of_memory_are_counted_where_the_system_says_it(tmp_path: Path) -> None:
    file(tmp_path, "proc/vmstat", "pgfault 77\noom_kill 9\n")
    file(tmp_path, "proc/self/cgroup", "3:memory:/box\n0::/\n")
    assert cgroups.oom_kills(tmp_path) == 9
    file(tmp_path, "sys/fs/cgroup/memory/box/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert cgroups.oom_kills(tmp_path) == 2
    file(tmp_path, "proc/self/cgroup", "0::/pod/box\n")
    file(tmp_path, "sys/fs/cgroup/pod/box/memory.events", "low 0\nmax 3\noom 1\noom_kill 1\n")
    assert cgroups.oom_kills(tmp_path) == 1
    assert cgroups.oom_kills(tmp_path / "nothing") == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_mask_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert hardware.usable_cores() <= 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_sample_costs_next_to_nothing() -> None:
    hardware.sample()
    began = time.process_time()
    for _ in range(20):
        hardware.sample()
    assert (time.process_time() - began) / 20 < 0.01
