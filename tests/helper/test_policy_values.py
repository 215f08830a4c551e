"""What a policy may say: each value at its last good one and its first bad one; and which files are trusted (S11)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helper import policy
from helper.policy import SetupError

PATH_KEYS = ("root",)
PATH_LIST_KEYS = ("hidden",)
BIND_KEYS = ("read_only", "writable")
NOBODY = 65534
FILE_BYTES = 16 * 1024


def _parsed(text: str) -> policy.Policy:
    return policy.parse("/the/file.toml", text)


def _refused(text: str, *words: str) -> None:
    with pytest.raises(SetupError) as raised:
        _parsed(text)
    for word in ("/the/file.toml", *words):
        assert word in str(raised.value)


def _profile(key: str, value: Any) -> str:
    return f"[profile.a]\n{key} = {value!r}\n"


@pytest.mark.parametrize("path", ["/", "/a", "/a/b.c", "/..a", "/é"])
def test_paths_that_are_good(path: str) -> None:
    for key in PATH_KEYS:
        assert getattr(_parsed(_profile(key, path)).profiles["a"], key) == path
    for key in PATH_LIST_KEYS:
        assert getattr(_parsed(_profile(key, ["/x", path])).profiles["a"], key) == ["/x", path]
    for key in BIND_KEYS:
        for bind in (f"{path}:/x", f"/x:{path}"):
            assert getattr(_parsed(_profile(key, [bind])).profiles["a"], key) == [bind]


@pytest.mark.parametrize("path", ["", "a", "./a", "/a/", "/a/..", "/../a", "/a/./b", "/a//b"])
def test_paths_that_are_not(path: str) -> None:
    for key in PATH_KEYS:
        _refused(_profile(key, path), f"line 2: profile.a.{key} must be")
    for key in PATH_LIST_KEYS:
        _refused(_profile(key, ["/x", path]), f"line 2: profile.a.{key} must be")
    for key in BIND_KEYS:
        for bind in (f"{path}:/x", f"/x:{path}"):
            _refused(_profile(key, [bind]), f"line 2: profile.a.{key} must be")


@pytest.mark.parametrize("bind", ["/a", "/a:/b:/c", ":", "", 1])
def test_binds_that_are_none(bind: Any) -> None:
    for key in BIND_KEYS:
        _refused(_profile(key, [bind]), f"line 2: profile.a.{key} must be")


def test_lists_hold_what_they_may_and_nothing_else() -> None:
    assert _parsed("allowed_uids = [0, 5]\n").allowed_uids == [0, 5]
    assert _parsed("allow_missing_controllers = ['cpu', 'io']\n").allow_missing_controllers == ["cpu", "io"]
    assert _parsed("io_devices = ['/dev/sda']\n").io_devices == ["/dev/sda"]
    _refused("allowed_uids = [0, true]\n", "line 1: allowed_uids must be a list of numbers")
    _refused("allow_missing_controllers = ['cpu', 'rdma']\n", "line 1: allow_missing_controllers must be")
    for network in ("none", "host"):
        assert _parsed(_profile("network", network)).profiles["a"].network == network
    _refused(_profile("network", "None"), "line 2: profile.a.network must be")


@pytest.mark.parametrize("key", ["max_jobs", "starts_per_second"])
def test_numbers_have_a_least_and_a_most(key: str) -> None:
    assert getattr(_parsed(f"{key} = 1\n"), key) == 1
    assert _parsed(f"starts_per_second = {2**62 - 1}\n").starts_per_second == 2**62 - 1
    for value in (0, -1, 2**62):
        _refused(f"{key} = {value}\n", f"line 1: {key} must be a number of 1 or more")


def test_a_default_that_is_made_of_another_is_0_or_more() -> None:
    """memory_high_bytes 0: whatever goes with memory_bytes."""
    assert _parsed("[limits.default]\nmemory_high_bytes = 0\n").default == _parsed("").default
    assert _parsed("[limits.default]\nmemory_bytes = 400\n").default["memory_high_bytes"] == 400
    assert _parsed("[limits.default]\nmemory_high_bytes = 5\n").default["memory_high_bytes"] == 5
    _refused("[limits.default]\nmemory_high_bytes = -1\n", "memory_high_bytes must be a number of 0 or more")


def test_a_default_may_be_the_maximum_and_no_more() -> None:
    text = "[limits.default]\npids = {}\n[limits.maximum]\npids = 7\n"
    assert _parsed(text.format(7)).default["pids"] == 7
    _refused(text.format(8), "line 4: limits.maximum.pids must be at least the default")


@pytest.mark.parametrize(
    ("first", "count", "good"),
    [(1000, 5, True), (999, 5, False), (2**31 - 5, 5, True), (2**31 - 4, 5, False), (1000, 4, False)],
)
def test_uids_are_from_1000_to_2_31_and_enough_for_the_jobs(first: int, count: int, good: bool) -> None:
    text = f"max_jobs = 5\n[job_uids]\nfirst = {first}\ncount = {count}\n"
    if good:
        assert (_parsed(text).uid_first, _parsed(text).uid_count) == (first, count)
    else:
        _refused(text, "line 2: job_uids must be")


def test_a_table_changes_what_it_names_and_leaves_the_rest() -> None:
    built_in, found = _parsed(""), _parsed("[limits.default]\npids = 5\n[profile.host]\ntmp_bytes = 9\n[profile.a]\n")
    assert found.default == built_in.default | {"pids": 5}
    assert found.maximum == built_in.maximum
    assert [*found.profiles] == ["host", "a"]
    assert vars(found.profiles["host"]) == vars(built_in.profiles["host"]) | {"tmp_bytes": 9}
    # A new one has the built-in's keys where it says nothing.
    assert vars(found.profiles["a"]) == vars(built_in.profiles["host"]) | {"profile_name": "a"}


def test_a_mistake_is_found_behind_the_table_that_it_is_in() -> None:
    """The same key stands in two tables, and its name in a comment."""
    text = "# pids\n[limits.default]\npids = 5\n[limits.maximum]\n\npids = 'x'\n"
    _refused(text, "line 6: limits.maximum.pids must be a int")
    _refused("max_jobs = 5\nno_such = 1\n", "line 2: no_such must be one of: allowed_uids, cgroup_root")
    _refused("max_jobs = 0\n[limits.default]\nmax_jobs = 1\n", "line 1: max_jobs must be a number")
    # Written so that it is not found: the file's beginning, for want of better.
    _refused('\n\n"max\\u005fjobs" = 0\n', "line 1: max_jobs must be a number")
    _refused("[limits.default]\nmax_jobs = 1\n", "line 2: limits.default.max_jobs must be one of: cpu_millis")


@pytest.fixture
def directory(as_root: None, place: Path) -> Iterator[Path]:
    """Root's, below directories that are root's or sticky."""
    path = place / "trust" / "below"
    path.mkdir(parents=True)
    path.parent.chmod(0o755)
    path.chmod(0o755)
    yield path
    for one in (*path.glob("*"), path, path.parent):
        one.rmdir() if one.is_dir() else one.unlink()


def _load(directory: Path, data: bytes) -> policy.Policy:
    path = directory / "policy.toml"
    path.write_bytes(data)
    path.chmod(0o644)
    return policy.load(str(path), set())


def test_a_policy_file_has_a_bound_and_is_utf_8(directory: Path) -> None:
    text = b"max_jobs = 3\n#"
    assert _load(directory, text.ljust(FILE_BYTES, b"x")).max_jobs == 3
    with pytest.raises(SetupError, match=f"has over {FILE_BYTES} bytes"):
        _load(directory, text.ljust(FILE_BYTES + 1, b"x"))
    with pytest.raises(SetupError, match="the policy cannot be read"):
        _load(directory, b"\xff")
    with pytest.raises(SetupError, match="the policy cannot be read"):
        policy.load(str(directory), set())


@pytest.mark.parametrize(
    ("mode", "owner", "good"),
    [
        (0o644, 0, True), (0o4755, 0, True), (0o600, 0, True), (0o664, 0, False), (0o646, 0, False), (0o622, 0, False),
        (0o644, NOBODY, False), (0o600, NOBODY, False),
        (0o1666, 0, False),  # sticky says nothing about a file
    ],
)  # fmt: skip
def test_s11_a_file_is_trusted_that_only_root_can_write(directory: Path, mode: int, owner: int, good: bool) -> None:
    path = directory / "file"
    path.touch()
    os.chown(path, owner, owner)
    path.chmod(mode)
    _trusted(path, path, good)


@pytest.mark.parametrize(
    ("mode", "owner", "good"),
    [(0o755, 0, True), (0o1777, 0, True), (0o777, 0, False), (0o775, 0, False), (0o755, NOBODY, False),
     (0o1777, NOBODY, False)],
)  # fmt: skip
@pytest.mark.parametrize("which", ["parent", "grandparent"])
def test_s11_so_are_its_directories_or_they_are_sticky(
    directory: Path, which: str, mode: int, owner: int, good: bool
) -> None:
    path = directory / "file"
    path.touch()
    above = {"parent": directory, "grandparent": directory.parent}[which]
    os.chown(above, owner, owner)
    above.chmod(mode)
    _trusted(path, above, good)


def _trusted(path: Path, culprit: Path, good: bool) -> None:
    seen: set[str] = set()
    if good:
        policy.trusted(str(path), seen)
        assert {str(path), str(path.parent), "/"} <= seen
        policy.trusted(str(path), seen)
    else:
        with pytest.raises(SetupError, match=f"^{culprit} is not root's alone"):
            policy.trusted(str(path), seen)
        assert str(culprit) not in seen


def test_s11_a_link_is_trusted_where_it_leads(directory: Path) -> None:
    target, link = directory / "target", directory / "link"
    target.touch()
    link.symlink_to(target)
    policy.trusted(str(link), set())
    target.chmod(0o666)
    with pytest.raises(SetupError, match=f"^{target} is not root's alone"):
        policy.trusted(str(link), set())
