"""Users take turns: nobody waits for more than a few of another's."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from telehandler.common.turns import Threads, Turns


async def _waiting(turns: Turns, user: str, order: list[str]) -> None:
    async with turns.turn(user):
        order.append(user)
        await asyncio.sleep(0)


def test_a_user_who_comes_late_is_served_next() -> None:
    async def run() -> list[str]:
        turns, order = Turns(per_user=1, slots=1), list[str]()
        many = [asyncio.create_task(_waiting(turns, "many", order)) for _ in range(50)]
        await asyncio.sleep(0)
        few = [asyncio.create_task(_waiting(turns, "few", order)) for _ in range(2)]
        await asyncio.gather(*many, *few)
        return order

    order = asyncio.run(run())
    assert len(order) == 52
    assert [place for place, user in enumerate(order) if user == "few"] <= [3, 5]


@pytest.mark.parametrize("user", ["a", ""])
def test_everybody_has_a_turn_in_the_end(user: str) -> None:
    """The server itself, whose name is empty, is a user among others."""

    async def run() -> int:
        turns, order = Turns(per_user=1, slots=2), list[str]()
        await asyncio.wait_for(asyncio.gather(*(_waiting(turns, user, order) for _ in range(50))), 10)
        return len(order)

    assert asyncio.run(run()) == 50


def test_one_user_has_no_more_than_his_slots() -> None:
    async def run() -> None:
        turns = Turns(per_user=2, slots=3)
        await turns.take("a")
        await turns.take("a")
        third = asyncio.create_task(turns.take("a"))
        await asyncio.sleep(0)
        assert not third.done()  # though a slot is free
        await turns.take("b")
        turns.give_back("a")
        await third

    asyncio.run(run())


@pytest.mark.parametrize("when", ["waiting", "just given"])
def test_a_turn_that_is_given_up_is_the_next_ones(when: str) -> None:
    async def run() -> None:
        turns = Turns(per_user=1, slots=1)
        await turns.take("a")
        given_up = asyncio.create_task(turns.take("b"))
        following = asyncio.create_task(turns.take("c"))
        await asyncio.sleep(0)
        if when == "just given":
            turns.give_back("a")
        given_up.cancel()
        await asyncio.sleep(0)
        if when == "waiting":
            turns.give_back("a")
        await asyncio.wait_for(following, 5)
        turns.give_back("c")
        await asyncio.wait_for(turns.take("d"), 5)

    asyncio.run(run())


def test_work_that_nobody_waits_for_keeps_its_turn() -> None:
    """Else who asks and goes away, again and again, would have more and more threads' work waiting."""

    async def run() -> None:
        threads, begun, end = Threads("test", 1, 1), list[int](), threading.Event()

        def work(number: int) -> Callable[[], None]:
            def wait() -> None:
                begun.append(number)
                end.wait(10)

            return wait

        tasks = []
        for number in range(20):
            tasks.append(asyncio.create_task(threads.run("a", work(number))))
            await asyncio.sleep(0)
        deadline = time.monotonic() + 10
        while not begun and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        end.set()
        assert await threads.run("b", lambda: "done") == "done"
        assert begun == [0]

    asyncio.run(run())


def test_an_error_of_the_work_is_its_callers() -> None:
    async def run() -> None:
        threads = Threads("test", 1, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run("a", lambda: 1 // 0)
        assert await threads.run("a", lambda: 5) == 5

    asyncio.run(run())
