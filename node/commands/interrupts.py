"""What Ctrl-C does to the `shoal` command, from its first line to its last: nothing here imports more than it must.

Before a command runs nothing is open that would want closing, and after it everything is written: an interrupt then
ends the process at once. In between it is Python's KeyboardInterrupt, but for imports: what is raised while a module
is loaded may end up in importlib's own callbacks, where it is printed and lost, so an interrupt then ends the process
as well (tests/node/test_commands_terminal.py).
"""

from __future__ import annotations

# What `signal` is made of: `signal` itself imports enum, which takes longer than all that is done here.
import _signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

STATUS = 130
"""What shells make of a process that SIGINT ended (exit_codes.py)."""


def _leave(*_: object) -> None:
    os._exit(STATUS)


def _raise(number: int, frame: FrameType | None) -> None:
    inside = frame
    while inside is not None:
        if inside.f_code.co_filename == "<frozen importlib._bootstrap>":
            _leave()
        inside = inside.f_back
    _signal.default_int_handler(number, frame)


def _handle(handler: object) -> None:
    """Who started us may have them ignored, as a shell does for a job in the background: that stays."""
    if _signal.getsignal(_signal.SIGINT) in (_leave, _raise, _signal.default_int_handler):
        _signal.signal(_signal.SIGINT, handler)


def end_the_process() -> None:
    """Before a command, and after it."""
    _handle(_leave)


def are_raised() -> None:
    """While a command runs."""
    _handle(_raise)


class LeftToTrio:
    """While trio runs: it puts its own handler in the place of Python's, and only of Python's."""

    def __enter__(self) -> None:
        self.before = _signal.getsignal(_signal.SIGINT)
        _handle(_signal.default_int_handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _handle(self.before)
