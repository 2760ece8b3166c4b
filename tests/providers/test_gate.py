"""The gate before a provider."""

import pytest
import trio
import trio.testing
from shoal.providers.base import ErrorKind, ProviderError
from shoal.providers.gate import PARTY, Gate


async def test_no_more_than_allowed_are_inside_and_the_others_come_in_turn() -> None:
    gate, order, go = Gate("desk", running=2, waiting=10), [], trio.Event()

    async def visit(number: int) -> None:
        async with gate:
            order.append(number)
            await go.wait()

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(visit, number)
            await trio.testing.wait_all_tasks_blocked()
        assert (gate.in_flight, gate.waiting, order) == (2, 4, [0, 1])
        go.set()
    assert [set(order[i : i + 2]) for i in (0, 2, 4)] == [{0, 1}, {2, 3}, {4, 5}]
    assert gate.in_flight == gate.waiting == 0


async def test_one_more_than_may_wait_is_refused_at_once_with_the_remedy() -> None:
    gate = Gate("desk", running=1, waiting=1)
    async with trio.open_nursery() as nursery, gate:
        nursery.start_soon(_pass, gate)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ProviderError) as caught:
            async with gate:
                raise AssertionError
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert "max_queue in [providers.desk]" in caught.value.message
    assert gate.in_flight == 0


async def test_whoever_gives_up_waiting_leaves_the_queue() -> None:
    gate = Gate("desk", running=1, waiting=1)
    async with gate:
        with trio.move_on_after(0):
            await _pass(gate)
        assert gate.waiting == 0
    async with gate:
        assert gate.in_flight == 1


async def test_a_newcomer_does_not_overtake_the_one_that_was_let_in() -> None:
    gate, order = Gate("desk", running=1, waiting=5), []

    async def visit(name: str) -> None:
        async with gate:
            order.append(name)

    async with trio.open_nursery() as nursery:
        async with gate:
            nursery.start_soon(visit, "waited")
            await trio.testing.wait_all_tasks_blocked()
        await visit("new")
    assert order == ["waited", "new"]


def test_a_gate_without_room_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Gate("desk", running=0, waiting=1)


async def _pass(gate: Gate) -> None:
    async with gate:
        pass


async def test_nobody_waits_longer_than_patience_allows_and_the_place_is_not_lost(autojump_clock: object) -> None:
    gate = Gate("desk", running=1, waiting=4, patience_s=30)
    async with trio.open_nursery() as nursery:
        go = trio.Event()

        async def inside() -> None:
            async with gate:
                await go.wait()

        nursery.start_soon(inside)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ProviderError) as caught:
            await gate.__aenter__()
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert "within 30 s" in caught.value.message
        assert gate.facts() == {"running": 1, "waiting": 0, "max_concurrent": 1, "max_queue": 4}
        go.set()
    async with gate:
        assert gate.in_flight == 1


async def test_who_is_cancelled_in_the_queue_takes_nobodys_turn() -> None:
    gate, order = Gate("desk", running=1, waiting=9), []
    async with trio.open_nursery() as nursery:
        go, scopes = trio.Event(), [trio.CancelScope() for _ in range(4)]

        async def visit(number: int) -> None:
            with scopes[number]:
                async with gate:
                    order.append(number)
                    await go.wait()

        for number in range(4):
            nursery.start_soon(visit, number)
            await trio.testing.wait_all_tasks_blocked()
        scopes[1].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert gate.waiting == 2
        go.set()
    assert order == [0, 2, 3]
    assert gate.in_flight == gate.waiting == 0


async def test_a_late_party_is_served_before_the_rest_of_a_busy_one() -> None:
    gate, order, go = Gate("desk", running=1, waiting=99), [], trio.Event()

    async def visit(party: str) -> None:
        PARTY.set(party)
        async with gate:
            order.append(party)
            await go.wait()

    async with trio.open_nursery() as nursery:
        for party in ("busy", "busy", "busy", "busy", "late", "later", "late"):
            nursery.start_soon(visit, party)
            await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert order == ["busy", "busy", "late", "later", "busy", "late", "busy"]


async def test_a_party_that_fills_the_queue_makes_room_for_anothers_first() -> None:
    gate, served, refused, go = Gate("desk", running=1, waiting=3), [], [], trio.Event()

    async def visit(party: str, number: int) -> None:
        PARTY.set(party)
        try:
            async with gate:
                served.append((party, number))
                await go.wait()
        except ProviderError:
            refused.append((party, number))

    async with trio.open_nursery() as nursery:
        for party, number in [("busy", n) for n in range(5)] + [("late", n) for n in range(3)]:
            nursery.start_soon(visit, party, number)
            await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert refused == [("busy", 4), ("busy", 3), ("late", 1), ("late", 2)]
    assert served == [("busy", 0), ("busy", 1), ("late", 0), ("busy", 2)]
