"""What the doctor says of GPUs, of machines that are made up."""

from __future__ import annotations

import pytest
from shoal.node.commands.gpu_check import finding
from shoal.node.hardware import Gpu

NVIDIA = Gpu(vendor="nvidia", name="NVIDIA H100")
AMD = Gpu(vendor="amd", name="AMD GPU 0x744c")


@pytest.mark.parametrize(
    ("gpus", "built", "system", "state", "says"),
    [
        ((NVIDIA,), "2.13.0+cpu", "Linux", "note", "built without CUDA"),
        ((NVIDIA,), "2.13.0", "Linux", "ok", "times its engines"),
        ((AMD,), "2.13.0+rocm6.4", "Linux", "note", "we have not run it"),
        ((AMD,), "2.13.0+cpu", "Linux", "note", "not built for ROCm"),
        ((), "2.13.0", "Darwin", "note", "we have not run it"),
    ],
)
def test_each_kind_of_gpu_is_told_with_what_is_known_of_it(
    gpus: tuple[Gpu, ...], built: str, system: str, state: str, says: str
) -> None:
    found = finding(gpus, built, system, "arm64")
    assert found is not None
    assert found.state == state
    assert says in found.text


def test_a_machine_without_a_gpu_hears_nothing_of_it() -> None:
    assert finding((), "2.13.0+cpu", "Linux", "x86_64") is None
