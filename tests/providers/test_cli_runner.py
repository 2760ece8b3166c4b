"""The runner of command-line tools: processes that behave and processes that do not, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import trio
from shoal.providers.base import (
    Dropped,
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    Message,
    ProviderError,
    TextDelta,
)
from shoal.providers.cli.home import Homes
from shoal.providers.cli.provider import CliProvider

from tests.providers.fake_tools import Parrot, parrot, script

SAY = "import json\ndef say(**line):\n    print(json.dumps(line), flush=True)\n"
ECHO = SAY + "text = sys.stdin.read()\nsay(text='squawk ' + text)\nsay(done=True)\n"
PROMPT = "the planted prompt of this test"


async def answer(provider: CliProvider, request: GenerateRequest | None = None) -> list[Event]:
    async with provider.generate(request or GenerateRequest.of(PROMPT)) as events:
        return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def homes_of(data_dir: Path) -> list[Path]:
    return [path for path in (data_dir / "cli").glob("calls-*/*") if path.name != "in-use"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def pids_from(path: Path, count: int) -> list[int]:
    """The process ids that a fake writes into a file, once all are there."""
    with trio.fail_after(10):
        while not path.exists() or len(path.read_text().split()) < count:
            await trio.sleep(0.005)
    return [int(word) for word in path.read_text().split()]


# -- an answer


async def test_an_answer_comes_with_its_end_and_its_home_is_gone(tmp_path: Path) -> None:
    provider = parrot(script(tmp_path, ECHO), tmp_path / "data")
    async with provider.running():
        events = await answer(provider)
        assert text_of(events) == f"squawk {PROMPT}"
        assert events[-1] == Finish("stop")
        assert homes_of(tmp_path / "data") == []
    assert list((tmp_path / "data/cli").glob("calls-*")) == []


async def test_text_comes_while_the_tool_still_writes(tmp_path: Path) -> None:
    go = tmp_path / "go"
    body = (
        SAY + f"say(text='one')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.005)\nsay(text='two', done=True)\n"
    )
    provider = parrot(script(tmp_path, body), tmp_path / "data")
    async with provider.running(), provider.generate(GenerateRequest.of("x")) as events:
        assert await anext(events) == TextDelta("one")
        go.touch()
        assert [event async for event in events] == [TextDelta("two"), Finish("stop")]


async def test_a_tool_sees_a_few_variables_an_empty_folder_and_no_prompt_in_its_arguments(tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    body = SAY + (
        f"json.dump([dict(os.environ), os.getcwd(), os.listdir('.'), sys.argv, os.stat('..').st_mode & 0o777,\n"
        f"           open(os.path.expanduser('~/deep/system.md')).read()], open({str(seen)!r}, 'w'))\n" + ECHO
    )
    environ = {
        "PARROT_KEY": "sk-parrot-0001",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "OPENROUTER_API_KEY": "sk-other",
        "SHOAL_SWARM_KEY": "swarm-secret",
        "HOME": "/home/owner",
        "SSH_AUTH_SOCK": "/run/agent",
        "HTTPS_PROXY": "http://proxy:3128",
    }
    provider = parrot(script(tmp_path, body), tmp_path / "data", environ=environ)
    async with provider.running():
        await answer(provider, GenerateRequest.of(PROMPT, system="the planted system text"))
    variables, folder, listing, argv, mode, system = json.loads(seen.read_text())
    assert variables["PARROT_KEY"] == "sk-parrot-0001"
    assert variables["HTTPS_PROXY"] == "http://proxy:3128"
    assert not {"OPENROUTER_API_KEY", "SHOAL_SWARM_KEY", "SSH_AUTH_SOCK"} & set(variables)
    assert variables["HOME"].startswith(str(tmp_path / "data"))
    assert folder.startswith(variables["HOME"])
    assert listing == []
    assert mode == 0o700
    assert system == "the planted system text"
    assert not any(word in " ".join(argv) for word in (PROMPT, "planted", "sk-parrot"))


async def test_a_large_prompt_reaches_a_tool_that_talks_before_it_reads(tmp_path: Path) -> None:
    body = SAY + "say(text='x' * 200000)\nsize = len(sys.stdin.read())\nsay(text=f' {size}', done=True)\n"
    provider = parrot(script(tmp_path, body), tmp_path / "data")
    async with provider.running():
        assert text_of(await answer(provider, GenerateRequest.of("p" * 3_000_000))).endswith("x 3000000")


async def test_a_conversation_becomes_one_prompt(tmp_path: Path) -> None:
    provider = parrot(script(tmp_path, ECHO), tmp_path / "data")
    turns = (Message("user", "first"), Message("assistant", "second"), Message("user", "third"))
    async with provider.running():
        said = text_of(await answer(provider, GenerateRequest(messages=turns)))
    assert "User: first\n\nAssistant: second\n\nUser: third\n\nAssistant:" in said


async def test_a_stop_string_ends_the_answer_and_the_tool(tmp_path: Path) -> None:
    body = SAY + f"open({str(tmp_path / 'pids')!r}, 'w').write(str(os.getpid()))\n"
    body += "say(text='one tw')\nsay(text='o three')\ntime.sleep(60)\n"
    provider = parrot(script(tmp_path, body), tmp_path / "data")
    async with provider.running():
        events = await answer(provider, GenerateRequest.of("x", stop=("two",)))
    assert text_of(events) == "one "
    assert events[-1] == Finish("stop")
    assert not alive(int((tmp_path / "pids").read_text()))


# -- what it takes and what not


async def test_options_that_a_tool_cannot_honour_are_told_before_the_text(tmp_path: Path) -> None:
    provider = parrot(script(tmp_path, ECHO), tmp_path / "data")
    request = GenerateRequest.of("x", temperature=0.5, seed=1, max_tokens=5)
    async with provider.running():
        assert (await answer(provider, request))[0] == Dropped(("seed", "temperature"))


async def test_or_they_are_refused_when_the_owner_says_so(tmp_path: Path) -> None:
    provider = parrot(script(tmp_path, ECHO), tmp_path / "data", unsupported="refuse")
    async with provider.running():
        with pytest.raises(ProviderError, match=r"parrot cannot honour temperature; .*unsupported = \"drop\""):
            await answer(provider, GenerateRequest.of("x", temperature=0.5))
        assert text_of(await answer(provider, GenerateRequest.of("x", max_tokens=5))) == "squawk x"


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (GenerateRequest.of("x", n=2), ErrorKind.BAD_REQUEST, "ask n = 1"),
        (GenerateRequest.of("x", tools=({"type": "function"},)), ErrorKind.UNSUPPORTED, "every tool off"),
        (GenerateRequest.of("x", prefix="so far"), ErrorKind.UNAVAILABLE, "does not continue"),
        (GenerateRequest.of("  "), ErrorKind.BAD_REQUEST, "nothing to answer"),
        (GenerateRequest(messages=()), ErrorKind.BAD_REQUEST, "nothing to answer"),
    ],
)
async def test_what_no_tool_can_take_is_refused_before_one_is_started(
    tmp_path: Path, request_: GenerateRequest, kind: ErrorKind, words: str
) -> None:
    started = tmp_path / "started"
    provider = parrot(script(tmp_path, f"open({str(started)!r}, 'w')\n"), tmp_path / "data")
    async with provider.running():
        with pytest.raises(ProviderError, match=words) as caught:
            await answer(provider, request_)
    assert caught.value.kind is kind
    assert not started.exists()


# -- failures


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("say(status=401, said='no')", ErrorKind.AUTH, "check PARROT_KEY"),
        ("say(status=402)", ErrorKind.QUOTA, "credit or quota"),
        ("say(status=429)", ErrorKind.RATE_LIMITED, "rate limit"),
        ("say(status=503)", ErrorKind.OVERLOADED, "overloaded"),
        ("say(status=500, said='boom')", ErrorKind.UPSTREAM, "HTTP 500.*: boom"),
        (
            "say(status=400, said=f'you sent {text}')",
            ErrorKind.BAD_REQUEST,
            r"^bad_request: parrot failed \(HTTP 400\)$",
        ),
        ("say(status=500, said='key sk-parrot-0001 is bad')", ErrorKind.UPSTREAM, "key … is bad"),
        ("say(done=True)", ErrorKind.UPSTREAM, "without a word"),
        ("pass", ErrorKind.UPSTREAM, "exit code 0 without saying that it was done"),
        ("print('Segmentation fault'); sys.exit(3)", ErrorKind.UPSTREAM, "exit code 3.*is not what this version"),
        ("os.kill(os.getpid(), 15)", ErrorKind.CONNECTION, "killed by signal 15"),
        ("say(text='half'); os.kill(os.getpid(), 9)", ErrorKind.INTERRUPTED, "parrot broke off"),
        ("say(text='half'); say(status=529)", ErrorKind.INTERRUPTED, "HTTP 529"),
        ("say(text='whole'); say(done=True); sys.exit(1)", ErrorKind.INTERRUPTED, "broke off"),
        ("say(tool=True); time.sleep(60)", ErrorKind.UPSTREAM, "asked for a tool"),
        ("print('x' * (9 * 1024 * 1024)); time.sleep(60)", ErrorKind.UPSTREAM, "too long"),
        ("os.close(1); time.sleep(60)", ErrorKind.UPSTREAM, "did not end without saying"),
    ],
)
async def test_every_way_to_fail_is_a_typed_error_and_leaves_nothing(
    tmp_path: Path, body: str, kind: ErrorKind, words: str
) -> None:
    pid = tmp_path / "pid"
    head = SAY + f"text = sys.stdin.read()\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n"
    provider = parrot(script(tmp_path, head + body), tmp_path / "data", exit_s=0.3)
    async with provider.running():
        with pytest.raises(ProviderError, match=words) as caught:
            await answer(provider)
        assert caught.value.kind is kind
        assert PROMPT not in str(caught.value)
        assert not alive(int(pid.read_text()))
        assert homes_of(tmp_path / "data") == []


async def test_a_tool_that_hangs_after_a_whole_answer_does_not_spoil_it(tmp_path: Path) -> None:
    body = ECHO + f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    provider = parrot(script(tmp_path, body), tmp_path / "data", exit_s=0.2)
    async with provider.running():
        assert (await answer(provider))[-1] == Finish("stop")
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_a_flood_on_stderr_neither_blocks_nor_is_kept_nor_is_told(tmp_path: Path) -> None:
    body = ECHO.replace("say(text=", f"sys.stderr.write({PROMPT!r} * 300000)\nsay(text=")
    provider = parrot(script(tmp_path, body), tmp_path / "data")
    async with provider.running():
        assert text_of(await answer(provider)) == f"squawk {PROMPT}"


# -- the end of a process


TREE = """
def note():
    open({pids!r}, 'a').write(f'{{os.getpid()}}\\n')
