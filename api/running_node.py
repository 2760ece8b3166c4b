"""The node that runs on this machine, asked over its RPC."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import trio

from .engine import Said, no_text
from .errors import GenerationError, NotConfiguredError, ProviderFailedError, UnknownProviderError
from .node.rpc.errors import KINDS
from .node.state import RpcState
from .options import PIN_HEADER, Call
from .protocols.http.client import Client, ClientError, ConnectFailed, Response
from .providers.base import ErrorKind
from .providers.registry import canonical

_MAX_BYTES = 64 * 1024 * 1024
_LOOK_UP_S = 15.0
_GRACE_S = 10.0
"""The node keeps the deadline; it gets this much longer to say so."""

_KINDS = {face.code: kind for kind, face in KINDS.items() if face.code is not None}


class NodeGoneError(Exception):
    """Nothing was asked: the node has ended since it was found."""


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Shoal(msgspec.Struct):
    provider: str | None = None
    cid: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    shoal: _Shoal = msgspec.field(default_factory=_Shoal)


class _Provider(msgspec.Struct):
    name: str
    ready: bool
    reason: str = ""


class _Providers(msgspec.Struct):
    providers: list[_Provider]


async def answer(http: Client, node: RpcState, call: Call, *, use_cache: bool, deadline_s: float) -> Said:
    """The text. Raises NodeGoneError, UnknownProviderError, NotConfiguredError, GenerationError."""
    headers = [("content-type", "application/json")]
    if not use_cache:
        headers.append(("cache-control", "no-store"))
    if call.request.provider is not None and isinstance(call.body.get("provider"), dict):
        headers.append((PIN_HEADER, call.request.provider))
    body = msgspec.json.encode({**call.body, "stream": False})
    try:
        with trio.fail_after((call.timeout_s or deadline_s) + _GRACE_S):
            url = f"http://{node.address}/v1/chat/completions"
            async with http.request("POST", url, headers=headers, body=body) as response:
                data = await response.read(_MAX_BYTES)
                if response.status != 200:
                    raise _refusal(response, data)
    except trio.TooSlowError:
        raise GenerationError(f"the node at {node.address} did not answer in time", kind=ErrorKind.DEADLINE) from None
    except ConnectFailed as error:
        raise NodeGoneError from error
    except ClientError as error:
        raise GenerationError(f"the node broke off: {error}", kind=ErrorKind.CONNECTION) from error
    try:
        found = msgspec.json.decode(data, type=_Answer)
        text = found.choices[0].message.content
    except (msgspec.DecodeError, IndexError):
        raise GenerationError(f"what answers at {node.address} is not a Shoal node") from None
    if not text:
        raise no_text(found.shoal.provider)
    return Said(text, storable=found.shoal.cid is not None)


async def check(http: Client, node: RpcState, name: str | None) -> None:
    """Whether the node can use a provider (None: any). Raises like `answer`, and ProviderFailedError."""
    try:
        with trio.fail_after(_LOOK_UP_S):
            async with http.request("GET", f"http://{node.address}/shoal/v1/providers") as response:
                data = await response.read(_MAX_BYTES)
                if response.status != 200:
                    raise _refusal(response, data)
        listed = msgspec.json.decode(data, type=_Providers).providers
    except ConnectFailed as error:
        raise NodeGoneError from error
    except (ClientError, trio.TooSlowError, msgspec.DecodeError) as error:
        raise ProviderFailedError(f"the node at {node.address} does not tell its providers") from error
    if name is None:
        return  # who has no provider of its own may have peers
    rows = {row.name: row for row in listed}
    row = rows.get(canonical(name))
    if row is None:
        raise UnknownProviderError(f"the running node knows no provider {name!r}; it knows {', '.join(rows) or 'none'}")
    if not row.ready:
        raise ProviderFailedError(f"{row.name}: {row.reason}")


def _refusal(response: Response, data: bytes) -> Exception:
    try:
        error = msgspec.json.decode(data, type=_ErrorBody).error
    except msgspec.DecodeError:
        error = _Error(f"the node answered with status {response.status}")
    if error.code == "provider_not_found":
        return UnknownProviderError(error.message)
    if error.code == "provider_unavailable":
        return NotConfiguredError(error.message)
    kind = _KINDS.get(error.code or "") or (ErrorKind.BAD_REQUEST if response.status == 400 else ErrorKind.UNAVAILABLE)
    retry_after: Any = None
    with contextlib.suppress(ValueError):
        retry_after = float(response.header("retry-after") or "")
    return GenerationError(error.message, kind=kind, retry_after=retry_after)
