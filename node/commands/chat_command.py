"""`shoal chat`: a conversation. What was said is kept while it lasts, in memory alone."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from .ask_command import Answer, print_dim, stream
from .cli import Command, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import in_colour, print_json_line, print_text

EXAMPLES = """\
shoal chat
shoal chat --model smollm2 --system "Answer in one sentence."
printf 'What is the opposite of hot?\\nAnd of wet?\\n' | shoal chat"""

HELP = """\
/new            begin anew          /model NAME     ask this model from now on (none: any)
/undo           take back a turn    /system TEXT    a system message (none: no system message)
/save FILE      write it as JSON    /quit           end, as Ctrl-D does
A line that ends with \\ goes on in the next. Ctrl-C stops an answer."""


class Conversation:
    """The turns so far, and how the next is asked."""

    def __init__(self, model: str | None, system: str | None, options: dict[str, Any]) -> None:
        self.model, self.system = model, system
        self.turns: list[dict[str, str]] = []
        self._options = {name: value for name, value in options.items() if value is not None}

    def body(self, question: str) -> dict[str, Any]:
        """The body of /v1/chat/completions for the next question."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {"messages": [*first, *self.turns, {"role": "user", "content": question}]}
        if self.model:
            body["model"] = self.model
        return body | {"stream": True, "stream_options": {"include_usage": True}} | self._options

    def add(self, question: str, answer: str) -> None:
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def undo(self) -> bool:
        there = bool(self.turns)
        del self.turns[-2:]
        return there


@click.command(cls=Command, examples=EXAMPLES)
@click.option("--model", "-m", help="The model; without it the node chooses.")
@click.option("--provider", "-p", help="Ask this provider and no other.")
@click.option("--system", "-s", help="A system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of each answer at most.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 gives the likeliest answer, which is also cached.")
@common
def command(model: str | None, system: str | None, as_json: bool, data_dir: Path | None, **options: Any) -> None:
    """Talk with a model over several turns. /help lists what can be typed beside questions.

    With something piped in, each line is a turn.
    """
    from .client import find_node

    find_node(data_dir)
    talk = Conversation(model, system, options)
    people = sys.stdin.isatty() and not as_json
    if people:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (editing and history in input())
        print_dim("/help lists commands; Ctrl-D ends")
    while (question := read_turn(people)) is not None:
        if question.startswith("/"):
            if not obey(talk, question):
                return
        elif question.strip():
            take_turn(talk, question, data_dir, as_json=as_json, people=people)


def read_turn(people: bool) -> str | None:
    """The next question; None at the end."""
    mark = "> "
    if people and in_colour(sys.stdout):
        mark = "\x01\x1b[1;36m\x02> \x01\x1b[0m\x02"
    lines: list[str] = []
    while True:
        try:
            line = input(mark if people else "")
        except EOFError:
            if people:
                print_text("\n")
            return "\n".join(lines) or None
        except KeyboardInterrupt:
            if not people:
                raise
            print_text("\n")
            lines = []
            continue
        except UnicodeDecodeError:
            raise CommandError("the input is not UTF-8 text", ExitCode.USAGE) from None
        if line.endswith("\\"):
            lines.append(line[:-1])
            continue
        return "\n".join([*lines, line])


def take_turn(talk: Conversation, question: str, data_dir: Path | None, *, as_json: bool, people: bool) -> None:
    """Ask, show the answer as it comes, and keep both. A failure ends a script, but not a conversation."""
    answer = Answer()
    try:
        trio_run(_ask, data_dir, talk.body(question), answer, as_json)
    except BaseException as error:
        from .failures import only

        known = only(error)
        if not people or not isinstance(known, KeyboardInterrupt | CommandError):
            raise
        if any(answer.text):
            print_text("\n")
            answer.text.append("\n")
        print_dim("stopped" if isinstance(known, KeyboardInterrupt) else f"no answer: {known}")
        if isinstance(known, CommandError):
            return
    text = "".join(answer.text)
    if text:
        talk.add(question, text)
    if as_json:
        print_json_line(answer.as_json())
    elif text and not text.endswith("\n"):
        print_text("\n")
    if people:
        print_dim(answer.line())
        print_text("\n")


async def _ask(data_dir: Path | None, body: dict[str, Any], answer: Answer, quiet: bool) -> None:
    from .client import connect

    async with connect(data_dir) as node:
        await stream(node, body, answer, cache_control="", quiet=quiet)


def obey(talk: Conversation, line: str) -> bool:
    """A slash command; False ends the conversation."""
    name, _, rest = line[1:].strip().partition(" ")
    rest = rest.strip()
    if name in ("quit", "exit", "q"):
        return False
    if name == "help":
        print_text(HELP + "\n")
    elif name == "new":
        talk.turns.clear()
        print_dim("a new conversation")
    elif name == "undo":
        print_dim("the last turn is taken back" if talk.undo() else "there is nothing to take back")
    elif name == "model":
        talk.model = rest or None
        print_dim(f"the model is {talk.model}" if talk.model else "the node chooses the model")
    elif name == "system":
        talk.system = rest or None
        print_dim("the system message is set" if rest else "there is no system message")
    elif name == "save" and rest:
        save(talk, Path(rest).expanduser())
    else:
        print_dim(f"/{name} is no command; /help lists them")
    return True


def save(talk: Conversation, path: Path) -> None:
    import msgspec

    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(talk.turns), indent=2) + b"\n")
    except OSError as error:
        print_dim(f"{path}: {(error.strerror or str(error)).lower()}")
    else:
        turns = len(talk.turns) // 2
        print_dim(f"{turns} {'turn is' if turns == 1 else 'turns are'} in {path}")
