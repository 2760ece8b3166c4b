"""`shoal config init`, `service`, `completion` and `doctor`: what gets a node going, and keeps it so."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.node import paths
from shoal.node.commands import checks
from shoal.node.commands.service_command import quoted
from shoal.node.config_doc import EXAMPLES
from shoal.node.identity import load_or_make

from tests.providers.test_weights import installed_model

from .fake_node import SHOAL, fake_node, shoal


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SHOAL, *arguments], capture_output=True, text=True, timeout=30, env=os.environ | environ, check=False
    )


# -- config init -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [None, *(name.removesuffix(".toml") for name in EXAMPLES)])
def test_every_file_to_begin_with_is_in_order(tmp_path: Path, example: str | None) -> None:
    file = tmp_path / "deep" / "shoal.toml"
    made = run("config", "init", str(file), *(["--example", example] if example else []))
    assert made.returncode == 0, made.stderr
    assert str(file) in made.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    checked = run("config", "check", str(file), OPENROUTER_API_KEY="x")
    assert checked.returncode == 0, checked.stderr


def test_a_private_swarm_gets_a_key_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        run("config", "init", "-e", "private-swarm", str(tmp_path / name))
        keys.add(tomllib.loads((tmp_path / name).read_text())["swarm"]["key"])
    assert len(keys) == 2
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / "shoal.toml"
    file.write_text("# mine\n")
    refused = run("config", "init", str(file))
    assert refused.returncode == 5
    assert "--force" in refused.stderr
    assert file.read_text() == "# mine\n"
    assert run("config", "init", "--force", str(file)).returncode == 0
    assert file.read_text() != "# mine\n"


def test_the_examples_can_be_listed() -> None:
    done = run("config", "init", "--example", "help")
    assert (done.returncode, done.stdout.split()) == (0, [name.removesuffix(".toml") for name in EXAMPLES])


def test_without_a_name_it_goes_where_run_looks(tmp_path: Path) -> None:
    made = run("config", "init", XDG_CONFIG_HOME=str(tmp_path))
    assert (tmp_path / "shoal" / "config.toml").exists(), made.stderr
    assert str(tmp_path) in run("config", "show", XDG_CONFIG_HOME=str(tmp_path)).stdout


# -- service ---------------------------------------------------------------------------------------------------


def systemd(folder: Path, script: str) -> dict[str, str]:
    """A `systemctl` that does as it is told, and writes down what it was told."""
    program = folder / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {folder}/calls\n{script}\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(folder / "config")}


def test_the_service_is_written_enabled_started_and_removed_again(tmp_path: Path) -> None:
    environ = systemd(tmp_path, "exit 0")
    config = tmp_path / "a b%.toml"
    config.write_text("")
    done = run("service", "install", "--config", str(config), "--data-dir", str(tmp_path / "d"), **environ)
    assert done.returncode == 0, done.stderr
    unit = tmp_path / "config" / "systemd" / "user" / "shoal.service"
    line = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    words = shlex.split(line.removeprefix("ExecStart=").replace("%%", "%"))
    assert words == [SHOAL, "run", "--config", str(config), "--data-dir", str(tmp_path / "d")]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["--user daemon-reload", "--user enable --now shoal.service"]
    assert json.loads(run("service", "status", "--json", **environ).stdout) == {
        "unit": str(unit), "enabled": True, "running": True,
    }  # fmt: skip
    assert run("service", "uninstall", **environ).returncode == 0
    assert not unit.exists()
    assert "--user disable --now shoal.service" in (tmp_path / "calls").read_text()


def test_installing_again_restarts_only_what_has_changed(tmp_path: Path) -> None:
    environ = systemd(tmp_path, "exit 0") | {"SHOAL_DATA_DIR": str(tmp_path / "data")}
    for _ in range(2):
        assert run("service", "install", **environ).returncode == 0
    assert "restart" not in (tmp_path / "calls").read_text()
    assert "SHOAL" not in (unit := tmp_path / "config" / "systemd" / "user" / "shoal.service").read_text()
    assert f"--data-dir {tmp_path / 'data'}" in unit.read_text()  # as this shell would have run it
    config = tmp_path / "other.toml"
    config.write_text("")
    assert run("service", "install", "--config", str(config), **environ).returncode == 0
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "--user restart shoal.service"
    assert run("service", "uninstall", **environ).returncode == 0
    again = run("service", "uninstall", **environ)
    assert (again.returncode, again.stdout) == (0, "there is no service\n")


def test_a_path_that_could_write_lines_into_the_unit_is_refused(tmp_path: Path) -> None:
    done = run("service", "install", "--data-dir", str(tmp_path / "a\nExecStartPre=x"), **systemd(tmp_path, "exit 0"))
    assert done.returncode == 2
    assert not (tmp_path / "config").exists()


def test_where_systemd_says_no_the_words_are_shown_with_what_to_type(tmp_path: Path) -> None:
    environ = systemd(tmp_path, "echo 'Failed to connect to bus' >&2; exit 1")
    done = run("service", "install", **environ)
    assert done.returncode == 5
    assert "Failed to connect to bus" in done.stderr
    assert "systemctl --user enable --now shoal.service" in done.stderr


def test_a_wrong_configuration_is_not_installed(tmp_path: Path) -> None:
    environ = systemd(tmp_path, "exit 0")
    bad = tmp_path / "bad.toml"
    bad.write_text("[rpc]\nlistne = 1\n")
    done = run("service", "install", "--config", str(bad), **environ)
    assert done.returncode == 2
    assert not (tmp_path / "calls").exists()


def test_the_unit_can_be_seen_before(tmp_path: Path) -> None:
    done = run("service", "install", "--print", XDG_CONFIG_HOME=str(tmp_path))
    assert "RestartPreventExitStatus=2 3" in done.stdout
    assert not list(tmp_path.iterdir())
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        (tmp_path / "shoal.service").write_text(done.stdout)
        environ = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
        command = [analyze, "verify", "--user", str(tmp_path / "shoal.service")]
        subprocess.run(command, check=True, timeout=30, env=environ)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20))
def test_a_word_survives_systemds_quoting(word: str) -> None:
    text = quoted(word)
    plain = text.replace("%%", "%").replace("$$", "$")
    back = (
        plain[1:-1].replace('\\"', '"') if plain.startswith('"') and plain.endswith('"') and len(plain) > 1 else plain
    )
    assert back.replace("\\\\", "\\") == word


# -- completion ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script_for_each_shell(name: str) -> None:
    done = run("completion", name)
    assert done.returncode == 0
    assert f"_SHOAL_COMPLETE={name}_complete" in done.stdout
    if name == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_the_shell_of_the_environment_is_the_default() -> None:
    assert "compdef" in run("completion", SHELL="/usr/bin/zsh").stdout
    unknown = run("completion", SHELL="/bin/tcsh")
    assert unknown.returncode == 2
    assert "bash, zsh, fish" in unknown.stderr


def test_bash_completes_commands_and_options() -> None:
    script = run("completion", "bash").stdout
    ask = (
        f'PATH="{Path(SHOAL).parent}:$PATH"\n{script}\n'
        "COMP_WORDS=(shoal conf); COMP_CWORD=1; _shoal_completion shoal; echo ${COMPREPLY[@]}\n"
        "COMPREPLY=(); COMP_WORDS=(shoal ask --max); COMP_CWORD=2; _shoal_completion shoal; echo ${COMPREPLY[@]}\n"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.splitlines() == ["config", "--max-tokens"]


def test_zsh_completes_commands(tmp_path: Path) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "_shoal").write_text(run("completion", "zsh").stdout)
    # Keys of a person: a zsh in a terminal of its own, which says what stands on the line after a Tab.
    script = f"""
