"""Models, health, and what the node tells about itself."""

from __future__ import annotations

from shoal.cache.key import request_key
from shoal.cache.record import sign
from shoal.node.routing.no_answer import NoAnswer
from shoal.providers.base import ErrorKind, ModelInfo, Status

from .fakes_router import ME, OTHER, QUESTION, Scripted, fails, says
from .fakes_rpc import door


async def test_models_are_this_nodes_and_the_swarms() -> None:
    status = Status(ready=True, models=(ModelInfo("m1", 4096), ModelInfo("org/m9")), default_model="m1")
    down = Status(ready=False, reason="no key", models=(ModelInfo("m3"),))
    async with door(Scripted("first", says("x"), status=status), Scripted("b", says("x"), status=down)) as rpc:
        listed = (await rpc.ask("GET", "/v1/models")).json
        one = (await rpc.ask("GET", "/v1/models/org%2Fm9")).json
        same = (await rpc.ask("GET", "/v1/models/org/m9")).json
        missing = await rpc.ask("GET", "/v1/models/m0")
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["m1", "org/m9", "m9", "m8"]
    assert listed["data"][0] | {"created": 0} == {
        "id": "m1",
        "object": "model",
        "created": 0,
        "owned_by": "first",
        "shoal": {"context_length": 4096, "providers": ["first"], "peers": []},
    }
    assert listed["data"][2]["shoal"] == {"context_length": 2048, "providers": [], "peers": [OTHER.peer_id]}
    assert one == same
    assert one["id"] == "org/m9"
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_health_says_that_the_process_lives_and_readiness_that_it_can_answer() -> None:
    async with door(Scripted("b", says("x"), status=Status(ready=False, reason="no key"))) as rpc:
        assert (await rpc.ask("GET", "/healthz")).json == {"status": "ok"}
        reply = await rpc.ask("GET", "/readyz")
        assert reply.status == 503
        assert "b: no key" in reply.error["message"]
    async with door(Scripted("first", says("x"))) as rpc:
        assert (await rpc.ask("GET", "/readyz")).status == 200


async def test_status_counts_answers_and_failures() -> None:
    async with door(Scripted("first", fails(ErrorKind.AUTH)), Scripted("second", says("Cold."))) as rpc:
        await rpc.chat()
        await rpc.chat()
        status = (await rpc.ask("GET", "/shoal/v1/status")).json
    assert status["peer"] == ME.peer_id
    assert status["providers"] == {"first": True, "second": True}
    assert status["requests"]["answers"] == {"miss": 1, "memory": 1}
    assert status["requests"]["failures"] == {"first": 1}
    assert status["requests"]["in_flight"] == 0


async def test_providers_are_listed_with_the_reason_of_those_that_are_not_there() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        rpc.shelf.refused["gemini_cli"] = "not in this version yet"
        found = (await rpc.ask("GET", "/shoal/v1/providers")).json["providers"]
    assert [(p["name"], p["ready"], p["share"], p["reason"]) for p in found] == [
        ("first", True, False, ""),
        ("gemini_cli", False, False, "not in this version yet"),
    ]
    assert found[0]["models"][0]["name"] == "m1"


async def test_peers_and_join_are_the_swarms() -> None:
    async with door() as rpc:
        assert (await rpc.ask("GET", "/shoal/v1/peers")).json["peers"][0]["peer"] == OTHER.peer_id
        assert (await rpc.ask("POST", "/shoal/v1/join", {"invite": " shoal1x "})).json == {"swarm": "reef"}
        assert rpc.node.joined == ["shoal1x"]
        for body in ({}, {"invite": 5}, {"invite": ""}, {"invite": "bad"}):
            reply = await rpc.ask("POST", "/shoal/v1/join", body)
            assert (reply.status, reply.error["param"]) == (400, "invite")


async def test_the_last_route_tells_everything_but_what_was_said() -> None:
    async with door(Scripted("first", fails(ErrorKind.AUTH, "no key")), Scripted("second", says("Cold."))) as rpc:
        assert (await rpc.ask("GET", "/shoal/v1/route/last")).status == 404
        await rpc.chat()
        reply = await rpc.ask("GET", "/shoal/v1/route/last")
    found = reply.json
    assert (found["provider"], found["outcome"], found["cache"]) == ("second", "ok", "miss")
    assert [(a["provider"], a["outcome"]) for a in found["attempts"]] == [("first", "auth"), ("second", "ok")]
    assert b"Cold" not in reply.body
    assert b"opposite" not in reply.body


async def test_an_answer_is_found_by_its_cid_by_its_requests_cid_and_as_a_block() -> None:
    async with door(Scripted("first", says("Cold.", model="m1"))) as rpc:
        shoal = (await rpc.chat()).json["shoal"]
        found = (await rpc.ask("GET", f"/shoal/v1/cache/{shoal['cid']}")).json
        same = (await rpc.ask("GET", f"/shoal/v1/cache/{shoal['request']}")).json
        raw = await rpc.ask("GET", f"/shoal/v1/cache/{shoal['cid']}?format=raw")
        checks = (await rpc.ask("GET", f"/shoal/v1/verify/{shoal['cid']}")).json
    assert (found["content"], found["model"], found["request"]) == ("Cold.", "m1", shoal["request"])
    assert same == found
    assert raw.headers["content-type"] == "application/vnd.ipld.raw"
    assert b"Cold." in raw.body
    assert checks["ok"]
    assert all(step["ok"] is not False for step in checks["steps"])


async def test_a_record_from_beyond_is_fetched_and_checked() -> None:
    key = request_key(QUESTION, "cid")
    signed = sign(OTHER, key, QUESTION, provider="there", model=None, content="Cold.", finish="stop")
    async with door() as rpc:
        rpc.node.blocks[signed.cid_text] = signed.block
        assert (await rpc.ask("GET", f"/shoal/v1/cache/{signed.cid_text}")).json["node"] == OTHER.peer_id
        assert (await rpc.ask("GET", f"/shoal/v1/verify/{signed.cid_text}")).json["ok"]


async def test_what_is_no_cid_or_nowhere_is_a_clean_error() -> None:
    async with door() as rpc:
        for path in ("/shoal/v1/cache/nonsense", "/shoal/v1/verify/nonsense"):
            assert (await rpc.ask("GET", path)).status == 400
        assert (await rpc.ask("GET", f"/shoal/v1/cache/{request_key(QUESTION, 'cid').text}")).status == 404
        assert (await rpc.ask("GET", f"/shoal/v1/cache/{request_key(QUESTION, 'sha256').text}")).status == 404
        assert (await rpc.ask("GET", "/shoal/v1/cache?list=no")).status == 400


async def test_cache_figures_and_lists_are_json() -> None:
    async with door(Scripted("first", says("Cold."))) as rpc:
        await rpc.chat()
        assert (await rpc.ask("GET", "/shoal/v1/cache")).json["remembered"] == 1
        assert (await rpc.ask("GET", "/shoal/v1/cache?list=5")).json == {"answers": []}


def test_a_failure_for_several_callers_is_a_new_exception_for_each() -> None:
    failure = NoAnswer(ErrorKind.AUTH, "no key", code="x", param="y", retry_after=3)
    again = failure.again()
    assert again is not failure
    assert (again.kind, again.message, again.code, again.param, again.retry_after) == (
        ErrorKind.AUTH,
        "no key",
        "x",
        "y",
        3,
    )
