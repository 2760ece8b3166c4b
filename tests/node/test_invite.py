"""Invites: one line that survives mail programs, and clear words for what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.node.swarm.invite import MAX_CHARS, Invite, InviteError
from shoal.protocols.peer_id import Identity

ONE, TWO = (Identity.from_seed(bytes([n]) * 32).peer_id for n in (1, 2))
ADDRS = (f"/ip4/192.0.2.7/tcp/4642/p2p/{ONE}", f"/dns4/node.example/tcp/4642/p2p/{ONE}", f"/ip6/::1/tcp/1/p2p/{TWO}")
KEY = bytes(range(32))
INVITE = Invite(swarm="home", addrs=ADDRS, key=KEY)


@given(
    st.none() | st.text(min_size=1, max_size=64).filter(lambda s: s.isprintable()),
    st.lists(st.sampled_from(ADDRS), min_size=1, max_size=3, unique=True),
    st.none() | st.binary(min_size=32, max_size=32),
)
def test_an_invite_comes_back_from_its_line(swarm, addrs, key):
    invite = Invite(swarm=swarm, addrs=tuple(addrs), key=key)
    again = Invite.parse(invite.text)
    assert (again.swarm, set(again.addrs), again.key) == (swarm, set(addrs), key)


def test_the_line_has_one_kind_of_characters_and_the_prefix():
    assert INVITE.text.startswith("shoal1")
    assert INVITE.text.isalnum()
    assert INVITE.text == INVITE.text.lower()


def test_an_invite_survives_capitals_and_wrapped_lines():
    text = INVITE.text
    assert Invite.parse(f"  {text[:40]}\r\n {text[40:].upper()}\n") == INVITE


def test_the_peers_of_an_invite_have_their_addresses():
    assert INVITE.peers == {ONE: ADDRS[:2], TWO: ADDRS[2:]}


def test_a_bare_address_is_an_invite_to_whatever_swarm_this_is():
    assert Invite.parse(ADDRS[0]) == Invite(swarm=None, addrs=ADDRS[:1])


@pytest.mark.parametrize("place", [6, 20, 60, -1])
def test_one_wrong_character_is_noticed(place):
    text = list(INVITE.text)
    text[place] = "a" if text[place] != "a" else "b"
    with pytest.raises(InviteError, match="ask for it again"):
        Invite.parse("".join(text))


@pytest.mark.parametrize("length", [6, 7, 12, 50, -1])
def test_a_cut_off_invite_is_noticed(length):
    with pytest.raises(InviteError, match=r"incomplete|damaged"):
        Invite.parse(INVITE.text[:length])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with"),
        ("hello", "begins with"),
        ("x" * (MAX_CHARS + 1), "too long"),
        ("/ip4/192.0.2.7/tcp/4642", "id is missing"),
        (f"/ip4/192.0.2.7/udp/4642/p2p/{ONE}", "TCP"),
        ("shoal1!!!", "typing error"),
    ],
)
def test_what_is_no_invite_is_refused_with_what_to_do(text, says):
    with pytest.raises(InviteError, match=says):
        Invite.parse(text)


@given(st.text(max_size=100))
def test_any_text_is_an_invite_or_an_invite_error(text):
    for candidate in (text, "shoal1" + text):
        with pytest.raises(InviteError):
            Invite.parse(candidate)


def test_neither_the_repr_nor_an_error_tells_the_key():
    assert KEY.hex() not in repr(INVITE)
    assert str(KEY) not in repr(INVITE)
    with pytest.raises(InviteError) as caught:
        Invite.parse(INVITE.text[:-3])
    assert INVITE.text[10:30] not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"addrs": ()},
        {"addrs": ADDRS[:1] * 33},
        {"swarm": ""},
        {"swarm": "x" * 65},
        {"key": b"short"},
        {"addrs": ("shoal1",)},
    ],
    ids=str,
)
def test_an_invite_that_cannot_be_is_not_made(wrong):
    with pytest.raises(InviteError):
        Invite(**{"swarm": "home", "addrs": ADDRS, "key": None, **wrong})
