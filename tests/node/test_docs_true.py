"""The pages against the code: every command and option they name, every table of TOML, every metric."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from shoal.node.commands.cli import SUBCOMMANDS, cli
from shoal.node.commands.exit_codes import MEANING
from shoal.node.config_file import load_config
from shoal.node.provider_tables import build_registry
from shoal.node.rpc import metrics_gen_ai, metrics_node

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PEER = "12D3KooWEgoFCizaDDfLe6ovB2FbPkUjVECdXmRWEqXnZ6LURa4n"


def commands(text: str) -> Iterator[str]:
    """What stands in backticks or in a block of shell and begins with `shoal`."""
    shell = re.findall(r"^```sh[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for block in shell:
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            yield from re.findall(r"(?:^|[|(;&]\s*|\$\()\s*(shoal [^|;&)#>]*)", line)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(shoal [^`\n]+)`", prose):
        if code.endswith(" v1"):  # a label that keys are derived with
            continue
        yield from (part for part in re.split(r"\s*[|;&>#]\s*", code) if part.startswith("shoal "))


def problem(line: str) -> str | None:
    """Why `shoal` would not understand the words of this line; places to fill in (NAME) are taken as they are."""
    try:
        words = [word for word in shlex.split(line)[1:] if word != "..."]
    except ValueError as error:
        return str(error)
    command: click.Command = cli
    path = ["shoal"]
    context = click.Context(cli, info_name="shoal")
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        if words[0] in ("COMMAND", "X"):
            return None
        found = command.get_command(context, words[0])
        if found is None:
            return f"{' '.join(path)} has no command {words[0]!r}"
        path.append(words.pop(0))
        command, context = found, click.Context(found, parent=context, info_name=path[-1])
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help", "--debug"}
    for word in words:
        if word.startswith("-") and word != "-" and not re.fullmatch(r"-\d+", word) and word.split("=")[0] not in known:
            return f"{' '.join(path)} has no option {word}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_is_there_with_its_options(page: Path) -> None:
    wrong = [f"{line}: {why}" for line in commands(page.read_text()) if (why := problem(line))]
    assert not wrong


def test_the_check_can_fail() -> None:
    assert problem("shoal statsu") == "shoal has no command 'statsu'"
    assert problem("shoal ask --colour x") == "shoal ask has no option --colour"
    assert problem("shoal cache forget CID --json") is None
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_of_toml_is_a_configuration_that_starts(page: Path, tmp_path: Path) -> None:
    whole = page.read_text()
    texts = re.findall(r"^```toml\n(.*?)^```$", whole, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^    \[[a-z_.]+\]\n(?:^(?:    .*)?\n)*)", whole, re.MULTILINE)
    texts += [textwrap.dedent(text) for text in indented]
    for number, text in enumerate(texts):
        file = tmp_path / f"{number}.toml"
        if "model_provider" in text:  # Codex' own
            continue
        file.write_text(text.replace("12D3KooW...", PEER))
        build_registry(load_config(file, data_dir=tmp_path / "data", environ={}), {})


def test_every_target_of_make_that_a_page_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_operations_lists_every_metric_and_none_that_is_not_there() -> None:
    code = "".join(Path(module.__file__ or "").read_text() for module in (metrics_node, metrics_gen_ai))
    made = {name.replace(".", "_") for name in re.findall(r'"((?:gen_ai|shoal)\.[a-z_.]+)"', code)}
    made |= {f"shoal_{name}" for name in re.findall(r'^ +\("([a-z]+_[a-z]+)", "', code, re.MULTILINE)}
    labels = {name.replace(".", "_") for name in re.findall(r'by\("([a-z_.]+)"', code)}
    labels |= {"shoal_from", "shoal_outcome", "shoal_state", "shoal_part", "shoal_tier", "shoal_reason"}
    made -= labels | {name for name in made if re.match(r"gen_ai_(operation|provider|request|response|token)_", name)}
    made -= {"shoal_dht", "shoal_ipfs_dht", "shoal_max_bytes"}  # beginnings of names, and a field
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = "".join(line for line in page.splitlines(keepends=True) if line.startswith("| `"))
    missing = {name for name in made if not re.search(rf"`{name}(_[a-z]+)*`", rows)}
    assert not missing, sorted(missing)
    there = labels | made
    for name in re.findall(r"`((?:gen_ai|shoal)_[a-z_]+)`", rows):
        bare = re.sub(r"(_total|_seconds|_bytes)+$", "", name)
        assert {bare, name} & there or bare.startswith(("shoal_dht", "shoal_ipfs_dht", "gen_ai_token")), name


def test_operations_lists_every_exit_status() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for code, meaning in MEANING.items():
        assert f"| {code.value} | {meaning} |" in page
    assert SUBCOMMANDS
