"""A line on the terminal while something takes longer than a second, gone when it is over.

with waiting("joining"):
    ...                 # after 1 s: "joining, 1 s", counting

Nothing is shown where stderr is no terminal. A thread draws it, so that it moves whatever the command is doing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from .output import can_move

AFTER_S = 1.0
STEP_S = 0.1
MARKS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PLAIN = "|/-\\"


@contextlib.contextmanager
def waiting(what: str, after_s: float = AFTER_S) -> Iterator[Callable[[], None]]:
    """Gives a function that ends it earlier, for when the first of what is waited for has come."""
    if not can_move(sys.stderr):
        yield lambda: None
        return
    over = threading.Event()
    drawer = threading.Thread(target=_draw, args=(what, over, after_s), name="shoal-waiting", daemon=True)

    def end() -> None:
        over.set()
        drawer.join()

    drawer.start()
    try:
        yield end
    finally:
        end()


def _draw(what: str, over: threading.Event, after_s: float) -> None:
    began = time.monotonic()
    if over.wait(after_s):
        return
    encoding = sys.stderr.encoding or "ascii"
    marks = MARKS if "utf" in encoding.lower() else PLAIN
    step = 0
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        while True:
            sys.stderr.write(f"\r\x1b[K{marks[step % len(marks)]} {what}, {time.monotonic() - began:.0f} s")
            sys.stderr.flush()
            step += 1
            if over.wait(STEP_S):
                break
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