note()
if os.fork() == 0:
    note()
    if os.fork() == 0:
        {escape}
        note()
        time.sleep(60)
    time.sleep(60)
"""


@pytest.mark.parametrize("escape", ["pass", "os.setsid()", "os.setpgid(0, 0)"])
@pytest.mark.parametrize("ignore", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
async def test_leaving_ends_the_whole_tree_within_a_quarter_of_a_second(
    tmp_path: Path, escape: str, ignore: str
) -> None:
    pids = tmp_path / "pids"
    ignored = f"{ignore}\n" if ignore else ""
    body = (
        ignored + TREE.format(pids=str(pids), escape=escape, ignore=ignore) + SAY + "say(text='one')\ntime.sleep(60)\n"
    )
    provider = parrot(script(tmp_path, body), tmp_path / "data")
    async with provider.running():
        async with provider.generate(GenerateRequest.of("x")) as events:
            assert await anext(events) == TextDelta("one")
            family = await pids_from(pids, 3)
            assert all(map(alive, family))
            left_at = time.monotonic()
        assert not any(map(alive, family))
        assert time.monotonic() - left_at < 1.0  # 0.25 s on a machine of one's own; the gate is in benchmarks
        assert homes_of(tmp_path / "data") == []


async def test_a_cancelled_call_is_ended_the_same_way(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{TREE.format(pids=str(pids), escape='pass')}"
    provider = parrot(script(tmp_path, body + "time.sleep(60)\n"), tmp_path / "data")
    async with provider.running(), trio.open_nursery() as nursery:
        nursery.start_soon(answer, provider)
        family = await pids_from(pids, 3)
        nursery.cancel_scope.cancel()
    assert not any(map(alive, family))
    assert homes_of(tmp_path / "data") == []


@pytest.mark.parametrize("escape", ["pass", "os.setsid()"])
async def test_children_that_outlive_the_tool_are_ended_with_the_call(tmp_path: Path, escape: str) -> None:
    pids = tmp_path / "pids"
    child = "if os.fork() == 0:\n    os.close(1); os.close(2)\n    {escape}\n"
    child = child.format(escape=escape) + f"    open({str(pids)!r}, 'w').write(str(os.getpid()))\n    time.sleep(60)\n"
    wait = f"while not os.path.exists({str(pids)!r}): time.sleep(0.005)\n"
    provider = parrot(script(tmp_path, child + wait + ECHO + "time.sleep(0.1)\n"), tmp_path / "data")
    async with provider.running():
        assert (await answer(provider))[-1] == Finish("stop")
        [pid] = await pids_from(pids, 1)
        assert not alive(pid)


async def test_a_kill_from_outside_is_a_broken_stream(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = SAY + f"say(text='half')\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    provider = parrot(script(tmp_path, body), tmp_path / "data")
    async with provider.running(), provider.generate(GenerateRequest.of("x")) as events:
        assert await anext(events) == TextDelta("half")
        os.kill((await pids_from(pid, 1))[0], signal.SIGTERM)
        with pytest.raises(ProviderError) as caught:
            await anext(events)
    assert caught.value.kind is ErrorKind.INTERRUPTED


async def test_no_descriptor_is_left_after_many_calls(tmp_path: Path) -> None:
    provider = parrot(script(tmp_path, ECHO), tmp_path / "data")
    async with provider.running():
        await answer(provider)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await answer(provider)
        assert len(os.listdir("/proc/self/fd")) == before


# -- one that waits


READY = (
    SAY
    + """
