"""Where things stand, and that private files are private from their first byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from shoal.node import paths


def test_the_option_wins_over_the_environment_over_the_configuration(tmp_path: Path) -> None:
    environ = {"SHOAL_DATA_DIR": "/environment"}
    assert paths.data_dir(tmp_path, environ, "/configured") == tmp_path
    assert paths.data_dir(None, environ, "/configured") == Path("/environment")
    assert paths.data_dir(None, {}, "/configured") == Path("/configured")


def test_without_a_choice_the_platform_decides(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert paths.data_dir(None, {}).name == "shoal"


def test_the_data_directory_is_its_owners_alone(tmp_path: Path) -> None:
    data = tmp_path / "a" / "b"
    paths.make_data_dir(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    paths.make_data_dir(data)


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    with pytest.raises(paths.DataDirError, match="chmod go-w"):
        paths.make_data_dir(data)


def test_a_file_in_the_place_of_the_directory_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(paths.DataDirError, match="--data-dir"):
        paths.make_data_dir(tmp_path / "data")
    with pytest.raises(paths.DataDirError, match="--data-dir"):
        paths.make_data_dir(tmp_path / "data" / "deeper")


def test_a_private_file_is_never_open_to_others_not_even_while_it_is_written(tmp_path: Path, monkeypatch) -> None:
    modes = []
    real = os.open

    def watched(path, flags, mode=0o777, **rest):
        handle = real(path, flags, mode, **rest)
        if flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        paths.write_private(tmp_path / "secret", b"x", replace=False)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_private_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    paths.write_private(target, b"first", replace=False)
    with pytest.raises(FileExistsError):
        paths.write_private(target, b"second", replace=False)
    assert target.read_bytes() == b"first"
    paths.write_private(target, b"third", replace=True)
    assert target.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [target]
