"""How a command asks the running node: it is found by rpc.json in the data directory and asked over its RPC.

async with connect(data_dir) as node:
    status = await node.get("/shoal/v1/status")
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from ...protocols.http.client import Client, ClientError, ConnectFailed
from .. import lock, paths
from ..state import RpcState, running_rpc
from .cli import trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .waiting import waiting

ANSWER_S = 30.0
"""Seconds for the node to answer a look-up; it has everything at hand."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024

NO_NODE = "no node is running here; start one with `shoal run`, or name its --config or --data-dir"


def find_data_dir(option: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The data directory that a command means; the configuration is read only where it has to say. ConfigError."""
    if option is not None or environ.get("SHOAL_DATA_DIR"):
        return paths.data_dir(option, environ)
    from ..config_file import configured_data_dir

    return configured_data_dir(environ)


def find_node(data_dir: Path | None) -> RpcState:
    """The node that runs on this data directory. CommandError when none does, or it is not up yet."""
    data = find_data_dir(data_dir)
    state = running_rpc(data)
    if state is not None:
        return state
    try:
        paths.lock_file(data).stat()
    except PermissionError:
        message = f"{data}: this user may not look into it; the node there is asked by the user that runs it"
        raise CommandError(message, ExitCode.REFUSED) from None
    except OSError:
        pass
    pid = lock.holder(data)
    if pid is not None:
        raise CommandError(f"the node here (pid {pid}) is starting or ending; try again in a moment", ExitCode.NO_NODE)
    raise CommandError(NO_NODE, ExitCode.NO_NODE)


class Node:
    """The running node. Every method raises CommandError with what the node said."""

    def __init__(self, state: RpcState, http: Client) -> None:
        self.state, self.http = state, http
        self.url = f"http://{state.address}"

    async def get(self, path: str) -> Any:
        """The JSON behind a path."""
        return self.json(await self.ask("GET", path))

    async def post(self, path: str, body: Any) -> Any:
        """The JSON that comes back for a JSON body."""
        return self.json(await self.ask("POST", path, msgspec.json.encode(body)))

    async def raw(self, path: str) -> bytes:
        """The bytes behind a path."""
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = [("content-type", "application/json")] if body is not None else []
        try:
            with waiting("waiting for the node"), trio.fail_after(ANSWER_S):
                async with self.http.request(method, self.url + path, headers=headers, body=body) as response:
                    data = await response.read(MAX_ANSWER_BYTES)
                    if response.status >= 400:
                        raise refusal(response.status, data)
                    return data
        except trio.TooSlowError:
            raise CommandError(
                f"the node at {self.state.address} does not answer; stop it (pid {self.state.pid}) and start it again",
                ExitCode.NO_NODE,
            ) from None
        except ClientError as error:
            raise lost(self.state, error) from None

    @staticmethod
    def json(data: bytes) -> Any:
        found: Any = None
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = msgspec.json.decode(data)
        if not isinstance(found, dict):  # a node answers with objects only
            raise CommandError("what answered here is not a Shoal node", ExitCode.NO_NODE)
        return found


def lost(state: RpcState, error: ClientError) -> CommandError:
    """What a broken connection to the node means for the one who asked."""
    if isinstance(error, ConnectFailed):
        return CommandError(NO_NODE, ExitCode.NO_NODE)
    return CommandError(f"the node at {state.address} broke off: {error}", ExitCode.NO_ANSWER)


def refusal(status: int, body: bytes) -> CommandError:
    """An error answer (OpenAI's JSON) as what a command ends with."""
    return CommandError(error_message(body) or f"the node answered with status {status}", _code(status))


def error_message(body: bytes | str) -> str | None:
    """`error.message` of OpenAI's error JSON; None when the body is something else."""
    try:
        message = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return message if isinstance(message, str) else None


def _code(status: int) -> ExitCode:
    if status in (400, 413, 422):
        return ExitCode.USAGE
    if status in (401, 403, 409):
        return ExitCode.REFUSED
    return ExitCode.NO_ANSWER


@contextlib.asynccontextmanager
async def connect(data_dir: Path | None) -> AsyncIterator[Node]:
    """The running node, with a client to ask it. Proxies of the environment are never used: it is this machine."""
    state = find_node(data_dir)
    http = Client(environ={})
    async with http.running():
        yield Node(state, http)


def look_up(data_dir: Path | None, path: str) -> Any:
    """For commands that ask one thing: the JSON behind a path of the running node."""
    find_node(data_dir)

    async def ask() -> Any:
        async with connect(data_dir) as node:
            return await node.get(path)

    return trio_run(ask)
