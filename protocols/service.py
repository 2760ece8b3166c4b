"""What a session serves: the interface between the session and whoever knows what is said on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .call import IncomingCall
from .session_limits import Hello

if TYPE_CHECKING:
    from .session import Session


class Service(Protocol):
    """What a session serves. Nothing raised here harms the session, except ProtocolError from the ones that do not
    wait, which ends it with that reason.

    on_hello: the peer has said hello; it is not admitted before this returns. on_call, on_lookup: the result goes into
    the end or found frame; CallError becomes the error frame. on_note: something in passing, which nobody answers.
    """

    def on_hello(self, session: Session, hello: Hello, /) -> None: ...

    async def on_call(self, call: IncomingCall, method: str, params: Any, /) -> Any: ...
    def on_advert(self, session: Session, body: Any, /) -> None: ...
    def on_note(self, session: Session, name: str, data: Any, /) -> None: ...
    async def on_lookup(self, session: Session, body: Any, /) -> Any: ...
