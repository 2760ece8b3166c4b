"""The identity survives restarts, and anything odd about its file is said and not papered over."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from shoal.node.identity import IdentityError, load, load_or_make


def test_the_first_start_makes_an_identity_and_the_next_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    first, made = load_or_make(path)
    again, made_again = load_or_make(path)
    assert (made, made_again) == (True, False)
    assert first.peer_id == again.peer_id
    assert first.seed == again.seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_may_use_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.json"
    load_or_make(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"mode 0{mode:o}.*chmod 600"):
        load_or_make(path)


def test_a_damaged_seed_is_noticed_by_its_peer_id(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    load_or_make(path)
    file = json.loads(path.read_text())
    file["seed"] = ("0" if file["seed"][0] != "0" else "1") + file["seed"][1:]
    path.write_text(json.dumps(file))
    with pytest.raises(IdentityError, match="do not belong together; restore it") as caught:
        load_or_make(path)
    assert file["seed"][1:] not in str(caught.value)


DAMAGED = [b"", b"{}", b"\xff\xfe", b'{"v":1,"type":"ed25519","seed":"00","peer":"x"}', b"[" * 5000]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_file_that_is_no_identity_is_kept_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="damaged; restore it from a backup, or move it away"):
        load_or_make(path)
    assert path.read_bytes() == content


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    load_or_make(tmp_path / "real.json")
    (tmp_path / "identity.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(IdentityError, match="cannot be read"):
        load(tmp_path / "identity.json")


def test_a_directory_is_not_an_identity(tmp_path: Path) -> None:
    (tmp_path / "identity.json").mkdir(mode=0o700)
    with pytest.raises(IdentityError, match="is not a plain file"):
        load(tmp_path / "identity.json")


def test_the_identity_is_not_shown_by_its_repr(tmp_path: Path) -> None:
    identity, _ = load_or_make(tmp_path / "identity.json")
    assert identity.seed.hex() not in repr(identity)
