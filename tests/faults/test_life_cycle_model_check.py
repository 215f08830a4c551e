"""Every order of events in the life of one job, with the death of api and helper between any two of them.

An abstraction of helper/monitor.py and jobs.py, and of helper_link.py and lifecycle.py in telehandler/jobs: one job,
one client that may stop it, the queues between the two processes, the record. Breadth first through all that can
happen.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from helper.jobs import JobState
from helper.wire import Type
from telehandler.common import states
from telehandler.common.states import State

API_DEATHS, HELPER_DEATHS = 3, 2
SOCKET_MESSAGES = 2  # that fit into the socket: the rest waits in the helper's queue
_EXIT_0 = dict.fromkeys("signal exit_code timed_out oom_kills pids_refused".split(), 0)
Mail = tuple[Type, int, bool]  # with the api it is from or for, and for WELCOME whether the job is live


class World(NamedTuple):
    """All there is. Apis are numbered; from `greeted` to `released` it is what the one that lives has in memory."""

    endless: bool  # the job ends only when it is killed
    started_by: int = 0  # the api that was asked for the job; 0: none yet
    answered: bool = False  # the client has its name
    helper: bool = True
    job: JobState | None = None  # in the helper's table
    failed: bool = False  # it never ran: ERROR is the answer to START, and no EXITED is sent
    killed: bool = False
    requests: tuple[Mail, ...] = ()
    queue: tuple[Mail, ...] = ()  # the helper's own, in front of the socket
    socket: tuple[Mail, ...] = ()
    record: State | None = None
    api_deaths: int = 0
    helper_deaths: int = 0
    api: int = 0
    up: bool = False
    greeted: bool = False  # it has WELCOME
    started: bool = False  # it has STARTED, and no record yet
    tracked: bool = False
    stopping: bool = False
    facts: bool = False  # it has EXITED
    ended: bool = False  # the end is recorded, and RELEASE is due

    def to(self, **changes: object) -> "World":
        return self._replace(**changes)  # type: ignore[arg-type]

    def asks(self, kind: Type) -> "World":
        return self.to(requests=(*self.requests, (kind, self.api, False)))

    def says(self, kind: Type, api: int = 0, live: bool = False) -> "World":
        return self.to(queue=(*self.queue, (kind, api, live)))

    def records(self, new: State) -> "World":
        """Raises ValueError for what may not follow."""
        if self.record is not None:
            states.check(self.record, new)
        return self.to(record=new)

    def is_well(self) -> bool:
        """Everything is over, and as it must be."""
        waits = self.requests or self.queue or self.socket or self.started or self.tracked or self.ended or self.facts
        over = self.record is not State.RUNNING and (self.record is not None or not self.answered)
        return self.greeted and self.helper and not waits and self.job is None and over


_NO_MEMORY = dict.fromkeys(("up", "greeted", "started", "tracked", "stopping", "facts", "ended"), False)


class Model:
    """`mistake` is one that the real code must not make: the search has to find it."""

    def __init__(self, mistake: str = "") -> None:
        self.mistake = mistake

    def deaths(self, world: World) -> Iterator[World]:
        if world.up and world.api_deaths < API_DEATHS:
            yield world.to(**_NO_MEMORY, api_deaths=world.api_deaths + 1)
        if world.helper and world.helper_deaths < HELPER_DEATHS:  # its jobs die with it; what it sent can be read
            gone = world.to(helper=False, job=None, failed=False, killed=False, requests=(), queue=())
            yield gone.to(helper_deaths=world.helper_deaths + 1)

    def steps(self, world: World) -> Iterator[World]:
        """Everything but deaths that can happen next."""
        if world.helper:
            yield from self.helper(world)
        if world.up:
            yield from self.api(world)
        elif world.helper:
            yield world.to(up=True, api=world.api + 1).asks(Type.HELLO)
        else:
            yield world.to(helper=True, socket=())

    def helper(self, world: World) -> Iterator[World]:
        if world.queue and len(world.socket) < SOCKET_MESSAGES:
            yield world.to(queue=world.queue[1:], socket=(*world.socket, world.queue[0]))
        if world.requests:
            (kind, api, _), rest = world.requests[0], world.to(requests=world.requests[1:])
            yield self.answer(rest, kind, api)
        if world.job is JobState.STARTING and world.killed:
            yield world.to(job=JobState.DYING)
        elif world.job is JobState.STARTING:
            yield world.to(job=JobState.RUNNING).says(Type.STARTED, world.started_by)
            yield world.to(failed=True, killed=True)
        elif world.job is JobState.RUNNING and (world.killed or not world.endless):
            yield world.to(job=JobState.DYING)
        elif world.job is JobState.DYING and world.failed:
            yield world.to(job=None).says(Type.ERROR, world.started_by)
        elif world.job is JobState.DYING:
            yield world.to(job=JobState.ENDED).says(Type.EXITED)

    def answer(self, world: World, kind: Type, api: int) -> World:
        if kind is Type.START:
            return world.to(job=JobState.STARTING)
        if kind is Type.KILL:
            return world.to(killed=world.killed or world.job is JobState.RUNNING)
        if kind is Type.RELEASE:
            assert world.job in (None, JobState.ENDED), "RELEASE before the end"
            assert world.job is None or Type.EXITED not in [mail[0] for mail in world.queue], "RELEASE before EXITED"
            return world.to(job=None)
        assert kind is Type.HELLO
        world = world.to(queue=())
        if world.job is JobState.STARTING:
            world = world.to(failed=True, killed=True)
        live = world.job is not None and not world.failed
        world = world.says(Type.WELCOME, api, live)
        return world.says(Type.EXITED) if live and world.job is JobState.ENDED else world

    def api(self, world: World) -> Iterator[World]:
        if world.socket:
            yield self.hear(world.to(socket=world.socket[1:]), *world.socket[0])
        elif not world.helper and not (world.facts and world.tracked):  # EOF: a new helper, to be greeted
            yield self.lose(world).to(**_NO_MEMORY, helper=True).to(up=True, api=world.api + 1).asks(Type.HELLO)
        if world.greeted and not world.started_by and world.helper:
            yield world.to(started_by=world.api).asks(Type.START)
        if world.started:
            yield world.records(State.RUNNING).to(started=False, tracked=True, answered=True)
        if world.tracked and world.answered and not world.stopping and world.helper:
            yield world.to(stopping=True).asks(Type.KILL)
        if world.tracked and (world.facts or self.mistake == "no wait"):
            ended = world.to(tracked=False, ended=True)
            yield ended if world.record is None else ended.records(states.end(_EXIT_0, world.stopping)[0])
        if world.ended and (world.facts or self.mistake == "no wait") and world.helper:
            yield world.to(ended=False, facts=False).asks(Type.RELEASE)

    def hear(self, world: World, kind: Type, api: int, live: bool) -> World:
        if kind is Type.EXITED:  # before WELCOME it is what an api before left; the helper says it again
            return world.to(facts=world.greeted or world.facts or self.mistake == "early EXITED")
        if api == world.api and kind is Type.STARTED:
            return world.to(started=True)
        if api != world.api or kind is not Type.WELCOME:
            return world
        world = world.to(greeted=True)
        if not live:
            return self.lose(world)
        if world.record in (None, State.RUNNING):  # None: the api before died before it made one
            unknown = world.record is None and self.mistake != "no kill"
            return world.to(tracked=True).asks(Type.KILL) if unknown else world.to(tracked=True)
        return world.to(ended=True, record=None if self.mistake == "removal" else world.record)

    def lose(self, world: World) -> World:
        """What is recorded as running and is not there is LOST."""
        if world.record is not State.RUNNING or self.mistake == "no loss":
            return world
        assert world.helper_deaths, "LOST, and no helper has died"
        return world.records(State.FAILED)


def search(model: Model) -> int:
    """How many worlds there are. Raises AssertionError or ValueError at the first that must not be."""
    waiting, ends = deque([World(endless=False), World(endless=True)]), []
    before: dict[World, list[World]] = {world: [] for world in waiting}  # by a step, not by a death
    while waiting:
        world = waiting.popleft()
        assert world.record is not None or not world.answered, f"the client has a job without a record: {world}"
        steps = list(model.steps(world))
        for after in (*steps, *model.deaths(world)):
            if after not in before:
                before[after] = []
                waiting.append(after)
        for after in steps:
            before[after].append(world)
        if not steps:
            assert world.is_well(), f"nothing more happens, and it is not over: {world}"
            ends.append(world)
    good: set[World] = set()
    while ends:
        if (world := ends.pop()) not in good:
            good.add(world)
            ends += before[world]
    assert good == before.keys(), f"it may go on for ever: {next(iter(before.keys() - good))}"
    return len(before)


def test_r8_every_started_job_gets_one_final_state_and_nothing_stays() -> None:
    assert search(Model()) > 10_000


@pytest.mark.parametrize("mistake", ["early EXITED", "no kill", "no loss", "no wait", "removal"])
def test_r8_the_search_finds_a_mistake(mistake: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        search(Model(mistake))


def test_r8_a_state_changes_once() -> None:
    for old in State:
        for new in State:
            if old is State.RUNNING and new is not State.RUNNING:
                states.check(old, new)
            else:
                with pytest.raises(ValueError, match="cannot become"):
                    states.check(old, new)
