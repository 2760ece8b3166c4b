"""What a person who writes a configuration is told, right or wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from shoal.node.config import SECTIONS, Config, ConfigError
from shoal.node.config_file import Loaded, Override, as_toml, find_file, load_config, toml_value

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "shoal.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def load(path: Path | None, environ: dict[str, str] | None = None, **overrides: Override) -> Loaded:
    environ = {"SHOAL_DATA_DIR": "/nonexistent/data", **(environ or {})}
    return load_config(path, environ=environ, overrides={k.replace("__", "."): v for k, v in overrides.items()})


def fault(path: Path, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_empty_file_is_the_default_configuration(write) -> None:
    assert load(write("")).config == Config()


def test_values_of_the_file_are_taken(write) -> None:
    config = load(write('[rpc]\nlisten = "127.0.0.1:0"\n[router]\ndeadline_s = 5\nfirst_token_s = 5\n')).config
    assert config.rpc.listen == "127.0.0.1:0"
    assert config.router.deadline_s == 5.0


FAULTS = {
    "a misspelt key": ('[rpc]\nlistne = "x"', "rpc.listne: unknown key; did you mean listen?"),
    "a key in the wrong table": ("[node]\nswarm_wait_ms = 1", "did you mean cache.swarm_wait_ms?"),
    "an unknown table": ("[sworm]\nname = 'x'", "sworm: unknown key; did you mean swarm?"),
    "an unknown table unlike any": ("[zzz]\n", "zzz: unknown key; the tables are: node, rpc"),
    "an unknown key unlike any": ("[log]\nzzz = 1", "log.zzz: unknown key; known here: level, format"),
    "a number for text": (
        "[rpc]\nlisten = 8642",
        "rpc.listen: wants text in quotes, got a whole number; for example listen",
    ),
    "text for a number": (
        '[router]\nhops = "1"',
        "router.hops: wants a whole number, got text in quotes; for example hops = 1",
    ),
    "a value for a table": ("rpc = 3", "rpc: wants a table, got a whole number"),
    "a list of the wrong things": (
        "[swarm]\npeers = [1]",
        "swarm.peers[0]: wants text in quotes, got a whole number",
    ),
    "a date": ("[router]\nhops = 2026-01-01", "router.hops: wants a whole number, got"),
    "a value out of bounds": ("[router]\nhops = 9", "router.hops: wants a whole number of at most 8, got 9"),
    "zero seconds": ("[router]\nidle_s = 0", "router.idle_s: wants a number of more than 0, got 0"),
    "an empty swarm name": ('[swarm]\nname = ""', "swarm.name: wants text of at least 1 characters"),
    "an unknown mode": ('[cache]\nmode = "md5"', 'cache.mode: \'md5\' is not one of "cid", "sha256"'),
    "an unknown trust": ('[cache]\ntrust = "all"', '"any", "swarm", a list of peer ids'),
    "a bad peer id": ('[cache]\ntrust = ["me"]', "cache.trust[0]: 'me' is not a peer id"),
    "an address without a port": (
        '[rpc]\nlisten = "127.0.0.1"',
        "rpc.listen: '127.0.0.1' is not an address; write HOST:PORT",
    ),
    "a name as an address": ('[rpc]\nlisten = "example.org:80"', "rpc.listen: 'example.org' is not an IP address"),
    "a port too high": ('[rpc]\nlisten = "127.0.0.1:70000"', "rpc.listen: port 70000 does not exist"),
    "a path as a web origin": (
        '[rpc]\ncors_origins = ["https://chat.example/app"]',
        "rpc.cors_origins[0]: 'https://chat.example/app' is not a web origin",
    ),
    "a web origin that no browser sends": (
        '[rpc]\ncors_origins = ["https://chät.example"]',
        "rpc.cors_origins[0]: 'https://chät.example' is not a web origin",
    ),
    "a web origin with the usual port": (
        '[rpc]\ncors_origins = ["app://notes.example", "https://chat.example:443"]',
        "rpc.cors_origins[1]: browsers leave the usual port out; write 'https://chat.example'",
    ),
    "a key without its certificate": ('[rpc]\ntls_key = "key.pem"', "rpc.tls_key: is set without rpc.tls_cert"),
    "a socket as a multiaddr": (
        '[swarm]\nlisten = ["0.0.0.0:4642"]',
        "swarm.listen[0]: '0.0.0.0:4642' is not a multiaddr; write one like \"/ip4",
    ),
    "another transport": (
        '[swarm]\nlisten = ["/ip4/0.0.0.0/udp/1/quic-v1"]',
        "swarm.listen[0]: '/ip4/0.0.0.0/udp/1/quic-v1': the transport is TCP only",
    ),
    "a bad IPv4 address": ('[swarm]\nlisten = ["/ip4/0.0.0/tcp/1"]', "'0.0.0' is not an IPv4 address"),
    "an IPv4 address as IPv6": ('[swarm]\nlisten = ["/ip6/0.0.0.0/tcp/1"]', "is not an IPv6 address"),
    "a name to listen on": ('[swarm]\nlisten = ["/dns4/a.org/tcp/1"]', "one listens on an IP address, not on a name"),
    "a peer without its id": (
        '[swarm]\npeers = ["/ip4/192.0.2.1/tcp/1"]',
        "swarm.peers[0]: '/ip4/192.0.2.1/tcp/1': the peer's id is missing",
    ),
    "a bad swarm key": ('[swarm]\nkey = "hunter2hunter2"', "swarm.key: wants 64 hex digits"),
    "a socket for Kubo": (
        '[ipfs]\nkubo_api = "127.0.0.1:5001"',
        """write it as "/ip4/127.0.0.1/tcp/5001" or""",
    ),
    "a provider that is not a table": (
        "[providers]\nlocal_hf = true",
        "providers.local_hf: wants a table; write [providers.local_hf]",
    ),
    "a limit above the deadline": (
        "[router]\ndeadline_s = 10",
        "router.first_token_s: is longer than router.deadline_s",
    ),
    "broken TOML": ("[rpc]\nlisten = \n", "line 2, column 10: this is not TOML:"),
    "a key twice": ("[rpc]\n[rpc]\n", "line 2, column 5: this is not TOML:"),
    "an open end": ("[rpc", "at its end: this is not TOML:"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_line_that_names_file_key_and_remedy(write, case: str) -> None:
    text, wanted = FAULTS[case]
    path = write(text)
    message = fault(path)
    assert message.startswith(f"{path}: ")
    assert wanted in message


def test_a_fault_never_shows_the_swarms_key(write) -> None:
    assert "hunter2" not in fault(write('[swarm]\nkey = "hunter2hunter2"'))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no such file" in fault(tmp_path / "none.toml")


def test_a_directory_for_a_file_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    assert "cannot be read: is a directory" in fault(tmp_path)


def test_bytes_that_are_not_utf8_are_an_error(write) -> None:
    assert "byte 2 is not UTF-8" in fault(write(b"# \xff\n"))


# -- the environment -------------------------------------------------------------------------------------------


def test_the_environment_wins_over_the_file(write) -> None:
    loaded = load(write('[router]\nmodel = "a"'), {"SHOAL_LLM_MODEL": "b"})
    assert loaded.config.router.model == "b"


def test_the_old_prefix_is_read_and_ours_wins() -> None:
    old = {"IPFS_ACCELERATE_PY_LLM_PROVIDER": "old"}
    assert load(None, old).config.router.provider == "old"
    assert load(None, old | {"SHOAL_LLM_PROVIDER": "new"}).config.router.provider == "new"


def test_the_old_prefix_is_not_read_for_what_the_predecessor_did_not_have() -> None:
    assert load(None, {"IPFS_ACCELERATE_PY_LOG_LEVEL": "debug"}).config.log.level == "info"


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_a_boolean_variable_takes_the_words_for_true(write, text: str) -> None:
    path = write("[cache]\nenabled = false")
    assert load(path, {"SHOAL_ROUTER_RESPONSE_CACHE": text}).config.cache.enabled is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off"])
def test_a_boolean_variable_takes_the_words_for_false(text: str) -> None:
    assert load(None, {"SHOAL_ROUTER_RESPONSE_CACHE": text}).config.cache.enabled is False


def test_any_other_boolean_is_an_error_that_names_the_variable(write) -> None:
    message = fault(write(""), {"IPFS_ACCELERATE_PY_ROUTER_CACHE": "maybe"})
    assert "IPFS_ACCELERATE_PY_ROUTER_CACHE" in message
    assert "true/false" in message


def test_a_bad_value_from_the_environment_is_blamed_on_the_variable_not_on_the_file(write) -> None:
    path = write('[cache]\nmode = "cid"')
    message = fault(path, {"SHOAL_ROUTER_CACHE_KEY": "md5"})
    assert message == 'SHOAL_ROUTER_CACHE_KEY: \'md5\' is not one of "cid", "sha256"'


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(None, {"SHOAL_ROUTER_CACHE": "", "SHOAL_LLM_MODEL": ""}).config == Config()


def test_a_variable_that_nothing_reads_is_pointed_out() -> None:
    (warning,) = load(None, {"SHOAL_LLM_MODLE": "x"}).warnings
    assert warning == "SHOAL_LLM_MODLE is set, but no such variable is read; did you mean SHOAL_LLM_MODEL?"


# -- the command line ------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_everything(write) -> None:
    path = write('[rpc]\nlisten = "127.0.0.1:1"')
    environ = {"SHOAL_RPC_LISTEN": "127.0.0.1:2"}
    assert load(path, environ, rpc__listen=Override("--rpc", "127.0.0.1:3")).config.rpc.listen == "127.0.0.1:3"


def test_a_bad_option_is_blamed_on_the_option(write) -> None:
    with pytest.raises(ConfigError, match=r"^--rpc: '8642' is not an address"):
        load(write(""), rpc__listen=Override("--rpc", "8642"))


def test_an_option_makes_the_provider_table_that_it_needs() -> None:
    config = load(None, providers__local_hf__share=Override("--share", True)).config
    assert config.providers == {"local_hf": {"share": True}}


# -- where the file is -----------------------------------------------------------------------------------------


def test_the_data_directory_s_file_is_found_before_the_platform_s(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shoal.node.paths.default_config_file", lambda: tmp_path / "platform.toml")
    environ = {"SHOAL_DATA_DIR": str(tmp_path)}
    assert find_file(None, None, environ) is None
    (tmp_path / "platform.toml").touch()
    assert find_file(None, None, environ) == tmp_path / "platform.toml"
    (tmp_path / "config.toml").touch()
    assert find_file(None, None, environ) == tmp_path / "config.toml"
    assert find_file(None, None, environ | {"SHOAL_CONFIG": "/etc/s.toml"}) == Path("/etc/s.toml")
    assert find_file(tmp_path / "mine.toml", None, environ) == tmp_path / "mine.toml"


# -- back to TOML, and the files that are rendered -------------------------------------------------------------


def test_what_is_in_force_reads_back_as_itself(write) -> None:
    config = load(write('[swarm]\nname = "a\\"b\\n"\npeers = []\n[providers."x y"]\nshare = true\n')).config
    assert msgspec.convert(__import__("tomllib").loads(as_toml(config)), Config) == config


def test_secrets_are_hidden_when_the_configuration_is_shown(write) -> None:
    config = load(write(f'[swarm]\nkey = "{"ab" * 32}"\n[providers.openrouter]\napi_key = "sk-1"\n')).config
    shown = as_toml(config)
    assert "abab" not in shown
    assert "sk-1" not in shown
    assert shown.count('"(hidden)"') == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_example_file_works_as_it_is(path: Path) -> None:
    load(path)


def test_every_key_of_the_reference_file_is_taken_when_its_comment_sign_is_removed(write) -> None:
    lines = (ROOT / "configs" / "reference.toml").read_text().splitlines()
    keys = {f.name for section in SECTIONS.values() for f in msgspec.structs.fields(section)}
    settings = [line.removeprefix("# ") for line in lines if line.removeprefix("# ").partition(" =")[0] in keys]
    tables = [line for line in lines if line.startswith("[")]
    assert len(tables) == len(SECTIONS)
    wanted = [line.removeprefix("# ") if line.removeprefix("# ") in settings else line for line in lines]
    text = "\n".join(line for line in wanted if not line.endswith("(unset)"))
    assert load(write(text)).config == Config()


def test_rendered_files_are_current() -> None:
    from shoal.node.config_doc import files

    stale = [name for name, text in files().items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run: python -m shoal.node.config_doc . ({stale})"


def test_every_key_is_described() -> None:
    from shoal.node.config_doc import keys

    assert all(key.description.endswith(".") for section in SECTIONS for key in keys(section))


def test_toml_refuses_what_it_has_no_form_for() -> None:
    with pytest.raises(TypeError):
        toml_value(None)
