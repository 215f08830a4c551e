"""Stop, exit, delete and the death of the api at once, from several clients: one final state, and the same for all."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.library_client import client_of
from support.processes import alive
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.client.connection import Client, End
from telehandler.common.errors import TelehandlerError
from telehandler.pb import telehandler_pb2 as pb

JOBS, CLIENTS = 30, 4
SEED = 1_618
FINAL = {"JOB_STATE_FAILED", "JOB_STATE_COMPLETED", "JOB_STATE_STOPPED"}


@pytest.fixture
def clients(make_server: Callable[..., Server]) -> Iterator[tuple[Server, list[Client]]]:
    server = make_server(listen=free_address())
    made = [client_of(server) for _ in range(CLIENTS)]
    yield server, made
    for client in made:
        client.close()


def start(client: Client, life_s: float, code: int) -> str:
    return client.start(pb.StartJobRequest(command="sh", args=["-c", f"echo up; sleep {life_s:.3f}; exit {code}"]))


def attempt(action: Callable[[], object]) -> str:
    """What went wrong; empty for nothing."""
    try:
        action()
    except TelehandlerError as error:
        return str(error)
    return ""


def kill_api_of(server: Server, clients: list[Client], name: str) -> None:
    """And waits until every client is connected to the next."""
    api = server.children()["api"]
    os.kill(api, signal.SIGKILL)
    wait_until("it has ended", lambda: not alive(api))
    for client in clients:
        wait_until("it answers", lambda client=client: not attempt(lambda: client.status(name)))  # type: ignore[misc]


def race(server: Server, clients: list[Client], names: list[str], kill_api: bool) -> None:
    """Every client stops, removes or watches every job, in an order of its own."""
    barrier = threading.Barrier(CLIENTS + kill_api)

    def work(number: int) -> list[str]:
        dice, client, order = random.Random(SEED + number), clients[number], list(names)
        dice.shuffle(order)
        barrier.wait(30)
        wrong = []
        for name in order:
            if number == 0:
                wrong.append(attempt(lambda name=name: client.status(name, wait=True)))  # type: ignore[misc]
            else:
                grace = dice.choice((0, 0.01, 5))
                wrong.append(attempt(lambda name=name, grace=grace: client.stop(name, 15, grace)))  # type: ignore[misc]
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        results = [pool.submit(work, number) for number in range(CLIENTS)]
        if kill_api:
            barrier.wait(30)
            kill_api_of(server, clients, names[0])
        wrong = [text for result in results for text in result.result(120) if text]
    if not kill_api:
        assert wrong == []


@pytest.mark.parametrize("kill_api", [False, True], ids=["calm", "killed"])
def test_r8_stops_race_exits_and_one_state_is_final(clients: tuple[Server, list[Client]], kill_api: bool) -> None:
    server, made = clients
    dice = random.Random(SEED)
    lives = [dice.uniform(0, 0.6) for _ in range(JOBS)]
    names = [start(made[0], life_s, number % 3) for number, life_s in enumerate(lives)]
    race(server, made, names, kill_api)
    wait_until("all have ended", lambda: all(made[0].status(name).HasField("end_time") for name in names))
    states = {}
    for number, name in enumerate(names):
        seen = [made[0].status(name).SerializeToString(deterministic=True) for _ in range(2)]
        status = made[0].status(name)
        state = pb.JobState.Name(status.state) if isinstance(status.state, int) else status.state
        assert seen[0] == seen[1]
        assert state in FINAL
        assert (state == "JOB_STATE_STOPPED") == (pb.JobReason.Name(status.reason) == "JOB_REASON_STOPPED")
        if state != "JOB_STATE_STOPPED":  # it was there first: its own exit code, which makes the state
            assert (status.exit_code, status.signal) == (number % 3, 0)
            assert state == ("JOB_STATE_FAILED" if number % 3 else "JOB_STATE_COMPLETED")
        ends: list[End] = []
        list(made[1].watch(pb.WatchJobOutputRequest(name=name), False, ends, lambda text: None))
        assert ends[0].state.upper() == state.removeprefix("JOB_STATE_")
        states[name] = seen[0]
    assert len({made[0].status(name).state for name in names}) > 1, "no race was lost or none was won"
    kill_api_of(server, made, names[0])
    after = {name: made[0].status(name).SerializeToString(deterministic=True) for name in names}
    assert after == states  # and for the next api
    own = server.cgroup
    wait_until("the helper has forgotten all", lambda: not list(own.glob("job-*")))


def test_r8_removals_race_stops_and_exits(clients: tuple[Server, list[Client]]) -> None:
    """Whoever removes a job first, it is gone for all, with its files, and the api goes on."""
    server, made = clients
    dice = random.Random(SEED)
    names = [start(made[0], dice.uniform(0, 0.3), 0) for _ in range(JOBS)]
    api = server.children()["api"]

    def work(number: int) -> set[str]:
        client, order = made[number], list(names)
        random.Random(number).shuffle(order)
        verbs: list[Callable[[str], object]] = [
            lambda name: client.delete(name, True),
            lambda name: client.delete(name, True),
            lambda name: client.stop(name, 15, 5),
            lambda name: list(client.watch(pb.WatchJobOutputRequest(name=name), False, [], lambda text: None)),
        ]
        return {attempt(lambda name=name: verbs[number](name)) for name in order}  # type: ignore[misc]

    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = set().union(*pool.map(work, range(CLIENTS)))
    assert wrong <= {"", "no such job, or not yours"}
    for name in names:
        assert attempt(lambda name=name: made[0].status(name)) == "no such job, or not yours"  # type: ignore[misc]
    wait_until("the files are gone", lambda: not list((server.state / "jobs").iterdir()))
    assert server.children()["api"] == api
    usual = "telehandler: listening", "telehandler: limits that the controllers"  # the second on a machine without
    said = [line for line in server.log_text().splitlines() if "cannot be read by the server's user" not in line]
    assert [line for line in said if not line.startswith(usual)] == []
