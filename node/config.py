"""The configuration's schema: every key, its type, its default and what it means. The one source of truth.

Reading a file is `config_file.py`, the environment is `config_env.py`; documentation and example files are rendered
from here by `config_doc.py`. What a provider's own table may hold is its provider's `Settings` (providers/registry.py).

    [rpc]
    listen = "127.0.0.1:8642"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from . import addresses
from .routing.routes import Target, option_faults
from .swarm import rules
from .swarm.rules import ShareRule


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line: file (or option, or variable), key, remedy."""


def said(description: str, **bounds: Any) -> Meta:
    return Meta(description=description, **bounds)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class NodeSection(Section, frozen=True):
    """This node."""

    data_dir: Annotated[str, said("Where identity, cache and weights live. Empty: the platform's place.")] = ""
    drain_s: Annotated[
        float, said("Seconds that requests in flight get to finish after SIGINT or SIGTERM.", ge=0, le=60)
    ] = 1.0
    measure_after_s: Annotated[
        float,
        said(
            "Seconds after the start until memory bandwidth is measured, once for a machine, in a quarter of a second "
            "of all cores; 0: never.",
            ge=0,
        ),
    ] = 60.0


class RpcSection(Section, frozen=True):
    """The local HTTP endpoint, OpenAI-compatible."""

    listen: Annotated[
        str, said("Address and port (0: a free one). Beyond loopback every request needs a token (`shoal token new`).")
    ] = "127.0.0.1:8642"
    hosts: Annotated[
        tuple[str, ...], said("Names that clients may put into Host, beside localhost and loopback addresses.")
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...], said('Web origins whose pages may ask this node, for example "https://chat.example".')
    ] = ()
    tls_cert: Annotated[
        str | None, said("The server's certificate with its chain, a PEM file. Set: the endpoint speaks HTTPS.")
    ] = None
    tls_key: Annotated[str | None, said("The certificate's private key, a PEM file; unset: it is in tls_cert.")] = None
    max_connections: Annotated[int, said("Connections open at once.", ge=1)] = 16_384
    max_requests_per_connection: Annotated[int, said("Requests on one connection before it is closed.", ge=1)] = (
        1_000_000
    )
    max_head_bytes: Annotated[int, said("Bytes of request line and headers together.", ge=1024)] = 32_768
    max_headers: Annotated[int, said("Number of headers in a request.", ge=1)] = 100
    max_body_bytes: Annotated[int, said("Bytes of a request's body.", ge=1024)] = 33_554_432
    head_timeout_s: Annotated[float, said("Seconds from a request's first byte to its last header.", gt=0)] = 10.0
    body_timeout_s: Annotated[float, said("Seconds for the whole body to arrive.", gt=0)] = 60.0
    idle_timeout_s: Annotated[float, said("Seconds that a connection may wait for its next request.", gt=0)] = 75.0
    write_timeout_s: Annotated[float, said("Seconds that a client may leave what was sent unread.", gt=0)] = 30.0


class SwarmSection(Section, frozen=True):
    """The peers of this node."""

    name: Annotated[str, said("Only nodes of the same swarm name talk.", min_length=1, max_length=64)] = "shoal"
    listen: Annotated[
        tuple[str, ...],
        said(
            'Addresses for peers, for example "/ip4/0.0.0.0/tcp/4642". Empty: loopback while alone or among nodes '
            "of this machine, every interface once a swarm beyond it is joined."
        ),
    ] = ()
    peers: Annotated[
        tuple[str, ...], said("Invites, or addresses that end in /p2p/PEER_ID, to connect to at every start.")
    ] = ()
    mdns: Annotated[
        bool, said("Find nodes of this swarm on the local network by itself, once it listens beyond this machine.")
    ] = True
    key: Annotated[
        str | None,
        said("Key of a private swarm, 64 hex digits. Who lacks it cannot even open a connection."),
    ] = None
    old_keys: Annotated[
        tuple[str, ...],
        said("Keys that this swarm had before, the last one first: answers from then are still found and opened."),
    ] = ()
    neighbours: Annotated[
        int, said("Peers that this node connects to by itself; 0: only those that are named to it.", ge=0, le=96)
    ] = 32
    silent_line_s: Annotated[
        float,
        said(
            "Seconds after which the kernel ends an idle line beyond this machine that delivers nothing; 0: its own, "
            "hours. While a request runs, 1.5 s of silence are enough.",
            ge=0,
            le=7200,
        ),
    ] = 6.0
    heard_adverts: Annotated[
        int, said("Nodes without a connection here of which it keeps what they offer; 0: none.", ge=0, le=1024)
    ] = 1024


