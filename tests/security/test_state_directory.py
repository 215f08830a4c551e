"""The state directory, which holds all output and the records, is its server's alone, also one that was there (S12)."""

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from support.servers import Server

from telehandler.common.errors import TelehandlerError
from telehandler.supervisor.server import _state_directory

pytestmark = pytest.mark.usefixtures("as_root")
NOBODY = pwd.getpwnam("nobody")


def _made(path: Path, mode: int, uid: int = NOBODY.pw_uid) -> Path:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, uid, NOBODY.pw_gid)
    return path


def test_s12_a_state_directory_that_others_could_read_is_closed_to_them(
    make_server: Callable[..., Server], place: Path
) -> None:
    state = _made(place / "open state", 0o777)
    server = make_server(state=state, options=("--user", "nobody"))
    assert state.stat().st_mode & 0o7777 == 0o700
    assert server.stop() == 0


@pytest.mark.parametrize("umask", [0, 0o077], ids=oct)
def test_s12_a_new_state_directory_is_its_servers_alone(place: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = _state_directory(str(place / f"new {umask}" / "below"), NOBODY.pw_uid, NOBODY.pw_gid)
    finally:
        os.umask(before)
    found = made.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o700, NOBODY.pw_uid, NOBODY.pw_gid)


def test_s12_roots_own_directory_with_files_in_it_is_not_given_away(place: Path) -> None:
    etc = _made(place / "etc", 0o755, 0)
    (etc / "passwd").touch()
    with pytest.raises(TelehandlerError, match="is root's and not empty"):
        _state_directory(str(etc), NOBODY.pw_uid, NOBODY.pw_gid)
    assert (etc.stat().st_uid, etc.stat().st_mode & 0o7777) == (0, 0o755)


def test_s12_another_users_directory_is_refused_and_left_as_it_is(place: Path) -> None:
    others = _made(place / "another's", 0o755, 12345)
    with pytest.raises(TelehandlerError, match="is another user's"):
        _state_directory(str(others), NOBODY.pw_uid, NOBODY.pw_gid)
    assert (others.stat().st_uid, others.stat().st_mode & 0o7777) == (12345, 0o755)


def test_s12_an_empty_disk_of_roots_is_taken(place: Path) -> None:
    """A new ext4 has lost+found and nothing else."""
    disk = _made(place / "disk", 0o755, 0)
    (disk / "lost+found").mkdir()
    assert _state_directory(str(disk), NOBODY.pw_uid, NOBODY.pw_gid) == disk
    assert (disk.stat().st_uid, disk.stat().st_mode & 0o7777) == (NOBODY.pw_uid, 0o700)
