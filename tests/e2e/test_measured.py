"""What a node measures reaches its peers: speed and first token of a model, and the machine's memory bandwidth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.fixtures import client, fast, in_thread, question, start, until, until_a_peer_offers
from tests.providers.fake_upstream import FakeUpstream


async def test_peers_and_the_owner_see_what_was_measured_and_it_outlasts_a_restart(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        config = fast(upstream.url("words60+slow5"), share=True) + "[node]\nmeasure_after_s = 0.5\n"
        server = await start(tmp_path / "server", config=config)
        try:
            words = question(" ".join(f"w{at}" for at in range(60)))
            await in_thread(client(server).chat.completions.create, **words)
            status = await until(server, ("status",), lambda said: said["rates"] and said["hardware"].get("memory_gbs"))
            [rate] = status["rates"]
            assert (rate["provider"], rate["model"]) == ("fast", "echo")
            assert 20 < rate["decode_tps"] < 200
            assert rate["first_token_ms"] > 1
            assert status["hardware"]["memory_gbs"] > 0.1

            off = "[providers.local_hf]\nenabled = false\n[node]\nmeasure_after_s = 0\n"
            asker = await start(tmp_path / "asker", "--join", server.invite, config=off)
            try:
                await until_a_peer_offers(asker, "echo")

                def told(said: Any) -> bool:
                    [peer] = said["peers"]
                    models = {model["name"]: model for model in peer["models"]}
                    return bool(peer["hardware"].get("memory_gbs")) and bool(models["echo"].get("first_token_ms"))

                said = await until(asker, ("peers",), told, within=15)
                [model] = said["peers"][0]["models"]
                assert 20 < model["decode_tps"] < 200
                assert model["measured_at"] > 1.6e9
                shown = (await in_thread(asker.shoal, "peers")).stdout
                assert "tokens/s" in shown
                assert "GB/s" in shown
            finally:
                await in_thread(asker.stop)
        finally:
            await in_thread(server.stop)
        again = await start(tmp_path / "server", config=config)
        try:
            status = await until(again, ("status",), lambda said: True)
            assert status["rates"] == [rate]
            assert status["hardware"]["memory_gbs"] > 0.1
            assert "measured" in (await in_thread(again.shoal, "status")).stdout
        finally:
            await in_thread(again.stop)
