"""`shoal providers`, `shoal doctor` and `shoal providers add`: engines that run here are offered, and taken in once."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.commands.exit_codes import ExitCode
from shoal.node.config import ConfigError
from shoal.node.config_edit import save, with_tables
from shoal.node.routing.rates import Rates

from tests.providers.fake_engines import fake_engine
from tests.providers.test_weights import installed_model

from .fake_node import FakeNode, fake_node, shoal

MINE = """\
# my node
[rpc]
listen = "127.0.0.1:0"   # any port

[providers.openrouter]
enabled = false
"""


def config(data: Path, *addresses: str, text: str = MINE) -> Path:
    file = data / "config.toml"
    data.mkdir(exist_ok=True)
    file.write_text(f"{text}\n[engines]\naddresses = {json.dumps(addresses)}\ntimeout_s = 10\n")
    return file


async def add(data: Path, *arguments: str) -> tuple[int, str]:
    done = await shoal("providers", "add", *arguments, "--data-dir", str(data))
    return done.returncode, (done.stdout + done.stderr).decode()


async def test_doctor_and_providers_show_what_runs_here_with_the_command_that_takes_it_in(tmp_path: Path) -> None:
    async with fake_engine("ollama") as ollama, fake_engine("vllm") as vllm, fake_node(tmp_path) as node:
        config(tmp_path, ollama, vllm)
        node.answers["GET /shoal/v1/providers"] = {"providers": []}
        line = f"found: Ollama 0.12.1 at {ollama} with 3 models; add it: shoal providers add ollama"
        assert line in (await node.shoal("providers")).stdout.decode()
        told = json.loads((await node.shoal("providers", "--json")).stdout)["engines"]
        assert [(each["engine"], each["address"], each["provider"]) for each in told] == [
            ("ollama", ollama, None),
            ("vllm", vllm, None),
        ]
        node.answers |= {"GET /shoal/v1/status": {"version": "0"}, "GET /shoal/v1/peers": {"peers": []}}
        checked = json.loads((await node.shoal("doctor", "--json")).stdout)["findings"]
        engines = [each for each in checked if each["name"] == "engine"]
        assert engines[1]["text"] == f"found: vLLM 0.11.0 at {vllm} with 1 model"
        assert engines[1]["remedy"] == "add it: `shoal providers add vllm`"


async def test_a_node_does_not_take_itself_or_another_node_for_an_engine(tmp_path: Path) -> None:
    async with fake_engine("shoal") as other, fake_node(tmp_path) as node:
        own = await own_address(node)
        config(tmp_path, other, own)
        node.answers["GET /shoal/v1/providers"] = {"providers": []}
        assert json.loads((await node.shoal("providers", "--json")).stdout)["engines"] == []
        assert {path for path, _, _ in node.asked} == {"GET /shoal/v1/providers"}


async def own_address(node: FakeNode) -> str:
    return str(json.loads((node.data / "rpc.json").read_text())["address"])


async def test_adding_keeps_what_is_in_the_file_and_its_rights_and_does_it_once(tmp_path: Path) -> None:
    async with fake_engine("ollama") as address:
        file = config(tmp_path, address)
        file.chmod(0o640)
        before = file.read_text()
        code, said = await add(tmp_path, "ollama", "--yes")
        assert code == 0, said
        assert f"Ollama 0.12.1 at {address} with 3 models is added to {file}; `shoal run` uses it" in said
        after = file.read_text()
        assert after.startswith(before)
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        pool = tomllib.loads(after)["providers"]["backend_manager"]
        assert pool == {
            "strategy": "best_performance",
            "backends": {"ollama": {"base_url": f"http://{address}/v1", "kind": "ollama"}},
        }
        code, said = await add(tmp_path, "ollama", "--yes")
        assert (code, said) == (0, "it is in use already, as backend_manager.ollama\n")
        assert file.read_text() == after


async def test_a_model_that_is_installed_here_too_is_offered_under_one_name(tmp_path: Path) -> None:
    installed_model(tmp_path / "models", "m")
    store = f'{MINE}\n[providers.local_hf]\nmodels_dir = "{tmp_path / "models"}"\n'
    async with fake_engine("llama_cpp") as engine:
        file = config(tmp_path / "node", engine, text=store)
        assert (await add(tmp_path / "node", "llama_cpp", "--yes"))[0] == 0
        tables = tomllib.loads(file.read_text())["providers"]
        assert tables["backend_manager"]["backends"]["llama_cpp"]["aliases"] == {"m": "m.gguf"}
        rates = Rates()
        rates.timed("backend_manager", "m", 80.0, 50.0)
        rates.timed("local_hf", "m", 40.0, 20.0)
        (tmp_path / "node" / "rates.json").write_bytes(rates.dump())
        done = await shoal("doctor", "--json", "--data-dir", str(tmp_path / "node"))
        [told] = [each for each in json.loads(done.stdout)["findings"] if each["name"] == "engine"]
        assert "in use as backend_manager.llama_cpp; m: 80 tokens/s, first token 50 ms (just now)" in told["text"]
        assert "and local_hf 40 tokens/s, first token 20 ms (just now)" in told["text"]


async def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    async with fake_engine("ollama") as address:
        file = config(tmp_path, address)
        before = file.read_bytes().replace(b"\n", b"\r\n")
        file.write_bytes(before)
        code, said = await add(tmp_path, "ollama", "--yes")
        assert code == 0, said
        assert file.read_bytes().startswith(before)


async def test_a_second_one_joins_the_pool_under_a_name_of_its_own(tmp_path: Path) -> None:
    async with fake_engine("llama_cpp") as one, fake_engine("llama_cpp") as two:
        file = config(tmp_path, one, two)
        assert (await add(tmp_path, "llama.cpp", "--yes"))[0] == 0
        code, said = await add(tmp_path, "llama.cpp", "--yes")
        assert code == ExitCode.REFUSED
        assert "--as NAME" in said
        code, said = await add(tmp_path, "llama.cpp", "--yes", "--as", "second", "--json")
        assert code == 0, said
        assert json.loads(said)["provider"] == "backend_manager.second"
        backends = tomllib.loads(file.read_text())["providers"]["backend_manager"]["backends"]
        assert [backends[name]["base_url"] for name in ("llama_cpp", "second")] == [
            f"http://{a}/v1" for a in (one, two)
        ]


async def test_a_fresh_machine_gets_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    async with fake_engine("vllm_with_key") as address:
        code, said = await add(tmp_path, "vllm", "--yes", "--address", address)
        assert code == ExitCode.USAGE
        assert "--api-key-env" in said
        assert not (tmp_path / "config.toml").exists()
        code, said = await add(tmp_path, "vllm", "--yes", "--address", address, "--api-key-env", "VLLM_KEY")
        assert code == 0, said
    file = tmp_path / "config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    table = tomllib.loads(file.read_text())["providers"]["backend_manager"]["backends"]["vllm"]
    assert table["api_key_env"] == "VLLM_KEY"
    assert table["continue_fields"] == {"add_generation_prompt": False, "continue_final_message": True}


async def test_without_a_terminal_nothing_is_written_unless_told(tmp_path: Path) -> None:
    async with fake_engine("ollama") as address, fake_node(tmp_path) as node:
        file = config(tmp_path, address)
        before = file.read_text()
        code, said = await add(tmp_path, "ollama")
        assert code == ExitCode.USAGE
        assert f"--yes adds it to {file}" in said
        assert file.read_text() == before
        done = await node.shoal("providers", "add", "ollama", "--yes")
        assert b"uses it once it is started again" in done.stdout


@pytest.mark.parametrize(
    ("engine", "says"),
    [("ollama", "start it (`ollama serve`)"), ("docker", "known: ollama, llama_cpp, vllm, sglang, lm_studio")],
)
async def test_what_does_not_run_cannot_be_added(tmp_path: Path, engine: str, says: str) -> None:
    config(tmp_path)
    code, said = await add(tmp_path, engine, "--yes")
    assert code in (ExitCode.NO_ANSWER, ExitCode.USAGE)
    assert says in said


async def test_looking_can_be_switched_off(tmp_path: Path) -> None:
    async with fake_engine("ollama") as address, fake_node(tmp_path) as node:
        file = config(tmp_path, address)
        file.write_text(file.read_text() + "look = false\n")
        node.answers["GET /shoal/v1/providers"] = {"providers": []}
        assert json.loads((await node.shoal("providers", "--json")).stdout)["engines"] == []


# -- the file ----------------------------------------------------------------------------------------------------

TABLES = {"providers.backend_manager.backends.ollama": {"base_url": "http://127.0.0.1:11434/v1", "kind": "ollama"}}


@pytest.mark.parametrize(
    "text",
    [
        "providers = { backend_manager = { backends = { a = { base_url = 'http://127.0.0.1:1/v1' } } } }\n",
        "[providers.backend_manager]\nbackends = { }\n",
        "[providers]\nbackend_manager = 3\n",
    ],
)
def test_a_file_that_nothing_can_be_put_behind_is_refused_with_the_lines_to_add(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\[providers\.backend_manager\.backends\.ollama\]"):
        with_tables(text, TABLES)


@given(st.text(st.sampled_from("ab=#\n\"'[]. 1{}"), max_size=40))
def test_the_old_text_stays_and_the_new_table_means_what_it_says(text: str) -> None:
    try:
        before = tomllib.loads(text)
        after = with_tables(text, TABLES)
    except (tomllib.TOMLDecodeError, ConfigError):
        return
    assert after.startswith(text)
    assert tomllib.loads(after).items() >= before.items()
    assert tomllib.loads(after)["providers"]["backend_manager"]["backends"]["ollama"]["kind"] == "ollama"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("")
    (tmp_path / "config.toml").symlink_to(real)
    save(tmp_path / "config.toml", "[rpc]\n")
    assert (tmp_path / "config.toml").is_symlink()
    assert real.read_text() == "[rpc]\n"
