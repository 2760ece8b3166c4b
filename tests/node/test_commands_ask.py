"""`shoal ask`: the answer on stdout as it comes, who gave it on stderr, and every way in which there is none."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
from shoal.node.commands.exit_codes import ExitCode
from shoal.protocols.http.exchange import Exchange

from .fake_node import DONE, SHOAL, WHO, FakeNode, chunk, fake_node, shoal

PATH = "POST /v1/chat/completions"


def streamed(*pieces: bytes):
    async def answer(exchange: Exchange) -> None:
        async with exchange.stream(200, WHO) as send:
            for piece in pieces:
                await send(piece)

    return answer


def refused(status: int, message: str):
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(status, json.dumps({"error": {"message": message, "type": "x"}}).encode())

    return answer


WHOLE = (
    chunk("Co"),
    chunk("ld."),
    chunk(finish="stop"),
    chunk(usage={"prompt_tokens": 9, "completion_tokens": 2}, shoal={"cid": "bafyreiexample"}),
    DONE,
)


@pytest.fixture
async def node(tmp_path: Path):
    async with fake_node(tmp_path) as node:
        node.answers[PATH] = streamed(*WHOLE)
        yield node


def sent(node: FakeNode) -> dict[str, Any]:
    ((_, _, body),) = node.asked
    return dict(json.loads(body))


async def test_the_answer_is_on_stdout_and_who_gave_it_on_stderr(node: FakeNode) -> None:
    done = await node.shoal("ask", "What is the opposite of hot?")
    assert done.returncode == 0
    assert done.stdout == b"Cold.\n"
    line = done.stderr.decode()
    assert line.startswith("local_hf (smollm2) on peer UVWXYZ · ")
    assert line.endswith(" · 2 tokens · bafyreiexample\n")
    assert "cache" not in line
    assert "\x1b" not in line


async def test_the_options_reach_the_node(node: FakeNode) -> None:
    options = ["--model", "m", "--provider", "p", "--max-tokens", "7", "--temperature", "0", "--seed", "3"]
    await node.shoal("ask", *options, "--system", "Be brief.", "--no-cache", "hi")
    body = sent(node)
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert (body["model"], body["provider"], body["max_tokens"]) == ("m", "p", 7)
    assert (body["temperature"], body["seed"], body["stream"]) == (0, 3, True)
    assert "no_cache" not in body
    assert node.asked[0][1]["cache-control"] == "no-cache"


async def test_what_is_not_given_is_not_sent(node: FakeNode) -> None:
    await node.shoal("ask", "hi")
    assert set(sent(node)) == {"messages", "stream", "stream_options"}


@pytest.mark.parametrize("arguments", [["ask", "-"], ["ask"]])
async def test_a_question_comes_from_stdin(node: FakeNode, arguments: list[str]) -> None:
    done = await node.shoal(*arguments, stdin="Was ist das Gegenteil von heiß?\n".encode())
    assert done.returncode == 0
    assert sent(node)["messages"][0]["content"] == "Was ist das Gegenteil von heiß?\n"


@pytest.mark.parametrize(("stdin", "fault"), [(b"", b"is empty"), (b" \n", b"is empty"), (b"a\xff", b"byte 1 of")])
async def test_a_question_that_is_none_is_wrong_usage(node: FakeNode, stdin: bytes, fault: bytes) -> None:
    done = await node.shoal("ask", "-", stdin=stdin)
    assert done.returncode == ExitCode.USAGE
    assert fault in done.stderr
    assert not node.asked


async def test_json_is_one_object_with_the_whole_answer(node: FakeNode) -> None:
    done = await node.shoal("ask", "--json", "hi")
    answer = json.loads(done.stdout)
    assert (answer["answer"], answer["model"], answer["finish_reason"]) == ("Cold.", "smollm2", "stop")
    assert (answer["provider"], answer["cache"], answer["cid"]) == ("local_hf", "miss", "bafyreiexample")
    assert answer["usage"]["completion_tokens"] == 2
    assert 0 <= answer["first_token_s"] <= answer["seconds"]
    assert done.stderr == b""


async def test_an_answer_from_the_cache_says_from_which_tier(node: FakeNode) -> None:
    node.answers[PATH] = streamed(chunk("Cold.", shoal={"cache": "disk"}), chunk(finish="stop"), DONE)
    assert b"from the cache (disk)" in (await node.shoal("ask", "hi")).stderr


async def test_an_answer_that_was_cut_at_its_limit_says_so(node: FakeNode) -> None:
    node.answers[PATH] = streamed(chunk("Co"), chunk(finish="length"), DONE)
    assert b"cut at the token limit" in (await node.shoal("ask", "hi")).stderr


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, ExitCode.USAGE), (403, ExitCode.REFUSED), (404, ExitCode.NO_ANSWER), (503, ExitCode.NO_ANSWER)],
)
async def test_a_refusal_is_the_nodes_own_words(node: FakeNode, status: int, code: ExitCode) -> None:
    node.answers[PATH] = refused(status, "No provider is ready.")
    done = await node.shoal("ask", "hi")
    assert (done.returncode, done.stderr) == (code, b"shoal: No provider is ready.\n")
    assert done.stdout == b""


async def test_an_error_in_the_middle_keeps_what_came_and_says_why_it_ended(node: FakeNode) -> None:
    from shoal.protocols.http.sse import encode_event

    error = encode_event(b'{"error": {"message": "The peer is gone.", "type": "x"}}')
    node.answers[PATH] = streamed(chunk("Co"), error, DONE)
    done = await node.shoal("ask", "hi")
    assert (done.returncode, done.stdout) == (ExitCode.NO_ANSWER, b"Co\n")
    assert done.stderr == b"shoal: The peer is gone.\n"


async def test_a_stream_without_its_end_is_no_answer(node: FakeNode) -> None:
    node.answers[PATH] = streamed(chunk("Co"))
    done = await node.shoal("ask", "hi")
    assert (done.returncode, done.stdout) == (ExitCode.NO_ANSWER, b"Co\n")
    assert b"broke off before its end" in done.stderr


async def test_a_node_that_dies_in_the_middle_is_one_line(node: FakeNode) -> None:
    async def dies(exchange: Exchange) -> None:
        async with exchange.stream(200, WHO) as send:
            await send(chunk("Co"))
            raise RuntimeError

    node.answers[PATH] = dies
    done = await node.shoal("ask", "hi")
    assert (done.returncode, done.stdout) == (ExitCode.NO_ANSWER, b"Co\n")
    assert done.stderr.count(b"\n") == 1
    assert b"broke off" in done.stderr


async def test_an_interrupt_ends_the_command_quietly_and_the_nodes_work(node: FakeNode, tmp_path: Path) -> None:
    left = trio.Event()

    async def forever(exchange: Exchange) -> None:
        async with exchange.stream(200, WHO) as send:
            await send(chunk("Co"))
            try:
                await trio.sleep_forever()
            finally:
                left.set()

    node.answers[PATH] = forever
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            command = [SHOAL, "ask", "hi", "--data-dir", str(tmp_path)]
            process = await nursery.start(
                lambda task_status: trio.run_process(
                    command, check=False, stdout=-1, stderr=-1, task_status=task_status
                )
            )
            assert await process.stdout.receive_some(100) == b"Co"
            process.send_signal(signal.SIGINT)
            await left.wait()
            assert await process.wait() == ExitCode.INTERRUPTED
            assert await process.stdout.receive_some(100) == b"\n"
            assert await process.stderr.receive_some(100) == b""


async def test_the_text_comes_before_the_answer_is_whole(node: FakeNode, tmp_path: Path) -> None:
    seen = trio.Event()

    async def waits(exchange: Exchange) -> None:
        async with exchange.stream(200, WHO) as send:
            await send(chunk("Co"))
            await seen.wait()
            for piece in WHOLE[1:]:
                await send(piece)

    node.answers[PATH] = waits
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            command = [SHOAL, "ask", "hi", "--data-dir", str(tmp_path)]
            process = await nursery.start(
                lambda task_status: trio.run_process(command, stdout=-1, stderr=-1, task_status=task_status)
            )
            assert await process.stdout.receive_some(100) == b"Co"
            seen.set()
            assert (await process.stdout.receive_some(100)).startswith(b"ld.")


async def test_no_question_at_a_terminal_is_wrong_usage(tmp_path: Path) -> None:
    done = await shoal("ask", "", "--data-dir", str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == b"shoal: the question is empty\n"