open({pids!r}, 'a').write(f'{{os.getpid()}}\\n')
text = sys.stdin.read()
say(text='squawk ' + text + ' in ' + os.path.basename(os.environ['HOME']), done=True)
"""
)


async def test_the_next_call_finds_a_tool_that_has_started_and_each_serves_one_call(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    provider = parrot(script(tmp_path, READY.format(pids=str(pids))), tmp_path / "data", warm_s=60, warms=True)
    async with provider.running():
        first = text_of(await answer(provider))
        assert len(await pids_from(pids, 2)) == 2
        assert len(homes_of(tmp_path / "data")) == 1
        second = text_of(await answer(provider, GenerateRequest.of("another")))
        assert second.startswith("squawk another in ")
        assert first.rpartition(" ")[2] != second.rpartition(" ")[2]  # no two calls share a home
        family = await pids_from(pids, 3)
        assert alive(family[2])
        assert not any(map(alive, family[:2]))
    assert len(family) == 3
    assert not alive(family[2])
    assert homes_of(tmp_path / "data") == []


async def test_one_that_was_started_for_other_settings_is_not_used(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    provider = parrot(script(tmp_path, READY.format(pids=str(pids))), tmp_path / "data", warm_s=60, warms=True)
    async with provider.running():
        await answer(provider)
        waiting = (await pids_from(pids, 2))[1]
        assert text_of(await answer(provider, GenerateRequest.of("x", system="another"))).startswith("squawk x")
        family = await pids_from(pids, 4)
        assert not alive(waiting)
        assert alive(family[3])


async def test_one_that_nobody_needs_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    provider = parrot(script(tmp_path, READY.format(pids=str(pids))), tmp_path / "data", warm_s=0.05, warms=True)
    async with provider.running():
        await answer(provider)
        with trio.fail_after(10):
            while homes_of(tmp_path / "data") or not pids.exists():
                await trio.sleep(0.005)
        assert not any(map(alive, await pids_from(pids, 1)))


# -- homes


def test_what_a_killed_node_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    living, dead = Homes(tmp_path), Homes(tmp_path)
    living.open()
    used = living.make({"prompt": "x"})
    dead.open()
    left = dead.make({"prompt": "y"})
    os.close(dead._lock)  # as the kernel does when a node dies
    fresh = Homes(tmp_path)
    fresh.open()
    assert not left.exists()
    assert used.exists()
    fresh.close()
    living.close()
    assert not used.exists()


async def test_a_provider_that_does_not_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="not running"):
        await answer(parrot(script(tmp_path, ECHO), tmp_path / "data"))


# -- the probe


async def test_the_probe_tells_the_version_without_asking_anything(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    provider = parrot(
        script(tmp_path, f"open({str(asked)!r}, 'w')\n"), tmp_path / "data", model="grey", models=("red",)
    )
    async with provider.running():
        status = await provider.probe()
    assert status.ready
    assert status.version == "fake 1.0"
    assert [m.name for m in status.models] == ["grey", "red"]
    assert status.default_model == "grey"
    assert not status.offers("blue")
    assert not asked.exists()


async def test_the_probe_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    async with (no_tool := parrot(None, tmp_path / "data")).running():
        reason = (await no_tool.probe()).reason
        assert reason == "parrot is not on PATH; breed one, or set binary in [providers.parrot]"
    async with (gone := parrot(tmp_path / "nowhere", tmp_path / "data")).running():
        assert "correct binary in [providers.parrot]" in (await gone.probe()).reason
        with pytest.raises(ProviderError, match="correct binary") as caught:
            await answer(gone)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
    program = script(tmp_path, ECHO)
    async with (no_key := parrot(program, tmp_path / "data", environ={"PATH": "/usr/bin:/bin"})).running():
        assert (await no_key.probe()).reason == "no key; set PARROT_KEY"
        with pytest.raises(ProviderError, match="no key; set PARROT_KEY"):
            await answer(no_key)
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    async with (fails := parrot(broken, tmp_path / "data")).running():
        assert (await fails.probe()).reason == "broken ends with exit code 127; breed one"


async def test_a_program_that_is_replaced_is_asked_for_its_version_again(tmp_path: Path) -> None:
    program = script(tmp_path, "")
    provider = parrot(program, tmp_path / "data")
    async with provider.running():
        assert (await provider.probe()).version == "fake 1.0"
        program.write_text(program.read_text().replace("fake 1.0", "fake 2.0.0"))
        provider._probed = None
        assert (await provider.probe()).version == "fake 2.0.0"


def test_a_command_shows_no_secret() -> None:
    from shoal.providers.cli.tool import Command

    assert "sk-1" not in repr(Command(argv=("x",), environ={"KEY": "sk-1"}))
    assert Parrot.kind == "parrot"
