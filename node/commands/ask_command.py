"""`shoal ask`: one question, its answer as it comes, and in one dim line who gave it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli import Command, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import duration, in_colour, print_json, print_text, without_controls

if TYPE_CHECKING:
    from ...protocols.http.client import Response
    from .client import Node

EXAMPLES = """\
shoal ask "What is the opposite of hot?"
shoal ask --model smollm2 --max-tokens 64 "Name three rivers."
git diff | shoal ask --system "Review this change." -
shoal ask --json "What is the opposite of hot?" | jq -r .cid"""

MAX_QUESTION_BYTES = 16 * 1024 * 1024


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("question", required=False)
@click.option("--model", "-m", help="The model; without it the node chooses.")
@click.option("--provider", "-p", help="Ask this provider and no other.")
@click.option("--system", "-s", help="A system message before the question.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of the answer at most.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 gives the likeliest answer, which is also cached.")
@click.option("--seed", type=int, help="Makes a sampled answer repeatable, where the provider can.")
@click.option("--no-cache", is_flag=True, help="Ask anew, even if the answer is known.")
@common
def command(question: str | None, as_json: bool, data_dir: Path | None, **options: Any) -> None:
    """Ask a question and stream the answer.

    QUESTION is the text to ask; `-`, or none when something is piped in, reads it from stdin.
    """
    text = read_question(question)
    trio_run(ask, data_dir, body_of(text, **{k: v for k, v in options.items() if k != "no_cache"}), options, as_json)


def _is_text(argument: str) -> bool:
    """False where bytes could not be read in the locale's encoding, and stand as surrogates (PEP 383)."""
    return not any("\udc80" <= character <= "\udcff" for character in argument)


def read_question(argument: str | None) -> str:
    """The question as text. CommandError when there is none, or it is not text."""
    if argument is None and sys.stdin.isatty():
        raise CommandError('what shall be asked? for example: shoal ask "What is the opposite of hot?"', ExitCode.USAGE)
    if argument is not None and argument != "-":
        text = argument
        try:
            if not _is_text(text):  # UTF-8 as well, where the locale knows ASCII only
                text = os.fsencode(text).decode()
        except UnicodeError:
            raise CommandError("the question is not UTF-8 text", ExitCode.USAGE) from None
    else:
        data = sys.stdin.buffer.read(MAX_QUESTION_BYTES + 1)
        if len(data) > MAX_QUESTION_BYTES:
            raise CommandError("the question is longer than 16 MiB; shorten it", ExitCode.USAGE)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise CommandError(f"byte {error.start} of the question is not UTF-8 text", ExitCode.USAGE) from None
    if not text.strip():
        raise CommandError("the question is empty", ExitCode.USAGE)
    return text