class DhtSection(Section, frozen=True):
    """Finding models and answers at nodes that this one is not connected to."""

    enabled: Annotated[bool, said("Take part in the swarm's DHT.")] = True
    find_ms: Annotated[
        int, said("Milliseconds to look for a model that nobody known offers; 0: never.", ge=0, le=60_000)
    ] = 1500
    announce_every_s: Annotated[float, said("Seconds between two announcements of what is new here.", gt=0)] = 30.0
    announce_batch: Annotated[int, said("Answers announced at once.", ge=0, le=1024)] = 64
    announced_answers: Annotated[
        int, said("Answers that are kept announced, the newest; 0: none.", ge=0, le=65_536)
    ] = 1024
    answer_ttl_s: Annotated[
        float, said("Seconds that others keep where an answer is; told again after half of it.", ge=60, le=172_800)
    ] = 86_400.0
    model_ttl_s: Annotated[float, said("The same for the models that are shared.", ge=60, le=172_800)] = 3600.0
    refresh_s: Annotated[float, said("Seconds between two looks at who is near.", ge=1)] = 600.0
    withdraw_s: Annotated[
        float, said("Seconds that a node which stops takes back its announcements; the rest expires.", ge=0, le=30)
    ] = 1.0
    replicas: Annotated[int, said("Nodes that each announcement is given to.", ge=1, le=20)] = 8
    records: Annotated[int, said("Announcements kept for others, in all.", ge=1)] = 8192
    records_per_peer: Annotated[int, said("Announcements kept of one node.", ge=1)] = 2048
    providers_per_key: Annotated[int, said("Nodes kept for one model or answer.", ge=1, le=64)] = 16
    requests_per_s: Annotated[float, said("Questions of one peer a second; more are answered later.", gt=0)] = 20.0
    stores_per_minute: Annotated[float, said("Announcements taken from one peer a minute.", gt=0)] = 600.0
    streams_per_peer: Annotated[int, said("Streams that one peer may have open.", ge=1)] = 4
    message_bytes: Annotated[int, said("Bytes of one message.", ge=8192)] = 65_536


class RelaySection(Section, frozen=True):
    """Relays, for nodes that others cannot dial: those that this node uses, and whether it is one itself."""

    use: Annotated[bool, said("Take places behind relays when this node cannot be dialled from the internet.")] = True
    relays: Annotated[
        tuple[str, ...],
        said("Addresses of relays that end in /p2p/PEER_ID, to use in any case. Peers that relay are found without."),
    ] = ()
    places: Annotated[int, said("Relays to have a place behind at once.", ge=1, le=8)] = 2
    serve: Annotated[bool, said("Relay for others: carry what two nodes say that cannot reach each other.")] = False
    serve_for: Annotated[
        Literal["swarm", "anyone"], said("Who may have a place here: nodes of the swarm, or any libp2p node.")
    ] = "swarm"
    reservations: Annotated[int, said("Places given away at once.", ge=0)] = 64
    reservation_s: Annotated[float, said("Seconds that a place lasts unless it is renewed.", ge=10, le=86_400)] = 600.0
    circuits: Annotated[int, said("Connections carried at once.", ge=0)] = 64
    circuits_per_peer: Annotated[int, said("Those that one node makes, and those to one node.", ge=1)] = 16
    requests_per_minute: Annotated[
        int, said("Places and connections that one node may ask for; twice as many cost it its connection.", ge=1)
    ] = 120
    duration_s: Annotated[float, said("Seconds that one connection may last.", gt=0)] = 14_400.0
    circuit_bytes: Annotated[int, said("Bytes that one connection may carry, both ways together.", ge=65_536)] = 1 << 30
    bytes_per_s: Annotated[float, said("Bytes a second of all connections together; the rest waits.", ge=1024)] = (
        8_388_608.0
    )


