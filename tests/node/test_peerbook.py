"""The book of peers: remembered over restarts, bounded, and never a reason not to start."""

from shoal.node.swarm import peerbook
from shoal.node.swarm.peerbook import PeerBook, Remembered
from shoal.protocols.peer_id import Identity

ONE, TWO, THREE = (Identity.from_seed(bytes([n]) * 32).peer_id for n in (1, 2, 3))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


async def test_peers_are_remembered_over_a_restart_the_last_good_first(tmp_path):
    clock = Clock()
    async with PeerBook(tmp_path / "peers.db", clock=clock).running() as book:
        await book.remember(ONE, ["/ip4/192.0.2.1/tcp/1"], "home")
        await book.remember(TWO, ["/ip4/192.0.2.2/tcp/1"], "home")
        await book.remember(THREE, ["/ip4/192.0.2.3/tcp/1"], "away")
        await book.remember(ONE, ["/ip4/192.0.2.9/tcp/1"], "home")
    async with PeerBook(tmp_path / "peers.db").running() as book:
        assert await book.known("home") == [
            Remembered(ONE, ("/ip4/192.0.2.9/tcp/1",), 1004.0),
            Remembered(TWO, ("/ip4/192.0.2.2/tcp/1",), 1002.0),
        ]


async def test_a_forgotten_peer_is_gone(tmp_path):
    async with PeerBook(tmp_path / "peers.db").running() as book:
        await book.remember(ONE, ["/ip4/192.0.2.1/tcp/1"], "home")
        await book.forget(ONE, "home")
        assert await book.known("home") == []


async def test_the_book_does_not_grow_for_ever(monkeypatch, tmp_path):
    monkeypatch.setattr(peerbook, "MAX_PEERS", 2)
    async with PeerBook(tmp_path / "peers.db", clock=Clock()).running() as book:
        for peer in (ONE, TWO, THREE):
            await book.remember(peer, ["/ip4/192.0.2.1/tcp/1"] * 50, "home")
        known = await book.known("home")
        assert [entry.peer for entry in known] == [THREE, TWO]
        assert len(known[0].addresses) == peerbook.MAX_ADDRESSES


async def test_a_damaged_book_is_set_aside_and_a_new_one_begun(tmp_path, caplog):
    path = tmp_path / "peers.db"
    path.write_bytes(b"this is no database, and it is longer than a header of one hundred bytes" * 10)
    async with PeerBook(path).running() as book:
        assert await book.known("home") == []
        await book.remember(ONE, [], "home")
    assert len(list(tmp_path.glob("peers.db.damaged-*"))) == 1
    assert "damaged" in caplog.text
