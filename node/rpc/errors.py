"""Errors as OpenAI's clients know them: one table from what happened to status, type and code.

{"error": {"message": "...", "type": "invalid_request_error", "param": "messages[0].role", "code": null}}
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import msgspec

from ...protocols.http.message import Header, HttpError
from ...providers.base import ErrorKind
from ..routing.attempt import route_header
from ..routing.no_answer import NoAnswer

_log = logging.getLogger(__name__)

JSON: Header = ("content-type", "application/json")
NO_RETRY: Header = ("x-should-retry", "false")


class Face(NamedTuple):
    """How a failure looks from outside. retry: whether asking again may help (openai's clients obey the header)."""

    status: int
    type: str
    code: str | None
    retry: bool = True


KINDS: dict[ErrorKind, Face] = {
    ErrorKind.UNAVAILABLE: Face(503, "server_error", "unavailable"),
    # The provider refused the node's credential, not the node its caller's: 401 would blame the wrong key.
    ErrorKind.AUTH: Face(502, "server_error", "provider_auth", retry=False),
    ErrorKind.QUOTA: Face(429, "insufficient_quota", "insufficient_quota", retry=False),
    ErrorKind.RATE_LIMITED: Face(429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorKind.OVERLOADED: Face(503, "server_error", "overloaded"),
    ErrorKind.UPSTREAM: Face(502, "server_error", "upstream_error"),
    ErrorKind.CONNECTION: Face(502, "server_error", "upstream_unreachable"),
    ErrorKind.FIRST_TOKEN_TIMEOUT: Face(504, "server_error", "first_token_timeout"),
    ErrorKind.IDLE_TIMEOUT: Face(504, "server_error", "idle_timeout"),
    ErrorKind.INTERRUPTED: Face(502, "server_error", "interrupted"),
    ErrorKind.DEADLINE: Face(504, "server_error", "deadline_exceeded", retry=False),
    ErrorKind.UNSUPPORTED: Face(400, "invalid_request_error", "unsupported", retry=False),
    ErrorKind.BAD_REQUEST: Face(400, "invalid_request_error", None),
    ErrorKind.CONTEXT_LENGTH: Face(400, "invalid_request_error", "context_length_exceeded"),
    ErrorKind.CONTENT_FILTER: Face(400, "invalid_request_error", "content_filter"),
    ErrorKind.CANCELLED: Face(503, "server_error", "cancelled"),
}

CODES: dict[str, Face] = {
    "model_not_found": Face(404, "invalid_request_error", "model_not_found", retry=False),
    "provider_not_found": Face(404, "invalid_request_error", "provider_not_found", retry=False),
    "no_embeddings": Face(501, "server_error", "no_embeddings", retry=False),
    "not_cached": Face(504, "invalid_request_error", "not_cached", retry=False),
    "node_full": Face(429, "rate_limit_error", "node_full"),
    "loop": Face(508, "server_error", "loop", retry=False),
    "internal": Face(500, "server_error", "internal"),
}
"""Where a failure has a finer name than its kind, this table goes before the other."""

HTTP: dict[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Types of errors that have only a status; others below 500 are `invalid_request_error`."""


class ApiError(Exception):
    """A request that the RPC itself refuses. param: the field at fault, in OpenAI's spelling (`messages[0].role`)."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[Header, ...] = (),
    ) -> None:
        super().__init__(status, message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers


class ShapedError(Exception):
    """An error that is rendered already, in the manner of another API than OpenAI's."""

    def __init__(self, status: int, headers: list[Header], body: bytes) -> None:
        super().__init__(status)
        self.rendered = status, headers, body


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param)


def refuse_encoded(coding: str) -> None:
    """Raises ApiError 415 for a body that is compressed (RFC 9110, 15.5.16)."""
    if coding.lower() not in ("", "identity"):
        message = "The body is compressed, and is read as it is here; leave Content-Encoding out."
        raise ApiError(415, message, code="unsupported_encoding", headers=(("accept-encoding", "identity"),))


def face_of(error: NoAnswer) -> Face:
    """The error's face: by its code where one is known, else by its kind."""
    named = CODES.get(error.code) if error.code is not None else None
    if named is not None:
        return named
    face = KINDS[error.kind]
    return face if error.code is None else face._replace(code=error.code)


def error_object(message: str, kind: str, param: str | None, code: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def stream_error(error: NoAnswer) -> dict[str, object]:
    """What a stream that has begun says before it ends."""
    face = face_of(error)
    return error_object(error.message, face.type, error.param, face.code)


def render(error: Exception) -> tuple[int, list[Header], bytes]:
    """Any exception as status, headers and body. Of one that nobody expected, its name is logged."""
    if isinstance(error, ShapedError):
        return error.rendered
    if isinstance(error, NoAnswer):
        face = face_of(error)
        headers = [JSON]
        if error.route:
            headers.append(("x-shoal-route", route_header(error.route)))
        if error.retry_after is not None:
            headers.append(("retry-after", str(max(1, math.ceil(error.retry_after)))))
        if not face.retry:
            headers.append(NO_RETRY)
        return face.status, headers, msgspec.json.encode(stream_error(error))
    if isinstance(error, ApiError | HttpError):
        kind = HTTP.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
        param, code = (error.param, error.code) if isinstance(error, ApiError) else (None, None)
        body = error_object(error.message, kind, param, code)
        return error.status, [JSON, *error.headers], msgspec.json.encode(body)
    _log.error("a request failed inside with %s", type(error).__name__, exc_info=_bare(error))
    body = error_object("The node failed inside; see its log.", "server_error", None, "internal")
    return 500, [JSON], msgspec.json.encode(body)


def _bare(error: Exception) -> Exception:
    """The place in the code without the message, which may hold what somebody asked."""
    return RuntimeError(type(error).__name__).with_traceback(error.__traceback__)
