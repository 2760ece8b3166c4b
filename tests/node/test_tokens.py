"""Access tokens as files, as a running node sees them, and `shoal token`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import trio
from shoal.node.commands.failures import CommandError
from shoal.node.commands.token_command import expiry
from shoal.node.tokens import PREFIX, TokenBook, TokenError, Tokens

from .fake_node import shoal


def test_only_a_digest_is_kept_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    book = TokenBook(tmp_path)
    token, secret = book.new("ci", models=("m1",), rpm=60, expires=2e9)
    assert secret.startswith(PREFIX)
    assert len(secret) > 40
    assert secret.removeprefix(PREFIX).encode() not in book.file.read_bytes()
    assert stat.S_IMODE(book.file.stat().st_mode) == 0o600
    assert TokenBook(tmp_path).all() == [token]


def test_a_name_belongs_to_one_token(tmp_path: Path) -> None:
    book = TokenBook(tmp_path)
    book.new("ci")
    with pytest.raises(TokenError, match="already"):
        book.new("ci")
    for name in ("", "x" * 65, "a\nb", "\x1b[2J", "\u202eic", "\u200b", " ci", "ci ", "\u00a0ci"):
        with pytest.raises(TokenError, match="printable"):
            book.new(name)


def test_a_running_node_knows_a_new_and_a_revoked_token_at_once(tmp_path: Path) -> None:
    book, tokens = TokenBook(tmp_path), Tokens(TokenBook(tmp_path))
    assert tokens.find("shoal_x") is None
    token, secret = book.new("ci")
    assert tokens.find(secret) == token
    assert tokens.find(secret + "x") is None
    book.new("other")
    assert tokens.find(secret) == token
    assert book.revoke(token.id) == token
    assert tokens.find(secret) is None
    with pytest.raises(TokenError, match="no token"):
        book.revoke("ci")


def test_a_token_ends_at_its_time(tmp_path: Path) -> None:
    book, tokens = TokenBook(tmp_path), Tokens(TokenBook(tmp_path))
    _, late = book.new("late", expires=1.0)
    _, good = book.new("good", expires=4e9)
    assert tokens.find(late) is None
    assert tokens.find(good) is not None


def test_a_damaged_file_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book, tokens = TokenBook(tmp_path), Tokens(TokenBook(tmp_path))
    _, secret = book.new("ci")
    assert tokens.find(secret) is not None
    book.file.write_bytes(b"{\xff")
    assert tokens.find(secret) is None
    assert "mended" in caplog.text
    with pytest.raises(TokenError, match="damaged"):
        book.new("more")


async def test_requests_a_minute_refill_evenly(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    book, tokens = TokenBook(tmp_path), Tokens(TokenBook(tmp_path))
    token, _ = book.new("ci", rpm=2)
    free, _ = book.new("free")
    assert [tokens.take(token), tokens.take(token)] == [0, 0]
    assert tokens.take(token) == pytest.approx(30)
    assert tokens.take(free) == 0
    await trio.sleep(30)
    assert tokens.take(token) == 0
    assert tokens.take(token) > 0
    await trio.sleep(3600)
    assert [tokens.take(token) > 0 for _ in range(3)] == [False, False, True]


async def test_usage_is_on_disk_after_a_while_and_at_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    book = TokenBook(tmp_path)
    token, _ = book.new("ci")
    tokens = Tokens(book)
    async with tokens.running():
        tokens.count(token, requests=1, prompt_tokens=7, completion_tokens=2)
        await trio.sleep(31)
        assert book.usage()[token.id].prompt_tokens == 7
        tokens.count(token, requests=1)
    assert Tokens(book).usage[token.id].requests == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("12h", 43200), ("30d", 30 * 86400), ("2w", 14 * 86400), ("1970-01-02", 86400 - 1000)]
)
def test_an_expiry_is_a_time_from_now_or_a_date(text: str, seconds: int) -> None:
    assert expiry(text, 1000.0) - 1000.0 == seconds


@pytest.mark.parametrize("text", ["", "soon", "5", "-1d", "2001-01-01"])
def test_what_is_no_time_ahead_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        expiry(text, 1e9)


async def test_the_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    made = await shoal("token", "new", "ci", "--models", "m1, m2", "--rpm", "60", "--expires", "30d", *data)
    secret = made.stdout.decode().strip()
    assert made.returncode == 0
    tokens = Tokens(TokenBook(tmp_path / "data"))
    found = tokens.find(secret)
    assert found is not None
    assert (found.models, found.rpm) == (("m1", "m2"), 60)
    tokens.count(found, requests=3, prompt_tokens=9)
    async with tokens.running():
        pass
    listed = json.loads((await shoal("token", "list", "--json", *data)).stdout)["tokens"]
    assert [(t["name"], t["requests"], t["expired"]) for t in listed] == [("ci", 3, False)]
    assert secret not in json.dumps(listed)
    table = (await shoal("token", "list", *data)).stdout.decode()
    assert "ci" in table
    assert "60/min" in table
    assert (await shoal("token", "new", "ci", *data)).returncode == 2
    empty = await shoal("token", "new", "any", "--models", " , ", *data)
    assert (empty.returncode, b"names no model" in empty.stderr) == (2, True), "not a token for everything"
    assert (await shoal("token", "revoke", "ci", *data)).returncode == 0
    gone = await shoal("token", "revoke", "ci", *data)
    assert gone.returncode == 2
    assert b"there is no token 'ci'" in gone.stderr
    assert os.listdir(tmp_path / "data")
