"""Fixtures of every folder: certificates, a policy for this machine, servers, the client."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import make_certificates
from support.cgroups import cgroup_root, our_cgroups
from support.checkout import ROOT
from support.helper_copy import helper_without_init
from support.policies import policy_text
from support.servers import Server
from vm.boots import Guests


@pytest.fixture(scope="session")
def as_root() -> None:
    """Needs root: a skip with a reason, a failure in CI, where a skip must not pass for a pass."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must run the tests as root")
        pytest.skip("needs root: real namespaces and cgroups")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The whole run leaves no cgroup behind. First of its scope, so last to end."""
    before = our_cgroups()
    yield
    assert our_cgroups() <= before


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[Guests]:
    """The virtual machines of the tests that are selected. Who asks for them early has them boot meanwhile."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    found = Guests({str(item.callspec.params["mode"]) for item in items if item.originalname == "test_in_the_guest"})
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends the run early still removes them
    try:
        yield found
    finally:
        found.close()
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def bare_cgroup() -> Iterator[Path]:
    """A cgroup whose parent hands no controller down: as on a machine that has none."""
    outer = cgroup_root() / f"test-of-telehandler-{os.getpid()}"
    inner = outer / "bare"
    inner.mkdir(parents=True)
    yield inner
    inner.rmdir()
    outer.rmdir()


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that every user may enter, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="telehandler-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def ssl(place: Path) -> Path:
    """root, server, client (tele-tester), bubba and admin."""
    directory = place / "ssl"
    make_certificates(directory)
    return directory


@pytest.fixture(scope="session")
def policy(place: Path) -> Path:
    """The built-in policy, without the controllers that this machine lacks."""
    path = place / "policy.toml"
    path.write_text(policy_text())
    path.chmod(0o644)
    return path


@pytest.fixture(scope="session", params=["compiled", "python"])
def code(request: pytest.FixtureRequest, place: Path) -> Path:
    """The helper with each of a job's two inits, for what must be the same with both."""
    if request.param == "python":
        return helper_without_init(place)
    assert (ROOT / "helper" / "init").exists(), "run `make helper/init`"
    return ROOT


@pytest.fixture(scope="session")
def make_server(as_root: None, place: Path, ssl: Path, policy: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers; those that a test left are stopped at the end."""
    started: list[Server] = []

    def make(**options: Any) -> Server:
        server = Server(place, options.pop("ssl", ssl), options.pop("policy", policy), **options)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(make_server: Callable[..., Server]) -> Server:
    """One server, started as root, for tests that leave it as it is."""
    return make_server(admins=("admin",))