class NatSection(Section, frozen=True):
    """NATs: finding out about this node's own, and getting through them without a relay."""

    confirmations: Annotated[int, said("Peers at different addresses that must agree on a verdict.", ge=1, le=16)] = 2
    observers: Annotated[int, said("Peers that are asked how they see this node.", ge=1, le=16)] = 4
    ask_again_s: Annotated[float, said("Seconds until they are asked again; at once when addresses change.", ge=5)] = (
        1800.0
    )
    dial_back_s: Annotated[float, said("Seconds that dialling a peer back for its question may take.", ge=1, le=30)] = (
        3.0
    )
    dial_backs_per_peer: Annotated[int, said("Dials back a minute for one peer, and for one address.", ge=0)] = 4
    dial_backs: Annotated[int, said("Dials back a minute for all peers; 0: nobody is dialled back.", ge=0)] = 30
    dial_backs_at_once: Annotated[int, said("Dials back under way at once.", ge=1)] = 4
    punch: Annotated[bool, said("Make a direct connection out of a relayed one, where both NATs allow it.")] = True
    punch_tries: Annotated[int, said("Tries before a peer is left on its relay.", ge=1, le=16)] = 3
    punch_gap_s: Annotated[float, said("Seconds between two tries, doubled with each.", ge=0.1, le=60)] = 1.0
    punch_s: Annotated[float, said("Seconds that one try may take.", ge=1, le=30)] = 4.0
    punch_again_s: Annotated[float, said("Seconds until a peer is tried anew at most, doubled from 30 on.", ge=10)] = (
        600.0
    )
    relayed_idle_s: Annotated[
        float, said("Seconds without a stream after which a relayed connection beside a direct one is closed.", ge=1)
    ] = 5.0


class RouterSection(Section, frozen=True):
    """Who is asked, in which order, and for how long."""

    provider: Annotated[str | None, said("Always ask this provider, unless the caller pins another.")] = None
    model: Annotated[str | None, said("The model asked for when the caller names none.")] = None
    order: Annotated[
        tuple[str, ...], said("Providers in the order they are tried, `peers` among them. Empty: the built-in order.")
    ] = ()
    forward: Annotated[bool, said("Ask peers when no provider of this node can answer.")] = True
    hops: Annotated[int, said("How often a request may be forwarded from peer to peer.", ge=0, le=8)] = 1
    deadline_s: Annotated[float, said("Seconds for a request in all.", gt=0)] = 300.0
    first_token_s: Annotated[float, said("Seconds that a provider gets until its first token.", gt=0)] = 60.0
    idle_s: Annotated[float, said("Seconds between two tokens before a provider counts as stalled.", gt=0)] = 30.0
    hedge: Annotated[
        bool,
        said("Ask a second provider, too, when the first is slower to begin than 95 % of its answers; both may cost."),
    ] = False
    join_wait_ms: Annotated[
        int,
        said(
            "Milliseconds that a generation may wait to learn who else in the swarm makes the same answer; 0: never "
            "asked. `cache.swarm_wait_ms = 0` switches it off, too.",
            ge=0,
            le=5_000,
        ),
    ] = 400
    join_near_ms: Annotated[
        int, said("Peers that always take longer (milliseconds) are asked for that once a minute only.", ge=0, le=5_000)
    ] = 100
    join_first_s: Annotated[
        float, said("Seconds that a peer's generation which was joined may be silent before it says anything.", gt=0)
    ] = 15.0
    provider_cache: Annotated[bool, said("get_llm_provider() gives the same object again for the same name.")] = True


class CacheSection(Section, frozen=True):
    """What is remembered."""

    enabled: Annotated[bool, said("Look answers up and keep them.")] = True
    mode: Annotated[
        Literal["cid", "sha256"], said("A request's key: its CIDv1, or the bare digest of the same bytes.")
    ] = "cid"
    cid_base: Annotated[Literal["base32"], said("The multibase that CIDs are printed in.")] = "base32"
    memory_bytes: Annotated[int, said("Bytes of answers kept in memory; 0: none.", ge=0)] = 16_777_216
    disk_bytes: Annotated[int, said("Bytes of answers kept on disk; the longest unused go.", ge=1_048_576)] = 1 << 30
    ttl_s: Annotated[float, said("Seconds that an answer stays good; 0: for ever.", ge=0)] = 0.0
    swarm_wait_ms: Annotated[
        int, said("Milliseconds for asking the caches of peers, beside the first attempt; 0: never.", ge=0, le=60_000)
    ] = 50
    publish: Annotated[bool, said("Offer cacheable answers to the swarm by their CID.")] = True
    trust: Annotated[
        Literal["any", "swarm"] | tuple[str, ...],
        said("Whose verified answers are believed: any node's, the swarm's members', or these peer ids'."),
    ] = "swarm"


