"""The machine as peers hear of it: what /proc says at once, and what has to be measured, kept over restarts.

Measuring waits until the node has been up for a while, runs in a process of its own, and happens once for a machine:
hardware.json in the data directory keeps the result with its date, until the processor, the cores, the memory or the
GPUs are others.

    machine = Machine(data_dir, measure_after_s=60)
    machine.hardware                    # at once, with what was measured before
    await machine.run(on_change)        # until cancelled
"""

from __future__ import annotations

import contextlib
import csv
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from . import bandwidth, paths
from .hardware import Gpu, Hardware, probe

log = logging.getLogger(__name__)

MEASURE_S = 10.0
"""Seconds that one of the programs may take; on an idle machine it is a quarter of one."""
MAX_BYTES = 64 * 1024
PROFILER = ("/usr/sbin/system_profiler", "SPDisplaysDataType", "-json")
NVIDIA = ("name", "uuid", "memory.total", "driver_version")


class Machine:
    """See the module. measure_after_s: seconds from the start until bandwidth is measured; 0: never."""

    def __init__(self, data_dir: Path, *, measure_after_s: float, root: Path = Path("/")) -> None:
        self._file, self._measure_after_s, self._root = paths.hardware_file(data_dir), measure_after_s, root
        self._plain = probe(root)
        self.hardware = self._with_kept(self._plain)

    async def run(self, on_change: Callable[[], None]) -> None:
        """Find out what takes time, and say so each time when something was found."""
        if any(gpu.vendor == "nvidia" and not gpu.memory_bytes for gpu in self.hardware.gpus):
            await self._take(await self._gpus(), on_change)
        if sys.platform == "darwin":
            await self._take(await self._apple(), on_change)
        if not self._measure_after_s or self.hardware.memory_gbs:
            return
        await trio.sleep(self._measure_after_s)
        gbs = await self._bandwidth()
        if gbs:
            measured = msgspec.structs.replace(self.hardware, memory_gbs=gbs, measured_at=round(time.time(), 3))
            await self._take(measured, on_change)
            await trio.to_thread.run_sync(self._keep)

    async def _take(self, found: Hardware, on_change: Callable[[], None]) -> None:
        await trio.lowlevel.checkpoint()
        if found != self.hardware:
            self.hardware = found
            on_change()

    # -- measuring ---------------------------------------------------------------------------------------------

    async def _bandwidth(self) -> float:
        """GB/s; 0 where that fails."""
        cores = max(1, int(self.hardware.cores_usable))
        program = [sys.executable, "-I", "-S", str(Path(bandwidth.__file__)), str(cores)]
        try:
            return float(await _said(program))
        except ValueError:
            return 0.0

    async def _gpus(self) -> Hardware:
        """With the memory of NVIDIA's cards, which only its own program tells where its library is not installed."""
        program = shutil.which("nvidia-smi")
        if program is None:
            return self.hardware
        text = await _said([program, f"--query-gpu={','.join(NVIDIA)}", "--format=csv,noheader,nounits"])
        told = tuple(nvidia_gpus(text))
        others = tuple(gpu for gpu in self.hardware.gpus if gpu.vendor != "nvidia")
        return msgspec.structs.replace(self.hardware, gpus=told + others) if told else self.hardware

    async def _apple(self) -> Hardware:
        """With a Mac's GPUs, which no file tells of."""
        told = apple_gpus(await _said(list(PROFILER)), self.hardware.memory_bytes)
        return msgspec.structs.replace(self.hardware, gpus=tuple(told)) if told else self.hardware

    # -- over a restart ----------------------------------------------------------------------------------------

    def _with_kept(self, plain: Hardware) -> Hardware:
        """What was measured of this very machine."""
        try:
            with self._file.open("rb") as file:
                kept = msgspec.json.decode(file.read(MAX_BYTES), type=Hardware)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return plain
        same = all(getattr(kept, name) == getattr(plain, name) for name in ("arch", "cpu", "cores_usable", "flags"))
        if not same or kept.memory_bytes != plain.memory_bytes or _cards(kept) != _cards(plain):
            return plain
        if not 0 < kept.memory_gbs < 1e5 or not 0 < kept.measured_at <= time.time():
            return plain
        return msgspec.structs.replace(plain, memory_gbs=kept.memory_gbs, measured_at=kept.measured_at, gpus=kept.gpus)

    def _keep(self) -> None:
        with contextlib.suppress(OSError):  # it is measured again after the next start
            paths.write_private(self._file, msgspec.json.encode(self.hardware), replace=True)


def nvidia_gpus(text: str) -> list[Gpu]:
    """The cards in the lines of nvidia-smi's CSV; memory is in MiB. A line of another shape is passed over."""
    gpus = []
    for fields in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(fields) == len(NVIDIA) and fields[2].isdecimal():
            name, uuid, memory, driver = (field.strip()[:200] for field in fields)
            gpus.append(Gpu(vendor="nvidia", name=name, uuid=uuid, memory_bytes=int(memory) << 20, driver=driver))
    return gpus


def apple_gpus(text: str, memory_bytes: int) -> list[Gpu]:
    """A Mac's GPUs by system_profiler's JSON; untried on a Mac. memory_bytes: the machine's, which Apple's share."""
    try:
        rows = msgspec.json.decode(text).get("SPDisplaysDataType")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
        return []
    gpus = []
    for row in rows if isinstance(rows, list) else ():
        name = row.get("sppci_model") or row.get("_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            continue
        own = re.fullmatch(r"(\d+) (GB|MB)", str(row.get("spdisplays_vram") or row.get("_spdisplays_vram") or ""))
        apple = "apple" in str(row.get("spdisplays_vendor")).lower()
        size = int(own[1]) << (30 if own[2] == "GB" else 20) if own else memory_bytes if apple else 0
        metal = str(row.get("spdisplays_mtlgpufamilysupport") or "").removeprefix("spdisplays_")
        gpus.append(Gpu(vendor="apple" if apple else "other", name=name[:200], memory_bytes=size, driver=metal[:200]))
    return gpus


def _cards(hardware: Hardware) -> list[tuple[str, str]]:
    """Those that the system's files tell of."""
    return [(gpu.name, gpu.driver) for gpu in hardware.gpus if gpu.vendor in ("nvidia", "amd")]


async def _said(program: list[str]) -> str:
    """What a program prints; "" when it fails or takes too long."""
    with trio.move_on_after(MEASURE_S):
        try:
            done = await trio.run_process(
                program, capture_stdout=True, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False
            )
        except OSError as error:
            log.debug("%s cannot be started: %s", Path(program[0]).name, error.strerror)
            return ""
        return done.stdout[:MAX_BYTES].decode(errors="replace") if done.returncode == 0 else ""
    return ""
