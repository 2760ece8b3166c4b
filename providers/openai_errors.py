"""What an OpenAI-compatible upstream's failure is: status, headers and body in, one typed error out.

Pure. Statuses and codes of OpenAI, OpenRouter, vLLM, llama.cpp, Ollama and TGI; sources are their error pages and what
they were seen to send. The upstream's own sentence is repeated only where it helps (a bad request, a wrong model) and
only when it quotes neither prompt nor key.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from .base import ErrorKind, GenerateRequest, ProviderError
from .quoting import quotable


class Failure(Struct):
    """The `error` object: `{"error": {"message", "type", "code", "metadata"}}`; code is a word or a number."""

    message: str | None = None
    type: str | None = None
    code: str | int | float | None = None
    metadata: dict[str, Any] | None = None

    @property
    def words(self) -> set[str]:
        """Its identifiers, lower case."""
        more = (self.metadata or {}).get("error_type")
        return {w.lower() for w in (self.type, self.code, more) if isinstance(w, str)}

    @property
    def limit_source(self) -> object:
        return (self.metadata or {}).get("limit_source")


class _Body(Struct):
    error: Failure | str | None = None
    message: str | None = None  # vLLM and others put the fields at the top
    type: str | None = None
    code: str | int | float | None = None
    detail: Any = None  # FastAPI


_decode = msgspec.json.Decoder(_Body).decode

_LENGTH_WORDS = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded", "string_above_max_length"}
)
_LENGTH_TEXT = re.compile(
    r"context (length|window|size)|maximum model length|prompt is too long|too many (input )?tokens"
    r"|input is too long|reduce the length|exceeds? the (available|maximum) context|`?inputs`? tokens \+ ",
    re.IGNORECASE,
)
_FILTER_WORDS = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "responsibleaipolicyviolation",
        "moderation",
        "content_moderation",
        "flagged",
    }
)
_MODEL_WORDS = frozenset(
    {"model_not_found", "model_not_available", "invalid_model", "not_found", "notfounderror", "not_found_error"}
)
_MODEL_TEXT = re.compile(
    r"\bmodel\b.{0,160}\b(not exist|not found|is not available)|not a valid model|no such model", re.IGNORECASE
)
_AUTH_WORDS = frozenset(
    {"invalid_api_key", "authentication_error", "authentication", "unauthorized", "permission_denied"}
)
_QUOTA_WORDS = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "payment_required", "insufficient_credits", "billing_error"}
)
_RATE_WORDS = frozenset({"rate_limit_exceeded", "rate_limit_error", "too_many_requests", "requests", "tokens"})
_BUSY_WORDS = frozenset(
    {"overloaded", "overloaded_error", "provider_overloaded", "engine_overloaded", "unavailable", "service_unavailable"}
)
_BAD_WORDS = frozenset({"invalid_request_error", "invalid_request", "badrequesterror", "invalid_argument"})

_OPENROUTER_IN_FLIGHT = "openrouter_in_flight_budget"


def from_response(
    status: int,
    header: Callable[[str], str | None],
    body: bytes,
    request: GenerateRequest,
    *,
    key: str | None = None,
    key_hint: str = "the key",
    now: Callable[[], float] = time.time,
) -> ProviderError:
    """The error of an answer whose status is not 2xx. `key_hint` names where the key comes from, never the key."""
    failure = parse(body)
    kind = kind_of(status, failure)
    retry_after = retry_after_of(header, now()) if kind in _WAITS else None
    return ProviderError(
        kind,
        _sentence(kind, status, failure, request, key, key_hint, retry_after),
        retry_after=retry_after,
        status=status,
    )


def in_band(failure: Failure | str, request: GenerateRequest, *, sent: bool, key: str | None = None) -> ProviderError:
    """The error that came inside a 200: alone, or as an event of the stream. After text was sent: INTERRUPTED."""
    failure = failure if isinstance(failure, Failure) else Failure(message=failure)
    status = int(failure.code) if isinstance(failure.code, (int, float)) and 400 <= failure.code < 600 else 0
    kind = kind_of(status, failure)
    if sent and kind is not ErrorKind.CONTENT_FILTER:
        return ProviderError(
            ErrorKind.INTERRUPTED, f"the upstream reported an error in mid-stream{_label(status, failure)}"
        )
    return ProviderError(kind, _sentence(kind, status, failure, request, key, "the key", None), status=status or None)


def parse(body: bytes) -> Failure:
    """The error object of a body; an empty one where the body is something else (a proxy's page, say)."""
    try:
        outer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Failure()
    if isinstance(outer.error, Failure):
        return outer.error
    detail = outer.detail if isinstance(outer.detail, str) else None
    return Failure(message=outer.error or outer.message or detail, type=outer.type, code=outer.code)


def names_model(failure: Failure) -> bool:
    """Whether it says that there is no such model, and not that there is no such path."""
    codes = failure.words & {"model_not_found", "model_not_available", "invalid_model"}
    return bool(codes) or _MODEL_TEXT.search(failure.message or "") is not None


def kind_of(status: int, failure: Failure) -> ErrorKind:
    """The kind of a failure; status 0 where only the error object is known."""
    words, text = failure.words, failure.message or ""
    if status in (0, 400, 413, 422) and (words & _LENGTH_WORDS or _LENGTH_TEXT.search(text)):
        return ErrorKind.CONTEXT_LENGTH
    if status in (0, 400, 403, 451) and (words & _FILTER_WORDS or "moderation" in text.lower()):
        return ErrorKind.CONTENT_FILTER
    if status == 402:
        return ErrorKind.RATE_LIMITED if failure.limit_source == _OPENROUTER_IN_FLIGHT else ErrorKind.QUOTA
    if status in (0, 403, 429) and words & _QUOTA_WORDS:
        return ErrorKind.QUOTA
    if status in (400, 422):
        if words & (_AUTH_WORDS - {"permission_denied"}):
            return ErrorKind.AUTH
        if words & _MODEL_WORDS or _MODEL_TEXT.search(text):
            return ErrorKind.UNAVAILABLE
    if status in _STATUSES:
        return _STATUSES[status]
    if status >= 500:
        return ErrorKind.UPSTREAM
    if status >= 400:
        return ErrorKind.BAD_REQUEST
    if status >= 300:
        return ErrorKind.UNAVAILABLE
    for known, kind in _BY_WORD:
        if words & known:
            return kind
    return ErrorKind.UPSTREAM


_STATUSES = {
    400: ErrorKind.BAD_REQUEST,
    401: ErrorKind.AUTH,
    403: ErrorKind.AUTH,
    404: ErrorKind.UNAVAILABLE,
    405: ErrorKind.UNAVAILABLE,
    407: ErrorKind.CONNECTION,
    408: ErrorKind.UPSTREAM,
    409: ErrorKind.UPSTREAM,
    410: ErrorKind.UNAVAILABLE,
    413: ErrorKind.CONTEXT_LENGTH,
    425: ErrorKind.OVERLOADED,
    429: ErrorKind.RATE_LIMITED,
    503: ErrorKind.OVERLOADED,
    529: ErrorKind.OVERLOADED,
}

_BY_WORD = (
    (_AUTH_WORDS, ErrorKind.AUTH),
    (_RATE_WORDS, ErrorKind.RATE_LIMITED),
    (_BUSY_WORDS, ErrorKind.OVERLOADED),
    (_MODEL_WORDS, ErrorKind.UNAVAILABLE),
    (_BAD_WORDS, ErrorKind.BAD_REQUEST),
)

_WAITS = frozenset({ErrorKind.RATE_LIMITED, ErrorKind.OVERLOADED, ErrorKind.UPSTREAM, ErrorKind.QUOTA})


def retry_after_of(header: Callable[[str], str | None], now: float) -> float | None:
    """Seconds to wait, by Retry-After (RFC 9110 10.2.3: seconds or a date), retry-after-ms, or X-RateLimit-Reset."""
    if (value := _number(header("retry-after-ms"))) is not None:
        return max(0.0, value / 1000)
    text = header("retry-after")
    if (value := _number(text)) is not None:
        return max(0.0, value)
    if text:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
        except ValueError:
            return None
    # OpenRouter gives the reset as a Unix time in milliseconds; others count in seconds or in words, which we leave.
    if (value := _number(header("x-ratelimit-reset"))) is not None and value > 1e11:
        return max(0.0, value / 1000 - now)
    return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e15 else None


def _sentence(
    kind: ErrorKind,
    status: int,
    failure: Failure,
    request: GenerateRequest,
    key: str | None,
    key_hint: str,
    retry_after: float | None,
) -> str:
    label = _label(status, failure)
    said = quotable(failure.message or "", private=request.texts, secrets=(key,))
    quoted = f": {said}" if said else ""
    wait = f"; try again in {retry_after:.0f} s" if retry_after else ""
    match kind:
        case ErrorKind.AUTH:
            return f"the upstream refused the key{label}; check {key_hint}"
        case ErrorKind.QUOTA:
            return f"the account's credit or quota is spent{label}; top it up or raise its limit"
        case ErrorKind.RATE_LIMITED:
            return f"the upstream's rate limit is reached{label}{wait or '; slow down or try again later'}"
        case ErrorKind.OVERLOADED:
            return f"the upstream is overloaded or still loading{label}{wait or '; try again later'}"
        case ErrorKind.CONTEXT_LENGTH:
            return f"the conversation is too long for the model{label}; shorten it or ask a model with a larger context"
        case ErrorKind.CONTENT_FILTER:
            return f"the upstream's content filter refused the request{label}"
        case ErrorKind.UNAVAILABLE if 300 <= status < 400:
            return f"the upstream redirects{label}; write the final address into base_url"
        case ErrorKind.UNAVAILABLE:
            return f"the upstream does not have this model or path{label}{quoted or '; check the model and base_url'}"
        case ErrorKind.BAD_REQUEST:
            return f"the upstream refused the request{label}{quoted}"
        case _:
            return f"the upstream failed{label}{wait}"


_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def _label(status: int, failure: Failure) -> str:
    code = failure.code if isinstance(failure.code, str) else failure.type
    words = ([f"HTTP {status}"] if status else []) + ([code] if code and _IDENTIFIER.fullmatch(code) else [])
    return f" ({', '.join(words)})" if words else ""