class IpfsSection(Section, frozen=True):
    """Publishing to public IPFS, through a Kubo daemon of yours."""

    kubo_api: Annotated[
        str | None, said('Kubo\'s RPC, for example "/ip4/127.0.0.1/tcp/5001". Unset: nothing is published.')
    ] = None
    timeout_s: Annotated[float, said("Seconds for one call to Kubo.", gt=0)] = 10.0
    publish: Annotated[
        Literal["always", "asked"],
        said('Which answers go to Kubo: all that may, or those whose request says "x-shoal-publish: ipfs".'),
    ] = "always"
    private_swarms: Annotated[
        tuple[str, ...],
        said("Names of private swarms whose answers may go there, sealed with the swarm's key. Unnamed ones: never."),
    ] = ()
    dht_peers: Annotated[
        tuple[str, ...],
        said(
            "Nodes of an IPFS DHT to begin with, addresses that end in /p2p/PEER_ID. Set: this node announces its "
            "answers there itself, without a daemon, and looks for blocks there. Not in a private swarm."
        ),
    ] = ()
    dht_protocol: Annotated[
        str, said('That DHT\'s protocol id; the one of nodes on a local network is "/ipfs/lan/kad/1.0.0".')
    ] = "/ipfs/kad/1.0.0"
    dht_announced: Annotated[int, said("Answers kept announced there, the newest.", ge=0, le=65_536)] = 256


class LogSection(Section, frozen=True):
    """What the node says about itself, on stderr. Never a prompt, an answer or a key."""

    level: Annotated[Literal["debug", "info", "warning", "error"], said("The lowest level that is shown.")] = "info"
    format: Annotated[Literal["human", "json"], said("Lines for people, or one JSON object a line.")] = "human"


class TelemetrySection(Section, frozen=True):
    """Metrics and traces for others to read. `/metrics` of the RPC is always there; this sends them on."""

    otlp: Annotated[
        str | None,
        said(
            'An OpenTelemetry collector (OTLP over HTTP), for example "http://127.0.0.1:4318". Headers that it wants '
            "come from OTEL_EXPORTER_OTLP_HEADERS. Unset: nothing is sent."
        ),
    ] = None
    interval_s: Annotated[float, said("Seconds between two sends.", ge=1)] = 15.0
    max_waiting: Annotated[
        int, said("Requests whose spans are kept while the collector is away; more are dropped.", ge=1)
    ] = 2048


class EnginesSection(Section, frozen=True):
    """Inference engines that run on this machine already: `shoal doctor` and `shoal providers` look for them."""

    look: Annotated[bool, said("Look for them. Nobody but this machine is ever asked.")] = True
    addresses: Annotated[
        tuple[str, ...],
        said("Where to look, on this machine: what answers there says itself whether it is an engine, and which."),
    ] = ("127.0.0.1:11434", "127.0.0.1:8080", "127.0.0.1:8000", "127.0.0.1:30000", "127.0.0.1:1234")
    timeout_s: Annotated[float, said("Seconds that each of them gets; all are asked at once.", gt=0, le=30)] = 1.0
    compare_after_s: Annotated[
        float,
        said(
            "Seconds from the start until engines here with the same model are timed by a short answer; 0: never.", ge=0
        ),
    ] = 20.0


class Config(Section, frozen=True):
    """All of it. `providers` holds raw tables: the registry checks each against its provider's settings."""

    node: NodeSection = NodeSection()
    rpc: RpcSection = RpcSection()
    swarm: SwarmSection = SwarmSection()
    dht: DhtSection = DhtSection()
    relay: RelaySection = RelaySection()
    nat: NatSection = NatSection()
    router: RouterSection = RouterSection()
    cache: CacheSection = CacheSection()
    ipfs: IpfsSection = IpfsSection()
    log: LogSection = LogSection()
    telemetry: TelemetrySection = TelemetrySection()
    engines: EnginesSection = EnginesSection()
    routes: Annotated[
        dict[str, tuple[Target, ...]],
        said(
            'Model names that callers use, and who answers to them, in the order to try. "gpt-*" is a pattern, "*" '
            "takes every name without another route, `default` the requests that name no model."
        ),
    ] = {}
    share: Annotated[
        dict[str, ShareRule], said("[share.NAME], one each: limits on what peers get of a shared provider.")
    ] = {}
    providers: Annotated[
        dict[str, dict[str, Any]], said("[providers.NAME], one each. share = true offers it to peers.")
    ] = {}


SECTIONS: dict[str, type[Section]] = {
    "node": NodeSection,
    "rpc": RpcSection,
    "swarm": SwarmSection,
    "dht": DhtSection,
    "relay": RelaySection,
    "nat": NatSection,
    "router": RouterSection,
    "cache": CacheSection,
    "ipfs": IpfsSection,
    "log": LogSection,
    "telemetry": TelemetrySection,
    "engines": EnginesSection,
}


