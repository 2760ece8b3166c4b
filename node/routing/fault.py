"""A fault in anybody's code as a failure that the walk knows, and as a line of the log without what was said."""

from __future__ import annotations

import logging

from ...providers.base import ErrorKind, ProviderError
from .ask import Ask
from .attempt import Attempt
from .candidate import Candidate

_log = logging.getLogger(__name__)


def provider_error(candidate: Candidate, caught: BaseException) -> ProviderError:
    """What a provider raised, as a ProviderError: the one inside a group, or a fault of the provider's own code."""
    leaf = caught
    while isinstance(leaf, BaseExceptionGroup):
        known = [e for e in leaf.exceptions if isinstance(e, ProviderError | BaseExceptionGroup)]
        leaf = known[0] if known else leaf.exceptions[0]
    if isinstance(leaf, ProviderError):
        return leaf
    _log.error("provider %s failed with %s", candidate.name, type(leaf).__name__, exc_info=without_text(leaf))
    return ProviderError(ErrorKind.UPSTREAM, f"{candidate.name} failed with {type(leaf).__name__}; see the node's log")


def without_text(error: BaseException) -> BaseException:
    """The same place in the code without the message, which may hold a prompt or a key."""
    bare = RuntimeError(type(error).__name__)
    bare.__traceback__ = error.__traceback__
    return bare


def stopped_short() -> ProviderError:
    """Nobody wants the answer any more."""
    return ProviderError(ErrorKind.CANCELLED, "The generation was cancelled before it ended.")


def broken_off(error: ProviderError) -> ProviderError:
    """The same failure of one that had begun to speak."""
    return ProviderError(ErrorKind.INTERRUPTED, error.message)


def too_slow(candidate: Candidate, attempt: Attempt, ask: Ask, *, spent: bool) -> ProviderError:
    """One of an attempt's limits has passed. spent: that of the whole request."""
    if spent:
        return ProviderError(ErrorKind.DEADLINE, "The request's time is spent; give it more or ask for less text.")
    if attempt.first_token_ms is not None:
        return ProviderError(ErrorKind.IDLE_TIMEOUT, f"{candidate.name} was silent for {ask.idle_s:g} s")
    return ProviderError(
        ErrorKind.FIRST_TOKEN_TIMEOUT, f"{candidate.name} gave no first token in {ask.first_token_s:g} s"
    )
