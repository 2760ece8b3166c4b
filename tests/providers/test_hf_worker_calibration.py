"""The number of threads: tried by turns, decided once, kept on disk for as long as nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from shoal.providers.hf_worker import calibration
from shoal.providers.hf_worker.calibration import Calibration, counts, key, known


class Machine:
    """A clock that a pass moves on, by how many threads compute it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: Callable[[int], float]) -> None:
        self.now, self.threads, self.passes, self._takes = 0.0, 0, 0, takes
        monkeypatch.setattr(calibration.time, "perf_counter", lambda: self.now)

    def use(self, threads: int) -> None:
        self.threads = threads

    def trial(self) -> None:
        self.passes += 1
        self.now += self._takes(self.threads)

    def run(self, file: Path, of: str, numbers: list[int]) -> Calibration:
        trials = Calibration(file, of, numbers, self.use, self.trial)
        while not trials.done:
            trials.slice()
        return trials


@pytest.mark.parametrize(
    ("speeds", "chosen"), [({1: 0.04, 2: 0.02}, 2), ({1: 0.02, 2: 0.04}, 1), ({1: 0.0200, 2: 0.0195}, 1)]
)
def test_the_fastest_is_chosen_and_of_two_alike_the_one_with_fewer_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speeds: dict[int, float], chosen: int
) -> None:
    machine = Machine(monkeypatch, speeds.__getitem__)
    trials = machine.run(tmp_path / "threads.json", "a", [1, 2])
    assert trials.threads == machine.threads == chosen
    assert known(tmp_path / "threads.json", "a") == chosen
    assert 1.0 <= machine.now < 1.1  # a second, and it ends with the pass that fills it


def test_between_two_trials_all_threads_are_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, lambda threads: 0.01)
    trials = Calibration(tmp_path / "threads.json", "a", [1, 2], machine.use, machine.trial)
    for _ in range(5):
        trials.slice()
        assert machine.threads == 2
    assert not trials.done


def test_one_slow_moment_of_the_machine_decides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, lambda threads: 0.5 if machine.passes == 4 else 0.03 / threads)
    assert machine.run(tmp_path / "threads.json", "a", [1, 2]).threads == 2


def test_nothing_is_tried_while_others_use_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, lambda threads: 0.01)
    trials = Calibration(tmp_path / "threads.json", "a", [1, 2], machine.use, machine.trial)
    monkeypatch.setattr(calibration.os, "getloadavg", lambda: (2.5, 9.0, 9.0))
    assert not trials.due
    monkeypatch.setattr(calibration.os, "getloadavg", lambda: (1.5, 9.0, 9.0))
    assert trials.due
    machine.run(tmp_path / "threads.json", "a", [1, 2])
    assert not Calibration(tmp_path / "threads.json", "a", [1], machine.use, machine.trial).due


def test_each_key_has_its_own_and_a_damaged_or_unwritable_file_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "threads.json"
    file.write_text("{")
    assert known(file, "a") is None
    machine = Machine(monkeypatch, lambda threads: 0.1 / threads)
    for at in range(70):
        machine.run(file, f"model {at}", [1, 2])
    assert known(file, "model 69") == 2
    assert known(file, "model 0") is None  # the file does not grow for ever
    assert machine.run(tmp_path / "missing" / "threads.json", "a", [1, 2]).threads == 2
    assert [each.name for each in tmp_path.iterdir()] == ["threads.json"]


def test_the_key_changes_with_all_that_matters() -> None:
    base = ("smollm2", "float16", "2.13.0", 2)
    others = [("other", *base[1:]), (base[0], "float32", *base[2:]), (*base[:2], "2.14.0", 2), (*base[:3], 1)]
    assert len({key(*each) for each in (base, *others)}) == 5


def test_few_numbers_are_worth_trying() -> None:
    assert [counts(cores) for cores in (1, 2, 4, 16)] == [[1], [1, 2], [1, 2, 3, 4], [1, 8, 15, 16]]
