"""What commands print: JSON for programs, tables for people. rich is imported only for the latter."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """One JSON document on stdout, indented."""
    import msgspec

    print_text(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_line(value: Any) -> None:
    """One JSON object on a line of its own, sent at once."""
    import msgspec

    print_text(msgspec.json.encode(value).decode() + "\n")


def print_text(text: str) -> None:
    """Text as it is, sent at once; what the terminal's encoding lacks is replaced, not a fault."""
    stream = sys.stdout
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, for one
        nothing_more()
        raise OSError(error.errno, error.strerror, "the output") from None


def nothing_more() -> None:
    """Output that nobody takes: what is left of it goes nowhere, as the interpreter would try again at its end."""
    with contextlib.suppress(OSError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def without_controls(text: str) -> str:
    """Text without control characters but newline and tab: a model's or peer's words must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def console(*, stderr: bool = False) -> Console:
    """Where tables and progress go. Wide enough not to break ids when the output is not a terminal."""
    from rich.console import Console

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and "utf" not in (stream.encoding or "").lower():
            stream.reconfigure(errors="replace")  # as print_text has it
    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=200)
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Rows under their headings, or a sentence when there are none. One line a row where it is no terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = table_lines(columns, rows, width, colours=in_colour(sys.stdout))
    print_text("".join(f"{line}\n" for line in lines or [empty]))


def table_lines(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], width: int | None, *, colours: bool = False
) -> list[str]:
    """A table for `width` cells (None: as wide as it is), in plain text; nothing when there are no rows.

    Where a row does not fit, columns without a value go, and then the widest come below the row, named: a value is
    never squeezed into a strip of letters, and an id or an address stays whole.
    """
    from rich.cells import cell_len

    cells = [[without_controls(str(value)).replace("\n", " ").replace("\t", " ") for value in row] for row in rows]
    if not cells:
        return []
    widths = [max(cell_len(row[n]) for row in [columns, *cells]) for n in range(len(columns))]
    beside, below = _split(widths, [any(row[n] for row in cells) for n in range(len(columns))], width)
    bold, dim, plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if colours else ("", "", "")

    def line(row: Sequence[str]) -> str:
        return "  ".join(row[n] + " " * (widths[n] - cell_len(row[n])) for n in beside).rstrip()

    label = max((len(columns[n]) for n in below), default=0)
    lines = [f"{bold}{line(columns)}{plain}"]
    for row in cells:
        lines.append(line(row))
        for n in below:
            room = max(20, (width or 0) - label - 4)
            told = textwrap.wrap(row[n], room, break_long_words=False, break_on_hyphens=False)
            names = [columns[n], *[""] * len(told)]
            lines += [f"  {dim}{name:<{label}}{plain}  {part}" for name, part in zip(names, told, strict=False)]
    return lines


def _split(widths: Sequence[int], filled: Sequence[bool], width: int | None) -> tuple[list[int], list[int]]:
    """Which columns stand beside one another in `width` cells, and which come below. The first always stays."""
    beside, below = list(range(len(widths))), list[int]()

    def fits() -> bool:
        return width is None or sum(widths[n] + 2 for n in beside) - 2 <= width

    if not fits():
        beside = [n for n in beside if n == 0 or filled[n]]
    while not fits() and len(beside) > 1:
        widest = max(beside[1:], key=lambda n: widths[n])
        beside.remove(widest)
        below.append(widest)
    return beside, sorted(below)


def print_facts(facts: Iterable[tuple[str, Any]], end: str = "\n") -> None:
    """Names and values, one a line; a value is never broken, so that it can be copied. end: of each line."""
    rows = [(name, without_controls(str(value)).replace("\n", " ")) for name, value in facts]
    width = max((len(name) for name, _ in rows), default=0)
    dim, plain = ("\x1b[2m", "\x1b[0m") if in_colour(sys.stdout) else ("", "")
    print_text("".join(f"{dim}{name:<{width}}{plain}  {value}{end}" for name, value in rows))


def in_colour(stream: TextIO) -> bool:
    """Whether escape sequences are welcome (https://no-color.org)."""
    return can_move(stream) and not os.environ.get("NO_COLOR")


def can_move(stream: TextIO) -> bool:
    """Whether it is a terminal that knows escape sequences, and so can be drawn on (terminfo(5): dumb knows none)."""
    return stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def size(count: int) -> str:
    """Bytes for people: 1536 -> "1.5 KiB"."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people: 0.25 -> "250 ms", 75 -> "1m15s"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"