def check_kubo(address: str) -> None:
    """ValueError unless it is the address of a Kubo daemon's RPC."""
    from ..cache.kubo import api_multiaddr  # loaded by those who have one

    if api_multiaddr(address).startswith("/ip"):
        addresses.check_tcp(re.sub(r"/https?$", "", api_multiaddr(address)))


SECRETS = frozenset({"swarm.key", "swarm.old_keys"})
"""Keys whose values are never shown; in [providers.*] every key that speaks of a key, token, secret or password."""


def is_secret(key: str) -> bool:
    """Whether a value of this dotted key must not be shown."""
    if key in SECRETS:
        return True
    last = key.rpartition(".")[2]
    return key.startswith("providers.") and any(word in last for word in ("key", "token", "secret", "password"))


def faults(config: Config) -> Iterator[tuple[str, str]]:
    """What a type cannot say: (dotted key, what is wrong and what to write instead), in the order of the file."""
    try:
        addresses.parse_socket(config.rpc.listen)
    except ValueError as error:
        yield "rpc.listen", str(error)
    for index, text in enumerate(config.rpc.cors_origins):
        # As browsers send it; one that they never send would let nobody in, and say nothing.
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._:\[\]-]+", text):
            yield f"rpc.cors_origins[{index}]", f'{text!r} is not a web origin; write one like "https://chat.example"'
        elif re.fullmatch(r"http://.*:80|https://.*:443", text):
            yield f"rpc.cors_origins[{index}]", f"browsers leave the usual port out; write {text.rpartition(':')[0]!r}"
    if config.rpc.tls_key is not None and config.rpc.tls_cert is None:
        yield "rpc.tls_key", "is set without rpc.tls_cert; name the certificate, too"
    for index, text in enumerate(config.swarm.listen):
        try:
            addresses.check_listen(text)
        except ValueError as error:
            yield f"swarm.listen[{index}]", str(error)
    for index, text in enumerate(config.swarm.peers):
        try:
            addresses.check_peer(text)
        except ValueError as error:
            yield f"swarm.peers[{index}]", str(error)
    for index, text in enumerate(config.relay.relays):
        try:
            if not text.startswith("/") or addresses.relay_of(text) is not None:
                raise ValueError(f'{text!r} is not the address of a relay; write it like "{addresses.PEER_EXAMPLE}"')
            addresses.check_peer(text)
        except ValueError as error:
            yield f"relay.relays[{index}]", str(error)
    if config.swarm.key is not None and not addresses.is_swarm_key(config.swarm.key):
        yield "swarm.key", "wants 64 hex digits (32 bytes); make one with: openssl rand -hex 32"
    for index, text in enumerate(config.swarm.old_keys):
        if not addresses.is_swarm_key(text):
            yield f"swarm.old_keys[{index}]", "wants 64 hex digits (32 bytes), a key that the swarm had"
    if not isinstance(config.cache.trust, str):
        for index, text in enumerate(config.cache.trust):
            if not addresses.is_peer_id(text):
                yield f"cache.trust[{index}]", f"{text!r} is not a peer id; see `shoal peers`"
    for index, text in enumerate(config.ipfs.dht_peers):
        try:
            addresses.check_ipfs_peer(text)
        except ValueError as error:
            yield f"ipfs.dht_peers[{index}]", str(error)
    if not re.fullmatch(r"(/[\w.-]+)+", config.ipfs.dht_protocol):
        yield "ipfs.dht_protocol", 'wants a protocol id, for example "/ipfs/kad/1.0.0"'
    if config.ipfs.kubo_api is not None:
        try:
            check_kubo(config.ipfs.kubo_api)
        except ValueError as error:
            yield "ipfs.kubo_api", str(error)
    for name, route in config.routes.items():
        if not route:
            yield f"routes.{name}", "has no target, so nobody could answer; name a provider, or remove the route"
        for index, target in enumerate(route):
            for fault in option_faults(target.options):
                yield f"routes.{name}[{index}].options", fault
    if config.telemetry.otlp is not None and not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", config.telemetry.otlp):
        yield "telemetry.otlp", "wants the collector's address, for example http://127.0.0.1:4318"
    for index, text in enumerate(config.engines.addresses):
        try:
            addresses.check_loopback(text)
        except ValueError as error:
            yield f"engines.addresses[{index}]", str(error)
    yield from rules.faults(config.share)
    if config.router.first_token_s > config.router.deadline_s:
        yield "router.first_token_s", "is longer than router.deadline_s, so it could never pass; lower it"
