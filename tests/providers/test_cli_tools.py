"""Each command-line tool's own shapes: what real runs said (cli_fixtures/), replayed by a program in its place."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shoal.providers.base import (
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    Provider,
    ProviderError,
    TextDelta,
    Usage,
)
from shoal.providers.cli.talk import Asked, Talk
from shoal.providers.cli.tool import Command, Place, Tool
from shoal.providers.faults import SettingsError
from shoal.providers.settings import BuildContext

from tests.providers.fake_tools import FIXTURES, recording, replay
from tests.providers.fake_vendors import FAILURES

KINDS = {
    "codex_cli": ("codex", "OPENAI_API_KEY"),
    "claude_code": ("claude", "ANTHROPIC_API_KEY"),
    "gemini_cli": ("gemini", "GEMINI_API_KEY"),
    "copilot_cli": ("copilot", "COPILOT_PROVIDER_API_KEY"),
    "copilot_sdk": ("copilot_sdk", "COPILOT_PROVIDER_API_KEY"),
}
KEY = "sk-planted-7f3a9c51e0d2"
PROMPT = "say hello there friend"
URL = "http://127.0.0.1:9"
STATUSES = {"s401": 401, "s402": 402, "s403": 403, "s404": 404, "s429": 429, "s429ra": 429, "s500": 500, "s529": 529}
NO_STATUS = {("codex_cli", "s404"), ("codex_cli", "s500")}
"""Where the tool has another word for it."""
SILENT = {("gemini_cli", "length"), ("gemini_cli", "filter"), ("copilot_cli", "filter")}
"""Where the tool does not tell a cut answer from a whole one."""


def module(kind: str) -> Any:
    return importlib.import_module(f"shoal.providers.cli.{KINDS[kind][0]}")


def build(
    kind: str, program: Path | None, data_dir: Path, environ: dict[str, str] | None = None, **more: Any
) -> Provider:
    table: dict[str, Any] = {"base_url": URL, "model": "stub", "exit_s": 1.0, "warm_s": 0, **more}
    if program is not None:
        table["binary"] = str(program)
        if kind == "copilot_sdk":
            table["python"] = str(program)
    settings = msgspec.convert(table, module(kind).Settings)
    environ = {KINDS[kind][1]: KEY, "PATH": "/usr/bin:/bin"} if environ is None else environ
    provider: Provider = module(kind).build(kind, settings, BuildContext(data_dir, environ))
    return provider


def tool(kind: str, environ: dict[str, str] | None = None, **more: Any) -> Tool:
    settings = msgspec.convert({"base_url": URL, "model": "stub", "binary": "/bin/true", **more}, module(kind).Settings)
    found: Tool = module(kind).tool_of(settings, {KINDS[kind][1]: KEY} if environ is None else environ)
    return found


async def replayed(kind: str, scenario: str, folder: Path) -> list[Event]:
    provider = build(kind, replay(folder, recording(kind, scenario)), folder / "data")
    async with provider.running():
        outcome = await outcome_of(provider)
    if isinstance(outcome, ProviderError):
        raise outcome
    return outcome


async def outcome_of(provider: Provider) -> list[Event] | ProviderError:
    try:
        async with provider.generate(GenerateRequest.of(PROMPT)) as events:
            return [event async for event in events]
    except ProviderError as error:
        return error


# -- answers


@pytest.mark.parametrize("kind", KINDS)
async def test_a_recorded_answer_is_text_usage_and_an_end(kind: str, tmp_path: Path) -> None:
    events = await replayed(kind, "ok", tmp_path)
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert "".join(deltas).endswith("say hello there friend>")
    assert len(deltas) >= 4  # token by token, as it was sent
    assert events[-1] == Finish("stop", "stub")
    usage = [event for event in events if isinstance(event, Usage)]
    if kind != "copilot_cli":  # it writes a file at its end, which the replay does not
        assert usage[0].completion_tokens in (4, 5)
        assert usage[0].prompt_tokens > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scenario", "reason"), [("length", "length"), ("filter", "content_filter")])
async def test_an_answer_that_was_cut_by_a_limit_or_a_filter_says_so(
    kind: str, scenario: str, reason: str, tmp_path: Path
) -> None:
    events = await replayed(kind, scenario, tmp_path)
    assert "".join(e.text for e in events if isinstance(e, TextDelta)).endswith("say hello there friend>")
    end = events[-1]
    assert isinstance(end, Finish)
    assert end.reason == ("stop" if (kind, scenario) in SILENT else reason)


# -- failures


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", FAILURES)
async def test_a_recorded_failure_is_its_kind(kind: str, scenario: str, tmp_path: Path) -> None:
    with pytest.raises(ProviderError) as caught:
        await replayed(kind, scenario, tmp_path)
    error = caught.value
    assert error.kind is FAILURES[scenario], error
    assert error.retry_after is None  # no tool passes it on
    if (kind, scenario) not in NO_STATUS and scenario in STATUSES:
        assert error.status == STATUSES[scenario]
    assert PROMPT not in error.message
    assert KEY not in error.message
    if error.kind is ErrorKind.AUTH:
        assert KINDS[kind][1] in error.message


@pytest.mark.parametrize("kind", ["claude_code", "gemini_cli", "copilot_cli", "copilot_sdk"])
async def test_a_model_that_asks_for_a_tool_ends_the_call(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="asked for a tool"):
        await replayed(kind, "toolcall", tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        {"id": 7, "method": "item/commandExecution/requestApproval", "params": {}},
        {"method": "item/started", "params": {"item": {"type": "commandExecution", "id": "x"}}},
        {"method": "item/completed", "params": {"item": {"type": "fileChange", "id": "x"}}},
    ],
)
def test_codex_is_ended_when_it_wants_to_run_something(said: dict[str, Any], tmp_path: Path) -> None:
    talk = talk_of("codex_cli", tmp_path)
    talk.hear(json.dumps(said).encode())
    assert talk.cut
    with pytest.raises(ProviderError, match="asked for a tool"):
        talk.exited(None, "")


@pytest.mark.parametrize("kind", ["copilot_cli", "copilot_sdk"])
@pytest.mark.parametrize(
    "said",
    [
        # What 1.0.102 writes at SIGTERM in mid-stream, with an exit code of 0 in its result.
        [{"type": "agent.interrupted", "data": {"cancelPhase": "mid_stream"}}],
        [{"type": "abort", "data": {"reason": "user_initiated"}}],
        [
            {"type": "model.call_finished", "data": {"outcome": "cancelled"}},
            {"type": "assistant.turn_end", "data": {"turnId": "0"}},
            {"type": "result", "exitCode": 0},
        ],
    ],
)
def test_copilot_that_was_ended_from_outside_is_no_answer(kind: str, said: list[Any], tmp_path: Path) -> None:
    talk = talk_of(kind, tmp_path)
    talk.hear(b'{"type":"assistant.message_delta","data":{"deltaContent":"half"}}')
    for line in said:
        talk.hear(json.dumps(line).encode())
    with pytest.raises(ProviderError) as caught:
        talk.exited(None if talk.cut else 0, "")
    assert caught.value.kind is ErrorKind.INTERRUPTED


async def test_gemini_that_was_ended_from_outside_exits_with_0_and_is_no_answer(tmp_path: Path) -> None:
    found = recording("gemini_cli", "ok")
    found["stdout"] = [line for line in found["stdout"] if '"result"' not in line]
    provider = build("gemini_cli", replay(tmp_path, found), tmp_path / "data")
    async with provider.running():
        outcome = await outcome_of(provider)
    assert isinstance(outcome, ProviderError)
    assert outcome.kind is ErrorKind.INTERRUPTED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_a_tool_that_is_killed_in_mid_stream_is_never_an_answer(kind: str, cut: int, tmp_path: Path) -> None:
    found = recording(kind, "ok") | {"code": -15}
    found["stdout"] = found["stdout"][: len(found["stdout"]) * cut // 4]
    provider = build(kind, replay(tmp_path, found), tmp_path / "data")
    async with provider.running():
        outcome = await outcome_of(provider)
    assert isinstance(outcome, ProviderError)
    assert outcome.kind in (ErrorKind.CONNECTION, ErrorKind.INTERRUPTED)


# -- the pure conversation


def talk_of(kind: str, folder: Path, **asked: Any) -> Talk[Any]:
    return tool(kind).talk(kind, Asked(prompt=PROMPT, system="s", **asked), Place(folder, folder))


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_no_recording_holds_a_key_or_a_path_of_a_machine(path: Path) -> None:
    text = path.read_text()
    assert KEY not in text
    assert "/home/" not in text.replace("/home/call", "")
    assert "/root" not in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "junk", [b"", b"   ", b"{", b"[1,2]", b"null", b'"text"', b'{"type": 5}', b"\xff\xfe", b'{"a":1}']
)
def test_lines_that_mean_nothing_are_passed_over(kind: str, junk: bytes, tmp_path: Path) -> None:
    talk = talk_of(kind, tmp_path)
    talk.hear(junk)
    assert not talk.over
    assert talk.take() == []


def test_codex_is_asked_in_three_steps(tmp_path: Path) -> None:
    talk = talk_of("codex_cli", tmp_path, model="gpt-x", schema={"type": "object"})
    assert json.loads(talk.opening())["method"] == "initialize"
    talk.hear(b'{"id":0,"result":{}}')
    initialized, start = map(json.loads, talk.replies())
    assert initialized["method"] == "initialized"
    assert (start["method"], start["params"]["model"]) == ("thread/start", "gpt-x")
    assert (start["params"]["sandbox"], start["params"]["approvalPolicy"]) == ("read-only", "never")
    talk.hear(b'{"id":1,"result":{"thread":{"id":"t1"},"model":"gpt-x"}}')
    [turn] = map(json.loads, talk.replies())
    assert turn["params"]["threadId"] == "t1"
    assert turn["params"]["input"] == [{"type": "text", "text": PROMPT}]
    assert turn["params"]["outputSchema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        ("contextWindowExceeded", ErrorKind.CONTEXT_LENGTH),
        ("usageLimitExceeded", ErrorKind.QUOTA),
        ("unauthorized", ErrorKind.AUTH),
        ("cyberPolicy", ErrorKind.CONTENT_FILTER),
        ({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}, ErrorKind.RATE_LIMITED),
        ({"httpConnectionFailed": {"httpStatusCode": None}}, ErrorKind.CONNECTION),
        ("somethingNew", ErrorKind.UPSTREAM),
        ({}, ErrorKind.CONNECTION),
    ],
)
def test_codex_names_its_failures(info: object, kind: ErrorKind, tmp_path: Path) -> None:
    talk = talk_of("codex_cli", tmp_path)
    turn = {"status": "failed", "error": {"message": "x", "codexErrorInfo": info}}
    talk.hear(json.dumps({"method": "turn/completed", "params": {"turn": turn}}).encode())
    with pytest.raises(ProviderError) as caught:
        talk.exited(0, "")
    assert caught.value.kind is kind


@pytest.mark.parametrize(
    ("kind", "code", "stderr", "expected"),
    [
        ("gemini_cli", 41, "you must specify the GEMINI_API_KEY", ErrorKind.AUTH),
        ("gemini_cli", 173, "", ErrorKind.RATE_LIMITED),
        ("gemini_cli", 1, "TerminalQuotaError: x", ErrorKind.QUOTA),
        ("codex_cli", 1, "Unknown feature flag: shell_tool", ErrorKind.UNAVAILABLE),
        ("claude_code", 1, "error: unknown option '--permission-prompts'", ErrorKind.UNAVAILABLE),
        ("copilot_cli", 1, "Error: No authentication information found.", ErrorKind.AUTH),
        ("copilot_cli", 1, "error: unexpected argument '--no-remote-export'", ErrorKind.UNAVAILABLE),
    ],
)
def test_an_end_without_a_word_is_read_from_the_exit_code_and_stderr(
    kind: str, code: int, stderr: str, expected: ErrorKind, tmp_path: Path
) -> None:
    with pytest.raises(ProviderError) as caught:
        talk_of(kind, tmp_path).exited(code, stderr)
    assert caught.value.kind is expected


# -- how they are started


def command(
    kind: str, folder: Path, environ: dict[str, str] | None = None, *, asked: Any = None, **more: Any
) -> Command:
    chosen = tool(kind, environ, **more)
    options = {"prompt": PROMPT, "system": "the system text", "model": "stub", "key": chosen.key(), **(asked or {})}
    return chosen.command(Path("/bin/true"), Asked(**options), Place(folder, folder / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_neither_prompt_nor_system_text_nor_key_stands_in_the_arguments(kind: str, tmp_path: Path) -> None:
    made = command(kind, tmp_path)
    words = " ".join(made.argv)
    assert PROMPT not in words
    assert "the system text" not in words
    assert KEY not in words
    assert KEY in made.environ.values()
    assert not any(PROMPT in value for value in made.environ.values())
    assert KEY not in "".join(made.files.values())
    assert KEY not in repr(made)


def test_gemini_gets_its_options_in_a_settings_file(tmp_path: Path) -> None:
    made = command("gemini_cli", tmp_path, asked={"temperature": 0.3, "top_p": 0.9, "max_tokens": 50})
    settings = json.loads(made.files[".gemini/settings.json"])
    [override] = settings["modelConfigs"]["customOverrides"]
    assert override["match"] == {"model": "stub"}
    given = override["modelConfig"]["generateContentConfig"]
    assert given == {"temperature": 0.3, "topP": 0.9, "maxOutputTokens": 50}
    assert settings["tools"]["core"] == ["none"]
    assert json.loads(command("gemini_cli", tmp_path).files[".gemini/settings.json"])["modelConfigs"] == {
        "customOverrides": []
    }


def test_claude_and_copilot_get_their_limit_by_a_variable(tmp_path: Path) -> None:
    assert command("claude_code", tmp_path, asked={"max_tokens": 7}).environ["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "7"
    assert (
        command("copilot_cli", tmp_path, asked={"max_tokens": 7}).environ["COPILOT_PROVIDER_MAX_OUTPUT_TOKENS"] == "7"
    )


def test_a_subscription_of_claude_comes_by_its_token(tmp_path: Path) -> None:
    token = "sk-ant-oat01-planted"
    made = command("claude_code", tmp_path, {"CLAUDE_CODE_OAUTH_TOKEN": token})
    assert made.environ["CLAUDE_CODE_OAUTH_TOKEN"] == token
    assert "ANTHROPIC_API_KEY" not in made.environ
    assert "--bare" not in made.argv  # with it, the token would not be read


def test_a_login_of_codex_is_linked_and_not_copied(tmp_path: Path) -> None:
    login = tmp_path / "login"
    assert "run `codex login`" in (tool("codex_cli", {}, login_dir=str(login)).missing() or "")
    login.mkdir()
    (login / "auth.json").write_text("{}")
    made = command("codex_cli", tmp_path, {}, login_dir=str(login), base_url=None)
    assert made.links == {".codex/auth.json": login / "auth.json"}
    assert "model_provider" not in made.files[".codex/config.toml"]


async def test_a_key_comes_from_a_file_or_the_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "key"
    place.write_text(f"{KEY}\n")
    assert tool("gemini_cli", {"GEMINI_API_KEY": "other"}, api_key_file=str(place)).key() == KEY
    monkeypatch.setattr("shoal.providers.keyring_entry.look_up", lambda service, user: (f"{service}-{user}", ""))
    assert tool("claude_code", {}, api_key_keyring="shoal/claude").key() == "shoal-claude"
    monkeypatch.setattr("shoal.providers.keyring_entry.look_up", lambda service, user: (None, "has no key"))
    assert tool("claude_code", {}, api_key_keyring="shoal/claude").missing() == "the keyring has no key"


def test_copilot_without_a_server_of_its_own_uses_the_subscription(tmp_path: Path) -> None:
    made = command("copilot_cli", tmp_path, {"GH_TOKEN": "gho_planted"}, base_url=None)
    assert made.environ["COPILOT_GITHUB_TOKEN"] == "gho_planted"
    assert "COPILOT_PROVIDER_BASE_URL" not in made.environ
    missing = tool("copilot_cli", {}, base_url=None).missing()
    assert missing == (
        "no token; set COPILOT_GITHUB_TOKEN, or base_url in [providers.copilot_cli] to bring your own key"
    )
    assert tool("copilot_cli", {}).missing() is None  # a server of one's own may want no key


def test_copilot_is_not_taken_for_wanted_because_there_is_a_token_of_github(tmp_path: Path) -> None:
    program = replay(tmp_path, recording("copilot_cli", "ok"), "copilot")
    environ = {"PATH": f"{program.parent}:/usr/bin:/bin", "GITHUB_TOKEN": "gho_planted"}
    assert "set COPILOT_GITHUB_TOKEN" in module("copilot_cli").missing(environ)
    assert module("copilot_cli").missing(environ | {"COPILOT_GITHUB_TOKEN": "x"}) is None


@pytest.mark.parametrize(("kind", "variable"), [(k, v) for k, (_, v) in KINDS.items() if not k.startswith("copilot")])
def test_without_a_credential_the_reason_names_the_variable(kind: str, variable: str) -> None:
    assert tool(kind, {}).missing() == f"no key; set {variable}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_that_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    for url in ("127.0.0.1:8000", "http://me:pw@host/v1"):
        with pytest.raises(SettingsError, match="base_url"):
            build(kind, None, tmp_path, base_url=url)


@pytest.mark.parametrize(
    ("kind", "variable"),
    [
        ("codex_cli", "SHOAL_CODEX_CLI_MODEL"),
        ("codex_cli", "IPFS_ACCELERATE_PY_CODEX_MODEL"),
        ("claude_code", "SHOAL_CLAUDE_MODEL"),
        ("gemini_cli", "SHOAL_GEMINI_MODEL"),
        ("copilot_sdk", "SHOAL_COPILOT_SDK_MODEL"),
    ],
)
async def test_a_variable_names_the_model(kind: str, variable: str, tmp_path: Path) -> None:
    program = replay(tmp_path, recording(kind, "ok"))
    environ = {variable: "from-environment", KINDS[kind][1]: KEY, "PATH": "/usr/bin:/bin"}
    async with (provider := build(kind, program, tmp_path / "data", environ)).running():
        assert (await provider.probe()).default_model == "from-environment"


def test_a_timeout_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="COPILOT_SDK_TIMEOUT"):
        build("copilot_sdk", None, tmp_path, {"SHOAL_COPILOT_SDK_TIMEOUT": "soon"})


def test_the_sdk_says_what_it_lacks() -> None:
    assert "no interpreter /nowhere/python" in (tool("copilot_sdk", python="/nowhere/python").missing() or "")
    assert "copilot is not on PATH" in (tool("copilot_sdk", {"PATH": ""}, binary=None).missing() or "")
