"""What commands print: JSON for programs, tables for people. rich is imported only for the latter."""

from __future__ import annotations

import os
import sys
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
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def without_controls(text: str) -> str:
    """Text without control characters but newline and tab: a model's or peer's words must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def console(*, stderr: bool = False) -> Console:
    """Where tables and progress go. Wide enough not to break ids when the output is not a terminal."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=200)
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Rows under their headings, or a sentence when there are none. Values are plain text, never markup."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    out = console()
    if not rows:
        out.print(Text(empty))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(without_controls(str(value))) for value in row))
    out.print(table)


def print_facts(facts: Iterable[tuple[str, Any]], end: str = "\n") -> None:
    """Names and values, one a line; a value is never broken, so that it can be copied. end: of each line."""
    rows = [(name, without_controls(str(value)).replace("\n", " ")) for name, value in facts]
    width = max((len(name) for name, _ in rows), default=0)
    dim, plain = ("\x1b[2m", "\x1b[0m") if in_colour(sys.stdout) else ("", "")
    print_text("".join(f"{dim}{name:<{width}}{plain}  {value}{end}" for name, value in rows))


def in_colour(stream: TextIO) -> bool:
    """Whether escape sequences are welcome (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


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