def body_of(question: str, *, system: str | None = None, **options: Any) -> dict[str, Any]:
    """The body of /v1/chat/completions."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    given = {name: value for name, value in options.items() if value is not None}
    return {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **given}


class Answer:
    """What is known of an answer so far: its text, and who gave it from where."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first_token_s: float | None = None
        self.text: list[str] = []
        self.model: str | None = None
        self.finish: str | None = None
        self.usage: dict[str, Any] | None = None
        self.shoal: dict[str, Any] = {}

    def take_headers(self, headers: Mapping[str, str | None]) -> None:
        """provider, peer, cache, cid, route, as the x-shoal-* headers have them."""
        self.shoal |= {name: value for name, value in headers.items() if value}

    def take(self, chunk: dict[str, Any]) -> str:
        """One chunk of the stream; the text it brings. CommandError for an error event."""
        if isinstance(chunk.get("error"), dict):
            message = chunk["error"].get("message")
            raise CommandError(str(message or "the answer broke off"), ExitCode.NO_ANSWER)
        self.model = chunk.get("model") or self.model
        self.usage = chunk.get("usage") or self.usage
        if isinstance(chunk.get("shoal"), dict):
            self.shoal |= {name: value for name, value in chunk["shoal"].items() if value is not None}
        text = ""
        for choice in chunk.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
        if text and self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started
        self.text.append(text)
        return text

    def as_json(self) -> dict[str, Any]:
        return {
            "answer": "".join(self.text),
            "model": self.model,
            "finish_reason": self.finish,
            "usage": self.usage,
            "seconds": round(time.monotonic() - self.started, 4),
            "first_token_s": None if self.first_token_s is None else round(self.first_token_s, 4),
            **{name: self.shoal.get(name) for name in ("provider", "peer", "cache", "cid", "route")},
        }

    def line(self) -> str:
        """Who answered and from where, in one line."""
        provider, peer, cache = (self.shoal.get(name) for name in ("provider", "peer", "cache"))
        who = str(provider or "unknown")
        if who.startswith("peer:") and peer:
            who = self.model or "a model"
        elif self.model and self.model != provider:
            who += f" ({self.model})"
        if peer and peer != "local":
            who += f" on peer {str(peer)[-6:]}"
        parts = [who]
        if cache in ("memory", "disk", "swarm", "dht", "ipfs"):
            parts.append(f"from the cache ({cache})")
        parts.append(duration(time.monotonic() - self.started))
        if self.usage and self.usage.get("completion_tokens") is not None:
            parts.append(f"{self.usage['completion_tokens']} tokens")
        if self.finish == "length":
            parts.append("cut at the token limit")
        if self.shoal.get("cid"):
            parts.append(str(self.shoal["cid"]))
        return " · ".join(parts)


async def ask(data_dir: Path | None, body: dict[str, Any], options: Mapping[str, Any], as_json: bool) -> None:
    """Ask the running node, and print."""
    from .client import connect

    answer = Answer()
    async with connect(data_dir) as node:
        try:
            await stream(node, body, answer, cache_control="no-cache" if options.get("no_cache") else "", quiet=as_json)
        finally:
            if not as_json and any(answer.text) and not "".join(answer.text[-1:]).endswith("\n"):
                print_text("\n")
    if as_json:
        print_json(answer.as_json())
    else:
        print_dim(answer.line())


async def stream(node: Node, body: dict[str, Any], answer: Answer, *, cache_control: str, quiet: bool) -> None:
    """Relay the answer to stdout as it comes."""
    import msgspec

    from ...protocols.http.client import ClientError
    from .client import MAX_ANSWER_BYTES, lost, refusal
    from .waiting import waiting

    headers = [("content-type", "application/json"), ("accept", "text/event-stream")]
    if cache_control:
        headers.append(("cache-control", cache_control))
    url, data = node.url + "/v1/chat/completions", msgspec.json.encode(body)
    try:
        with waiting("waiting for the first words") as begun:
            async with node.http.request("POST", url, headers=headers, body=data) as response:
                begun()
                if response.status != 200:
                    raise refusal(response.status, await response.read(MAX_ANSWER_BYTES))
                names = ("provider", "peer", "cache", "cid", "route")
                answer.take_headers({name: response.header(f"x-shoal-{name}") for name in names})
                await relay(response, answer, quiet=quiet)
    except ClientError as error:
        raise lost(node.state, error) from None


async def relay(response: Response, answer: Answer, *, quiet: bool) -> None:
    """Server-sent events to text. CommandError when the stream ends without its last event."""
    import msgspec

    from ...protocols.http.sse import SseParser

    clean = sys.stdout.isatty()
    parser = SseParser()
    async for data in response:
        for event in parser.feed(data):
            if event.data == "[DONE]":
                return
            text = answer.take(msgspec.json.decode(event.data))
            if text and not quiet:
                print_text(without_controls(text) if clean else text)
    raise CommandError("the answer broke off before its end; ask again", ExitCode.NO_ANSWER)


def print_dim(line: str) -> None:
    """One line on stderr, dim on a terminal that can."""
    line = without_controls(line).replace("\n", " ")
    if in_colour(sys.stderr):
        line = f"\x1b[2m{line}\x1b[0m"
    print(line, file=sys.stderr, flush=True)
