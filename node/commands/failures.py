"""From an exception to one line on stderr and an exit status. No traceback reaches a user without --debug."""

from __future__ import annotations

import contextlib
import sys
import traceback

from .exit_codes import ExitCode


class CommandError(Exception):
    """A command cannot do what was asked. message: one line with the next step; code: the exit status."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class PipeClosedError(Exception):
    """Who read our output is gone; a BrokenPipeError under another name."""


def only(error: BaseException) -> BaseException:
    """The one exception that matters in a nursery's group: an interrupt before all others, else the first."""
    while isinstance(error, BaseExceptionGroup):
        interrupts = error.subgroup(KeyboardInterrupt)
        error = (interrupts or error).exceptions[0]
    return error


def _known(error: BaseException) -> tuple[str, ExitCode] | None:
    """What is said about an error that we raise ourselves; None for a fault of our own."""
    if isinstance(error, CommandError):
        return error.message, error.code
    # By name, so that a command loads only what it uses: the class is there if the error is.
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("shoal.")}
    if names & {"ConfigError", "DataDirError", "IdentityError", "StateError", "LockError", "RegistryError"}:
        return str(error), ExitCode.USAGE
    if "InviteError" in names:
        return str(error), ExitCode.USAGE
    if "ListenError" in names:
        return str(error), ExitCode.PORT_TAKEN
    if "CarError" in names:
        return str(error), ExitCode.NO_ANSWER
    if "StoreError" in names:
        return str(error), ExitCode.INTERNAL
    if "AlreadyRunningError" in names:
        return str(error), ExitCode.ALREADY_RUNNING
    return None


def report(error: BaseException, *, debug: bool) -> ExitCode:
    """Say what went wrong, and give the exit status for it."""
    error = only(error)
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, BrokenPipeError | PipeClosedError):
        from .output import nothing_more

        nothing_more()
        return ExitCode.PIPE_CLOSED
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    known = _known(error)
    if known is not None:
        say(known[0])
        return known[1]
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{(error.strerror or str(error)).lower()}")
        return ExitCode.NO_ANSWER
    if isinstance(error, UnicodeEncodeError):
        say("an argument, or a path, is not UTF-8 text")
        return ExitCode.USAGE
    if not debug:
        say(f"a fault of Shoal's own ({type(error).__name__}: {error}); run it again with --debug to see where")
    return ExitCode.INTERNAL


def say(message: str) -> None:
    """One line on stderr, without what would steer a terminal; that nobody reads it is no reason to fail."""
    from .output import without_controls

    with contextlib.suppress(OSError):
        print(f"shoal: {without_controls(' '.join(message.split()))}", file=sys.stderr, flush=True)
