"""Two nodes behind NATs of their own and public relays between them: real daemons, in namespaces."""

from __future__ import annotations

import pytest

from tests.nat.lab import Lab
from tests.nat.people import EVERYWHERE, a_relay, ask, config, until_knows, until_placed

pytestmark = pytest.mark.nat


@pytest.mark.parametrize("kinds", [("sym", "sym"), ("cone", "sym")], ids="-".join)
async def test_two_nodes_behind_nats_exchange_a_streamed_answer_through_a_relay(
    lab: Lab, kinds: tuple[str, str]
) -> None:
    lab.up(*kinds)
    async with lab.upstream("nodeb") as upstream:
        with (
            await a_relay(lab) as relay,
            await lab.node("nodeb", *EVERYWHERE, "--join", relay.invite, config=config(upstream.url("each"))) as b,
            await lab.node("nodea", *EVERYWHERE, "--join", relay.invite, config=config()) as a,
        ):
            await until_placed(b, relay)
            await until_placed(a, relay)
            await until_knows(a, b, via="relayed")
            answer = await ask(a, "one two three")
            assert (answer.text, answer.error) == ("ECHO<one two three>", "")
