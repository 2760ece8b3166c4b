"""One conversation with an IPFS daemon's RPC, through ipfshttpclient 0.7.0. Synchronous: for a worker thread.

`connect()` of that version refuses every Kubo since 0.8 (VersionMismatch), so `Client` is made directly; its session is
not thread-safe, so each conversation has its own; `block.put` without options makes a CIDv0 of dag-pb; what it has no
method for (block/rm, routing/provide) goes through its own request function.

    with Daemon(address, timeout_s=10, dialects=Dialects()) as daemon:
        daemon.put(cid, block)
        daemon.pin(cid)
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from types import TracebackType
from typing import Any

from .cid import DAG_CBOR, CidError, cid_text, codec_of, parse_cid

PROVIDE_S = 20.0  # a walk of the DHT takes its time; the daemon announces by itself later, too

_CODECS = {True: "dag-cbor", False: "raw"}
# How daemons want to be told the codec: Kubo of today; js-ipfs and Kubo of some years ago; go-ipfs before that.
# Which one works shows in the CID that comes back, so it is tried, not read out of a version.
_DIALECTS: tuple[dict[str, dict[str, str]], ...] = (
    {"dag-cbor": {"cid-codec": "dag-cbor"}, "raw": {"cid-codec": "raw"}},
    {"dag-cbor": {"format": "dag-cbor", "version": "1"}, "raw": {"format": "raw", "version": "1"}},
    {"dag-cbor": {"format": "cbor"}, "raw": {"format": "raw"}},
)
_PROVIDE_PATHS = ("/routing/provide", "/dht/provide")  # since Kubo 0.14, and before


class DaemonAway(Exception):
    """The daemon did not answer; the text says how that showed."""


class DaemonRefused(Exception):
    """The daemon answered, and would not take this block, or named it otherwise."""


class Dialects:
    """What was learnt of a daemon, kept from one conversation to the next."""

    def __init__(self) -> None:
        self.put = 0
        self.provide = 0


class Daemon:
    """See the module. timeout_s: for each call. Every method raises DaemonAway or DaemonRefused."""

    def __init__(self, address: str, *, timeout_s: float, dialects: Dialects) -> None:
        import ipfshttpclient  # slow to import (it brings requests), and only who publishes needs it

        # urllib3 2 says at every call that it ignores a key which 0.7.0 passes.
        warnings.filterwarnings("ignore", "The 'strict' parameter is no longer needed", FutureWarning)
        self._client: Any = ipfshttpclient.Client(address, timeout=timeout_s)
        # The daemon is where its address says, whatever proxy the environment names (0.7.0 offers no setting).
        self._client._client._session_props["trust_env"] = False
        self._dialects = dialects

    def __enter__(self) -> Daemon:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, trace)

    def put(self, cid: bytes, data: bytes) -> None:
        """Store a block; the CID that the daemon answers must be ours."""
        codec = _CODECS[codec_of(cid) == DAG_CBOR]
        said: list[str] = []
        for turn in range(len(_DIALECTS)):
            dialect = (self._dialects.put + turn) % len(_DIALECTS)
            opts = {**_DIALECTS[dialect][codec], "mhtype": "sha2-256"}
            try:
                answer = _call(self._client.block.put, io.BytesIO(data), opts=opts)
                got = parse_cid(str(answer["Key"]))
            except DaemonRefused as error:
                said.append(str(error))
                continue
            except (CidError, KeyError):
                said.append("it named the block otherwise")
                continue
            if got == cid:
                self._dialects.put = dialect
                return
            said.append("it named the block otherwise")
        raise DaemonRefused(f"no way of putting a {codec} block worked: {'; '.join(dict.fromkeys(said))}")

    def pin(self, cid: bytes) -> None:
        """Keep a block and all that it links."""
        _call(self._client.pin.add, cid_text(cid))

    def unpin(self, cid: bytes) -> None:
        """Keep it no longer; that it was not pinned is well, too."""
        with contextlib.suppress(DaemonRefused):
            _call(self._client.pin.rm, cid_text(cid))

    def remove(self, cid: bytes) -> None:
        """Delete a block now, and not at the next garbage collection; that it is not there is well, too."""
        with contextlib.suppress(DaemonRefused):
            _call(self._client._client.request, "/block/rm", (cid_text(cid),), opts={"force": "true"})

    def provide(self, cid: bytes) -> bool:
        """Have the daemon announce a block now. False when it cannot, or not in time: it follows its own rule then."""
        for turn in range(len(_PROVIDE_PATHS)):
            chosen = (self._dialects.provide + turn) % len(_PROVIDE_PATHS)
            try:
                _call(self._client._client.request, _PROVIDE_PATHS[chosen], (cid_text(cid),), timeout=PROVIDE_S)
            except DaemonRefused:
                continue
            except DaemonAway:
                return False
            self._dialects.provide = chosen
            return True
        return False


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """One call to the daemon, its many exceptions made into two."""
    import ipfshttpclient.exceptions as faults
    import requests

    try:
        return function(*args, **kwargs)
    except (faults.ErrorResponse, faults.StatusError, faults.DecodingError) as error:
        raise DaemonRefused(_short(error)) from error
    # Timeouts while reading leak from 0.7.0 as requests' own ConnectionError.
    except (faults.CommunicationError, requests.RequestException, OSError) as error:
        raise DaemonAway(_short(error)) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def api_multiaddr(address: str) -> str:
    """A daemon's RPC address as a multiaddr, from one or from "http://127.0.0.1:5001". ValueError for anything else."""
    if re.fullmatch(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d{1,5}(/https?)?|/unix/.+", address):
        return address
    match = re.fullmatch(r"(https?)://(\[[0-9a-fA-F:]+\]|[^/:@\[\]]+):(\d{1,5})/?", address)
    if match is None:
        raise ValueError(
            f"{address!r} is not the address of an IPFS daemon's RPC: "
            'write it as "/ip4/127.0.0.1/tcp/5001" or "http://127.0.0.1:5001"'
        )
    scheme, host, port = match.groups()
    if host.startswith("["):
        kind, host = "ip6", host[1:-1]
    else:
        kind = "ip4" if re.fullmatch(r"\d+\.\d+\.\d+\.\d+", host) else "dns"
    return f"/{kind}/{host}/tcp/{port}/{scheme}"
