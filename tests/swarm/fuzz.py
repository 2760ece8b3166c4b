"""Random bytes for everything that reads what a peer sends: frames, parts, adverts, rosters, records, invites, digests.

    python -m tests.swarm.fuzz --count 1000000 --seed 1

Inputs are well-formed messages, broken in a few places, and plain noise. Each must be read or refused by the error that
its reader is documented to raise, and the process must not grow. The first that does something else is printed, with
the seed and the number that make it again.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from shoal.cache.record import RecordRefused, verify
from shoal.node.swarm.advert import DOMAIN, AdvertBook, AdvertRefused, AdvertWriter, verified
from shoal.node.swarm.gossip import MAX_PULLED
from shoal.node.swarm.invite import Invite, InviteError
from shoal.node.swarm.joining import JoinParams, LeadParams
from shoal.node.swarm.load import Digest
from shoal.node.swarm.roster import ROSTER_DOMAIN, Owner, RosterRefused, read_roster, read_ticket
from shoal.node.swarm.serving import GenerateParams
from shoal.protocols.framing import (
    ADVERT,
    CALL,
    DELTA,
    MAX_FRAME_BYTES,
    NOTE,
    PART,
    Assembly,
    FrameParser,
    ProtocolError,
    encode_body,
    frame,
    parts,
)
from shoal.protocols.items import TooManyItems, check_items
from shoal.protocols.p2p import autonat, dcutr_message, kad_message
from shoal.protocols.p2p.circuit_message import (
    Hop,
    HopKind,
    Limit,
    Status,
    Stop,
    StopKind,
    decode_hop,
    decode_stop,
    encode,
)
from shoal.protocols.p2p.dcutr_message import CONNECT, HolePunch
from shoal.protocols.p2p.errors import ProtocolViolation
from shoal.protocols.p2p.kad_message import Entry, Message
from shoal.protocols.p2p.kad_statement import PROVIDE, Statement, StatementRefused, seal, unseal
from shoal.protocols.p2p.reachability import MAX_ADDRESSES, Facts, worth_dialling
from shoal.protocols.peer_id import Identity
from shoal.providers.base import GenerateRequest

from tests.cache.answers import answer
from tests.node.fakes_swarm import offering

ME = Identity.from_seed(b"\x01" * 32)
ADDRESS = f"/ip4/192.0.2.7/tcp/4642/p2p/{ME.peer_id}"
KEY = b"\x12\x20" + bytes(32)
GROWTH_BYTES = 64 * 2**20
HEADS = (0x90, 0x80, 0xC0, 0xDC, 0xDD, 0xDF, 0xC6, 0xFF)  # of empty and of large containers

Reader = Callable[[bytes], object]


def frames(data: bytes) -> None:
    parser = FrameParser()
    middle = len(data) // 2
    assemblies: dict[int, Assembly] = {}
    for piece in (data[:middle], data[middle:]):
        for kind, call_id, body, _ in parser.feed(piece):
            if kind == PART:
                assembly = assemblies.get(call_id) or assemblies.setdefault(call_id, Assembly.begin(body))
                if assembly.add(body):
                    assemblies.pop(call_id).body()
    assert len(parser._rest) <= MAX_FRAME_BYTES + 4


def whole_body(data: bytes) -> None:
    """What came in parts: counted, then decoded."""
    assembly = Assembly(CALL, len(data))
    assembly._buffer += data
    assembly.body()


def advert(data: bytes) -> None:
    """Signed whatever it is: the decoder behind the signature is what is tried."""
    verified([data, ME.sign(DOMAIN + data)], swarm="test", now=time.time())


def relayed(data: bytes) -> None:
    told: Any = msgspec.msgpack.decode(data)
    book = AdvertBook("test")
    for wire in told[:MAX_PULLED] if isinstance(told, list) else ():
        book.take_relayed(wire, brought_by=ME.peer_id)


def roster(data: bytes) -> None:
    read_roster([data, ME.sign(ROSTER_DOMAIN + data)], swarm="test", owner=ME.peer_id)


def ticket(data: bytes) -> None:
    read_ticket(msgspec.msgpack.decode(data), swarm="test", owner=ME.peer_id, now=time.time())


def record(data: bytes) -> None:
    verify(data)


def invite(data: bytes) -> None:
    Invite.parse(data.decode("latin-1"))


def generate(data: bytes) -> None:
    msgspec.convert(msgspec.msgpack.decode(data), GenerateParams)


def joining(data: bytes) -> None:
    params = msgspec.msgpack.decode(data)
    asked = msgspec.convert(params, LeadParams, builtin_types=(bytes,))
    assert 1 <= len(asked.request) <= 64
    assert len(asked.lost) <= 8
    msgspec.convert(params, JoinParams, builtin_types=(bytes,))


def dht_message(data: bytes) -> None:
    message = kad_message.decode(data)
    assert len(message.closer) <= kad_message.MAX_PEERS
    assert len(message.providers) <= kad_message.MAX_PEERS


def dht_statement(data: bytes) -> None:
    """Signed whatever it is: the decoder is what is tried, and that nothing wrong in it is believed."""
    said = unseal(data + ME.sign(PROVIDE + data), PROVIDE, swarm="test", key=KEY, now=time.time())
    assert said.peer == ME.peer_id


def hole(data: bytes) -> None:
    message = dcutr_message.decode(data)
    assert len(message.pairs) <= dcutr_message.MAX_PAIRS
    assert len(worth_dialling(message.pairs, mine=["11.22.33.1"])) <= MAX_ADDRESSES


def reach(data: bytes) -> None:
    for kind in (autonat.Ask, autonat.Seen, autonat.DialledBack):
        autonat.decode(data, kind)


def items(data: bytes) -> None:
    check_items(data, 100)


REFUSALS = (
    ProtocolError,
    ProtocolViolation,
    AdvertRefused,
    RosterRefused,
    RecordRefused,
    InviteError,
    TooManyItems,
    ProtocolViolation,
    StatementRefused,
    msgspec.MsgspecError,
    UnicodeDecodeError,
    RecursionError,
)


def samples() -> list[tuple[Reader, bytes]]:
    """Every reader with a message that it takes."""
    pen = Owner(ME, "test")
    body, signature = AdvertWriter(ME, "test").write(offering(addresses=(ADDRESS,)))
    params = {"request": GenerateRequest.of("hot?"), "deadline_ms": 5, "hops": 0, "seen": [ME.peer_id]}
    facts = Statement(swarm="test", peer=ME.peer_id, key=KEY, created=time.time(), ttl_s=1e6, addresses=(ADDRESS,))
    statement = seal(ME, facts)[:-64]
    call = frame(CALL, 1, ["generate", params])
    large = b"".join(parts(DELTA, 3, encode_body(["x" * 70_000, [1, {"a": None}]])))
    return [
        (frames, frame(ADVERT, 0, [body, signature]) + call + frame(NOTE, 0, ["news", [[ME.peer_id, 7]]])),
        (frames, large),
        (whole_body, encode_body(["generate", params])),
        (advert, body),
        (relayed, encode_body([[body, signature]])),
        (roster, pen.first_roster(ME.peer_id)[0]),
        (ticket, encode_body(pen.ticket())),
        (record, answer().block),
        (invite, Invite(swarm="test", addrs=(ADDRESS,), key=b"k" * 32).text.encode()),
        (generate, encode_body(params)),
        (joining, encode_body({"request": KEY, "lost": [ME.peer_id], "deadline_ms": 60_000})),
        (decode_hop, encode(Hop(HopKind.STATUS, b"peer", 7, (b"address",), Limit(3, 4), Status.OK))),
        (decode_stop, encode(Stop(StopKind.CONNECT, b"peer", Limit(3, 4)))),
        (dht_message, kad_message.encode(Message(1, KEY, b"v", (Entry(b"i", (b"a",)),), (Entry(b"j", (), b"s"),)))),
        (dht_statement, statement),
        (hole, dcutr_message.encode(HolePunch(CONNECT, (("11.22.33.1", 4001), ("2a00::1", 9)), Facts(nat="none")))),
        (reach, msgspec.msgpack.encode({"port": 4001, "ip": "11.22.33.1", "ok": True, "why": "no answer"})),
        (Digest.decode, Digest(running=3).encode()),
        (items, encode_body([[1, "x", b"y"], {"a": 2.5}])),
    ]


def broken(data: bytes, rng: random.Random) -> bytes:
    """The message with something done to it, or noise in its place."""
    made = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(6):
            case 0 if made:
                made[at % len(made)] = rng.randrange(256)
            case 1 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case 2:
                made[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                del made[at : at + rng.randrange(1, 65)]
            case 4:
                made[at:at] = bytes([rng.choice((0x90, 0x80, 0xC0, 0xDC, 0xDD, 0xDF, 0xC6, 0xFF))]) * rng.randrange(
                    1, 65
                )
            case _:
                made = made[:at]
    return bytes(made) if rng.randrange(20) else rng.randbytes(rng.randrange(200))


def run(count: int, seed: int) -> Counter[str]:
    """Feed `count` inputs; how many were taken and refused, by reader. AssertionError for the first that fails."""
    known, told = samples(), Counter[str]()
    for reader, data in known:
        reader(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        reader, data = known[number % len(known)]
        data = broken(data, rng)
        try:
            reader(data)
            told[f"{reader.__name__} taken"] += 1
        except REFUSALS:
            told[f"{reader.__name__} refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, number {number}: {reader.__name__}({data!r}): {error!r}") from error
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < GROWTH_BYTES, f"the process grew by {grown} bytes"
    return told


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--count", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    chosen = options.parse_args()
    began = time.monotonic()
    try:
        told = run(chosen.count, chosen.seed)
    except AssertionError as failure:
        sys.exit(str(failure))
    rates = ", ".join(f"{name} {number}" for name, number in sorted(told.items()))
    print(f"{chosen.count} inputs, seed {chosen.seed}, {time.monotonic() - began:.0f} s: {rates}")


if __name__ == "__main__":
    main()
