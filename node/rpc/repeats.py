"""Questions that were answered from memory before, so that the same bytes need not be read and named again.

A hit in memory takes less time to find than its request takes to parse, to bring into canonical form and to hash. What
is kept here saves that, and the writing of the answer's JSON; whether there is an answer still is asked each time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from msgspec import Struct

from ...cache.key import Key
from ...protocols.http.message import Header
from ..routing.recording import Found
from .chat_answer import headers_of_record, new_id, tail_of_record
from .chat_request import ChatCall

MAX_BODY_BYTES = 8192
MAX_TAIL_BYTES = 32768

_CHANGING = ("x-shoal-provider", "x-shoal-timeout-ms", "x-shoal-publish", "cache-control")
"""The headers that `chat_request` reads."""

Question = tuple[bytes, ...]


class Repeat(Struct):
    """A question and the answer that it had. tail: the answer's JSON behind its id and time."""

    call: ChatCall
    key: Key
    cid: str
    tail: bytes
    headers: list[Header]

    @property
    def body(self) -> bytes:
        return b'{"id":"%b","object":"chat.completion","created":%d,%b' % (new_id().encode(), time.time(), self.tail)


class Repeats:
    """The latest `size` of them; the oldest goes first. At most a few tens of megabytes, usually one."""

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._known: dict[Question, Repeat] = {}

    def find(self, body: bytes, headers: Mapping[str, str]) -> tuple[Question, Repeat | None]:
        question: Question = (body,)
        for name in _CHANGING:
            if name in headers:
                question += (headers[name].encode("latin-1") + name.encode(),)
        return question, self._known.get(question)

    def keep(self, question: Question, call: ChatCall, key: Key, found: Found, request: str | None) -> Repeat:
        """The answer to a question that was found in memory; remembered unless it is long."""
        repeat = Repeat(call, key, found.cid, tail_of_record(found, request), headers_of_record(found))
        if len(question[0]) > MAX_BODY_BYTES or len(repeat.tail) > MAX_TAIL_BYTES:
            return repeat
        self._known.pop(question, None)
        if len(self._known) >= self._size:
            del self._known[next(iter(self._known))]
        self._known[question] = repeat
        return repeat