zmodload zsh/zpty
zpty z {zsh} -f -i
zpty -w z 'path=({Path(SHOAL).parent} $path); fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D'
zpty -w z 'PS1=; print LOADED'
zpty -r -m z before '*LOADED*LOADED*'
zpty -w -n z $'shoal comp\\t'
zpty -r -m z line '*completion*' && print COMPLETED
"""
    done = subprocess.run([zsh, "-f", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert "COMPLETED" in done.stdout, done


def test_fish_completes_commands_and_says_all_that_is_said_of_them(tmp_path: Path) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    (tmp_path / "shoal.fish").write_text(run("completion", "fish").stdout)
    ask = f'source {tmp_path}/shoal.fish; complete -C "shoal conf"; complete -C "shoal ask --max"'
    environ = os.environ | {"PATH": f"{Path(SHOAL).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run([fish, "-c", ask], capture_output=True, text=True, check=False, timeout=30, env=environ)
    assert done.stdout.splitlines() == [
        "config\tBegin, check or show the configuration.",
        "--max-tokens\tTokens of the answer at most.",
    ], done


# -- doctor ----------------------------------------------------------------------------------------------------


def told(data: Path, config: str = "") -> dict[str, checks.Finding]:
    """The findings by name, the worst of each."""
    (data / "shoal.toml").write_text(config or '[rpc]\nlisten = "127.0.0.1:0"\n')
    found: dict[str, checks.Finding] = {}
    for finding in checks.of_machine(data / "shoal.toml", data):
        if finding.name not in found or finding.state == "fault":
            found[finding.name] = finding
    return found


def test_a_machine_in_order_has_no_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    found = told(tmp_path)
    assert not [finding for finding in found.values() if finding.state == "fault"]
    assert found["data directory"].state == "ok"


def test_a_taken_port_is_a_fault_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = told(tmp_path, f'[rpc]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n')
    assert found["RPC"].state == "fault"
    assert "--rpc 127.0.0.1:0" in found["RPC"].remedy


def test_a_key_that_others_can_read_is_a_fault(tmp_path: Path) -> None:
    load_or_make(paths.identity_file(tmp_path))
    assert "identity" not in told(tmp_path)
    paths.identity_file(tmp_path).chmod(0o644)
    assert told(tmp_path)["identity"].remedy == f"chmod 600 {paths.identity_file(tmp_path)}"


def test_a_data_directory_that_cannot_be_made_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shoal.toml").write_text('[rpc]\nlisten = "127.0.0.1:0"\n')
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    found = {one.name: one for one in checks.of_machine(tmp_path / "shoal.toml", tmp_path / "data")}
    assert found["data directory"].state == "fault"
    assert "--data-dir" in found["data directory"].remedy


def test_models_are_looked_for_where_the_configuration_says(tmp_path: Path) -> None:
    store = tmp_path / "weights"
    found = told(tmp_path, f'[providers.local_hf]\nmodels_dir = "{store}"\n')
    assert str(store) in found["local model"].text


def test_the_local_models_hint_is_what_the_provider_itself_would_say(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shoal.providers.local_hf.missing_libraries", lambda: "")
    store = tmp_path / "weights"
    text = f'[providers.local_hf]\nmodels_dir = "{store}"\n'
    installed_model(store, "mine")
    found = told(tmp_path, text)["local model"]
    assert (found.state, found.text) == ("ok", "mine")
    monkeypatch.setattr("shoal.providers.cgroups.memory_available", lambda: 1000)
    assert "mine takes about" in told(tmp_path, text)["local model"].text
    (store / "mine" / "config.json").write_text("{")
    assert told(tmp_path, text)["local model"].remedy == "`shoal models add smollm2`"
    config = tmp_path / "shoal.toml"
    assert any("mine: weights of mine are damaged" in each.text for each in checks.of_machine(config, tmp_path))
    assert told(tmp_path, f"{text}enabled = false\n")["local model"].text == "switched off in the configuration"


def test_a_kubo_that_is_away_is_noted(tmp_path: Path) -> None:
    found = told(tmp_path, '[rpc]\nlisten = "127.0.0.1:0"\n[ipfs]\nkubo_api = "/ip4/127.0.0.1/tcp/9"\n')
    assert found["Kubo"].state == "note"
    assert "ipfs daemon" in found["Kubo"].remedy


async def test_a_wrong_configuration_ends_with_status_1_and_the_line_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[rpc]\nlistne = 1\n")
    done = await shoal("doctor", "--config", str(tmp_path / "bad.toml"), "--data-dir", str(tmp_path / "d"))
    assert done.returncode == 1
    assert b"rpc.listne" in done.stdout
    assert b"1 thing does not work" in done.stdout


async def test_a_node_that_nobody_can_ask_and_whose_peers_are_away_is_explained(tmp_path: Path) -> None:
    async with fake_node(tmp_path) as node:
        node.answers["GET /shoal/v1/status"] = {"version": "0", "pid": 1, "swarm": {"up": True, "addresses": []}}
        node.answers["GET /shoal/v1/providers"] = {"providers": [{"name": "a", "ready": False, "reason": "no key"}]}
        node.answers["GET /shoal/v1/peers"] = {"peers": [{"peer": "x", "connected": False, "problem": "no route"}]}
        done = await node.shoal("doctor", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    said = {finding["name"]: finding for finding in found["findings"]}
    assert said["providers"]["state"] == "fault"
    assert "no route" in said["peers"]["text"]
    assert said["node"]["remedy"]
